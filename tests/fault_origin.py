"""The fault table on real sockets: an HTTP server of our own that truncates, drips, lies about lengths and hangs up as it is told.

async with fault_origin() as origin:
    source = origin.add(fault, target_s=1.0)    # its playlist is at f"{source.base}/index.m3u8"
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

from tests.faulty_source import Fault, Reply, Source

CHUNK_BYTES = 700
HOST = "127.0.0.1"


@dataclass
class FaultOrigin:
    """A server with one path prefix for each fault."""

    url: str = ""
    sources: dict[str, Source] = field(default_factory=dict)
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    def add(self, fault: Fault, target_s: float, *, dated: bool = False) -> Source:
        """Begin a source, now."""
        source = Source(fault, f"{self.url}/{fault.name}", target_s, asyncio.get_running_loop().time, dated=dated)
        self.sources[fault.name] = source
        return source

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, until one of both ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):  # only aclose cancels it, and awaits it
                while await self._answer((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"), writer):
                    pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def aclose(self) -> None:
        """End all connections."""
        left = list(self._connections)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; returns whether the connection stays."""
        first, *lines = head.split("\r\n")
        path, _, query = first.split(" ")[1].partition("?") if first.startswith("GET ") else ("", "", "")
        name, _, path = path.lstrip("/").partition("/")
        headers = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines if line)}
        if not path or "transfer-encoding" in headers or "content-length" in headers:  # a GET has no body: strict servers refuse one
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return False
        reply = self.sources[name].answer(path, query, headers) if name in self.sources else Reply(404)
        if reply.status == 0:
            writer.transport.abort()
            return False
        writer.write(_head(reply))
        await _send(reply, writer)
        return reply.sent is None and not reply.without_length


def _head(reply: Reply) -> bytes:
    lines = [f"HTTP/{reply.version} {reply.status} As told", *(f"{name}: {value}" for name, value in reply.headers)]
    if (length := reply.length()) is not None:
        lines.append(f"Content-Length: {length}")
    if reply.chunked:
        lines.append("Transfer-Encoding: chunked")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _send(reply: Reply, writer: asyncio.StreamWriter) -> None:
    body = reply.body if reply.sent is None else reply.body[: reply.sent]
    size = 1 if reply.byte_takes_s else CHUNK_BYTES
    for begin in range(0, len(body), size):
        part = body[begin : begin + size]
        writer.write(b"%x\r\n%b\r\n" % (len(part), part) if reply.chunked else part)
        await writer.drain()
        if reply.byte_takes_s:
            await asyncio.sleep(reply.byte_takes_s)
    if reply.chunked and reply.sent is None:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


@asynccontextmanager
async def fault_origin() -> AsyncGenerator[FaultOrigin, None]:
    """Serve on a free port of the loopback interface while the block runs."""
    origin = FaultOrigin()
    server = await asyncio.start_server(origin.serve, HOST, 0)
    origin.url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    try:
        yield origin
    finally:
        server.close()
        await origin.aclose()
        await server.wait_closed()


@dataclass(frozen=True)
class BesideUs:
    """A fault origin in a thread of its own, for tests that wait for other processes."""

    url: str
    _origin: FaultOrigin
    _loop: asyncio.AbstractEventLoop

    def add(self, fault: Fault, target_s: float) -> None:
        """Begin a source, now. Until then its URL is a 404."""

        async def begin() -> None:
            self._origin.add(fault, target_s)

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(10.0)


@contextmanager
def fault_origin_beside_us() -> Iterator[BesideUs]:
    """Serve from a thread while the block runs."""
    serving = threading.Event()
    made: list[tuple[BesideUs, asyncio.Event]] = []

    async def serve() -> None:
        async with fault_origin() as origin:
            leaving = asyncio.Event()
            made.append((BesideUs(origin.url, origin, asyncio.get_running_loop()), leaving))
            serving.set()
            await leaving.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="fault origin")
    thread.start()
    try:
        assert serving.wait(10.0)
        yield made[0][0]
    finally:
        for beside, leaving in made:
            beside._loop.call_soon_threadsafe(leaving.set)
        thread.join(10.0)
