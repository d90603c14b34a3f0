"""Who takes part as one process knows it: told of changes, or asking again, it comes to be as the registry is; at what cost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import pytest

from hlsrelay.errors import RegistryUnavailable
from hlsrelay.membership import SHORTEST_ROUND_S, Membership
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.registry import LEASE_S, Leases, Session
from hlsrelay.roster import Roster
from tests.virtual import elapse, run_virtually


class Counted(MemoryRegistry):
    """A registry that counts the sessions that are read."""

    read = 0

    async def sessions(self) -> list[Session]:
        found = await super().sessions()
        self.read += len(found)
        return found

    async def leases(self, ids: Iterable[str] = ()) -> Leases:
        found = await super().leases(ids)
        self.read += len(found.told)
        return found


def with_nodes(body: Callable[[Counted, Membership], Awaitable[None]], *, is_told: bool = True) -> None:
    """Run *body* where a, b and c take part; what the registry tells is heard."""

    async def within() -> None:
        registry = Counted()
        found = Membership(registry, lambda: is_told)
        for name in "abc":
            await registry.beat(name, None, {"name": name})
        async with Roster(registry, sessions=found.heard if is_told else None).kept_up():
            await elapse(0.1)
            assert names(await found.asked()) == "abc"
            registry.read = 0
            await body(registry, found)

    run_virtually(within())


def names(sessions: list[Session]) -> str:
    return "".join(one.id if one.lives else f"({one.id})" for one in sessions)


def test_a_look_reads_nothing_where_nothing_changed_and_one_session_where_that_did() -> None:
    async def body(registry: Counted, found: Membership) -> None:
        for _ in range(5):
            for name in "abc":
                await registry.beat(name, None, {"name": name})
            await elapse(0.7)
            assert not found.is_stale
            assert names(await found.asked()) == "abc"
        assert registry.read == 0
        await registry.beat("b", None, {"name": "b", "load": "7"})
        await registry.beat("d", None, {"name": "d"})
        await elapse(0.01)
        assert found.is_stale
        sessions = await found.asked()
        assert names(sessions) == "abcd"
        assert sessions[1].fields == {"name": "b", "load": "7"}
        assert registry.read == 2
        await registry.leave("a")
        await elapse(0.01)
        assert names(await found.asked()) == "bcd"
        assert registry.read == 2

    with_nodes(body)


def test_a_lease_that_is_over_is_seen_when_it_is_and_one_that_is_renewed_after_all_lives_again() -> None:
    async def body(registry: Counted, found: Membership) -> None:
        loop = asyncio.get_running_loop()
        for name in "ac":
            await registry.beat(name, None, {"name": name}, 2 * LEASE_S)
        await found.asked()
        assert found.next_s == pytest.approx(LEASE_S)
        await elapse(found.next_s + 0.01 - loop.time())
        assert names(await found.asked()) == "a(b)c"
        await registry.beat("b", None, {"name": "b"}, LEASE_S)
        assert names(await found.asked()) == "abc"
        assert registry.read == 0

    with_nodes(body)


def test_what_was_missed_is_read_where_the_numbers_differ_and_else_in_the_next_round() -> None:
    async def body(registry: Counted, found: Membership) -> None:
        told, registry._hearers = registry._hearers, []
        await registry.beat("d", None, {"name": "d"}, 1e9)
        assert names(await found.asked()) == "abcd"
        await registry.beat("d", None, {"name": "d", "state": "draining"}, 1e9)
        assert found._known["d"].fields == {"name": "d"}
        await elapse(2 * SHORTEST_ROUND_S)
        assert (await found.asked())[-1].fields == {"name": "d", "state": "draining"}
        registry._hearers = told

    with_nodes(body)


def test_a_registry_that_does_not_answer_or_was_lost_leaves_nothing_out() -> None:
    async def body(registry: Counted, found: Membership) -> None:
        await registry.beat("b", None, {"name": "b", "load": "7"})
        await elapse(0.01)
        registry.away = True
        with pytest.raises(RegistryUnavailable):
            await found.asked()
        registry.away = False
        assert found.is_stale
        assert (await found.asked())[1].fields == {"name": "b", "load": "7"}
        registry.lose()
        await registry.beat("c", None, {"name": "c"})
        await elapse(0.01)
        assert names(await found.asked()) == "c"

    with_nodes(body)


def test_where_the_registry_tells_no_changes_all_is_read_at_each_look() -> None:
    async def body(registry: Counted, found: Membership) -> None:
        await registry.beat("b", None, {"name": "b", "load": "7"})
        assert (await found.asked())[1].fields == {"name": "b", "load": "7"}
        await found.asked()
        assert registry.read == 6

    with_nodes(body, is_told=False)
