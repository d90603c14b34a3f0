"""An event that can be waited for with a limit, at the cost of one timer: what is waited for many times a second by hundreds of streams.

`asyncio.timeout` round `asyncio.Event.wait` ends most of its waits with an exception or two, and that costs several times as much.
"""

from __future__ import annotations

import asyncio

LEAST_S = 0.001
"""A wait takes so long at least: who is not due yet by rounding alone, and has nothing left to wait for, would wait again and again within
the same moment."""


class Bell:
    """An asyncio.Event whose `wait` has a limit. It may be made outside a loop, and is waited for and rung inside one and the same."""

    def __init__(self) -> None:
        self._is_set = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    def is_set(self) -> bool:
        """Say whether it was rung since it was cleared."""
        return self._is_set

    def set(self) -> None:
        """Ring it: who waits goes on."""
        self._is_set = True
        for one in self._waiting:
            _go_on(one)

    def clear(self) -> None:
        """Have the next ones wait again."""
        self._is_set = False

    async def wait(self, within_s: float | None = None) -> bool:
        """Wait until it is rung, no longer than *within_s*; returns whether it was. Others have their turn only where it has to wait."""
        if self._is_set:
            return True
        loop = self._loop = self._loop or asyncio.get_running_loop()
        here = loop.create_future()
        timer = None if within_s is None else loop.call_later(max(LEAST_S, within_s), _go_on, here)
        self._waiting.add(here)
        try:
            await here
        finally:
            self._waiting.discard(here)
            if timer is not None:
                timer.cancel()
        return self._is_set


def _go_on(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
