"""in_order: the joint between two stages. It keeps the order, bounds the look-ahead, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing

import pytest

from hlsrelay.joints import Done, Stray, in_order, merged
from tests.virtual import elapse, run_virtually


async def collected(results: AsyncGenerator[int, None], into: list[int]) -> None:
    """Append each result to *into*: what came before an error is there too."""
    async for result in results:
        into.append(result)


async def count(to: int, closed: list[str] | None = None) -> AsyncGenerator[int, None]:
    try:
        for number in range(to):
            yield number
    finally:
        if closed is not None:
            closed.append("closed")


def test_results_come_in_the_items_order_however_long_each_takes() -> None:
    async def slow_first(number: int) -> int:
        await elapse(10 - number)
        return number * 10

    async def run() -> list[int]:
        async with aclosing(in_order(count(8), slow_first, ahead=3)) as results:
            return [result async for result in results]

    assert run_virtually(run()) == [number * 10 for number in range(8)]


def test_what_passes_comes_out_as_it_is_in_its_turn() -> None:
    async def words() -> AsyncGenerator[int | str, None]:
        for item in (3, "a", 1, "b", "c", 2):
            yield item

    async def slow(number: int) -> float:
        await elapse(number)
        return number / 2

    async def run() -> list[float | str]:
        async with aclosing(in_order(words(), slow, ahead=3, passing=str)) as results:
            return [result async for result in results]

    assert run_virtually(run()) == [1.5, "a", 0.5, "b", "c", 1.0]


def test_work_goes_on_side_by_side_but_never_further_ahead_than_asked() -> None:
    busy = most = 0

    async def work(number: int) -> int:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await elapse(1)
        busy -= 1
        return number

    async def run() -> float:
        async with aclosing(in_order(count(20), work, ahead=2)) as results:
            async for _ in results:
                pass
        return asyncio.get_running_loop().time()

    assert run_virtually(run()) <= 10
    assert 2 <= most <= 4


def test_what_is_done_at_once_waits_for_its_turn_and_no_task_is_made_for_it() -> None:
    tasks: list[int] = []

    async def slow(number: int) -> int:
        await elapse(1)
        return number

    def work(number: int) -> Awaitable[int]:
        tasks.append(len(asyncio.all_tasks()))
        return slow(number) if number % 4 == 1 else Done(number)

    async def run() -> list[int]:
        async with aclosing(in_order(count(8), work, ahead=3)) as results:
            return [number async for number in results]

    assert run_virtually(run()) == list(range(8))
    assert max(tasks) <= min(tasks) + 2
    assert asyncio.run(_awaited(Done(7))) == 7


async def _awaited(work: Awaitable[int]) -> int:
    return await work


def test_an_error_of_the_work_comes_out_in_its_turn() -> None:
    async def work(number: int) -> int:
        if number == 2:
            raise RuntimeError("two")
        return number

    async def run() -> list[int]:
        seen: list[int] = []
        async with aclosing(in_order(count(5), work, ahead=3)) as results:
            with pytest.raises(RuntimeError, match="two"):
                await collected(results, seen)
        return seen

    assert run_virtually(run()) == [0, 1]


def test_an_error_of_the_items_comes_out_after_what_came_before_it() -> None:
    async def broken() -> AsyncGenerator[int, None]:
        yield 1
        raise RuntimeError("items")

    async def work(number: int) -> int:
        await elapse(1)
        return number

    async def run() -> list[int]:
        seen: list[int] = []
        async with aclosing(in_order(broken(), work, ahead=3)) as results:
            with pytest.raises(RuntimeError, match="items"):
                await collected(results, seen)
        return seen

    assert run_virtually(run()) == [1]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_it_cancels_the_work_and_closes_the_items(taken: int) -> None:
    closed: list[str] = []
    cancelled: list[int] = []

    async def work(number: int) -> int:
        try:
            await elapse(1 if number < taken else 1000)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    async def run() -> int:
        async with aclosing(in_order(count(100, closed), work, ahead=2)) as results:
            for _ in range(taken):
                await anext(results)
            waiting = asyncio.ensure_future(anext(results))
            await elapse(10)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        return len(asyncio.all_tasks())

    assert run_virtually(run()) == 1
    assert closed == ["closed"]
    assert min(cancelled) == taken


@pytest.mark.parametrize("where", ["the items", "the work", "a merged source"])
def test_a_cancellation_from_behind_comes_out_and_nobody_waits_for_ever(where: str) -> None:
    async def run() -> None:
        shared: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        shared.cancel()

        async def items() -> AsyncGenerator[int, None]:
            yield 0
            if where != "the work":
                await shared
            yield 1

        async def work(number: int) -> int:
            if number and where == "the work":
                await shared
            return number

        joint = merged([items(), count(3)]) if where == "a merged source" else in_order(items(), work, ahead=2)
        async with asyncio.timeout(60), aclosing(joint) as results:
            async for _ in results:
                pass

    with pytest.raises(Stray):
        run_virtually(run())
