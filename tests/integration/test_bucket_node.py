"""A node that publishes into a bucket, its players, and the bucket's, in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hlsrelay.bucket import BucketStorage
from hlsrelay.errors import Superseded
from hlsrelay.model import Snapshot
from tests.integration.on_demand_house import House, now_s, scenario
from tests.memory_objects import MemoryObjects, Watched
from tests.origin import Origin
from tests.virtual import elapse


def playlists(memory: MemoryObjects) -> list[str]:
    return [key for key in memory.held if key.endswith(".m3u8")]


def segments(memory: MemoryObjects) -> list[str]:
    return [key for key in memory.held if key.endswith(".ts")]


def test_what_nobody_watches_leaves_the_bucket_and_comes_back_with_the_next_numbers(tmp_path: Path) -> None:
    memory = MemoryObjects()

    async def play(house: House) -> None:
        before = await house.watched(30)
        assert len(playlists(memory)) == 2
        await house.state("idle")
        await elapse(2)
        assert playlists(memory) == []
        assert segments(memory), "a player may still ask for them"
        await elapse(120)
        assert segments(memory) == []
        memory.fault = lambda _, __: "refused"
        asking = asyncio.ensure_future(house.get())
        await elapse(5)
        memory.fault = lambda _, __: ""
        assert (await asking).status_code == 200
        after = await house.media()
        assert after.segments[0].sequence > before.segments[-1].sequence
        assert after.segments[0].discontinuity
        memory.fault = lambda _, __: "refused"
        await house.state("idle")
        await elapse(300)
        assert len(playlists(memory)) == 2, "they can't be removed"
        memory.fault = lambda _, __: ""
        await elapse(10)
        assert playlists(memory) == []
        assert segments(memory), "somebody may have read the playlist a moment ago"
        await elapse(120)
        assert segments(memory) == []

    scenario(tmp_path / "live", play, objects=Watched(memory, now_s))


def test_a_bucket_that_is_away_as_a_stream_starts_is_told_of_and_waited_for_and_nothing_is_shown(tmp_path: Path) -> None:
    memory = MemoryObjects(fault=lambda _, __: "refused")
    (tmp_path / "live/news/source").mkdir(parents=True)
    (tmp_path / "live/news/source/index.m3u8").write_text("#EXTM3U\n#of yesterday\n")

    async def play(house: House) -> None:
        await elapse(20)
        assert "storage: s3://memory/test: 503" in house.registry.streams["news"]["last_error"]
        assert house.registry.streams["news"]["state"] == "starting"
        assert (await house.get("source/index.m3u8")).status_code in (404, 503)
        memory.fault = lambda _, __: ""
        await house.state("running")
        assert len((await house.media()).segments) == 3

    scenario(tmp_path / "live", play, objects=Watched(memory, now_s), on_demand="no")


def test_a_stream_that_is_to_stop_while_the_bucket_is_away_stops(tmp_path: Path) -> None:
    memory = MemoryObjects(fault=lambda _, __: "refused")

    async def play(house: House) -> None:
        await elapse(10)
        await house.registry.change("news", {"desired": "stop"})
        await house.state("stopped", 6)

    scenario(tmp_path / "live", play, objects=Watched(memory, now_s), on_demand="no")


def test_a_node_that_is_told_to_go_while_the_bucket_hangs_goes_at_once(tmp_path: Path) -> None:
    memory = MemoryObjects()

    async def play(house: House) -> None:
        await house.state("running")
        memory.takes_s = 1000.0
        await elapse(30)
        assert house.registry.streams["news"]["state"] in ("running", "stalled")
        house.leaving.set()
        await house.state("registered", 3)

    scenario(tmp_path / "live", play, objects=Watched(memory, now_s), on_demand="no")


def test_a_stream_whose_bucket_is_away_stalls_and_runs_again(tmp_path: Path) -> None:
    memory = MemoryObjects()

    async def play(house: House) -> None:
        await house.state("running")
        memory.fault = lambda _, __: "refused"
        await house.state("stalled", 30)
        assert "publish: s3://memory/test: 503" in house.registry.streams["news"]["last_error"]
        memory.fault = lambda _, __: ""
        await house.state("running", 10)

    scenario(tmp_path / "live", play, objects=Watched(memory, now_s), on_demand="no")


def test_a_node_that_was_taken_over_in_the_bucket_ends(tmp_path: Path) -> None:
    memory = MemoryObjects()

    async def play(house: House) -> None:
        await house.state("running")
        with BucketStorage(tmp_path / "another", "news", memory, 8, now_s) as storage:
            await storage.taken()
            await elapse(20)

    with pytest.raises(Superseded, match="has a later owner"):
        scenario(tmp_path / "live", play, objects=Watched(memory, now_s), on_demand="no")


def test_the_next_owner_serves_what_only_the_bucket_has_and_fetches_it_once(tmp_path: Path) -> None:
    memory, origin = MemoryObjects(), Origin()
    left: list[Snapshot] = []

    async def play(house: House) -> None:
        await house.state("running")
        await elapse(40)
        left.append(await house.media())

    scenario(tmp_path / "one", play, origin, objects=Watched(memory, now_s), on_demand="no")

    async def go_on(house: House) -> None:
        await elapse(0.5)
        found = await house.media()
        assert [one.sequence for one in found.segments][: len(left[0].segments)] == [one.sequence for one in left[0].segments]
        names = [one.uri.rpartition("/")[2] for one in left[0].segments]
        assert not set(names) & set(house.segments())
        memory.takes_s = 0.2
        memory.asked.clear()
        answers = await asyncio.gather(*(house.get(f"source/{name}") for name in names for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.content for answer in answers} == {memory.held[f"live/news/source/{name}"][0] for name in names}
        fetched = [key for operation, key in memory.asked if operation == "get" and key.endswith(".ts")]
        assert sorted(fetched) == sorted(f"live/news/source/{name}" for name in names)
        memory.fault = lambda _, __: "refused"
        assert (await house.get("source/9999.ts")).status_code == 404
        assert len([key for operation, key in memory.asked if operation == "get" and "9999" in key]) == 0
        memory.fault = lambda _, __: ""
        await elapse(100)
        assert not set(names) & set(house.segments()), "they go as they would where they were made"

    origin.first = 110  # virtual time begins anew
    scenario(tmp_path / "two", go_on, origin, objects=Watched(memory, now_s), on_demand="no")
