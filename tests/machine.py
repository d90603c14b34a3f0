"""A machine in simulated time that a Schedule's jobs run on: so many cores, shared by the jobs that run, each of which can use so many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hlsrelay.scheduling import Grant, Schedule, Work

STEP_S = 0.05
LADDER = {"720p": 0.34, "480p": 0.19, "360p": 0.1, "audio": 0.0}
"""A usual ladder's cost by rung, in CPU seconds per second of media; decoding is DECODE."""
DECODE = 0.15


@dataclass
class Channel:
    """A stream that has a segment of *duration_s* to be made again and again, from *begins_s* to *ends_s*."""

    name: str
    begins_s: float = 0.0
    ends_s: float = float("inf")
    duration_s: float = 4.0
    ladder: Mapping[str, float] = field(default_factory=lambda: LADDER)
    dearer: float = 1.0
    """By how much its jobs cost more than is guessed."""
    at_once: int = 1
    """So many segments there are at once when it begins."""
    number: int = 0

    def next_s(self) -> float:
        return self.begins_s + max(0, self.number + 1 - self.at_once) * self.duration_s


@dataclass(frozen=True)
class Answer:
    """What came of a segment that was there at *ready_s*: the rungs made, and how long that took, as a part of the target duration."""

    ready_s: float
    at_s: float
    made: frozenset[str]
    took: float


class Machine:
    """Runs what the schedule grants. *cores* and *parallel* (the cores that one job can use) may be changed meanwhile."""

    def __init__(self, slots: int = 2, cores: float = 2.0, parallel: float = 1.75) -> None:
        self.schedule = Schedule(slots, math.ceil(cores))
        self.cores, self.parallel = cores, parallel
        self.now_s = 0.0
        self.answers: dict[str, list[Answer]] = {}
        self._open: list[Work] = []
        self._left: dict[Work, tuple[Grant, float, float]] = {}
        self._dearer: dict[Work, float] = {}
        self._freed = False

    def run(self, until_s: float, *channels: Channel) -> None:
        """Go on until simulated time *until_s*."""
        while self.now_s < until_s:
            news = False
            for channel in channels:
                while channel.next_s() <= self.now_s < channel.ends_s:
                    self._arrives(channel)
                    news = True
            for work in [work for work in self._open if work.due_s <= self.now_s]:
                self._answered(work, frozenset())
                news = True
                if work in self._left:
                    del self._left[work]
                    self.schedule.finished(work, self.now_s, late=True)
                else:
                    self.schedule.withdraw(work, self.now_s)
            for grant in self.schedule.grants(self.now_s) if news or self._freed else ():
                if grant.kept:
                    cpu_s = grant.work.cost(grant.kept) * self._dearer[grant.work]
                    self._left[grant.work] = (grant, cpu_s, cpu_s)
                else:
                    self._answered(grant.work, frozenset())
            self._freed = False
            self.now_s += STEP_S
            share_s = min(self.parallel, self.cores / max(1, len(self._left))) * STEP_S
            for work, (grant, left_s, cpu_s) in list(self._left.items()):
                self._left[work] = (grant, left_s - share_s, cpu_s)
                if left_s <= share_s:
                    del self._left[work]
                    self._freed = True
                    self.schedule.finished(work, self.now_s, cpu_s=cpu_s)
                    self._answered(work, grant.kept)

    def _arrives(self, channel: Channel) -> None:
        costs = {name: cost * channel.duration_s for name, cost in channel.ladder.items()}
        work = self.schedule.submit(
            channel.name,
            channel.number,
            duration_s=channel.duration_s,
            target_duration_s=channel.duration_s,
            base=DECODE * channel.duration_s,
            rungs=costs,
            now_s=self.now_s,
            begins=channel.number < channel.at_once,
        )
        self._open.append(work)
        self._dearer[work] = channel.dearer
        channel.number += 1

    def _answered(self, work: Work, made: frozenset[str]) -> None:
        self._open.remove(work)
        answer = Answer(work.ready_s, self.now_s, made, (self.now_s - work.ready_s) / work.target_duration_s)
        self.answers.setdefault(work.stream, []).append(answer)

    def shares(self, name: str, rung: str, since_s: float = 0.0) -> float:
        """Return the part of a channel's segments since then that have the rung."""
        found = [rung in answer.made for answer in self.answers[name] if answer.at_s >= since_s]
        return sum(found) / len(found)

    def longest(self, since_s: float = 0.0) -> float:
        """Return the longest time until an answer to what came since then, as a part of the target duration."""
        return max(answer.took for answers in self.answers.values() for answer in answers if answer.ready_s >= since_s)
