"""Downloads take turns where the process can't keep up, and only there. A piece of work holds the virtual loop up as real work does."""

from __future__ import annotations

import asyncio

from hlsrelay.turns import AT_ONCE, EACH_TICK, LATE_S, TICK_S, Turns
from tests.virtual import VirtualLoop, elapse, run_virtually

DEADLINE_S = 6.0


def worked(seconds: float) -> None:
    """Hold the loop up."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.jumping.now_s += seconds


async def download(turns: Turns, pieces: int, piece_s: float, rank: int = 1, patience_s: float = 30.0) -> tuple[float, float]:
    """Download what takes so much work; returns when it began, and when it was had."""
    await turns.begin(rank, patience_s)
    began_s = asyncio.get_running_loop().time()
    try:
        for _ in range(pieces):
            worked(piece_s)
            await elapse(0.0)
    finally:
        turns.end()
    return began_s, asyncio.get_running_loop().time()


def test_what_begins_is_had_in_time_however_much_there_is_to_do() -> None:
    async def run() -> None:
        turns = Turns()
        spans = await asyncio.gather(*(download(turns, 10, 0.001) for _ in range(1500)))
        assert max(ended - began for began, ended in spans) < DEADLINE_S / 3
        assert 14.9 <= max(ended for _, ended in spans) <= 16.0, "nobody waits while there is nothing to do"
        assert turns.waiting == 0

    run_virtually(run())


def test_sources_that_are_slow_hold_up_nobody() -> None:
    async def slow(turns: Turns) -> float:
        await turns.begin(1, 30.0)
        began_s = asyncio.get_running_loop().time()
        await elapse(2.0)
        turns.end()
        return began_s

    async def run() -> None:
        turns = Turns()
        began_s = await asyncio.gather(*(slow(turns) for _ in range(200)))
        assert max(began_s) <= 200 / EACH_TICK * TICK_S

    run_virtually(run())


def test_nobody_waits_for_longer_than_its_patience_where_the_loop_is_always_late() -> None:
    async def held_up() -> None:
        while True:
            worked(5 * LATE_S)
            await elapse(TICK_S / 2)

    async def run() -> None:
        turns = Turns()
        late = asyncio.ensure_future(held_up())
        for _ in range(AT_ONCE):
            await turns.begin(0, 1.0)
        await elapse(1.0)
        asked_s = asyncio.get_running_loop().time()
        await asyncio.gather(*(turns.begin(0, 1.0) for _ in range(3 * EACH_TICK)))
        assert 0.9 <= asyncio.get_running_loop().time() - asked_s <= 1.5
        late.cancel()

    run_virtually(run())


def test_who_has_players_goes_first_and_then_who_has_nothing_yet() -> None:
    order: list[int] = []

    async def take(turns: Turns, rank: int) -> None:
        await turns.begin(rank, 30.0)
        order.append(rank)
        turns.end()

    async def run() -> None:
        turns = Turns()
        for _ in range(AT_ONCE + EACH_TICK):
            await turns.begin(0, 30.0)
        await asyncio.gather(*(take(turns, rank) for rank in (3, 2, 1, 0, 3, 2, 1, 0)))

    run_virtually(run())
    assert order == sorted(order)


def test_one_that_is_cancelled_while_it_waits_takes_nobody_s_turn() -> None:
    async def run() -> None:
        turns = Turns()
        for _ in range(AT_ONCE + EACH_TICK):
            await turns.begin(0, 30.0)
        gone, stays = (asyncio.ensure_future(turns.begin(1, 30.0)) for _ in range(2))
        await elapse(0.0)
        gone.cancel()
        await stays
        assert asyncio.get_running_loop().time() <= 2 * TICK_S

    run_virtually(run())


def test_a_stream_starts_behind_all_that_wait_to_download_and_gives_up_its_place_where_none_comes() -> None:
    order: list[str] = []

    async def start(turns: Turns) -> None:
        assert await turns.start(30.0)
        order.append("start")
        turns.end()

    async def take(turns: Turns) -> None:
        await turns.begin(3, 30.0)
        order.append("download")
        turns.end()

    async def run() -> None:
        turns = Turns()
        for _ in range(AT_ONCE + EACH_TICK):
            await turns.begin(0, 30.0)
        await asyncio.gather(start(turns), take(turns), take(turns))
        assert order == ["download", "download", "start"]
        others = [asyncio.ensure_future(turns.begin(0, 30.0)) for _ in range(2 * EACH_TICK)]
        await elapse(0.0)
        assert not await turns.start(TICK_S / 2)
        await asyncio.gather(*others)

    run_virtually(run())
