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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from hlsrelay.breaker import FAILURES, Breaker
from hlsrelay.clock import Clock
from hlsrelay.codecs import VideoEncoder
from hlsrelay.errors import ChildError, EncodeError
from hlsrelay.media.info import MediaError, MediaInfo
from hlsrelay.model import Codec
from hlsrelay.offers import Offers
from hlsrelay.processes import MEMORY, OVERLOADED, Children, Finished, Limits
from hlsrelay.recipe import EncodeJob, audio_kbps, before, command, frame_rate, impossible, verified, width_for
from hlsrelay.scheduling import Schedule, Work
from hlsrelay.sound import probed_previous, sound_command, sound_cut, sounds, with_sounds

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
    task: asyncio.Task[tuple[Encoded, EncodeError | None]]
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
        self._chance = chance
        self._schedule = Schedule(slots, os.cpu_count())
        self._granted: dict[Work, asyncio.Future[frozenset[str]]] = {}
        self._calls: list[_Call] = []
        self._breakers: dict[str, Breaker] = {}
        self._shed_until_s = -math.inf

    async def encode(self, job: EncodeJob) -> Encoded:
        """See Encoder."""
        if self._clock.monotonic_s() < self._shed_until_s:
            return Encoded({}, {}, _all(job, SHED))
        try:
            encoders = await self._offers.encoders(rung.codec for rung in job.rungs if rung.height is not None)
        except ChildError as error:
            raise EncodeError(str(error), argv=error.argv, exit_code=error.child_exit_code, stderr_tail=error.stderr_tail) from error
        beyond = impossible(job, encoders)
        job = replace(job, rungs=tuple(rung for rung in job.rungs if rung.name not in beyond))
        if not job.rungs:
            raise EncodeError(f"segment {job.number} of {job.stream_id}: {_reasons(beyond)}")
        now_s = self._clock.monotonic_s()
        breaker = self._breakers.get(job.stream_id)
        if breaker and not breaker.admits(now_s):
            reason = f"the ladder is paused, {FAILURES} jobs or more failed in a row, the last one: {breaker.reason}"
            return Encoded({}, beyond | _all(job, reason), paused=True)
        parts = _pictures_and_sound(job)
        try:
            done = await asyncio.gather(*(self._done(part, encoders) for part in parts), return_exceptions=True)
        except asyncio.CancelledError:
            self._told(job.stream_id, None)
            raise
        encoded, failures = Encoded({}, beyond), []
        for one in done:
            if isinstance(one, BaseException):
                raise one
            encoded = encoded.joined(one[0])
            failures.append(one[1])
        # Sound that was copied says nothing of pictures: where there are any it is theirs that tells how the ladder fares.
        good = any(rung.name in encoded.outputs for rung in parts[0].rungs)
        self._told(job.stream_id, "" if good else str(failures[0]) if failures[0] else None)
        if not encoded.outputs and (failure := failures[0] or failures[-1]):
            raise failure
        return encoded

    async def _done(self, job: EncodeJob, encoders: Mapping[Codec, VideoEncoder]) -> tuple[Encoded, EncodeError | None]:
        """Do a job as far as that is possible by the time it is due; return what came of it and, if any rung failed, why."""
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
            return (Encoded({}, {}, _all(job, call.dropped)), None) if call.dropped else task.result()
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

    def _left(self, call: _Call, task: asyncio.Task[tuple[Encoded, EncodeError | None]]) -> None:
        """A task is gone, however it ended: so is its place in line."""
        self._calls.remove(call)
        self._granted.pop(call.work, None)
        self._schedule.withdraw(call.work, self._clock.monotonic_s())
        self._start()
        if not task.cancelled():
            task.exception()  # whoever waited has seen it

    def _told(self, stream_id: str, failure: str | None) -> None:
        """A job of the stream failed for a reason, or went well (no reason), or showed nothing (None)."""
        breaker = self._breakers.get(stream_id)
        if failure:
            breaker = self._breakers.setdefault(stream_id, breaker or Breaker())
            if breaker.failed(self._clock.monotonic_s(), failure, self._chance()):
                log.warning("ladder.paused", stream=stream_id, pause_s=round(breaker.pause_s), failures=breaker.failures, reason=failure)
        elif breaker and failure is None:
            breaker.undecided()
        elif breaker:
            del self._breakers[stream_id]
            if breaker.open:
                log.info("ladder.resumed", stream=stream_id, failures=breaker.failures)

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

    async def _made(self, job: EncodeJob, work: Work, encoders: Mapping[Codec, VideoEncoder]) -> tuple[Encoded, EncodeError | None]:
        """Do a job, with a second attempt at what failed in the first; return what came of it and, if any rung failed, why."""
        call = next(call for call in self._calls if call.work is work)
        try:
            encoded, failure = await self._attempted(call, job, encoders)
            if encoded.failed:
                again = replace(job, rungs=tuple(rung for rung in job.rungs if rung.name in encoded.failed), threads=1)
                call.work = self._submit(again, again=work)
                second, last = await self._attempted(call, again, encoders)
                log.debug("encode.again", stream=job.stream_id, number=job.number, reason=_reasons(encoded.failed), good=[*second.outputs])
                failed = {name: reason for name, reason in {**encoded.failed, **second.failed}.items() if name not in second.outputs}
                encoded, failure = replace(encoded, outputs={**encoded.outputs, **second.outputs}, failed=failed), last or failure
        except BaseException:
            _delete(job, job.outputs)
            raise
        return encoded, failure if encoded.failed else None

    async def _attempted(self, call: _Call, job: EncodeJob, encoders: Mapping[Codec, VideoEncoder]) -> tuple[Encoded, EncodeError | None]:
        """Run ffmpeg once, as soon and for as many rungs as the schedule says; return what came of it and, if any failed, why."""
        work = call.work
        self._start()
        try:
            kept = await self._granted[work]
        finally:
            self._granted.pop(work, None)
        dropped = {name: reason for name, reason in _all(job, OVERLOAD).items() if name not in kept}
        job = replace(job, rungs=tuple(rung for rung in job.rungs if rung.name in kept))
        if not job.rungs:
            return Encoded({}, {}, dropped), None
        good: dict[str, MediaInfo] = {}
        failed: dict[str, str] = {}
        failure: EncodeError | None = None
        finished: Finished | None = None
        argv: list[str] = []
        files = sounds(job)
        call.runs = True
        try:
            job, failed = await self._with_sounds(job, files)
            if job.rungs:
                argv = command(job, self._offers.ffmpeg, before(job), encoders, side_by_side=self._offers.side_by_side)
                finished = await self._children.run(
                    argv,
                    purpose=f"encode {job.stream_id} {job.number}",
                    deadline_s=deadline_s(job.duration_s),
                    limits=_limits(job.duration_s),
                    watched=True,
                    env={"SVT_LOG": "1"},  # else SVT-AV1 fills stderr with its settings
                )
                good, wrong = await _checked(job) if finished.exit_code == 0 else ({}, _all(job, _ended(finished)))
                failed |= wrong
            if failed:
                failure = _error(job, failed, argv, finished)
        except ChildError as error:
            failed |= _all(job, str(error))
            failure = EncodeError(str(error), argv=argv, exit_code=error.child_exit_code, stderr_tail=error.stderr_tail)
        finally:
            for path in files.values():
                path.unlink(missing_ok=True)
            call.runs = False
            late, whole = call.dropped == OVERLOAD, finished is not None and not failed
            cpu_s = finished.cpu_s if finished else None
            self._schedule.finished(work, self._clock.monotonic_s(), cpu_s=cpu_s, late=late, learn=late or whole)
            self._start()
        _delete(job, failed)
        return Encoded(good, failed, dropped), failure

    async def _with_sounds(self, job: EncodeJob, files: Mapping[int, Path]) -> tuple[EncodeJob, dict[str, str]]:
        """Return *job* with the audio in *files* that some rungs don't copy; or without these rungs, and why."""
        if not files or job.info.audio is None:
            return job, {}
        try:
            ahead = probed_previous(job)
            cut = sound_cut(job, ahead)
            finished = await self._children.run(
                sound_command(job, cut, files, self._offers.ffmpeg),
                purpose=f"encode the sound of {job.stream_id} {job.number}",
                deadline_s=deadline_s(job.duration_s),
                limits=_limits(job.duration_s),
            )
            if finished.exit_code != 0:
                raise MediaError(_ended(finished))
            return with_sounds(job, cut, files, ahead), {}
        except (ChildError, MediaError, OSError) as error:
            silent = {rung.name: f"its sound: {error}" for rung in job.rungs if audio_kbps(job.info.audio, rung)}
            return replace(job, rungs=tuple(rung for rung in job.rungs if rung.name not in silent)), silent


def _pictures_and_sound(job: EncodeJob) -> list[EncodeJob]:
    """Return *job* as one for rungs with video, and one for those without: their sound is not to be lost with pictures that are late."""
    kinds = (tuple(rung for rung in job.rungs if (rung.height is None) is unseen) for unseen in (False, True))
    return [replace(job, rungs=rungs, outputs={rung.name: job.outputs[rung.name] for rung in rungs}) for rungs in kinds if rungs]


async def _checked(job: EncodeJob) -> tuple[dict[str, MediaInfo], dict[str, str]]:
    """Return the rungs that are good, and why others are not."""
    good: dict[str, MediaInfo] = {}
    failed: dict[str, str] = {}
    for rung in job.rungs:
        try:
            good[rung.name] = verified(job, rung)
        except (MediaError, OSError) as error:
            failed[rung.name] = str(error)
        await asyncio.sleep(0)  # a look at a file takes milliseconds: let others run in between
    return good, failed


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


def _ended(finished: Finished) -> str:
    return f"ffmpeg ended with {finished.exit_code}: {_last_line(finished.stderr_tail)}"


def _error(job: EncodeJob, failed: Mapping[str, str], argv: list[str], finished: Finished | None) -> EncodeError:
    reason = f"segment {job.number} of {job.stream_id}: {_reasons(failed)}"
    if finished is None:
        return EncodeError(reason, argv=argv)
    return EncodeError(reason, argv=argv, exit_code=finished.exit_code, stderr_tail=finished.stderr_tail)


def _all(job: EncodeJob, reason: str) -> dict[str, str]:
    return {rung.name: reason for rung in job.rungs}


def deadline_s(duration_s: float) -> float:
    """Return how long a job may take, its wait for a slot not counted, however late it may come."""
    return max(30.0, 5 * duration_s)


def _limits(duration_s: float) -> Limits:
    return Limits(
        cpu_s=max(60, math.ceil(10 * duration_s)),  # against pictures by the million: a deadline alone lets a bomb have every core
        address_space_bytes=4 << 30,  # less than 1.5 GiB breaks ffmpeg 9
        file_size_bytes=128 << 20,
        open_files=64,
        niceness=10,  # pass-through comes first
    )


def _delete(job: EncodeJob, names: Mapping[str, object]) -> None:
    for name in names:
        if name in job.outputs:
            job.outputs[name].unlink(missing_ok=True)


def _reasons(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in failed.items()) or "no rung asked for"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no words")
