"""GET over HTTP/1.1, for many bytes and few objects: bodies go straight from the socket to whoever wants them.

Laws:
- Bytes go from the socket into the one buffer of their thread, and from there to who wants them in the same turn of the loop: nothing
  waits in memory, and nobody may keep what it was handed.
- While a body comes whose length is declared, the kernel wakes us once WAKE_BYTES are there, or the rest of it (SO_RCVLOWAT), and not for
  each packet; whatever is there is taken every LOOKED_EVERY_S all the same, for whoever watches how fast it comes.
- What is no HTTP or not whole is an HttpError, whose text holds nothing of the URL.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import httptools

from hlsrelay.errors import UpstreamError
from hlsrelay.model import Sink

READ_BYTES = 256 << 10
"""At once: what the processor's second cache holds beside the rest."""
FIRST_BYTES = 16 << 10
"""Read at first, for the head and what comes with it: that goes through the parser."""
WAKE_BYTES = 4 << 20
"""What most segments have at most: all of it at once costs less than piece by piece, for in between the processor's caches forget us."""
LOOKED_EVERY_S = 0.5
LONGEST_LINE = 8190
_TOO_LONG = f"a line of more than {LONGEST_LINE} bytes"
MOST_HEADERS = 128
MOST_HEAD_BYTES = 256 << 10
_KNOWN = {
    name.encode(): name.lower()
    for name in (
        "Accept-Ranges", "Age", "Cache-Control", "Connection", "Content-Length", "Content-Type", "Date", "ETag", "Expires", "Last-Modified",
        "Server", "Vary", "Via", "X-Cache", "Access-Control-Allow-Origin", "Transfer-Encoding", "Content-Encoding",
    )
}  # fmt: skip
"""Names of headers that most servers say, as they write them."""
_TLS_RECORD = (16 << 10) + 256


class HttpError(UpstreamError):
    """No connection, no HTTP, or not all of an answer."""


class Unheard(HttpError):
    """The connection was closed before a byte of the answer came."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart: *text* is all of it, but for user info; *host* as DNS knows it, *authority* as the Host header has it."""

    text: str
    scheme: str
    host: str
    port: int
    authority: str
    path: str


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer: header names in lower case, what was said twice joined by commas, but for cookies."""

    status: int
    headers: Mapping[str, str]
    cookies: tuple[str, ...] = ()


Answered = Callable[[Head], Sink | None]
"""Hears the head of an answer and gives what its body goes to, None where nobody wants it. What it raises ends the request."""


class Door(Protocol):
    """A way to the network."""

    async def get(self, target: Target, headers: Mapping[str, str], answered: Answered) -> None:
        """Ask for *target*, and return once the body is whole; redirects are answers as others are. Raises HttpError, AddressRefused."""

    async def aclose(self) -> None:
        """Close all connections."""


class _Scratch(threading.local):
    """Where all bytes of a thread come by."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_BYTES))


_SCRATCH = _Scratch()


class Line:
    """One connection, and the answer that comes over it. It is read as soon as there is something, also while nothing is asked."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connected: socket.socket, gone: Callable[[Line], object]) -> None:
        self._loop, self._socket, self._gone = loop, connected, gone
        self._tls = connected if isinstance(connected, ssl.SSLSocket) else None
        self._answer: _Answer | None = None
        self._ended: asyncio.Future[None] | None = None
        self._look: asyncio.TimerHandle | None = None
        self._wakes_at = 1
        self._reads = self._looked = 0
        self.usable = True
        self.kept_s = 0.0
        loop.add_reader(connected, self._readable)

    async def ask(self, request: bytes, answered: Answered) -> None:
        """Send *request* and return once its answer is whole. Raises HttpError, and whatever *answered* and its sink raise."""
        self.usable = False
        answer = self._answer = _Answer(answered)
        self._ended = self._loop.create_future()
        try:
            if (sent := self._sent(request)) < len(request):
                await self._send(request[sent:])
            await self._ended
            self.usable = answer.keeps
        finally:
            answer.close()
            self._answer = self._ended = None
            if self._look is not None:
                self._look.cancel()
                self._look = None

    async def _send(self, request: bytes) -> None:
        """Send what could not be at once."""
        while request:
            await ready(self._loop.add_writer, self._loop.remove_writer, self._socket)
            request = request[self._sent(request) :]

    def _sent(self, request: bytes) -> int:
        """Send as much as can be now; returns how many bytes that was."""
        try:
            return self._socket.send(request)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as error:
            raise Unheard(_said(error)) from error

    def _readable(self) -> None:
        answer = self._answer
        try:
            if answer is None:
                self._idle()
            elif answer.left is None:
                self._parsed(answer)
            else:
                self._body(answer, answer.left)
        except Exception as error:  # ours to tell whoever waits, whatever it is
            self.fail(error)

    def _idle(self) -> None:
        """Nothing was asked: it is closed, or says what it must not. Tickets of TLS are neither."""
        if self._received(_SCRATCH.view[:1]) is not None:
            self._gone(self)

    def _parsed(self, answer: _Answer) -> None:
        """Read the head, or a body in chunks."""
        view = _SCRATCH.view if answer.begun else _SCRATCH.view[:FIRST_BYTES]
        got = self._received(view)
        if got is None:
            return
        if not got:
            raise HttpError("closed within the answer") if answer.heard else Unheard("closed without an answer")
        answer.feed(view[:got])
        self._go_on(answer)

    def _body(self, answer: _Answer, left: int) -> None:
        """Read of a body whose end is known; a negative *left* means that it ends with the connection."""
        read = 0
        while True:
            view = _SCRATCH.view[:left] if 0 <= left < READ_BYTES else _SCRATCH.view
            got = self._received(view)
            if got is None:
                break
            self._reads += 1
            if not got and left > 0:
                raise HttpError(f"{answer.declared - left} of {answer.declared} bytes")
            if got:
                answer.write(view[:got])
            answer.over = left == got or not got
            if left > 0:
                answer.left = left = left - got
            read += got
            if answer.over or got < READ_BYTES or read >= WAKE_BYTES:  # others have their turn
                break
        if read or answer.over:
            self._go_on(answer)

    def _go_on(self, answer: _Answer) -> None:
        """Say that the answer is over, or how much is worth a waking."""
        left = answer.left or 0
        wakes_at = 1 if answer.over else max(1, min(WAKE_BYTES, left - _TLS_RECORD if self._tls else left))
        if wakes_at != self._wakes_at:
            self._wakes_at = wakes_at
            with suppress(OSError):  # a system may not have it
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wakes_at)
        if answer.over:
            if self._ended is not None and not self._ended.done():
                self._ended.set_result(None)
        elif self._tls is not None and self._tls.pending():  # no news for the kernel
            self._loop.call_soon(self._readable)
        elif wakes_at > 1 and self._look is None:
            self._look = self._loop.call_later(LOOKED_EVERY_S, self._looks)

    def _looks(self) -> None:
        """Take what is there where nothing woke us since the last look."""
        if self._reads == self._looked:
            self._readable()
        self._looked = self._reads
        if self._answer is not None:
            self._look = self._loop.call_later(LOOKED_EVERY_S, self._looks)

    def _received(self, view: memoryview) -> int | None:
        """Return how many bytes came, 0 at the end, None where there are none yet. Raises HttpError."""
        try:
            got = self._socket.recv_into(view)
            if self._tls is not None:
                with suppress(ssl.SSLWantReadError):
                    while 0 < got < len(view) and (more := self._tls.recv_into(view[got:])):
                        got += more
            return got
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError as error:
            heard = self._answer is not None and self._answer.heard
            raise HttpError(_said(error)) if heard else Unheard(_said(error)) from error

    def fail(self, error: Exception) -> None:
        """End what is asked with *error*."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)
        elif self._ended is None:
            self._gone(self)

    def close(self) -> None:
        """Close the connection."""
        self.usable = False
        if self._socket.fileno() != -1:
            self._loop.remove_reader(self._socket)
            self._socket.close()


@dataclass(slots=True)
class _Answer:
    """An answer as it comes, and what the parser tells of it."""

    answered: Answered
    heard: bool = False
    begun: bool = False
    """Whether its head is known, and its sink."""
    over: bool = False
    keeps: bool = False
    """Whether the connection may be used again after it."""
    left: int | None = None
    """How much of the body is still to come, past the parser: -1 up to the connection's end; None: the parser knows."""
    declared: int = 0
    _parser: httptools.HttpResponseParser = field(init=False)
    _sink: Sink | None = None
    _status: int = 0
    _headers: dict[str, str] = field(default_factory=dict)
    _cookies: list[str] = field(default_factory=list)
    _pieces: list[bytes] = field(default_factory=list)
    _size: int = 0
    _count: int = 0
    _wrong: str = ""
    _headed: bool = False

    def __post_init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        # What servers get wrong and every client bears with.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    def feed(self, data: memoryview) -> None:
        """Take in what came. Raises HttpError, and whatever its reader raises."""
        self.heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.over:
                raise HttpError(f"no HTTP: {self._wrong or error or type(error).__name__}") from error
            self.keeps = False
        if not self._headed:
            self._size += len(data)
            if self._size > MOST_HEAD_BYTES:
                raise HttpError(f"no HTTP: a head of more than {MOST_HEAD_BYTES >> 10} KiB")
            return
        if not self.begun:
            self._begin()
        pieces, self._pieces = self._pieces, []
        if self._sink is None:
            self.keeps = self.keeps and self.over
            self.over = True
            return
        if pieces:
            self._sink(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self.left is not None and self.left > 0:
            self.left -= sum(map(len, pieces))

    def write(self, piece: memoryview) -> None:
        """Hand on a piece of the body that comes past the parser."""
        assert self._sink is not None
        self._sink(piece)

    def close(self) -> None:
        """Let go of the parser, which knows who reads it: a circle that all of the request would stay in until a collection."""
        del self._parser

    def _begin(self) -> None:
        self.begun = True
        coding = self._headers.get("transfer-encoding", "").strip().lower()
        if coding not in ("", "identity", "chunked"):
            raise HttpError(f"Transfer-Encoding {coding[:32]!r} was not asked for")
        self._sink = self.answered(Head(self._status, self._headers, tuple(self._cookies)))
        if self.over or coding == "chunked":
            return
        length = self._headers.get("content-length", "")
        self.declared = int(length) if length else 0
        self.left = self.declared if length else -1
        self.keeps = self.keeps and bool(length)

    # What the parser calls. What these raise comes out of it as an HttpParserError.

    def on_message_begin(self) -> None:
        if self.over:
            raise ValueError

    def on_status(self, reason: bytes) -> None:
        if len(reason) > LONGEST_LINE:
            self._refuse(_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._headed:  # a trailer
            return
        if len(name) + len(value) > LONGEST_LINE:
            self._refuse(_TOO_LONG)
        self._count += 1
        if self._count > MOST_HEADERS:
            self._refuse(f"more than {MOST_HEADERS} headers")
        try:
            key, text = _KNOWN.get(name) or name.decode().lower(), value.decode()
        except UnicodeDecodeError:
            key, text = _text(name).lower(), _text(value)
        if key == "set-cookie":
            self._cookies.append(text)
        else:
            self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._status == 101:
            self._refuse("another protocol")
        if self._status < 200:  # more is to come (RFC 9110 15.2)
            return
        self._headed = True
        self.keeps = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._headed:
            self.over = True
        else:
            self._headers, self._cookies, self._count = {}, [], 0

    def _refuse(self, why: str) -> None:
        self._wrong = why
        raise ValueError(why)


async def ready(add: Callable[..., Any], remove: Callable[..., Any], connected: socket.socket) -> None:
    """Wait until a socket can be read, or written, as *add* and *remove* say."""
    there = asyncio.get_running_loop().create_future()

    def found() -> None:
        if not there.done():
            there.set_result(None)

    add(connected, found)
    try:
        await there
    finally:
        remove(connected)


def _text(said: bytes) -> str:
    try:
        return said.decode()
    except UnicodeDecodeError:
        return said.decode("latin-1")


def _said(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
