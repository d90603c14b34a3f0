"""The connections of one stream: made to addresses that may be reached, kept for the next request, and never more than a few.

Laws:
- Each address is told to the policy before it is connected to.
- A connection is used again only where its answer ended just where it said it would. One that was kept and is closed before a byte of the
  answer came was closed while the request was under way: that is asked again, on a new one (RFC 9112 9.3.1).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from aiohappyeyeballs import start_connection

from hlsrelay.addresses import AddressPolicy, RefusedSocket
from hlsrelay.errors import AddressRefused
from hlsrelay.http1 import Answered, HttpError, Line, Target, Unheard, ready

CONNECTED_WITHIN_S = 8.0
"""Name, connection and TLS together."""
NEXT_ADDRESS_S = 0.25
"""A name of several addresses: the next is tried beside one that takes longer than this (RFC 8305 5)."""
RESOLVED_FOR_S = 10.0
KEPT_S = 30.0


class Connections:
    """The connections of one stream, MOST at a time; made inside the running loop."""

    MOST = 8

    def __init__(self, policy: AddressPolicy, tls: Callable[[], ssl.SSLContext]) -> None:
        self._policy, self._tls = policy, tls
        self._loop = asyncio.get_running_loop()
        self._free = asyncio.Semaphore(self.MOST)
        self._lines: set[Line] = set()
        self._kept: dict[tuple[str, str, int], list[Line]] = {}
        self._resolved: dict[str, tuple[float, asyncio.Task[list[Any]]]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def get(self, target: Target, headers: Mapping[str, str], answered: Answered) -> None:
        """See Door."""
        told = {"host": target.authority, "connection": "keep-alive", **headers}
        said = "".join([f"{name}: {value}\r\n" for name, value in told.items()])
        request = f"GET {target.path} HTTP/1.1\r\n{said}\r\n".encode()
        where = target.scheme, target.host, target.port
        async with self._free:
            while True:
                kept = self._kept.get(where)
                line = kept.pop() if kept else None
                again = line is not None
                if line is None:
                    line = await self._connected(target)
                try:
                    await line.ask(request, answered)
                    break
                except Unheard:
                    if not again:
                        raise
                finally:
                    self._left(where, line)

    def _left(self, where: tuple[str, str, int], line: Line) -> None:
        """Keep a connection, or close it."""
        if not line.usable:
            self._closed(line)
            return
        self._kept.setdefault(where, []).append(line)
        line.kept_s = self._loop.time()
        if self._sweep is None:
            self._sweep = self._loop.call_later(KEPT_S, self._swept)

    def _swept(self) -> None:
        """Close what was not asked for KEPT_S."""
        self._sweep = None
        before_s = self._loop.time() - KEPT_S
        for where, lines in list(self._kept.items()):
            for line in [one for one in lines if one.kept_s <= before_s]:
                self._closed(line)
            if not lines:
                del self._kept[where]
        if self._kept:
            first_s = min(line.kept_s for lines in self._kept.values() for line in lines)
            self._sweep = self._loop.call_at(first_s + KEPT_S, self._swept)

    def _closed(self, line: Line) -> None:
        line.close()
        self._lines.discard(line)
        for lines in self._kept.values():
            if line in lines:
                lines.remove(line)

    async def _connected(self, target: Target) -> Line:
        """Return a new connection. Raises HttpError, AddressRefused."""
        where = f"{target.host[:100]}:{target.port}"
        try:
            async with asyncio.timeout(CONNECTED_WITHIN_S):
                made = await self._made(target)
        except TimeoutError as error:
            raise HttpError(f"{where} gives no connection within {CONNECTED_WITHIN_S:.0f} s") from error
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # a name that can be none is a ValueError, uvloop has RuntimeErrors of the network
            if refused := _refusal(error):
                raise AddressRefused(refused) from error
            raise HttpError(f"can't connect to {where} ({getattr(error, 'strerror', None) or error})") from error
        line = Line(self._loop, made, self._closed)
        self._lines.add(line)
        return line

    async def _made(self, target: Target) -> socket.socket:
        found = await self._addresses(target.host, target.port)
        made = await start_connection(
            found, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1, loop=self._loop, socket_factory=self._policy.make_socket
        )
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return await self._secured(made, target.host) if target.scheme == "https" else made
        except BaseException:
            made.close()
            raise

    async def _secured(self, made: socket.socket, host: str) -> ssl.SSLSocket:
        secured = self._tls().wrap_socket(made, server_hostname=host.rstrip("."), do_handshake_on_connect=False)
        try:
            while True:
                try:
                    secured.do_handshake()
                    return secured
                except ssl.SSLWantReadError:
                    await ready(self._loop.add_reader, self._loop.remove_reader, secured)
                except ssl.SSLWantWriteError:
                    await ready(self._loop.add_writer, self._loop.remove_writer, secured)
        except BaseException:
            secured.close()
            raise

    async def _addresses(self, host: str, port: int) -> list[Any]:
        """Return what *host* resolves to; asked once for all who want it now or soon."""
        for family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError, ValueError):
                socket.inet_pton(family, host)
                return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
        now_s, name = self._loop.time(), f"{host}:{port}"
        until_s, task = self._resolved.get(name, (0.0, None))
        if task is None or now_s >= until_s or (task.done() and (task.cancelled() or task.exception())):
            self._resolved = {one: had for one, had in self._resolved.items() if had[0] > now_s}
            task = asyncio.ensure_future(self._resolve(host, port))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may have gone
            self._resolved[name] = now_s + RESOLVED_FOR_S, task
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise HttpError("closed by us") from None
            raise

    async def _resolve(self, host: str, port: int) -> list[Any]:
        found: list[Any] = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        self._policy.resolved(host, [one[4][0] for one in found])
        return found

    async def aclose(self) -> None:
        """Close all connections; what is under way ends as an HttpError."""
        if self._sweep is not None:
            self._sweep.cancel()
        for line in list(self._lines):
            line.fail(HttpError("closed by us"))
            self._closed(line)
        resolving = [task for _, task in self._resolved.values()]
        for task in resolving:
            task.cancel()
        await asyncio.gather(*resolving, return_exceptions=True)


def _refusal(error: Exception) -> str:
    """Return why an address was refused, where that is what went wrong; several may have been tried."""
    if isinstance(error, RefusedSocket):
        return str(error)
    text = str(error)
    return text if isinstance(error, OSError) and ("not a public address" in text or "metadata address" in text) else ""
