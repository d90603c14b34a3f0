"""Which encode job starts when, and with which rungs, so that a ladder never holds pass-through up. Pure: the time is told.

Laws:
- A segment is published at the latest ALLOWANCE of a target duration after it could be without a ladder; what is not made then is a GAP.
- There are two exceptions, and overload ends both at once: they hold only while all slots together have room for every rung of all
  streams. A ladder that takes longer than that by itself, and keeps up because jobs of consecutive segments run side by side, holds
  its stream back by a constant time, LONGEST_ALLOWANCE target durations at most. It is reckoned at the best speed the stream was ever
  made with: contention never lengthens it. And the segments that a stream begins with come all at once: each is due when it would be
  if they came half a target duration after one another.
- Between streams the least served goes first, within a stream the oldest segment (start-time fair queueing, Goyal and others, 1996). Who
  was idle has no claim on what others used meanwhile, and no debt. A slot is kept free, for a segment's time at most, for a stream that
  went without and is less served than the one that waits: else whoever comes at the right moment would always win.
- What all streams ask for together is held against what the slots give together: where it is too much, the costliest rungs are left out,
  of all streams alike and for as long as it lasts, rather than any rung now and then. The cheapest rung of a stream is never planned out.
- A job starts where it and those that run have the time for it; else it waits for them, and makes do with fewer rungs. Of a stream whose
  speed is not known yet one job runs at a time.
- What decodes nothing (copied audio) costs nothing worth planning: it waits for no slot, and is made though there is no time for pictures.
- What the plan leaves is held against the time that is left when the job starts, and the costliest rungs are dropped until the job fits.
  After a job that was late the next one has a rung less than would fit, until one is made: others come while it runs.
- Rungs come back one hold after there seems to be room. A return that did not last doubles the hold: lasting overload does not flap.

How dear a rung is, is guessed from its pixels and learnt from each job that ends: the CPU time for a unit of the guess, by stream; what
all slots draw together when all are busy; how much longer than these two say a stream's jobs take. Jobs with fewer rungs teach it too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

ALLOWANCE = 0.85
"""Part of a target duration: the rest is for publishing, and for a busy event loop."""
LONGEST_ALLOWANCE = 2.0
"""Target durations; players hold three."""
AT_ONCE = 3
"""So many segments a stream begins with (RFC 8216 6.3.3), and nobody watches it yet."""
START = 0.05
"""CPU seconds of a job before it decodes anything."""
SAFE, SAFE_TO_ADD = 0.95, 0.85
"""A set of rungs is tried where it is reckoned to need less than this part of the time left; one that is more than the last, less."""
BUSIEST, PLANNED = 0.9, 0.82
"""Parts of the capacity: rungs are left out above the first until the second holds, and come back where the second would hold."""
SHORTEST_HOLD_S, LONGEST_HOLD_S = 10.0, 120.0
FEWEST_GOOD, MOST_GOOD = 4, 256
"""Jobs that went well after which a stream tries a set of rungs more than is reckoned to fit; doubled each time that was wrong."""
MOST_MISSED = 2
"""What was late so often in a row is tried, though it seems to take too long, only once in two to the power of this segments."""
MOST_CLAIM = 4
"""So many of its jobs a stream that went without may catch up on, against the one served most."""
ACTIVE_TARGET_DURATIONS = 3.0
"""A stream without a new segment for longer is idle."""
FORGOTTEN_S = 600.0

_EVERYTHING = math.inf


@dataclass(slots=True, eq=False)
class Work:
    """A job to be done until *due_s*. Costs are guesses, in CPU seconds of a usual core: *base* of decoding, *rungs* of each by name.

    Overload may bring *due_s* forward, to *usual_s* at the soonest, while the job waits and while it runs.
    """

    stream: str
    number: int
    duration_s: float
    target_duration_s: float
    base: float
    rungs: Mapping[str, float]
    ready_s: float
    due_s: float
    usual_s: float = math.inf

    def cost(self, names: Iterable[str]) -> float:
        """Return what making *names* costs; what costs nothing itself (copied audio) needs no decoding."""
        rungs = sum(self.rungs[name] for name in names)
        return START + (self.base + rungs if rungs else 0.0)


@dataclass(frozen=True, slots=True)
class Grant:
    """What may start now: *work*, with the rungs *kept*; none of them: there is no time left to make any."""

    work: Work
    kept: frozenset[str]


@dataclass(slots=True, eq=False)
class _Known:
    """What is known of a stream. *served* is the start tag of its next job, *slowness* by how much its jobs take longer than reckoned.

    *hungry*: its last segment has no picture but the source's. *missed* counts jobs in a row that were late, *refused* those that were
    not even tried since.
    """

    newest: Work
    served: float
    waiting: deque[Work] = field(default_factory=deque)
    cpu_per_cost: float | None = None
    best_speed: float | None = None
    slowness: float = 1.0
    last_cost: float = 0.0
    stretch: float = 1.0
    good: int = 0
    good_needed: int = FEWEST_GOOD
    refused: int = 0
    missed: int = 0
    hungry: bool = False


@dataclass(slots=True)
class _Run:
    began_s: float
    busy_before: float
    kept: frozenset[str]
    charged: float
    left_cpu_s: float
    daring: bool
    alone: bool = True
    """Whether nobody waited for it although slots were free: else the machine gave all it has."""


class Schedule:
    """Decides for *slots* that jobs run in, on so many *cores*. Whoever runs jobs tells it what comes, and how each ended."""

    def __init__(self, slots: int, cores: int | None = None) -> None:
        self.slots = slots
        self.ceiling = _EVERYTHING
        """The dearest rung made at present, in cost per second of media."""
        self._streams: dict[str, _Known] = {}
        self._running: dict[Work, _Run] = {}
        self._free: deque[Work] = deque()
        self._free_running: set[Work] = set()
        self._capacity = self._proven = float(min(slots, cores or slots))
        self._cpu_per_cost = 1.0
        self._best_speed = 0.0
        self._served = 0.0
        self._busy, self._busy_at_s = 0.0, 0.0
        self._hold_s = SHORTEST_HOLD_S
        self._room_since_s: float | None = None
        self._raised_s = float("-inf")
        self._active = 0

    def submit(
        self,
        stream: str,
        number: int,
        *,
        duration_s: float,
        target_duration_s: float,
        base: float,
        rungs: Mapping[str, float],
        now_s: float,
        begins: bool = False,
        again: Work | None = None,
    ) -> Work:
        """Put a job in line. It is due as the laws say; where it goes on with *again*, which is done with, when that was.

        *begins*: its segment is one of those that the stream begins with.
        """
        old = [name for name, one in self._streams.items() if now_s - one.newest.ready_s > FORGOTTEN_S]
        for name in old:
            if not self._unfinished(name):
                del self._streams[name]
        work = Work(stream, number, max(duration_s, 0.1), target_duration_s, base, rungs, now_s, math.inf)
        if not any(rungs.values()):
            work.due_s = again.due_s if again else now_s + ALLOWANCE * target_duration_s
            self._free.append(work)
            return work
        known = self._streams.setdefault(stream, _Known(work, self._served))
        if not self._unfinished(stream):
            claim = MOST_CLAIM * self._cpu_s(known, work.cost(rungs)) if self._is_awake(known, now_s) else 0.0
            known.served = max(known.served, self._served - claim)
        if again is None:
            known.newest = work
            work.usual_s = now_s + ALLOWANCE * target_duration_s
            work.due_s = now_s + self._allowance_s(known, self._unfinished(stream) if begins and not known.missed else 0, now_s)
        else:
            work.ready_s, work.due_s, work.usual_s = again.ready_s, again.due_s, again.usual_s
        known.waiting.append(work)
        return work

    def withdraw(self, work: Work, now_s: float) -> None:
        """A job is no longer wanted: it leaves the line, or its slot, if it is in either."""
        self._free_running.discard(work)
        if work in self._free:
            self._free.remove(work)
        known = self._streams.get(work.stream)
        if known is not None and work in known.waiting:
            known.waiting.remove(work)
            known.hungry = known.hungry or (now_s >= work.due_s and bool(_cheapest(work)))
        if work in self._running:
            self.finished(work, now_s, learn=False)

    def grants(self, now_s: float) -> Iterator[Grant]:
        """Yield what may start now, or is refused."""
        while self._free and len(self._free_running) < self.slots:
            self._free_running.add(work := self._free.popleft())
            yield Grant(work, frozenset(work.rungs))
        self._plan(now_s)
        self._count(now_s)
        while len(self._running) < self.slots and (known := self._next()):
            work = known.waiting[0]
            if self._yields(known, now_s):
                return
            if self._crowds(now_s):
                return self._blocked()
            kept, daring = self._fitting(known, work, now_s, len(self._running) + 1)
            if not _decodes(work, kept):
                # Where nothing is ever tried nothing is learnt: the cheapest has its chance when it did not wait long.
                chance = known.refused + 1 >= 1 << known.missed and work.due_s - now_s >= 0.5 * (work.due_s - work.ready_s)
                waits = chance and known.best_speed is not None
                if self._running and (waits or _decodes(work, self._fitting(known, work, now_s, 1)[0])):
                    return self._blocked()
                known.refused += 1
                kept = (chance and _cheapest(work)) or kept
            known.hungry = bool(_cheapest(work)) and not _decodes(work, kept)
            known.waiting.popleft()
            self._served = max(self._served, known.served)
            if kept:
                charged = self._cpu_s(known, work.cost(kept))
                known.served += charged
                known.last_cost = work.cost(kept)
                self._running[work] = _Run(now_s, self._busy, kept, charged, charged, daring)
            yield Grant(work, kept)

    def finished(self, work: Work, now_s: float, *, cpu_s: float | None = None, late: bool = False, learn: bool = True) -> None:
        """A job is gone from its slot: done, or *late* (stopped at its deadline), or such as to *learn* nothing from."""
        if work in self._free_running:
            self._free_running.remove(work)
            return
        self._count(now_s)
        run, known = self._running.pop(work), self._streams[work.stream]
        wall_s = now_s - run.began_s
        cost = work.cost(run.kept)
        if not learn or cost <= START or wall_s <= 0:
            return
        at_once = max(1.0, (self._busy - run.busy_before) / wall_s)
        full = at_once >= 0.9 * self.slots
        drawing = self.slots if full else at_once
        if late:
            cpu_s = self._cpu_s(known, cost)  # or less: it is not done
            usual_s = cpu_s / self._speed(known, at_once)
            known.slowness = max(known.slowness, wall_s / usual_s)
            known.hungry, known.refused = True, 0
            known.good, known.good_needed = 0, min(2 * known.good_needed, MOST_GOOD) if run.daring else known.good_needed
            others_known = all(one.best_speed is not None for one in self._awake(now_s) if one is not known)
            if known.best_speed is None and not full and others_known and known.stretch < LONGEST_ALLOWANCE / ALLOWANCE:
                known.stretch *= 1.25  # not for want of slots, and nothing shows that it was ever faster
                return
            known.missed = min(known.missed + 1, MOST_MISSED)
            self._hurry(work.stream)
            if full or not run.alone:
                self._capacity = _blend(self._capacity, min(self._capacity, cpu_s / wall_s * drawing))
                self._proven = min(self._proven, self._capacity)
            return
        cpu_s = max(wall_s if cpu_s is None else cpu_s, 1e-3)
        known.served += cpu_s - run.charged
        known.cpu_per_cost = _blend(known.cpu_per_cost, cpu_s / cost)
        self._cpu_per_cost = _blend(self._cpu_per_cost, cpu_s / cost, 0.1)
        before = None if known.best_speed is None else known.slowness  # of a job unlike the guess it said nothing
        self._best_speed = max(cpu_s / wall_s, 0.999 * self._best_speed)
        shared = cpu_s / wall_s >= 0.8 * self._capacity / at_once  # then it would have been faster by itself
        alone = min(cpu_s / wall_s * at_once, self._best_speed) if shared else cpu_s / wall_s
        known.best_speed = max(alone, 0.999 * (known.best_speed or 0.0))
        known.slowness = _blend(before, wall_s * self._speed(known, at_once) / cpu_s, 0.5)
        if full or (not run.alone and cpu_s / wall_s < 0.8 * known.best_speed):
            self._capacity = self._proven = _blend(self._proven, cpu_s / wall_s * drawing)
        else:  # so much they can draw at least
            self._proven = max(self._proven, cpu_s / wall_s * at_once)
            self._capacity = max(self._capacity, self._proven)
            if known.slowness < 1.2:  # and perhaps so much: else what was learnt while CPU was taken away would stay for ever
                self._capacity += 0.01 * max(0.0, cpu_s / wall_s * self.slots - self._capacity)
        known.missed, known.refused = 0, 0
        known.good = known.good + 1 if wall_s <= 0.8 * (work.due_s - work.ready_s) else 0
        if run.daring:
            known.good_needed = FEWEST_GOOD

    def reckoned_s(self, stream: str, base: float, rungs: Mapping[str, float]) -> float:
        """Return how long a job of *stream* with these costs (see Work) would run if it started now, beside those that run.

        Infinite while no job of the stream has shown how fast it is here.
        """
        known = self._streams.get(stream)
        if known is None or known.best_speed is None:
            return math.inf
        cost = START + (base + sum(rungs.values()) if any(rungs.values()) else 0.0)
        at_once = min(len(self._running) + 1, self.slots)
        return self._cpu_s(known, cost) * known.slowness / self._speed(known, at_once)

    def _unfinished(self, stream: str) -> int:
        """Return how many of a stream's jobs wait or run."""
        return len(self._streams[stream].waiting) + sum(work.stream == stream for work in self._running)

    def _allowance_s(self, known: _Known, ahead: int, now_s: float) -> float:
        """Return how long the newest job of a stream may take that came together with so many *ahead* of it."""
        work = known.newest
        usual_s = ALLOWANCE * work.target_duration_s
        if self.ceiling < _EVERYTHING or not self._room_for_all(now_s):
            return usual_s
        alone_s = usual_s * known.stretch
        if known.best_speed is not None:
            alone_s = self._cpu_s(known, work.cost(work.rungs)) / known.best_speed
            alone_s *= 1.0 if alone_s <= SAFE * usual_s else 1.25
        return min(max(usual_s, alone_s) * (1 + ahead / 2), LONGEST_ALLOWANCE * work.target_duration_s)

    def _room_for_all(self, now_s: float) -> bool:
        slots = 0.0
        for known in self._awake(now_s):
            work = known.newest
            slots += self._cpu_s(known, work.cost(work.rungs)) / (known.best_speed or 1.0) / work.duration_s
        return slots <= PLANNED * self.slots and self._demand(_EVERYTHING, now_s) <= PLANNED * self._proven

    def _next(self) -> _Known | None:
        under_way = {work.stream for work in self._running}
        waiting = (known for name, known in self._streams.items() if known.waiting and (known.best_speed or name not in under_way))
        return min(waiting, key=lambda known: (known.served, known.waiting[0].ready_s), default=None)

    def _blocked(self) -> None:
        for run in self._running.values():
            run.alone = False

    def _crowds(self, now_s: float) -> bool:
        """Return whether one job more may make one late that runs, and at best is in time."""
        at_once = len(self._running)
        for work, run in self._running.items():
            known, left_s = self._streams[work.stream], work.due_s - now_s
            at_best_s = run.left_cpu_s / self._speed(known, at_once)
            if known.best_speed is not None and at_best_s <= left_s < run.left_cpu_s * known.slowness / self._speed(known, at_once + 1):
                return True
        return False

    def _yields(self, known: _Known, now_s: float) -> bool:
        """Return whether a slot is kept free for a stream that went without, is about to have its next segment, and is less served.

        Who went without too yields only to those that are a job behind: they take turns.
        """
        lead = self._cpu_s(known, known.newest.cost(_cheapest(known.newest))) if known.hungry else 0.0
        return any(
            one.hungry and one.served + lead <= known.served and now_s - one.newest.ready_s < 1.5 * one.newest.duration_s
            for name, one in self._streams.items()
            if not self._unfinished(name)
        )

    def _fitting(self, known: _Known, work: Work, now_s: float, at_once: int) -> tuple[frozenset[str], bool]:
        """Return the rungs that can be made in time beside so many jobs, and whether that is a trial of more than seems to fit."""
        sets = list(_smaller(work, self._planned(work)))
        with_pictures = sum(_decodes(work, kept) for kept in sets)  # what was late is tried with less, or nothing were ever learnt of it
        sets = sets[max(0, min(known.missed, with_pictures - 1)) :]
        speed = self._speed(known, at_once) / known.slowness
        for index, kept in enumerate(sets):
            cost = work.cost(kept)
            safe = SAFE if cost <= 1.01 * known.last_cost or known.cpu_per_cost is None else SAFE_TO_ADD
            if (not _decodes(work, kept) and now_s < work.due_s) or self._cpu_s(known, cost) / speed <= safe * (work.due_s - now_s):
                if index and known.good >= known.good_needed and known.slowness <= 1.5:
                    known.good = 0
                    return sets[index - 1], True
                return kept, False
        return frozenset(), False

    def _planned(self, work: Work) -> frozenset[str]:
        return frozenset(_below(self.ceiling if math.isfinite(work.due_s) else _EVERYTHING, work))

    def _plan(self, now_s: float) -> None:
        """Set the ceiling: down at once, up after a hold."""
        awake = list(self._awake(now_s))
        if len(awake) < self._active:
            self._hold_s = SHORTEST_HOLD_S
        self._active = len(awake)
        costs = sorted({cost / one.newest.duration_s for one in awake for cost in one.newest.rungs.values()}, reverse=True)
        ceilings = [_EVERYTHING, *costs[1:]]
        if self._demand(self.ceiling, now_s) > BUSIEST * self._capacity:
            fits = [one for one in ceilings if one < self.ceiling and self._demand(one, now_s) <= PLANNED * self._capacity]
            lower = max(fits, default=min(ceilings))
            self._hurry()
            if lower < self.ceiling:
                if now_s - self._raised_s < 2 * self._hold_s:
                    self._hold_s = min(2 * self._hold_s, LONGEST_HOLD_S)
                self.ceiling = lower
            self._room_since_s = None
            return
        if now_s - self._raised_s > 4 * self._hold_s and self.ceiling == _EVERYTHING:
            self._hold_s = SHORTEST_HOLD_S
        higher = max((one for one in ceilings if self._demand(one, now_s) <= PLANNED * self._capacity), default=self.ceiling)
        if higher <= self.ceiling:
            self._room_since_s = None
        elif self._room_since_s is None:
            self._room_since_s = now_s
        elif now_s - self._room_since_s >= self._hold_s:
            self.ceiling, self._raised_s, self._room_since_s = higher, now_s, None

    def _hurry(self, stream: str | None = None) -> None:
        """Have the jobs of all streams, or of one, due as soon as they are under overload."""
        for work in (*self._running, *(work for known in self._streams.values() for work in known.waiting)):
            if stream in (None, work.stream):
                work.due_s = min(work.due_s, work.usual_s)

    def _demand(self, ceiling: float, now_s: float) -> float:
        """Return what all streams need under *ceiling*, in CPU seconds a second."""
        return sum(
            self._cpu_s(known, known.newest.cost(_below(ceiling, known.newest))) / known.newest.duration_s for known in self._awake(now_s)
        )

    def _awake(self, now_s: float) -> Iterator[_Known]:
        return (known for known in self._streams.values() if self._is_awake(known, now_s))

    def _is_awake(self, known: _Known, now_s: float) -> bool:
        work = known.newest
        return now_s - work.ready_s <= ACTIVE_TARGET_DURATIONS * max(min(work.target_duration_s, 60.0), work.duration_s)

    def _cpu_s(self, known: _Known, cost: float) -> float:
        return cost * (self._cpu_per_cost if known.cpu_per_cost is None else known.cpu_per_cost)

    def _speed(self, known: _Known, at_once: float) -> float:
        """Return how many CPU seconds a second one of *at_once* jobs gets."""
        share = self._capacity / at_once
        return share if known.best_speed is None else min(known.best_speed, share)

    def _count(self, now_s: float) -> None:
        since_s = now_s - self._busy_at_s
        self._busy += len(self._running) * since_s
        for work, run in self._running.items():
            known = self._streams[work.stream]
            run.left_cpu_s -= since_s * self._speed(known, len(self._running)) / known.slowness
        self._busy_at_s = now_s


def _below(ceiling: float, work: Work) -> list[str]:
    """Return the rungs that *ceiling* allows, and the cheapest that costs anything in any case."""
    cheapest = min((cost for cost in work.rungs.values() if cost), default=0.0)
    return [name for name, cost in work.rungs.items() if cost <= cheapest or cost / work.duration_s <= ceiling]


def _cheapest(work: Work) -> frozenset[str]:
    """Return what costs nothing and the cheapest that does; nothing if there is no such."""
    kept = frozenset(_below(0.0, work))
    return kept if _decodes(work, kept) else frozenset()


def _decodes(work: Work, kept: frozenset[str]) -> bool:
    return work.cost(kept) > START


def _smaller(work: Work, names: frozenset[str]) -> Iterator[frozenset[str]]:
    """Yield *names*, then without the costliest, and so on."""
    left = sorted(names, key=lambda name: work.rungs[name])
    while left:
        yield frozenset(left)
        left.pop()


def _blend(old: float | None, new: float, part: float = 0.3) -> float:
    return new if old is None else old + part * (new - old)
