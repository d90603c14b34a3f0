"""How soon a stream can be played: `python -m bench.startup [--times 7]`.

CPU seconds of `hlsrelay --help`; and of `hlsrelay run`, with a Redis that runs already and with the embedded one: seconds from its start
until the stream's first playlist is there, and how long the segment that it lists takes to fetch alone. The claim: a second and that.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from urllib.parse import urljoin

import httpx

from bench.__main__ import default_cache
from bench.control_plane import redis_at
from bench.copy_cost import one_stream
from bench.origin import ROOT
from hlsrelay.log import start_logging
from hlsrelay.processes import Children

HLSRELAY = [sys.executable, "-m", "hlsrelay"]
LOOK_S = 0.005
WITHIN_S = 30.0


def help_cpu_s() -> float:
    """Return the CPU seconds of `hlsrelay --help`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*HLSRELAY, "--help"], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def first_playlist_s(data: Path, url: str, children: Children, redis_url: str) -> float:
    """Return the seconds from the start of `hlsrelay run` until the stream's first playlist is published."""
    env = {"HLSRELAY_REDIS_URL": redis_url, "HLSRELAY_DATA": str(data), "HLSRELAY_HTTP": "127.0.0.1:0", "HLSRELAY_LOG": "json"}
    env |= {"HLSRELAY_ALLOW_NETWORKS": "127.0.0.0/8"}
    async with children.spawn([*HLSRELAY, "add", data.name, url], purpose="add", cwd=ROOT, env=env) as adding:
        await adding.wait()
    playlist = data / "live" / data.name / "source" / "index.m3u8"
    began_s = time.monotonic()
    async with children.spawn([*HLSRELAY, "run", data.name], purpose="run", cwd=ROOT, env=env):
        async with asyncio.timeout(WITHIN_S):
            while not playlist.exists():  # noqa: ASYNC110 - nobody sets an event for it
                await asyncio.sleep(LOOK_S)
        return time.monotonic() - began_s


def newest(url: str) -> str:
    """Return the URL of the newest segment that the playlist *url* lists."""
    lines = httpx.get(url).text.split()
    return urljoin(url, next(line for line in reversed(lines) if not line.startswith("#")))


def fetched_s(url: str) -> float:
    """Return how long it takes to fetch *url*."""
    began_s = time.monotonic()
    httpx.get(url).raise_for_status()
    return time.monotonic() - began_s


async def measure(times: int, cache: Path) -> None:
    """Measure, and print."""
    helps = [await asyncio.to_thread(help_cpu_s) for _ in range(times)]
    print(f"hlsrelay --help: {median(helps):.3f} CPU s ({min(helps):.3f} to {max(helps):.3f})")
    async with one_stream(cache) as (origin, folder, children):
        url = origin.playlist(0)
        alone = [await asyncio.to_thread(fetched_s, await asyncio.to_thread(newest, url)) for _ in range(times)]
        async with redis_at(folder / "redis", children) as (redis_url, _):
            for name, where in (("a Redis that runs", redis_url), ("the embedded Redis", "")):
                found = [await first_playlist_s(folder / f"r{len(name)}-{turn}", url, children, where) for turn in range(times)]
                print(
                    f"hlsrelay run, {name}: first playlist after {median(found):.2f} s ({min(found):.2f} to {max(found):.2f}), "
                    f"its segment alone takes {median(alone):.3f} s"
                )


def main() -> None:
    """Read the command line, and measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--times", type=int, default=7)
    options.add_argument("--cache", type=Path, default=default_cache())
    chosen = options.parse_args()
    start_logging("text")
    asyncio.run(measure(chosen.times, chosen.cache))


if __name__ == "__main__":
    main()
