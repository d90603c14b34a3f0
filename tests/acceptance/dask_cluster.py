"""A Dask scheduler and its workers, each a process of its own, that a test may kill.

    with cluster(folder) as dask: ...  # by forking from one process that has imported Dask once, which is what takes their time
    with cluster(folder, typed=True) as dask: ...  # as an operator types it: dask scheduler, dask worker

What the first runs is tests.acceptance.dask_processes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tests.acceptance.relay_process import ROOT, running
from tests.waiting import until

WORKERS = ("w1", "w2")
UP_WITHIN_S = 60.0


@dataclass(frozen=True)
class Cluster:
    """One that is up: where its scheduler is, the processes by name, and the folder that holds a folder of each worker."""

    folder: Path
    address: str
    pids: dict[str, int]

    @property
    def encoder(self) -> str:
        """What HLSRELAY_ENCODER is set to."""
        return self.address.replace("tcp://", "dask://").replace("tls://", "dask+tls://")

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
def cluster(
    folder: Path, workers: tuple[str, ...] = WORKERS, *, typed: bool = False, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Cluster]:
    """Run a scheduler and *workers*, each with one slot, while the block runs; *settings* are environment variables of Dask's."""
    folder.mkdir(parents=True, exist_ok=True)
    env = os.environ | settings | {"PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__ADMIN__LOG_FORMAT": "%(message)s"}
    with ExitStack() as stack:
        if typed:
            yield _typed(stack, folder, workers, env, "tls" if settings else "tcp")
            return
        argv = [sys.executable, "-m", "tests.acceptance.dask_processes", str(folder), *workers]
        process = stack.enter_context(running(argv, folder / "log", cwd=ROOT, env=env))
        up = [folder / f"{name}.up" for name in ("scheduler", *workers)]
        until(lambda: all(path.exists() for path in up) or process.poll() is not None, UP_WITHIN_S)
        assert process.poll() is None, (folder / "log").read_text()
        told = [json.loads(path.read_text()) for path in up]
        yield Cluster(folder, told[0]["address"], {path.stem: one["pid"] for path, one in zip(up, told, strict=True)})


def _typed(stack: ExitStack, folder: Path, workers: tuple[str, ...], env: dict[str, str], scheme: str) -> Cluster:
    dask = str(Path(sys.executable).with_name("dask"))
    log = folder / "scheduler"
    argv = [dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--dashboard-address", ":0", "--protocol", scheme]
    pids = {"scheduler": stack.enter_context(running(argv, log, cwd=ROOT, env=env)).pid}
    found = until(lambda: re.search(rf"Scheduler at: +({scheme}://\S+)", log.read_text()), UP_WITHIN_S)
    for name in workers:
        argv = [dask, "worker", found[1], "--no-nanny", "--no-dashboard", "--nthreads", "1", "--resources", "ffmpeg=1"]
        argv += ["--name", name, "--local-directory", str(folder / name)]
        pids[name] = stack.enter_context(running(argv, folder / f"{name}.log", cwd=ROOT, env=env)).pid
    for name in workers:
        until(lambda name=name: "Registered to" in (folder / f"{name}.log").read_text(), UP_WITHIN_S)  # type: ignore[misc]
    return Cluster(folder, found[1], pids)
