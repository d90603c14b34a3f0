"""Work that would hold up the loop, and with it every other stream, done aside: in one thread, one piece after the other.

One thread only: the loop gets the interpreter back after SWITCH_S, but has to queue for it with every thread there is.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

SWITCH_S = 0.001
"""By itself Python would have the loop wait for 5 ms each time that it has something to do."""

T = TypeVar("T")


async def aside(work: Callable[[], T]) -> T:
    """Return what *work*, which changes nothing that others read, returns; it is done even where whoever waits is cancelled."""
    return await asyncio.get_running_loop().run_in_executor(_thread(), _yielding, work)


def _yielding(work: Callable[[], T]) -> T:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        return work()
    finally:
        sys.setswitchinterval(before_s)


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="aside")
