"""How generators are joined: one behind the other with a look-ahead, or several into one. Closing a joint closes all behind it.

Law: whoever waits at a joint hears how what is behind it ends, whatever that is. A cancellation that nobody here asked for, such as one of
a task that others share, would end a feeder without a word, and its consumer would wait for ever: it comes out as Stray.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar, cast

from hlsrelay.bell import Bell

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class Stray(Exception):
    """A cancellation came from behind a joint, not from before it."""


async def in_order(
    items: AsyncGenerator[A | C, None], work: Callable[[A], Awaitable[B]], ahead: int, passing: type[C] | tuple[()] = ()
) -> AsyncGenerator[B | C, None]:
    """Yield `await work(item)` for each item, in the items' order, with at most *ahead* under way before the one awaited.

    What is *passing* comes out as it is, in its turn. Closing it cancels what is under way and closes *items*; an exception of either
    comes out here, in its turn.
    """
    queue: asyncio.Queue[asyncio.Future[B] | tuple[C] | None] = asyncio.Queue(ahead)
    under_way: set[asyncio.Future[B]] = set()
    closing = False

    async def feed() -> None:
        try:
            async for item in items:
                if isinstance(item, passing):
                    await queue.put((item,))
                    continue
                task = asyncio.ensure_future(work(cast("A", item)))
                under_way.add(task)
                await queue.put(task)
        except (Exception, asyncio.CancelledError) as error:  # it comes out of the generator, in its turn
            if closing:
                raise
            failed: asyncio.Future[B] = asyncio.get_running_loop().create_future()
            failed.set_exception(_told(error))
            under_way.add(failed)
            await queue.put(failed)
        else:
            await queue.put(None)

    feeder = asyncio.create_task(feed())
    try:
        while (task := await queue.get()) is not None:
            if isinstance(task, tuple):
                yield task[0]
                continue
            if not task.done():
                await _ended(task)
            if task.cancelled():
                raise Stray("a task behind a joint was cancelled")
            result = task.result()
            under_way.discard(task)
            yield result
    finally:
        closing = True
        feeder.cancel()
        for one in under_way:
            one.cancel()
        await asyncio.gather(feeder, *under_way, return_exceptions=True)
        await items.aclose()


async def merged(sources: list[AsyncGenerator[A, None]]) -> AsyncGenerator[A, None]:
    """Yield what *sources* yield, as it comes, until all are done; closing it closes them. An exception of one comes out here."""
    queue: asyncio.Queue[tuple[A] | Exception | None] = asyncio.Queue(1)
    closing = False

    async def feed(source: AsyncGenerator[A, None]) -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    await queue.put((item,))
        except (Exception, asyncio.CancelledError) as error:  # it comes out of the generator
            if closing:
                raise
            await queue.put(_told(error))
        else:
            await queue.put(None)

    feeders = [asyncio.create_task(feed(source)) for source in sources]
    running = len(feeders)
    try:
        while running:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                running -= 1
            else:
                yield found[0]
    finally:
        closing = True
        for feeder in feeders:
            feeder.cancel()
        await asyncio.gather(*feeders, return_exceptions=True)


async def _ended(task: asyncio.Future[B]) -> None:
    """Wait until *task* is done, however it ends: `asyncio.wait` for one, which each segment passes twice."""
    bell = Bell()

    def ring(_: object) -> None:
        bell.set()

    task.add_done_callback(ring)
    try:
        await bell.wait()
    finally:
        task.remove_done_callback(ring)


def _told(error: Exception | asyncio.CancelledError) -> Exception:
    if isinstance(error, Exception):
        return error
    stray = Stray("a cancellation that nobody here asked for")
    stray.__cause__ = error  # whose traceback says where it came from
    return stray
