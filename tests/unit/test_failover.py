"""Which source is relayed: the laws of failover, over random histories."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hlsrelay.desk import Choice
from hlsrelay.failover import Standing, considered, primary_seen, progressed, wanted
from tests.playlists import stream

STREAM = replace(stream("https://a/x"), backups=("https://b/x", "https://c/x"))


def test_a_silent_source_is_left_for_the_next_and_round_again() -> None:
    standing = wanted(None, STREAM, 0.0)
    seen = [standing.current]
    for now_s in range(1, 40):
        standing = considered(standing, 10.0, float(now_s))
        if standing.current != seen[-1]:
            seen.append(standing.current)
    assert seen == ["https://a/x", "https://b/x", "https://c/x", "https://a/x"]


def test_a_source_that_brings_something_stays() -> None:
    standing = wanted(None, STREAM, 0.0)
    for now_s in range(0, 400, 5):
        standing = considered(progressed(standing, float(now_s)), 10.0, now_s + 4.0)
    assert standing.index == 0


def test_an_only_source_is_never_left() -> None:
    assert considered(wanted(None, stream(), 0.0), 10.0, 1e6).index == 0


def test_what_was_relayed_before_a_restart_is_gone_on_with() -> None:
    assert wanted(None, STREAM, 0.0, last="https://b/x").current == "https://b/x"
    assert wanted(None, STREAM, 0.0, last="https://gone/x").current == "https://a/x"


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=200))
def test_the_primary_is_taken_back_only_after_it_moved_on_unbroken_for_the_hold_time(looks: list[tuple[bool, bool]]) -> None:
    standing = replace(wanted(None, STREAM, 0.0), index=1)
    newest, well_since_s, now_s = 0, None, 0.0
    for answers, moves in looks:
        now_s += 4.0
        newest += moves
        standing = primary_seen(standing, str(newest) if answers else None, 12.0, 40.0, now_s)
        if not answers:
            well_since_s = None
        elif well_since_s is None:
            well_since_s = now_s
        if standing.index == 0:
            assert well_since_s is not None
            assert now_s - well_since_s >= 40.0
            return


def test_a_primary_that_is_well_is_taken_back() -> None:
    standing = replace(wanted(None, STREAM, 0.0), index=1)
    for turn in range(12):
        standing = primary_seen(standing, str(turn), 12.0, 40.0, turn * 4.0)
    assert standing.index == 0


def returns(standing: Standing, relayed_s: float, silent_s: float = 12.0) -> tuple[float, Standing]:
    """Let the primary be well until it is taken back, and silent once it was relayed for *relayed_s*; returns what it was held for."""
    began_s = now_s = standing.progressed_s
    while standing.index:
        now_s += 4.0
        standing = primary_seen(progressed(standing, now_s), str(now_s), 12.0, 40.0, now_s)
    held_s = now_s - began_s
    standing = progressed(standing, now_s + relayed_s)
    return held_s, considered(standing, silent_s, now_s + relayed_s + silent_s)


def test_a_return_that_does_not_last_doubles_the_hold_time_up_to_an_hour_and_one_that_does_makes_it_the_usual_one_again() -> None:
    standing = considered(wanted(None, STREAM, 0.0), 12.0, 12.0)
    held: list[float] = []
    for relayed_s in (*[100.0] * 9, 3600.0, 100.0, 100.0):
        held_s, standing = returns(standing, relayed_s)
        held.append(held_s)
    usual, first_two_looks = 40.0, 8.0
    expected = [usual * factor for factor in (1, 2, 4, 8, 16, 32, 64)] + [3600.0] * 3 + [usual, 2 * usual]
    assert held == [one + first_two_looks for one in expected]


def test_a_primary_that_is_relayed_again_because_the_backups_are_silent_too_has_not_failed_a_return() -> None:
    standing = wanted(None, STREAM, 0.0)
    for now_s in range(12, 12 * 31, 12):
        standing = considered(standing, 12.0, float(now_s))
    assert (standing.index, standing.failed) == (0, 0)


# Histories of three sources, each well or not from turn to turn, relayed as hlsrelay.desk does: looked at, left, taken back.

PATIENCE_S = 12.0
HOLD_S = 40.0
WELL = st.tuples(st.booleans(), st.booleans(), st.booleans())
TURNS = st.lists(st.tuples(st.integers(1, 40), st.sampled_from((1.0, 2.0, 4.0)), WELL), min_size=1, max_size=40)


@dataclass
class Watch:
    """What was relayed when: the moves, and how each source was."""

    standing: Standing = field(default_factory=lambda: wanted(None, STREAM, 0.0))
    now_s: float = 0.0
    newest: list[int] = field(default_factory=lambda: [0, 0, 0])
    moves: list[tuple[float, int, int]] = field(default_factory=list)
    brought_s: float = 0.0
    """When the current source brought something, or was chosen."""
    unwell_s: float = 0.0
    """When the primary was unwell last, or not looked at because it was relayed."""

    def turn(self, pace_s: float, well: tuple[bool, ...]) -> None:
        """One turn: some time goes by, sources that are well bring something, and we look."""
        self.now_s += pace_s
        for index, one in enumerate(well):
            self.newest[index] += one
        before = self.standing.index
        if well[before]:
            self._took(progressed(self.standing, self.now_s))
            self.brought_s = self.now_s
        self._took(considered(self.standing, PATIENCE_S, self.now_s))
        if not well[0] or before == 0:
            self.unwell_s = self.now_s
        if before and self.standing.index == before:
            self._took(primary_seen(self.standing, str(self.newest[0]) if well[0] else None, PATIENCE_S, HOLD_S, self.now_s))

    def _took(self, standing: Standing) -> None:
        if standing.index != self.standing.index:
            self.moves.append((self.now_s, self.standing.index, standing.index))
            left_in_time = self.now_s - self.brought_s >= PATIENCE_S
            taken_back = standing.index == 0 and self.now_s - self.unwell_s >= HOLD_S
            assert left_in_time or taken_back, (
                "left though neither was it silent for its whole stall time nor the primary well for the hold time"
            )
            self.brought_s = self.now_s
        self.standing = standing


def played(turns: list[tuple[int, float, tuple[bool, ...]]]) -> Watch:
    watch = Watch()
    for times, pace_s, well in turns:
        for _ in range(times):
            watch.turn(pace_s, well)
    return watch


@settings(max_examples=500)
@given(TURNS)
def test_a_source_is_left_only_for_its_own_silence_or_for_a_primary_that_is_well(turns: list[tuple[int, float, tuple[bool, ...]]]) -> None:
    watch = played(turns)
    for (before_s, _, _), (after_s, _, _) in pairwise(watch.moves):
        assert after_s - before_s >= PATIENCE_S


@settings(max_examples=500)
@given(TURNS, st.integers(1, 2))
def test_with_one_backup_that_is_always_well_there_are_no_more_than_one_round_and_a_way_back_in_a_hold_time(
    turns: list[tuple[int, float, tuple[bool, ...]]], healthy: int
) -> None:
    watch = played(
        [(times, pace_s, (well[0], *(one or index == healthy for index, one in enumerate(well[1:], 1)))) for times, pace_s, well in turns]
    )
    for index, (since_s, _, _) in enumerate(watch.moves):
        assert sum(when < since_s + HOLD_S for when, _, _ in watch.moves[index:]) <= 3
    backs = [when for when, _, to in watch.moves if to == 0]
    assert all(after_s - before_s > HOLD_S for before_s, after_s in pairwise(backs))


@given(st.integers(1, 9), st.integers(1, 200))
def test_a_primary_that_comes_and_goes_faster_than_the_hold_time_never_gets_the_stream_back(well_for: int, rounds: int) -> None:
    watch = played([(4, 4.0, (False, True, True)), *([(well_for, 4.0, (True, True, True)), (1, 4.0, (False, True, True))] * rounds)])
    assert [(before, after) for _, before, after in watch.moves] == [(0, 1)]


@given(TURNS)
def test_whatever_happened_a_primary_that_stays_well_is_relayed_in_the_end(turns: list[tuple[int, float, tuple[bool, ...]]]) -> None:
    watch = played([*turns, (30, 4.0, (True, False, False))])
    assert watch.standing.index == 0


def test_what_the_operator_changes_is_heeded_at_once() -> None:
    tools: Any = SimpleNamespace(control=SimpleNamespace(stream=STREAM), clock=SimpleNamespace(monotonic_s=lambda: 0.0))
    choice = Choice(tools)
    assert choice.stream.source == choice.standing.current == "https://a/x"
    tools.control.stream = replace(STREAM, source="https://c/x", backups=())
    assert choice.stream.source == choice.standing.current == "https://c/x"
