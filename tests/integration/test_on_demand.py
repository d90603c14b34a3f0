"""Streams that are relayed only while somebody watches, in virtual time: who starts them, what players get, when they stop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hlsrelay.errors import ConfigError
from hlsrelay.fields import Registered
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.node import Node
from hlsrelay.processes import Children
from hlsrelay.settings import load_settings
from hlsrelay.worker import admitted
from tests.integration.on_demand_house import FIELDS, IDLE_S, House, now_s, recorded, scenario
from tests.integration.relaying import NoEncoder
from tests.origin import Origin
from tests.playlists import URL
from tests.virtual import elapse

SECRET = "hunter2"


def loads(house: House) -> int:
    return sum(path.endswith(".m3u8") for path in house.node.origin.requests)


def test_nothing_is_asked_of_the_source_until_somebody_watches(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.state("idle")
        await elapse(300)
        assert loads(house) == 0
        assert house.playlists() == []

    scenario(tmp_path / "live", play)


@pytest.mark.parametrize("path", ["index.m3u8", "source/index.m3u8"])
def test_the_first_request_for_a_playlist_waits_for_the_whole_first_window(path: str, tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.state("idle")
        began_s = now_s()
        answer = await house.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/vnd.apple.mpegurl")
        assert 0.5 < now_s() - began_s < 15
        assert len((await house.media()).segments) == 3  # where a player would begin at the source: three target durations
        await house.state("running")

    scenario(tmp_path / "live", play, Origin(segment_takes_s=0.5))


def test_viewers_who_come_at_once_start_it_once(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.state("idle")
        began_s = now_s()
        answers = await asyncio.gather(*(house.get("index.m3u8" if one % 2 else "source/index.m3u8") for one in range(40)))
        assert {answer.status_code for answer in answers} == {200}
        assert loads(house) <= 2 + (now_s() - began_s) / 0.5  # one look at what the source presents, one load; then one an eighth of 4 s
        segments = [path for path in house.node.origin.requests if not path.endswith(".m3u8")]
        assert len(segments) == len(set(segments))

    scenario(tmp_path / "live", play, Origin(segment_takes_s=0.5))


def test_a_request_for_a_segment_or_another_stream_starts_nothing(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.state("idle")
        began_s = now_s()
        assert (await house.get("source/105.ts")).status_code == 404
        assert (await house.get("index.m3u8", stream="weather")).status_code == 404
        assert now_s() == began_s
        await elapse(5)
        assert loads(house) == 0

    scenario(tmp_path / "live", play)


def test_a_playlist_that_the_stream_does_not_have_is_a_404_once_it_is_known(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.state("idle")
        assert (await house.get("1080p/index.m3u8")).status_code == 404
        await house.state("running")

    scenario(tmp_path / "live", play)


def test_a_stream_that_is_left_stops_and_nothing_of_it_is_published_any_more(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.watched(60)
        left_s = now_s()
        await house.state("idle")
        assert now_s() - left_s < IDLE_S + 2
        before = loads(house)
        assert house.playlists() == []
        assert house.segments(), "players may still ask for what was listed"
        await elapse(300)
        assert loads(house) == before
        assert house.segments() == [], "after their time the files are removed"

    scenario(tmp_path / "live", play)


def test_segments_keep_a_stream_alive_as_playlists_do(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        last = (await house.media()).segments[-1].uri.rpartition("/")[2]
        for _ in range(20):
            await elapse(IDLE_S / 4)
            await house.get(f"source/{last}")
        assert house.registry.streams["news"]["state"] == "running"
        await house.state("idle", IDLE_S + 2)

    scenario(tmp_path / "live", play)


def test_a_source_that_brought_nothing_new_meanwhile_is_a_503_and_never_the_old_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(house: House) -> None:
        await house.watched(30)
        frozen = house.node.origin.playlist()
        monkeypatch.setattr(house.node.origin, "playlist", lambda: frozen)
        await house.state("idle")
        began_s = now_s()
        answer = await house.get()
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "2"
        assert answer.text == "stream 'news' can't be watched just now: the source has brought nothing within 15 s\n"
        assert now_s() - began_s == pytest.approx(15.0, abs=0.1)

    scenario(tmp_path / "live", play)


def test_a_source_that_fails_is_a_503_with_its_reason_at_once_and_no_secret(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.state("idle")
        began_s = now_s()
        answer = await house.get()
        assert (answer.status_code, answer.headers["retry-after"], answer.headers["cache-control"]) == (503, "2", "no-store")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.text.count("\n") == 1
        assert "HTTP 503" in answer.text
        assert SECRET not in answer.text
        assert now_s() - began_s < 1
        house.node.origin.silent = False
        assert (await house.get()).status_code == 200  # the relay tries on meanwhile: who asks again need not be the first again

    source = URL.replace("https://", f"https://me:{SECRET}@")
    scenario(tmp_path / "live", play, Origin(silent=True), source=source)


def test_a_source_that_fails_for_ever_is_left_alone_once_nobody_asks(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        assert (await house.get()).status_code == 503
        await house.state("idle", IDLE_S + 2)
        before = loads(house)
        await elapse(100)
        assert loads(house) == before

    scenario(tmp_path / "live", play, Origin(silent=True))


def test_under_memory_pressure_nothing_is_started_and_what_runs_goes_on(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        node = house.node
        await house.state("idle")
        node.refused = "this node is short of memory"
        answer = await house.get()
        assert (answer.status_code, "short of memory" in answer.text) == (503, True)
        assert loads(house) == 0
        node.refused = ""
        assert (await house.get()).status_code == 200
        node.refused = "this node is short of memory"
        assert (await house.watched(30)).segments

    scenario(tmp_path / "live", play)


def test_a_stop_ends_an_idle_stream_at_once_with_nothing_to_write_endlist_into(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.watched(30)
        await house.state("idle")
        stopped_s = now_s()
        await house.registry.change("news", {"desired": "stop"})
        await house.state("stopped")
        assert now_s() - stopped_s < 2
        assert house.playlists() == []
        assert (await house.get()).status_code == 404

    scenario(tmp_path / "live", play)


def test_a_stop_of_one_that_is_watched_writes_endlist(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.watched(30)
        await house.registry.change("news", {"desired": "stop"})
        await house.state("stopped")
        assert (await house.media()).ended

    scenario(tmp_path / "live", play)


def test_on_demand_follows_its_field_at_once_both_ways(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.state("idle")
        await house.registry.change("news", {"on_demand": "no"})
        await house.state("running", 5)
        await elapse(3 * IDLE_S)
        assert house.registry.streams["news"]["state"] == "running"
        await house.registry.change("news", {"on_demand": "yes"})
        await house.state("idle", 5)
        await house.registry.change("news", {"on_demand": "no"})
        await house.state("running", 5)

    scenario(tmp_path / "live", play)


def test_what_a_predecessor_left_is_withdrawn_before_anybody_sees_it(tmp_path: Path) -> None:
    numbers: list[int] = []

    async def first(house: House) -> None:
        numbers.append((await house.watched(30)).segments[-1].sequence)

    async def second(house: House) -> None:
        await house.state("idle")
        assert house.playlists() == []
        assert (await house.media()).media_sequence > numbers[-1]

    house = scenario(tmp_path / "live", first)
    assert house.playlists(), "it was told to go while somebody watched: a successor goes on"
    scenario(tmp_path / "live", second, Origin(first=120))


def test_a_node_that_serves_nobody_refuses_it_and_says_what_to_write(tmp_path: Path) -> None:
    async def admit() -> None:
        registry = MemoryRegistry()
        await registry.register("news", FIELDS)
        node = Node(load_settings(http="none"), tmp_path, registry, Children(), NoEncoder())
        await admitted(Registered("news", FIELDS), node)

    with pytest.raises(ConfigError, match="set on_demand=no, or HLSRELAY_HTTP"):
        asyncio.run(admit())


def test_six_rounds_leave_as_many_tasks_and_files_as_three(tmp_path: Path) -> None:
    counts: list[tuple[int, int]] = []

    async def play(house: House) -> None:
        for _ in range(6):
            await house.watched(10)
            await house.state("idle")
            await elapse(90)
            counts.append((len(asyncio.all_tasks()), len(list(house.folder.rglob("*")))))
        assert recorded(house.node.storages["news"]).retired == ()

    scenario(tmp_path / "live", play)
    assert set(counts[3:]) == {counts[3]}
