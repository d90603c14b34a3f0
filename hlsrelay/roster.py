"""What is registered, as Redis told it last: kept up from what Redis tells of changes, so that to look at thousands of streams is cheap.

Laws:
- It may be late, and nothing that matters rests on it: a claim, a report, a deletion is decided in Redis.
- What Redis tells of a change is read once, a little later, together with what else changes meanwhile.
- Where Redis can't tell, all is read each POLLED_EVERY_S. Where it can, all is still read again piece by piece, so that nothing that was
  missed stays missed; the more there is, the longer that takes: each node asks for no more than a few hundred hashes a second, and all
  together for no more than FULL_RATE_NODES of them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager

import structlog

from hlsrelay.errors import RegistryUnavailable
from hlsrelay.fields import Registered
from hlsrelay.registry import Heard, Registry
from hlsrelay.tracking import Untracked

GATHERED_S = 0.05
POLLED_EVERY_S = 0.7
STEP_EVERY_S = 2.0
FULL_RATE_NODES = 25
"""Where there are more nodes each takes longer from step to step: it is one Redis that answers all."""
SHORTEST_ROUND_S = 10.0
"""All is read again no sooner than this after the last time."""
SPREAD_PER_STREAM_S, LONGEST_SPREAD_S = 1 / 2000, 5.0
"""When Redis comes back all nodes read all: each at another moment."""
ASKED_AGAIN_S = 0.5
TRIED_AGAIN_S = 60.0
"""A Redis that could not tell may be another one now."""

log = structlog.get_logger()


class Roster:
    """The hashes of all streams, or of one *only*; *take* hears of each that is another than before, of None once it is gone.

    *sessions* hears at once of the sessions that tell something else than before, and None where any may.
    """

    def __init__(
        self,
        registry: Registry,
        take: Callable[[str, Registered | None], object] | None = None,
        only: str = "",
        sessions: Callable[[frozenset[str] | None], object] | None = None,
    ) -> None:
        self.is_told = False
        """Whether Redis tells of changes just now."""
        self.nodes = 1
        """So many read from that Redis, as far as is known."""
        self._registry = registry
        self._take = take
        self._only = only
        self._sessions = sessions
        self._streams: dict[str, Registered] = {}
        self._stale: set[str] = set()
        self._all_stale = True
        self._spread_s = 0.0
        self._woken = asyncio.Event()
        self._listeners: dict[str, set[Callable[[Registered | None], None]]] = {}
        self._reading = asyncio.Lock()
        """What was read earlier is taken earlier."""

    @asynccontextmanager
    async def kept_up(self) -> AsyncGenerator[None, None]:
        """Keep it up while the block runs."""
        tasks = [asyncio.create_task(work(), name=f"roster {work.__name__}") for work in (self._heard, self._read, self._gone_round)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def listen(self, stream_id: str, hear: Callable[[Registered | None], None]) -> Callable[[], None]:
        """Have *hear* called with a stream's hash once it is another one; with None where it is gone, or may be: Redis has to be asked.

        Returns what ends that.
        """
        heard = self._listeners.setdefault(stream_id, set())
        heard.add(hear)

        def end() -> None:
            heard.discard(hear)
            if not heard:
                self._listeners.pop(stream_id, None)

        return end

    def _doubted(self) -> None:
        """Have all who listen ask for themselves."""
        for stream_id in [*self._listeners]:
            self._tell(stream_id, None)

    def _tell(self, stream_id: str, registered: Registered | None) -> None:
        for hear in [*self._listeners.get(stream_id, ())]:
            hear(registered)

    async def _heard(self) -> None:
        told_not = False
        while True:
            pause_s = ASKED_AGAIN_S
            try:
                async with aclosing(self._registry.heard(self._only)) as hearing:
                    async for what in hearing:
                        self._changed(what)
            except RegistryUnavailable:
                pass
            except Untracked as error:
                if not told_not:
                    log.warning("redis.tells_no_changes", reason=str(error), polled_every_s=POLLED_EVERY_S)
                told_not, pause_s = True, TRIED_AGAIN_S
            except Exception:  # whatever it is, polling goes on
                log.exception("roster.failed")
            self.is_told = False
            if self._sessions is not None:
                self._sessions(None)
            self._woken.set()
            self._doubted()
            await asyncio.sleep(pause_s)

    def _changed(self, what: Heard | None) -> None:
        self.is_told = True
        if self._sessions is not None and (what is None or what.sessions):
            self._sessions(None if what is None else what.sessions)
        if what is None:
            self._all_stale = True
            self._spread_s = random.uniform(0, min(LONGEST_SPREAD_S, len(self._streams) * SPREAD_PER_STREAM_S))
            self._doubted()
        elif what.streams:
            self._stale |= what.streams
        else:
            return
        self._woken.set()

    async def _read(self) -> None:
        while True:
            if self.is_told:
                await self._woken.wait()
                await asyncio.sleep(self._spread_s if self._all_stale else GATHERED_S)
            else:
                self._all_stale = True
                self._spread_s = 0.0
            self._woken.clear()
            try:
                await self._read_stale()
            except Exception as error:
                if not isinstance(error, RegistryUnavailable):  # whatever it is, the rest goes on
                    log.exception("roster.failed")
                self._all_stale = True
                await asyncio.sleep(ASKED_AGAIN_S)
                self._woken.set()
            if not self.is_told:
                await asyncio.sleep(POLLED_EVERY_S)

    async def _read_stale(self) -> None:
        whole, self._all_stale = self._all_stale, False
        stale, self._stale = self._stale, set()
        await self._refresh((await self._all_ids()) | self._streams.keys() if whole else stale)

    async def _all_ids(self) -> set[str]:
        if self._only:
            return {self._only}
        found, cursor = await self._registry.ids()
        ids = set(found)
        while cursor:
            found, cursor = await self._registry.ids(cursor)
            ids.update(found)
        return ids

    async def _refresh(self, ids: set[str]) -> None:
        async with self._reading:
            self._taken(await self._registry.hashes(ids))

    def _taken(self, found: list[tuple[str, Registered | None]]) -> None:
        for stream_id, registered in found:
            before = self._streams.get(stream_id)
            if registered == before:
                continue
            if registered is None:
                del self._streams[stream_id]
            else:
                self._streams[stream_id] = registered
            if self._take is not None:
                self._take(stream_id, registered)
            self._tell(stream_id, registered)

    async def _gone_round(self) -> None:
        """Read all again, piece by piece."""
        loop = asyncio.get_running_loop()
        began_s, cursor = loop.time(), 0
        seen: set[str] = set()
        while True:
            share = max(1.0, self.nodes / FULL_RATE_NODES)
            await asyncio.sleep(STEP_EVERY_S * share * random.uniform(0.8, 1.2))
            if not self.is_told or (not cursor and loop.time() - began_s < SHORTEST_ROUND_S * share):
                continue
            began_s = began_s if cursor else loop.time()
            try:
                found, cursor = ([self._only], 0) if self._only else await self._registry.ids(cursor)
                seen.update(found)
                lost = set() if cursor else self._streams.keys() - seen
                seen = seen if cursor else set()
                await self._refresh({*found, *lost})
            except Exception as error:
                if not isinstance(error, RegistryUnavailable):
                    log.exception("roster.failed")
                cursor, seen = 0, set()
