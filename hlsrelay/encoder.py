"""Does encode jobs: runs what `recipe` says when `scheduling` says so, and keeps what passes its check.

Laws:
- Whoever asks has his answer when the job is due, done or not: what is not made by then is dropped, and nobody waits for its ffmpeg to
  end. Only its slot does.
- A job that failed is tried once more, on one thread, as far as time is left. What was dropped for want of time is no failure.
- Sound is not lost with pictures that are late: rungs without video are a job of their own, which needs no slot.
- A stream whose jobs fail one after another is left alone for a while (`breaker`): no ffmpeg starts that would fail again.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog

from hlsrelay.attempt import Attempt, attempted, delete, every, reasons
from hlsrelay.breaker import FAILURES, Breaker
from hlsrelay.clock import Clock
from hlsrelay.codecs import VideoEncoder
from hlsrelay.errors import ChildError, EncodeError
from hlsrelay.media.info import MediaInfo
from hlsrelay.model import Codec
from hlsrelay.offers import Offers
from hlsrelay.processes import MEMORY, OVERLOADED, Children
from hlsrelay.recipe import EncodeJob, frame_rate, impossible, width_for
from hlsrelay.scheduling import Schedule, Work
from hlsrelay.values import replace

OVERLOAD = "overload: left out, it can't be made in time; fewer rungs, more cores or more HLSRELAY_TRANSCODE_SLOTS help"
SHED = "memory is short: left out"
SHED_S = 5.0
"""After `shed` was called last, nothing is started for so long."""
DECODE_PER_MEGAPIXEL, ENCODE_PER_MEGAPIXEL = 0.006, 0.015
"""CPU seconds of H.264 decoded, and of scaled and encoded by libx264 veryfast, measured. Where they are wrong `scheduling` learns it."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What came of a job: the rungs whose files are good, by name, and why the others are not; theirs are deleted.

    *dropped* are those that were left out for want of time or memory, and did not fail. *paused*: the stream's ladder is left alone.
    """

    outputs: Mapping[str, MediaInfo]
    failed: Mapping[str, str]
    dropped: Mapping[str, str] = field(default_factory=dict)
    paused: bool = False

    def joined(self, other: Encoded) -> Encoded:
        """Return what came of two jobs for one segment."""
        return Encoded(
            {**self.outputs, **other.outputs},
            {**self.failed, **other.failed},
            {**self.dropped, **other.dropped},
            self.paused or other.paused,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job, before anybody judged it; *failure*: why, if any rung failed.

    Of several parts (see `together`) *good*, *failure*: whether a rung of the first was made, and why one was not; *worst*: of any.
    """

    encoded: Encoded
    failure: EncodeError | None = None
    worst: EncodeError | None = None
    good: bool = False


def together(outcomes: Sequence[Outcome], beyond: Mapping[str, str]) -> Outcome:
    """Return what came of one job's parts, in the order of `pictures_and_sound`, and of the rungs that are *beyond* anybody.

    Sound that was copied says nothing of pictures: where there are any it is theirs that tells how the ladder fares.
    """
    encoded = Encoded({}, beyond)
    for one in outcomes:
        encoded = encoded.joined(one.encoded)
    first, last = outcomes[0], outcomes[-1]
    return Outcome(encoded, first.failure, first.failure or last.failure, bool(first.encoded.outputs))


class Breakers:
    """Leaves streams alone whose jobs fail one after another. *chance* gives numbers from 0 to 1."""

    def __init__(self, clock: Clock, chance: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._chance = chance
        self._streams: dict[str, Breaker] = {}

    async def guarded(self, job: EncodeJob, undertaken: Callable[[EncodeJob], Awaitable[Outcome]]) -> Encoded:
        """Return what came of *job* as *undertaken*, or that its stream is left alone. Raises EncodeError if every rung failed."""
        breaker = self._streams.get(job.stream_id)
        if breaker and not breaker.admits(self._clock.monotonic_s()):
            reason = f"the ladder is paused, {FAILURES} jobs or more failed in a row, the last one: {breaker.reason}"
            return Encoded({}, every(job, reason), paused=True)
        try:
            outcome = await undertaken(job)
        except BaseException:
            self._told(job.stream_id, None)
            raise
        self._told(job.stream_id, "" if outcome.good else str(outcome.failure) if outcome.failure else None)
        if not outcome.encoded.outputs and outcome.worst:
            raise outcome.worst
        return outcome.encoded

    def _told(self, stream_id: str, failure: str | None) -> None:
        """A job of the stream failed for a reason, or went well (no reason), or showed nothing (None)."""
        breaker = self._streams.get(stream_id)
        if failure:
            breaker = self._streams.setdefault(stream_id, breaker or Breaker())
            if breaker.failed(self._clock.monotonic_s(), failure, self._chance()):
                log.warning("ladder.paused", stream=stream_id, pause_s=round(breaker.pause_s), failures=breaker.failures, reason=failure)
        elif breaker and failure is None:
            breaker.undecided()
        elif breaker:
            del self._streams[stream_id]
            if breaker.open:
                log.info("ladder.resumed", stream=stream_id, failures=breaker.failures)


class Encoder(Protocol):
    """Whoever can do a job: the processes of this machine, or somebody else's."""

    async def encode(self, job: EncodeJob) -> Encoded:
        """Do *job* as far as that is possible by the time `scheduling` has it due.

        Raises EncodeError if every rung failed; no output file is left then, nor when this is cancelled.
        """
        ...

    def shed(self) -> bool:
        """Memory is short: stop the oldest job, and start none for a while. Returns whether there was one."""
        ...


@dataclass(slots=True, eq=False)
class _Call:
    """Somebody waits for a job: *work* is its attempt of now, *runs* whether that has a slot, *dropped* why nobody waits any more.

    *sooner* is done when *work* is due sooner than at *due_s*.
    """

    work: Work
    task: asyncio.Task[Outcome]
    due_s: float
    sooner: asyncio.Future[None]
    runs: bool = False
    dropped: str = ""


class LocalEncoder:
    """Runs *ffmpeg* on this machine, at most *slots* at once, as `scheduling` decides. *chance* gives numbers from 0 to 1.

    *preferred* encoders are tried first (codecs). *newer* is used instead of an ffmpeg that is older than 7.0: that takes longer to start,
    and runs one encoder after another.
    """

    def __init__(
        self,
        ffmpeg: Path,
        children: Children,
        slots: int,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        preferred: tuple[str, ...] = (),
        newer: Path | None = None,
    ) -> None:
        self._offers = Offers(ffmpeg, children, preferred, newer)
        self._children = children
        self._clock = clock or Clock()
        self._schedule = Schedule(slots, os.cpu_count())
        self._granted: dict[Work, asyncio.Future[frozenset[str]]] = {}
        self._calls: list[_Call] = []
        self._breakers = Breakers(self._clock, chance)
        self._shed_until_s = -math.inf

    async def encode(self, job: EncodeJob) -> Encoded:
        """See Encoder."""
        return await self._breakers.guarded(job, self.undertaken)

    async def undertaken(self, job: EncodeJob) -> Outcome:
        """Do *job* as `encode` does, whatever came of the stream's last ones; that every rung failed is told, not raised."""
        if self._clock.monotonic_s() < self._shed_until_s:
            return Outcome(Encoded({}, {}, every(job, SHED)))
        try:
            encoders = await self._offers.encoders(rung.codec for rung in job.rungs if rung.height is not None)
        except ChildError as error:
            raise EncodeError(str(error), argv=error.argv, exit_code=error.child_exit_code, stderr_tail=error.stderr_tail) from error
        beyond = impossible(job, encoders)
        job = replace(job, rungs=tuple(rung for rung in job.rungs if rung.name not in beyond))
        if not job.rungs:
            raise EncodeError(f"segment {job.number} of {job.stream_id}: {reasons(beyond)}")
        parts = pictures_and_sound(job)
        done = await asyncio.gather(*(self._done(part, encoders) for part in parts), return_exceptions=True)
        outcomes = []
        for one in done:
            if isinstance(one, BaseException):
                raise one
            outcomes.append(one)
        return together(outcomes, beyond)

    async def prepared(self, job: EncodeJob) -> None:
        """Have what is asked once before a job like *job* asked by now, so that one that comes in a hurry need not wait for it."""
        with suppress(ChildError):  # it is told when it matters
            await self._offers.encoders(rung.codec for rung in job.rungs if rung.height is not None)

    def reckoned_s(self, job: EncodeJob) -> float:
        """Return how long *job*, every rung of it, would take here if it came now; infinite where that is not known yet."""
        base, rungs = _costs(job)
        return self._schedule.reckoned_s(job.stream_id, base, rungs)

    async def _done(self, job: EncodeJob, encoders: Mapping[Codec, VideoEncoder]) -> Outcome:
        """Do a job as far as that is possible by the time it is due."""
        loop = asyncio.get_running_loop()
        work = self._submit(job)
        task = loop.create_task(self._made(job, work, encoders), name=f"encode {job.stream_id} {job.number}")
        call = _Call(work, task, work.due_s, loop.create_future())
        self._calls.append(call)
        task.add_done_callback(lambda task: self._left(call, task))
        try:
            while not task.done() and (left_s := call.work.due_s - self._clock.monotonic_s()) > 0:
                call.due_s, call.sooner = call.work.due_s, loop.create_future()
                ends: set[asyncio.Future[Any]] = {task, call.sooner}
                await asyncio.wait(ends, timeout=left_s if math.isfinite(left_s) else None, return_when=asyncio.FIRST_COMPLETED)
            self._drop(call, OVERLOAD)
            return Outcome(Encoded({}, {}, every(job, call.dropped))) if call.dropped else task.result()
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise

    def shed(self) -> bool:
        """Memory is short: stop the oldest job, refuse what waits and, for SHED_S, what comes. Returns whether a job was stopped.

        Whoever watches the memory calls this for as long as it is short, once each time that it should get better.
        """
        self._shed_until_s = self._clock.monotonic_s() + SHED_S
        wanted = [call for call in self._calls if not call.dropped]
        oldest = next((call for call in wanted if call.runs), None)
        for call in wanted:
            if call is oldest or not call.runs:
                self._drop(call, SHED)
        return oldest is not None

    def _drop(self, call: _Call, reason: str) -> None:
        if not call.task.done():
            call.dropped = reason
            call.task.cancel(MEMORY if reason == SHED else OVERLOADED)

    def _left(self, call: _Call, task: asyncio.Task[Outcome]) -> None:
        """A task is gone, however it ended: so is its place in line."""
        self._calls.remove(call)
        self._granted.pop(call.work, None)
        self._schedule.withdraw(call.work, self._clock.monotonic_s())
        self._start()
        if not task.cancelled():
            task.exception()  # whoever waited has seen it

    def _submit(self, job: EncodeJob, again: Work | None = None) -> Work:
        base, rungs = _costs(job)
        work = self._schedule.submit(
            job.stream_id,
            job.number,
            duration_s=job.duration_s,
            target_duration_s=job.target_duration_s,
            base=base,
            rungs=rungs,
            now_s=self._clock.monotonic_s(),
            begins=job.begins,
            again=again,
        )
        self._granted[work] = asyncio.get_running_loop().create_future()
        return work

    def _start(self) -> None:
        now_s = self._clock.monotonic_s()
        for grant in self._schedule.grants(now_s):
            granted = self._granted.get(grant.work)
            if granted is None or granted.done():  # nobody waits for it any more
                self._schedule.withdraw(grant.work, now_s)
            else:
                granted.set_result(grant.kept)
        for call in self._calls:
            if call.work.due_s < call.due_s and not call.sooner.done():
                call.sooner.set_result(None)

    async def _made(self, job: EncodeJob, work: Work, encoders: Mapping[Codec, VideoEncoder]) -> Outcome:
        """Do a job, with a second attempt at what failed in the first."""
        call = next(call for call in self._calls if call.work is work)
        try:
            encoded, failure = await self._attempted(call, job, encoders)
            if encoded.failed:
                again = replace(job, rungs=tuple(rung for rung in job.rungs if rung.name in encoded.failed), threads=1)
                call.work = self._submit(again, again=work)
                second, last = await self._attempted(call, again, encoders)
                log.debug("encode.again", stream=job.stream_id, number=job.number, reason=reasons(encoded.failed), good=[*second.outputs])
                failed = {name: reason for name, reason in {**encoded.failed, **second.failed}.items() if name not in second.outputs}
                encoded, failure = replace(encoded, outputs={**encoded.outputs, **second.outputs}, failed=failed), last or failure
        except BaseException:
            delete(job, job.outputs)
            raise
        return Outcome(encoded, failure if encoded.failed else None)

    async def _attempted(self, call: _Call, job: EncodeJob, encoders: Mapping[Codec, VideoEncoder]) -> tuple[Encoded, EncodeError | None]:
        """Run ffmpeg once, as soon and for as many rungs as the schedule says; return what came of it and, if any failed, why."""
        work = call.work
        self._start()
        try:
            kept = await self._granted[work]
        finally:
            self._granted.pop(work, None)
        dropped = {name: reason for name, reason in every(job, OVERLOAD).items() if name not in kept}
        job = replace(job, rungs=tuple(rung for rung in job.rungs if rung.name in kept))
        if not job.rungs:
            return Encoded({}, {}, dropped), None
        attempt: Attempt | None = None
        call.runs = True
        try:
            attempt = await attempted(job, encoders, self._offers, self._children)
        finally:
            call.runs = False
            late, cpu_s = call.dropped == OVERLOAD, attempt.cpu_s if attempt else None
            learn = late or (attempt is not None and attempt.whole)
            self._schedule.finished(work, self._clock.monotonic_s(), cpu_s=cpu_s, late=late, learn=learn)
            self._start()
        return Encoded(attempt.good, attempt.failed, dropped), attempt.failure


def pictures_and_sound(job: EncodeJob) -> list[EncodeJob]:
    """Return *job* as one for rungs with video, and one for those without: their sound is not to be lost with pictures that are late."""
    kinds = (tuple(rung for rung in job.rungs if (rung.height is None) is unseen) for unseen in (False, True))
    return [replace(job, rungs=rungs, outputs={rung.name: job.outputs[rung.name] for rung in rungs}) for rungs in kinds if rungs]


def _costs(job: EncodeJob) -> tuple[float, dict[str, float]]:
    """Return a guess at what decoding costs, and each rung, in CPU seconds (see `scheduling`)."""
    video = job.info.video
    if video is None:
        return 0.0, {rung.name: 0.0 for rung in job.rungs}
    frames = float(frame_rate(video)) * job.duration_s
    costs = {}
    for rung in job.rungs:
        height = rung.height or 0
        width = width_for(video, height) or height * 16 / 9
        costs[rung.name] = ENCODE_PER_MEGAPIXEL * frames * width * height / 1e6
    pixels = video.width * video.height or 1280 * 720
    return DECODE_PER_MEGAPIXEL * frames * pixels / 1e6, costs
