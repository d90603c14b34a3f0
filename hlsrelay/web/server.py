"""uvicorn inside our event loop: the socket is ours (so that a taken port is one clear line), the signals too."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from hlsrelay.errors import ConfigError, ResourceBusy

STOP_GRACE_S = 3
KEEP_ALIVE_S = 75  # a player comes back every target duration; uvicorn's 5 s would cost it a new connection each time
STUCK_CLIENT_MS = 60_000
BACKLOG = 2048


@asynccontextmanager
async def serve(app: ASGIApp, http: str, *, shared: bool = False) -> AsyncGenerator[str, None]:
    """Serve *app* at *http* ('127.0.0.1:8080', '[::]:8080', port 0: any) while the block runs; the value is the URL in use.

    *shared*: another process of ours may have the port; the kernel deals out the connections among all that have it.
    Raises ConfigError for what is no address and ResourceBusy for one that can't be had. Responses under way when the
    block ends get STOP_GRACE_S; after that neither a task nor a connection is left.
    """
    listener = await _listen(http, shared=shared)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        app,
        access_log=False,
        lifespan="off",
        log_config=None,
        log_level="critical",  # what goes wrong in the app is logged by the app, in our format
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        ws="none",
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]), name="web")
    try:
        await server.up
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        server.should_exit = True
        try:
            await running
        finally:
            listener.close()
            await _abandon(server.server_state)


def advertised(url: str) -> str:
    """Return *url*, which is ours, as others may reach it: by the host's name where it is of all addresses."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return f"http://{socket.gethostname()}:{port}" if host in ("0.0.0.0", "[::]") else url


class _Server(uvicorn.Server):
    """uvicorn's server, minus its signal handlers, plus a future for "takes connections now"."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except BaseException as error:
            self.up.set_exception(error)
            raise
        self.up.set_result(None)


async def _abandon(state: uvicorn.server.ServerState) -> None:
    """Cut what outlived the grace period: clients that take their bytes too slowly, or not at all."""
    for connection in tuple(state.connections):
        if connection.transport is not None:
            connection.transport.abort()
    tasks = tuple(state.tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _listen(http: str, *, shared: bool) -> socket.socket:
    """Return a socket that listens at *http* already: connections queue from now on, and nobody can have the port but one of ours."""
    match = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:\[\]/\s]+)):(?P<port>\d{1,5})", http.strip())
    if match is None or int(match["port"]) > 65535:
        raise ConfigError(f"HLSRELAY_HTTP: {http!r} is no address and port; write one such as 127.0.0.1:8080, 0.0.0.0:8080 or [::]:8080")
    host, port = match["six"] or match["host"], int(match["port"])
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(
            f"HLSRELAY_HTTP: {host!r} is no address of a machine ({error.strerror}); write one such as 127.0.0.1:8080"
        ) from None
    family, kind, protocol, _, address = found[0]
    if not shared and port:  # a port that is shared can be shared by anybody of this user: whether it is free tells one that is not
        _bound(http, family, kind, protocol, address, shared=False).close()
    return _bound(http, family, kind, protocol, address, shared=bool(port))


def _bound(http: str, family: int, kind: int, protocol: int, address: Any, *, shared: bool) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared and hasattr(socket, "SO_REUSEPORT"):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # [::] is everybody, whatever the system's default
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it: one that takes nothing any more frees its file and its memory
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK_CLIENT_MS)
        listener.bind(address)
        listener.listen(BACKLOG)  # here and not later: only listen() tells for certain that the port is ours
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _refused(http, error) from None
    return listener


def _refused(http: str, error: OSError) -> ConfigError | ResourceBusy:
    if error.errno == errno.EADDRINUSE:
        return ResourceBusy(f"HLSRELAY_HTTP: {http} is in use by another program; stop it, or choose another port (0 takes a free one)")
    if error.errno == errno.EACCES:
        return ResourceBusy(f"HLSRELAY_HTTP: this user may not listen at {http}; choose a port from 1024 up")
    return ConfigError(f"HLSRELAY_HTTP: can't listen at {http}: {error.strerror}; write an address of this machine")
