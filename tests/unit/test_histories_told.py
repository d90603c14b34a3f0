"""Histories that once broke a law, made small: what there was to know, and what no relay could have known (test_histories)."""

from __future__ import annotations

import pytest

from tests.histories import Event
from tests.oracle import lawful, play
from tests.world import Habits

_SHORT = (2.0,)
_MIXED = (4.0, 2.0, 3.0)
History = tuple[Habits, list[tuple[str, int, int]], int]
"""What a source is like, what happens, and every how many-th fetch of a digest fails (0: none)."""
NOTHING_TOLD = "nothing told it from going on"
UNTOLD: dict[str, History] = {
    "a successor inside a hole that short segments explain": (
        Habits(1, durations=_MIXED),
        [("freeze", 3, 0), ("renumber", 0, 9), ("kill", 1, 0)],
        0,
    ),
    "what is due by number and time, after our last under another number": (
        Habits(2, first=1, pdt="all", other_shift=-50, other_lag=2),
        [
            ("switch", 0, 0),
            ("origins", 0, 1),
            ("wrong", 0, 1),
            ("wrong", 0, 0),
            ("switch", 0, 1),
            ("switch", 0, 0),
            ("hole", 0, 3),
        ],
        3,
    ),
}
"""What broke no law that a relay could have known of."""

TOLD: dict[str, History] = {
    "another encoder's, due by number and time": (
        Habits(1, pdt="all", durations=_MIXED, other_shift=0),
        [("wrong", 3, 1), ("loads", 5, 10), ("switch", 1, 1), ("restart", 3, 25), ("switch", 1, 1), ("restart", 4, 10)],
        0,
    ),
    "what is due by number and time, after another name for our last": (
        Habits(1, pdt="some", durations=_SHORT, other_shift=3, other_lag=2),
        [("duplicate", 0, 1), ("origins", 1, 0)],
        0,
    ),
    "an edge that is behind, after a window that shrank": (Habits(60), [("hole", 0, 1), ("stale", 7, 2)], 0),
    "names that are used in rounds, after a hole": (
        Habits(60, names="round", durations=_SHORT),
        [("fail", 0, 3), ("fail", 8, 1), ("stall", 4, 1), ("stall", 3, 2), ("hole", 2, 0)],
        0,
    ),
    "an edge that is behind after a restart, under names of long before": (
        Habits(1, other_names=True, other_lag=1),
        [("stale", 0, 7), ("switch", 0, 1), ("restart", 0, 0), ("stale", 0, 1), ("kill", 0, 7), ("stale", 2, 2)],
        0,
    ),
    "an edge that is behind, its whole window of before ours": (Habits(60), [("end", 0, 1), ("stale", 1, 1), ("stale", 6, 2)], 0),
    "an edge that is behind, listed in doubt while origins took turns": (
        Habits(1, other_lag=5),
        [("origins", 0, 3), ("flap", 0, 1), ("stale", 6, 2)],
        0,
    ),
    "an origin that is behind, listed in doubt before the numbers changed": (
        Habits(1, other_lag=5),
        [("restart", 4, 0), ("end", 0, 0), ("switch", 0, 1), ("hole", 7, 1), ("origins", 0, 3)],
        0,
    ),
    "an origin that is behind, whose run so far went by": (
        Habits(1, names="round", durations=_SHORT, other_names=True, other_shift=0, other_lag=5),
        [("origins", 0, 17), ("stall", 8, 3), ("switch", 0, 0)],
        3,
    ),
    "an origin that is behind, with numbers of just before ours": (
        Habits(1, names="round", durations=_SHORT, other_names=True, other_shift=0, other_lag=5),
        [("origins", 0, 17), ("stall", 8, 3), ("switch", 1, 1), ("loads", 0, 4)],
        3,
    ),
    "a window that reaches back to before the generation began": (
        Habits(60, other_lag=1),
        [("switch", 0, 0), ("outage", 0, 1), ("restart", 3, 2), ("stale", 1, 0)],
        0,
    ),
    "what goes on from an earlier generation, behind": (
        Habits(60, other_lag=1),
        [("switch", 0, 0), ("outage", 0, 12), ("restart", 3, 6), ("stale", 2, 2)],
        0,
    ),
    "what went by, shown again after a long silence": (
        Habits(60, names="round", other_lag=1),
        [("switch", 0, 0), ("outage", 2, 98), ("restart", 3, 0), ("restart", 0, 9), ("stale", 2, 2)],
        0,
    ),
    "names that went by under other numbers": (
        Habits(2, durations=_SHORT, other_shift=0, other_lag=5),
        [("stale", 0, 3), ("freeze", 0, 0), ("renumber", 5, 2), ("cut", 1, 2), ("switch", 0, 0)],
        0,
    ),
    "an edge of before a restart that nothing told": (
        Habits(2, durations=_SHORT, other_lag=1),
        [("switch", 0, 1), ("restart", 3, 2), ("stale", 6, 2)],
        0,
    ),
    "a hole whose numbers a playlist in doubt has listed": (
        Habits(2, durations=_SHORT, other_lag=1),
        [
            ("switch", 0, 2),
            ("origins", 1, 1),
            ("fail", 0, 2),
            ("origins", 1, 2),
            ("wrong", 0, 2),
            ("duplicate", 0, 1),
            ("wrong", 3, 1),
            ("stale", 7, 1),
        ],
        3,
    ),
    "a hole whose numbers another origin has listed, and a successor": (
        Habits(1, first=1, durations=_MIXED, other_shift=-3, other_lag=2),
        [("hole", 1, 2), ("stall", 0, 2), ("stale", 1, 2), ("origins", 0, 19), ("kill", 3, 9)],
        0,
    ),
    "a window that shrinks": (Habits(6, names="run"), [("restart", 0, 0), ("hole", 3, 7)], 0),
    "a successor of what was listed with more": (Habits(6, durations=_SHORT), [("end", 0, 1), ("freeze", 2, 0), ("kill", 5, 0)], 0),
    "a successor after a cut": (Habits(6), [("cut", 0, 1), ("gap", 0, 3), ("kill", 5, 0), ("restart", 3, 4)], 0),
    "a successor after numbers that changed": (Habits(2), [("wrong", 0, 0), ("fail", 1, 3), ("renumber", 2, 2), ("kill", 2, 3)], 0),
    "a restart that is now known, now in doubt": (
        Habits(1, pdt="all", durations=_SHORT),
        [("flap", 1, 2), ("loads", 0, 0), ("restart", 0, 0)],
        0,
    ),
}
"""What once broke a law, by what tells; made small."""
BESIDES = {"an origin that is behind, listed in doubt before the numbers changed", "an edge of before a restart that nothing told"}
"""What of these has, besides, one thing that nothing told."""


@pytest.mark.parametrize("name", [*UNTOLD, *TOLD])
def test_what_there_was_to_know_is_made_use_of_and_the_rest_is_counted(name: str) -> None:
    source, happens, failing_fetches = (UNTOLD | TOLD)[name]
    played = play(source, [Event(*one) for one in happens], failing_fetches)
    lawful(played)
    assert played.verdict.counts[NOTHING_TOLD] == (name in UNTOLD) + (name in BESIDES)
