"""Two checkouts of hlsrelay, or more, side by side: `python -m bench.builds CHECKOUT CHECKOUT …`.

Each relays the same streams of one origin at the same time, in a process and a Redis of its own, so that whatever else the machine does
befalls all alike: what differs by a few percent shows, where two runs one after the other differ by ten. Prints for each round what a
segment took of CPU, and its ratio to the first. A checkout brings its own `.venv` (`make install` there).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

from bench import probe
from bench.__main__ import SHARED_MEMORY, default_cache
from bench.measuring import SETTLED_SEGMENTS, SETTLED_WINDOWS
from bench.origin import Origin, media, serving
from bench.schedule import stream_name
from hlsrelay.log import start_logging
from hlsrelay.processes import Child, Children

SEGMENT_S, LISTED, FILES = 4.0, 6, 40
APART_S = 1.3
"""Between two starts: their loads are not to fall together."""
STARTED_S = 25.0
"""So long they may take until all streams are up."""


async def started(checkout: Path, streams: int, origin: Origin, folder: Path, children: Children, stack: AsyncExitStack) -> Child:
    """Start the relay of a checkout, which writes into *folder*."""
    url = origin.playlist(0).replace(stream_name(0), "{}", 1)
    argv = [str(checkout / ".venv" / "bin" / "python"), "-m", "bench.node", str(streams), url, "--window", f"{LISTED * SEGMENT_S:g}"]
    argv += ["--trust", str(origin.certificate)] if origin.certificate else []
    env = {
        "HLSRELAY_DATA": str(folder),
        "HLSRELAY_HTTP": "127.0.0.1:0",
        "HLSRELAY_ALLOW_NETWORKS": "127.0.0.0/8",
        "HLSRELAY_LOG": "json",
        "PYTHONPATH": str(checkout),
    }
    return await stack.enter_async_context(children.spawn(argv, purpose=f"hlsrelay of {checkout}", cwd=checkout, env=env))


async def compared(chosen: argparse.Namespace) -> None:
    """Run all of them, and print each round."""
    children, beside = Children(), Children()
    folder = Path(tempfile.mkdtemp(prefix="hlsrelay-builds-", dir=chosen.data or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)))
    try:
        files = await media(chosen.cache, SEGMENT_S, FILES, children)
        serve = serving(
            folder / "origin", files, beside, streams=chosen.streams, segment_s=SEGMENT_S, listed=LISTED, tls=chosen.tls, paced=chosen.paced
        )
        async with serve as origin, AsyncExitStack() as stack:
            relays = []
            for index, checkout in enumerate(chosen.checkouts):
                relays.append(await started(checkout, chosen.streams, origin, folder / f"{index}", children, stack))
                await asyncio.sleep(APART_S)
            await asyncio.sleep(STARTED_S + (SETTLED_WINDOWS * LISTED + SETTLED_SEGMENTS) * SEGMENT_S)
            ratios: dict[Path, list[float]] = {checkout: [] for checkout in chosen.checkouts}
            for number in range(chosen.rounds):
                found = await costs(relays, chosen.seconds, chosen.streams)
                for checkout, cost_us in zip(chosen.checkouts, found, strict=True):
                    ratios[checkout].append(cost_us / found[0])
                    print(f"round {number + 1}  {checkout}  {cost_us:5.0f} us a segment, {cost_us / found[0]:.2f} x", flush=True)
            for checkout, all_of_them in ratios.items():
                print(f"median   {checkout}  {median(all_of_them):.2f} x")
    finally:
        await asyncio.gather(children.aclose(), beside.aclose())
        shutil.rmtree(folder, ignore_errors=True)


async def costs(relays: list[Child], window_s: float, streams: int) -> list[float]:
    """Return what each relay takes of CPU for a segment, its Redis included, in microseconds, over a window."""
    trees = [probe.tree([one.pid]) for one in relays]
    before = [probe.cpu_s(tree) for tree in trees]
    await asyncio.sleep(window_s)
    return [(probe.cpu_s(tree) - begun_s) / (streams * window_s / SEGMENT_S) * 1e6 for tree, begun_s in zip(trees, before, strict=True)]


def main() -> None:
    """Compare, and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("checkouts", type=Path, nargs="+", metavar="CHECKOUT")
    options.add_argument("--streams", type=int, default=50)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=48.0, help="how long a round is")
    options.add_argument("--tls", action="store_true")
    options.add_argument("--paced", action="store_true")
    options.add_argument("--data", type=Path, help="where they write (default: shared memory)")
    options.add_argument("--cache", type=Path, default=default_cache())
    chosen = options.parse_args()
    chosen.checkouts = [one.resolve() for one in chosen.checkouts]
    for one in chosen.checkouts:
        if not os.access(one / ".venv" / "bin" / "python", os.X_OK):
            options.error(f"{one} has no .venv/bin/python: run `make install` there")
    start_logging("text")
    asyncio.run(compared(chosen))


if __name__ == "__main__":
    main()
