"""The processes of a Dask cluster, forked from one that has imported Dask: `python -m tests.acceptance.dask_processes <folder> <worker>...`

Each writes <name>.up into the folder, with its PID, once it is up. Little is imported here: that is what takes the time.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Scheduler, Worker

import hlsrelay.dask_worker  # noqa: F401 - once for all
from tests.waiting import until

PR_SET_PDEATHSIG = 1


def _told(folder: Path, name: str, **what: Any) -> None:
    (folder / f"{name}.part").write_text(json.dumps({"pid": os.getpid(), **what}))
    (folder / f"{name}.part").rename(folder / f"{name}.up")


async def _scheduler(folder: Path) -> None:
    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        _told(folder, "scheduler", address=scheduler.address)
        await scheduler.finished()


async def _worker(folder: Path, name: str) -> None:
    until((folder / "scheduler.up").exists)
    address = json.loads((folder / "scheduler.up").read_text())["address"]
    resources, place = {"ffmpeg": 1.0}, str(folder / name)
    async with Worker(address, name=name, nthreads=1, resources=resources, local_directory=place, dashboard=False) as worker:
        _told(folder, name)
        await worker.finished()


def _forked(work: Callable[[], Coroutine[Any, Any, None]]) -> int:
    pid = os.fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        asyncio.run(work())
    finally:
        os._exit(0)


def main(folder: Path, workers: list[str]) -> None:
    """Run all of them until told to go."""
    pids = [_forked(partial(_scheduler, folder)), *(_forked(partial(_worker, folder, name)) for name in workers)]
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
