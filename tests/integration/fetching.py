"""An Upstream of the tests, what it is asked for, and servers: on a real socket, in virtual time, and one that never ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network

import httpx
import respx

from hlsrelay.model import SOURCE, ByteRange, Sink, Snapshot
from hlsrelay.upstream import Upstream
from tests.origin import Streaming
from tests.playlists import URL, stream
from tests.virtual import elapse

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
BASE = URL.rpartition("/")[0]


def upstream(router: respx.Router) -> Upstream:
    return Upstream(transport=lambda *_: Streaming(httpx.MockTransport(router.async_handler)))


def router() -> respx.Router:
    return respx.Router(assert_all_called=False)


async def loaded(source: Upstream, url: str) -> Snapshot:
    """Survey *url* and load its main track."""
    await source.survey(stream(url))
    return await source.load(SOURCE)


async def fetched(source: Upstream, uri: str, byterange: ByteRange | None = None, deadline_s: float = 5.0) -> bytes:
    body = bytearray()

    def restart() -> Sink:
        body.clear()
        return body.extend

    await source.fetch(uri, byterange, restart, deadline_s)
    return bytes(body)


class Drip(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """A server that sends a byte a second, for ever."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=self)

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while True:
            await elapse(1.0)
            yield b"#"


@asynccontextmanager
async def server(
    answer: Callable[[str], bytes | Awaitable[bytes]], host: str = "127.0.0.1", heads: list[bytes] | None = None
) -> AsyncGenerator[int, None]:
    """A raw HTTP server on loopback: *answer* gives the bytes for a path; the connection closes after them. *heads* are what was asked.

    It ends once all its connections have: one that is left open would fail whichever test comes when it is collected.
    """
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # who asked has had enough
            request = await reader.readuntil(b"\r\n\r\n")
            if heads is not None:
                heads.append(request)
            found = answer(request.split()[1].decode())
            writer.write(found if isinstance(found, bytes) else await found)
            await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    running = await asyncio.start_server(serve, host, 0)
    async with running:
        yield running.sockets[0].getsockname()[1]
        async with asyncio.timeout(30.0):
            await asyncio.gather(*(task for task in serving if task), return_exceptions=True)


def ok(body: bytes, *headers: str) -> bytes:
    head = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


class Line(httpx.AsyncBaseTransport):
    """Answers each request after *thinks_s* with the next of *bodies*, each of which is chunks and the pauses before them.

    A *length* is declared where there is one.
    """

    def __init__(self, *bodies: list[tuple[float, int]], length: int | None = None, thinks_s: float = 0.0) -> None:
        self._bodies, self._length, self._thinks_s = list(bodies), length, thinks_s
        self.asked = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        await elapse(self._thinks_s)
        headers = {} if self._length is None else {"content-length": str(self._length)}
        return httpx.Response(200, headers=headers, stream=_Paced(self._bodies[min(self.asked, len(self._bodies)) - 1]))


class _Paced(httpx.AsyncByteStream):
    def __init__(self, chunks: list[tuple[float, int]]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        for pause_s, length in self._chunks:
            await elapse(pause_s)
            yield b"x" * length
