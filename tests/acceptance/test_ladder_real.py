"""A ladder that one real relay makes of one live source, as players find it: ffmpeg, ffprobe, hls.js in Chromium."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import m3u8
import pytest

from hlsrelay.web.app import HLS_JS, PAGE_DIR
from tests.acceptance.live_source import Muxer, muxing, nginx
from tests.acceptance.media_checks import (
    IDR,
    Track,
    digests,
    ffprobe,
    first_slice_type,
    gaps,
    is_consecutive_part,
    ran,
    sha256,
    sound_digest,
    ticks_apart,
    tracks,
    words_of_a_player,
    written,
)
from tests.acceptance.relay_process import (
    KEY,
    WHOLE_RUN_S,
    RedisServer,
    RelayProcess,
    relaying,
)
from tests.needs import NIGHTLY, needs
from tests.waiting import until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.xdist_group("realtime"),
    needs("ffmpeg", "ffprobe", "nginx", "redis-server", "redis-cli"),
]


@dataclass(frozen=True)
class Ladder:
    """A relay of a live source with its ladder, and that source."""

    relay: RelayProcess
    source: Muxer


RUNGS = ("360p", "240p", "audio")
PICTURES = ("360p", "240p")
LADDER = "360p,240p:240:400,audio"
"""Small: the tests beside these want the machine too, and a rung that it can not make in time is a GAP."""
FEWEST_IN_A_ROW = 5


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Ladder]:
    folder = tmp_path_factory.mktemp("ladder")
    redis.cli("DEL", KEY)
    with nginx(folder / "origin", folder / "nginx") as url, muxing(folder / "origin", size="854x480") as source:
        redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", ladder=LADDER, window=WHOLE_RUN_S)
        with relaying(folder / "data", redis) as relay:
            until(lambda: len(relay.numbers(PICTURES[0])) >= 3)
            yield Ladder(relay, source)


@dataclass(frozen=True)
class Copy:
    """What a relay lists at one moment, in files: *numbers* in a row that all rungs have, and of each rendition what it says and holds."""

    folder: Path
    multivariant: str
    numbers: list[int]
    texts: dict[str, str]
    durations_s: list[float]

    def file(self, rendition: str, number: int) -> Path:
        return self.folder / rendition / f"{number}.ts"

    def playlist(self, *renditions: str) -> Path:
        """Write a playlist of all numbers that takes the next of *renditions* at each segment."""
        chosen = [self.file(renditions[index % len(renditions)], number) for index, number in enumerate(self.numbers)]
        return written(self.folder / f"{'-'.join(renditions)}.m3u8", list(zip(chosen, self.durations_s, strict=True)))


@pytest.fixture(scope="module")
def copy(ladder: Ladder, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    relay = ladder.relay
    until(lambda: len(relay.numbers(PICTURES[0])) >= 10, 60)

    def seen() -> dict[str, str]:
        names = ("", *(f"{name}/" for name in ("source", *RUNGS)))
        return {name.strip("/"): relay.get(f"{name}index.m3u8").raise_for_status().text for name in names}

    def steady() -> tuple[dict[str, str], list[int]] | None:
        texts = seen()
        if texts != seen():
            return None
        listed = m3u8.loads(texts["source"])
        missing = {number for text in texts.values() for number in gaps(text)}  # of rungs that a busy machine could not make in time
        runs = unbroken(missing, range(listed.media_sequence, listed.media_sequence + len(listed.segments)))
        numbers = max((list(run) for run in runs), key=len, default=[])
        return (texts, numbers) if len(numbers) >= FEWEST_IN_A_ROW else None

    texts, numbers = until(steady, 100)
    multivariant = texts.pop("")
    media = m3u8.loads(texts["source"])
    durations_s = [media.segments[number - media.media_sequence].duration for number in numbers]
    folder = tmp_path_factory.mktemp("copy")
    for name in texts:
        (folder / name).mkdir()
        for number in set(range(media.media_sequence, media.media_sequence + len(media.segments))) - set(gaps(texts[name])):
            (folder / name / f"{number}.ts").write_bytes(relay.get(f"{name}/{number}.ts").raise_for_status().content)
    return Copy(folder, multivariant, numbers, texts, durations_s)


def unbroken(missing: set[int], numbers: Iterable[int]) -> Iterator[Iterator[int]]:
    """Yield the runs of *numbers* without those that are missing."""
    return (run for there, run in groupby(numbers, lambda number: number not in missing) if there)


@needs("chromium")
@pytest.mark.skipif(not (PAGE_DIR / HLS_JS / "dist").exists(), reason="hls.js isn't installed: make install")
def test_hls_js_plays_the_ladder_on_and_over_a_switch_without_an_error_or_a_stall(ladder: Ladder) -> None:
    watched_s = 60 if NIGHTLY else 12
    browser = pytest.importorskip("tests.acceptance.browser", reason="the playwright package isn't installed")
    report = browser.watch(ladder.relay.url, "news", seconds=watched_s, switch_after_s=watched_s / 3)
    assert report.player.startswith("hls.js")
    assert report.switched_at_s is not None
    assert len({level.height for level in report.levels}) >= 2
    assert report.fatal == ()
    assert [stall_s for stall_s in report.stalls_s if stall_s > 0.5] == []
    assert report.smooth(), report
    assert report.decoded_frames > 25 * watched_s


def test_every_segment_is_published_as_the_source_made_it(ladder: Ladder, copy: Copy) -> None:
    made = digests(ladder.source.folder, [path.name for path in ladder.source.segments()])
    listed = m3u8.loads(copy.texts["source"])
    numbers = [listed.media_sequence + index for index in range(len(listed.segments))]
    relayed = [sha256(copy.file("source", number).read_bytes()) for number in numbers]
    assert is_consecutive_part(relayed, made)
    assert len(set(relayed)) == len(relayed) >= 10
    assert "#EXT-X-GAP" not in copy.texts["source"]
    for text in copy.texts.values():
        media = m3u8.loads(text)
        assert [segment.uri for segment in media.segments] == [f"{number}.ts" for number in numbers]
        assert [segment.duration for segment in media.segments] == [segment.duration for segment in listed.segments]
        assert "#EXT-X-DISCONTINUITY\n" not in text
    stated = {path.name: duration for path, duration in zip(ladder.source.segments(), source_durations(ladder.source), strict=False)}
    assert copy.durations_s == [pytest.approx(stated[f"{number}.ts"], abs=1e-6) for number in copy.numbers]


def source_durations(source: Muxer) -> list[float]:
    """Return what the muxer says of all its segments; of those that it lists no more, what it always says."""
    listed = [segment.duration for segment in m3u8.load(str(source.playlist)).segments]
    return [2.0] * (len(source.segments()) - len(listed)) + listed


def test_every_rung_shows_its_pictures_and_plays_its_sound_exactly_when_the_source_does(copy: Copy) -> None:
    with ThreadPoolExecutor(2) as pool:
        names = ("source", *RUNGS)
        found = dict(zip(names, (list(pool.map(tracks, (copy.file(name, one) for one in copy.numbers))) for name in names), strict=True))
    probed = ffprobe(copy.file("source", copy.numbers[0]), "-show_streams", "-select_streams", "v")["streams"]
    assert probed[0]["has_b_frames"] > 0, "the source is as meant"
    for name in RUNGS:
        for source, made in zip(found["source"], found[name], strict=True):
            assert set(made) == ({"video", "audio"} if name in PICTURES else {"audio"})
            assert made["audio"].digests == source["audio"].digests
            assert same_moments(made["audio"], source["audio"], within_ticks=1)
            if name in PICTURES:
                assert len(made["video"].pts) == len(source["video"].pts) == 60
                assert set(made["video"].pts) == set(source["video"].pts)
                assert ticks_apart(made["video"].starts, source["video"].starts) <= 1
    sounds = {name: sound_digest(copy.playlist(name)) for name in names}
    assert len(set(sounds.values())) == 1, sounds


def same_moments(made: Track, source: Track, *, within_ticks: int) -> bool:
    """Return whether two tracks have their packets at the same moments, but for rounding."""
    return len(made.pts) == len(source.pts) and all(ticks_apart(*pair) <= within_ticks for pair in zip(made.pts, source.pts, strict=True))


def test_every_segment_of_every_rung_begins_with_an_idr(copy: Copy) -> None:
    with ThreadPoolExecutor(2) as pool:
        for name in PICTURES:
            assert set(pool.map(first_slice_type, (copy.file(name, number) for number in copy.numbers))) == {IDR}


@pytest.mark.parametrize("path", [("source",), PICTURES[:1], PICTURES[1:], PICTURES], ids="+".join)
def test_ffmpeg_decodes_every_rung_and_every_switch_without_a_word(path: tuple[str, ...], copy: Copy) -> None:
    assert words_of_a_player(copy.playlist(*path), video=True) == ""


def test_ffmpeg_decodes_switches_to_the_source_and_back_without_an_error(copy: Copy) -> None:
    # Not without a warning: the source's continuity counters go on from its own segment before, and its bytes are not ours to change.
    assert words_of_a_player(copy.playlist("source", *PICTURES[::-1]), video=True, level="error") == ""


def test_ffmpeg_says_of_the_audio_rung_what_it_says_of_audio_that_it_has_cut_itself(copy: Copy) -> None:
    (copy.folder / "cut").mkdir()
    for number in copy.numbers:
        words = [
            "-copyts",
            "-i",
            str(copy.file("source", number)),
            "-map",
            "0:a:0",
            "-c",
            "copy",
            "-muxdelay",
            "0.7",
            "-mpegts_copyts",
            "1",
        ]
        flags = ["-avoid_negative_ts", "disabled", "-mpegts_flags", "+initial_discontinuity"]
        ran("ffmpeg", "-v", "error", "-nostdin", *words, *flags, "-f", "mpegts", str(copy.file("cut", number)))
    ours, theirs = (words_of_a_player(copy.playlist(name), video=False).splitlines() for name in ("audio", "cut"))
    assert [without_addresses(line) for line in ours] == [without_addresses(line) for line in theirs]
    assert len(ours) <= 1, "at its very beginning"


def without_addresses(line: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "", line)


def test_the_multivariant_playlist_says_of_each_rendition_what_ffprobe_measures(copy: Copy) -> None:
    playlist = m3u8.loads(copy.multivariant)
    assert [one.uri for one in playlist.playlists] == [f"{name}/index.m3u8" for name in ("source", *RUNGS)]
    for one in playlist.playlists:
        name, stated = one.uri.partition("/")[0], one.stream_info
        bits = [8 * copy.file(name, number).stat().st_size for number in copy.numbers]
        assert stated.bandwidth >= peak_bps(bits, copy.durations_s, m3u8.loads(copy.texts[name]).target_duration)
        media = m3u8.loads(copy.texts[name])
        every = [media.media_sequence + index for index in range(len(media.segments))]
        there = [(copy.file(name, number), one.duration) for number, one in zip(every, media.segments, strict=True)]
        sizes = [(8 * path.stat().st_size, duration_s) for path, duration_s in there if path.exists()]
        average_bps = sum(bits for bits, _ in sizes) / sum(s for _, s in sizes)
        assert stated.average_bandwidth == pytest.approx(average_bps, rel=0.01)  # told anew where it moves by more (render.told_apart)
        assert stated.bandwidth <= 2 * stated.average_bandwidth, "a peak that nothing comes near would keep players away"
        streams = {stream["codec_type"]: stream for stream in ffprobe(copy.file(name, copy.numbers[-1]), "-show_streams")["streams"]}
        codecs = stated.codecs.split(",")
        assert codecs.pop() == "mp4a.40.2"
        assert (streams["audio"]["codec_name"], streams["audio"]["profile"]) == ("aac", "LC")
        if name == "audio":
            assert (set(streams), codecs, stated.resolution, stated.frame_rate) == ({"audio"}, [], None, None)
            continue
        video = streams["video"]
        profile = {"Main": 0x4D, "High": 0x64, "Constrained Baseline": 0x42}[video["profile"]]
        assert [re.sub(r"(?<=avc1\...)..", "··", codec.lower()) for codec in codecs] == [f"avc1.{profile:02x}··{video['level']:02x}"]
        assert stated.resolution == (video["width"], video["height"])
        assert stated.frame_rate == pytest.approx(rate(video["avg_frame_rate"]), abs=0.0005)
        assert rate(video["r_frame_rate"]) == stated.frame_rate


def peak_bps(bits: list[int], durations_s: list[float], target_duration_s: float) -> int:
    """Return the largest bitrate of any run of segments that lasts from 0.5 to 1.5 target durations (RFC 8216 4.1)."""
    peak = 0.0
    for first in range(len(bits)):
        for end in range(first + 1, len(bits) + 1):
            length_s = sum(durations_s[first:end])
            if 0.5 * target_duration_s <= length_s <= 1.5 * target_duration_s:
                peak = max(peak, sum(bits[first:end]) / length_s)
    return math.floor(peak)


def rate(text: str) -> float:
    """Return the value of ffprobe's fraction."""
    over, under = text.split("/")
    return int(over) / int(under)


def test_ffprobe_reads_the_presentation_over_http(ladder: Ladder) -> None:
    def sizes() -> list[list[tuple[str, int | None]]]:
        programs = ffprobe(ladder.relay.playlist, "-show_programs", "-show_streams")["programs"]
        return [sorted((stream["codec_type"], stream.get("height")) for stream in program["streams"])[::-1] for program in programs]

    wanted = [
        [("video", 480), ("audio", None)],
        [("video", 360), ("audio", None)],
        [("video", 240), ("audio", None)],
        [("audio", None)],
    ]
    until(lambda: sizes() == wanted, every_s=1.0)  # it reads the newest segments: a busy machine may not have had time for one's ladder


def test_what_is_listed_only_ever_grows_at_its_end(ladder: Ladder, copy: Copy) -> None:
    for name, text in copy.texts.items():
        now = ladder.relay.get(f"{name}/index.m3u8").text
        assert now.startswith(text)
    assert all(later == sooner + 1 for sooner, later in pairwise(copy.numbers))
