"""Histories that once broke a law, made small: what there was to know, and what no relay could have known (test_histories)."""

from __future__ import annotations

import pytest

from tests.histories import Event, Habits
from tests.unit.test_histories import lawful, play

_MIXED = (4.0, 2.0, 3.0)
UNTOLD: dict[str, tuple[Habits, list[tuple[str, int, int]], int]] = {
    "a successor inside a hole that short segments explain": (
        Habits(1, durations=_MIXED),
        [("freeze", 3, 0), ("renumber", 0, 9), ("kill", 1, 0)],
        0,
    ),
    "another encoder's, due by number and time": (
        Habits(1, pdt="all", durations=_MIXED, other_shift=0),
        [("wrong", 3, 1), ("loads", 5, 10), ("switch", 1, 1), ("restart", 3, 25), ("switch", 1, 1), ("restart", 4, 10)],
        0,
    ),
}
"""What broke no law that a relay could have known of."""


@pytest.mark.parametrize(("source", "happens", "failing_fetches"), UNTOLD.values(), ids=UNTOLD.keys())
def test_what_nothing_told_is_counted(source: Habits, happens: list[tuple[str, int, int]], failing_fetches: int) -> None:
    played = play(source, [Event(*one) for one in happens], failing_fetches)
    lawful(played)
    assert played.verdict.counts["nothing told it from going on"]
