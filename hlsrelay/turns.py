"""Lets the downloads of a process begin as fast as it can carry them: what all do at once, none has done in time.

Laws:
- As long as the loop is on time, nothing waits here: a source that is slow holds up nobody but its own stream.
- Where it is late, this process is the bottleneck: then another download begins once it has caught up, and those under way end in time.
- Whoever has players goes before whoever has none yet, and of those a stream that has nothing under way before one that has. A stream that
  nobody plays yet does not even start before those that have are through: what it would list first might be gone when its turn comes.
- Nobody waits for longer than its patience: a loop may be late for other reasons, and always.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools

AT_ONCE = 64
"""So many may be under way however late the loop is."""
TICK_S = 0.01
EACH_TICK = 16
"""So many may begin in a tick: how much they are is not seen before the next one."""
LATE_S = 0.05
_START = 1 << 10
"""A rank behind all others."""


class Turns:
    """The turns of one process's downloads, on its running loop."""

    def __init__(self) -> None:
        self._under_way = 0
        self._room = EACH_TICK
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    @property
    def under_way(self) -> int:
        """How many have begun and are not over."""
        return self._under_way

    async def begin(self, rank: int, patience_s: float) -> None:
        """Return once a download may begin, after *patience_s* at the latest; the lower *rank*, the sooner. `end` has to follow."""
        await self._came(rank, patience_s)
        self._under_way += 1

    async def start(self, patience_s: float) -> bool:
        """Return whether a stream that nobody plays may start, behind all that wait to download; False after *patience_s*.

        If it may, `end` has to follow.
        """
        if not await self._came(_START, patience_s):
            return False
        self._under_way += 1
        return True

    def end(self) -> None:
        """A download that had begun is over."""
        self._under_way -= 1
        if self._waiting and self._under_way < AT_ONCE:
            self._let(1)

    async def _came(self, rank: int, patience_s: float) -> bool:
        """Wait for a turn; returns whether it came."""
        if self._under_way < AT_ONCE:
            return True
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._next(loop)
        if not self._waiting and self._room > 0:
            self._room -= 1
            return True
        turn = loop.create_future()
        heapq.heappush(self._waiting, (rank, next(self._order), turn))
        try:
            async with asyncio.timeout(patience_s):
                await turn
        except TimeoutError:
            return False
        self._room -= 1
        return True

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = loop.time() + TICK_S
        self._timer = loop.call_later(TICK_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._room = EACH_TICK if loop.time() < self._due_s + LATE_S else 0
        self._let(self._room)
        if self._waiting:
            self._next(loop)
        else:  # who comes next starts the clock again
            self._room = EACH_TICK

    def _let(self, count: int) -> None:
        """Let so many begin that wait still."""
        while self._waiting and count:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                count -= 1
