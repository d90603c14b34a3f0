"""Whether anything grows: `python -m bench.soak churn [--streams 1000 --times 10]`, `… restarts [--streams 200 --minutes 30]`.

churn: streams are registered with a real `hlsrelay worker`, relayed, and removed, again and again.
restarts: streams are relayed while their origin is ended and begun anew, with numbers that begin anew and media that nobody has seen, again
and again.

Each time what the worker holds is told: memory (PSS), descriptors, threads, children. Streams are light, of 250 kbit/s: what is looked for
is what grows with streams and segments, not with their bytes. The last line says how far the last half is from the first, leaving the
first time out.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import probe
from bench.__main__ import FOLDER, SHARED_MEMORY, default_cache
from bench.control_plane import KEYS, redis_at
from bench.origin import ROOT, free_port, media, serving
from bench.schedule import stream_name
from hlsrelay import steering
from hlsrelay.log import start_logging
from hlsrelay.processes import Children
from hlsrelay.redis_registry import RedisRegistry

KBPS = 250
SEGMENT_S = 4.0
LISTED = 6
SETTLED_S = 3 * SEGMENT_S
WITHIN_S = 600.0
GONE_S = 10.0


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds."""

    pss_mib: float
    descriptors: int
    threads: int
    children: int

    def __str__(self) -> str:
        return f"{self.pss_mib:6.1f} MiB, {self.descriptors} descriptors, {self.threads} threads, {self.children} children"


def held(pid: int) -> Held:
    """Look at a process."""
    return Held(
        probe.pss_bytes([pid]) / 2**20,
        len(os.listdir(f"/proc/{pid}/fd")),
        len(os.listdir(f"/proc/{pid}/task")),
        len(probe.tree([pid])) - 1,
    )


@dataclass(frozen=True, slots=True)
class Bench:
    """A worker and the Redis that it follows."""

    registry: RedisRegistry
    client: Any
    pid: int
    url: str

    async def add(self, count: int) -> None:
        """Register streams."""
        for index in range(count):
            name = stream_name(index)
            await steering.register(self.registry, name, {"source": f"{self.url}/{name}/index.m3u8", "window": "24"})

    async def remove(self, count: int) -> None:
        """Remove them, as an operator does."""
        for index in range(count):
            await steering.remove(self.registry, stream_name(index))

    async def states(self, count: int) -> list[str]:
        """Return the state of each stream."""
        pipeline = self.client.pipeline(transaction=False)
        for index in range(count):
            pipeline.hget(KEYS.stream(stream_name(index)), "state")
        return [one or "" for one in await pipeline.execute()]


async def comes(what: str, done: Callable[[], Any]) -> float:
    """Wait until *done*, and return how long that took. Raises TimeoutError."""
    began_s = time.monotonic()
    async with asyncio.timeout(WITHIN_S):
        while not await done():
            print(f"\r  {what}: {time.monotonic() - began_s:.0f} s", end="", file=sys.stderr)
            await asyncio.sleep(0.5)
    return time.monotonic() - began_s


@asynccontextmanager
async def working(data: Path, streams: int, port: int, children: Children) -> AsyncGenerator[Bench, None]:
    """Run a Redis and a worker while the block runs."""
    async with AsyncExitStack() as stack:
        url, client = await stack.enter_async_context(redis_at(data / "redis", children))
        env = {
            "HLSRELAY_REDIS_URL": url,
            "HLSRELAY_HTTP": "127.0.0.1:0",
            "HLSRELAY_CAPACITY": str(2 * streams),
            "HLSRELAY_DATA": str(data / "data"),
            "HLSRELAY_ALLOW_NETWORKS": "127.0.0.0/8",
            "HLSRELAY_LOG": "json",
        }
        argv = [sys.executable, "-m", "hlsrelay", "worker"]
        worker = await stack.enter_async_context(children.spawn(argv, purpose="worker", cwd=ROOT, env=env))
        registry = RedisRegistry(url)
        stack.push_async_callback(registry.aclose)
        yield Bench(registry, client, worker.pid, f"http://127.0.0.1:{port}")


def told(found: Sequence[Held]) -> str:
    """Return how what is held at the end is beside what was held in the middle."""
    kept = found[1:]
    first, last = kept[: max(1, len(kept) // 2)], kept[len(kept) // 2 :]

    def grown(get: Callable[[Held], float]) -> float:
        return median(map(get, last)) - median(map(get, first))

    return (
        f"the last half beside the first: {grown(lambda one: one.pss_mib):+.1f} MiB, "
        f"{grown(lambda one: one.descriptors):+.0f} descriptors, "
        f"{grown(lambda one: one.threads):+.0f} threads, {grown(lambda one: one.children):+.0f} children"
    )


async def churn(data: Path, streams: int, times: int) -> None:
    """Add, relay and remove."""
    children = Children()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(children.aclose)
        files = await media(default_cache(), SEGMENT_S, 40, children, KBPS)
        port = free_port()
        await stack.enter_async_context(
            serving(data / "origin", files, children, streams=streams, segment_s=SEGMENT_S, listed=LISTED, port=port)
        )
        bench = await stack.enter_async_context(working(data, streams, port, children))
        found = list[Held]()

        async def all_run() -> bool:
            return set(await bench.states(streams)) == {"running"}

        async def all_gone() -> bool:
            return not any(await bench.states(streams))

        for number in range(1, times + 1):
            began_s = time.monotonic()
            await bench.add(streams)
            up_s = await comes("relayed", all_run) + time.monotonic() - began_s
            await asyncio.sleep(SETTLED_S)
            full = held(bench.pid)
            await bench.remove(streams)
            await comes("removed", all_gone)
            await asyncio.sleep(GONE_S)
            found.append(held(bench.pid))
            print(
                f"\r{number}: {streams} streams, all relayed after {up_s:.0f} s: {full.pss_mib:.1f} MiB; removed: {found[-1]}", flush=True
            )
        print(told(found))


async def restarts(data: Path, streams: int, minutes: float, each_s: float) -> None:
    """Relay while the origin is begun anew."""
    children = Children()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(children.aclose)
        lives = math.ceil(60 * minutes / each_s)
        fresh = math.ceil(each_s / SEGMENT_S) + LISTED + 1
        files = await media(default_cache(), SEGMENT_S, lives * fresh, children, KBPS)
        port = free_port()
        bench = await stack.enter_async_context(working(data, streams, port, children))
        found, until_s, number = list[Held](), time.monotonic() + 60 * minutes, 0
        while time.monotonic() < until_s:
            folder = data / f"origin{number}"
            # What was shown before would pass for an edge that is behind.
            anew = linked(files[number * fresh % len(files) :][:fresh], data / f"media{number}")
            async with serving(folder, anew, children, streams=streams, segment_s=SEGMENT_S, listed=LISTED, port=port):
                if not number:
                    await bench.add(streams)
                await asyncio.sleep(each_s)
                states = await bench.states(streams)
                found.append(held(bench.pid))
            running = states.count("running")
            number += 1
            print(f"origin {number}: {running} of {streams} running; {found[-1]}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
        print(told(found))


def linked(files: Sequence[Path], folder: Path) -> list[Path]:
    """Return *files* under the names that an origin gives them."""
    folder.mkdir()
    links = [folder / f"{index}.ts" for index in range(len(files))]
    for link, file in zip(links, files, strict=True):
        link.symlink_to(file)
    return links


def main() -> None:
    """Read the command line, and run."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=["churn", "restarts"])
    options.add_argument("--streams", type=int, default=0, help="how many (1000 in churn, 200 in restarts)")
    options.add_argument("--times", type=int, default=10, help="churn: how often (%(default)s)")
    options.add_argument("--minutes", type=float, default=30.0, help="restarts: how long (%(default)s)")
    options.add_argument("--each", type=float, default=60.0, help="restarts: how long an origin lives, in seconds (%(default)s)")
    chosen = options.parse_args()
    start_logging("text")
    parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    data = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-", dir=parent))
    try:
        if chosen.what == "churn":
            asyncio.run(churn(data, chosen.streams or 1000, chosen.times))
        else:
            asyncio.run(restarts(data, chosen.streams or 200, chosen.minutes, chosen.each))
    finally:
        shutil.rmtree(data, ignore_errors=True)


if __name__ == "__main__":
    main()
