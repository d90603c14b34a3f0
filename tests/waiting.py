"""Waiting, in real time, for what nobody tells: other processes, the kernel, files. The only place that looks again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
SOON_S = 30.0
EVERY_S = 0.05


def until(claim: Callable[[], T | None], within_s: float = SOON_S, *, every_s: float = EVERY_S) -> T:
    """Return what *claim* says once that is neither None nor False; fails after *within_s*."""
    deadline_s = time.monotonic() + within_s
    while True:
        said = claim()
        if said is not None and said is not False:
            return said
        assert time.monotonic() < deadline_s, f"it has not come true within {within_s:g} s"
        time.sleep(every_s)


async def turns(count: int = 1) -> None:
    """Let the loop turn so often, where what happens between two turns is what is tested."""
    for _ in range(count):
        await asyncio.sleep(0)


async def comes_true(claim: Callable[[], T | None], within_s: float = SOON_S, *, every_s: float = 0.005) -> T:
    """See `until`: while the loop goes on."""
    async with asyncio.timeout(within_s):
        while (said := claim()) is None or said is False:  # noqa: ASYNC110 - nobody sets an event for it
            await asyncio.sleep(every_s)
    return said


async def becomes_true(claim: Callable[[], Awaitable[T | None]], within_s: float = SOON_S, *, every_s: float = 0.01) -> T:
    """See `until`: what is asked of another process while the loop goes on."""
    async with asyncio.timeout(within_s):
        while (said := await claim()) is None or said is False:  # noqa: ASYNC110 - nobody sets an event for it
            await asyncio.sleep(every_s)
    return said
