"""The whole relay into a bucket that is away, slow or flaky, in virtual time; a player looks at each state of it and breaks no rule."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hlsrelay.bucket import BucketStorage
from hlsrelay.errors import Superseded
from hlsrelay.hls.parse import parse
from hlsrelay.model import Desired, Snapshot
from tests.integration.relaying import Into, Watching, later, relayed, scenario
from tests.memory_objects import MemoryObjects, Watched
from tests.needs import NIGHTLY, by_day
from tests.origin import Origin
from tests.virtual import elapse

PLAYLIST = "live/news/source/index.m3u8"


def now_s() -> float:
    return asyncio.get_running_loop().time()


def into(memory: MemoryObjects, epoch: int = 1000) -> Into:
    """Return what publishes into a bucket that is looked at after each change."""
    return lambda live: BucketStorage(live, "news", Watched(memory, now_s), epoch, now_s)


def listed(memory: MemoryObjects) -> Snapshot:
    found = parse(memory.held[PLAYLIST][0], "file:///")
    assert isinstance(found, Snapshot)
    return found


def reads(memory: MemoryObjects) -> Callable[[str], bytes | None]:
    """Return what a player of the bucket gets at a path."""
    return lambda path: memory.held[f"live/news/{path}"][0] if f"live/news/{path}" in memory.held else None


def away(memory: MemoryObjects, begins_s: float, lasts_s: float) -> None:
    """Have the bucket refuse everything for a while."""

    def refuse(_: str, __: str) -> str:
        return "refused" if begins_s <= now_s() < begins_s + lasts_s else ""

    memory.fault = refuse


def is_bounded(watch: Watching) -> bool:
    """Say whether the folder has no more than the window, what stays for players, and the look-ahead."""
    return len(list(watch.storage.folder.glob("source/*.ts"))) < 60


def test_a_stream_goes_into_the_bucket_whole_and_what_left_it_is_removed(tmp_path: Path) -> None:
    memory = MemoryObjects(takes_s=0.05)
    watch = scenario(tmp_path, lambda watch: relayed(watch, 120), into=into(memory))
    assert watch.relayed_exactly()
    assert watch.gaps() == watch.cuts() == []
    assert len(watch.numbers()) > 25
    assert watch.last is not None
    assert [one.sequence for one in listed(memory).segments] == [one.sequence for one in watch.last.segments]
    assert len([key for key in memory.held if key.endswith(".ts")]) < 24
    assert {key.partition("/")[0] for key in memory.held} == {"live", "state"}
    assert is_bounded(watch)


@pytest.mark.parametrize("lasts_s", by_day([3.0, 20.0, 60.0], 3, 2))
def test_an_outage_holds_segments_back_and_none_is_lost(tmp_path: Path, lasts_s: float) -> None:
    memory = MemoryObjects()

    async def play(watch: Watching) -> None:
        away(memory, 40, lasts_s)
        await relayed(watch, 160)

    watch = scenario(tmp_path, play, into=into(memory))
    assert watch.relayed_exactly()
    assert watch.gaps() == watch.cuts() == []
    assert watch.numbers() == list(range(watch.numbers()[0], watch.origin.newest_at(159) + 1))
    told = [tick.error for tick in watch.ticks if tick.error]
    assert set(told) == {"s3://memory/test: 503 Slow Down"}
    assert len(told) < 10 + lasts_s


@pytest.mark.parametrize("lasts_s", [240.0, pytest.param(6 * 3600.0, marks=pytest.mark.night)])
def test_after_a_long_outage_what_the_source_has_still_is_relayed_and_no_rule_is_broken(tmp_path: Path, lasts_s: float) -> None:
    memory = MemoryObjects()
    asked = 0

    async def play(watch: Watching) -> None:
        nonlocal asked
        away(memory, 100, lasts_s)
        await relayed(watch, 100 + lasts_s - 1)
        asked = len(watch.origin.requests)
        assert is_bounded(watch), "the disk fills up"
        assert len(memory.asked) < 1000 + lasts_s
        await relayed(watch, 100 + lasts_s + 120)

    watch = scenario(tmp_path, play, into=into(memory))
    ended = watch.origin.newest_at(100 + lasts_s + 118)
    assert watch.relayed_exactly()
    assert asked < 120, "the source is not asked while nothing more can be held back"
    assert watch.last is not None
    assert watch.last.segments[-1].uri
    assert any(f"a-{ended}.ts" in path for path in watch.origin.sent)
    assert not any(one.gap for one in watch.last.segments[-8:])
    assert is_bounded(watch)


def test_an_outage_is_no_fault_of_the_source_and_no_backup_is_taken(tmp_path: Path) -> None:
    memory = MemoryObjects()
    backup = Origin(name="backup", base="https://backup.example/live")

    async def play(watch: Watching) -> None:
        watch.operator.stream = replace(watch.operator.stream, backups=(f"{backup.base}/index.m3u8",))
        away(memory, 50, 45)
        await relayed(watch, 150, backup)

    watch = scenario(tmp_path, play, into=into(memory))
    assert watch.gaps() == watch.cuts() == []
    assert backup.requests == []


@pytest.mark.parametrize("seed", by_day(range(10), 10))
def test_a_flaky_bucket_loses_and_repeats_nothing(tmp_path: Path, seed: int) -> None:
    memory = MemoryObjects(takes_s=0.02)
    dice = random.Random(seed)

    def fault(operation: str, _: str) -> str:
        fate = dice.choices(["", "refused", "unheard"], [80, 10, 10])[0]
        return "refused" if fate and operation in ("get", "list") else fate

    async def play(watch: Watching) -> None:
        memory.fault = fault
        await relayed(watch, 1000 if NIGHTLY else 120)
        memory.fault = lambda _, __: ""
        await watch.storage.settled()

    watch = scenario(tmp_path, play, into=into(memory))
    assert watch.relayed_exactly()
    assert watch.gaps() == watch.cuts() == []
    assert watch.numbers()[-1] - watch.numbers()[0] >= (230 if NIGHTLY else 20)


def test_a_stop_while_the_bucket_is_away_ends_in_time_and_says_that_its_end_is_not_there(tmp_path: Path) -> None:
    memory = MemoryObjects()
    ended_s = 0.0

    async def play(watch: Watching) -> None:
        nonlocal ended_s
        away(memory, 50, 3600)

        def stop() -> None:
            watch.operator.stream = replace(watch.operator.stream, desired=Desired.STOP)
            watch.nudges.nudge()

        later(120, stop)
        await relayed(watch, 3000)
        ended_s = now_s()

    watch = scenario(tmp_path, play, into=into(memory))
    assert 120 < ended_s < 135
    assert watch.ticks[-1].error == "s3://memory/test: 503 Slow Down"
    assert not listed(memory).ended


def test_a_stop_while_the_bucket_answers_puts_endlist_into_it(tmp_path: Path) -> None:
    memory = MemoryObjects(takes_s=0.1)

    async def play(watch: Watching) -> None:
        later(60, lambda: setattr(watch.operator, "stream", replace(watch.operator.stream, desired=Desired.STOP)))
        later(60, watch.nudges.nudge)
        await relayed(watch, 3000)

    scenario(tmp_path, play, into=into(memory))
    assert listed(memory).ended


def test_the_next_owner_keeps_the_window_and_the_numbers_and_the_one_before_ends(tmp_path: Path) -> None:
    """It comes while the first one still relays, as after a SIGSTOP: a node with a folder of its own."""
    memory = MemoryObjects(takes_s=0.03)
    began = list[int]()

    async def play(watch: Watching) -> None:
        watch.reads = reads(memory)
        first = asyncio.ensure_future(relayed(watch, 90))
        await elapse(61)
        before = [one.sequence for one in listed(memory).segments]
        with into(memory, 2000)(tmp_path / "another") as storage:
            await storage.taken()
            successor = Watching(storage, watch.operator, watch.nudges, watch.origin, played=watch.played, when=watch.when)
            successor.reads = watch.reads
            taking = asyncio.ensure_future(relayed(successor, 130))
            await elapse(1)
            began.extend(one.sequence for one in listed(memory).segments)
            with pytest.raises(Superseded):
                await first
            await taking
            assert began[: len(before)] == before[: len(began)], "the window was not kept"
            assert successor.last is not None
            assert not successor.last.ended
            watch.last = successor.last

    watch = scenario(tmp_path / "one", play, Origin(window=6), into=into(memory))
    newest = listed(memory).segments[-1].sequence
    bodies = {key.rpartition("/")[2].partition("-")[0]: body for key, (body, _) in memory.held.items() if key.endswith(".ts")}
    assert len(set(bodies.values())) == len(bodies), "something is there twice"
    assert watch.last is not None
    assert watch.last.segments[-1].sequence == newest
    assert not any(one.gap or one.discontinuity for one in watch.last.segments)
    assert newest >= began[-1] + 14
