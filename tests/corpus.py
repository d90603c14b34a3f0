"""Playlists and media that others wrote; a reader of playlists that knows nothing of ours; and the relay's pure core to try both on."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hlsrelay.hls.advance import advance
from hlsrelay.hls.dateranges import carried
from hlsrelay.hls.parse import parse
from hlsrelay.hls.render import media_playlist
from hlsrelay.hls.window import Progress, slide
from hlsrelay.judge import Judge
from hlsrelay.judge.findings import Severity
from hlsrelay.model import SOURCE, Entry, InitSection, MediaFile, Numbered, Position, Slice, Snapshot, Traits
from tests.playlists import URL, at, parsed, stream

CORPUS = Path(__file__).parents[2] / "shared" / "corpus"
corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason="no corpus of third-party playlists at ../shared/corpus, beside the checkout")

STRICT = Path(__file__).parent / "npm" / "strict.mjs"


def files(*suffixes: str) -> list[Path]:
    """Return the corpus's files that end in one of *suffixes*."""
    return sorted(path for path in CORPUS.rglob("*") if path.suffix in suffixes)


def name(path: Path) -> str:
    """Return how the tests call a file of the corpus."""
    return path.relative_to(CORPUS).as_posix()


def body(named: str) -> bytes:
    """Return the bytes of the file that the tests call *named*."""
    return (CORPUS / named).read_bytes()


# A plain reader ------------------------------------------------------------------------------------------------------------------------

Pairs = tuple[tuple[str, str], ...]
"""An attribute list as written, in order, quotes and all."""

HEAD = {
    "#EXTM3U", "#EXT-X-VERSION", "#EXT-X-TARGETDURATION", "#EXT-X-MEDIA-SEQUENCE", "#EXT-X-DISCONTINUITY-SEQUENCE", "#EXT-X-PLAYLIST-TYPE",
    "#EXT-X-I-FRAMES-ONLY", "#EXT-X-INDEPENDENT-SEGMENTS", "#EXT-X-START", "#EXT-X-ALLOW-CACHE", "#EXT-X-SERVER-CONTROL",
    "#EXT-X-PART-INF", "#EXT-X-DEFINE", "#EXT-X-SKIP", "#EXT-X-ENDLIST",
}  # fmt: skip
"""Tags of a media playlist as a whole, wherever they stand."""
OF_NO_RELAY = {
    "#EXT-X-PART", "#EXT-X-PRELOAD-HINT", "#EXT-X-RENDITION-REPORT",  # parts are the relay's own, if any
    "#EXT-X-SESSION-KEY", "#EXT-X-SESSION-DATA", "#EXT-X-MEDIA", "#EXT-X-CONTENT-STEERING",  # and these are not a media playlist's
}  # fmt: skip
OF_A_SEGMENT = {
    "#EXTINF", "#EXT-X-BYTERANGE", "#EXT-X-DISCONTINUITY", "#EXT-X-KEY", "#EXT-X-MAP", "#EXT-X-PROGRAM-DATE-TIME", "#EXT-X-GAP",
}  # fmt: skip


def split_tag(line: str) -> tuple[str, str]:
    """Return a tag's name and its value."""
    tag, _, value = line.partition(":")
    return tag.strip(), value.strip()


def pairs(value: str) -> Pairs:
    """Split an attribute list at the commas outside of quotes."""
    found, rest = [], value
    while rest:
        attribute, _, rest = rest.partition("=")
        rest = rest.strip()
        end = rest.find('"', 1) + 1 if rest.startswith('"') else rest.find(",")
        end = len(rest) if end in (-1, 0) else end
        found.append((attribute.strip(" ,"), rest[:end].strip()))
        rest = rest[end:].lstrip(" ,")
    return tuple(found)


@dataclass(frozen=True)
class Block:
    """A URI and the tags since the URI before it. *keys*, by KEYFORMAT, and *init* are in force; *init_keys* were where MAP stood."""

    uri: str
    tags: tuple[str, ...]
    keys: Mapping[str, Pairs]
    init: Pairs = ()
    init_keys: Mapping[str, Pairs] = field(default_factory=dict)

    def value(self, tag: str) -> str | None:
        """Return the value of the last tag of that name."""
        return next((split_tag(line)[1] for line in reversed(self.tags) if split_tag(line)[0] == tag), None)

    def others(self) -> list[str]:
        """Return the tags that are carried through as they are."""
        known = OF_A_SEGMENT | OF_NO_RELAY
        return [line for line in self.tags if split_tag(line)[0] not in known]


@dataclass(frozen=True)
class Plain:
    """A media playlist in lines: *head* is what is said of the whole, *tail* what follows the last URI."""

    head: tuple[str, ...]
    blocks: tuple[Block, ...]
    tail: tuple[str, ...]

    @property
    def sequence(self) -> int:
        """The number of the first block; a delta update leaves some out before it."""
        skipped = [dict(pairs(split_tag(line)[1])) for line in self.head if split_tag(line)[0] == "#EXT-X-SKIP"]
        return self._number("#EXT-X-MEDIA-SEQUENCE") + sum(int(one["SKIPPED-SEGMENTS"]) for one in skipped)

    def _number(self, tag: str) -> int:
        """Return the last value of a tag of the head that is a number; 0 where there is none."""
        values = [split_tag(line)[1] for line in self.head if split_tag(line)[0] == tag]
        return next((int(value) for value in reversed(values) if value.isdecimal()), 0)

    def numbered(self) -> dict[int, Block]:
        """Return the blocks by media sequence number."""
        return {self.sequence + index: block for index, block in enumerate(self.blocks)}

    def cut(self, begin: int, end: int) -> str:
        """Return the playlist as a live source would write it while it lists the blocks from *begin* to before *end*.

        What is in force is said again at the head, and an offset that stood before it; what stood after all is there at the end only.
        """
        whole = end >= len(self.blocks)
        left = [line for block in self.blocks[:begin] for line in block.tags]
        anew = ("#EXT-X-MEDIA-SEQUENCE", "#EXT-X-DISCONTINUITY-SEQUENCE", "#EXT-X-SKIP")
        head = [line for line in self.head if split_tag(line)[0] not in anew]
        head = [line for line in head if whole or split_tag(line)[0] != "#EXT-X-ENDLIST"]
        cuts = self._number("#EXT-X-DISCONTINUITY-SEQUENCE") + sum(split_tag(line)[0] == "#EXT-X-DISCONTINUITY" for line in left)
        lines = [*head, f"#EXT-X-MEDIA-SEQUENCE:{self.sequence + begin}", f"#EXT-X-DISCONTINUITY-SEQUENCE:{cuts}"]
        offset = 0
        if begin:
            before = self.blocks[begin - 1]
            for keys in (before.init_keys, None, before.keys):
                if keys is None:
                    lines += [f"#EXT-X-MAP:{written(before.init)}"] if before.init else []
                else:
                    lines += ["#EXT-X-KEY:METHOD=NONE", *(f"#EXT-X-KEY:{written(key)}" for key in keys.values())]
            offset = self._end(begin - 1)
        for index, block in enumerate(self.blocks[begin:end]):
            for line in block.tags:
                tag, value = split_tag(line)
                implied = tag == "#EXT-X-BYTERANGE" and index == 0 and begin and "@" not in value
                lines.append(f"{line}@{offset}" if implied else line)
            lines.append(block.uri)
        return "\n".join([*lines, *(self.tail if whole else ()), ""])

    def _end(self, index: int) -> int:
        """Return where the byte range of a block ends."""
        end = 0
        for block in self.blocks[: index + 1]:
            length, _, offset = (block.value("#EXT-X-BYTERANGE") or "").strip('"').partition("@")
            end = (int(offset) if offset else end) + int(length) if length else 0
        return end


def written(attributes: Pairs) -> str:
    """Return an attribute list."""
    return ",".join(f"{key}={value}" for key, value in attributes)


def lines_of(text: str) -> list[str]:
    """Return the lines that say anything: tags and URIs."""
    stripped = (line.strip() for line in text.lstrip("\ufeff").split("\n"))
    return [line for line in stripped if line.startswith("#EXT") or (line and not line.startswith("#"))]


def plainly(text: str) -> Plain:
    """Read a media playlist."""
    head: list[str] = []
    blocks: list[Block] = []
    tags: list[str] = []
    keys: dict[str, Pairs] = {}
    init: Pairs = ()
    init_keys: dict[str, Pairs] = {}
    for line in lines_of(text):
        tag, value = split_tag(line)
        if not line.startswith("#"):
            blocks.append(Block(line, tuple(tags), dict(keys), init, init_keys))
            tags = []
        elif tag in HEAD:
            head.append(line)
        else:
            tags.append(line)
            if tag == "#EXT-X-KEY":
                key = dict(pairs(value))
                keys = {} if key.get("METHOD", "NONE") == "NONE" else {**keys, key.get("KEYFORMAT", '"identity"'): pairs(value)}
            elif tag == "#EXT-X-MAP":
                init, init_keys = pairs(value), dict(keys)
    return Plain(tuple(head), tuple(blocks), tuple(tags))


# The relay without its network -----------------------------------------------------------------------------------------------------------

SUFFIXES = {"ts", "m4s", "mp4", "aac", "mp3", "ac3", "ec3", "vtt"}
WHERE = "https://relay.example/news/source/index.m3u8"
_TRAITS = Traits("avc1.64001f,mp4a.40.2", 1280, 720, 30.0)
LONGEST_SERIES = 400
LOADS = 16


@dataclass
class Relayed:
    """One media playlist of a source through all of the relay that is pure; files are invented. *texts* is all that was published."""

    window_s: float
    position: Position | None = None
    progress: Progress | None = None
    now_s: float = 0.0
    texts: list[str] = field(default_factory=list)
    judge: Judge = field(default_factory=Judge)
    published: dict[int, Block] = field(default_factory=dict)
    """What was published under each number of the source's, when it was new; of a segment that was sliced, its first slice."""
    sliced: set[int] = field(default_factory=set)
    _inits: dict[InitSection, str] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)

    def load(self, text: str) -> None:
        """Take one load of the source's playlist, and publish. Raises PlaylistError."""
        snapshot = parse(text.encode(), URL)
        assert isinstance(snapshot, Snapshot)
        wanted = stream(window_s=self.window_s)
        step = advance(self.position, snapshot, wanted, at(self.now_s), slices=self._slices(snapshot))
        self.position = step.position
        for one in carried(step.fresh, snapshot):
            self._numbers.setdefault(one.segment.sequence, one.number)
            self.sliced |= {one.segment.sequence} if one.slice else set()
            self.progress = slide(self._begun(one), self._entry(one), one.position, self.window_s, at(self.now_s))
        assert self.progress is not None
        published = media_playlist(self.progress, SOURCE)
        self.judge.playlist(WHERE, published.encode(), None, self.now_s)
        self.texts.append(published)
        blocks = plainly(published).numbered()
        for one in step.fresh:
            self.published.setdefault(one.segment.sequence, blocks[self._numbers[one.segment.sequence]])
        self.now_s += sum(one.duration_s for one in step.fresh)

    def errors(self) -> list[str]:
        """Return what the judge takes for an error."""
        return [f"{one.rule}: {one.text}" for one in self.judge.findings if one.severity is Severity.ERROR]

    def _begun(self, one: Numbered) -> Progress:
        count, i_frames_only = one.discontinuity_sequence, one.i_frames_only
        return self.progress or Progress(one.position, one.target_duration_s, discontinuity_sequence=count, i_frames_only=i_frames_only)

    def _entry(self, one: Numbered) -> Entry:
        segment = one.segment
        suffix = urlsplit(segment.uri).path.rpartition(".")[2].lower()
        init = self._inits.setdefault(segment.init, f"init-{one.number}.mp4") if segment.init else None
        file = MediaFile(
            f"{one.number}.{suffix if suffix in SUFFIXES else 'ts'}",
            100_000,
            init,
            traits=_TRAITS,
            init_keys=segment.init.keys if segment.init else None,
        )
        return Entry(
            one.number,
            one.duration_s,
            one.discontinuity,
            one.program_date_time,
            {} if segment.gap else {SOURCE: file},
            title=segment.title,
            tags=segment.tags,
            keys=segment.keys,
        )

    def _slices(self, snapshot: Snapshot) -> dict[int, tuple[Slice, ...]]:
        """Cut what is longer than the target duration as if pictures could be cut at everywhere."""
        target_s = self.progress.target_duration_s if self.progress else snapshot.target_duration_s
        counts = {one.sequence: math.ceil(one.duration_s / target_s) for one in snapshot.segments if one.duration_s >= target_s + 0.5}
        lengths = {one.sequence: one.duration_s / counts[one.sequence] for one in snapshot.segments if one.sequence in counts}
        return {number: tuple(Slice("", 0, 1, lengths[number]) for _ in range(count)) for number, count in counts.items()}


def at_once(text: str) -> Relayed:
    """Relay a playlist that is loaded once: what a player would begin with comes out."""
    relayed = Relayed(60.0)
    relayed.load(text)
    return relayed


def live(text: str) -> Relayed:
    """Relay a playlist as a live source would list it, in a window that first grows and then slides."""
    source = plainly(text)
    count = min(len(source.blocks), LONGEST_SERIES)
    stride = math.ceil(count / LOADS)
    durations = [segment.duration_s for segment in parsed(text).segments[:count]]
    relayed = Relayed(max(sum(durations[begin : begin + stride + 4]) for begin in range(count)))
    for end in [*range(min(3, count), count, stride), count]:
        relayed.load(source.cut(max(0, end - max(9, 2 * stride)), end))
    return relayed


# A parser that others wrote -------------------------------------------------------------------------------------------------------------


def why_not_strict() -> str:
    """Return why hls-parser can't be asked here, empty where it can."""
    if shutil.which("node") is None:
        return "not on this machine: node"
    return "" if (STRICT.parent / "node_modules" / "hls-parser").is_dir() else "npm has not fetched hls-parser (make test does)"


strict = pytest.mark.skipif(bool(why_not_strict()), reason=why_not_strict())


def refusals(texts: Iterable[str]) -> Iterator[str | None]:
    """Yield, for each playlist, why hls-parser refuses it in its strict mode; None where it does not."""
    asked = "".join(json.dumps(text) + "\n" for text in texts)
    said = subprocess.run(["node", STRICT.name], cwd=STRICT.parent, input=asked, capture_output=True, text=True, check=True, timeout=120)
    for line in said.stdout.splitlines():
        yield json.loads(line)
