"""Workers that share streams: who claims what, drains, is asked, balances; in virtual time, over relays that do nothing but be there."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from hlsrelay import claims
from hlsrelay.errors import RegistryUnavailable, ResourceBusy
from hlsrelay.handover import OFFERED_FOR_S
from hlsrelay.link import Claim
from hlsrelay.membership import SHORTEST_ROUND_S
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.node import Node
from hlsrelay.registry import LEASE_S, Heard, Leases, Session
from hlsrelay.tracking import Untracked
from tests.integration.claiming import LINK_S, TARGET_DURATION_S, House
from tests.integration.test_registry import FIELDS
from tests.needs import NIGHTLY
from tests.virtual import VirtualClock, elapse, run_virtually


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    found = House(tmp_path)
    monkeypatch.setattr(claims, "relayed", found.relayed)
    return found


def virtually(work: Coroutine[Any, Any, None]) -> None:
    run_virtually(work)


def test_streams_are_claimed_by_capacity_and_what_nobody_has_room_for_is_left_lying(house: House) -> None:
    async def body() -> None:
        await house.registered(9)
        async with house.worker("small", 2), house.worker("large", 4):
            await elapse(10)
            assert house.owners().count("small") == 2
            assert house.owners().count("large") == 4
            assert house.owners().count("") == 3

    virtually(body())


def test_a_node_that_has_just_come_has_its_part_of_what_is_registered_right_after(house: House) -> None:
    async def body() -> None:
        async with house.worker("a"), house.worker("b"), house.worker("c"):
            await elapse(5)
            async with house.worker("d"):
                await house.registered(8)
                await elapse(2)
                assert [house.owners().count(name) for name in "abcd"] == [2, 2, 2, 2]

    for _ in range(5):  # looks are at random times
        house.registry = MemoryRegistry()
        virtually(body())


def test_a_look_while_all_is_well_reads_no_session(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what nodes ask for together grows with their square."""

    async def body() -> None:
        read: list[int] = []
        whole, leases = house.registry.sessions, house.registry.leases

        async def all_of_them() -> list[Session]:
            read.append(len(found := await whole()))
            return found

        async def some(ids: Iterable[str] = ()) -> Leases:
            read.append(len((found := await leases(ids)).told))
            return found

        monkeypatch.setattr(house.registry, "sessions", all_of_them)
        monkeypatch.setattr(house.registry, "leases", some)
        await house.registered(9)
        async with house.worker("a"), house.worker("b"), house.worker("c"):
            await elapse(30)
            read.clear()
            await elapse(60)
            assert 3 * 60 / LEASE_S <= len(read) <= 3 * 60 / (LEASE_S - 1.1), "they look as often as a lease may be over"
            assert sum(read) <= 3 * 3 * 60 / SHORTEST_ROUND_S + 3 * 3

    virtually(body())


@pytest.mark.parametrize("tells", [True, False], ids=["told of changes", "told of none"])
def test_who_has_nothing_to_look_for_looks_soon_where_something_is_another(
    house: House, tells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def untold(_: str) -> AsyncGenerator[Heard | None, None]:
        raise Untracked("a proxy")
        yield

    async def body() -> None:
        await house.registered(4)
        async with house.worker("a") as a, house.worker("b"):
            for wish in ("drain", "", "drain", ""):
                await elapse(20)
                assert await house.registry.tell_session("session of a", {"wish": wish})
                await elapse(1)
                assert a.claims._told_to_drain == bool(wish)
            for number in range(4, 8):
                await elapse(20)
                await house.registry.register(f"s{number}", FIELDS)
                await elapse(0.5 if tells else 2)
                assert house.owners()[number], "one that has just come is looked for at once"
            await elapse(20)
            at_s = asyncio.get_running_loop().time()
            a.leaving.set()
            assert not a.claims._node.draining
            while not a.claims._node.draining:
                await elapse(0.01)
            assert asyncio.get_running_loop().time() - at_s <= 0.1, "it hands on at once"

    if not tells:
        monkeypatch.setattr(house.registry, "heard", untold)
    virtually(body())


def test_what_waits_is_looked_for_again_and_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        asked: list[object] = []
        leases = house.registry.leases

        async def told(ids: Iterable[str] = ()) -> Leases:
            asked.append(ids)
            return await leases(ids)

        monkeypatch.setattr(house.registry, "leases", told)
        await house.registered(2)
        async with house.worker("a", 1):
            await elapse(20)
            asked.clear()
            await elapse(20)
            assert len(asked) >= 20
            await house.registry.delete("s0" if house.owners()[1] else "s1")
            await elapse(1)
            asked.clear()
            await elapse(20)
            assert len(asked) <= 10, "nothing is left to look for"

    virtually(body())


def test_a_look_that_failed_is_made_again_soon(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        asked_s: list[float] = []

        async def fails(ids: Iterable[str] = ()) -> Leases:
            asked_s.append(asyncio.get_running_loop().time())
            raise RegistryUnavailable("no answer")

        await house.registered(1)
        async with house.worker("a"):
            await elapse(20)
            with monkeypatch.context() as failing:
                failing.setattr(house.registry, "leases", fails)
                failing.setattr(house.registry, "sessions", fails)
                await elapse(20)
            breaks_s = [after - before for before, after in itertools.pairwise(asked_s)]
            assert len(breaks_s) >= 15
            assert max(breaks_s) <= 1

    virtually(body())


def test_who_leaves_relays_on_until_others_have_asked_for_each_stream(house: House) -> None:
    async def body() -> None:
        await house.registered(40)
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(house.worker("first"))
            await elapse(10)
            assert house.owners() == ["first"] * 40
            for name in ("second", "third"):
                await stack.enter_async_context(house.worker(name))
            first.leaving.set()
            assert await first.kept == {f"s{number}": TARGET_DURATION_S for number in range(40)}
            await elapse(2)
            assert min(house.owners().count(name) for name in ("second", "third")) >= 12
            assert house.owners().count("first") == 0
            assert all(len(spans) == 1 for spans in house.on_air.values()), "each moved once"
        assert house.longest_break_s() <= 0.2, "who has asked for a stream is there as soon as it is free"

    virtually(body())


def test_who_leaves_when_nobody_else_takes_on_streams_lets_go_at_once_and_when_nobody_has_room_in_time(house: House) -> None:
    async def body() -> None:
        await house.registered(2)
        loop = asyncio.get_running_loop()
        async with house.worker("alone") as alone:
            await elapse(5)
            at_s = loop.time()
            alone.leaving.set()
            await alone.kept
            assert loop.time() - at_s <= 1
        async with house.worker("leaves") as leaves:
            await elapse(5)
            async with house.worker("full", 1):
                await house.registry.register("own", FIELDS)
                await house.registry.report("own", {"wanted": "session of full"})
                await elapse(5)
                at_s = loop.time()
                leaves.leaving.set()
                await leaves.kept
                assert OFFERED_FOR_S <= loop.time() - at_s <= OFFERED_FOR_S + 2
                assert house.owners() == ["full", "", ""]

    virtually(body())


def test_a_node_that_is_told_to_drain_hands_on_all_and_takes_on_none_until_that_is_undone(house: House) -> None:
    async def body() -> None:
        await house.registered(4)
        async with house.worker("a"), house.worker("b"):
            await elapse(5)
            assert await house.registry.tell_session("session of a", {"wish": "drain"})
            await elapse(10)
            assert house.owners() == ["b"] * 4
            await house.registry.register("s9", FIELDS)
            await elapse(10)
            assert house.owners() == ["b"] * 5
            await house.registry.tell_session("session of a", {"wish": ""})
            await elapse(200)
            assert house.owners().count("a") == 2, "b is relieved of what is beyond its part"
        assert house.longest_break_s() <= 0.2
        assert not await house.registry.tell_session("session of nobody", {"wish": "drain"})

    virtually(body())


def test_a_stream_that_one_node_is_to_take_over_goes_there(house: House) -> None:
    async def body() -> None:
        await house.registered(6)
        async with house.worker("a"), house.worker("b"), house.worker("c"):
            await elapse(5)
            of_a = next(name for name, one in house.registry.streams.items() if one["node"] == "a")
            await house.registry.report(of_a, {"wanted": "session of c"})
            await elapse(5)
            assert house.registry.streams[of_a]["node"] == "c"
            assert house.registry.streams[of_a]["wanted"] == ""
            await house.registry.report(of_a, {"wanted": "session of one that is gone"})
            await elapse(10)
            assert house.registry.streams[of_a]["node"], "nobody comes for it: whoever has room takes it"

    virtually(body())


def test_a_stream_that_one_node_is_to_take_over_and_has_no_room_for_goes_to_another(house: House) -> None:
    async def body() -> None:
        await house.registered(1)
        async with house.worker("full", 1):
            await elapse(5)
            async with house.worker("b"):
                await elapse(5)
                await house.registry.register("wanted", {**FIELDS, "wanted": "session of full"})
                await elapse(20)
                assert house.owners() == ["full", "b"]

    virtually(body())


def test_a_new_node_takes_its_part_one_stream_at_a_time_and_then_all_stay_where_they_are(house: House) -> None:
    async def body() -> None:
        await house.registered(12)
        async with house.worker("a"), house.worker("b"):
            await elapse(5)
            async with house.worker("c"):
                await elapse(60)
                assert house.owners().count("c") <= 3
                await elapse(300)
                assert [house.owners().count(name) for name in "abc"] == [4, 4, 4]
                moved = sum(map(len, house.on_air.values()))
                assert 4 <= moved <= 6
                await elapse(600)
                assert sum(map(len, house.on_air.values())) == moved
        assert house.longest_break_s() <= 0.2

    virtually(body())


@pytest.mark.parametrize("how", ["is_cut", "stands_still"])
def test_a_node_that_alone_is_cut_off_from_redis_stops_before_others_begin_and_takes_part_again_later(house: House, how: str) -> None:
    async def body() -> None:
        await house.registered(6)
        loop = asyncio.get_running_loop()
        async with house.worker("a") as a, house.worker("b"):
            await elapse(5)
            its = [stream for stream, one in house.registry.streams.items() if one["node"] == "a"]
            assert its
            at_s = loop.time()
            setattr(a.door, how, True)
            await elapse(12)
            assert house.owners() == ["b"] * 6
            for stream in its:
                assert house.on_air[stream][0][2] == "a"
                assert house.on_air[stream][0][1] - at_s <= LEASE_S + 1
            setattr(a.door, how, False)
            await elapse(300)
            assert house.owners().count("a") == 3
        for spans in house.on_air.values():
            assert all(before[1] <= after[0] + LINK_S for before, after in itertools.pairwise(spans)), "never two at a time"

    virtually(body())


def test_what_a_node_had_that_came_no_more_is_claimed_as_soon_as_its_lease_is_over(house: House) -> None:
    async def body() -> None:
        await house.registered(6)
        loop = asyncio.get_running_loop()
        async with house.worker("a") as a, house.worker("b"), house.worker("c"):
            for _ in range(5):
                await elapse(20)
                its = [stream for stream, one in house.registry.streams.items() if one["node"] == "a"]
                assert its
                at_s = loop.time()
                a.door.is_cut = True
                await elapse(12)
                claimed_s = [int(house.registry.streams[stream]["epoch"]) / 1000 - 1e9 for stream in its]
                assert all(LEASE_S - 1.1 <= one - at_s <= LEASE_S + 0.1 for one in claimed_s)
                a.door.is_cut = False
                await elapse(300)

    virtually(body())


@pytest.mark.parametrize("off_s", [-3600, 3600])
def test_a_stream_that_failed_where_the_clock_is_off_by_an_hour_is_tried_again_all_the_same(house: House, off_s: int) -> None:
    async def body() -> None:
        at = (VirtualClock().utc_now() + timedelta(seconds=off_s + 1)).isoformat()
        await house.registry.register("s0", {**FIELDS, "state": "failed", "retry_at": at})
        async with house.worker("a"):
            await elapse(3)
            assert house.owners() == ["a"]

    virtually(body())


@pytest.mark.parametrize("how", ["is_cut", "stands_still"])
def test_while_redis_answers_nobody_all_go_on_and_nothing_changes_hands(house: House, how: str) -> None:
    async def body() -> None:
        await house.registered(6)
        async with house.worker("a") as a, house.worker("b") as b, house.worker("c") as c:
            await elapse(5)
            before = {name: (one["node"], one["epoch"]) for name, one in house.registry.streams.items()}
            for worker in (a, b, c):
                setattr(worker.door, how, True)
            await elapse(3600 if NIGHTLY else 900)
            for worker in (a, b, c):
                setattr(worker.door, how, False)
                await elapse(0.7)
            await elapse(60)
            assert {name: (one["node"], one["epoch"]) for name, one in house.registry.streams.items()} == before
            assert house.on_air == {}

    virtually(body())


def test_a_node_whose_streams_end_just_as_it_leaves_goes_at_once(house: House) -> None:
    async def body() -> None:
        await house.registered(1)
        loop = asyncio.get_running_loop()
        async with house.worker("a") as a, house.worker("full", 0):
            await elapse(5)
            [(task, _)] = a.claims._running.values()
            asked = house.registry.sessions

            async def ends_meanwhile() -> list[Session]:
                if a.leaving.is_set():
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                return await asked()

            house.registry.sessions = ends_meanwhile  # type: ignore[method-assign]
            at_s = loop.time()
            a.leaving.set()
            await a.kept
            assert loop.time() - at_s < 2

    virtually(body())


def test_a_node_where_every_stream_fails_leaves_them_to_the_others(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose disk is full: its load stays 0, so that it seems to have the most room."""

    async def or_fails(claim: Claim, node: Node, leaving: asyncio.Event) -> float:
        if node.name == "broken":
            await node.registry.report(claim.registered.id, {"session": "", "node": ""}, claim.epoch)
            raise ResourceBusy("no space left on device")
        return await house.relayed(claim, node, leaving)

    async def body() -> None:
        monkeypatch.setattr(claims, "relayed", or_fails)
        await house.registered(12)
        async with house.worker("broken"), house.worker("well"):
            await elapse(60)
            for _ in range(10):
                await elapse(60)
                assert house.owners().count("well") >= 11

    virtually(body())


def test_a_stream_that_failed_on_one_node_goes_to_another_that_has_its_part_already(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def or_fails(claim: Claim, node: Node, leaving: asyncio.Event) -> float:
        if node.name == "a" and (not failed or claim.registered.id in failed):
            failed.append(claim.registered.id)
            await elapse(10)
            retry_at = (node.clock.utc_now() + timedelta(seconds=1.0)).isoformat()
            fields = {"state": "failed", "session": "", "node": "", "wanted": "", "retry_at": retry_at}
            await node.registry.report(claim.registered.id, fields, claim.epoch)
            raise ResourceBusy("no space left on device")
        return await house.relayed(claim, node, leaving)

    async def body() -> None:
        monkeypatch.setattr(claims, "relayed", or_fails)
        async with house.worker("a"), house.worker("b"):
            await house.registered(10)
            await elapse(30)
            assert house.owners().count("b") == 6
            assert house.owners().count("a") == 4
            assert len(failed) == 1

    failed = list[str]()
    for _ in range(8):
        house.registry = MemoryRegistry()
        failed.clear()
        virtually(body())


def test_a_stream_that_failed_on_every_node_is_tried_again_and_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(claim: Claim, node: Node, leaving: asyncio.Event) -> float:
        tried.append(node.name)
        await elapse(1)
        await node.registry.report(claim.registered.id, {"state": "failed", "session": "", "node": "", "wanted": ""}, claim.epoch)
        raise ResourceBusy("no space left on device")

    tried = list[str]()

    async def body() -> None:
        monkeypatch.setattr(claims, "relayed", fails)
        async with house.worker("a"), house.worker("b"):
            await house.registered(1)
            await elapse(60)
            assert set(tried) == {"a", "b"}
            assert len(tried) >= 5

    virtually(body())


def test_fields_that_nobody_foresaw_hold_up_no_other_stream(house: House) -> None:
    async def body() -> None:
        await house.registered(2)
        for number, fields in enumerate(({"headers": "[" * 100_000}, {"ladder": f"x:720:{'9' * 5000}"}, {"window": "\ud800"})):
            await house.registry.register(f"bad{number}", {**FIELDS, **fields})
        async with house.worker("a"):
            await elapse(10)
            assert house.owners()[-2:] == ["a", "a"]

    virtually(body())
