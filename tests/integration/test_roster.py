"""What is registered as one process knows it: told of changes, or asking again and again, it comes to be as the registry is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from hlsrelay import roster
from hlsrelay.fields import Registered
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.registry import Heard
from hlsrelay.roster import FULL_RATE_NODES, GATHERED_S, POLLED_EVERY_S, SHORTEST_ROUND_S, STEP_EVERY_S, Roster
from hlsrelay.tracking import Untracked
from tests.integration.test_registry import FIELDS
from tests.virtual import elapse, run_virtually


class Counted(MemoryRegistry):
    """A registry that counts the hashes that are read, and may be one that tells no changes, or misses some."""

    def __init__(self, *, tells: bool = True, deaf: bool = False) -> None:
        super().__init__()
        self.read = 0
        self.tells = tells
        self.deaf = deaf

    async def heard(self, only: str = "") -> AsyncGenerator[Heard | None, None]:
        if not self.tells:
            raise Untracked("unknown command")
        async for what in super().heard(only):
            if what is None or not self.deaf:
                yield what

    async def hashes(self, ids: Any) -> list[tuple[str, Registered | None]]:
        ids = list(ids)
        self.read += len(ids)
        return await super().hashes(ids)


def kept_up(registry: Counted, body: Callable[[Roster, dict[str, Registered]], Awaitable[None]], only: str = "") -> None:
    async def within() -> None:
        known: dict[str, Registered] = {}

        def take(stream_id: str, registered: Registered | None) -> None:
            if registered is None:
                del known[stream_id]
            else:
                known[stream_id] = registered

        for number in range(5):
            await registry.register(f"s{number}", FIELDS)
        found = Roster(registry, take, only)
        async with found.kept_up():
            await elapse(1)
            await body(found, known)

    run_virtually(within())


def test_a_change_is_known_at_once_and_costs_one_look_at_one_stream() -> None:
    registry = Counted()

    async def body(found: Roster, known: dict[str, Registered]) -> None:
        assert set(known) == {f"s{number}" for number in range(5)}
        registry.read = 0
        for window in range(10, 20):
            await registry.change("s1", {"window": str(window)})
        await elapse(2 * GATHERED_S)
        assert known["s1"].fields["window"] == "19"
        assert registry.read == 1
        await registry.delete("s2")
        await registry.register("s9", FIELDS)
        await elapse(2 * GATHERED_S)
        assert "s2" not in known
        assert "s9" in known
        before = known["s1"]
        await registry.report("s1", {"lag": "0.1"})
        await elapse(1)
        assert known["s1"] is before

    kept_up(registry, body)


def test_who_listens_for_one_stream_hears_of_that_one_and_of_a_registry_that_lost_all() -> None:
    registry = Counted()

    async def body(found: Roster, known: dict[str, Registered]) -> None:
        calls: list[Registered | None] = []
        end = found.listen("s1", calls.append)
        await registry.change("s2", {"window": "30"})
        await elapse(2 * GATHERED_S)
        assert calls == []
        await registry.change("s1", {"window": "30"})
        await elapse(2 * GATHERED_S)
        assert calls == [Registered("s1", {**FIELDS, "window": "30"})]
        registry.lose()
        await elapse(0.01)
        assert calls[1] is None, "at once: it may be gone"
        await elapse(1)
        assert calls[2:] == [None]
        assert known == {}
        end()
        await registry.register("s1", FIELDS)
        await elapse(1)
        assert len(calls) == 3
        assert set(known) == {"s1"}

    kept_up(registry, body)


def test_a_registry_that_tells_no_changes_is_asked_again_and_again() -> None:
    registry = Counted(tells=False)

    async def body(found: Roster, known: dict[str, Registered]) -> None:
        assert not found.is_told
        await registry.change("s1", {"window": "30"})
        await registry.delete("s2")
        await elapse(POLLED_EVERY_S + 0.01)
        assert known["s1"].fields["window"] == "30"
        assert "s2" not in known

    kept_up(registry, body)


def test_what_was_missed_is_found_when_all_is_read_again_piece_by_piece() -> None:
    registry = Counted(deaf=True)

    async def body(found: Roster, known: dict[str, Registered]) -> None:
        assert found.is_told
        await registry.change("s1", {"window": "30"})
        await registry.delete("s2")
        await elapse(1)
        assert "window" not in known["s1"].fields
        await elapse(2 * SHORTEST_ROUND_S + 5 * STEP_EVERY_S)
        assert known["s1"].fields["window"] == "30"
        assert "s2" not in known

    kept_up(registry, body)


def test_that_redis_tells_nothing_any_more_is_heard_of_by_who_follows_sessions() -> None:
    registry, heard = Counted(), list[frozenset[str] | None]()

    async def body() -> None:
        async with Roster(registry, sessions=heard.append).kept_up():
            await elapse(1)
            heard.clear()
            registry.away = True
            registry._tell(None)
            await elapse(1)
            assert None in heard

    run_virtually(body())


def test_a_registry_that_comes_back_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Counted()

    async def body(found: Roster, known: dict[str, Registered]) -> None:
        registry.away = True
        registry._tell(None)
        await elapse(5)
        assert not found.is_told
        assert len(known) == 5
        registry.away = False
        await registry.change("s1", {"window": "30"})
        await elapse(2)
        assert found.is_told
        assert known["s1"].fields["window"] == "30"

    kept_up(registry, body)


def test_one_stream_alone_is_kept_up_without_a_look_at_the_others() -> None:
    registry = Counted()

    async def body(found: Roster, known: dict[str, Registered]) -> None:
        assert set(known) == {"s1"}
        registry.read = 0
        await registry.change("s2", {"window": "30"})
        await registry.change("s1", {"window": "30"})
        await elapse(1)
        assert known["s1"].fields["window"] == "30"
        assert registry.read == 1

    kept_up(registry, body, only="s1")


def test_what_nobody_foresaw_ends_neither_hearing_nor_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Counted()

    async def body(found: Roster, known: dict[str, Registered]) -> None:
        good = registry.hashes

        async def bad(ids: Any) -> list[tuple[str, Registered | None]]:
            raise RuntimeError("nobody foresaw this")

        monkeypatch.setattr(registry, "hashes", bad)
        await registry.change("s1", {"window": "30"})
        await elapse(1)
        monkeypatch.setattr(registry, "hashes", good)
        await elapse(roster.ASKED_AGAIN_S + 1)
        assert known["s1"].fields["window"] == "30"

    kept_up(registry, body)


def test_many_nodes_do_not_read_all_at_the_same_moment_when_redis_comes_back() -> None:
    async def body() -> None:
        registry = Counted()
        for number in range(4000):
            registry.streams[f"s{number}"] = dict(FIELDS)
        found = Roster(registry)
        async with found.kept_up():
            await elapse(10)
            registry.read = 0
            registry._tell(None)
            await elapse(2.1)
            assert registry.read >= 4000
            assert 0 < found._spread_s <= 2
        assert asyncio.get_running_loop().time() > 12

    run_virtually(body())


def test_the_more_nodes_there_are_the_less_each_reads_again() -> None:
    registry = Counted()

    async def body(found: Roster, known: dict[str, Registered]) -> None:
        for share in (1, 4):
            found.nodes = share * FULL_RATE_NODES
            await elapse(100)  # what was begun before
            registry.read = 0
            await elapse(1000)
            rounds = registry.read / len(known)
            assert 0.5 * 1000 / (SHORTEST_ROUND_S + 3 * STEP_EVERY_S) < rounds * share <= 1000 / SHORTEST_ROUND_S

    kept_up(registry, body)
