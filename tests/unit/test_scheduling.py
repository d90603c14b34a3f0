"""Which jobs start when: no answer comes late, nobody starves, rungs go and come back. On a simulated machine; seconds are simulated."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from hlsrelay.scheduling import ALLOWANCE, LONGEST_ALLOWANCE, Grant, Schedule, Work
from tests.machine import DECODE, LADDER, STEP_S, Channel, Machine

ROUNDING_S = 1e-6
"""The machine's time is a sum of steps."""

DEMAND = DECODE + sum(LADDER.values())
"""What one stream's whole ladder needs, in cores, but for starting its jobs."""
ON_TIME = ALLOWANCE + 2 * STEP_S / 2.0


def spread(count: int, duration_s: float = 4.0) -> list[Channel]:
    """Return streams whose segments come evenly one after another."""
    return [Channel(f"s{index}", begins_s=index * duration_s / count, duration_s=duration_s) for index in range(count)]


def longest_without(machine: Machine, name: str, since_s: float) -> int:
    """Return how many segments in a row a stream had no rung with pictures at most."""
    longest = run = 0
    for answer in machine.answers[name]:
        if answer.at_s < since_s:
            continue
        run = 0 if answer.made - {"audio"} else run + 1
        longest = max(longest, run)
    return longest


def test_a_ladder_that_keeps_up_is_whole_and_waits_for_nothing() -> None:
    machine, channel = Machine(), Channel("news")
    machine.run(60, channel)
    assert all(machine.shares("news", rung) == 1 for rung in LADDER)
    assert machine.longest() < 0.55  # its own work, and no deadline


def test_under_lasting_overload_the_costliest_rungs_are_out_for_all_and_the_cheapest_stays() -> None:
    machine, channels = Machine(), spread(4)
    machine.run(240, *channels)
    for channel in channels:
        assert machine.shares(channel.name, "720p", since_s=30) < 0.05
        assert machine.shares(channel.name, "480p", since_s=120) == 1
        assert machine.shares(channel.name, "360p") == machine.shares(channel.name, "audio") == 1
    assert machine.longest() <= ON_TIME


def test_lasting_overload_does_not_make_rungs_come_and_go() -> None:
    machine, channels = Machine(), spread(4)
    ceilings = []
    for until_s in range(1, 800):
        machine.run(until_s, *channels)
        ceilings.append(machine.schedule.ceiling)
    assert sum(before != after for before, after in pairwise(ceilings[120:])) <= 6


def test_dropped_rungs_come_back_by_themselves_when_streams_stop() -> None:
    machine, channels = Machine(), spread(4)
    for channel in channels[2:]:
        channel.ends_s = 120
    machine.run(240, *channels)
    for channel in channels[:2]:
        before = [answer for answer in machine.answers[channel.name] if answer.at_s < 120]
        assert not any("720p" in answer.made for answer in before[5:])
        assert machine.shares(channel.name, "720p", since_s=160) == 1


@pytest.mark.parametrize(("slots", "cores", "parallel", "left"), [(2, 2.0, 1.75, 0.5), (4, 4.0, 1.2, 1.0), (1, 2.2, 2.2, 0.4)])
def test_cpu_that_is_taken_away_and_given_back_takes_and_gives_rungs(slots: int, cores: float, parallel: float, left: float) -> None:
    machine, channels = Machine(slots, cores, parallel), spread(2)
    machine.run(60, *channels)
    machine.cores = left
    machine.run(240, *channels)
    assert all(machine.shares(channel.name, "720p", since_s=140) < 0.2 for channel in channels)
    assert all(machine.shares(channel.name, "360p", since_s=80) > 0.3 for channel in channels), "what can be made is made, for each"
    machine.cores = cores
    machine.run(600, *channels)
    assert all(machine.shares(channel.name, "720p", since_s=500) > 0.95 for channel in channels)
    assert machine.longest() <= ON_TIME


def test_a_ladder_slower_than_real_time_keeps_up_where_there_are_slots_and_comes_late_by_a_constant_time() -> None:
    machine, channel = Machine(slots=4, cores=4, parallel=0.55), Channel("news")
    machine.run(160, channel)
    assert all(machine.shares("news", rung, since_s=60) == 1 for rung in LADDER)
    late = [answer.took for answer in machine.answers["news"] if answer.at_s > 60]
    assert 1.3 < min(late) <= max(late) <= LONGEST_ALLOWANCE
    assert max(late) - min(late) < 0.1


def test_a_ladder_slower_than_real_time_without_the_slots_loses_rungs_and_is_on_time() -> None:
    machine, channel = Machine(slots=1, cores=4, parallel=0.55), Channel("news")
    machine.run(160, channel)
    assert machine.shares("news", "720p", since_s=40) < 0.1
    assert machine.shares("news", "360p", since_s=40) == 1
    assert machine.longest(since_s=20) <= ON_TIME


def test_a_ladder_that_was_never_made_in_time_is_given_more_until_it_is() -> None:
    """Nothing is learnt of a job that is stopped: its cost is unlike any guess, and even its cheapest rung is slower than real time."""
    machine, channel = Machine(slots=4, cores=8, parallel=1.0), Channel("news", ladder={"hevc": 0.05}, dearer=6.0)
    machine.run(160, channel)
    assert machine.answers["news"][0].made == frozenset()
    assert machine.shares("news", "hevc", since_s=80) == 1


def test_what_a_stream_begins_with_is_made_whole_though_it_comes_at_once() -> None:
    machine, channel = Machine(), Channel("news", at_once=3)
    machine.run(60, channel)
    assert all(machine.shares("news", rung) == 1 for rung in LADDER)
    assert ON_TIME < machine.longest() <= LONGEST_ALLOWANCE * ALLOWANCE


@pytest.mark.parametrize("apart_s", [0.0, 0.4])
@pytest.mark.parametrize("dearer", [1.0, 3.0])
def test_streams_that_begin_together_and_ask_for_too_much_are_not_held_up(apart_s: float, dearer: float) -> None:
    machine = Machine()
    machine.run(80, *(Channel(f"s{index}", begins_s=index * apart_s, at_once=3, dearer=dearer) for index in range(4)))
    assert machine.longest() <= ON_TIME


@example(streams=3, duration_s=4.0, slots=4, cores=1.15352082481543, parallel=1.9, phase_s=0.2, dearer=1.1448033374810886, at_once=3)
@example(streams=9, duration_s=2.0, slots=2, cores=0.5, parallel=2.57, phase_s=3.97, dearer=0.93, at_once=3)
@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    streams=st.integers(3, 9),
    duration_s=st.sampled_from([2.0, 4.0, 6.0]),
    slots=st.integers(1, 4),
    cores=st.floats(0.5, 3.0),
    parallel=st.floats(0.5, 3.0),
    phase_s=st.floats(0.0, 6.0),
    dearer=st.floats(0.5, 3.0),
    at_once=st.sampled_from([1, 3]),
)
def test_overload_makes_no_answer_late_and_lets_no_stream_starve(
    streams: int, duration_s: float, slots: int, cores: float, parallel: float, phase_s: float, dearer: float, at_once: int
) -> None:
    capacity = min(cores, slots * parallel)
    machine = Machine(slots, cores, parallel)
    channels = [
        Channel(f"s{index}", begins_s=index * phase_s % duration_s, duration_s=duration_s, dearer=dearer, at_once=at_once)
        for index in range(streams)
    ]
    machine.run(50 * duration_s, *channels)
    assert machine.longest() <= LONGEST_ALLOWANCE + (2 * STEP_S + ROUNDING_S) / duration_s
    if streams * DEMAND * dearer > 1.3 * capacity:
        all_there_s = max(channel.begins_s for channel in channels)  # what came before may be late by then: nothing was too much yet
        assert machine.longest(since_s=all_there_s) <= ALLOWANCE + (2 * STEP_S + ROUNDING_S) / duration_s
    cheapest = (DECODE + LADDER["360p"]) * dearer
    if cheapest / min(parallel, cores) < 0.4:  # it can be made in time at all
        rounds = max(1.0, streams * cheapest / capacity)
        longest = max(longest_without(machine, channel.name, since_s=20 * duration_s) for channel in channels)
        assert longest <= 10 + 3 * rounds  # the first twenty segments are for learning


def submitted(schedule: Schedule, stream: str, number: int, cost: float, now_s: float = 0.0) -> Work:
    return schedule.submit(stream, number, duration_s=4, target_duration_s=math.inf, base=0.0, rungs={"x": cost}, now_s=now_s)


def granted(schedule: Schedule, now_s: float) -> list[Grant]:
    return list(schedule.grants(now_s))


@settings(max_examples=25, deadline=None)
@given(costs=st.lists(st.floats(0.2, 5.0), min_size=2, max_size=6), slots=st.integers(1, 3))
def test_streams_that_always_wait_are_served_alike_within_a_job_or_two(costs: list[float], slots: int) -> None:
    schedule = Schedule(slots)
    served = dict.fromkeys(range(len(costs)), 0.0)
    for number in range(60):
        for stream, cost in enumerate(costs):
            submitted(schedule, str(stream), number, cost)
    running: list[tuple[float, Work]] = []
    now_s = 0.0
    for _ in range(60):
        running += [(now_s + grant.work.cost(grant.kept), grant.work) for grant in granted(schedule, now_s)]
        now_s, work = min(running, key=lambda one: one[0])
        running.remove((now_s, work))
        schedule.finished(work, now_s, cpu_s=work.cost(work.rungs))
        served[int(work.stream)] += work.cost(work.rungs)
    assert max(served.values()) - min(served.values()) <= (1 + slots) * (max(costs) + 0.1) + max(costs)


def test_who_was_idle_has_no_claim_on_what_others_used_meanwhile() -> None:
    schedule = Schedule(1)
    for number in range(40):
        submitted(schedule, "busy", number, 1.0)
    order = []
    for turn in range(40):
        if turn == 20:
            for number in range(20):
                submitted(schedule, "new", number, 1.0, now_s=float(turn))
        [grant] = granted(schedule, float(turn))
        order.append(grant.work.stream)
        schedule.finished(grant.work, turn + 1.0, cpu_s=1.05)
    assert set(order[:20]) == {"busy"}
    assert 9 <= order[20:].count("busy") <= 11


def test_within_a_stream_the_oldest_segment_goes_first() -> None:
    schedule = Schedule(1)
    works = [submitted(schedule, "news", number, 1.0) for number in range(3)]
    for number, work in enumerate(works):
        assert [grant.work for grant in granted(schedule, float(number))] == [work]
        schedule.finished(work, number + 1.0, cpu_s=1.05)


def test_a_job_with_no_time_left_is_refused_and_takes_no_slot() -> None:
    schedule = Schedule(1)
    work = schedule.submit("news", 1, duration_s=4, target_duration_s=4, base=0.6, rungs=LADDER, now_s=0.0)
    assert granted(schedule, work.due_s + 0.1) == [Grant(work, frozenset())]
    later = schedule.submit("news", 2, duration_s=4, target_duration_s=4, base=0.6, rungs=LADDER, now_s=10.0)
    assert [grant.work for grant in granted(schedule, 10.0)] == [later]


def test_a_second_attempt_is_due_when_the_first_was() -> None:
    schedule = Schedule(1)
    first = schedule.submit("news", 1, duration_s=4, target_duration_s=4, base=0.6, rungs=LADDER, now_s=0.0)
    assert len(granted(schedule, 0.0)) == 1
    schedule.finished(first, 3.0, learn=False)
    again = schedule.submit("news", 1, duration_s=4, target_duration_s=4, base=0.6, rungs=LADDER, now_s=3.0, again=first)
    assert again.due_s == first.due_s
    [grant] = granted(schedule, 3.0)
    assert not grant.kept - {"audio"}, "half a second is too short for pictures"


def test_what_comes_at_once_is_due_half_a_target_duration_apart_until_there_is_overload() -> None:
    schedule = Schedule(2)

    def begun(stream: str) -> list[Work]:
        return [
            schedule.submit(stream, number, duration_s=4, target_duration_s=4, base=0.6, rungs=LADDER, now_s=0.0, begins=True)
            for number in range(3)
        ]

    news = begun("news")
    assert [work.due_s for work in news] == pytest.approx([3.4, 5.1, 6.8])
    assert [grant.work for grant in granted(schedule, 0.0)] == news[:1], "how long a job takes is not known yet"
    others = [work for stream in ("sport", "film", "music", "kids", "talk", "arts", "tests", "more", "last") for work in begun(stream)]
    list(schedule.grants(0.1))
    assert {work.due_s for work in (*news, *others)} == {3.4}


def test_a_job_that_is_late_ends_the_patience_with_those_behind_it() -> None:
    schedule = Schedule(2)
    first, second, third = (
        schedule.submit("news", number, duration_s=4, target_duration_s=4, base=0.6, rungs=LADDER, now_s=0.0, begins=True)
        for number in range(3)
    )
    for work, until_s in ((first, 1.0), (second, 5.1)):
        list(schedule.grants(until_s - 1))
        schedule.finished(work, until_s, cpu_s=1.0, late=work is second)
    assert third.due_s == pytest.approx(3.4)


def test_sound_that_is_copied_waits_for_no_slot_and_has_its_own() -> None:
    schedule = Schedule(1)
    submitted(schedule, "news", 0, 1.0)
    assert len(granted(schedule, 0.0)) == 1
    sounds = [
        schedule.submit(stream, 0, duration_s=4, target_duration_s=4, base=0.0, rungs={"audio": 0.0}, now_s=0.0)
        for stream in ("a", "b", "c")
    ]
    for expected in sounds:
        if expected is sounds[1]:
            schedule.withdraw(expected, 0.0)
            continue
        assert granted(schedule, 0.0) == [Grant(expected, frozenset({"audio"}))]
        schedule.finished(expected, 0.1, cpu_s=0.02)
    assert granted(schedule, 0.1) == []


def test_a_job_withdrawn_gives_its_slot_to_the_next() -> None:
    schedule = Schedule(1)
    works = [submitted(schedule, "news", number, 1.0) for number in range(3)]
    assert [grant.work for grant in granted(schedule, 0.0)] == [works[0]]
    schedule.withdraw(works[1], 0.0)
    schedule.withdraw(works[0], 0.5)
    assert [grant.work for grant in granted(schedule, 0.5)] == [works[2]]
