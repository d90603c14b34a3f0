"""A judge under test: playlists and media by hand, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

from hlsrelay.judge import Judge, Severity
from hlsrelay.media import PTS_MODULUS, AudioInfo, Container, MediaInfo, VideoInfo
from tests.playlists import T0, at

MASTER = "https://relay.example/live/index.m3u8"
HIGH, LOW = "https://relay.example/live/high/index.m3u8", "https://relay.example/live/low/index.m3u8"
HEADERS = {"content-type": "application/vnd.apple.mpegurl", "content-encoding": "gzip"}
CODECS = "avc1.64001f,mp4a.40.2"
SIZE = 188 * 1000
LISTED = 7
TARGET_S = 4


@dataclass(frozen=True)
class Item:
    """One segment as a server of the test's lists it."""

    number: int
    uri: str = ""
    extinf: str = "4.000"
    tags: tuple[str, ...] = ()
    pdt_s: float | None = None

    def lines(self) -> list[str]:
        when = T0 + timedelta(seconds=self.number * 4 if self.pdt_s is None else self.pdt_s)
        return [*self.tags, f"#EXT-X-PROGRAM-DATE-TIME:{when.isoformat()}", f"#EXTINF:{self.extinf},", self.uri or f"{self.number}.ts"]


@dataclass(frozen=True)
class Version:
    """One version of a media playlist."""

    items: tuple[Item, ...]
    head: tuple[str, ...] = ()
    sequence: int | None = None
    cuts: int = 0
    target: str = "4"
    version: str = "3"
    tail: tuple[str, ...] = ()

    def text(self) -> str:
        sequence = self.items[0].number if self.sequence is None else self.sequence
        lines = ["#EXTM3U", f"#EXT-X-VERSION:{self.version}", f"#EXT-X-TARGETDURATION:{self.target}", f"#EXT-X-MEDIA-SEQUENCE:{sequence}"]
        lines += [f"#EXT-X-DISCONTINUITY-SEQUENCE:{self.cuts}", *self.head]
        return "\n".join([*lines, *(line for item in self.items for line in item.lines()), *self.tail, ""])


def version(first: int, *, listed: int = LISTED, **changes: object) -> Version:
    """The good playlist whose first segment is *first*."""
    return replace(Version(tuple(Item(number) for number in range(first, first + listed))), **changes)  # type: ignore[arg-type]


def items(first: int, changes: dict[int, Item], listed: int = LISTED) -> tuple[Item, ...]:
    """The segments of the good playlist, some of them others."""
    return tuple(changes.get(number, Item(number)) for number in range(first, first + listed))


def media(number: int, **changes: object) -> MediaInfo:
    """What the good segment *number* holds: four seconds of 25 pictures a second, and sound."""
    start = int(changes.pop("start", number * 360_000))  # type: ignore[call-overload]
    pts = tuple((start + index * 3600) % PTS_MODULUS for index in range(100))
    video = VideoInfo("avc1.64001f", 1280, 720, 100, pts[0], pts[-1], 25.0, True, pts)
    return replace(MediaInfo(Container.TS, video, AudioInfo("mp4a.40.2", pts[0])), **changes)  # type: ignore[arg-type]


Told = list[tuple[str, Severity]]


@dataclass
class Watch:
    """A judge, and a clock that the test moves: a target duration per step."""

    judge: Judge = field(default_factory=Judge)
    now_s: float = 100.0

    def load(
        self, *texts: str | bytes | Version, step_s: float = 4.0, where: str = HIGH, headers: dict[str, str] | None = HEADERS
    ) -> Watch:
        for text in texts:
            body = text.text().encode() if isinstance(text, Version) else text.encode() if isinstance(text, str) else text
            self.judge.playlist(where, body, headers, self.now_s)
            self.now_s += step_s
        return self

    def media(self, *numbers: int, where: str = HIGH, **changes: object) -> Watch:
        for number in numbers:
            self.judge.media(where.replace("index.m3u8", f"{number}.ts"), 200, SIZE, media(number, **changes), self.now_s)
        return self

    def got(self, number: int, status: int = 200, size: int | None = SIZE, info: MediaInfo | None = None, **more: object) -> Watch:
        self.judge.media(HIGH.replace("index.m3u8", f"{number}.ts"), status, size, info, self.now_s, **more)  # type: ignore[arg-type]
        return self

    def told(self) -> Told:
        return sorted((one.rule, one.severity) for one in self.judge.findings if one.severity is not Severity.NOTE)


def master(**changes: str) -> str:
    """A good multivariant playlist of two variants; a change of '' leaves the attribute out."""
    attributes = {
        "BANDWIDTH": "800000",
        "AVERAGE-BANDWIDTH": "400000",
        "CODECS": f'"{CODECS}"',
        "RESOLUTION": "1280x720",
        "FRAME-RATE": "25.000",
    }
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    lines = ["#EXTM3U"]
    for uri in ("high/index.m3u8", "low/index.m3u8"):
        stated = {name: value for name, value in {**attributes, **changed}.items() if value}
        lines += ["#EXT-X-STREAM-INF:" + ",".join(f"{name}={value}" for name, value in stated.items()), uri]
    return "\n".join([*lines, ""])


GOOD = version(10)
Fault = Callable[[Watch], object]
E, W = Severity.ERROR, Severity.WARNING
LONG = tuple(Item(number, extinf="1.000", pdt_s=40 + number - 10) for number in range(10, 30))


def then(*texts: str | bytes | Version, **options: object) -> Fault:
    """A good version, then these."""
    return lambda watch: watch.load(GOOD, *texts, **options)  # type: ignore[arg-type]


def only(*texts: str | bytes | Version, **options: object) -> Fault:
    """These from the beginning."""
    return lambda watch: watch.load(*texts, **options)  # type: ignore[arg-type]


def with_item(first: int, item: Item, **changes: object) -> Version:
    return replace(Version(items(first, {item.number: item})), **changes)  # type: ignore[arg-type]


def variants(high: Version | str, low: Version | str, text: str = "") -> Fault:
    """Two variants, loaded within a second of each other, after the playlist that names them."""
    return lambda watch: watch.load(text or master(), where=MASTER, step_s=0.1).load(high, step_s=0.4).load(low, where=LOW, step_s=0.4)


def probed(*infos: MediaInfo, text: Version = GOOD, size: int = SIZE) -> Fault:
    """The first segments of a good version, with these media."""

    def run(watch: Watch) -> None:
        watch.load(text)
        for number, info in enumerate(infos, 10):
            watch.got(number, size=size, info=info)

    return run


def in_a_variant(info: MediaInfo | None, size: int = SIZE, **changes: str) -> Fault:
    """One segment of a variant whose STREAM-INF is changed."""

    def run(watch: Watch) -> None:
        watch.load(GOOD, step_s=0.1).load(GOOD, where=LOW, step_s=0.1).load(master(**changes), where=MASTER, step_s=0.1)
        watch.load(GOOD, step_s=0.1).got(10, size=size, info=info)

    return run


def cut_version(first: int, cuts: int) -> Version:
    return with_item(first, Item(12, tags=("#EXT-X-DISCONTINUITY",)), cuts=cuts) if first <= 12 else version(first, cuts=cuts)


ENDED = version(10, tail=("#EXT-X-ENDLIST",))
KEY = '#EXT-X-KEY:METHOD=AES-128,URI="k"'
IV = ",IV=0x000000000000000000000000000000ff"
MAP = '#EXT-X-MAP:URI="init.mp4"'
RANGE = '#EXT-X-DATERANGE:ID="ad",START-DATE="{}",DURATION=60.0'
AT_60 = RANGE.format(at(60).isoformat())
ON_NEXT = f'#EXT-X-DATERANGE:ID="show",CLASS="c",START-DATE="{at(60).isoformat()}",END-ON-NEXT=YES'
ENDS = f'#EXT-X-DATERANGE:ID="end",START-DATE="{at(60).isoformat()}",END-DATE="{{}}"'
MPEG_AUDIO = media(11, video=None, audio=AudioInfo("mp4a.40.34", 11 * 360_000), container=Container.MP3)


def no_pdt(one: Version) -> str:
    return "".join(line for line in one.text().splitlines(keepends=True) if "PROGRAM-DATE-TIME" not in line)


HINT = '#EXT-X-PRELOAD-HINT:TYPE=PART,URI="part.ts"'
LOW_LATENCY = ("#EXT-X-PART-INF:PART-TARGET=1.0", "#EXT-X-SERVER-CONTROL:PART-HOLD-BACK=3.0")


def with_parts(
    *durations_s: float, more: tuple[str, ...] = (), head: tuple[str, ...] = LOW_LATENCY, hint: tuple[str, ...] = (HINT,)
) -> Version:
    parts = tuple(f'#EXT-X-PART:URI="{index}.part.ts",DURATION={duration_s}' for index, duration_s in enumerate(durations_s))
    return with_item(10, Item(12, tags=(*parts, *more)), head=head, tail=hint)
