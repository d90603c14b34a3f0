"""One attempt at an encode job, wherever it is made: its sound, its pictures, its check.

Laws:
- It is the same on this machine and on a pool's: the same commands, limits and check. Who decides when it starts is `encoder`, or `pool`.
- A rung counts when it passed its check; the files of the others are deleted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hlsrelay.codecs import VideoEncoder
from hlsrelay.errors import ChildError, EncodeError
from hlsrelay.media.info import MediaError, MediaInfo
from hlsrelay.model import Codec
from hlsrelay.offers import Offers
from hlsrelay.processes import Children, Finished, Limits
from hlsrelay.recipe import EncodeJob, audio_kbps, before, command, verified
from hlsrelay.sound import probed_previous, sound_command, sound_cut, sounds, with_sounds
from hlsrelay.values import replace


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of it: the rungs that are good, why others are not, and the error that says so. *cpu_s* is None where nobody knows.

    *whole*: ffmpeg ran to its end, and every rung is good.
    """

    good: Mapping[str, MediaInfo]
    failed: Mapping[str, str]
    failure: EncodeError | None = None
    cpu_s: float | None = None
    whole: bool = False


async def attempted(job: EncodeJob, encoders: Mapping[Codec, VideoEncoder], offers: Offers, children: Children) -> Attempt:
    """Run ffmpeg once for *job*, once more before that where it has audio to encode. Cancelled, it may leave output files."""
    good: dict[str, MediaInfo] = {}
    failed: dict[str, str] = {}
    failure: EncodeError | None = None
    finished: Finished | None = None
    argv: list[str] = []
    files = sounds(job)
    try:
        job, failed = await _with_sounds(job, files, offers, children)
        if job.rungs:
            argv = command(job, offers.ffmpeg, before(job), encoders, side_by_side=offers.side_by_side)
            finished = await children.run(
                argv,
                purpose=f"encode {job.stream_id} {job.number}",
                deadline_s=deadline_s(job.duration_s),
                limits=_limits(job.duration_s),
                watched=True,
                env={"SVT_LOG": "1"},  # else SVT-AV1 fills stderr with its settings
            )
            good, wrong = await _checked(job) if finished.exit_code == 0 else ({}, every(job, _ended(finished)))
            failed |= wrong
        if failed:
            failure = _error(job, failed, argv, finished)
    except ChildError as error:
        failed |= every(job, str(error))
        failure = EncodeError(str(error), argv=argv, exit_code=error.child_exit_code, stderr_tail=error.stderr_tail)
    finally:
        for path in files.values():
            path.unlink(missing_ok=True)
    delete(job, failed)
    return Attempt(good, failed, failure, finished.cpu_s if finished else None, finished is not None and not failed)


async def _with_sounds(job: EncodeJob, files: Mapping[int, Path], offers: Offers, children: Children) -> tuple[EncodeJob, dict[str, str]]:
    """Return *job* with the audio in *files* that some rungs don't copy; or without these rungs, and why."""
    if not files or job.info.audio is None:
        return job, {}
    try:
        ahead = probed_previous(job)
        cut = sound_cut(job, ahead)
        finished = await children.run(
            sound_command(job, cut, files, offers.ffmpeg),
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


def _ended(finished: Finished) -> str:
    return f"ffmpeg ended with {finished.exit_code}: {_last_line(finished.stderr_tail)}"


def _error(job: EncodeJob, failed: Mapping[str, str], argv: list[str], finished: Finished | None) -> EncodeError:
    reason = f"segment {job.number} of {job.stream_id}: {reasons(failed)}"
    if finished is None:
        return EncodeError(reason, argv=argv)
    return EncodeError(reason, argv=argv, exit_code=finished.exit_code, stderr_tail=finished.stderr_tail)


def every(job: EncodeJob, reason: str) -> dict[str, str]:
    """Return *reason* for every rung of *job*."""
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


def delete(job: EncodeJob, names: Mapping[str, object]) -> None:
    """Delete the output files of the rungs called *names*, as far as there are any."""
    for name in names:
        if name in job.outputs:
            job.outputs[name].unlink(missing_ok=True)


def reasons(failed: Mapping[str, str]) -> str:
    """Return why rungs failed, in one line."""
    return "; ".join(f"{name}: {reason}" for name, reason in failed.items()) or "no rung asked for"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no words")
