"""This process's part among the nodes: a lease in Redis that it keeps alive, and what it says of itself there.

Laws:
- A relay waits for none of this. While Redis is away nobody loses anything: nobody is declared dead before all had time to come back.
- Who is told that it has come too late learns that from its streams, each by itself (link): a stream that nobody took is its own still.
- Who alone can't reach Redis, as another node tells that can, is about to lose all that it has: it stops before others begin.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path

import structlog

from hlsrelay import proc
from hlsrelay.errors import HlsRelayError, RegistryUnavailable
from hlsrelay.orphans import incarnation, pid_namespace
from hlsrelay.registry import LEASE_S, Beat, Registry, Session

BEAT_S = 1.0
PEERS_ASKED_AFTER_S = LEASE_S
SHORTEST_WAIT_S = 0.5
"""It may have been us who stood still."""
ANSWERED_LATELY_S = 1.3
"""A beat and a little more. Where Redis answers nobody, it was so long ago for everybody when the first one asks the others: who missed
its lease was answered a beat, and what that took, before Redis fell silent at the earliest."""
DRAINING = "draining"

log = structlog.get_logger()


def session_id() -> str:
    """Return what names this process among all of all machines: the machine's boot, PID namespace, PID, start time."""
    return f"{_boot()}.{incarnation()}"


def is_dead(session: str) -> bool:
    """Return whether a session is of a process of this machine, seen from here, that is no more: nobody has to wait for its lease."""
    found = _here(session)
    if found is None:
        return False
    since = proc.started(found[0])
    return since != found[1] if since is not None else _is_gone(found[0])


def _is_gone(pid: int) -> bool:
    """Return whether a process that /proc does not show is no more: it may be another user's, and hidden from us."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


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
    here = boot == _boot() and namespace == pid_namespace() and pid.isdigit() and since.isdigit()
    return (int(pid), int(since)) if here else None


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().partition("-")[0]
    except OSError:
        return socket.gethostname()


class Member:
    """A session that is kept alive; *tells* gives the fields of its hash, asked for anew at each beat."""

    def __init__(
        self,
        registry: Registry,
        tells: Callable[[], Mapping[str, str]],
        is_up: Callable[[bool], object],
        hears: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        self.id = session_id()
        self.peers: tuple[str, ...] = ()
        """Where the other nodes serve, as far as is known."""
        self.cut_off = asyncio.Event()
        """Set while Redis answers others, and not us."""
        self._hears = hears
        """Asks the node at a URL whether Redis answers it."""
        self._answered_s = 0.0
        self._answers_since_s = math.inf
        self._registry = registry
        self._tells = tells
        self._is_up = is_up
        """Hears after each beat whether Redis answered."""
        self._up = True
        self._last: Beat | None = None

    @property
    def life(self) -> str:
        """The life of the registry (registry.follow) that the last beat was in; empty before the first one."""
        return self._last.life if self._last else ""

    async def lives(self) -> str:
        """Renew the lease, and return the life of the registry: only so it is known not to have gone back. Raises RegistryUnavailable."""
        await self.beat()
        return self.life

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
        loop = asyncio.get_running_loop()
        while True:
            asks_in_s = self._answered_s + PEERS_ASKED_AFTER_S - loop.time()
            await asyncio.sleep(asks_in_s if 0.05 < asks_in_s < BEAT_S else BEAT_S)
            began_s = loop.time()
            beating = asyncio.ensure_future(self.beat())
            try:
                await asyncio.wait((beating,), timeout=max(SHORTEST_WAIT_S, self._answered_s + PEERS_ASKED_AFTER_S - began_s))
                if not beating.done() or beating.exception() is not None:
                    await self._peers_asked()
                await beating
            except RegistryUnavailable:
                self._answers_since_s = math.inf
                continue
            except Exception:  # whatever it is: a lease that is renewed no more loses all streams
                log.exception("session.beat_failed")
                continue
            finally:
                beating.cancel()
            self._answered_s, self._answers_since_s = began_s, min(began_s, self._answers_since_s)
            self.cut_off.clear()

    @property
    def hears(self) -> bool:
        """Whether Redis answers us, and has for so long that it takes who does not come for dead (registry.Refused.IN_DOUBT)."""
        now_s = asyncio.get_running_loop().time()
        return now_s - self._answered_s <= ANSWERED_LATELY_S and now_s - self._answers_since_s >= LEASE_S

    async def _peers_asked(self) -> None:
        """Ask the other nodes whether it is us alone that Redis does not answer: where it is none of them, all go on."""
        late = asyncio.get_running_loop().time() - self._answered_s > PEERS_ASKED_AFTER_S - 0.05
        if self._hears is None or not late or self.cut_off.is_set():
            return
        answers = await asyncio.gather(*(self._hears(url) for url in self.peers))
        if url := next((url for url, hears in zip(self.peers, answers, strict=False) if hears), ""):
            log.warning("node.cut_off", reason=f"Redis answers the node at {url}, and not this one")
            self.cut_off.set()

    @asynccontextmanager
    async def taking_part(self) -> AsyncGenerator[None, None]:
        """Take part while the block runs. Raises RegistryUnavailable at its beginning."""
        for one in await self._registry.sessions():
            if is_dead(one.id):
                await self._registry.leave(one.id)
        self._answered_s = asyncio.get_running_loop().time()
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
