"""An encode job as it travels to another machine, and what came of it as it travels back.

Laws:
- What is sent is bytes: the files that the job reads, and no more of them than it needs. The other side has none of our paths.
- Nothing is unpacked that a different version has packed (FORM): fields would be mistaken for others without a word. It is refused.
- What the other side could not even try (no ffmpeg, a full disk) is told apart from a job that failed: it says nothing of the stream.

It is packed by pickle, so whoever can send a parcel can run anything: the network between the two sides has to be trusted.
"""

from __future__ import annotations

import asyncio
import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from hlsrelay import __version__
from hlsrelay.attempt import attempted, deadline_s, reasons
from hlsrelay.errors import ChildError, EncodeError
from hlsrelay.media.info import AudioInfo, MediaInfo, VideoInfo
from hlsrelay.model import Rung
from hlsrelay.offers import Offers
from hlsrelay.processes import Children
from hlsrelay.recipe import EncodeJob, impossible, needs_previous
from hlsrelay.sound import sounds
from hlsrelay.values import replace

RESOURCE = "ffmpeg"
"""What Dask's workers are started with: `--resources ffmpeg=N`, N jobs at once."""
_READ = ("source", "previous", "init")


@dataclass(frozen=True, slots=True)
class _Sent:
    """*job* with files by the names that they have in a folder on the other side; *files* are their bytes."""

    job: EncodeJob
    files: Mapping[str, bytes]
    left_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a job elsewhere: bytes of the rungs that are good, and why others are not. *unfit*: why it could not be tried there."""

    infos: Mapping[str, MediaInfo]
    files: Mapping[str, bytes]
    failed: Mapping[str, str]
    failure: EncodeError | None = None
    unfit: str = ""


def _form() -> str:
    shapes = [(kind.__name__, [(one.name, str(one.type)) for one in fields(kind)]) for kind in _TRAVEL]
    return f"{__version__}/{hashlib.sha256(repr(shapes).encode()).hexdigest()[:8]}"


_TRAVEL = (_Sent, Answer, EncodeJob, MediaInfo, VideoInfo, AudioInfo, Rung)
FORM = _form()
"""Our version, and the fields of what travels: only who has the same understands it."""


def packed(job: EncodeJob, left_s: float) -> bytes:
    """Return *job*, which is worth doing for *left_s* seconds, with what it reads. Raises OSError."""
    behind = needs_previous(job.info)
    if not behind:
        job = replace(job, earlier=(), previous=job.previous if sounds(job) else None)
    paths = {name: path for name in _READ if (path := getattr(job, name)) is not None}
    paths |= {f"earlier{index}": path for index, path in enumerate(job.earlier)}
    files = {name: path.read_bytes() for name, path in paths.items()}
    bare = replace(
        job,
        source=Path("source"),
        previous=Path("previous") if job.previous else None,
        init=Path("init") if job.init else None,
        earlier=tuple(Path(f"earlier{index}") for index in range(len(job.earlier))),
        outputs={rung.name: Path(f"out{index}") for index, rung in enumerate(job.rungs)},
    )
    return pickle.dumps(_Sent(bare, files, left_s))


def unpacked(answer: bytes) -> Answer:
    """Return what `done` has sent back."""
    found = pickle.loads(answer)  # noqa: S301 - see above
    assert isinstance(found, Answer)
    return found


async def done(form: str, parcel: bytes, folder: Path, children: Children, offers: Offers) -> bytes:
    """Do what is in *parcel*, in a folder of its own in *folder*; return an Answer, packed. Cancelled, it leaves nothing."""
    if form != FORM:
        return unfit(f"the relay is of version {form}, this worker of {FORM}: give both the same")
    sent = pickle.loads(parcel)  # noqa: S301 - see above
    try:
        with TemporaryDirectory(dir=folder, prefix="job-") as place:
            here = Path(place)
            for name, data in sent.files.items():
                (here / name).write_bytes(data)
            answer = await _done(_within(sent.job, here), sent.left_s, children, offers)
            return pickle.dumps(answer)
    except ChildError as error:
        return unfit(f"{error} {error.stderr_tail}".strip())
    except OSError as error:
        return unfit(f"{error.filename or folder}: {error.strerror}")
    except RuntimeError as error:  # children are not to be had in this thread
        return unfit(str(error))


async def _done(job: EncodeJob, left_s: float, children: Children, offers: Offers) -> Answer:
    encoders = await offers.encoders(rung.codec for rung in job.rungs if rung.height is not None)
    beyond = impossible(job, encoders)
    job = replace(job, rungs=tuple(rung for rung in job.rungs if rung.name not in beyond))
    if not job.rungs:
        return Answer({}, {}, beyond, EncodeError(f"segment {job.number} of {job.stream_id}: {reasons(beyond)}"))
    try:
        async with asyncio.timeout(min(left_s, deadline_s(job.duration_s))):
            attempt = await attempted(job, encoders, offers, children)
    except TimeoutError:
        return Answer({}, {}, {}, unfit=f"it was not done within {left_s:.1f} s, and nobody waits for longer")
    files = {name: job.outputs[name].read_bytes() for name in attempt.good}
    return Answer(attempt.good, files, {**beyond, **attempt.failed}, attempt.failure)


def _within(job: EncodeJob, folder: Path) -> EncodeJob:
    return replace(
        job,
        source=folder / job.source,
        previous=folder / job.previous if job.previous else None,
        init=folder / job.init if job.init else None,
        earlier=tuple(folder / path for path in job.earlier),
        outputs={name: folder / path for name, path in job.outputs.items()},
    )


def unfit(reason: str) -> bytes:
    """Return an answer, packed, that a job can not be tried, and why."""
    return pickle.dumps(Answer({}, {}, {}, unfit=reason))
