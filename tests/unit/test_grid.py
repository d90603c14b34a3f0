"""Whose frames are whose: segments made apart, by jobs that know nothing of each other, lie side by side without a seam."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.media.grid import AHEAD, SAMPLES, Cut, cut_of, first_sample, kept, near
from hlsrelay.media.info import PTS_MODULUS, AudioInfo, MediaError

SOUND = AudioInfo("mp4a.40.2", 900_000, coding="aac", hertz=48_000, last_pts_90k=900_000 + 99 * 1920)


def source(frame_samples: int, hertz: int, start_90k: int, counts: list[int]) -> list[AudioInfo]:
    """Return segments of so many frames each, time stamps rounded and mod 2^33, as a source tells them."""
    found, at = [], 0
    for count in counts:
        pts = [(start_90k + round(Fraction(frame * frame_samples * 90_000, hertz))) % PTS_MODULUS for frame in (at, at + count - 1)]
        found.append(AudioInfo(None, pts[0], hertz=hertz, last_pts_90k=pts[1], frame_samples=frame_samples))
        at += count
    return found


@given(
    st.sampled_from([(1024, 44_100), (1024, 48_000), (1152, 48_000), (1152, 44_100), (1536, 32_000), (960, 48_000), (2048, 22_050)]),
    st.integers(0, PTS_MODULUS - 1) | st.integers(PTS_MODULUS - 900_000, PTS_MODULUS - 1),
    st.lists(st.integers(8, 300), min_size=2, max_size=12),
)
def test_jobs_apart_agree_where_one_segment_ends_and_the_next_begins(kind: tuple[int, int], start: int, counts: list[int]) -> None:
    segments = source(*kind, start, counts)
    before, cuts = None, []
    for segment in segments:
        sample = first_sample(segment, before)
        cuts.append(cut_of(segment, before[0] if before else None, sample, 60))
        before = (segment, sample)
    assert all(one.end == other.begin for one, other in pairwise(cuts))
    assert [cut.follows for cut in cuts] == [False] + [True] * (len(cuts) - 1)
    stamps = [cut.begins_90k(frame) for cut in cuts for frame in range(cut.begin, cut.end)]
    assert all(abs((b - a) - SAMPLES * 90_000 / cuts[0].hertz) <= 1 for a, b in pairwise(stamps))
    # No more is given away, and no more is asked for, than the segment holds: the last frame of it may be cut.
    last = segments[-1].last_pts_90k
    assert last is not None
    needed = cuts[-1].begins_90k(cuts[-1].end + AHEAD)
    assert 0 <= near(last, needed) - needed + 1 <= SAMPLES * 90_000 / cuts[0].hertz + 2


def test_without_the_segment_before_sound_begins_as_early_as_that_would_have_ended() -> None:
    before = replace(SOUND, first_pts_90k=800_000, last_pts_90k=900_000 - 1920)
    after = cut_of(SOUND, before, 480_000, 60)
    alone = cut_of(SOUND, None, 480_000, 60)
    assert (alone.begin, alone.end) == (after.begin, after.end)
    assert not alone.follows
    assert cut_of(replace(SOUND, first_pts_90k=0, last_pts_90k=96_000), None, 0, 60).begin == 0  # there is no time before 0


def test_a_segment_before_that_is_not_next_to_this_one_says_nothing() -> None:
    far = replace(SOUND, last_pts_90k=10_000)
    assert cut_of(SOUND, far, 480_000, 60) == cut_of(SOUND, None, 480_000, 60)


def test_a_rate_that_is_not_usual_becomes_48_khz() -> None:
    assert [cut_of(replace(SOUND, hertz=hertz), None, 10 * (hertz or 48_000), 60).hertz for hertz in (22_050, None, 44_100, 32_000)] == [
        48_000,
        48_000,
        44_100,
        32_000,
    ]


@pytest.mark.parametrize(
    ("sound", "reason"),
    [
        (replace(SOUND, last_pts_90k=None), "no time stamps"),
        (replace(SOUND, first_pts_90k=None), "no time stamps"),
        (replace(SOUND, last_pts_90k=900_000), "too short"),
        (replace(SOUND, last_pts_90k=800_000), "too short"),
        (replace(SOUND, last_pts_90k=900_000 + 61 * 90_000), "jump"),
    ],
)
def test_time_stamps_that_make_no_sense_are_a_media_error(sound: AudioInfo, reason: str) -> None:
    with pytest.raises(MediaError, match=reason):
        cut_of(sound, None, 480_000, 60)


def test_kept_are_the_frames_of_the_cut_and_no_less() -> None:
    cut = Cut(48_000, 100, 110, follows=True, source_begin_s=Fraction(2))
    encoded = [b"fades in", *(f"{frame}".encode() for frame in range(cut.encoded_from, cut.end + AHEAD))]
    assert kept(encoded, cut) == [f"{frame}".encode() for frame in range(100, 110)]
    with pytest.raises(MediaError, match="9 frames instead of 10"):
        kept(encoded[: -AHEAD - 1], cut)


def test_frames_are_counted_where_time_stamps_are_rounded() -> None:
    """Else one segment would be a sample early and the next one a sample late: a tick is half a sample of 44.1 kHz."""
    counts = [7, 11, 13, 49, 5] * 40
    for start in range(90_000, 90_049):
        placed: list[tuple[AudioInfo, int]] = []
        for segment in source(1024, 44_100, start, counts):
            placed.append((segment, first_sample(segment, placed[-1] if placed else None)))
        assert [after[1] - one[1] for one, after in pairwise(placed)] == [1024 * count for count in counts[:-1]]


def test_a_source_whose_clocks_drift_apart_is_followed_by_its_time_stamps() -> None:
    placed: list[tuple[AudioInfo, int]] = []
    for second in range(600):
        segment = replace(SOUND, first_pts_90k=second * 90_009, frame_samples=1024)  # 100 ppm slow
        placed.append((segment, first_sample(segment, placed[-1] if placed else None)))
    assert all(abs(sample * 15 / 8 - (one.first_pts_90k or 0)) <= 2 for one, sample in placed)


def test_samples_are_counted_on_over_the_wrap_and_anew_after_a_jump() -> None:
    before = (replace(SOUND, first_pts_90k=PTS_MODULUS - 1920, frame_samples=1024), (PTS_MODULUS - 1920) * 8 // 15)
    assert first_sample(replace(SOUND, first_pts_90k=0, frame_samples=1024), before) == before[1] + 1024
    assert first_sample(replace(SOUND, first_pts_90k=1_000, frame_samples=1024), before) == round((PTS_MODULUS + 1_000) * 8 / 15)
    assert first_sample(replace(SOUND, first_pts_90k=15)) == 8
