"""Learning when a source publishes, played through against sources of every kind of regularity."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from hlsrelay.phase import BUDGET, CLOSEST_S, Phase, asked, found_new, found_nothing

TARGET_S = 4.0
ROUND_TRIP_S = 0.005
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


def followed(source: Source) -> Followed:
    """Follow *source* to its end."""
    moments = source.published()
    phase, now_s, have, loads = Phase(), 10.0, 0, 0
    seen = Followed([], [])
    while have < len(moments):
        phase, loads, before = asked(phase, now_s), loads + 1, have
        while have < len(moments) and moments[have][0] <= now_s + ROUND_TRIP_S / 2:
            seen.late_s.append(now_s + ROUND_TRIP_S - moments[have][0])
            seen.loads.append(loads)
            have += 1
        if have > before:
            durations_s = tuple(duration_s for _, duration_s in moments[before:have])
            phase, due_s = found_new(phase, now_s, durations_s, min(TARGET_S, durations_s[-1]))
        else:
            phase, due_s = found_nothing(phase, now_s, TARGET_S / 2)
        assert due_s >= now_s + CLOSEST_S - 1e-9, "closer than anybody may ask"
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
