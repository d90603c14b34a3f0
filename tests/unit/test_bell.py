"""Bell: an event whose wait has a limit."""

from __future__ import annotations

import asyncio

import pytest

from hlsrelay.bell import LEAST_S, Bell
from tests.virtual import elapse, run_virtually


def test_who_waits_goes_on_when_it_is_rung_and_no_later_than_the_limit() -> None:
    async def body() -> None:
        loop, bell = asyncio.get_running_loop(), Bell()
        began_s = loop.time()
        loop.call_later(1, bell.set)
        assert [*await asyncio.gather(bell.wait(0.5), bell.wait(2), bell.wait())] == [False, True, True]
        assert loop.time() - began_s == 1
        assert await bell.wait(0)
        bell.clear()
        assert not await bell.wait(-1)
        assert not await bell.wait(3)
        assert loop.time() - began_s == pytest.approx(4 + LEAST_S), "whoever's limit is over by rounding alone would wait for ever"

    run_virtually(body())


def test_who_is_cancelled_leaves_nothing_behind() -> None:
    async def body() -> None:
        bell = Bell()
        waiting = asyncio.create_task(bell.wait(60))
        await elapse(1)
        waiting.cancel()
        bell.set()  # both at once: cancelled it is, and the next ones are not held up
        await asyncio.wait((waiting,))
        assert waiting.cancelled()
        assert bell._waiting == set()
        assert await bell.wait()

    run_virtually(body())
