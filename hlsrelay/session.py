"""This process's part among the nodes: a lease in Redis that it keeps alive, and what it says of itself there.

Laws:
- A relay waits for none of this. While Redis is away nobody loses anything: nobody is declared dead before all had time to come back.
- Who is told that it has come too late learns that from its streams, each by itself (link): a stream that nobody took is its own still.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog

from hlsrelay import proc
from hlsrelay.errors import HlsRelayError, RegistryUnavailable
from hlsrelay.orphans import incarnation
from hlsrelay.registry import Registry, Session

BEAT_S = 1.0
DRAINING = "draining"

log = structlog.get_logger()


def session_id() -> str:
    """Return what names this process among all of all machines: the machine's boot, PID namespace, PID, start time."""
    return f"{_boot()}.{incarnation()}"


def is_dead(session: str) -> bool:
    """Return whether a session is of a process of this machine, seen from here, that is no more: nobody has to wait for its lease."""
    found = _here(session)
    return found is not None and proc.started(found[0]) != found[1]


def process_of(session: str) -> int | None:
    """Return the pid of a session whose process is another one of this machine, seen from here, and alive."""
    found = _here(session)
    return found[0] if found and found[0] != os.getpid() and proc.started(found[0]) == found[1] else None


def is_here(session: str) -> bool:
    """Return whether a session is, or was, of a process of this machine that is seen from here."""
    return _here(session) is not None


def _here(session: str) -> tuple[int, int] | None:
    """Return pid and start time of a session's process, if it is, or was, of this machine and PID namespace."""
    boot, namespace, pid, since = (*session.split("."), "", "", "", "")[:4]
    here = boot == _boot() and namespace == incarnation().partition(".")[0] and pid.isdigit() and since.isdigit()
    return (int(pid), int(since)) if here else None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().partition("-")[0]
    except OSError:
        return socket.gethostname()


class Member:
    """A session that is kept alive; *tells* gives the fields of its hash, asked for anew at each beat."""

    def __init__(self, registry: Registry, tells: Callable[[], Mapping[str, str]], is_up: Callable[[bool], object]) -> None:
        self.id = session_id()
        self._registry = registry
        self._tells = tells
        self._is_up = is_up
        """Hears after each beat whether Redis answered."""
        self._up = True
        self._last = 0

    async def beat(self) -> None:
        """Renew the lease. Raises RegistryUnavailable."""
        try:
            self._last = await self._registry.beat(self.id, self._last, self._tells())
        except RegistryUnavailable as error:
            if self._up:
                log.warning("redis.away", reason=str(error))
            self._up = False
            raise
        else:
            if not self._up:
                log.info("redis.back")
            self._up = True
        finally:
            self._is_up(self._up)

    async def _kept(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            with suppress(RegistryUnavailable):
                await self.beat()

    @asynccontextmanager
    async def taking_part(self) -> AsyncGenerator[None, None]:
        """Take part while the block runs. Raises RegistryUnavailable at its beginning."""
        for one in await self._registry.sessions():
            if is_dead(one.id):
                await self._registry.leave(one.id)
        await self.beat()
        keeping = asyncio.create_task(self._kept(), name="session")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            with suppress(HlsRelayError, TimeoutError):
                async with asyncio.timeout(2 * BEAT_S):
                    await self._registry.leave(self.id)


def holder(fields: Mapping[str, str], sessions: list[Session]) -> Session | None:
    """Return the living session that has a stream of these fields; None where it is free, or will be."""
    return next((one for one in sessions if one.id == fields.get("session") and one.lives), None)


def takes_on(session: Session) -> bool:
    """Return whether a session is of a worker that takes on streams."""
    return session.fields.get("state") == "active" and session.fields.get("capacity", "").isdecimal()


def is_told_to_drain(session: Session) -> bool:
    """Return whether an operator has told a node to hand on what it has, and to take on nothing (`hlsrelay drain`)."""
    return session.fields.get("wish") == "drain"
