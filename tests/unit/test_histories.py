"""The laws of hls.advance over tens of thousands of histories of a source, judged by what was really on air (tests.histories)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.histories import CALM_KINDS, Event, events, habits, loads
from tests.needs import NIGHTLY
from tests.oracle import Out, judged, lawful, play
from tests.world import Habits, Listing, World

settings.register_profile("commit", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.register_profile("nightly", deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
PROFILE = settings.get_profile("nightly" if NIGHTLY else "commit")
TIMES = 40 if NIGHTLY else 1
"""500 histories at each commit and 20,000 at night, most of them of the windows where recognising is hardest."""
WINDOWS = ((1, 130), (2, 130), (6, 140), (60, 92), (10_000, 8))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("window", "histories"), WINDOWS)
def test_nothing_is_repeated_steps_back_or_is_cut_unmarked_whatever_the_source_does(window: int, histories: int) -> None:
    most = 25 if window <= 60 else 8

    @settings(PROFILE, max_examples=histories * TIMES)
    @given(source=habits((window,)), happens=events(most=most), failing_fetches=st.sampled_from((0, 0, 3)))
    def search(source: Habits, happens: list[Event], failing_fetches: int) -> None:
        lawful(play(source, happens, failing_fetches))

    search()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("window", [1, 6, 60])
def test_a_source_that_keeps_its_timeline_is_relayed_without_a_discontinuity(window: int) -> None:
    @settings(PROFILE, max_examples=40 * TIMES)
    @given(source=habits((window,)), happens=events(CALM_KINDS))
    def search(source: Habits, happens: list[Event]) -> None:
        played = play(replace(source, path_tokens=False), happens)
        lawful(played)
        # A GAP's length is a guess where durations differ and no time tells; a date that comes after it and does not go on needs one (A12).
        assert len(played.verdict.superfluous) <= played.relay.repairs["dates_jumped"]

    search()


@settings(PROFILE, max_examples=40)
@given(source=habits((1, 2, 6)), happens=events(most=10))
def test_the_fast_snapshots_are_those_that_the_parser_gives(source: Habits, happens: list[Event]) -> None:
    fast, slow = (list(loads(World(replace(source, parsed=parsed)), happens)) for parsed in (False, True))
    for one, other in zip(fast, slow, strict=True):
        if isinstance(one, Listing) and isinstance(other, Listing):
            assert one.snapshot.segments == other.snapshot.segments
            assert one.contents == other.contents


def test_what_is_due_by_number_and_time_goes_on_though_an_edge_that_was_behind_came_between() -> None:
    source = Habits(window=1, first=1, names="number", pdt="first", durations=(4.0, 2.0, 3.0), path_tokens=True)
    played = play(source, [Event("flap", 3, 60)])
    lawful(played)
    assert played.relay.repairs["stale_playlist"] == 1
    assert not played.verdict.superfluous


def test_the_oracle_sees_what_is_wrong() -> None:
    good = play(Habits(), [Event("restart", 2, 7)])
    assert good.verdict.broken == []
    out = good.relay.out
    later = next(index for index, one in enumerate(out) if one.discontinuity) + 2

    def swapped(by: int) -> list[Out]:
        return [*out[:later], replace(out[later], content=out[later - by].content), *out[later + 1 :]]

    for broken, law in (
        ([replace(one, discontinuity=False) for one in out], "no DISCONTINUITY"),
        (swapped(1), "repeat"),
        (swapped(2), "step back"),
        (out[:later] + out[later + 1 :], "numbers"),
        ([*out[:later], replace(out[later], content=None), *out[later + 2 :]], "numbers"),
    ):
        verdict = judged(replace(good.relay, out=broken))
        assert law in verdict.broken[0]
