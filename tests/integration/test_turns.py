"""Who takes turns: each download of a relay, whatever becomes of it, and a stream that nobody can be playing as it starts."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from hlsrelay.clock import Nudges
from hlsrelay.desk import Tools
from hlsrelay.model import Desired
from hlsrelay.relay import relay
from hlsrelay.storage import LocalStorage
from hlsrelay.turns import AT_ONCE, EACH_TICK, LATE_S, Turns
from hlsrelay.upstream import Upstream
from hlsrelay.worker import STARTS_WITHIN_S, _may_start
from tests.integration.cluster import Cluster, played
from tests.integration.relaying import NoEncoder, Operator, working
from tests.origin import Origin
from tests.playlists import stream
from tests.virtual import VirtualClock, VirtualLoop, elapse, run_virtually


class Counting(Turns):
    """Turns that count."""

    def __init__(self) -> None:
        super().__init__()
        self.ranks: list[int] = []

    async def begin(self, rank: int, patience_s: float) -> None:
        self.ranks.append(rank)
        await super().begin(rank, patience_s)


def lacking(request: httpx.Request) -> httpx.Response | None:
    """Every fifth segment is not to be had."""
    name = request.url.path.rpartition("-")[2]
    return httpx.Response(404) if name.endswith(".ts") and int(name.removesuffix(".ts")) % 5 == 0 else None


def test_each_download_has_a_turn_and_gives_it_back_whatever_becomes_of_it(tmp_path: Path) -> None:
    async def play() -> tuple[Counting, int]:
        turns, made = Counting(), 0
        transport = Origin(fault=lacking).transport()
        with LocalStorage(tmp_path, "news") as storage:
            async with Upstream(transport=transport) as upstream:
                tools = Tools(upstream, storage, NoEncoder(), Operator(), VirtualClock(), Nudges(), turns=turns)
                async with aclosing(relay(tools)) as ticks:

                    async def run() -> None:
                        nonlocal made
                        async for tick in ticks:
                            made += tick.made is not None

                    await working(run(), 200.0)  # and what was under way then is cancelled
        return turns, made

    turns, made = run_virtually(play())
    assert turns.under_way == 0
    assert turns.waiting == 0
    assert 40 <= made <= len(turns.ranks) <= made + 4
    assert turns.ranks[0] == 1
    assert not any(turns.ranks[3:]), "players may be there"


def test_all_streams_of_a_node_take_turns_with_one_another(tmp_path: Path) -> None:
    async def play(whole: Cluster) -> None:
        turns = whole.places["a"].node.turns = Counting()
        await whole.takes("a")
        await elapse(60.0)
        assert len(turns.ranks) >= 15
        assert turns.under_way == 0, "that of the start was given back as soon as there was something"
        await whole.lets_go()
        assert turns.under_way == 0

    played(tmp_path, play, names="a")


def test_a_stream_that_nobody_can_be_playing_waits_until_there_is_room_and_no_other_does(tmp_path: Path) -> None:
    async def play(storage: LocalStorage) -> None:
        loop, turns, operator = asyncio.get_running_loop(), Turns(), Operator(stream())
        tools: Any = SimpleNamespace(turns=turns, clock=VirtualClock(), control=operator, storage=storage)
        assert await _may_start(tools)
        turns.end()
        held = [asyncio.ensure_future(turns.begin(0, 1e6)) for _ in range(AT_ONCE + EACH_TICK)]
        await asyncio.gather(*held)

        async def always_late() -> None:
            assert isinstance(loop, VirtualLoop)
            while True:
                loop.jumping.now_s += 4 * LATE_S
                await elapse(0.005)

        busy = asyncio.ensure_future(always_late())
        began_s = loop.time()
        assert not await _may_start(tools)
        assert STARTS_WITHIN_S <= loop.time() - began_s <= STARTS_WITHIN_S + 2.0

        began_s = loop.time()
        operator.stream = replace(stream(), on_demand=True)
        assert not await _may_start(tools)
        operator.stream = stream()
        loop.call_later(3.0, setattr, operator, "stream", replace(stream(), desired=Desired.STOP))
        assert not await _may_start(tools)
        assert 3.0 <= loop.time() - began_s <= 4.1, "one that is to stop waits no more"
        busy.cancel()

    with LocalStorage(tmp_path, "news") as storage:
        run_virtually(play(storage))
