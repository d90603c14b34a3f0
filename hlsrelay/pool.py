"""Does encode jobs on other machines: a pool of workers that carry ffmpeg. What it does not give back in time is made here.

Laws:
- Whoever asks has his answer when the job is due, as `encoder` promises; what is not made by then is a GAP. Rungs without video are made
  here: copying sound costs less than sending it.
- A job that is not back by half its time is sent a second time, to another worker, and the first answer wins; only while a slot of the pool
  is free, else what is slow would become slower.
- A lost worker, a lost scheduler, a worker that can't do a job cost time alone: what is not back when there is just the time to make it
  here is made in local slots, and so is everything while the pool is away, and what is more than twice the pool's slots.
- A job that failed there is tried once more, here: another machine, and on one thread. Only where that fails too it counts against the
  stream (`Breakers`).
- All rungs are asked of the pool: it has no plan of who gets what, as `scheduling` has for local slots. The newest segment goes first, of
  whatever stream; what comes too late is left out whole.
- A ladder that takes longer than its time by itself, and keeps up because jobs run side by side, has as long as `scheduling` allows. It is
  reckoned at the shortest time that its jobs ever took, and not at all while the pool is full.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from hlsrelay.attempt import delete, every
from hlsrelay.clock import Clock
from hlsrelay.encoder import Breakers, Encoded, Encoder, Outcome, pictures_and_sound, together
from hlsrelay.errors import EncodeError, PoolLost
from hlsrelay.log import Repeated
from hlsrelay.media.info import MediaInfo
from hlsrelay.model import Codec, Rung
from hlsrelay.orphans import incarnation
from hlsrelay.parcel import Answer, packed
from hlsrelay.recipe import EncodeJob, impossible
from hlsrelay.scheduling import ALLOWANCE, FORGOTTEN_S, LONGEST_ALLOWANCE, SAFE
from hlsrelay.statuses import ChildStatus
from hlsrelay.values import replace

POOL, SECOND, LOCAL, NOWHERE = "pool", "second", "local", "nowhere"
"""Where a job's pictures were made: by the pool at the first or at the second time of asking, here, or not in time."""
LATE = "the pool did not give it back in time, and it could not be made here: left out; more workers help"
IN_LINE = 2
"""Times the pool's slots: so many jobs are with it at most, those that wait included."""
HALF = 0.5
LOCAL_MARGIN = 1.5
"""Times what a job is reckoned to take here: so much before it is due it is begun here; at half its time where nothing is known."""

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Ticket:
    """A job that is with the pool, or on its way there. The higher its *priority* the sooner it is to be done.

    *beside*: the same job, sent before; another worker than that has is to do this one. *worker* has it, as far as that is known.
    """

    purpose: str
    parcel: bytes
    priority: float
    since_s: float
    beside: Ticket | None = None
    worker: str = ""


class Pool(Protocol):
    """Workers on other machines, and the way to them."""

    @property
    def slots(self) -> int:
        """How many jobs they do at once; 0 while they can't be reached."""
        ...

    @property
    def taken(self) -> int:
        """How many jobs of other relays they have, as last heard."""
        ...

    async def done(self, ticket: Ticket) -> Answer:
        """Have a job done. Raises PoolLost where it can't be. Cancelled, its ffmpeg is stopped, and nobody waits for that."""
        ...


class Local(Encoder, Protocol):
    """The slots of this machine: `encoder.LocalEncoder`, or nothing."""

    async def undertaken(self, job: EncodeJob) -> Outcome:
        """Do *job* as far as that is possible by the time it is due. Raises EncodeError."""
        ...

    async def prepared(self, job: EncodeJob) -> None:
        """Have asked what is asked once before a job like *job*."""
        ...

    def reckoned_s(self, job: EncodeJob) -> float:
        """Return how long it would take; infinite where that is not known yet."""
        ...


@dataclass(slots=True)
class _Pace:
    """How long a stream's jobs take with the pool, by the wall clock, and so how much later than usual each is due."""

    best_s: float | None = None
    stretch: float = 1.0
    used_s: float = 0.0

    def allowance_s(self, target_duration_s: float, ahead: int, *, full: bool) -> float:
        """Return how long a job may take that came together with so many *ahead* of it; *full*: the pool has no free slot."""
        usual_s = ALLOWANCE * target_duration_s
        alone_s = usual_s if full else usual_s * self.stretch
        if self.best_s is not None and not full:
            alone_s = self.best_s * (1.0 if self.best_s <= SAFE * usual_s else 1.25)
        return min(max(usual_s, alone_s) * (1 + ahead / 2), LONGEST_ALLOWANCE * target_duration_s)

    def made(self, took_s: float) -> None:
        """A job came back."""
        self.best_s = took_s if self.best_s is None else min(took_s, 1.01 * self.best_s)
        self.stretch = 1.0

    def late(self) -> None:
        """A job did not come back in time, and not for want of slots."""
        self.best_s = None
        self.stretch = min(1.25 * self.stretch, LONGEST_ALLOWANCE / ALLOWANCE)


@dataclass(slots=True, eq=False)
class _Race:
    """One job, and who is at it: the first answer wins. *missing* are the rungs that nobody has made yet."""

    job: EncodeJob
    due_s: float
    runners: dict[asyncio.Task[Any], str] = field(default_factory=dict)
    outputs: dict[str, MediaInfo] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    failure: EncodeError | None = None
    tried: set[str] = field(default_factory=set)
    """Who has begun, at any time."""
    here: EncodeJob | None = None
    """What is being made here, in files of its own."""
    won: str = NOWHERE

    @property
    def missing(self) -> tuple[Rung, ...]:
        return tuple(rung for rung in self.job.rungs if rung.name not in self.outputs)

    def begin(self, kind: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Have somebody more at it."""
        self.tried.add(kind)
        task = asyncio.create_task(work, name=f"{kind} {self.job.stream_id} {self.job.number}")
        self.runners[task] = kind
        return task

    def runs(self, *kinds: str) -> bool:
        """Return whether any of *kinds* is at it."""
        return any(kind in kinds for kind in self.runners.values())

    def outcome(self) -> Outcome:
        """Return what came of it."""
        failed = {rung.name: self.failed[rung.name] for rung in self.missing if rung.name in self.failed}
        dropped = {rung.name: LATE for rung in self.missing if rung.name not in failed}
        failure = self.failure if failed else None
        return Outcome(Encoded(self.outputs, failed, dropped), failure, failure, bool(self.outputs))


class PoolEncoder:
    """Has jobs done by *pool*, and by *local* what that can't do. *counted* hears where each job's pictures were made."""

    def __init__(
        self,
        pool: Pool,
        local: Local,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        counted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._pool = pool
        self._local = local
        self._clock = clock or Clock()
        self._counted = counted
        self._breakers = Breakers(self._clock, chance)
        self._tickets: list[Ticket] = []
        self._paces: dict[tuple[str, tuple[Rung, ...]], _Pace] = {}
        self._prepared: set[Codec] = set()
        self._ending: set[asyncio.Task[Any]] = set()
        """What goes on though nobody waits for it."""
        self._refusals = Repeated()

    async def encode(self, job: EncodeJob) -> Encoded:
        """See Encoder."""
        return await self._breakers.guarded(job, self._undertaken)

    def shed(self) -> bool:
        """See Encoder: memory is short here, not there."""
        return self._local.shed()

    @property
    def jobs(self) -> int:
        """How many jobs are with the pool, those that were sent a second time counted twice."""
        return len(self._tickets)

    def away(self, node: str) -> tuple[ChildStatus, ...]:
        """Return the jobs that are with the pool as operators see them: oldest first, as of *node*."""
        now_s = self._clock.monotonic_s()
        return tuple(
            ChildStatus(
                node,
                0,
                incarnation(),
                f"{one.purpose}, again" if one.beside else one.purpose,
                (),
                round(now_s - one.since_s, 1),
                None,
                None,
                worker=one.worker or "the pool",
            )
            for one in self._tickets
        )

    async def aclose(self) -> None:
        """Wait until what is being stopped is gone."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _undertaken(self, job: EncodeJob) -> Outcome:
        beyond = impossible(job)  # whatever encoders there are
        wanted = replace(job, rungs=tuple(rung for rung in job.rungs if rung.name not in beyond))
        pictures, *sound = pictures_and_sound(wanted) or [wanted]
        if not any(rung.height for rung in pictures.rungs) or not self._pool.slots:
            self._counted(LOCAL)
            return await self._local.undertaken(job)
        done = await asyncio.gather(self._pictures(pictures), *map(self._here, sound), return_exceptions=True)
        outcomes = []
        for one in done:
            if isinstance(one, BaseException):
                raise one
            outcomes.append(one)
        return together(outcomes, beyond)

    def _prepare(self, job: EncodeJob) -> None:
        """Have our own ffmpeg asked what it can before that is needed: then there is no time for it."""
        if not self._prepared.issuperset(codecs := {rung.codec for rung in job.rungs}):
            self._prepared |= codecs
            self._ending.add(task := asyncio.create_task(self._local.prepared(job), name="prepare"))
            task.add_done_callback(functools.partial(self._left, None))

    async def _here(self, job: EncodeJob) -> Outcome:
        try:
            return await self._local.undertaken(job)
        except EncodeError as error:
            return Outcome(Encoded({}, every(job, str(error))), error, error)

    def _in_line(self) -> int:
        return len(self._tickets) + self._pool.taken

    def _pace(self, job: EncodeJob, now_s: float) -> _Pace:
        for key in [key for key, one in self._paces.items() if now_s - one.used_s > FORGOTTEN_S]:
            del self._paces[key]
        pace = self._paces.setdefault((job.stream_id, job.rungs), _Pace())
        pace.used_s = now_s
        return pace

    async def _pictures(self, job: EncodeJob) -> Outcome:
        """Have a job done by whoever is first, by the time that it is due."""
        if self._in_line() >= IN_LINE * self._pool.slots:
            self._counted(LOCAL)
            return await self._here(job)
        self._prepare(job)
        now_s = self._clock.monotonic_s()
        pace, purpose = self._pace(job, now_s), f"encode {job.stream_id} {job.number}"
        ahead = sum(one.purpose.startswith(f"encode {job.stream_id} ") for one in self._tickets) if job.begins else 0
        full = self._in_line() >= self._pool.slots
        race = _Race(job, now_s + pace.allowance_s(job.target_duration_s, ahead, full=full))
        try:
            first = Ticket(purpose, packed(job, race.due_s - now_s), self._clock.utc_now().timestamp(), now_s)
        except OSError:  # it can't be read: whoever tries here says so
            return await self._here(job)
        try:
            self._begin_there(race, POOL, first)
            await self._run(race, first)
        except BaseException:
            await self._stop(race)
            delete(job, job.outputs)
            raise
        self._leave(race)
        if race.won == POOL:
            pace.made(self._clock.monotonic_s() - now_s)
        elif race.won == NOWHERE and not full and not race.failed and self._pool.slots:
            pace.late()
        self._counted(race.won)
        return race.outcome()

    async def _run(self, race: _Race, first: Ticket) -> None:
        half_s = first.since_s + HALF * (race.due_s - first.since_s)
        while race.missing and (now_s := self._clock.monotonic_s()) < race.due_s:
            local_s = max(half_s, race.due_s - LOCAL_MARGIN * self._local.reckoned_s(race.job))
            away = race.runs(POOL, SECOND)
            if SECOND not in race.tried and (now_s >= half_s or not away) and self._pool.slots > self._in_line():
                self._begin_there(race, SECOND, replace(first, since_s=now_s, beside=first, worker=""))
                away = True
            if LOCAL not in race.tried and (now_s >= local_s or not away):
                self._begin_here(race, now_s)
            if not race.runners:
                return
            times = [race.due_s, *([half_s] if SECOND not in race.tried else []), *([local_s] if LOCAL not in race.tried else [])]
            left_s = min(one for one in times if one > now_s) - now_s
            done, _ = await asyncio.wait(
                race.runners, timeout=None if left_s == float("inf") else left_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                self._arrived(race, race.runners.pop(task), task)

    def _arrived(self, race: _Race, kind: str, task: asyncio.Task[Any]) -> None:
        """Take what one of a race brought."""
        try:
            found = task.result()
            if kind == LOCAL:
                self._take_ours(race, found)
            elif found.unfit:
                raise PoolLost(found.unfit)
            else:
                self._take_theirs(race, kind, found)
        except EncodeError as error:
            race.failed |= {rung.name: str(error) for rung in race.missing}
            race.failure = error
        except PoolLost as error:
            if self._refusals.is_news(str(error)):
                log.warning("pool.refused", stream=race.job.stream_id, number=race.job.number, reason=str(error))

    def _take_ours(self, race: _Race, outcome: Outcome) -> None:
        assert race.here is not None
        for name, info in outcome.encoded.outputs.items():
            race.here.outputs[name].replace(race.job.outputs[name])
            race.outputs[name] = info
        race.failed |= outcome.encoded.failed
        race.failure = outcome.failure or race.failure
        race.won = LOCAL if outcome.encoded.outputs else race.won

    def _take_theirs(self, race: _Race, kind: str, answer: Answer) -> None:
        """Take what a worker has made; what failed there is tried once more here, and nowhere else."""
        wanted = {rung.name for rung in race.missing}
        for name in wanted & answer.files.keys():
            race.job.outputs[name].write_bytes(answer.files[name])
            race.outputs[name] = answer.infos[name]
            race.won = kind
        if not answer.failed:
            return
        race.failed |= {name: reason for name, reason in answer.failed.items() if name in wanted}
        race.failure = answer.failure
        self._leave(race)
        race.tried.add(SECOND)
        race.tried.discard(LOCAL)
        race.job = replace(race.job, threads=1)

    def _begin_here(self, race: _Race, now_s: float) -> None:
        """Have what is missing made here, in files of their own: nobody waits for an ffmpeg to end before he takes an answer."""
        rungs, times = race.missing, 1 if race.here is None else 2
        outputs = {rung.name: (path := race.job.outputs[rung.name]).with_name(f"here{times}-{path.name}") for rung in rungs}
        target_s = (race.due_s - now_s) / ALLOWANCE  # so it is due there when it is here
        race.here = replace(race.job, rungs=rungs, outputs=outputs, target_duration_s=target_s, begins=False)
        race.begin(LOCAL, self._local.undertaken(race.here))

    def _begin_there(self, race: _Race, kind: str, ticket: Ticket) -> None:
        self._tickets.append(ticket)
        race.begin(kind, self._pool.done(ticket)).add_done_callback(lambda _: self._tickets.remove(ticket))

    def _leave(self, race: _Race) -> None:
        """Have those who are still at it stop; nobody waits for it."""
        for task, kind in race.runners.items():
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(functools.partial(self._left, race.here if kind == LOCAL else None))
        race.runners.clear()

    def _left(self, here: EncodeJob | None, task: asyncio.Task[Any]) -> None:
        self._ending.discard(task)
        if not task.cancelled():
            task.exception()
        if here is not None:
            delete(here, here.outputs)

    async def _stop(self, race: _Race) -> None:
        """Have them stop, and wait until they have."""
        ending = set(race.runners)
        self._leave(race)
        if ending:
            await asyncio.wait(ending)
