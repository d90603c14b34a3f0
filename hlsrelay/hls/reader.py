"""The tags of a media playlist that a relay must not lose or misread, as the hook that m3u8 calls for each. Pure.

m3u8 assembles the lines; it leaks ValueError, KeyError and TypeError, loses unknown tags and keeps one KEY only. So lines are mended
before it sees them (`_mended`), and every tag is read here. This is the only module that imports it.

A *block* is a segment's URI line with the lines before it, down to the URI line before; blocks count from the reader's first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from m3u8 import parser as m3u8_parser

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.multivariant import NOT_CARRIED
from hlsrelay.hls.variables import attributes
from hlsrelay.model import ByteRange, InitSection, Key, Part, Snapshot
from hlsrelay.remembered import remembered

DIGITS_OF_AN_INTEGER = 20
"""A decimal-integer is below 2^64 (RFC 8216 4.2); longer ones would not fit into file names and IVs."""
DIGITS_OF_A_DOUBLE = 15
"""Players written in JavaScript count no further than 2^53; what only counts on from somewhere had better begin below."""
YEARS = range(1970, 2200)
"""A PROGRAM-DATE-TIME outside of these is none: nobody could count on from it. Packagers without a clock begin with 1970."""
SHORTEST_EXTINF_S = 0.001
LONGEST_EXTINF_S = 3600.0
"""A longer segment is a mistake of the source, not media."""
LONGEST_TARGET_DURATION_S = 60
"""A longer TARGETDURATION that no segment comes near is a mistake, such as milliseconds: everything would wait for it."""
MOST_KEYS = 8
MOST_ATTRIBUTES = 32
"""Of a key: each segment that it holds for repeats them."""
MOST_TAG_CHARACTERS = 32 << 10
"""Tags to carry through, for one segment. What comes after is dropped: every playlist and record of ours repeats them."""
DIGITS_OF_A_SKIP = 9
DIGITS_OF_AN_IV = 32
_HEX = re.compile(r"(0[xX])?0*?([0-9A-Fa-f]{1,32})")
_SECRET_BY_URI = {"AES-128", "AES-256", "SAMPLE-AES"}
_OF_THE_WHOLE = {
    "EXT-X-TARGETDURATION", "EXT-X-MEDIA-SEQUENCE", "EXT-X-DISCONTINUITY-SEQUENCE", "EXT-X-I-FRAMES-ONLY", "EXT-X-SKIP", "EXT-X-DEFINE",
}  # fmt: skip
"""Tags that say something of all segments, wherever they stand; what ENDLIST says is known only at the end."""

_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)(?=[\s,]|$)")
"""A number, and nothing behind it that would make it another one, as in 1e9."""
_HERE = "#EXT-X-HLSRELAY-URI:"
"""A tag of our own, put in place of each URI line: m3u8 shows its hook the tags only, and holds dozens of others against what is none."""
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._~%+,@=-]*(?:\?[^#;\s]+)?")
"""A reference to something in the playlist's own folder: no scheme, no host, no step to another one (RFC 3986 5.2)."""

InForce = tuple[tuple[Key, ...], InitSection | None, Part | None]
"""What tags before a URI line say of all that comes after it too: its keys, its init section; and the part that stood last."""


def unquoted(value: str | None) -> str | None:
    """Return a quoted string without its quotes."""
    return None if value is None else value.strip('"')


@dataclass
class Reader:
    """Reads the lines of one load, all at once or, block after block, some at a time. *before* is what the playlist said last."""

    url: str
    before: Snapshot | None = None
    repairs: list[tuple[int, str]] = field(default_factory=list)
    """Each with the block that it was found in, once for a block."""
    guess_s: float = 1.0
    """The length of a segment that does not tell it."""
    multivariant: bool = False
    block: int = 0
    counted: int = 0
    """Blocks that are read, or passed over."""
    last_uri: str | None = None
    """The URI line before what comes next."""
    once: bool = False
    """Something says of all segments what the next load need not repeat: this one can't be gone on from."""
    ended_at: int = -1
    """The first block, if any, that ENDLIST stands in: behind all of them, where it is right."""
    target_duration_s: int | None = None
    media_sequence: int = 0
    discontinuity_sequence: int = 0
    i_frames_only: bool = False
    keys: dict[str, Key] = field(default_factory=dict)
    init: InitSection | None = None
    skipped: int = 0
    part: Part | None = None
    dateranges: list[tuple[int, str]] = field(default_factory=list)
    """Each with its block."""
    _in_force: InForce | None = None

    @property
    def ended(self) -> bool:
        """Whether the source says that nothing comes after."""
        return self.ended_at >= 0

    def repaired(self, name: str) -> None:
        """Take note that something had to be mended."""
        if (self.block, name) not in self.repairs[-4:]:
            self.repairs.append((self.block, name))

    def listed(self, lines: list[str], *, whole: bool) -> list[dict[str, Any]]:
        """Return what is said of each segment of *lines*, which go on from those before; *whole*: the last one is not cut off.

        Raises what m3u8 raises, and PlaylistError.
        """
        self.block = self.counted
        text = "\n".join(_mended(lines, self, whole=whole))
        self.block = self.counted
        found = [one for one in m3u8_parser.parse(text, custom_tags_parser=self.tag)["segments"] if one.get("uri")]
        self.counted += len(found)
        return found

    def listed_on(self, lines: list[str], *, whole: bool) -> list[dict[str, Any]]:
        """Do what `listed` does of a media playlist's lines, without m3u8: that costs more than a few lines, and leaves all to `tag`."""
        self.block = self.counted
        mended = list(_mended(lines, self, whole=whole))
        self.block = self.counted
        data: dict[str, Any] = {"segments": []}
        state: dict[str, Any] = {}
        for line in mended:
            if line:
                self.tag(line, 0, data, state)
        found: list[dict[str, Any]] = data["segments"]
        self.counted += len(found)
        return found

    def absolute(self, uri: str) -> str:
        """Return what *uri*, as the playlist says it, stands for."""
        return _folder(self.url) + uri if _PLAIN.fullmatch(uri) else urljoin(self.url, uri)

    def pass_over(self, count: int, in_force: InForce, last_uri: str | None) -> None:
        """Go on behind *count* blocks that are known, after the last of which *in_force* is."""
        keys, self.init, self.part = in_force
        self.keys, self._in_force = {key.keyformat: key for key in keys}, None
        self.counted, self.last_uri = self.counted + count, last_uri
        self.block = self.counted

    def in_force(self) -> InForce:
        """Return what holds for what comes next; the same object as long as it is the same."""
        if self._in_force is None:
            self._in_force = tuple(self.keys.values()), self.init, self.part
        return self._in_force

    def tag(self, line: str, _lineno: int, data: dict[str, Any], state: dict[str, Any]) -> bool:
        """Return True where the tag is read here, so that m3u8 leaves it alone."""
        name, _, value = line[1:].partition(":")
        if data["segments"]:
            self.block = self.counted + len(data["segments"])
        if name in _OF_THE_WHOLE:
            self.once = self.once or self.block > 0 or name in ("EXT-X-SKIP", "EXT-X-DEFINE")
        match name:
            case "EXTINF" | "EXT-X-BYTERANGE" | "EXT-X-DISCONTINUITY" | "EXT-X-PROGRAM-DATE-TIME" | "EXT-X-GAP":
                self._segment(name, value, state)
            case "EXT-X-HLSRELAY-URI":
                segment = _segment_of(state)
                segment["in_force"], segment["uri"] = self.in_force(), value
                data["segments"].append(state.pop("segment"))
            case "EXT-X-TARGETDURATION":
                number = _NUMBER.match(value)
                self.target_duration_s = math.ceil(float(number[1])) if number else None
            case "EXT-X-MEDIA-SEQUENCE":
                if value.strip().isdecimal() and len(value.strip()) <= DIGITS_OF_AN_INTEGER:
                    self.media_sequence = int(value)
                else:
                    self.repaired("media_sequence_bad")
                if self.block:
                    self.repaired("media_sequence_late")
            case "EXT-X-DISCONTINUITY-SEQUENCE":
                number_of = value.strip()
                self.discontinuity_sequence = int(number_of) if number_of.isdecimal() and len(number_of) <= DIGITS_OF_A_DOUBLE else 0
            case "EXT-X-ENDLIST":
                self.ended_at = self.ended_at if self.ended else self.block
            case "EXT-X-I-FRAMES-ONLY":
                self.i_frames_only = True
            case "EXT-X-KEY":
                self._key(line)
            case "EXT-X-MAP":
                self._map(line)
            case "EXT-X-PART":
                self._part(line, state)
            case "EXT-X-SKIP":
                self._skip(line)
            case _ if name.startswith("EXT") and name not in NOT_CARRIED:
                self._carried(line, state)
        return True

    def _segment(self, name: str, value: str, state: dict[str, Any]) -> None:
        segment = _segment_of(state)
        match name:
            case "EXTINF":
                duration, _, title = value.partition(",")
                segment["duration"], segment["title"] = float(duration), title.strip()
            case "EXT-X-BYTERANGE":
                segment["range"] = value.strip().strip('"')
            case "EXT-X-DISCONTINUITY":
                segment["cut"] = True
            case "EXT-X-GAP":
                segment["gap"] = True
            case _:
                try:
                    when = datetime.fromisoformat(value.strip())
                    if when.year not in YEARS:
                        raise ValueError(when.year)
                    segment["pdt"] = when if when.tzinfo else when.replace(tzinfo=UTC)
                except ValueError:
                    self.repaired("program_date_time_bad")

    def _carried(self, line: str, state: dict[str, Any]) -> None:
        segment = _segment_of(state)
        segment["tags_length"] = segment.get("tags_length", 0) + len(line)
        if segment["tags_length"] > MOST_TAG_CHARACTERS:
            self.repaired("tags_too_many")
            return
        segment.setdefault("tags", []).append(line)
        if line.startswith("#EXT-X-DATERANGE:"):
            self.dateranges.append((self.block, line))

    def _part(self, line: str, state: dict[str, Any]) -> None:
        """Keep a part for the segment that it is a piece of: the next one listed (rfc8216bis 4.4.4.9). The newest may have none yet."""
        got = attributes(line)
        if "URI" not in got or not (duration := _NUMBER.match(got.get("DURATION", ""))):
            return
        uri = urljoin(self.url, got["URI"].strip('"'))
        before = self.part if self.part and self.part.uri == uri else None
        self._in_force = None
        self.part = Part(
            uri=uri,
            duration_s=float(duration[1]),
            independent=got.get("INDEPENDENT") == "YES",
            byterange=span(unquoted(got.get("BYTERANGE")), before.byterange if before else None),
            gap=got.get("GAP") == "YES",
        )
        _segment_of(state).setdefault("held_parts", []).append(self.part)

    def _skip(self, line: str) -> None:
        """Read that this is a delta update (rfc8216bis 4.4.5.2), as a cache may answer with: we never ask for one.

        What was in force at the end of what it leaves out is known from before, if at all.
        """
        count = attributes(line).get("SKIPPED-SEGMENTS", "")
        if not count.isdecimal() or len(count) > DIGITS_OF_A_SKIP:
            self.repaired("skip_bad")
            return
        self.repaired("delta_update")
        self.skipped = int(count)
        last = next((one for one in reversed(self.before.segments if self.before else ()) if one.sequence < self.first_sequence), None)
        if last is not None:
            self._in_force = None
            self.init = self.init or last.init
            self.keys = self.keys or {key.keyformat: _without_implied_iv(key, last.sequence) for key in last.keys}

    @property
    def first_sequence(self) -> int:
        """The number of the first segment that is listed and not skipped."""
        return self.media_sequence + self.skipped

    def _key(self, line: str) -> None:
        got, self._in_force = attributes(line), None
        method = got.get("METHOD", "NONE")
        if method == "NONE":  # ends every key, of any format
            self.keys = {}
            return
        uri = unquoted(got.get("URI"))
        if method in _SECRET_BY_URI and not uri:
            raise PlaylistError(f"an EXT-X-KEY of METHOD={method} has no URI: nobody could decrypt")
        if "IV" in got:
            got["IV"] = _iv(got["IV"])
        key = Key(
            method=method,
            uri=urljoin(self.url, uri) if uri else None,
            iv=got.get("IV"),
            keyformat=unquoted(got.get("KEYFORMAT")) or "identity",
            attributes=tuple(got.items()),
        )
        self.keys = {**self.keys, key.keyformat: key}
        if len(self.keys) > MOST_KEYS or len(got) > MOST_ATTRIBUTES:
            raise PlaylistError(f"a segment has more than {MOST_KEYS} keys, or a key more than {MOST_ATTRIBUTES} attributes")

    def _map(self, line: str) -> None:
        got = attributes(line)
        uri = unquoted(got.get("URI"))
        if uri:
            if any(_lacks_iv(key) for key in self.keys.values()):
                self.repaired("map_iv_missing")
            self._in_force = None
            keys = tuple(with_iv(key, 0) for key in self.keys.values())  # one is required (RFC 8216 4.3.2.5); hls.js too takes 0
            self.init = InitSection(urljoin(self.url, uri), span(unquoted(got.get("BYTERANGE"))), keys)


def _segment_of(state: dict[str, Any]) -> dict[str, Any]:
    segment: dict[str, Any] = state.setdefault("segment", {})
    return segment


def guess_s(lines: list[str]) -> float:
    """Return how long a segment is that does not tell it."""
    target = next((float(n[1]) for line in lines if line.startswith("#EXT-X-TARGETDURATION:") and (n := _NUMBER.match(line[22:]))), 0.0)
    return target if 1 <= target <= LONGEST_TARGET_DURATION_S else 1.0


@remembered(1024)
def _folder(url: str) -> str:
    return urljoin(url, "x")[:-1]


def suffix(line: str) -> str:
    """Return what stands after the last dot of a URI line's path."""
    path = urlsplit(line).path if ":" in line or line.startswith("//") else line.partition("#")[0].partition("?")[0]
    return path.rpartition(".")[2]


def _mended(lines: list[str], reader: Reader, *, whole: bool) -> Iterator[str]:
    """Yield the lines with what sources get wrong made right: EXTINF that is bad or missing, a last line cut off."""
    guess, multivariant = reader.guess_s, reader.multivariant
    awaited = False
    for index, line in enumerate(lines):
        if line.startswith("#EXTINF"):
            duration, comma, title = line.partition(":")[2].partition(",")
            number = _NUMBER.match(duration)
            length = float(number[1]) if number else 0.0
            if not comma or not SHORTEST_EXTINF_S <= length <= LONGEST_EXTINF_S:
                reader.repaired("extinf_bad")
            if not SHORTEST_EXTINF_S <= length <= LONGEST_EXTINF_S:
                length = guess
            awaited = True
            yield f"#EXTINF:{length!r},{title}"
        elif line and not line.startswith("#"):
            before, reader.last_uri = reader.last_uri, line
            is_last = not whole and index == len(lines) - 1 and not multivariant
            if is_last and before is not None and suffix(line) != suffix(before):
                reader.repaired("last_line_cut_off")
                return
            if not awaited and not multivariant:
                reader.repaired("extinf_missing")
                yield f"#EXTINF:{guess!r},"
            awaited = False
            yield line if multivariant else _HERE + line
            reader.block += 1
        elif not line.startswith(_HERE):  # which no source has to say
            yield line


def _iv(text: str) -> str:
    """Return an IV as the 128 bits that it is: players that make an array of its digits take a shorter one for another, or for none."""
    found = _HEX.fullmatch(text)
    if found is None:
        raise PlaylistError(f"the IV of an EXT-X-KEY is no number of 128 bits: {text[:40]!r}")
    return text if found[1] and len(text) == 2 + DIGITS_OF_AN_IV else f"0x{found[2].zfill(DIGITS_OF_AN_IV)}"


def _lacks_iv(key: Key) -> bool:
    return not key.iv and key.method in ("AES-128", "AES-256", "SAMPLE-AES") and key.keyformat == "identity"


def with_iv(key: Key, sequence: int) -> Key:
    """No IV means the media sequence number is the IV (RFC 8216 5.2); ours differ from the source's, so write it out."""
    if not _lacks_iv(key):
        return key
    iv = f"0x{sequence:032x}"
    return Key(key.method, key.uri, iv, key.keyformat, (*key.attributes, ("IV", iv)))


def _without_implied_iv(key: Key, sequence: int) -> Key:
    """Undo `with_iv`."""
    if key.attributes[-1:] != (("IV", f"0x{sequence:032x}"),):
        return key
    return Key(key.method, key.uri, None, key.keyformat, key.attributes[:-1])


def span(text: str | None, follows: ByteRange | None = None) -> ByteRange | None:
    """Read `<length>[@<offset>]`; without an offset it *follows*, or begins the resource."""
    length, _, offset = (text or "").partition("@")
    if not length:
        return None
    return ByteRange(int(length), int(offset) if offset else follows.offset + follows.length if follows else 0)
