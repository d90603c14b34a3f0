"""Learning when a source publishes, played through against sources of every kind of regularity."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from hlsrelay.clock import Nudges, Pacer
from hlsrelay.model import EAGER, Polling
from hlsrelay.phase import BUDGET, CLOSEST_S, LONGEST_WAIT, SAVED, Phase, asked, found_new, found_nothing
from tests.virtual import run_virtually

TARGET_S = 4.0
ROUND_TRIP_S = 0.005
LISTED = 6
LEARNING = 30
"""Segments after which a source is known."""


@dataclass
class Source:
    """When each segment is published: on a grid that drifts, is missed, or moves, and with jitter."""

    count: int = 300
    duration_s: Callable[[int], float] = lambda _: TARGET_S
    jitter: Callable[[random.Random], float] = lambda _: 0.0
    drift: float = 0.0
    pauses_s: dict[int, float] = field(default_factory=dict)
    moves_s: dict[int, float] = field(default_factory=dict)
    together: int = 1

    def published(self) -> list[tuple[float, float]]:
        """Return, by segment, when it can be seen, and its duration."""
        rng, grid_s, moved_s, moments = random.Random(7), 11.3, 0.0, list[tuple[float, float]]()
        for index in range(self.count):
            grid_s += self.duration_s(index) * (1 + self.drift) + self.pauses_s.get(index, 0.0)
            moved_s += self.moves_s.get(index, 0.0)
            moments.append((grid_s + moved_s + self.jitter(rng), self.duration_s(index)))
        last = [min(self.count, (index // self.together + 1) * self.together) - 1 for index in range(self.count)]
        found, latest_s = [], 0.0
        for index in range(self.count):
            latest_s = max(latest_s, moments[last[index]][0])
            found.append((latest_s, moments[index][1]))
        return found


@dataclass
class Followed:
    """How a source was followed: the lateness of each segment, and the loads up to each."""

    late_s: list[float]
    loads: list[int]

    def late_of(self, share: float, since: int = LEARNING) -> float:
        known = sorted(self.late_s[since:])
        return known[int(share * (len(known) - 1))]

    @property
    def loads_a_segment(self) -> float:
        return (self.loads[-1] - self.loads[LEARNING]) / (len(self.loads) - 1 - LEARNING)


def followed(source: Source, began_s: float = 0.0, closest_s: float = CLOSEST_S, away_s: tuple[float, float] = (0.0, 0.0)) -> Followed:
    """Follow *source* to its end, from *began_s* after three of its segments were published. No load is answered between *away_s*."""
    moments = source.published()
    phase, now_s, have, loads = Phase(closest_s=closest_s), moments[2][0] + began_s, 0, 0
    target_s = max(duration_s for _, duration_s in moments)
    seen = Followed([], [])
    while have < len(moments):
        phase, loads, before = asked(phase, now_s), loads + 1, have
        if away_s[0] <= now_s < away_s[1]:
            now_s += 0.9 * target_s
            continue
        while have < len(moments) and moments[have][0] <= now_s + ROUND_TRIP_S / 2:
            seen.late_s.append(now_s + ROUND_TRIP_S - moments[have][0])
            seen.loads.append(loads)
            have += 1
        if have > before:
            durations_s = tuple(duration_s for _, duration_s in moments[before:have][-LISTED:])
            phase, due_s = found_new(phase, now_s, durations_s, min(target_s, durations_s[-1]))
        else:
            phase, due_s = found_nothing(phase, now_s, moments[max(0, have - 1)][1] / 2)
        assert due_s >= now_s + closest_s - 1e-9, "closer than anybody may ask"
        now_s = due_s
    return seen


STEADY = {
    "a clockwork": Source(),
    "segments of two seconds": Source(duration_s=lambda _: 2.0),
    "a clock that is fast": Source(drift=-0.001),
    "a clock that is slow": Source(drift=0.001),
    "two segments at a time": Source(together=2),
}
UNSTEADY = {
    "jitter of 0.2 s": Source(jitter=lambda rng: rng.uniform(-0.2, 0.2)),
    "jitter of 0.1 s, as a bell": Source(jitter=lambda rng: rng.gauss(0, 0.1)),
    "jitter and drift": Source(jitter=lambda rng: rng.uniform(-0.1, 0.1), drift=0.0005),
    "durations in a pattern": Source(duration_s=lambda index: (3.84, 4.16, 4.0)[index % 3]),
}


@pytest.mark.parametrize("kind", STEADY)
def test_a_steady_source_is_seen_within_two_gaps_of_its_publishing(kind: str) -> None:
    seen = followed(STEADY[kind])
    assert seen.late_of(0.5) <= CLOSEST_S + 2 * ROUND_TRIP_S
    assert seen.late_of(1.0) <= 2 * CLOSEST_S
    assert seen.loads_a_segment <= BUDGET


@pytest.mark.parametrize("duration_s", [1.0, 2.0, 4.0, 6.0])
def test_the_phase_is_found_in_the_first_beats_wherever_it_is_and_a_steady_source_costs_less_than_two_requests(duration_s: float) -> None:
    settled: list[float] = []
    for part in range(40):
        seen = followed(Source(count=90, duration_s=lambda _: duration_s), began_s=duration_s * (part + 0.1) / 40)
        assert seen.late_s[3] <= duration_s / 8 + 2 * ROUND_TRIP_S
        assert max(seen.late_s[5:]) <= CLOSEST_S + 2 * ROUND_TRIP_S, "from the third segment on"
        assert seen.loads[5] <= SAVED + 3 * BUDGET
        assert seen.loads_a_segment <= 1.6
        settled += seen.late_s[12:]
    assert sorted(settled)[len(settled) * 95 // 100] <= 0.05


def test_an_observer_s_own_lateness_of_some_milliseconds_does_not_cost_more_than_that() -> None:
    seen = followed(Source(jitter=lambda rng: rng.uniform(-0.02, 0.02)))
    assert seen.late_of(0.5) <= 0.05
    assert seen.late_of(0.95) <= CLOSEST_S
    assert seen.loads_a_segment <= 1.6


def test_a_single_late_publication_does_not_move_the_phase() -> None:
    seen = followed(Source(moves_s={100: 1.2, 101: -1.2}))
    assert max(seen.late_s[101:]) <= CLOSEST_S + 2 * ROUND_TRIP_S


@pytest.mark.parametrize("lasts_s", [7.0, 30.0, 40.0, 51.5, 62.5])
def test_a_source_that_could_not_be_asked_for_a_while_is_followed_as_before_afterwards(lasts_s: float) -> None:
    moments = Source().published()
    seen = followed(Source(), away_s=(moments[100][0] - 0.5, moments[100][0] + lasts_s))
    again = next(index for index in range(101, 200) if moments[index][0] > moments[100][0] + lasts_s + TARGET_S)
    assert max(seen.late_s[again:]) <= CLOSEST_S + 2 * ROUND_TRIP_S


@pytest.mark.parametrize("closest_s", [0.5, 1.0, 5.0])
def test_who_may_not_ask_often_is_not_later_than_that_and_never_closer(closest_s: float) -> None:
    seen = followed(Source(), closest_s=closest_s)
    assert seen.late_of(1.0) <= closest_s + 2 * ROUND_TRIP_S


@pytest.mark.parametrize("kind", UNSTEADY)
def test_a_source_with_jitter_stays_followed_within_the_budget(kind: str) -> None:
    seen = followed(UNSTEADY[kind])
    assert seen.late_of(0.5) <= CLOSEST_S
    assert seen.late_of(0.95) <= 0.2
    assert seen.loads_a_segment <= BUDGET


@pytest.mark.parametrize("change", [{"pauses_s": {100: 9.0}}, {"pauses_s": {100: 1.3}}, {"moves_s": {100: 1.0}}, {"moves_s": {100: -1.5}}])
def test_a_source_that_publishes_at_another_time_from_now_on_is_found_again_within_eight_beats(change: dict[str, dict[int, float]]) -> None:
    seen = followed(Source(**change))  # type: ignore[arg-type]
    assert max(seen.late_s[100:108]) <= TARGET_S / 2 + ROUND_TRIP_S
    assert max(seen.late_s[108:]) <= 2 * CLOSEST_S
    assert seen.loads_a_segment <= BUDGET


@pytest.mark.parametrize("seed", range(30))
def test_whatever_the_source_and_the_operator_do_each_load_is_due_no_closer_than_allowed_and_no_later_than_a_player_s(seed: int) -> None:
    rng = random.Random(seed)
    duration_s, jitter_s = rng.choice([0.5, 1, 2, 4, 6, 10]), rng.choice([0, 0.05, 0.2, 0.6])
    phase, now_s, grid_s = Phase(closest_s=rng.choice([0.1, 0.1, 0.5, 2, 9])), 100.0, 100.0 + rng.uniform(0, duration_s)
    next_s = grid_s
    for load in range(300):
        phase, brought = asked(phase, now_s), rng.choice([0, 3]) if load == 0 else 0
        while next_s <= now_s:
            brought += 1
            grid_s += duration_s * rng.choice([1, 1, 1, 0.5, 1.3]) + (rng.uniform(0, 5 * duration_s) if rng.random() < 0.01 else 0)
            next_s = grid_s + rng.uniform(-jitter_s, jitter_s)
        if rng.random() < 0.03:  # it failed, and so did others
            now_s += rng.choice([0.5, 1, 5]) * duration_s + phase.closest_s
            continue
        if rng.random() < 0.01:
            phase = replace(phase, closest_s=rng.choice([0.1, 0.5, 2]))
        if brought:
            phase, due_s = found_new(phase, now_s, (duration_s,) * brought, duration_s)
        else:
            phase, due_s = found_nothing(phase, now_s, duration_s / 2)
        assert now_s + phase.closest_s - 1e-9 <= due_s <= now_s + max(LONGEST_WAIT * duration_s, 2 * phase.closest_s)
        now_s = (due_s if rng.random() < 0.95 else rng.uniform(now_s + phase.closest_s, due_s)) + rng.choice([0, 0, 0.003, 0.03])


def test_no_regularity_at_all_costs_no_more_than_the_budget_and_is_not_later_than_by_a_target_duration() -> None:
    rng = random.Random(3)
    durations_s = [rng.uniform(2.0, TARGET_S) for _ in range(300)]
    seen = followed(Source(duration_s=lambda index: durations_s[index], jitter=lambda rng: rng.uniform(-0.5, 0.5)))
    assert seen.late_of(0.5) <= TARGET_S / 4
    assert seen.late_of(1.0) <= TARGET_S
    assert seen.loads_a_segment <= BUDGET


def test_a_source_that_stops_is_asked_ever_less_often_down_to_what_the_rfc_says() -> None:
    phase, now_s, waits_s = Phase(), 0.0, []
    for beat in range(20):
        phase, now_s = found_new(asked(phase, now_s), now_s, (TARGET_S,), TARGET_S)
        phase, now_s = found_nothing(asked(phase, now_s), now_s, TARGET_S / 2) if not beat % 3 else (phase, now_s)
    for _ in range(30):
        phase, due_s = found_nothing(asked(phase, now_s), now_s, TARGET_S / 2)
        waits_s.append(due_s - now_s)
        now_s = due_s
    assert waits_s[-1] == pytest.approx(TARGET_S / 2)
    assert all(later >= before - 1e-9 for before, later in pairwise(waits_s[1:]))


def test_a_pacer_keeps_to_the_pause_that_is_wished_now_and_not_before() -> None:
    async def waited_s(*wished: Polling) -> float:
        clock: Any = SimpleNamespace(monotonic_s=asyncio.get_running_loop().time)
        pacer = Pacer(clock, Nudges())
        began_s = await anext(pacer)
        for polling in wished:
            before_s = began_s
            pacer.loaded(fresh_s=(), listed=LISTED, target_duration_s=TARGET_S, newest_s=TARGET_S, polling=polling)
            assert pacer._phase.closest_s == polling.closest_s  # how near it comes to a publication follows from that
            began_s = await anext(pacer)
        return began_s - before_s

    slow = Polling(closest_s=0.9)
    assert run_virtually(waited_s(slow)) == pytest.approx(0.9)
    for wished in ((EAGER,), (slow, EAGER)):
        assert run_virtually(waited_s(*wished)) == pytest.approx(TARGET_S / 8)
