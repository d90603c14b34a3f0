"""A relay for days, in virtual time: `python -m tests.days [--days 30]`. Prints each day what the process holds, then by what it grows.

The source lists a segment every 10 s, begins anew four times a day, and does not have one segment in 360. A player looks at each hour's
playlist. All that the source has given is forgotten at once, so that what grows is the relay's.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import tempfile
from collections.abc import Sequence
from contextlib import aclosing
from itertools import count
from pathlib import Path

import httpx

from hlsrelay.clock import Nudges
from hlsrelay.desk import Tools
from hlsrelay.hls.parse import parse
from hlsrelay.model import Snapshot
from hlsrelay.relay import relay
from hlsrelay.storage import LocalStorage
from hlsrelay.upstream import TransportFactory, Upstream
from tests.integration.relaying import NoEncoder, Operator
from tests.origin import Origin, Streaming
from tests.playlists import stream
from tests.virtual import VirtualClock, elapse, run_virtually

SEGMENT_S = 10.0
HOUR_S, DAY_S = 3600.0, 86_400.0
BEGINS_ANEW_S = 6 * HOUR_S + 1234.0
LACKED = 360
LEFT_OUT_DAYS = 1.0
"""What is held after so much is what has come to stay: what is remembered is full by then."""


class Forgetful(Origin):
    """A source that keeps nothing of what it gave."""

    def transport(self, *_: Origin) -> TransportFactory:
        return lambda *_: Streaming(httpx.MockTransport(self.answer))  # respx would remember each request

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith(".m3u8") and hash(request.url.path) % LACKED == 0:
            return httpx.Response(404)
        given = await super().answer(request)
        self.sent.clear()
        self.requests.clear()
        return given


def held_bytes() -> int:
    """Return how much memory this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def slope(days: Sequence[float], held: Sequence[int]) -> float:
    """Return by how many bytes a day what is held grows, by least squares."""
    mean_days, mean_held = sum(days) / len(days), sum(held) / len(held)
    over = sum((day - mean_days) ** 2 for day in days)
    return sum((day - mean_days) * (one - mean_held) for day, one in zip(days, held, strict=True)) / over


async def lived(days: float, folder: Path, each_days: float) -> tuple[list[float], list[int], int]:
    """Relay for so many days; returns when what was held was looked at, that, and how many segments were listed."""
    origin = Forgetful(duration_s=SEGMENT_S)
    seen_days, held, listed = list[float](), list[int](), 0

    async def restarts() -> None:
        for number in count(1):
            await elapse(BEGINS_ANEW_S)
            origin.restart(f"b{number}")

    async def looks(storage: LocalStorage) -> None:
        began_s = asyncio.get_running_loop().time()
        await elapse(LEFT_OUT_DAYS * DAY_S)
        while True:
            seen_days.append((asyncio.get_running_loop().time() - began_s) / DAY_S)
            held.append(held_bytes())
            playlist = parse(storage.read("source/index.m3u8") or b"", "file:///")
            assert isinstance(playlist, Snapshot)
            assert playlist.repairs == ()
            there = sum(1 for _ in storage.folder.rglob("*.ts"))
            print(f"day {seen_days[-1]:.2f}: {held[-1] / 2**20:.1f} MiB, {listed} segments listed, {there} files", flush=True)
            await elapse(each_days * DAY_S)

    with LocalStorage(folder, "news") as storage:
        await storage.taken()
        async with Upstream(transport=origin.transport()) as upstream:
            tools = Tools(upstream, storage, NoEncoder(), Operator(stream()), VirtualClock(), Nudges())
            beside = [asyncio.ensure_future(restarts()), asyncio.ensure_future(looks(storage))]
            async with aclosing(relay(tools)) as ticks:
                async for tick in ticks:
                    listed += tick.made is not None
                    if asyncio.get_running_loop().time() > days * DAY_S or any(task.done() for task in beside):
                        break
            for task in beside:
                task.cancel()
            for outcome in await asyncio.gather(*beside, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome
    return seen_days, held, listed


def main() -> None:
    """Read the command line, and live."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--days", type=float, default=30.0)
    options.add_argument("--each", type=float, default=1.0, help="days between two looks")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        seen_days, held, listed = run_virtually(lived(chosen.days, Path(folder), chosen.each))
    grows = slope(seen_days, held) / 2**20
    print(f"{listed} segments in {chosen.days:g} days: {grows:+.3f} MiB a day, from {held[0] / 2**20:.1f} to {held[-1] / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
