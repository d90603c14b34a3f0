"""Histories that once broke a law, made small: what there was to know, and what no relay could have known (test_histories)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.histories import Event
from tests.oracle import Played, lawful, play
from tests.world import Habits

_SHORT = (2.0,)
_MIXED = (4.0, 2.0, 3.0)
NOTHING_TOLD = "nothing told it from going on"


@dataclass(frozen=True)
class Told:
    """What a source is like; what happens, as "kind a b" of each `Event`; every how many-th fetch of a digest fails (0: none).

    *besides*: how many things that nothing told it has besides.
    """

    source: Habits
    happens: str
    failing_fetches: int = 0
    besides: int = 0

    def play(self) -> Played:
        events = (one.split() for one in self.happens.split(", "))
        return play(self.source, [Event(kind, int(a), int(b)) for kind, a, b in events], self.failing_fetches)


# fmt: off
UNTOLD = {
    "a successor inside a hole that short segments explain": Told(Habits(1, durations=_MIXED), "freeze 3 0, renumber 0 9, kill 1 0"),
    "what is due by number and time, after our last under another number": Told(
        Habits(2, first=1, pdt="all", other_shift=-50, other_lag=2),
        "switch 0 0, origins 0 1, wrong 0 1, wrong 0 0, switch 0 1, switch 0 0, hole 0 3", failing_fetches=3),
}
"""What broke no law that a relay could have known of."""

TOLD = {
    "another encoder's, due by number and time": Told(
        Habits(1, pdt="all", durations=_MIXED, other_shift=0),
        "wrong 3 1, loads 5 10, switch 1 1, restart 3 25, switch 1 1, restart 4 10"),
    "what is due by number and time, after another name for our last": Told(
        Habits(1, pdt="some", durations=_SHORT, other_shift=3, other_lag=2),
        "duplicate 0 1, origins 1 0"),
    "an edge that is behind, after a window that shrank": Told(Habits(60), "hole 0 1, stale 7 2"),
    "names that are used in rounds, after a hole": Told(
        Habits(60, names="round", durations=_SHORT),
        "fail 0 3, fail 8 1, stall 4 1, stall 3 2, hole 2 0"),
    "an edge that is behind after a restart, under names of long before": Told(
        Habits(1, other_names=True, other_lag=1),
        "stale 0 7, switch 0 1, restart 0 0, stale 0 1, kill 0 7, stale 2 2"),
    "an edge that is behind, its whole window of before ours": Told(Habits(60), "end 0 1, stale 1 1, stale 6 2"),
    "an edge that is behind, listed in doubt while origins took turns": Told(Habits(1, other_lag=5), "origins 0 3, flap 0 1, stale 6 2"),
    "an origin that is behind, listed in doubt before the numbers changed": Told(
        Habits(1, other_lag=5),
        "restart 4 0, end 0 0, switch 0 1, hole 7 1, origins 0 3", besides=1),
    "an origin that is behind, whose run so far went by": Told(
        Habits(1, names="round", durations=_SHORT, other_names=True, other_shift=0, other_lag=5),
        "origins 0 17, stall 8 3, switch 0 0", failing_fetches=3),
    "an origin that is behind, with numbers of just before ours": Told(
        Habits(1, names="round", durations=_SHORT, other_names=True, other_shift=0, other_lag=5),
        "origins 0 17, stall 8 3, switch 1 1, loads 0 4", failing_fetches=3),
    "a window that reaches back to before the generation began": Told(
        Habits(60, other_lag=1),
        "switch 0 0, outage 0 1, restart 3 2, stale 1 0"),
    "what goes on from an earlier generation, behind": Told(Habits(60, other_lag=1), "switch 0 0, outage 0 12, restart 3 6, stale 2 2"),
    "what went by, shown again after a long silence": Told(
        Habits(60, names="round", other_lag=1),
        "switch 0 0, outage 2 98, restart 3 0, restart 0 9, stale 2 2"),
    "names that went by under other numbers": Told(
        Habits(2, durations=_SHORT, other_shift=0, other_lag=5),
        "stale 0 3, freeze 0 0, renumber 5 2, cut 1 2, switch 0 0"),
    "an edge of before a restart that nothing told": Told(
        Habits(2, durations=_SHORT, other_lag=1),
        "switch 0 1, restart 3 2, stale 6 2", besides=1),
    "a hole whose numbers a playlist in doubt has listed": Told(
        Habits(2, durations=_SHORT, other_lag=1),
        "switch 0 2, origins 1 1, fail 0 2, origins 1 2, wrong 0 2, duplicate 0 1, wrong 3 1, stale 7 1", failing_fetches=3),
    "a hole whose numbers another origin has listed, and a successor": Told(
        Habits(1, first=1, durations=_MIXED, other_shift=-3, other_lag=2),
        "hole 1 2, stall 0 2, stale 1 2, origins 0 19, kill 3 9"),
    "a window that shrinks": Told(Habits(6, names="run"), "restart 0 0, hole 3 7"),
    "a successor of what was listed with more": Told(Habits(6, durations=_SHORT), "end 0 1, freeze 2 0, kill 5 0"),
    "a successor after a cut": Told(Habits(6), "cut 0 1, gap 0 3, kill 5 0, restart 3 4"),
    "a successor after numbers that changed": Told(Habits(2), "wrong 0 0, fail 1 3, renumber 2 2, kill 2 3"),
    "a restart that is now known, now in doubt": Told(Habits(1, pdt="all", durations=_SHORT), "flap 1 2, loads 0 0, restart 0 0"),
    "another clock under our names, while every third fetch fails": Told(
        Habits(60, first=123456, pdt="some", durations=_SHORT, other_shift=0),
        "loads 1 1, restart 0 3, stall 4 2, hole 1 2, freeze 0 0, restart 0 3, hole 0 3", failing_fetches=3),
    "another name for our newest segment, among names that are ours": Told(
        Habits(60, first=57, names="round", durations=_SHORT, other_shift=0),
        "fail 6 1, restart 0 0, outage 2 81"),
    "a doubt that a failed fetch must not end": Told(
        Habits(6, first=123456, durations=_MIXED, other_names=True, other_shift=0, other_lag=2),
        "switch 0 0, wrong 0 3, end 0 45, loads 5 2, switch 0 0", failing_fetches=3),
    "a GAP in another folder under the number of what we have": Told(
        Habits(1, first=57, names="round", durations=_MIXED, other_names=True, other_shift=-50),
        "freeze 3 1, origins 0 4, switch 0 0, renumber 0 44, gap 0 0"),
    "times that are told no more": Told(
        Habits(2, pdt="some", durations=_MIXED, other_shift=0),
        "loads 0 15, end 2 2, stale 0 2, freeze 1 2, restart 4 2, restart 1 2"),
    "names in rounds behind tokens, and a fetch that fails": Told(
        Habits(6, names="round", durations=_MIXED, path_tokens=True, other_shift=0),
        "fail 0 0, loads 0 1, stale 0 3, loads 2 3, fail 4 0", failing_fetches=3),
    "the playlist in doubt under the number that is due": Told(Habits(60, other_shift=0), "restart 1 2, end 1 1, wrong 1 0"),
    "an edge that its times tell to be behind, after long silence": Told(
        Habits(2, pdt="some", other_shift=0),
        "cut 1 2, duplicate 1 2, stale 0 1, cut 0 1, stall 1 0, outage 2 7, restart 0 1, flap 0 0, stale 9 2"),
    "a hole that a predecessor filled in part": Told(
        Habits(1, durations=_SHORT, other_shift=0),
        "hole 2 0, loads 0 0, kill 1 0, renumber 3 1"),
    "another origin's segment under our number and name, and then ours": Told(
        Habits(2, other_names=True, other_shift=0),
        "restart 0 0, origins 0 2"),
    "what a digest told to be another's, going on": Told(
        Habits(1, other_shift=0),
        "end 0 2, restart 0 0, flap 0 0, renumber 0 0, end 0 1, restart 0 0"),
    "a GAP again, under another number": Told(
        Habits(2, durations=_MIXED, other_shift=3, other_lag=1),
        "duplicate 0 1, cut 2 1, loads 1 0, loads 1 1, end 0 3, stale 0 4, wrong 3 1, outage 2 4, gap 0 1, origins 1 0"),
    "more than there was the time for": Told(Habits(60, other_shift=0), "kill 3 0, restart 0 2, stale 1 0"),
    "names in rounds, which all went by, for longer than an edge is behind": Told(
        Habits(60, names="round", durations=_MIXED, other_shift=0),
        "hole 2 3, gap 1 3, wrong 1 2, freeze 0 1, cut 0 3, switch 0 1, switch 0 3, hole 5 3, gap 0 1, wrong 0 1, "
        "duplicate 0 1, fail 5 0, kill 0 4, kill 0 1", failing_fetches=3),
    "another folder where folders stay, and a fetch that fails": Told(
        Habits(1, first=57, names="round", durations=_MIXED, other_names=True, other_shift=-50),
        "freeze 3 1, origins 0 6, switch 0 0, renumber 0 44, gap 1 2, stall 4 1", failing_fetches=3),
    "an origin that is behind, met again after an outage": Told(Habits(60, other_shift=0, other_lag=5), "switch 0 1, restart 0 4"),
    "a GAP listed again by an encoder that is to be believed": Told(
        Habits(6, first=123456, names="round", other_shift=0),
        "end 0 0, outage 2 13, fail 6 1, gap 1 2, restart 0 1, restart 4 9, renumber 0 1, gap 0 0", failing_fetches=3),
    "ours again, after another's were listed as ours": Told(
        Habits(6, first=1, durations=_SHORT, other_shift=3, other_lag=5),
        "end 2 21, origins 0 1"),
    "what went by at that very time, long ago, from an edge that is far behind": Told(
        Habits(6, pdt="all", other_shift=0, other_lag=5),
        "outage 0 24, wrong 0 0, hole 6 1, switch 0 0"),
    "an edge that is behind under new folders, whose window is not the one that slides": Told(
        Habits(6, path_tokens=True, other_shift=0),
        "hole 0 2, stale 0 3, restart 4 0, stale 2 0"),
    "what was relayed under other numbers, when nothing else is left to believe": Told(
        Habits(60, other_shift=0),
        "restart 0 0, fail 1 0, end 1 2, stale 0 1, restart 0 2, kill 1 8, wrong 5 0", besides=1),
    "what is due by its time, two at once, after an edge that was behind under new folders": Told(
        Habits(2, pdt="all", durations=_MIXED, path_tokens=True, other_shift=0),
        "stale 2 1"),
    "an edge of an earlier round of names, which seems to go on from where the source counts now": Told(
        Habits(2, first=500, names="round", other_shift=0),
        "cut 0 2, gap 2 3, renumber 8 12, flap 0 0, stale 1 2, flap 7 0"),
    "a name whose time was told once, and is implied to be another now": Told(
        Habits(60, first=500, names="round", pdt="some", durations=_MIXED, other_shift=0, other_lag=5),
        "restart 1 3, origins 0 1, switch 0 0, restart 1 9, stall 0 1, fail 4 0, fail 3 0, origins 0 0"),
    "another origin that was found to be behind, after ours began anew": Told(
        Habits(2, names="round", durations=_MIXED, other_names=True, other_shift=0, other_lag=5),
        "stall 2 1, renumber 0 0, fail 0 2, wrong 0 2, gap 0 2, switch 0 3, fail 2 0, origins 1 1"),
    "what was listed while the fetch of its digest failed": Told(
        Habits(1, names="round", other_names=True, other_lag=2),
        "freeze 0 1, loads 2 3, freeze 0 3, wrong 1 2, duplicate 1 2, origins 1 6, outage 3 9, loads 1 1, origins 0 15, "
        "origins 1 1", failing_fetches=3),
    "a GAP of ours that another origin lists, which is behind": Told(
        Habits(2, first=1, durations=_SHORT, other_shift=-50, other_lag=5),
        "switch 0 0, freeze 0 0, hole 0 1, gap 2 1, origins 1 0", besides=1),
    "a hole by the numbers of an edge that was behind": Told(
        Habits(60, first=1, pdt="all", durations=_MIXED, other_shift=-50),
        "switch 0 0, stale 2 0, outage 6 27"),
    "a hole by the numbers of an edge that was behind, as some times tell": Told(
        Habits(60, first=57, pdt="some", durations=_SHORT, other_shift=-3, other_lag=5),
        "outage 8 17, switch 0 1, outage 1 68"),
    "a hole by the numbers of an edge that was behind and is no more": Told(
        Habits(60, first=1, pdt="all", other_shift=-50),
        "switch 0 0, stale 1 0, outage 3 69"),
    "what goes on, behind a GAP of ours, from an encoder's that started anew": Told(
        Habits(2, pdt="some", durations=_SHORT, other_shift=0),
        "stale 0 4, end 0 0, switch 0 1, freeze 0 1, kill 2 3, gap 0 2, end 0 3"),
    "an older time of an edge that stands still": Told(
        Habits(2, pdt="some", durations=_SHORT, other_shift=0, other_lag=5),
        "duplicate 0 1, stall 2 1, freeze 0 0, outage 2 1, cut 1 1, wrong 1 2, end 2 5, stall 9 1, switch 1 1, gap 0 2, "
        "hole 6 1", besides=1),
    "what goes on from what another origin lists under our numbers": Told(
        Habits(2, durations=_MIXED, other_shift=3, other_lag=2),
        "restart 4 0, origins 1 1"),
    "what goes on from an encoder's that started anew under our numbers": Told(
        Habits(2, first=1, durations=_SHORT, other_shift=0),
        "restart 1 1, gap 1 1, stall 0 0, restart 0 1, stale 5 0"),
    "names that are used again, and before them what was relayed": Told(
        Habits(2, first=500, names="round", durations=_MIXED, other_shift=0),
        "duplicate 0 1, gap 1 2, freeze 2 0, stall 0 1, restart 1 0, fail 0 1, fail 2 0, fail 2 3, renumber 9 12, flap 9 0"),
    "names in rounds whose digests differ, and more after them": Told(
        Habits(60, names="round", other_shift=0),
        "hole 5 1, duplicate 0 1, renumber 0 0, hole 0 0"),
    "a GAP under our last number, of an encoder that started anew and goes on when it is due": Told(
        Habits(6, pdt="first", durations=_SHORT, other_shift=0),
        "duplicate 1 1, renumber 0 3, gap 0 0, restart 3 0"),
    "what was listed while no digest could be had": Told(
        Habits(2, durations=_MIXED, path_tokens=True, other_shift=0),
        "hole 2 2, fail 4 1, restart 0 2, gap 1 1, flap 6 0", failing_fetches=3),
    "names in rounds that an outage took away": Told(
        Habits(60, names="round", durations=_MIXED, other_shift=0),
        "renumber 0 1, renumber 0 3, wrong 1 2, end 1 2, fail 6 3, renumber 1 2, outage 2 48, freeze 8 0, hole 6 0"),
    "another under our last number, beside one of ours, and a hole after it": Told(
        Habits(2, durations=_SHORT, other_shift=0, other_lag=1),
        "switch 0 0, hole 1 1, end 2 73, stale 1 2", besides=1),
    "another name for what a predecessor saw after its last and a successor no longer got": Told(
        Habits(2, durations=_MIXED, other_shift=-3, other_lag=1),
        "origins 0 0, switch 0 0, end 0 2, outage 0 7, end 0 11, kill 4 1, restart 1 0, kill 2 1, switch 0 1"),
    "a restarted encoder's that was listed and held back, from an origin that is behind": Told(
        Habits(2, first=1, other_shift=-50, other_lag=5),
        "restart 0 5, freeze 1 2, origins 0 2", failing_fetches=3, besides=1),
    "times that are told of what was relayed before any was": Told(
        Habits(6, pdt="some", other_shift=0),
        "restart 0 0, kill 3 1, stale 4 0"),
    "what slid on from an edge that was behind and listed our newest": Told(
        Habits(6, durations=_MIXED, other_shift=0),
        "stale 1 20, fail 4 0"),
    "names in rounds behind a GAP, while the fetch of a digest fails": Told(
        Habits(2, names="round", path_tokens=True, other_shift=0),
        "loads 0 0, loads 0 0, loads 0 1, loads 0 1, gap 0 0, loads 0 1, loads 0 0", failing_fetches=3),
    "times of just before what went by unrelayed": Told(
        Habits(6, names="run", pdt="all", other_shift=0),
        "end 0 1, hole 0 0, outage 1 88, hole 6 1, stale 8 2"),
    "the name of our newest, whose content can't be had just then, after an outage": Told(
        Habits(60, durations=_MIXED, other_names=False, other_shift=0),
        "switch 0 92, loads 0 95, wrong 0 57, wrong 0 62, outage 3 32, outage 5 91, renumber 0 0, loads 0 72, wrong 0 0, flap 3 59, "
        "flap 5 0, outage 1 41, loads 0 0, loads 0 0, loads 0 0, loads 0 0", failing_fetches=3),
    "an edge that counts up to ours inside our window, while the fetch of a digest fails": Told(
        Habits(2, durations=_SHORT, path_tokens=True, other_lag=5),
        "switch 0 0, loads 0 3, restart 1 63", failing_fetches=3),
    "an encoder that counts up to ours with our names, and whose digests are others": Told(
        Habits(6, names="round", durations=_MIXED),
        "loads 0 0, loads 0 2, loads 2 3, fail 8 1, restart 0 57, end 0 0, wrong 0 0, loads 0 0"),
    "an encoder that counts up to ours through a hole, where nothing was relayed that a digest tells": Told(
        Habits(1), "flap 0 3, kill 6 1, restart 0 0"),
    "an edge that lists what went by before we relayed, and then ours, while a digest can't be had": Told(
        Habits(6, durations=_MIXED, other_shift=0, other_lag=5, tells_discontinuity_sequence=True),
        "switch 4 29, end 7 59, end 3 7", failing_fetches=3),
}
"""What once broke a law, by what tells."""

WINDOWS_GONE = Told(Habits(60, durations=_MIXED), "stale 0 0, outage 1 76, outage 6 8, stale 9 0")
"""A whole window slid on in an outage, and begins with a segment that is longer than most."""
# fmt: on


@pytest.mark.parametrize("name", [*UNTOLD, *TOLD])
def test_what_there_was_to_know_is_made_use_of_and_the_rest_is_counted(name: str) -> None:
    told = (UNTOLD | TOLD)[name]
    played = told.play()
    lawful(played)
    assert played.verdict.counts[NOTHING_TOLD] == (name in UNTOLD) + told.besides


def test_a_window_that_slid_on_as_the_clock_explains_costs_no_discontinuity_whatever_its_first_segments_length() -> None:
    played = WINDOWS_GONE.play()
    lawful(played)
    assert not played.verdict.superfluous
