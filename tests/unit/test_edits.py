"""The edit lists of a rung are the source's, track by track, in the rung's own ticks: no ffmpeg, bytes by hand."""

from __future__ import annotations

import pytest

from hlsrelay.media.edits import with_edits
from hlsrelay.media.info import AudioInfo, Container, MediaError, MediaInfo
from tests.unit.cut_by_hand import box, numbers
from tests.unit.test_fragment import edits, init, movie, sound, visual

INFO = MediaInfo(Container.FMP4, audio=AudioInfo("mp4a.40.2", 0, id=2), more_audio=(AudioInfo("ac-3", 0, id=3),))
PICTURES, SOUND, OTHER = edits((3200, -1), (0, 1024)), edits((2176, -1), (0, 0)), edits((0, 312))
SOURCE = movie(48_000, visual(1, edts=PICTURES), sound(2, 0, edts=SOUND), sound(3, 0, edts=OTHER))


def test_each_track_has_the_source_s_edits_and_no_duration_is_rounded() -> None:
    rung = movie(1000, visual(1), sound(2, 0), sound(3, 0))
    assert with_edits(rung, SOURCE, INFO) == SOURCE


def test_tracks_are_told_apart_by_what_they_are_and_by_those_that_the_segment_has() -> None:
    assert with_edits(movie(1000, sound(1, 0)), SOURCE, INFO) == movie(48_000, sound(1, 0, edts=SOUND))
    only_the_second = MediaInfo(Container.FMP4, audio=AudioInfo("ac-3", 0, id=3))
    rung = movie(1000, visual(1), sound(2, 0))
    assert with_edits(rung, SOURCE, only_the_second) == movie(48_000, visual(1, edts=PICTURES), sound(2, 0, edts=OTHER))
    swapped = movie(48_000, sound(2, 0, edts=SOUND), visual(1, edts=PICTURES))
    assert with_edits(rung, swapped, INFO) == movie(48_000, visual(1, edts=PICTURES), sound(2, 0, edts=SOUND))


def test_a_track_without_edits_gets_none() -> None:
    source = movie(600, visual(1), sound(2, 0, edts=SOUND))
    rung = movie(1000, visual(1), sound(2, 0), sound(3, 0))
    assert with_edits(rung, source, INFO) == movie(600, visual(1), sound(2, 0, edts=SOUND), sound(3, 0))


@pytest.mark.parametrize(
    "source",
    [
        b"",
        init(visual(1), sound(2, 0)),
        movie(600, visual(1), sound(2, 0, edts=edits())),
        movie(600, visual(1, edts=box(b"edts"))),
        movie(600, box(b"trak", PICTURES)),
    ],
)
def test_a_source_without_edits_changes_nothing(source: bytes) -> None:
    rung = movie(1000, visual(1), sound(2, 0))
    assert with_edits(rung, source, INFO) == rung


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (edits((7, -1), (0, 1920)), edits((7, -1), (0, 1024))),  # 1920 of 90 000 a second are 1024 of 48 000
        (edits((0, 2)), edits((0, 1))),
        (edits((0, -90)), edits((0, -48))),
        (edits((0, 1 << 40), version=1), edits((0, round((1 << 40) * 48 / 90)), version=1)),
        (edits((1 << 40, -1), (0, 0), version=1), edits((1 << 40, -1), (0, 0), version=1)),
        (edits((7, -1), (0, 1920), version=1), edits((7, -1), (0, 1024))),
    ],
)
def test_times_of_the_media_count_in_the_rung_s_ticks(theirs: bytes, ours: bytes) -> None:
    source = movie(1000, sound(2, 0, timescale=90_000, edts=theirs))
    assert with_edits(movie(1000, sound(1, 0)), source, INFO) == movie(1000, sound(1, 0, edts=ours))


def test_times_that_outgrow_32_bits_are_written_in_64() -> None:
    source = movie(1000, sound(2, 0, timescale=1000, edts=edits((0, 1 << 30))))
    assert with_edits(movie(1000, sound(1, 0)), source, INFO) == movie(1000, sound(1, 0, edts=edits((0, 48 << 30), version=1)))


def hostile_edits(version: int, count: int, *rows: int) -> bytes:
    return box(b"edts", box(b"elst", numbers(version << 24, count, *rows)))


@pytest.mark.parametrize(
    "source",
    [
        movie(1000, sound(2, 0, edts=hostile_edits(0, (1 << 32) - 1, *[0] * 30))),
        movie(1000, sound(2, 0, edts=hostile_edits(0, 65, *[0] * 195))),
        movie(1000, sound(2, 0, edts=hostile_edits(0, 2, 0, 0, 0x10000))),
        movie(1000, sound(2, 0, edts=hostile_edits(1, 1, 0, 0, 0x10000))),
        movie(1000, sound(2, 0, edts=box(b"edts", box(b"elst", b"\0")))),
        movie(1000, sound(2, 0, edts=box(b"edts", numbers(1000) + b"elst"))),
        movie(1000, sound(2, 0, timescale=1, edts=edits((0, (1 << 63) - 1), version=1))),
        movie(1000, sound(2, 0, timescale=0, edts=SOUND)),
        movie(0, sound(2, 0, edts=SOUND)),
        init(sound(2, 0, edts=SOUND)),
        init(box(b"mvhd", b"\0"), sound(2, 0, edts=SOUND)),
        SOURCE[:-1],
        movie(1000, *[sound(2, 0, edts=SOUND)] * 4000),
    ],
)
def test_hostile_edits_are_refused(source: bytes) -> None:
    with pytest.raises(MediaError):
        with_edits(movie(1000, sound(2, 0)), source, INFO)
