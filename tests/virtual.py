"""A virtual clock: an event loop whose time jumps to the next timer as soon as nothing else is to do. A day passes in seconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from hlsrelay.clock import Clock

T = TypeVar("T")
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class _Jumping(selectors.DefaultSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if events:
            return events
        if timeout is None:
            raise RuntimeError("nothing is scheduled: this would wait for ever")
        self.now_s += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time."""

    def __init__(self) -> None:
        self.jumping = _Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Work in a thread of its own takes no virtual time: while it ran hours would pass."""
        if executor is None:
            return super().run_in_executor(None, func, *args)
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


class VirtualClock(Clock):
    """The clock that goes with a VirtualLoop, with whichever one runs: tests begin several with one clock."""

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    def utc_now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.monotonic_s())


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


async def elapse(seconds: float) -> None:
    """Let virtual time pass, in no time; nothing else is waited for so. Raises AssertionError in real time."""
    assert isinstance(asyncio.get_running_loop(), VirtualLoop), "in real time wait for what is to come (tests.waiting)"
    await asyncio.sleep(seconds)
