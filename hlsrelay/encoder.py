"""Does encode jobs: runs what `recipe` says, and keeps what passes its check."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from hlsrelay.errors import ChildError, EncodeError
from hlsrelay.media.info import MediaError, MediaInfo
from hlsrelay.processes import Children, Limits
from hlsrelay.recipe import EncodeJob, audio_kbps, command, impossible, last_audio_before, verified
from hlsrelay.sound import probed_previous, sound_command, sound_cut, sounds, with_sounds


@dataclass(frozen=True, slots=True)
class Encoded:
    """What came of a job: the rungs whose files are good, by name, and why the others are not; theirs are deleted."""

    outputs: Mapping[str, MediaInfo]
    failed: Mapping[str, str]


class Encoder(Protocol):
    """Whoever can do a job: the processes of this machine, or somebody else's."""

    async def encode(self, job: EncodeJob) -> Encoded:
        """Do *job*. Raises EncodeError if not one rung is good; no output file is left then, nor when this is cancelled."""
        ...


class LocalEncoder:
    """Runs *ffmpeg* on this machine, at most *slots* at once; others wait in line."""

    def __init__(self, ffmpeg: Path, children: Children, slots: int) -> None:
        self._ffmpeg = ffmpeg
        self._children = children
        self._slots = asyncio.Semaphore(slots)

    async def encode(self, job: EncodeJob) -> Encoded:
        beyond = impossible(job)
        argv: list[str] = []
        files = sounds(job)
        good: dict[str, MediaInfo] = {}
        try:
            if len(beyond) == len(job.rungs):
                raise EncodeError(f"segment {job.number} of {job.stream_id}: {_reasons(beyond)}", argv=argv)
            async with self._slots:
                job, silent = await self._with_sounds(job, files)
                beyond |= silent
                argv = command(job, self._ffmpeg, last_audio_before(job))
                finished = await self._children.run(
                    argv,
                    purpose=f"encode {job.stream_id} {job.number}",
                    deadline_s=deadline_s(job.duration_s),
                    limits=_limits(job.duration_s),
                )
            if finished.exit_code != 0:
                reason = (
                    f"segment {job.number} of {job.stream_id}: ffmpeg ended with {finished.exit_code}: {_last_line(finished.stderr_tail)}"
                )
                raise EncodeError(reason, argv=argv, exit_code=finished.exit_code, stderr_tail=finished.stderr_tail)
            failed = dict(beyond)
            for rung in job.rungs:
                if rung.name in beyond:
                    continue
                try:
                    good[rung.name] = verified(job, rung)
                except (MediaError, OSError) as error:
                    failed[rung.name] = str(error)
                await asyncio.sleep(0)  # a look at a file takes milliseconds: let others run in between
            if not good:
                reason = f"segment {job.number} of {job.stream_id}: {_reasons(failed)}"
                raise EncodeError(reason, argv=argv, exit_code=0, stderr_tail=finished.stderr_tail)
            _delete(job, failed)
        except ChildError as error:
            _delete(job, job.outputs)
            raise EncodeError(str(error), argv=argv, exit_code=error.child_exit_code, stderr_tail=error.stderr_tail) from error
        except BaseException:
            _delete(job, job.outputs)
            raise
        finally:
            for path in files.values():
                path.unlink(missing_ok=True)
        return Encoded(good, failed)

    async def _with_sounds(self, job: EncodeJob, files: Mapping[int, Path]) -> tuple[EncodeJob, dict[str, str]]:
        """Return *job* with the audio in *files* that some rungs don't copy; or without these rungs, and why."""
        if not files or job.info.audio is None:
            return job, {}
        try:
            before = probed_previous(job)
            cut = sound_cut(job, before)
            finished = await self._children.run(
                sound_command(job, cut, files, self._ffmpeg),
                purpose=f"encode the sound of {job.stream_id} {job.number}",
                deadline_s=deadline_s(job.duration_s),
                limits=_limits(job.duration_s),
            )
            if finished.exit_code != 0:
                raise MediaError(f"ffmpeg ended with {finished.exit_code}: {_last_line(finished.stderr_tail)}")
            return with_sounds(job, cut, files, before), {}
        except (ChildError, MediaError, OSError) as error:
            silent = {rung.name: f"its sound: {error}" for rung in job.rungs if audio_kbps(job.info.audio, rung)}
            if len(silent) == len(job.rungs):
                reason = f"segment {job.number} of {job.stream_id}: {_reasons(silent)}"
                raise EncodeError(reason) from error
            return replace(job, rungs=tuple(rung for rung in job.rungs if rung.name not in silent)), silent


def deadline_s(duration_s: float) -> float:
    """Return how long a job for a segment of *duration_s* may take, waiting for a slot not counted."""
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
