"""A way to Redis that can be stalled, as by a network that drops all packets: nothing comes through, and nothing is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Way:
    """A TCP port of loopback that leads to a unix socket."""

    def __init__(self, to: Path) -> None:
        self._to = to
        self._loop = asyncio.new_event_loop()
        self._opens = asyncio.Event()
        self._up = threading.Event()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._led(),), daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        """What HLSRELAY_REDIS_URL is set to."""
        return f"redis://127.0.0.1:{self.port}/0"

    def stall(self) -> None:
        """Let nothing through from now on; what was under way is kept."""
        self._loop.call_soon_threadsafe(self._opens.clear)

    def flow(self) -> None:
        """Let all through again."""
        self._loop.call_soon_threadsafe(self._opens.set)

    def start(self) -> None:
        """Open it."""
        self._thread.start()
        self._up.wait()

    def end(self) -> None:
        """Close it, and all connections."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    async def _led(self) -> None:
        self._opens.set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._over.wait()
        server.close()
        ours = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not ours]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(self._to)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._passed(reader, there_writer))
                both.create_task(self._passed(there_reader, writer))
        finally:
            writer.close()
            there_writer.close()

    async def _passed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while words := await reader.read(65536):
                await self._opens.wait()
                writer.write(words)
                await writer.drain()
        writer.close()


@contextmanager
def stalling(to: Path) -> Iterator[Way]:
    """Open a way to the unix socket *to* while the block runs."""
    way = Way(to)
    way.start()
    try:
        yield way
    finally:
        way.end()
