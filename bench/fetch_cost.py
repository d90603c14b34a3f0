"""What fetching alone costs, beside what the kernel's own part of it is: `python -m bench.fetch_cost`.

Fetches the bench's own segments one after another, by `Upstream.fetch` into nothing and into a file as downloading does, and by plain
blocking calls (`bench.copy_cost`). Prints CPU seconds per stream-minute of 5 Mbps, the median of passes that are interleaved; each
pass is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path
from statistics import median

import uvloop

from bench import copy_cost
from bench.__main__ import default_cache
from bench.copy_cost import FILES, SEGMENT_S, SEGMENTS
from bench.origin import ROOT
from hlsrelay import transport
from hlsrelay.growing import Growing
from hlsrelay.log import start_logging
from hlsrelay.model import Sink
from hlsrelay.processes import Stdout
from hlsrelay.storage import LocalStorage
from hlsrelay.upstream import Upstream

LOOPBACK = (ip_network("127.0.0.0/8"),)


async def into_nothing(upstream: Upstream, uri: str, _: LocalStorage) -> None:
    """Fetch a segment."""

    def restart() -> Sink:
        return len

    await upstream.fetch(uri, None, restart, 60.0)


async def into_file(upstream: Upstream, uri: str, storage: LocalStorage) -> None:
    """Fetch a segment into a file."""
    with Growing(storage, "segment") as file:
        await upstream.fetch(uri, None, file.restart, 60.0)


WAYS: dict[str, Callable[[Upstream, str, LocalStorage], Awaitable[None]]] = {"fetch": into_nothing, "fetch into a file": into_file}


async def fetched(way: str, url: str, folder: Path) -> float:
    """Fetch SEGMENTS segments and return the CPU seconds per stream-minute."""
    with LocalStorage(folder, "bench") as storage:
        async with Upstream(LOOPBACK) as upstream:
            await WAYS[way](upstream, f"{url}/s000/0-0.ts", storage)
            begun_s = time.process_time()
            for number in range(SEGMENTS):
                await WAYS[way](upstream, f"{url}/s000/{number}-{number % FILES}.ts", storage)
            return (time.process_time() - begun_s) / (SEGMENTS * SEGMENT_S / 60)


async def measure(passes: int, cache: Path, *, tls: bool, paced: bool) -> dict[str, float]:
    """Return the medians."""
    plain = {} if tls or paced else {name: move for name, move in copy_cost.MOVES.items() if "64" in name or "only" in name}
    costs: dict[str, list[float]] = {name: [] for name in (*plain, *WAYS)}
    async with copy_cost.one_stream(cache, tls=tls, paced=paced) as (origin, folder, children):
        for _ in range(passes):
            for name, move in plain.items():
                costs[name].append(await copy_cost.moved(origin, folder, move))
            for name in WAYS:
                argv = [sys.executable, "-m", "bench.fetch_cost", "--way", name, "--url", origin.url, "--folder", str(folder)]
                argv += ["--trust", str(origin.certificate)] if origin.certificate else []
                async with children.spawn(argv, purpose="bench fetch", cwd=ROOT, stdout=Stdout.LINES) as child:
                    costs[name] += [float(line) async for line in child.lines()]
    return {name: median(found) for name, found in costs.items()}


def main() -> None:
    """Measure, and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--passes", type=int, default=5)
    options.add_argument("--cache", type=Path, default=default_cache())
    options.add_argument("--tls", action="store_true", help="by https")
    options.add_argument("--paced", action="store_true", help="at 10 Mbps")
    options.add_argument("--way", choices=WAYS, help="one pass of this, of what is served at --url")
    options.add_argument("--url")
    options.add_argument("--folder", type=Path)
    options.add_argument("--trust", type=Path)
    chosen = options.parse_args()
    if chosen.way:
        if chosen.trust:
            transport._tls().load_verify_locations(chosen.trust)
        print(uvloop.run(fetched(chosen.way, chosen.url, chosen.folder)))
        return
    start_logging("text")
    copy_cost.tell(asyncio.run(measure(chosen.passes, chosen.cache, tls=chosen.tls, paced=chosen.paced)))


if __name__ == "__main__":
    main()
