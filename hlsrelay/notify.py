"""Tells the service manager how we are, as sd_notify(3) says: ready, stopping, what we do, alive. Without NOTIFY_SOCKET nothing happens.

Laws:
  1. The watchdog's beat comes from the event loop: a loop that is stuck beats no more, and the manager begins the service anew.
  2. The manager is never waited for: what it has no room for is lost. The next beat comes in time.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

Tell = Callable[[str], None]

READY, STOPPING, BEAT = "READY=1", "STOPPING=1", "WATCHDOG=1"
BEATS_PER_LIMIT = 3
"""The manager kills what is silent for the limit; sd_watchdog_enabled(3) advises two beats in that time, and one may be lost."""


@asynccontextmanager
async def notifying(leaving: asyncio.Event, environment: Mapping[str, str] = os.environ) -> AsyncGenerator[Tell, None]:
    """Give what tells the manager a line, and keep its watchdog fed while the block runs; it hears of *leaving* by itself."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        yield lambda _: None
        return
    where = "\0" + address[1:] if address.startswith("@") else address  # Linux's abstract name space
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.setblocking(False)

        def tell(text: str) -> None:
            with suppress(OSError):
                manager.sendto(text.encode(), where)

        async def beat(limit_s: float) -> None:
            while True:
                tell(BEAT)
                await asyncio.sleep(limit_s / BEATS_PER_LIMIT)

        async def stop() -> None:
            await leaving.wait()
            tell(STOPPING)

        tasks = [asyncio.create_task(stop())]
        if (limit_s := watchdog_s(environment)) is not None:
            tasks.append(asyncio.create_task(beat(limit_s)))
        try:
            yield tell
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if not leaving.is_set():
                tell(STOPPING)


def watchdog_s(environment: Mapping[str, str]) -> float | None:
    """Return after how many seconds of silence the manager takes us for stuck; None where it does not watch us."""
    text, watched = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or watched not in ("", str(os.getpid())):
        return None
    return int(text) / 1_000_000
