"""Whether three renditions of a stream cost less than three streams: `python -m bench.renditions [--streams 20]`.

The same playlists and segments, three times as many streams or three variants of each: CPU seconds of the relay per track and minute.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from bench import probe
from bench.__main__ import SHARED_MEMORY, default_cache
from bench.origin import ROOT, media, serving
from bench.schedule import stream_name
from hlsrelay.log import start_logging
from hlsrelay.processes import Children

SEGMENT_S, LISTED, FILES, VARIANTS = 4.0, 6, 40, 3
SETTLES_S = (2 * LISTED + 6) * SEGMENT_S
MASTER = "#EXTM3U\n" + "".join(
    f"#EXT-X-STREAM-INF:BANDWIDTH={bandwidth},RESOLUTION=480x{270 + index}\n{{stream}}/index.m3u8?rendition={index}\n"
    for index, bandwidth in enumerate((6_000_000, 5_500_000, 5_000_000))
)


async def cost(url: str, streams: int, folder: Path, seconds: float, tracks: int) -> float:
    """Return the CPU seconds per track and minute of a process that relays *streams* streams from *url*, tracks of them in all."""
    children = Children()
    argv = [sys.executable, "-m", "bench.node", str(streams), url, "--window", f"{SEGMENT_S * LISTED:g}"]
    env = {
        "HLSRELAY_DATA": str(folder),
        "HLSRELAY_HTTP": "127.0.0.1:0",
        "HLSRELAY_ALLOW_NETWORKS": "127.0.0.0/8",
        "HLSRELAY_LOG": "json",
    }
    try:
        async with children.spawn(argv, purpose="hlsrelay", cwd=ROOT, env=env) as node:
            await asyncio.sleep(SETTLES_S)
            published = sum(1 for _ in (folder / "live").glob("*/*/index.m3u8"))
            if published < tracks:
                raise SystemExit(f"{published} of {tracks} tracks are published: the machine is too busy")
            before_s = probe.cpu_s(probe.tree([node.pid]))
            await asyncio.sleep(seconds)
            return (probe.cpu_s(probe.tree([node.pid])) - before_s) / tracks / (seconds / 60)
    finally:
        await children.aclose()


async def measure(streams: int, seconds: float, cache: Path) -> None:
    """Measure one after the other against the same origin, and print."""
    children = Children()
    tracks = VARIANTS * streams
    parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    try:
        files = await media(cache, SEGMENT_S, FILES, children)
        with tempfile.TemporaryDirectory(prefix="hlsrelay-bench-", dir=parent) as temp:
            folder = Path(temp)
            serve = serving(folder / "origin", files, children, streams=tracks, segment_s=SEGMENT_S, listed=LISTED)
            async with serve as origin:
                masters(folder / "origin" / "live", streams)
                apart = await cost(f"{origin.url}/{{}}/index.m3u8", tracks, folder / "apart", seconds, tracks)
                print(f"{tracks} streams:                 {apart:.4f} CPU s per track and minute", flush=True)
                together = await cost(f"{origin.url}/{{}}.m3u8", streams, folder / "together", seconds, tracks)
                print(f"{streams} streams of {VARIANTS} variants:    {together:.4f}, {together / apart:.2f} x", flush=True)
    finally:
        await children.aclose()


def masters(folder: Path, streams: int) -> None:
    """Have an origin that serves *folder* have multivariant playlists too."""
    for index in range(streams):
        name = stream_name(index)
        (folder / f"{name}.m3u8").write_text(MASTER.format(stream=name))


def main() -> None:
    """Read the command line, and measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--streams", type=int, default=20)
    options.add_argument("--seconds", type=float, default=24.0)
    options.add_argument("--cache", type=Path, default=default_cache())
    chosen = options.parse_args()
    start_logging("text")
    asyncio.run(measure(chosen.streams, chosen.seconds, chosen.cache))


if __name__ == "__main__":
    main()
