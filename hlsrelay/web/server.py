"""uvicorn inside our event loop: the socket is ours (so that a taken port is one clear line), the signals too."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import asynccontextmanager, suppress

import uvicorn
from starlette.types import ASGIApp

from hlsrelay.bell import Bell
from hlsrelay.web.direct import Direct
from hlsrelay.web.port import giving, listening

STOP_GRACE_S = 3
KEEP_ALIVE_S = 75  # a player comes back every target duration; uvicorn's 5 s would cost it a new connection each time
ASKED_WITHIN_S = 1.0
"""Who has connected asks at once, however far away."""
DATE_EVERY_S = 1.0


@asynccontextmanager
async def serve(app: ASGIApp, http: str, *, name: str = "", beside: Iterable[str] = ()) -> AsyncGenerator[str, None]:
    """Serve *app* at *http* ('127.0.0.1:8080', '[::]:8080', port 0: any) while the block runs; the value is the URL in use.

    *beside*: the names of processes of ours that may have the port too. All have the same listening socket then, whoever is free takes the
    next connection, and none is lost when one of them goes. *name*: ours, for those that come later.
    Raises ConfigError for what is no address and ResourceBusy for one that can't be had. Who has connected when the block ends is
    answered, if it asks within ASKED_WITHIN_S; responses get STOP_GRACE_S then; after that neither a task nor a connection is left.
    """
    listeners = await listening(http, beside)
    host, port = listeners[0].getsockname()[:2]
    config = uvicorn.Config(
        Direct(app),
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
    running = asyncio.create_task(server.serve(sockets=listeners), name="web")
    try:
        await server.up
        with giving(listeners, name):
            yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        server.leave()
        try:
            await running
        finally:
            for one in listeners:
                one.close()
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
        self._leaving = Bell()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    def leave(self) -> None:
        """Have it take no more connections and end."""
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # renews what says the time in answers, and uvicorn's own loop wakes ten times as often
            await self._leaving.wait(DATE_EVERY_S)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except BaseException as error:
            self.up.set_exception(error)
            raise
        self.up.set_result(None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and let those ask that have come and have not asked yet: uvicorn would cut them."""
        for server in self.servers:
            server.close()
        for one in sockets or ():
            one.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(ASKED_WITHIN_S):
                await asyncio.sleep(0)  # what was accepted just now is a connection then
                while any(getattr(one, "cycle", None) is None for one in self.server_state.connections):  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.02)
        await super().shutdown(sockets)


async def _abandon(state: uvicorn.server.ServerState) -> None:
    """Cut what outlived the grace period: clients that take their bytes too slowly, or not at all."""
    for connection in tuple(state.connections):
        if connection.transport is not None:
            connection.transport.abort()
    tasks = tuple(state.tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
