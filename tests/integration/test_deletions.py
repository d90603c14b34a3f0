"""A Redis that goes back to an older state: what was deleted since stays deleted, what was added since stays (virtual time)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from copy import deepcopy

import pytest

from hlsrelay.deletions import Deletions
from hlsrelay.link import Claim, Link
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.session import BEAT_S, Member
from tests.integration.test_registry import FIELDS
from tests.virtual import elapse, run_virtually

State = dict[str, dict[str, str]]


class Dumped(MemoryRegistry):
    """A registry that may go back to what it was."""

    def dump(self) -> State:
        return deepcopy(self.streams)

    def go_back(self, to: State) -> None:
        """It tells the life of then, and knows nobody who came since."""
        self.streams = deepcopy(to)
        self._forget()


def taking_part(body: Callable[[Dumped, Member, Deletions], Awaitable[None]]) -> None:
    async def main() -> None:
        registry = Dumped()
        member = Member(registry, dict, lambda _: None)
        async with member.taking_part():
            for stream in ("news", "sport"):
                await registry.register(stream, FIELDS)
                assert await registry.claim(stream, member.id, {}) > 0
            await body(registry, member, Deletions(registry, member))

    run_virtually(main())


async def looked(registry: Dumped, deletions: Deletions) -> list[str]:
    """Tell *deletions* all that is registered, as a roster does; returns the streams that are there once they are upheld."""
    streams = {one.id: one for one in await registry.all()}
    for stream_id in {*streams, *deletions._seen}:
        deletions.take(stream_id, streams.get(stream_id))
    return sorted(streams.keys() - set(await deletions.upheld()))


@pytest.mark.parametrize("noticed", [False, True])
def test_what_was_deleted_stays_deleted_when_redis_goes_back(noticed: bool) -> None:
    async def body(registry: Dumped, member: Member, deletions: Deletions) -> None:
        dump = registry.dump()
        assert await looked(registry, deletions) == ["news", "sport"]
        await registry.delete("news")
        assert await looked(registry, deletions) == ["sport"]
        for _ in range(2):
            registry.go_back(dump)
            await elapse(2 * BEAT_S if noticed else 0)
            assert await looked(registry, deletions) == ["sport"]
            assert list(registry.streams) == ["sport"]

    taking_part(body)


def test_what_was_registered_anew_since_is_left_alone() -> None:
    async def body(registry: Dumped, member: Member, deletions: Deletions) -> None:
        await looked(registry, deletions)
        await registry.delete("news")
        await looked(registry, deletions)
        await registry.register("news", FIELDS)
        dump = registry.dump()
        assert await looked(registry, deletions) == ["news", "sport"]
        await registry.claim("news", member.id, {})
        registry.go_back(dump)
        assert await looked(registry, deletions) == ["news", "sport"]

    taking_part(body)


@pytest.mark.parametrize("noticed", [False, True])
def test_what_redis_has_lost_was_not_deleted_and_is_left_alone_when_it_is_written_back(noticed: bool) -> None:
    async def body(registry: Dumped, member: Member, deletions: Deletions) -> None:
        await elapse(2 * BEAT_S)
        dump = registry.dump()
        await looked(registry, deletions)
        registry.go_back({"sport": dump["sport"]})
        await elapse(2 * BEAT_S if noticed else 0)
        assert await looked(registry, deletions) == ["sport"]
        registry.streams["news"] = dump["news"]  # by its link
        assert await looked(registry, deletions) == ["news", "sport"]

    taking_part(body)


def test_a_relay_goes_on_where_redis_goes_back_to_before_its_stream_was_added_though_nobody_has_noticed_that_yet() -> None:
    async def body(registry: Dumped, member: Member, deletions: Deletions) -> None:
        dump = registry.dump()
        await registry.register("late", FIELDS)
        found, life = await registry.follow("late")
        assert found is not None
        epoch = await registry.claim("late", member.id, {})
        link = Link(registry, "late", claim=Claim(found, member.id, epoch, life), lives=member.lives)
        async with aclosing(link.changes()) as changes:
            following = asyncio.ensure_future(anext(changes))
            await elapse(BEAT_S + 0.1)
            registry.go_back(dump)
            await elapse(Link.PERIOD_S + 0.1)
            assert not following.done()
            assert registry.streams["late"]["source"] == FIELDS["source"]
            await registry.delete("late")
            assert await following is None, "and what its operator deletes is deleted"

    taking_part(body)
