"""What a node does beside its relays: it tells its children, finds those that nobody has, and sheds ladder jobs when memory is short."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from structlog.testing import capture_logs

from hlsrelay import orphans, vitals
from hlsrelay.clock import Nudges
from hlsrelay.desk import Tools
from hlsrelay.encoder import SHED, SHED_S, LocalEncoder
from hlsrelay.ladder import parse_ladder
from hlsrelay.memory import Pressure
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.node import Node
from hlsrelay.orphans import found_here, sweep
from hlsrelay.pool import PoolEncoder
from hlsrelay.processes import Children
from hlsrelay.relay import relay
from hlsrelay.remembered import remembered
from hlsrelay.settings import load_settings
from hlsrelay.statuses import NodeStatus, read
from hlsrelay.storage import LocalStorage
from hlsrelay.upstream import Upstream
from hlsrelay.vitals import attended
from tests.integration.relaying import NoEncoder, Operator
from tests.integration.test_processes import UNCONFINED, UNSWEPT, kill_parent, start_parent
from tests.origin import Origin
from tests.playlists import stream
from tests.unit.test_media_probe import picture
from tests.unit.test_media_probe import segment as ts_segment
from tests.virtual import VirtualClock, elapse, run_virtually
from tests.waiting import comes_true

SHORT_FROM_S, SHORT_UNTIL_S, ENDS_S = 30.0, 60.0, 120.0
LADDER = parse_ladder("tiny:64:100")


def node_of(folder: Path, children: Children | None = None) -> tuple[Node, MemoryRegistry]:
    registry = MemoryRegistry()
    children = children or Children()
    settings = load_settings(data=folder, node="a")
    return Node(settings, folder / "live", registry, children, NoEncoder(), pressure=Pressure(90)), registry


def media(path: str) -> bytes:
    number = int(path.rpartition("-")[2].removesuffix(".ts"))
    return ts_segment(*(picture(number * 360_000 + frame * 3600, idr=frame == 0) for frame in range(100)))


def test_while_memory_is_short_no_ladder_job_starts_and_pass_through_lives(tmp_path: Path) -> None:
    seen: dict[float, str] = {}
    states: list[tuple[float, bool]] = []

    async def play() -> None:
        loop = asyncio.get_running_loop()
        node, _ = node_of(tmp_path)

        def used() -> float:
            return 95.0 if SHORT_FROM_S <= loop.time() < SHORT_UNTIL_S else 80.0

        origin, wishes = Origin(content=media), Operator(replace(stream(), ladder=LADDER))
        node.encoder = encoder = LocalEncoder(Path("/no/such/ffmpeg"), node.children, 1, VirtualClock())
        transport = origin.transport()
        with LocalStorage(tmp_path, "news") as storage:
            async with attended(node, used), Upstream(transport=transport) as upstream:
                tools = Tools(upstream, storage, encoder, wishes, VirtualClock(), Nudges())
                async with aclosing(relay(tools)) as ticks:
                    async for tick in ticks:
                        if tick.made:
                            assert not tick.made.lost
                            seen[loop.time()] = {**tick.made.failed, **tick.made.dropped}["tiny"]
                            lag_s = (VirtualClock().utc_now() - tick.made.numbered.position.advanced_at).total_seconds()
                            assert lag_s < 1
                        states.append((loop.time(), bool(node.metrics.memory_pressure._value.get())))
                        if loop.time() > ENDS_S:
                            break

    with capture_logs() as lines:
        run_virtually(play())
    assert len(seen) > 20
    for when_s, reason in seen.items():
        if SHORT_FROM_S + 1 < when_s < SHORT_UNTIL_S:
            assert reason == SHED
        elif not SHORT_FROM_S <= when_s <= SHORT_UNTIL_S + SHED_S + 1:
            assert "no program" in reason
    assert {pressed for when_s, pressed in states if when_s < SHORT_FROM_S} == {False}
    assert {pressed for when_s, pressed in states if SHORT_FROM_S + 1 < when_s < SHORT_UNTIL_S} == {True}
    assert {pressed for when_s, pressed in states if when_s > SHORT_UNTIL_S + 1} == {False}
    events = [(line["event"], line["log_level"]) for line in lines if line["event"].startswith("memory.")]
    assert events == [("memory.short", "warning"), ("memory.eased", "info")]


class Shedding(NoEncoder):
    """Counts how often it is asked to make room."""

    def __init__(self) -> None:
        self.asked = 0

    def shed(self) -> bool:
        self.asked += 1
        return True


def test_ladder_jobs_are_shed_one_a_second_until_it_eases(tmp_path: Path) -> None:
    async def play() -> int:
        node, _ = node_of(tmp_path)
        node.encoder = encoder = Shedding()
        loop = asyncio.get_running_loop()
        async with attended(node, lambda: 95.0 if 10 <= loop.time() < 14 else 80.0):
            await elapse(30)
        return encoder.asked

    assert run_virtually(play()) == 4


@pytest.mark.parametrize(
    ("percent", "child", "looks"), [(50.0, "redis", 8), (50.0, "encode news 7", 30), (80.0, "redis", 30), (None, "redis", 30)]
)
def test_memory_is_looked_at_seldom_where_much_is_free_and_nothing_is_encoded(
    percent: float | None, child: str, looks: int, tmp_path: Path
) -> None:
    seen: list[float | None] = []

    def used() -> float | None:
        seen.append(percent)
        return percent

    async def play() -> None:
        node, _ = node_of(tmp_path)
        node.children = cast("Children", SimpleNamespace(running=lambda: [SimpleNamespace(pid=1, purpose=child)]))
        async with attended(node, used):
            await elapse(29.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vitals, "status_of", lambda node: NodeStatus(node.name, "x"))
        run_virtually(play())
    assert len(seen) == looks


def test_children_that_stay_the_same_are_told_of_seldom_and_never_forgotten_and_others_at_once(tmp_path: Path) -> None:
    told: list[tuple[float, int]] = []
    pids, jobs = [1], list[int]()

    class Told(MemoryRegistry):
        async def tell(self, incarnation: str, vitals: str, kept_s: int) -> None:
            told.append((asyncio.get_running_loop().time(), kept_s))

    async def play() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        node, _ = node_of(tmp_path)
        node.registry = Told()
        node.children = cast("Children", SimpleNamespace(running=lambda: [SimpleNamespace(pid=pid, purpose="redis") for pid in pids]))
        node.pool = cast("PoolEncoder", SimpleNamespace(jobs=jobs))
        async with attended(node, lambda: 50.0):
            await elapse(90.5)
            worked_s = loop.time()
            jobs.append(1)
            await elapse(1)
            jobs.clear()
            await elapse(40)
            changed_s = loop.time()
            pids.append(2)
            await elapse(20)
            return worked_s, changed_s

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vitals, "status_of", lambda node: NodeStatus(node.name, "x"))
        worked_s, changed_s = run_virtually(play())
    assert sum(20 < at_s <= worked_s for at_s, _ in told) <= 70 / vitals.STEADY_PERIODS + 1
    assert sum(worked_s < at_s <= worked_s + 1 for at_s, _ in told) == 1
    assert sum(changed_s < at_s <= changed_s + 1 for at_s, _ in told) == 1
    assert all(after - at_s < kept_s for (at_s, kept_s), (after, _) in pairwise(told))


class Tried(MemoryRegistry):
    """Counts how often somebody tried to tell it something, heard or not."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = asyncio.Semaphore(0)

    async def tell(self, incarnation: str, vitals: str, kept_s: int) -> None:
        self.tries.release()
        await super().tell(incarnation, vitals, kept_s)


def test_a_node_tells_of_its_children_and_goes_on_when_redis_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "PERIOD_S", 0.01)

    async def main() -> None:
        children = Children()
        node, _ = node_of(tmp_path, children)
        node.registry = registry = Tried()
        registry.away = True
        rounds = asyncio.Semaphore(0)

        def used() -> float:
            rounds.release()
            return 12.34

        async with asyncio.timeout(60), attended(node, used):
            for _ in range(3):
                await rounds.acquire()
            assert registry.tries.locked(), "it has no children: there is nothing to tell"
            async with children.spawn(["sleep", "600"], purpose="encode news 7") as child:
                for _ in range(3):
                    await registry.tries.acquire()
                assert registry.vitals == {}
                registry.away = False
                await registry.tries.acquire()
                await registry.tries.acquire()
                [text] = registry.vitals.values()
        told = read(text)
        assert told is not None
        assert (told.node, told.memory_percent, told.pressed) == ("a", 12.3, False)
        assert [(one.pid, one.purpose, one.argv) for one in told.children] == [(child.pid, "encode news 7", ("sleep", "600"))]

    asyncio.run(main())


def test_children_that_no_node_tells_of_are_found_and_orphans_are_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "TAG", UNSWEPT)
    dead, orphan = start_parent(UNCONFINED)
    living, spared = start_parent(UNCONFINED)
    try:
        kill_parent(dead)
        found = {one.pid: one for one in found_here([]).children}
        assert found[orphan].orphan
        assert not found[spared].orphan
        assert (found[orphan].purpose, found[orphan].argv) == ("orphan to be", ("sleep", "600"))
        assert found[orphan].rss_bytes
        known = NodeStatus("a", found[spared].parent, children=(found[spared],))
        assert spared not in {one.pid for one in found_here([known]).children}
        assert found[orphan].node == f"process {dead}, dead"
    finally:
        kill_parent(living)
        assert {orphan, spared} <= set(sweep())


def test_a_loop_that_is_held_up_is_told(tmp_path: Path) -> None:
    def late() -> float:
        return sum(one.value for each in node.metrics.loop_lag_s.collect() for one in each.samples if one.labels.get("le") == "0.1")

    def looks() -> float:
        return sum(one.value for each in node.metrics.loop_lag_s.collect() for one in each.samples if one.name.endswith("_count"))

    def hold_up() -> None:
        time.sleep(vitals.LOOKED_S + 0.15)

    node, _ = node_of(tmp_path)

    async def main() -> None:
        async with attended(node):
            await comes_true(lambda: looks() > 0)
            hold_up()
            await comes_true(lambda: looks() > late())

    asyncio.run(main())


class Circle:
    """Something that only a collection finds."""

    def __init__(self) -> None:
        self.itself = self


@remembered(4)
def circle(_: str) -> Circle:
    return Circle()


def test_what_ended_streams_held_is_given_back_once_they_are_many_and_no_sooner(tmp_path: Path) -> None:
    async def play() -> None:
        node, _ = node_of(tmp_path)
        held, known = weakref.ref(Circle()), weakref.ref(circle("s0"))
        async with attended(node, lambda: 50.0):
            for number in range(vitals.FEWEST_ENDED):
                await elapse(2.0)
                assert held() is not None
                assert circle("s0") is known()
                node.left(f"s{number}")
            await elapse(2.0)
        assert held() is None
        assert known() is None  # what is remembered of them, too
        assert node.ended == 0

    gc.disable()
    try:
        run_virtually(play())
    finally:
        gc.enable()
