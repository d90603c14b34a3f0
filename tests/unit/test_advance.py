"""Numbering: the laws of hls.advance, by example and over random histories of a source."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlsrelay.hls.advance import advance, live_edge
from hlsrelay.hls.numbering import Agreed
from hlsrelay.model import Slice
from tests.playlists import Listed, Playlist, at, cut, gap, live, stream
from tests.unit.advancing import History


def test_a_new_stream_starts_near_the_live_edge_with_the_sources_numbers() -> None:
    history = History()
    history.load(live(*range(90, 100)), 0)
    assert history.numbers() == [97, 98, 99]
    assert history.cuts() == []


def test_live_edge_is_three_target_durations_or_all() -> None:
    assert len(live_edge(live(1, 2).snapshot())) == 2
    short = live(*(Listed(n, duration="1.0") for n in range(20)), target="4").snapshot()
    assert len(live_edge(short)) == 12


def test_only_what_is_new_is_numbered() -> None:
    history = History()
    for second, playlist in enumerate([live(1, 2, 3), live(1, 2, 3), live(2, 3, 4), live(4, 5, 6)]):
        history.load(playlist, second * 4)
    assert history.numbers() == [1, 2, 3, 4, 5, 6]
    assert history.cuts() == []


def test_a_small_hole_becomes_gaps_of_its_own_numbers() -> None:
    history = History()
    history.load(live(1, 2, 3), 0)
    history.load(live(6, 7), 16)
    assert history.numbers() == [1, 2, 3, 4, 5, 6, 7]
    assert [one.number for one in history.out if one.segment.gap] == [4, 5]
    assert history.repairs == ["hole_filled"]


def test_a_large_hole_is_a_discontinuity_and_numbers_go_on() -> None:
    history = History()
    history.load(live(1, 2, 3), 0)
    history.load(live(101, 102, 103), 400)
    assert history.numbers() == [1, 2, 3, 4, 5, 6]
    assert history.cuts() == [4]


def test_windows_of_one_segment_are_followed_without_a_discontinuity() -> None:
    history = History()
    for number in range(10):
        history.load(live(number), number * 4)
    assert history.numbers() == list(range(10))
    assert history.cuts() == []


def test_the_sources_discontinuities_and_gaps_go_through() -> None:
    history = History()
    history.load(live(1, 2, 3), 0)
    history.load(live(2, 3, cut(4), gap(5)), 8)
    assert history.cuts() == [4]
    assert [one.segment.gap for one in history.out] == [False] * 4 + [True]


def test_another_source_goes_on_under_the_next_number_after_a_discontinuity() -> None:
    history = History()
    history.load(live(1, 2, 3), 0)
    history.load(live(70, 71, 72), 4, source="https://backup.example/x.m3u8")
    history.load(live(71, 72, 73), 8, source="https://backup.example/x.m3u8")
    assert history.names() == ["1.ts", "2.ts", "3.ts", "72.ts", "73.ts"]
    assert history.numbers() == [1, 2, 3, 4, 5]
    assert history.cuts() == [4]


def test_another_source_is_joined_where_its_programme_time_goes_on() -> None:
    history = History()
    history.load(live(*(Listed(n, pdt=at(1000 + n * 4)) for n in (1, 2, 3))), 0)
    other = live(*(Listed(70 + n, pdt=at(1000 + n * 4)) for n in range(7)))
    history.load(other, 100, source="https://backup.example/x.m3u8")
    assert history.names() == ["1.ts", "2.ts", "3.ts", "74.ts", "75.ts", "76.ts"]
    assert history.cuts() == [4]


def test_another_source_whose_times_step_back_is_joined_without_a_hole_in_our_numbers() -> None:
    history = History()
    history.load(live(*(Listed(n, pdt=at(1000 + n * 4)) for n in (1, 2, 3))), 0)
    history.load(live(*(Listed(70 + n, pdt=at(1000 + t)) for n, t in enumerate((0, 20, 4, 24)))), 4, source="https://backup.example/x.m3u8")
    assert history.numbers() == [1, 2, 3, 4, 5, 6]


def test_another_source_that_is_behind_is_waited_for() -> None:
    history = History()
    history.load(live(*(Listed(n, pdt=at(1000 + n * 4)) for n in (1, 2, 3))), 0)
    history.load(live(*(Listed(70 + n, pdt=at(1000 + n * 4)) for n in range(4))), 4, source="https://backup.example/x.m3u8")
    history.load(live(*(Listed(70 + n, pdt=at(1000 + n * 4)) for n in range(5))), 8, source="https://backup.example/x.m3u8")
    assert history.names() == ["1.ts", "2.ts", "3.ts", "74.ts"]


def test_another_ladder_waits_for_where_the_other_tracks_begin_with_it() -> None:
    history = History()
    history.load(live(1, 2, 3), 0)
    position = history.position
    assert position is not None
    agreed = Agreed(lead=position.next_program_date_time + timedelta(seconds=4))
    step = advance(position, live(2, 3, 4, 5).snapshot(), stream(ladder="480p"), at(8), agreed=agreed)
    assert [(one.number, [rung.name for rung in one.stream.ladder], one.discontinuity) for one in step.fresh] == [
        (4, [], False),
        (5, ["480p"], True),
    ]


def test_another_ladder_is_a_discontinuity_at_the_next_segment() -> None:
    history = History()
    history.load(live(1, 2, 3), 0)
    history.load(live(2, 3, 4), 4, ladder="480p")
    history.load(live(3, 4, 5), 8, ladder="480p")
    assert history.cuts() == [4]


def test_a_successor_goes_on_from_what_was_published_only() -> None:
    history = History()
    step = history.load(live(1, 2, 3), 0)
    second = step.fresh[1]
    resumed = History(second.position)
    resumed.load(live(2, 3, 4), 4)
    assert resumed.numbers() == [3, 4]
    assert resumed.cuts() == []


def test_a_source_that_only_counts_anew_is_followed_without_a_repeat_or_a_discontinuity() -> None:
    history = History()
    history.load(live(*(Listed(n, f"x{n}.ts") for n in range(100, 106))), 0)
    history.load(live(*(Listed(n - 101, f"x{n}.ts") for n in range(101, 108))), 8)
    history.load(live(*(Listed(n - 101, f"x{n}.ts") for n in range(103, 109))), 12)
    assert history.names() == [f"x{n}.ts" for n in range(103, 109)]
    assert history.cuts() == []
    assert "renumbered" in history.repairs


def test_program_date_times_are_the_sources_or_run_on() -> None:
    history = History()
    history.load(live(Listed(1, pdt=at(1000)), 2, 3), 0)
    assert [one.program_date_time for one in history.out] == [at(1000), at(1004), at(1008)]
    without = History()
    without.load(live(1, 2, 3), 100)
    assert [one.program_date_time for one in without.out] == [at(88), at(92), at(96)]


def test_times_of_ours_stay_until_a_discontinuity_when_the_source_begins_to_tell_them() -> None:
    history = History()
    history.load(live(1, 2, 3), 100)
    history.load(live(2, 3, Listed(4, pdt=at(5000))), 104)
    history.load(live(3, 4, Listed(5, discontinuity=True, pdt=at(6000))), 108)
    assert [one.program_date_time for one in history.out] == [at(88), at(92), at(96), at(100), at(6000)]


def test_times_that_leave_no_room_for_the_missing_numbers_make_no_gaps() -> None:
    history = History()
    history.load(live(Listed(0, pdt=at(100)), Listed(1, pdt=at(104))), 0)
    history.load(live(Listed(4, "2.ts", pdt=at(108)), Listed(5, "3.ts", pdt=at(112))), 8)
    assert [one.number for one in history.out if one.segment.gap] == []


def test_more_gaps_than_the_clock_explains_are_never_made() -> None:
    history = History()
    history.load(live(0), 0)
    history.load(live(11), 8)
    assert history.numbers() == [0]


# Random histories. The source is a list of runs; each run has its own names and its own numbering, as after an encoder restart.

_EVENT = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 3)),
    st.tuples(st.just("idle"), st.integers(0, 2)),
    st.tuples(st.just("stale"), st.integers(1, 8)),
    st.tuples(st.just("restart"), st.integers(0, 3000)),
    st.tuples(st.just("silence"), st.integers(1, 40)),
    st.tuples(st.just("relay restarts"), st.integers(0, 3)),
)


@settings(max_examples=500, deadline=None)
@given(events=st.lists(_EVENT, min_size=1, max_size=60), first=st.integers(0, 10**6), window=st.integers(3, 12))
def test_the_laws_hold_over_random_histories(events: list[tuple[str, int]], first: int, window: int) -> None:
    run, start, published, now = 0, first, window, 0.0
    older: list[tuple[Playlist, bool]] = []
    history = History()

    def listed() -> Playlist:
        newest = start + published
        return live(*(Listed(n, f"run{run}-{n}.ts") for n in range(max(start, newest - window), newest)))

    def look() -> None:
        history.load(listed(), now)
        older.append((listed(), published > window))

    look()
    for event, amount in events:
        now += 4.0
        match event:
            case "publish":
                published += amount
            case "stale" if len(older) > amount:
                playlist, slid = older[-amount]
                if slid:  # an edge whose window grows is what an encoder that plays the same again is (doubt.began_anew)
                    history.load(playlist, now)
                continue
            case "restart":
                begins = next(one for one in (amount * 1000, 500 + amount * 1000) if abs(one - start - published) > 200)
                run, start, published = run + 1, begins, 1  # far from where it was: a nearer one only the media tells
            case "silence":
                now += 4.0 * amount
                continue
            case "relay restarts" if history.out and history.position:
                last = history.out[-1]
                history.position = last.position
        look()
    numbers = history.numbers()
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    relayed = [one.segment.uri for one in history.out if not one.segment.gap]
    assert len(set(relayed)) == len(relayed)
    before = ""
    for one in history.out:
        here = one.segment.uri.rpartition("/")[2].partition("-")[0] if not one.segment.gap else before
        assert one.discontinuity or not before or here == before, f"no DISCONTINUITY at {one.number}"
        before = here


@pytest.mark.parametrize("first", [2**53 - 3, 2**64 - 3, 99_999_999_999_999_999_990])
def test_numbers_that_players_cannot_count_with_begin_anew_lower_and_rise_by_one(first: int) -> None:
    history = History()
    for step in range(6):
        history.load(live(*range(first + step, first + step + 6)), step * 4.0)
    assert history.numbers() == list(range(history.numbers()[0], history.numbers()[0] + 8))
    assert history.numbers()[0] < 2**48
    assert history.cuts() == []
    assert [one.segment.sequence for one in history.out] == list(range(first + 3, first + 11))


def test_the_tags_of_a_segment_that_is_cut_stand_before_its_first_slice_only() -> None:
    snapshot = live(Listed(1), Listed(2), Listed(3)).snapshot()
    segments = (*snapshot.segments[:2], replace(snapshot.segments[2], tags=("#EXT-X-CUE-OUT:30",)))
    slices = {3: (Slice("long", 0, 188, 2.0), Slice("long", 188, 376, 2.0))}
    step = advance(None, replace(snapshot, segments=segments), stream(), at(0), slices=slices)
    assert [(one.number, one.segment.tags, one.more) for one in step.fresh[2:]] == [(3, ("#EXT-X-CUE-OUT:30",), True), (4, (), False)]
