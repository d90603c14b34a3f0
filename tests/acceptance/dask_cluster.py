"""A Dask scheduler and its workers, each a process of its own, that a test may kill.

    with cluster(folder) as dask: ...  # by forking from one process that has imported Dask once, which is what takes their time
    with cluster(folder, typed=True) as dask: ...  # as an operator types it: dask scheduler, dask worker

What the first runs is `python -m tests.acceptance.dask_cluster <folder> <worker>...`.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.acceptance.relay_process import ROOT, running
from tests.waiting import until

WORKERS = ("w1", "w2")
UP_WITHIN_S = 60.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Cluster:
    """One that is up: where its scheduler is, the processes by name, and the folder that holds a folder of each worker."""

    folder: Path
    address: str
    pids: dict[str, int]

    @property
    def encoder(self) -> str:
        """What HLSRELAY_ENCODER is set to."""
        return self.address.replace("tcp://", "dask://")

    def kill(self, name: str) -> None:
        """kill -9."""
        os.kill(self.pids[name], signal.SIGKILL)

    def lives(self, name: str) -> bool:
        """Whether it has not ended."""
        try:
            return Path(f"/proc/{self.pids[name]}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False


@contextmanager
def cluster(folder: Path, workers: tuple[str, ...] = WORKERS, *, typed: bool = False) -> Iterator[Cluster]:
    """Run a scheduler and *workers*, each with one slot, while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__ADMIN__LOG_FORMAT": "%(message)s"}
    with ExitStack() as stack:
        if typed:
            yield _typed(stack, folder, workers, env)
            return
        argv = [sys.executable, "-m", "tests.acceptance.dask_cluster", str(folder), *workers]
        process = stack.enter_context(running(argv, folder / "log", cwd=ROOT, env=env))
        up = [folder / f"{name}.up" for name in ("scheduler", *workers)]
        until(lambda: all(path.exists() for path in up) or process.poll() is not None, UP_WITHIN_S)
        assert process.poll() is None, (folder / "log").read_text()
        told = [json.loads(path.read_text()) for path in up]
        yield Cluster(folder, told[0]["address"], {path.stem: one["pid"] for path, one in zip(up, told, strict=True)})


def _typed(stack: ExitStack, folder: Path, workers: tuple[str, ...], env: dict[str, str]) -> Cluster:
    dask = str(Path(sys.executable).with_name("dask"))
    log = folder / "scheduler"
    argv = [dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
    pids = {"scheduler": stack.enter_context(running(argv, log, cwd=ROOT, env=env)).pid}
    found = until(lambda: re.search(r"Scheduler at: +(tcp://\S+)", log.read_text()), UP_WITHIN_S)
    for name in workers:
        argv = [dask, "worker", found[1], "--no-nanny", "--no-dashboard", "--nthreads", "1", "--resources", "ffmpeg=1"]
        argv += ["--name", name, "--local-directory", str(folder / name)]
        pids[name] = stack.enter_context(running(argv, folder / f"{name}.log", cwd=ROOT, env=env)).pid
    for name in workers:
        until(lambda name=name: "Registered to" in (folder / f"{name}.log").read_text(), UP_WITHIN_S)  # type: ignore[misc]
    return Cluster(folder, found[1], pids)


def _told(folder: Path, name: str, **what: Any) -> None:
    (folder / f"{name}.part").write_text(json.dumps({"pid": os.getpid(), **what}))
    (folder / f"{name}.part").rename(folder / f"{name}.up")


async def _scheduler(folder: Path) -> None:
    from distributed import Scheduler  # noqa: PLC0415

    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        _told(folder, "scheduler", address=scheduler.address)
        await scheduler.finished()


async def _worker(folder: Path, name: str) -> None:
    from distributed import Worker  # noqa: PLC0415

    until((folder / "scheduler.up").exists)
    address = json.loads((folder / "scheduler.up").read_text())["address"]
    resources, place = {"ffmpeg": 1.0}, str(folder / name)
    async with Worker(address, name=name, nthreads=1, resources=resources, local_directory=place, dashboard=False) as worker:
        _told(folder, name)
        await worker.finished()


def _forked(work: Coroutine[Any, Any, None]) -> int:
    pid = os.fork()
    if pid:
        work.close()
        return pid
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        asyncio.run(work)
    finally:
        os._exit(0)


def main(folder: Path, workers: list[str]) -> None:
    """Run all of them until told to go."""
    import distributed  # noqa: F401, PLC0415

    import hlsrelay.dask_worker  # noqa: F401, PLC0415

    pids = [_forked(_scheduler(folder)), *(_forked(_worker(folder, name)) for name in workers)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while True:
            signal.pause()
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
