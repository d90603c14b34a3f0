"""Several `hlsrelay worker` processes and one Redis, and what there is to see of who relays what."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx

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


def listed(data: Path, stream: str = "news") -> Snapshot:
    """Return the playlist of the stream's source as it is published."""
    found = parse((data / f"live/{stream}/source/index.m3u8").read_bytes(), "file:///")
    assert isinstance(found, Snapshot)
    return found


def is_whole(data: Path, stream: str = "news") -> bool:
    """Return whether all that is listed is there, without a GAP or DISCONTINUITY, and no content is there twice."""
    snapshot = listed(data, stream)
    folder = data / "live" / stream / "source"
    bodies = [(folder / one.uri.rpartition("/")[2]).read_bytes() for one in snapshot.segments if not one.gap]
    assert len(set(bodies)) == len(bodies), "something is listed twice"
    return len(bodies) == len(snapshot.segments) and not any(one.discontinuity for one in snapshot.segments)


def newest(data: Path, stream: str = "news") -> int:
    return listed(data, stream).segments[-1].sequence


def free_port() -> int:
    """Return a port of loopback that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Audience:
    """Players of several streams who come again and again, over connections of their own or kept ones: what they got, and when."""

    EVERY_S = 0.2

    def __init__(self, url: str, streams: Sequence[str]) -> None:
        self.failures: list[str] = []
        self.resets = 0
        """Requests that were made a second time, because no answer came."""
        self.first_s: dict[str, dict[int, float]] = {stream: {} for stream in streams}
        self.cuts = 0
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(keeps,), daemon=True) for keeps in (True, False)]

    def __enter__(self) -> Audience:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _watch(self, keeps: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=None if keeps else 0)
        with httpx.Client(trust_env=False, limits=limits, timeout=10) as client:
            while not self._over.wait(self.EVERY_S):
                for stream in self.first_s:
                    self._look(client, stream)

    def _look(self, client: httpx.Client, stream: str) -> None:
        try:
            answer = self._asked(client, f"{self._url}/live/{stream}/source/index.m3u8")
        except httpx.TransportError as error:
            self.failures.append(f"{stream}: {type(error).__name__} {error}")
            return
        if answer.status_code != 200:
            self.failures.append(f"{stream}: {answer.status_code}")
            return
        snapshot = parse(answer.content, "file:///")
        assert isinstance(snapshot, Snapshot)
        first_s = self.first_s[stream]
        for segment in snapshot.segments:
            first_s.setdefault(segment.sequence, time.monotonic())
            self.cuts += segment.discontinuity
        if snapshot.ended:
            self.failures.append(f"{stream}: ENDLIST")

    def _asked(self, client: httpx.Client, url: str) -> httpx.Response:
        """Ask, and once more where no answer came, as players do: the kernel resets what waits at a port that is just being closed."""
        try:
            return client.get(url)
        except httpx.TransportError:
            self.resets += 1
            return client.get(url)

    def longest_interval_s(self) -> float:
        """Return the longest time from a segment to the next one, as it was listed, of all streams; the first playlist aside."""
        intervals = []
        for first_s in self.first_s.values():
            times = sorted(set(first_s.values()))[1:]
            intervals += [after - before for before, after in pairwise(times)]
        return max(intervals)

    def missing(self) -> int:
        """Return how many numbers between the first and the last of each stream nobody ever saw listed."""
        return sum(max(seen) - min(seen) + 1 - len(seen) for seen in self.first_s.values())
