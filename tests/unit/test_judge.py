"""The judge: silent on a good history, and each fault is found under the number of its rule, and nothing else is."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import hlsrelay.judge
from hlsrelay.hls.advance import advance
from hlsrelay.hls.render import media_playlist, multivariant_playlist
from hlsrelay.hls.tracks import media_playlist_alone
from hlsrelay.hls.window import Progress, slide
from hlsrelay.judge import RULES, Judge, MediaPlaylist, Severity, Span
from hlsrelay.media import PTS_MODULUS, AudioInfo, Container, MediaInfo, VideoInfo
from hlsrelay.model import SOURCE, Entry, MediaFile, Traits
from tests.playlists import T0, Listed, at, live, stream
from tests.unit.test_window import POSITION

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


# Silence on what is good --------------------------------------------------------------------------------------------------------------


def test_a_good_history_gives_no_finding_at_all() -> None:
    watch = Watch().load(*(version(first) for first in range(10, 30)))
    watch.media(*range(23, 36))
    assert watch.judge.findings == ()


def test_two_variants_that_agree_give_no_finding() -> None:
    watch = Watch().load(master(), where=MASTER, step_s=0.0)
    for first in range(10, 20):
        watch.load(version(first), step_s=0.5).load(version(first), where=LOW, step_s=3.0).load(master(), where=MASTER, step_s=0.5)
        watch.media(first + 5, first + 6).media(first + 5, first + 6, where=LOW)
    assert watch.judge.findings == ()


def test_discontinuities_that_are_counted_give_no_finding() -> None:
    cut = {14: Item(14, tags=("#EXT-X-DISCONTINUITY",), pdt_s=1000.0)} | {n: Item(n, pdt_s=1000.0 + 4 * (n - 14)) for n in range(15, 40)}
    watch = Watch().load(*(Version(items(first, cut), cuts=int(first > 14)) for first in range(10, 20)))
    assert watch.judge.findings == ()


def test_a_discontinuity_that_leaves_with_the_segment_before_it_is_counted_then() -> None:
    """RFC 8216 6.2.2 counts the tag when it is removed; who removes it one segment early counts it one segment early."""
    cut = {14: Item(14, tags=("#EXT-X-DISCONTINUITY",))}
    watch = Watch().load(*(Version(items(first, cut if first < 14 else {}), cuts=int(first >= 14)) for first in range(10, 20)))
    assert watch.told() == []


def test_an_ended_playlist_may_stay_as_it_is_for_ever() -> None:
    last = version(11, tail=("#EXT-X-ENDLIST",))
    assert Watch().load(version(10), last, last, last, last).told() == []


def test_carriage_returns_and_unknown_tags_and_comments_are_fine() -> None:
    texts = [version(first, head=("# a comment", "#EXT-X-UNHEARD-OF:A=b;c")).text().replace("\n", "\r\n") for first in (10, 11, 12)]
    assert Watch().load(*texts).told() == []


def test_keys_maps_and_byte_ranges_that_are_repeated_at_the_head_are_fine() -> None:
    key = '#EXT-X-KEY:METHOD=AES-128,URI="https://k.example/k",IV=0x0123456789abcdef0123456789abcdef'

    def listed(first: int) -> Version:
        rows = {
            number: Item(
                number,
                "all.m4s",
                tags=((key, '#EXT-X-MAP:URI="init.mp4"') if number == first else ())
                + (f"#EXT-X-BYTERANGE:1000@{number * 1000}" if number == first else "#EXT-X-BYTERANGE:1000",),
            )
            for number in range(first, first + LISTED)
        }
        return Version(items(first, rows), version="6")

    assert Watch().load(*(listed(first) for first in range(10, 16))).told() == []


def test_a_range_that_ended_on_the_next_of_its_class_may_go() -> None:
    following = ON_NEXT.replace('"show"', '"next"').replace(at(60).isoformat(), at(80).isoformat())
    assert Watch().load(*(version(first, head=(ON_NEXT, following)) for first in (18, 19)), version(20, head=(following,))).told() == []


def test_a_removed_segment_may_go_once_its_time_is_over() -> None:
    watch = Watch().load(version(10), version(11))
    watch.now_s += 4 * LISTED + 4
    assert watch.got(10, status=404).told() == []


def test_a_gap_is_never_missing() -> None:
    gap = {12: Item(12, tags=("#EXT-X-GAP",))}
    assert Watch().load(Version(items(10, gap)), Version(items(11, gap))).got(12, status=404).told() == []


def test_time_stamps_go_on_over_their_wrap() -> None:
    watch = Watch().load(version(10), version(11))
    start = PTS_MODULUS - 360_000 - 1800
    for offset, number in enumerate((15, 16, 17)):
        watch.media(number, start=start + offset * 360_000)
    assert watch.told() == []


# Every fault ---------------------------------------------------------------------------------------------------------------------------

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


FAULTS: dict[str, tuple[Fault, str, Severity]] = {
    # 1: the text
    "a byte order mark": (only(b"\xef\xbb\xbf" + GOOD.text().encode()), "A1", E),
    "a control character": (only(GOOD.text().replace("10.ts", "10\x07.ts")), "A1", E),
    "a tab": (only(version(10, head=("# a\tcomment",))), "A1", E),
    "bytes that are no UTF-8": (only(GOOD.text().encode().replace(b"EXTINF:4.000,", b"EXTINF:4.000,\xff")), "A1", E),
    "HTML": (only("<!DOCTYPE html>\n<p>Log in</p>\n"), "A1", E),
    "no EXTM3U": (only(GOOD.text().removeprefix("#EXTM3U\n")), "A1", E),
    "the wrong type": (only(GOOD, headers={**HEADERS, "content-type": "text/html; charset=utf-8"}), "A1", E),
    "no type": (only(GOOD, headers={"content-encoding": "gzip"}), "A1", E),
    "a type that is not registered": (only(GOOD, headers={**HEADERS, "content-type": "application/x-mpegURL"}), "A1", W),
    "a tag twice": (only(version(10, head=("#EXT-X-VERSION:3",))), "A1", E),
    "an EXTINF without a comma": (only(GOOD.text().replace("4.000,", "4.000")), "A1", E),
    "a negative EXTINF": (only(with_item(10, Item(10, extinf="-4.000"))), "A1", E),
    "a URI without EXTINF": (only(version(10, tail=("17.ts",))), "A1", E),
    "two EXTINFs": (only(with_item(10, Item(10, tags=("#EXTINF:4.000,",)))), "A1", E),
    "a blank in an attribute list": (only(version(10, head=(KEY.replace(",", ", ") + IV,))), "A1", E),
    "a comma too many": (only(version(10, head=("#EXT-X-START:TIME-OFFSET=1,",))), "A1", E),
    "a size that is none": (only(master(RESOLUTION="720p"), where=MASTER), "A1", E),
    "an attribute twice": (only(version(10, head=(KEY + IV + IV,))), "A1", E),
    "tags of both kinds of playlist": (only(version(10, head=('#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="n"',))), "A1", E),
    "a STREAM-INF without URI": (only(master().replace("low/index.m3u8\n", "#EXT-X-UNKNOWN\n"), where=MASTER), "A1", E),
    # 2: the target duration
    "a target duration that changes": (then(version(11, target="5")), "A2", E),
    "a target duration that is no integer": (only(version(10, target="4.0")), "A2", E),
    "no target duration": (only(GOOD.text().replace("#EXT-X-TARGETDURATION:4\n", "")), "A2", E),
    "an EXTINF above the target duration": (then(with_item(11, Item(17, extinf="5.000"))), "A2", E),
    "an EXTINF that rounds up or not": (then(with_item(11, Item(17, extinf="4.500"))), "A2", W),
    # 3: the edits
    "a listed URI that changes": (then(with_item(11, Item(13, "other.ts"))), "A3", E),
    "a listed URI whose token changes": (then(with_item(11, Item(13, "13.ts?token=2"))), "A3", E),
    "a listed EXTINF that changes": (then(with_item(11, Item(13, extinf="3.900"))), "A3", E),
    "a DISCONTINUITY that comes later": (then(with_item(11, Item(13, tags=("#EXT-X-DISCONTINUITY",)))), "A3", E),
    "a GAP that comes later": (then(with_item(11, Item(13, tags=("#EXT-X-GAP",)))), "A3", E),
    "a KEY that comes later": (then(with_item(11, Item(13, tags=(KEY + IV,)))), "A3", E),
    "a cue that comes later": (then(with_item(11, Item(13, tags=("#EXT-X-CUE-OUT:30",)))), "A3", E),
    "a title that comes later": (then(version(11).text().replace("4.000,\n13.ts", "4.000,News\n13.ts")), "A3", E),
    "segments that are independent no more": (only(replace(GOOD, head=("#EXT-X-INDEPENDENT-SEGMENTS",)), version(11)), "A3", E),
    "segments taken back from the end": (then(version(10, listed=6)), "A3", E),
    "an older version served in between": (then(version(11), GOOD, version(12)), "A3", E),
    "a playlist that is cut in a line": (then(version(11).text()[:-5]), "A3", E),
    "a last line without an end": (only(version(10, tail=("#EXT-X-ENDLIST",)).text().rstrip()), "A1", W),
    "a playlist that is cut after a line": (then(version(11).text().removesuffix("17.ts\n")), "A3", E),
    "an empty playlist": (then(b"", version(11)), "A3", E),
    "a playlist without a segment": (then("\n".join(GOOD.text().splitlines()[:5]) + "\n", version(11)), "A3", E),
    "a playlist that is gone": (lambda watch: watch.load(GOOD).judge.unavailable(HIGH, 404, "HTTP 404", 104.0), "A3", E),
    # 4: the media sequence
    "a sequence that falls": (then(Version(tuple(Item(n, f"b{n}.ts", pdt_s=100.0 + 4 * n) for n in range(LISTED)))), "A4", E),
    "a sequence that skips": (then(version(11, sequence=12)), "A4", E),
    "a sequence that stays though a segment left": (then(version(11, sequence=10)), "A4", E),
    "a sequence that jumps": (then(Version(tuple(Item(n) for n in range(1000, 1007)))), "A4", E),
    "a sequence behind the first segment": (
        only(GOOD.text().replace("#EXT-X-MEDIA-SEQUENCE:10\n", "") + "#EXT-X-MEDIA-SEQUENCE:0\n"),
        "A4",
        E,
    ),
    "a sequence that is negative": (only(version(10, sequence=-1)), "A4", E),
    # 5: the discontinuity sequence
    "a removed DISCONTINUITY that is not counted": (only(cut_version(11, 0), cut_version(12, 0), cut_version(13, 0)), "A5", E),
    "a DISCONTINUITY counted too early": (only(cut_version(11, 0), cut_version(12, 1)), "A5", E),
    "a DISCONTINUITY counted twice": (only(cut_version(12, 0), cut_version(13, 2)), "A5", E),
    "a discontinuity sequence that falls": (then(version(11), version(12, cuts=1)), "A5", E),
    "a discontinuity sequence after a DISCONTINUITY": (
        only(GOOD.text().replace("#EXT-X-DISCONTINUITY-SEQUENCE:0\n", "#EXT-X-DISCONTINUITY\n#EXT-X-DISCONTINUITY-SEQUENCE:0\n")),
        "A5",
        E,
    ),
    "a DISCONTINUITY and no number for it": (
        only(with_item(10, Item(12, tags=("#EXT-X-DISCONTINUITY",))).text().replace("#EXT-X-DISCONTINUITY-SEQUENCE:0\n", "")),
        "A5",
        W,
    ),
    # 6: the window
    "less than three target durations stay": (only(Version(LONG[:11]), Version(LONG[1:11] + LONG[11:12])), "A6", E),
    "less than six segments": (only(version(10, listed=5), version(11, listed=5)), "A6", W),
    # 7, 8, 11: fetching
    "a removed segment that is gone at once": (lambda watch: watch.load(GOOD, version(11)).got(10, status=404), "A7", E),
    "a listed segment that is missing": (lambda watch: watch.load(GOOD).got(12, status=404), "A11", E),
    "a listed segment that fails": (lambda watch: watch.load(GOOD).got(12, status=503), "A8", E),
    "a listed segment that does not come whole": (lambda watch: watch.load(GOOD).got(12, status=0, broken="5 of 9 bytes"), "A8", E),
    "a listed segment that is no media": (lambda watch: watch.load(GOOD).got(12, broken="no program tables"), "A8", E),
    "a segment cut in a packet": (probed(media(10), size=SIZE - 7), "A8", E),
    "a variant that can't be had": (lambda watch: watch.judge.unavailable(LOW, 404, "HTTP 404", 100.0), "A8", E),
    # 9: promises
    "a type EVENT that slides": (
        only(version(10, head=("#EXT-X-PLAYLIST-TYPE:EVENT",)), version(11, head=("#EXT-X-PLAYLIST-TYPE:EVENT",))),
        "A9",
        E,
    ),
    "a type VOD that grows": (
        only(version(10, head=("#EXT-X-PLAYLIST-TYPE:VOD",)), version(10, listed=8, head=("#EXT-X-PLAYLIST-TYPE:VOD",))),
        "A9",
        E,
    ),
    "a type that comes": (then(version(10, listed=8, head=("#EXT-X-PLAYLIST-TYPE:EVENT",))), "A9", E),
    "a type that is none": (only(version(10, head=("#EXT-X-PLAYLIST-TYPE:LIVE",))), "A9", E),
    "an ENDLIST taken back": (then(version(10, tail=("#EXT-X-ENDLIST",)), version(11)), "A9", E),
    "an ENDLIST taken back to what was before": (then(version(10, tail=("#EXT-X-ENDLIST",)), GOOD), "A9", E),
    "a change after ENDLIST": (then(version(10, tail=("#EXT-X-ENDLIST",)), version(10, listed=8, tail=("#EXT-X-ENDLIST",))), "A9", E),
    # 10: media against DISCONTINUITY
    "time stamps that jump": (probed(media(10), media(11, start=9_000_000)), "A10", E),
    "time stamps that begin anew": (probed(media(10), media(11, start=0)), "A10", E),
    "sound that goes": (probed(media(10), media(11, audio=None)), "A10", E),
    "another format": (probed(media(10), MPEG_AUDIO), "A10", E),
    "another codec": (
        probed(media(10), media(11, audio=AudioInfo("ac-3", 11 * 360_000))),
        "A10",
        E,
    ),
    "another picture size": (
        probed(media(10), media(11, video=replace(media(11).video, width=640, height=360))),  # type: ignore[type-var]
        "A10",
        W,
    ),
    "an EXTINF that lies": (probed(media(10), media(11), text=with_item(10, Item(10, extinf="3.700", pdt_s=40.3))), "A-extinf", E),
    # 12: PROGRAM-DATE-TIME
    "a date that jumps": (only(with_item(10, Item(13, pdt_s=62.0))), "A12", E),
    "a date that steps back": (then(with_item(11, Item(17, pdt_s=30.0))), "A12", E),
    "a date that drifts": (then(with_item(11, Item(17, pdt_s=69.0))), "A12", W),
    "a listed date that changes": (then(with_item(11, Item(13, pdt_s=52.2))), "A12", E),
    "a date that is none": (only(GOOD.text().replace(f"DATE-TIME:{at(40).isoformat()}", "DATE-TIME:noon")), "A12", E),
    "a date without zone": (only(GOOD.text().replace("+00:00", "")), "A12", W),
    "no date at all": (only(no_pdt(GOOD)), "A12", W),
    # 13: DATERANGE
    "a DATERANGE that goes too early": (only(version(10, head=(AT_60,)), version(11)), "A13", E),
    "an ID used again": (only(version(10, head=(AT_60,)), version(11, head=(RANGE.format(at(90).isoformat()),))), "A13", E),
    "an ID used again after a while": (
        only(version(10, head=(AT_60.replace("=60.0", "=1"),)), version(16), version(17, head=(RANGE.format(at(70).isoformat()),))),
        "A13",
        E,
    ),
    "a DATERANGE that ends on the next and goes before it": (only(version(10, head=(ON_NEXT,)), version(16)), "A13", E),
    "a DATERANGE that loses an attribute": (only(version(10, head=(AT_60 + ",X-A=1",)), version(11, head=(AT_60,))), "A13", E),
    "a DATERANGE with two ends": (only(version(10, head=(ON_NEXT + ",DURATION=9",))), "A13", E),
    "a DATERANGE that ends before it begins": (only(version(10, head=(ENDS.format(at(30).isoformat()),))), "A13", E),
    "a DATERANGE whose ends disagree": (only(version(10, head=(ENDS.format(at(90).isoformat()) + ",DURATION=9",))), "A13", E),
    "a DATERANGE without ID": (only(version(10, head=(AT_60.replace('ID="ad",', ""),))), "A13", E),
    "a DATERANGE and no date": (only(no_pdt(version(10, head=(AT_60,), tail=("#EXT-X-ENDLIST",)))), "A13", E),
    # 14 to 17: what is in force
    "a KEY that is not repeated": (only(with_item(10, Item(10, tags=(KEY + IV,))), version(11)), "A14", E),
    "a KEY that comes to cover a MAP": (
        only(
            with_item(10, Item(10, tags=(MAP, KEY + IV)), version="6"),
            with_item(11, Item(11, tags=(KEY + IV, MAP)), version="6"),
        ),
        "A14",
        E,
    ),
    "a KEY without URI": (only(version(10, head=("#EXT-X-KEY:METHOD=AES-128" + IV,))), "A14", E),
    "a NONE with more": (only(version(10, head=('#EXT-X-KEY:METHOD=NONE,URI="k"',))), "A14", E),
    "an encrypted MAP without IV": (only(version(10, head=(KEY, MAP), version="6")), "A15", E),
    "an IV that is too long": (only(version(10, head=(KEY + IV + "00",))), "A15", E),
    "a MAP that is not repeated": (only(with_item(10, Item(10, tags=(MAP,)), version="6"), version(11)), "A16", E),
    "fMP4 without MAP by its name": (then(with_item(11, Item(17, "17.m4s"))), "A16", E),
    "fMP4 without MAP by its bytes": (probed(media(10, container=Container.FMP4)), "A16", E),
    "a byte range without its predecessor": (only(with_item(10, Item(10, tags=("#EXT-X-BYTERANGE:1000",)), version="4")), "A17", E),
    "a byte range that is none": (only(with_item(10, Item(10, tags=("#EXT-X-BYTERANGE:@3",)), version="4")), "A17", E),
    # 18: VERSION
    "VERSION too low for a fraction": (only(version(10, version="2")), "A18", E),
    "VERSION too low for a MAP": (only(version(10, head=(MAP,), version="5")), "A18", E),
    "VERSION too low for a byte range": (only(with_item(10, Item(10, tags=("#EXT-X-BYTERANGE:1000@0",)))), "A18", E),
    "VERSION too low for a KEYFORMAT": (only(version(10, head=(KEY + IV + ',KEYFORMAT="x"',))), "A18", E),
    # 20: variants
    "variants with two target durations": (variants(GOOD, version(10, target="5")), "A20", E),
    "variants of which one counts discontinuities": (variants(GOOD, version(10, cuts=1)), "A20", E),
    "variants of which one lags": (variants(version(12, listed=9), version(12)), "A20", E),
    "variants of which one is dated": (variants(ENDED, no_pdt(ENDED)), "A20", E),
    # 21: STREAM-INF
    "no BANDWIDTH": (only(master(BANDWIDTH=""), where=MASTER), "A21", E),
    "no CODECS": (only(master(CODECS=""), where=MASTER), "A21", W),
    "no AVERAGE-BANDWIDTH": (only(master(AVERAGE_BANDWIDTH=""), where=MASTER), "A21", W),
    "an average above the peak": (only(master(AVERAGE_BANDWIDTH="900000"), where=MASTER), "A21", E),
    "BANDWIDTH below the peak": (in_a_variant(None, BANDWIDTH="370000", AVERAGE_BANDWIDTH="360000"), "A21", E),
    "CODECS of another family": (in_a_variant(media(10), CODECS='"hvc1.1.6.L93.B0,mp4a.40.2"'), "A21", E),
    "CODECS without the sound": (in_a_variant(media(10), CODECS='"avc1.64001f"'), "A21", E),
    "CODECS of another level": (in_a_variant(media(10), CODECS='"avc1.640028,mp4a.40.2"'), "A21", W),
    "a RESOLUTION that is not the media's": (in_a_variant(media(10), RESOLUTION="640x360"), "A21", E),
    "no RESOLUTION": (in_a_variant(media(10), RESOLUTION=""), "A21", W),
    "no FRAME-RATE": (in_a_variant(media(10), FRAME_RATE=""), "A21", W),
    # 22: delivery, and timing
    "no gzip": (only(GOOD, headers={"content-type": HEADERS["content-type"]}), "A22", W),
    "media that are redirected": (lambda watch: watch.load(GOOD).got(12, redirected=True), "A22", W),
    "HOLD-BACK too small": (only(replace(GOOD, head=("#EXT-X-SERVER-CONTROL:HOLD-BACK=11.9",))), "A23", E),
    "CAN-SKIP-UNTIL too small": (only(replace(GOOD, head=("#EXT-X-SERVER-CONTROL:CAN-SKIP-UNTIL=23.9",))), "A23", E),
    "PART-HOLD-BACK too small": (
        only(replace(GOOD, head=("#EXT-X-PART-INF:PART-TARGET=1", "#EXT-X-SERVER-CONTROL:PART-HOLD-BACK=1.9"))),
        "A23",
        E,
    ),
    "no PART-HOLD-BACK": (only(replace(GOOD, head=("#EXT-X-PART-INF:PART-TARGET=1",))), "A23", E),
    # 24, 27: parts
    "a part that is too long": (only(with_parts(1.01)), "A24", E),
    "a part that is too short": (only(with_parts(0.84, 1.0)), "A24", E),
    "parts of no target": (only(with_parts(1.0, head=())), "A24", E),
    "a part without a URI": (only(with_parts(1.0, more=("#EXT-X-PART:DURATION=1.0",))), "A24", E),
    "parts without a hint": (only(with_parts(1.0, hint=())), "A27", W),
    "a hint after the end": (only(version(10, tail=(HINT, "#EXT-X-ENDLIST"))), "A27", E),
    "no update": (then(GOOD, GOOD), "A-timing", W),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_under_the_number_of_its_rule_and_nothing_else_is(name: str) -> None:
    fault, rule, severity = FAULTS[name]
    watch = Watch()
    fault(watch)
    assert watch.told() == [(rule, severity)], [(one.rule, one.severity, one.text) for one in watch.judge.findings]


def test_parts_as_they_should_be_are_nothing_to_speak_of() -> None:
    short = ('#EXT-X-PART:URI="5.part.ts",DURATION=0.2,INDEPENDENT=YES', '#EXT-X-PART:URI="6.part.ts",DURATION=0.3,GAP=YES')
    assert Watch().load(with_parts(1.0, 0.85, 1.0, 0.4, more=short[1:])).told() == []
    assert Watch().load(with_parts(1.0, 0.9, more=(*short, '#EXT-X-PART:URI="7.part.ts",DURATION=0.1'))).told() == []


def test_every_rule_that_can_be_judged_has_a_fault_that_breaks_it() -> None:
    assert {rule for _, rule, _ in FAULTS.values()} == set(RULES)


def test_a_higher_version_than_needed_is_a_mere_note() -> None:
    watch = Watch().load(version(10, version="7"))
    assert [(one.rule, one.severity) for one in watch.judge.findings] == [("A18", Severity.NOTE)]


def test_a_finding_that_repeats_is_counted_and_told_once() -> None:
    watch = Watch().load(*(version(first, version="2") for first in range(10, 15)))
    (finding,) = watch.judge.findings
    assert finding.count == 5
    assert len(watch.judge.news()) == 1
    assert watch.load(version(15, version="2")).judge.news() == ()


def test_after_a_fault_the_judge_goes_on_from_what_is_there() -> None:
    fallen = [Version(tuple(Item(n, f"b{n}.ts") for n in range(first, first + LISTED))) for first in range(5)]
    watch = Watch().load(version(40), version(41), *fallen)
    assert watch.told() == [("A4", E)]
    assert watch.judge.findings[0].count == 1


def test_time_stamps_of_a_moment_that_differ_between_variants_are_found() -> None:
    watch = Watch().load(master(), where=MASTER, step_s=0.1).load(GOOD, step_s=0.1).load(GOOD, where=LOW, step_s=0.1)
    watch.media(12).media(12, where=LOW, start=12 * 360_000 + 45_000)
    assert watch.told() == [("A20", E)]


def test_variants_are_compared_by_date_where_their_numbers_differ() -> None:
    shifted = Version(tuple(Item(n, f"{n}.ts", pdt_s=4.0 * (n - 500)) for n in range(510, 510 + LISTED)))
    assert (variants(GOOD, shifted)(watch := Watch()), watch.told())[1] == []
    assert (variants(GOOD, replace(shifted, cuts=3))(watch := Watch()), watch.told())[1] == [("A20", E)]


def test_a_bitrate_that_rises_is_judged_by_what_was_stated_after_it_was_listed() -> None:
    watch = Watch().load(GOOD, step_s=0.1).load(GOOD, where=LOW, step_s=0.1).load(master(), where=MASTER, step_s=3.0)
    watch.load(version(11), step_s=0.1).load(version(11), where=LOW, step_s=0.1)
    watch.got(17, size=2 * SIZE + 188 * 100)
    assert watch.told() == []
    watch.load(master(BANDWIDTH="900000"), where=MASTER)
    assert watch.told() == []
    watch.load(version(12)).got(18, size=4 * SIZE).load(master(BANDWIDTH="900000"), where=MASTER)
    assert [(one.rule, one.severity, one.kind) for one in watch.judge.findings if one.severity is E] == [
        ("A21", E, "BANDWIDTH below the measured peak")
    ]


def test_codecs_that_nobody_can_know_are_advice_and_those_that_the_media_tell_are_owed() -> None:
    in_a_variant(media(10), CODECS="")(watch := Watch())
    assert watch.told() == [("A21", E), ("A21", W)]
    secret = version(10, head=(KEY + IV,))
    watch = Watch().load(secret, step_s=0.1).load(secret, where=LOW, step_s=0.1).load(master(CODECS=""), where=MASTER, step_s=0.1)
    assert watch.load(secret).got(10, info=media(10)).told() == [("A21", W)]


@pytest.mark.parametrize("seen_first", [True, False])
@pytest.mark.parametrize(("resolution", "told"), [("1280x720", []), ("640x360", []), ("320x180", [("A21", E)])])
def test_a_stream_inf_may_tell_the_size_of_any_picture_that_was_listed_when_it_was_loaded(
    resolution: str, told: Told, seen_first: bool
) -> None:
    small = VideoInfo("avc1.64001f", 640, 360, 100, 17 * 360_000, 17 * 360_000 + 356_400, 25.0, True, ())
    watch = Watch().load(GOOD, step_s=0.1).got(12, info=media(12))
    if seen_first:
        watch.load(with_item(11, Item(17, tags=("#EXT-X-DISCONTINUITY",))), step_s=0.1)
    watch.load(master(RESOLUTION=resolution), where=MASTER, step_s=0.1)
    watch.load(with_item(11, Item(17, tags=("#EXT-X-DISCONTINUITY",))), step_s=0.1)
    watch.got(13, info=media(13)).got(17, info=media(17, video=small))
    assert watch.told() == told


def demuxed(bandwidth_bps: int) -> str:
    sound = '#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="s",NAME="en",URI="low/index.m3u8"'
    stated = f'BANDWIDTH={bandwidth_bps},AVERAGE-BANDWIDTH=300000,CODECS="{CODECS}",RESOLUTION=1280x720,FRAME-RATE=25.000,AUDIO="s"'
    return f"#EXTM3U\n{sound}\n#EXT-X-STREAM-INF:{stated}\nhigh/index.m3u8\n"


@pytest.mark.parametrize(("bandwidth_bps", "told"), [(700_000, [("A21", W)]), (760_000, [])])
def test_bandwidth_covers_the_sound_of_its_group(bandwidth_bps: int, told: Told) -> None:
    watch = Watch().load(GOOD, step_s=0.1).load(GOOD, where=LOW, step_s=0.1).load(demuxed(bandwidth_bps), where=MASTER, step_s=0.1)
    for where in (HIGH, LOW):
        watch.judge.media(where.replace("index.m3u8", "10.ts"), 200, SIZE, None, watch.now_s)
    assert watch.told() == told


@pytest.mark.parametrize(("late_s", "told"), [(0.0, []), (0.3, []), (0.9, [("A20", E)])])
def test_sound_and_pictures_of_one_date_are_of_one_time(late_s: float, told: Told) -> None:
    watch = Watch().load(demuxed(900_000), where=MASTER, step_s=0.1).load(GOOD, step_s=0.1).load(GOOD, where=LOW, step_s=0.1)
    sound = MediaInfo(Container.AAC, None, AudioInfo("mp4a.40.2", round(12 * 360_000 + late_s * 90_000)))
    watch.got(12, info=replace(media(12), audio=None))
    watch.judge.media(LOW.replace("index.m3u8", "12.ts"), 200, SIZE, sound, watch.now_s)
    assert watch.told() == told


def test_renditions_cut_at_other_moments_are_held_against_their_dates() -> None:
    shifted = Version(tuple(Item(n, f"{n}.ts", pdt_s=4.0 * n + 1.5) for n in range(10, 10 + LISTED)))
    watch = Watch().load(master(), where=MASTER, step_s=0.1).load(GOOD, step_s=0.1).load(shifted, where=LOW, step_s=0.1)
    watch.media(12).media(12, where=LOW, start=12 * 360_000 + 135_000)
    assert watch.told() == []


def test_who_has_ended_may_go() -> None:
    watch = Watch().load(master(), where=MASTER, step_s=0.1).load(ENDED, step_s=0.1)
    watch.judge.unavailable(HIGH, 404, "HTTP 404", watch.now_s)
    assert watch.told() == []
    watch.judge.unavailable(MASTER, 404, "HTTP 404", watch.now_s)
    assert watch.told() == [("A3", E)], "not all that it names has ended"


def test_a_media_sequence_that_comes_too_late_numbers_nothing() -> None:
    text = "\n".join(line for line in GOOD.text().splitlines() if "MEDIA-SEQUENCE" not in line)
    watch = Watch().load(text.replace("11.ts", "11.ts\n#EXT-X-MEDIA-SEQUENCE:10") + "\n")
    assert watch.told() == [("A4", E)]
    playlist = watch.judge.latest(HIGH)
    assert isinstance(playlist, MediaPlaylist)
    assert [segment.sequence for segment in playlist.segments] == list(range(LISTED))


def test_a_byte_range_is_held_against_its_length() -> None:
    listed = with_item(10, Item(10, "all.ts", tags=("#EXT-X-BYTERANGE:1000@0",)), version="4")
    uri = HIGH.replace("index.m3u8", "all.ts")
    watch = Watch().load(listed)
    watch.judge.media(uri, 206, 1000, None, watch.now_s, span=Span(1000, 0))
    assert watch.told() == []
    watch.judge.media(uri, 206, 900, None, watch.now_s, span=Span(1000, 0))
    assert watch.told() == [("A8", E)]


@given(st.binary(max_size=400))
def test_no_bytes_make_the_judge_fall(body: bytes) -> None:
    Watch().load(GOOD, body, b"#EXTM3U\n" + body, GOOD.text().encode() + body + b"\n", version(11))


_LINES = st.sampled_from([*GOOD.text().splitlines(), KEY, MAP, AT_60, "#EXT-X-BYTERANGE:9", "#EXT-X-ENDLIST", "#EXT-X-GAP", "a b", ""])


@given(st.lists(st.lists(_LINES, max_size=20), max_size=4))
@example([["#EXTINF:4.000,", "12.ts", "#EXT-X-MEDIA-SEQUENCE:10", "#EXTINF:4.000,", "13.ts"], ["#EXTINF:4.000,", "16.ts"] * 2])
def test_no_order_of_lines_makes_the_judge_fall(histories: list[list[str]]) -> None:
    Watch().load(GOOD, *("\n".join(["#EXTM3U", *lines, ""]) for lines in histories), version(11))


def test_the_judge_shares_no_code_with_what_it_judges() -> None:
    for path in Path(hlsrelay.judge.__file__).parent.glob("*.py"):
        named = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module}
        ours = {name for name in named if name.startswith("hlsrelay")}
        assert all(name.startswith(("hlsrelay.judge", "hlsrelay.media")) for name in ours), path.name


# Our own playlists --------------------------------------------------------------------------------------------------------------------

TRAITS = {SOURCE: Traits("avc1.64001f,mp4a.40.2", 1280, 720, 30.0), "360p": Traits("avc1.64001e,mp4a.40.2", 640, 360, 30.0)}
TRAITS["480p"] = Traits("avc1.64001e,mp4a.40.2", 854, 480, 30.0)
BASE = "https://relay.example/live/news/"
_ROW = st.tuples(st.floats(0.5, 4.4), st.booleans(), st.booleans(), st.integers(1, 5000))


def relayed(rows: list[tuple[float, bool, bool, int]], rungs_of: Callable[[int], tuple[str, ...]], window_s: float) -> Judge:
    """Drive the relay's own window and renderer, and let the judge read all that they publish."""
    judge = Judge()
    progress, now_s = Progress(POSITION, 4), 0.0
    for number, (duration_s, discontinuity, lost, packets) in enumerate(rows):
        rungs = rungs_of(number)
        files = {name: MediaFile(f"{number}.ts", packets * 188, traits=TRAITS[name]) for name in (SOURCE, *rungs)}
        entry = Entry(number, duration_s, discontinuity, at(now_s), {} if lost else files, rungs)
        now_s += duration_s
        progress = slide(progress, entry, replace(POSITION, last_number=number), window_s, at(now_s))
        for rendition in progress.renditions:
            judge.playlist(f"{BASE}{rendition.name}/index.m3u8", media_playlist(progress, rendition.name).encode(), HEADERS, now_s)
        if any(one.total_s for one in progress.renditions):
            judge.playlist(
                f"{BASE}index.m3u8",
                multivariant_playlist(media_playlist_alone("https://origin.example/live.m3u8"), {SOURCE: progress}).encode(),
                HEADERS,
                now_s + 0.01,
            )
        for rendition in progress.renditions:
            if (file := progress.entries[-1].files.get(rendition.name)) is not None and not file.uri.startswith("../"):
                judge.media(f"{BASE}{rendition.name}/{file.uri}", 200, file.size_bytes, None, now_s + 0.02)
    return judge


def broken(judge: Judge) -> list[str]:
    return [f"{one.rule} {one.where.removeprefix(BASE)}: {one.text}" for one in judge.findings if one.severity is Severity.ERROR]


@given(st.lists(_ROW, min_size=1, max_size=60), st.floats(6, 60))
def test_what_the_relay_publishes_breaks_no_rule(rows: list[tuple[float, bool, bool, int]], window_s: float) -> None:
    assert broken(relayed(rows, lambda _: ("360p",), window_s)) == []


@given(st.lists(_ROW, min_size=1, max_size=60), st.lists(st.sampled_from([(), ("360p",), ("480p", "360p")]), min_size=60, max_size=60))
def test_what_the_relay_publishes_breaks_no_rule_when_its_ladder_changes(
    rows: list[tuple[float, bool, bool, int]], rungs: list[tuple[str, ...]]
) -> None:
    assert broken(relayed(rows, lambda number: rungs[number], 24.0)) == []


def test_a_rung_that_comes_states_what_all_that_it_lists_is() -> None:
    judge = relayed([(4.0, False, False, 1000)] * 4, lambda number: ("360p",) if number >= 3 else (), 24.0)
    judge.media(f"{BASE}source/2.ts", 200, 1000 * 188, media(2), 16.0)
    assert broken(judge) == []


def published(entries: list[Entry]) -> Judge:
    """Publish *entries* one after the other, of the source alone."""
    judge, progress = Judge(), Progress(POSITION, 4)
    for entry in entries:
        progress = slide(progress, entry, replace(POSITION, last_number=entry.number), 24.0, entry.program_date_time)
        judge.playlist(f"{BASE}source/index.m3u8", media_playlist(progress, SOURCE).encode(), None, entry.number * 4.0)
    return judge


def plain(number: int, **changes: object) -> Entry:
    entry = Entry(number, 4.0, False, at(number * 4), {SOURCE: MediaFile(f"{number}.ts", 1000)})
    return replace(entry, **changes)  # type: ignore[arg-type]


def test_a_daterange_stays_as_long_as_it_maps_to_a_listed_segment() -> None:
    tag = RANGE.format(at(0).isoformat())
    assert broken(published([plain(0, tags=(tag,)), *(plain(number) for number in range(1, 10))])) == []


def test_a_source_that_begins_to_tell_the_time_breaks_no_rule() -> None:
    first = advance(None, live(1, 2, 3).snapshot(), stream(), at(0))
    second = advance(first.position, live(2, 3, Listed(4, pdt=at(1000))).snapshot(), stream(), at(4))
    entries = [
        plain(one.number, program_date_time=one.program_date_time, discontinuity=one.discontinuity) for one in (*first.fresh, *second.fresh)
    ]
    assert broken(published(entries)) == []
