"""What the kernel takes to bring segments from a loopback socket into files, which no relay can go below: `python -m bench.copy_cost`.

Asks the bench's own origin for segments one after another over one connection and writes each to a file, in plain blocking calls. Prints
CPU seconds per stream-minute of 5 Mbps, the median of several passes, by how the bytes are moved.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from bench.__main__ import SHARED_MEMORY, default_cache
from bench.origin import Origin, media, serving
from hlsrelay.log import start_logging
from hlsrelay.processes import Children

SEGMENT_S = 4.0
FILES = 40
SEGMENTS = 30
Move = Callable[[socket.socket, int, int], None]
"""Moves so many bytes from a socket to a file descriptor."""


def by_chunks(size: int, *, keeps: bool = True) -> Move:
    """Read into a buffer of *size* bytes, and write that, or forget it: then only half of the work is done."""
    buffer = memoryview(bytearray(size))

    def move(source: socket.socket, target: int, length: int) -> None:
        while length:
            got = source.recv_into(buffer[: min(size, length)])
            if not got:
                raise ConnectionError("cut off")
            if keeps:
                os.write(target, buffer[:got])
            length -= got

    return move


def by_splice(source: socket.socket, target: int, length: int) -> None:
    """Let the kernel hand the pages on through a pipe (splice(2))."""
    reading, writing = os.pipe()
    try:
        while length:
            got = os.splice(source.fileno(), writing, min(length, 64 << 10))
            if not got:
                raise ConnectionError("cut off")
            length -= got
            while got:
                got -= os.splice(reading, target, got)
    finally:
        os.close(reading)
        os.close(writing)


MOVES: dict[str, Move] = {
    "read only, 256 KiB": by_chunks(256 << 10, keeps=False),
    "read and write, 16 KiB": by_chunks(16 << 10),
    "read and write, 64 KiB": by_chunks(64 << 10),
    "read and write, 256 KiB": by_chunks(256 << 10),
    "read and write, 1 MiB": by_chunks(1 << 20),
}
if hasattr(os, "splice"):
    MOVES["splice"] = by_splice


def fetch(host: str, port: int, folder: Path, move: Move) -> float:
    """Fetch SEGMENTS segments and return the CPU seconds per stream-minute."""
    with socket.create_connection((host, port)) as connection:
        path = folder / "segment"
        begun_s = time.process_time()
        for number in range(SEGMENTS):
            connection.sendall(f"GET /s000/{number}-{number % FILES}.ts HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += connection.recv(1)
            length = int(head.lower().partition(b"content-length:")[2].split(None, 1)[0])
            target = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                move(connection, target, length)
            finally:
                os.close(target)
                path.unlink()
        return (time.process_time() - begun_s) / (SEGMENTS * SEGMENT_S / 60)


@asynccontextmanager
async def one_stream(cache: Path, *, tls: bool = False, paced: bool = False) -> AsyncGenerator[tuple[Origin, Path, Children], None]:
    """Serve one stream while the block runs; gives its origin, a folder to write into, and what else may be started."""
    children = Children()
    parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    try:
        files = await media(cache, SEGMENT_S, FILES, children)
        with tempfile.TemporaryDirectory(prefix="hlsrelay-cost-", dir=parent) as temp:
            folder = Path(temp)
            serve = serving(folder / "origin", files, children, streams=1, segment_s=SEGMENT_S, listed=6, tls=tls, paced=paced)
            async with serve as origin:
                yield origin, folder, children
    finally:
        await children.aclose()


async def moved(origin: Origin, folder: Path, move: Move) -> float:
    """Fetch from *origin* in a thread; returns the CPU seconds per stream-minute."""
    where = urlsplit(origin.url)
    return await asyncio.to_thread(fetch, where.hostname or "", where.port or 0, folder, move)


async def measure(passes: int, cache: Path) -> dict[str, float]:
    """Return the medians, the passes interleaved."""
    costs: dict[str, list[float]] = {name: [] for name in MOVES}
    async with one_stream(cache) as (origin, folder, _):
        for _ in range(passes):
            for name, move in MOVES.items():
                costs[name].append(await moved(origin, folder, move))
    return {name: median(found) for name, found in costs.items()}


def tell(costs: dict[str, float]) -> None:
    """Print a table."""
    for name, cost in costs.items():
        print(f"{name:<26} {cost:6.4f} CPU s per stream-minute")


def main() -> None:
    """Measure, and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--passes", type=int, default=5)
    options.add_argument("--cache", type=Path, default=default_cache())
    chosen = options.parse_args()
    start_logging("text")
    tell(asyncio.run(measure(chosen.passes, chosen.cache)))


if __name__ == "__main__":
    main()
