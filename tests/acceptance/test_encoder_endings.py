"""Ladder jobs whose ffmpeg hangs, is stopped, forks, floods, fills the disk, or is cancelled: gone, and no file is left. Real ffmpegs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Coroutine, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from hlsrelay import attempt, processes, progress
from hlsrelay.clock import Clock
from hlsrelay.encoder import SHED_S, LocalEncoder
from hlsrelay.errors import EncodeError
from hlsrelay.processes import Child, Children
from hlsrelay.recipe import EncodeJob
from tests.acceptance import test_encoder
from tests.acceptance.test_encoder import KINDS, job_for, make
from tests.integration.test_endings import CancelledAt
from tests.integration.test_processes import gone_within
from tests.needs import needs
from tests.waiting import comes_true

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe")]

ffmpeg = test_encoder.ffmpeg

T = TypeVar("T")
RUNGS = "big:240:3000,small:180:300"


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source"), KINDS["30 fps with B-frames"])[0]


@pytest.fixture
def job(segment: Path, tmp_path: Path) -> EncodeJob:
    return job_for(Path(shutil.copy(segment, tmp_path)), 0, RUNGS)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "HUNG_AFTER_S", 1.0)


def relieved(work: Callable[[Children], Coroutine[Any, Any, T]], job: EncodeJob) -> T:
    """Run *work*; afterwards there is no child, no zombie, and no file of the job's."""

    async def main() -> T:
        children = Children()
        try:
            result = await work(children)
            assert children.running() == ()
            return result
        finally:
            await children.aclose()

    result = asyncio.run(main())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert not any(os.path.lexists(path) for path in job.outputs.values())
    return result


async def encoding(children: Children) -> Child:
    """Return the ffmpeg that encodes, once it runs: it may have ended by the time that its first report was read."""
    return await comes_true(lambda: next((child for child in children.running() if child.purpose.startswith("encode")), None), 60)


def refused(job: EncodeJob, ffmpeg: Path) -> str:
    """Encode, and return why that failed."""

    async def work(children: Children) -> str:
        with pytest.raises(EncodeError) as caught:
            await LocalEncoder(ffmpeg, children, slots=1).encode(job)
        return str(caught.value)

    return relieved(work, job)


def ends(lines: list[MutableMapping[str, Any]]) -> list[str]:
    """Return how the jobs' ffmpegs ended."""
    return [line["reason"] for line in lines if line["event"] == "child.ended" and line["purpose"].startswith("encode")]


@pytest.mark.usefixtures("impatient")
def test_an_ffmpeg_that_is_stopped_by_sigstop_is_ended_and_another_does_its_job(job: EncodeJob, ffmpeg: Path) -> None:
    async def work(children: Children) -> None:
        task = asyncio.create_task(LocalEncoder(ffmpeg, children, slots=1).encode(job))
        os.kill((await encoding(children)).pid, signal.SIGSTOP)
        assert set((await task).outputs) == {"big", "small"}
        for path in job.outputs.values():
            path.unlink()

    with capture_logs() as lines:
        relieved(work, job)
    assert ends(lines) == ["hung", "done"]


@pytest.mark.usefixtures("impatient")
def test_an_ffmpeg_that_is_blocked_on_a_full_pipe_is_ended_and_another_does_its_job(job: EncodeJob, ffmpeg: Path) -> None:
    async def work(children: Children) -> None:
        assert set((await LocalEncoder(ffmpeg, children, slots=1).encode(job)).outputs) == {"big", "small"}
        for path in job.outputs.values():
            path.unlink()

    os.mkfifo(job.outputs["big"])  # the second attempt finds no file there
    reader = os.open(job.outputs["big"], os.O_RDONLY | os.O_NONBLOCK)
    try:
        with capture_logs() as lines:
            relieved(work, job)
    finally:
        os.close(reader)
    assert ends(lines) == ["hung", "done"]


def test_an_ffmpeg_whose_files_may_not_grow_is_ended(job: EncodeJob, ffmpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(attempt._limits(2.0), file_size_bytes=20_000)
    monkeypatch.setattr(attempt, "_limits", lambda duration_s: limits)
    if processes._program("prlimit") is None:
        pytest.skip("prlimit is not installed: children are not limited")
    assert "segment 0 of news" in refused(job, ffmpeg)


FORKS = "import subprocess\nwith open('pid', 'w') as file: file.write(str(subprocess.Popen(['sleep', '600']).pid))\n"
HUNG = "no progress for"
BAD = {
    "ignores TERM": ("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n", HUNG),
    "forks a child": (FORKS, HUNG),
    "forks a child and is gone": (FORKS + "os._exit(1)\n", "ended with 1"),
    "floods stderr": ("for _ in range(50): sys.stderr.write('x' * 1_000_000)\n", HUNG),
    "floods stdout": ("for _ in range(50): sys.stdout.write('frame=7\\n' * 100_000)\n", HUNG),
    "fills the disk": ("with open(files[0], 'wb', 0) as file:\n    while True: file.write(b'x' * 65536)\n", "ended with 1"),
    "fails": ("sys.exit('no')\n", "ended with 1: no"),
    "makes nothing": ("sys.exit(0)\n", "big: "),
    "makes nonsense": ("for one in files: open(one, 'w').write('so long')\nsys.exit(0)\n", "big: "),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", BAD)
def test_whatever_is_run_in_place_of_ffmpeg_it_is_ended_and_leaves_nothing(
    how: str, job: EncodeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TERM_PATIENCE_S", 0.5)
    monkeypatch.chdir(tmp_path)
    limits = replace(attempt._limits(2.0), file_size_bytes=1 << 20)
    monkeypatch.setattr(attempt, "_limits", lambda duration_s: limits)
    if processes._program("prlimit") is None:
        pytest.skip("prlimit is not installed: children are not limited")
    code, reason = BAD[how]
    files = [str(path) for path in job.outputs.values()]
    fake = tmp_path / "fake"
    head = f"#!{sys.executable} -S\nimport os, signal, sys\nfiles = {files}\n"
    head += "if '-encoders' in sys.argv: sys.exit(print(' V....D libx264  H.264'))\nfor one in files: open(one, 'w').close()\n"
    fake.write_text(head + code + "while True: signal.pause()\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    assert reason in refused(job, fake)
    if how.startswith("forks"):
        assert gone_within(int((tmp_path / "pid").read_text()))


def test_a_job_can_be_cancelled_at_any_step_and_leaves_nothing(job: EncodeJob, ffmpeg: Path) -> None:
    async def work(children: Children) -> int:
        async def outer(encoding: CancelledAt) -> object:
            return await encoding

        for step in range(1, 50):
            encoding = CancelledAt(LocalEncoder(ffmpeg, children, slots=1).encode(job), step)
            [result] = await asyncio.gather(asyncio.create_task(outer(encoding)), return_exceptions=True)
            if not encoding.reached:
                assert all(path.exists() for path in job.outputs.values())
                for path in job.outputs.values():
                    path.unlink()
                return step
            assert isinstance(result, asyncio.CancelledError)
            assert children.running() == ()
            assert not any(path.exists() for path in job.outputs.values())
        raise AssertionError("it never came to its end")

    assert relieved(work, job) > 2  # on a busy machine an ffmpeg is done before the loop turns


def test_the_oldest_job_is_shed_none_starts_while_memory_is_short_and_then_they_do_again(job: EncodeJob, ffmpeg: Path) -> None:
    class Later(Clock):
        def monotonic_s(self) -> float:
            return super().monotonic_s() + passed_s

    passed_s = 0.0

    async def work(children: Children) -> None:
        nonlocal passed_s
        local = LocalEncoder(ffmpeg, children, 2, Later())
        task = asyncio.create_task(local.encode(job))
        await encoding(children)
        assert local.shed()
        assert set((await task).dropped) == {"big", "small"}
        while children.running():
            await children.running()[0].wait()
        assert not any(path.exists() for path in job.outputs.values())
        assert set((await local.encode(job)).dropped) == {"big", "small"}
        assert not local.shed()
        passed_s += SHED_S
        assert set((await local.encode(job)).outputs) == {"big", "small"}
        for path in job.outputs.values():
            path.unlink()

    relieved(work, job)
