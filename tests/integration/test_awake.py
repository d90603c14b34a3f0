"""A process that stood still asks whose a stream is before it writes anything of it (virtual time)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from hlsrelay.awake import ASKED_WITHIN_S, STILL_S, Awake, Fence
from hlsrelay.fields import Registered
from hlsrelay.link import Claim
from hlsrelay.memory_registry import MemoryRegistry
from tests.integration.test_registry import FIELDS
from tests.virtual import VirtualClock, elapse, run_virtually


class Asked(MemoryRegistry):
    """A registry that counts how often it is asked for a stream; it may stand still."""

    asked = 0
    stands_still = False

    async def get(self, stream_id: str) -> Registered | None:
        self.asked += 1
        if self.stands_still:
            await asyncio.Event().wait()
        return await super().get(stream_id)


def fenced(body: Callable[[Asked, Awake, Fence], Awaitable[None]]) -> None:
    async def main() -> None:
        registry, awake = Asked(), Awake(VirtualClock())
        await registry.register("news", FIELDS)
        await registry.beat("one", None, {})
        epoch = await registry.claim("news", "one", {})
        await body(registry, awake, Fence(awake, registry, "news", Claim(Registered("news", FIELDS), "one", epoch, "1")))

    run_virtually(main())


async def passes(fence: Fence, within_s: float = 60.0) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await fence.passed()
    except TimeoutError:
        return False
    return True


def test_who_goes_on_all_the_time_asks_nobody() -> None:
    async def body(registry: Asked, awake: Awake, fence: Fence) -> None:
        for _ in range(10):
            await elapse(STILL_S / 2)
            awake.stops()
            assert await passes(fence, 0)
        assert registry.asked == 0

    fenced(body)


def test_who_stood_still_asks_once_and_goes_on_where_the_stream_is_its_own() -> None:
    async def body(registry: Asked, awake: Awake, fence: Fence) -> None:
        await elapse(STILL_S + 1)
        assert await passes(fence)
        assert await passes(fence)
        assert registry.asked == 1
        registry.streams["news"]["epoch"] += "0"  # claimed again by its link, in a Redis that had forgotten it
        await elapse(STILL_S + 1)
        assert await passes(fence)

    fenced(body)


def test_who_stood_still_and_has_lost_the_stream_writes_nothing_of_it_any_more() -> None:
    async def body(registry: Asked, awake: Awake, fence: Fence) -> None:
        await elapse(10)
        await registry.beat("other", None, {})
        await elapse(2)
        last = await registry.beat("other", None, {})
        await elapse(2)
        await registry.beat("other", last, {})
        assert await registry.claim("news", "other", {}) > 0
        assert not await passes(fence)

    fenced(body)


@pytest.mark.parametrize("how", ["away", "stands_still"])
def test_where_redis_does_not_answer_who_stood_still_goes_on_after_a_moment(how: str) -> None:
    async def body(registry: Asked, awake: Awake, fence: Fence) -> None:
        setattr(registry, how, True)
        await elapse(10)
        assert await passes(fence, ASKED_WITHIN_S + 0.1)
        assert await passes(fence, 0)

    fenced(body)
