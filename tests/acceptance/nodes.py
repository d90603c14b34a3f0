"""Several `hlsrelay worker` processes and one Redis, and what there is to see of who relays what."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hlsrelay.hls.parse import parse
from hlsrelay.model import Snapshot
from tests.acceptance.relay_process import ROOT, RedisServer, environment, running
from tests.waiting import until

LEASE_S = 3.0


@dataclass(frozen=True)
class Worker:
    """A running `hlsrelay worker`."""

    name: str
    process: subprocess.Popen[bytes]
    words: Path


@contextmanager
def working(name: str, data: Path, redis: RedisServer, **settings: str) -> Iterator[Worker]:
    """Run a worker while the block runs, from when it takes part on."""
    data.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"words-{name}-", dir=data))
    argv = [sys.executable, "-m", "hlsrelay", "worker"]
    env = environment(data, redis, HLSRELAY_NODE=name, **settings)
    with running(argv, folder / "stderr", stdout=folder / "stdout", cwd=ROOT, env=env) as process:
        until(lambda: name in redis_names(redis))
        yield Worker(name, process, folder / "stderr")


def redis_names(redis: RedisServer) -> set[str]:
    """Return the names of the sessions in Redis."""
    keys = redis.cli("--scan", "--pattern", "hlsrelay:node:*").split()
    return {redis.cli("HGET", key, "name") for key in keys}


def owner(redis: RedisServer, stream: str = "news") -> tuple[str, str]:
    """Return who has a stream, and its state."""
    key = f"hlsrelay:stream:{stream}"
    return redis.cli("HGET", key, "node"), redis.cli("HGET", key, "state")


def runs_on(redis: RedisServer, *names: str, stream: str = "news") -> str | None:
    """Return which of *names* relays a stream, None where none does."""
    node, state = owner(redis, stream)
    return node if node in names and state == "running" else None


def listed(data: Path) -> Snapshot:
    """Return the playlist of the stream's source as it is published."""
    found = parse((data / "live/news/source/index.m3u8").read_bytes(), "file:///")
    assert isinstance(found, Snapshot)
    return found


def is_whole(data: Path) -> bool:
    """Return whether all that is listed is there, without a GAP or DISCONTINUITY, and no content is there twice."""
    snapshot = listed(data)
    folder = data / "live/news/source"
    bodies = [(folder / one.uri.rpartition("/")[2]).read_bytes() for one in snapshot.segments if not one.gap]
    assert len(set(bodies)) == len(bodies), "something is listed twice"
    return len(bodies) == len(snapshot.segments) and not any(one.discontinuity for one in snapshot.segments)


def newest(data: Path) -> int:
    return listed(data).segments[-1].sequence
