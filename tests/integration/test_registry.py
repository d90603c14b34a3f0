"""The contract of a registry, over the real Redis and the one in memory; and the link that keeps a relay in step with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from hlsrelay import redis_registry, tracking
from hlsrelay.embedded import EmbeddedRedis
from hlsrelay.errors import ConfigError, RegistryUnavailable, UnknownStream
from hlsrelay.fields import Registered
from hlsrelay.link import Link
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.processes import Children
from hlsrelay.redis_registry import RedisRegistry
from hlsrelay.registry import Heard, Registry, fetched
from tests.virtual import elapse, run_virtually
from tests.waiting import becomes_true

FIELDS = {"source": "https://example.com/live.m3u8", "desired": "run"}


@asynccontextmanager
async def memory(_: Path) -> AsyncGenerator[Registry, None]:
    yield MemoryRegistry()


@asynccontextmanager
async def real(folder: Path) -> AsyncGenerator[Registry, None]:
    children = Children()
    embedded = EmbeddedRedis(folder, children)
    registry = RedisRegistry(await embedded.ensure(), "test*[x]:")
    try:
        yield registry
    finally:
        await registry.aclose()
        await embedded.aclose()
        await children.aclose()


@pytest.fixture(params=[memory, real], ids=["memory", "redis"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Callable[[Registry], Awaitable[None]]], None]:
    """Runs a test's body with a registry."""

    def go(body: Callable[[Registry], Awaitable[None]]) -> None:
        async def within() -> None:
            async with request.param(tmp_path) as registry:
                await body(registry)

        asyncio.run(within())

    return go


Run = Callable[[Callable[[Registry], Awaitable[None]]], None]


def test_a_stream_is_registered_once(run: Run) -> None:
    async def body(registry: Registry) -> None:
        assert await registry.register("news", FIELDS)
        assert not await registry.register("news", {"source": "other"})
        found = await registry.get("news")
        assert found is not None
        assert found.fields == FIELDS

    run(body)


def test_all_are_listed_by_id_and_nothing_else_is(run: Run) -> None:
    async def body(registry: Registry) -> None:
        for stream_id in ("b", "a", "c-1.x"):
            await registry.register(stream_id, FIELDS)
        assert [one.id for one in await registry.all()] == ["a", "b", "c-1.x"]

    run(body)


def test_fields_are_set_and_unset_in_one_step_and_only_on_what_exists(run: Run) -> None:
    async def body(registry: Registry) -> None:
        assert not await registry.change("news", {"ladder": "480p"})
        await registry.register("news", {**FIELDS, "window": "30"})
        assert await registry.change("news", {"ladder": "480p"}, ("window",))
        found = await registry.get("news")
        assert found is not None
        assert found.fields == {**FIELDS, "ladder": "480p"}

    run(body)


def test_a_report_never_brings_a_deleted_stream_back(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", FIELDS)
        assert await registry.report("news", {"state": "running"})
        assert await registry.delete("news")
        assert not await registry.delete("news")
        assert not await registry.report("news", {"state": "running"})
        assert await registry.get("news") is None
        assert await registry.all() == []

    run(body)


def test_a_deletion_is_of_the_same_life_and_a_loss_begins_another(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", FIELDS)
        found, life = await registry.follow("news")
        assert found is not None
        assert found.fields == FIELDS
        await registry.delete("news")
        assert await registry.follow("news") == (None, life)
        await lost(registry)
        _, next_life = await registry.follow("news")
        assert next_life != life
        assert await registry.follow("news") == (None, next_life)

    run(body)


def test_figures_are_told_with_the_rest_and_are_no_part_of_the_hash(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", FIELDS)
        await registry.report("news", {"state": "running", "last_sequence": "7", "lag": "0.10"})
        whole = {**FIELDS, "state": "running", "last_sequence": "7", "lag": "0.10"}
        assert (await fetched(registry, "news")).fields == whole
        assert [one.fields for one in await registry.all()] == [whole]
        hash_ = Registered("news", {**FIELDS, "state": "running"})
        assert (await registry.follow("news"))[0] == hash_
        assert await registry.hashes(["news", "none"]) == [("news", hash_), ("none", None)]
        await registry.delete("news")
        await registry.register("news", FIELDS)
        assert (await fetched(registry, "news")).fields == FIELDS, "what was told of the one that was deleted went with it"

    run(body)


def test_all_ids_are_found_piece_by_piece(run: Run) -> None:
    async def body(registry: Registry) -> None:
        ids = {f"s{number}" for number in range(7)}
        for stream_id in ids:
            await registry.register(stream_id, FIELDS)
        found, cursor = await registry.ids()
        while cursor:
            more, cursor = await registry.ids(cursor)
            found += more
        assert set(found) == ids

    run(body)


def test_changes_are_told_and_figures_are_none(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", FIELDS)
        await registry.register("other", FIELDS)
        async with aclosing(registry.heard()) as hearing, aclosing(registry.heard("other")) as of_other:
            assert await anext(hearing) is None
            assert await anext(of_other) is None
            await registry.report("news", {"last_sequence": "7"})
            epoch = await registry.claim("news", "ours", {"node": "a"})
            assert await anext(hearing) == Heard(frozenset(("news",)))
            await registry.report("news", {}, epoch, position="position")
            assert await anext(hearing) == Heard(frozenset(("news",))), "the first time: the hash says whose position it is"
            await registry.report("news", {}, epoch, position="position 2")
            await registry.change("other", {"window": "30"})
            assert await anext(hearing) == Heard(frozenset(("other",)))
            assert await anext(of_other) == Heard(frozenset(("other",)))
            await registry.delete("news")
            assert await anext(hearing) == Heard(frozenset(("news",)))
            await lost(registry)
            assert await anext(hearing) is None

    run(body)


def test_the_doorbell_is_heard_by_one_and_doubled_or_unknown_entries_do_no_harm(run: Run) -> None:
    async def body(registry: Registry) -> None:
        async with aclosing(registry.heard()) as hearing:
            assert await anext(hearing) is None
            if isinstance(registry, RedisRegistry):
                await registry._redis.rpush("test*[x]:queue", "news", "news", "no such stream")
                assert await anext(hearing) == Heard(frozenset(("news", "no such stream")))
                assert await anext(hearing) == Heard(), "it was emptied"
            else:
                assert isinstance(registry, MemoryRegistry)
                registry.ring("news")
                assert await anext(hearing) == Heard(frozenset(("news",)))

    run(body)


def test_who_hears_of_changes_is_told_when_redis_goes(tmp_path: Path) -> None:
    async def body() -> None:
        children = Children()
        embedded = EmbeddedRedis(tmp_path, children)
        registry = RedisRegistry(await embedded.ensure())
        try:
            async with aclosing(registry.heard()) as hearing:
                assert await anext(hearing) is None
                hears = asyncio.ensure_future(anext(hearing))
                await embedded.aclose()
                with pytest.raises(RegistryUnavailable):
                    await hears
        finally:
            await registry.aclose()
            await children.aclose()

    asyncio.run(body())


def test_a_redis_that_has_nothing_to_tell_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_registry, "ANSWER_WITHIN_S", 0.2)
    monkeypatch.setattr(tracking, "SIGN_OF_LIFE_S", 0.02)

    async def body() -> None:
        async with real(tmp_path) as registry, aclosing(registry.heard()) as hearing:
            assert isinstance(registry, RedisRegistry)
            assert await anext(hearing) is None
            hears = asyncio.ensure_future(anext(hearing))

            async def well_after_its_time() -> bool:
                told = await registry._redis.info("commandstats")
                return hears.done() or told.get("cmdstat_ping", {}).get("calls", 0) >= 50

            await becomes_true(well_after_its_time)
            assert not hears.done(), "silence was taken for the end"
            await registry.register("news", FIELDS)
            assert await hears == Heard(frozenset(("news",)))

    asyncio.run(body())


async def lost(registry: Registry) -> None:
    """Have a registry lose all that it has."""
    if isinstance(registry, MemoryRegistry):
        registry.lose()
    else:
        assert isinstance(registry, RedisRegistry)
        await registry._redis.flushall()


def test_a_stream_that_the_registry_has_lost_is_written_back_as_it_was_and_one_that_was_deleted_is_not(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", {**FIELDS, "ladder": "480p"})
        link = Link(registry, "news")
        async with aclosing(link.changes()) as changes:
            assert (await anext(changes)) is not None
            link.report(state="running", last_sequence="7")
            await link.flush()
            await lost(registry)
            link.report(last_sequence="8")
            following = asyncio.ensure_future(anext(changes))

            async def whole() -> Registered | None:
                found = await registry.get("news")
                return found if found and "last_sequence" in found.fields else None

            found = await becomes_true(whole)
            assert not following.done(), "it is as it was: no change"
            assert found is not None
            assert found.fields == {**FIELDS, "ladder": "480p", "state": "running", "last_sequence": "8"}
            await registry.delete("news")
            assert await following is None

    run(body)


def test_what_was_registered_anew_since_a_loss_counts(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", {**FIELDS, "ladder": "480p"})
        link = Link(registry, "news")
        async with aclosing(link.changes()) as changes:
            assert (await anext(changes)) is not None
            await lost(registry)
            await registry.register("news", FIELDS)
            changed = await anext(changes)
            assert changed is not None
            assert changed.fields == FIELDS

    run(body)


def test_an_unknown_stream_is_an_error_that_says_how_to_register_it(run: Run) -> None:
    async def body(registry: Registry) -> None:
        with pytest.raises(UnknownStream, match="hlsrelay add news"):
            await fetched(registry, "news")

    run(body)


def test_a_redis_that_is_not_there_is_one_clear_error() -> None:
    async def body() -> None:
        registry = RedisRegistry("redis://user:secret@127.0.0.1:1/0")
        with pytest.raises(RegistryUnavailable, match="HLSRELAY_REDIS_URL") as caught:
            await registry.ping()
        assert "secret" not in str(caught.value)
        await registry.aclose()

    asyncio.run(body())


def test_what_is_no_redis_url_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="HLSRELAY_REDIS_URL"):
        RedisRegistry("http://x")


def test_a_link_hands_on_every_change_of_the_operator_and_none_of_its_own_reports() -> None:
    async def body() -> None:
        registry = MemoryRegistry()
        await registry.register("news", FIELDS)
        link = Link(registry, "news")
        async with aclosing(link.changes()) as changes:
            assert (await anext(changes)) is not None
            link.report(state="running", last_sequence="7")
            await registry.change("news", {"ladder": "480p"})
            changed = await anext(changes)
            assert changed is not None
            assert changed.fields["ladder"] == "480p"
            link.report(last_sequence="8")
            await registry.delete("news")
            assert await anext(changes) is None
            assert registry.streams == {}

    run_virtually(body())


def test_reports_wait_while_redis_is_away_and_the_newest_arrive() -> None:
    async def body() -> None:
        registry = MemoryRegistry()
        await registry.register("news", FIELDS)
        revived: list[float] = []

        async def revive() -> None:
            revived.append(asyncio.get_running_loop().time())

        link = Link(registry, "news", revive)

        async def follow() -> None:
            async with aclosing(link.changes()) as changes:
                async for _ in changes:
                    pass

        following = asyncio.ensure_future(follow())
        await elapse(1)
        registry.away = True
        for number in range(100):
            link.report(last_sequence=str(number), state="running" if number else "starting")
            await elapse(1)
        assert len(revived) > 10
        registry.away = False
        await elapse(1)
        assert registry.streams["news"] == {**FIELDS, "last_sequence": "99", "state": "running"}
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following

    run_virtually(body())
