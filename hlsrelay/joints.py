"""How generators are joined: one behind the other with a look-ahead, or several into one. Closing a joint closes all behind it.

Law: whoever waits at a joint hears how what is behind it ends, whatever that is. A cancellation that nobody here asked for, such as one of
a task that others share, would end a feeder without a word, and its consumer would wait for ever: it comes out as Stray.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing
from typing import Any, Generic, TypeVar, cast

from hlsrelay.bell import Bell

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class Stray(Exception):
    """A cancellation came from behind a joint, not from before it."""


class Done(Awaitable[B]):
    """Work that is done already: awaiting it gives *value* at once, and no task is made for it."""

    __slots__ = ("value",)

    def __init__(self, value: B) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, None, B]:
        return self.value
        yield  # what makes it a generator


async def in_order(
    items: AsyncGenerator[A | C, None], work: Callable[[A], Awaitable[B]], ahead: int, passing: type[C] | tuple[()] = ()
) -> AsyncGenerator[B | C, None]:
    """Yield `await work(item)` for each item, in the items' order, with at most *ahead* under way before the one awaited.

    What is *passing* comes out as it is, in its turn. Closing it cancels what is under way and closes *items*; an exception of either
    comes out here, in its turn.
    """
    joint: _Joint[A, B, C] = _Joint(items, work, ahead, passing)
    feeder = asyncio.create_task(joint.feed())
    try:
        while (found := await joint.taken()) is not None:
            if isinstance(found, tuple):
                yield found[0]
                continue
            await joint.ended(found)
            if found.cancelled():
                raise Stray("a task behind a joint was cancelled")
            result = found.result()
            joint.under_way.discard(found)
            yield result
    finally:
        joint.closing = True
        feeder.cancel()
        for one in joint.under_way:
            one.cancel()
        await asyncio.gather(feeder, *joint.under_way, return_exceptions=True)
        await items.aclose()


class _Joint(Generic[A, B, C]):
    """What waits between a feeder and a consumer, in its order: work under way, and by itself in a tuple what is there already.

    Each waits for its bell, and no queue and no wait makes an object for each item: every segment passes two of these.
    """

    def __init__(
        self, items: AsyncGenerator[A | C, None], work: Callable[[A], Awaitable[B]], ahead: int, passing: type[C] | tuple[()]
    ) -> None:
        self._items, self._work, self._ahead, self._passing = items, work, ahead, passing
        self._waiting: deque[asyncio.Future[B] | tuple[B | C]] = deque()
        self._came, self._room = Bell(), Bell()
        self._over = False
        self.under_way: set[asyncio.Future[B]] = set()
        self.closing = False

    async def feed(self) -> None:
        """Take the items, and begin with each, as long as there is room."""
        try:
            async for item in self._items:
                found = self._begun(item)
                while len(self._waiting) >= self._ahead:
                    self._room.clear()
                    await self._room.wait()
                self._waiting.append(found)
                self._came.set()
        except (Exception, asyncio.CancelledError) as error:  # it comes out of the generator, in its turn
            if self.closing:
                raise
            failed: asyncio.Future[B] = asyncio.get_running_loop().create_future()
            failed.set_exception(_told(error))
            self.under_way.add(failed)
            self._waiting.append(failed)
        self._over = True
        self._came.set()

    def _begun(self, item: A | C) -> asyncio.Future[B] | tuple[B | C]:
        if isinstance(item, self._passing):
            return (item,)
        doing = self._work(cast("A", item))
        if isinstance(doing, Done):
            return (doing.value,)
        task = asyncio.ensure_future(doing)
        self.under_way.add(task)
        task.add_done_callback(self._rung)
        return task

    def _rung(self, _: object) -> None:
        self._came.set()

    async def taken(self) -> asyncio.Future[B] | tuple[B | C] | None:
        """Take out what comes next; None where nothing does any more."""
        while not self._waiting:
            if self._over:
                return None
            self._came.clear()
            await self._came.wait()
        self._room.set()
        return self._waiting.popleft()

    async def ended(self, work: asyncio.Future[B]) -> None:
        """Wait until *work*, which was taken out, is done, however it ends."""
        while not work.done():
            self._came.clear()
            await self._came.wait()


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


def _told(error: Exception | asyncio.CancelledError) -> Exception:
    if isinstance(error, Exception):
        return error
    stray = Stray("a cancellation that nobody here asked for")
    stray.__cause__ = error  # whose traceback says where it came from
    return stray
