"""Who relays what: leases, claims and epochs, over the real Redis and the registry in memory; links that lose their stream."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest

from hlsrelay import proc
from hlsrelay.errors import Superseded
from hlsrelay.fields import Registered
from hlsrelay.link import Claim, Link
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.redis_registry import RedisRegistry
from hlsrelay.registry import Beat, Heard, Refused, Registry
from hlsrelay.session import is_dead, process_of, session_id
from tests.integration.test_registry import FIELDS, Run, lost, real, run
from tests.virtual import elapse, run_virtually
from tests.waiting import becomes_true

__all__ = ["run"]

SHORT_S = 0.2
ONE, OTHER = {"name": "one", "state": "active"}, {"name": "other", "state": "active"}


async def claimed(registry: Registry, session: str, dead: str = "", lease_s: float = SHORT_S) -> int:
    return await registry.claim("news", session, {"node": session}, dead=dead, lease_s=lease_s)


async def is_over(registry: Registry, session: str) -> bool:
    return not any(one.id == session and one.lives for one in await registry.sessions())


async def owned(registry: Registry, session: str) -> Registered | None:
    found = await registry.get("news")
    return found if found and found.fields["session"] == session else None


async def _is(count: Callable[[], Awaitable[int]], expected: int) -> bool:
    return await count() == expected


async def link_of(registry: Registry, session: str) -> Link:
    epoch = await claimed(registry, session)
    assert epoch > 0
    found, life = await registry.follow("news")
    assert found is not None
    return Link(registry, "news", claim=Claim(found, session, epoch, life))


def test_a_stream_is_claimed_by_one_living_session_and_by_another_once_its_lease_is_over(run: Run) -> None:
    async def body(registry: Registry) -> None:
        assert await claimed(registry, "one") == Refused.UNKNOWN
        await registry.register("news", FIELDS)
        last = await registry.beat("one", None, ONE, SHORT_S)
        first = await claimed(registry, "one")
        assert first > 0
        ends = asyncio.get_running_loop().time() + SHORT_S
        beaten = await registry.beat("other", None, OTHER, SHORT_S)
        assert await claimed(registry, "other") == Refused.HELD
        second = 0
        while second <= 0:
            beaten = await registry.beat("other", beaten, OTHER, SHORT_S)
            second = await claimed(registry, "other")
        assert asyncio.get_running_loop().time() >= ends - 0.05
        assert second > first
        assert last.at_ms > 0
        found = await registry.get("news")
        assert found is not None
        assert found.fields == {**FIELDS, "session": "other", "node": "other", "epoch": str(second)}
        assert {one.id for one in await registry.sessions() if one.lives} == {"other"}

    run(body)


def test_who_leaves_has_nothing_any_more_and_is_not_waited_for(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", FIELDS)
        await registry.beat("one", None, ONE, 60)
        await registry.beat("other", None, OTHER, 60)
        assert [(one.id, one.lives, one.fields["name"]) for one in await registry.sessions()] == [
            ("one", True, "one"),
            ("other", True, "other"),
        ]
        assert await claimed(registry, "one", lease_s=60) > 0
        await registry.leave("one")
        assert await claimed(registry, "other", lease_s=60) == Refused.IN_DOUBT, "nobody came before: all have time to"

    run(body)


def test_what_an_operator_wishes_of_a_node_is_told_to_it_and_outlives_what_that_tells_of_itself(run: Run) -> None:
    async def body(registry: Registry) -> None:
        assert not await registry.tell_session("one", {"wish": "drain"}), "no such node"
        last = await registry.beat("one", None, ONE, 60)
        assert await registry.tell_session("one", {"wish": "drain"})
        await registry.beat("one", last, ONE, 60)
        assert [one.fields for one in await registry.sessions()] == [{**ONE, "wish": "drain"}]

    run(body)


def test_leases_that_are_over_the_next_one_and_what_some_tell_are_of_one_moment(run: Run) -> None:
    async def body(registry: Registry) -> None:
        found = await registry.leases(["one"])
        assert (found.count, found.over, found.next_s, found.told) == (0, {}, math.inf, ())
        for number in range(20):
            await registry.beat(f"short {number}", None, ONE, SHORT_S)
        await registry.beat("one", None, ONE, 60)
        await registry.beat("other", None, OTHER, 90)
        for number in range(20):
            await becomes_true(partial(is_over, registry, f"short {number}"))
        found = await registry.leases(["other", "none", "short 0"])
        assert found.count == 22
        assert set(found.over) == {f"short {number}" for number in range(20)}
        assert all(-60 < left_s < 0 for left_s in found.over.values())
        assert 50 < found.next_s <= 60
        assert [(one.id, one.lives, one.fields) for one in found.told] == [("other", True, OTHER), ("short 0", False, ONE)]

    run(body)


def test_a_lease_that_is_renewed_is_told_to_nobody_and_what_a_session_tells_anew_to_all(run: Run) -> None:
    async def body(registry: Registry) -> None:
        last = await registry.beat("one", None, ONE, 60)
        async with aclosing(registry.heard()) as hearing, aclosing(registry.heard("news")) as of_news:
            assert await anext(hearing) is None
            assert await anext(of_news) is None
            for _ in range(3):
                last = await registry.beat("one", last, ONE, 60)
            await registry.beat("other", None, OTHER, 60)
            assert await anext(hearing) == Heard(sessions=frozenset(("other",)))
            last = await registry.beat("one", last, {**ONE, "load": "7"}, 60)
            assert await anext(hearing) == Heard(sessions=frozenset(("one",)))
            assert (await registry.leases(["one"])).told[0].fields == {**ONE, "load": "7"}
            await registry.tell_session("one", {"wish": "drain"})
            assert await anext(hearing) == Heard(sessions=frozenset(("one",)))
            await registry.leave("other")
            assert await anext(hearing) == Heard(sessions=frozenset(("other",)))
            await registry.register("news", FIELDS)
            assert await anext(of_news) == Heard(frozenset(("news",))), "who follows one stream hears of no session"

    run(body)


def test_who_has_been_over_for_long_is_forgotten_with_what_it_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with real(tmp_path) as registry:
            assert isinstance(registry, RedisRegistry)
            for number in range(20):
                await registry.beat(f"short {number}", None, ONE, SHORT_S)  # its hash expires by itself much later

            async def kept() -> int:
                await registry.beat("one", None, ONE, 0.01)
                return len(await registry._redis.keys(f"{registry._keys._escaped()}node:*"))

            await becomes_true(partial(_is, kept, 1))
            assert [one.id for one in await registry.sessions()] == ["one"]
            assert 0 < await registry._redis.pttl(registry._keys.node("one")) <= 10_000

    asyncio.run(body())


def test_who_has_come_too_late_itself_claims_nothing(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", FIELDS)
        await registry.beat("one", None, ONE, SHORT_S)
        await becomes_true(lambda: is_over(registry, "one"))
        await registry.beat("other", None, OTHER, 60)
        assert await claimed(registry, "one") == Refused.IN_DOUBT
        assert await claimed(registry, "other") > 0

    run(body)


def test_nobody_is_declared_dead_where_nobody_came_for_a_while(run: Run) -> None:
    """Redis stood still, or was away: the first who is back waits for the others."""

    async def body(registry: Registry) -> None:
        await registry.register("news", FIELDS)
        await registry.beat("one", None, ONE, SHORT_S)
        await claimed(registry, "one")
        await becomes_true(lambda: is_over(registry, "one"))
        assert await claimed(registry, "other") == Refused.IN_DOUBT, "it has not come itself"
        await registry.beat("other", None, OTHER, SHORT_S)
        assert await claimed(registry, "other") == Refused.IN_DOUBT
        await registry.beat("one", None, ONE, SHORT_S)
        assert await claimed(registry, "other") == Refused.HELD
        assert await claimed(registry, "other", dead="one") > 0, "who knows that it is dead need not wait"

    run(body)


def test_what_an_earlier_owner_writes_is_refused_and_a_deleted_stream_is_not_brought_back(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", FIELDS)
        first = await claimed(registry, "one")
        assert await registry.report("news", {"state": "running"}, first)
        await registry.change("news", {"session": ""})
        second = await claimed(registry, "other")
        assert second > first
        with pytest.raises(Superseded):
            await registry.report("news", {"state": "stalled"}, first)
        found = await registry.get("news")
        assert found is not None
        assert found.fields["state"] == "running"
        await registry.delete("news")
        assert not await registry.report("news", {"state": "running"}, second)

    run(body)


def test_what_need_not_be_written_soon_is_written_together_and_each_is_answered_for_itself(run: Run) -> None:
    async def body(registry: Registry) -> None:
        for stream in ("one", "two", "three"):
            await registry.register(stream, FIELDS)
        claims = {stream: await registry.claim(stream, "us", {}) for stream in ("one", "two", "three")}
        await registry.delete("three")

        def reported(stream: str, epoch: int) -> Awaitable[bool]:
            return registry.report(stream, {"lag": "0.1"}, epoch, position=f"{stream} stands here", soon=False)

        epochs = {**claims, "two": claims["two"] - 1, "four": 1}
        answers = await asyncio.gather(*(reported(stream, epoch) for stream, epoch in epochs.items()), return_exceptions=True)
        assert answers[0] is True
        assert isinstance(answers[1], Superseded)
        assert answers[2:] == [False, False]
        assert [await registry.carried(stream) for stream in epochs] == ["one stands here", "", "", ""]
        found = await registry.get("one")
        assert found is not None
        assert found.fields["lag"] == "0.1"

    run(body)


def test_where_a_stream_stands_is_kept_for_its_next_owner_and_goes_with_it(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", FIELDS)
        first = await claimed(registry, "one")
        assert await registry.carried("news") == ""
        assert await registry.report("news", {}, first, position="stands here")
        await registry.change("news", {"session": ""})
        second = await claimed(registry, "other")
        with pytest.raises(Superseded):
            await registry.report("news", {}, first, position="stood here")
        assert await registry.carried("news") == "stands here"
        assert await registry.report("news", {}, second, position="stands there")
        assert await registry.carried("news") == "stands there"
        await registry.delete("news")
        assert not await registry.report("news", {}, second, position="stands nowhere")
        assert await registry.carried("news") == ""

    run(body)


def test_a_stream_that_is_deleted_by_hand_and_registered_anew_does_not_go_on_from_where_it_stood(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", FIELDS)
        assert await registry.report("news", {}, await claimed(registry, "one"), position="stands here")
        if isinstance(registry, MemoryRegistry):
            del registry.streams["news"]
        else:
            assert isinstance(registry, RedisRegistry)
            await registry._redis.delete(registry._keys.stream("news"))
        await registry.register("news", FIELDS)
        assert await claimed(registry, "other") > 0
        assert await registry.carried("news") == ""

    run(body)


def test_a_registry_that_went_back_to_an_older_state_began_another_life_and_one_that_lost_all_no_second_one(run: Run) -> None:
    async def body(registry: Registry) -> None:
        _, life = await registry.follow("news")
        last = await registry.beat("one", None, ONE, SHORT_S)
        last = await registry.beat("one", last, ONE, SHORT_S)
        assert (await registry.follow("news"))[1] == life == last.life
        await registry.leave("one")
        last = await registry.beat("one", last, ONE, SHORT_S)
        assert (await registry.follow("news"))[1] == last.life != life
        await lost(registry)
        _, life = await registry.follow("news")
        assert life != last.life
        assert (await registry.beat("one", last, ONE, SHORT_S)).life == life, "what is deleted in this life is no loss"
        assert (await registry.follow("news"))[1] == life

    run(body)


def test_a_relay_ends_once_another_node_has_claimed_its_stream(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", FIELDS)
        link = await link_of(registry, "one")
        async with aclosing(link.changes()) as changes:
            following = asyncio.ensure_future(anext(changes))
            await registry.change("news", {"session": ""})
            assert await claimed(registry, "other") > 0
            with pytest.raises(Superseded, match="relayed by other"):
                await following

    run(body)


def test_who_relays_a_stream_claims_it_again_where_the_registry_is_of_before_that(run: Run) -> None:
    """As after a fail-over to a replica that was behind: it names an owner that lives, and has not been it for long."""

    async def body(registry: Registry) -> None:
        await registry.register("news", {**FIELDS, "session": "other", "epoch": "7", "node": "other"})
        await registry.beat("other", None, OTHER, 60)
        old = await registry.get("news")
        assert old is not None
        await registry.change("news", {"session": ""})
        link = await link_of(registry, "one")
        link.report(state="running", node="one")
        await link.flush()
        await registry.change("news", {**old.fields})
        async with aclosing(link.changes()) as changes:
            following = asyncio.ensure_future(anext(changes))
            found = await becomes_true(lambda: owned(registry, "one"))
            assert not following.done()
            assert found.fields["node"] == "one"
            link.report(state="stalled")
            await link.flush()
            await registry.change("news", {"desired": "stop"})
            changed = await following
            assert changed is not None
            assert changed.fields["state"] == "stalled"

    run(body)


def test_a_stream_that_is_lost_is_written_back_with_its_owner_and_nobody_else_has_it(run: Run) -> None:
    async def body(registry: Registry) -> None:
        await registry.register("news", FIELDS)
        await registry.beat("one", None, ONE, 60)
        link = await link_of(registry, "one")
        await lost(registry)
        await registry.beat("one", Beat(1, "of before"), ONE, 60)
        async with aclosing(link.changes()) as changes:
            following = asyncio.ensure_future(anext(changes))
            found = await becomes_true(lambda: registry.get("news"))
            assert not following.done()
            assert found.fields["session"] == "one"
            assert await claimed(registry, "other", lease_s=60) == Refused.HELD
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    run(body)


def test_a_stream_that_is_deleted_before_its_link_looks_first_ends() -> None:
    async def body() -> None:
        registry = MemoryRegistry()
        await registry.register("news", FIELDS)
        link = await link_of(registry, "one")
        await registry.delete("news")
        async with aclosing(link.changes()) as changes:
            assert await anext(changes) is None

    run_virtually(body())


def test_a_session_that_asks_for_a_stream_is_heard() -> None:
    async def body() -> None:
        registry = MemoryRegistry()
        await registry.register("news", FIELDS)
        link = await link_of(registry, "one")

        async def follow() -> None:
            async with aclosing(link.changes()) as changes:
                async for _ in changes:
                    raise AssertionError("no change of the operator's")

        following = asyncio.ensure_future(follow())
        await elapse(1)
        assert not link.wanted.is_set()
        await registry.report("news", {"wanted": "other"})
        await elapse(1)
        assert link.wanted.is_set()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    run_virtually(body())


def test_sessions_name_processes_of_one_machine_that_live_or_do_not() -> None:
    boot, namespace, pid, since = session_id().split(".")
    assert not is_dead(session_id())
    assert process_of(session_id()) is None, "ourselves"
    assert is_dead(f"{boot}.{namespace}.{pid}.{int(since) - 1}")
    assert not is_dead(f"other.{namespace}.{pid}.{int(since) - 1}")
    assert not is_dead(f"{boot}.1.{pid}.{int(since) - 1}")
    assert not is_dead("")
    assert process_of("x") is None
    assert not is_dead(f"{boot}.{namespace}.1.{since}") or proc.started(1) is not None, "one that is hidden from us may live"
    assert process_of(f"{boot}.{namespace}.1.0") is None
