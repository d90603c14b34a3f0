"""Streams that are relayed only while somebody watches, in virtual time: who starts them, what players get, when they stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import httpx
import pytest

from hlsrelay.errors import ConfigError
from hlsrelay.fields import Registered
from hlsrelay.hls.parse import parse
from hlsrelay.hls.window import Progress
from hlsrelay.house import withdraw
from hlsrelay.ledger import LocalLedger
from hlsrelay.model import Snapshot
from hlsrelay.processes import Children
from hlsrelay.registry import MemoryRegistry
from hlsrelay.settings import load_settings
from hlsrelay.site import RelaySite
from hlsrelay.storage import LEDGER, LocalStorage
from hlsrelay.upstream import Upstream
from hlsrelay.web import create_app
from hlsrelay.worker import Node, admitted, relay_stream
from tests.integration.test_presentation import NAMES, PLAIN, Show, show
from tests.integration.test_relay import NoEncoder, Watching, relayed
from tests.integration.test_relay import scenario as relay_scenario
from tests.origin import Origin
from tests.playlists import URL
from tests.virtual import VirtualClock, run_virtually

IDLE_S = 20
FIELDS = {"source": URL, "desired": "run", "window": "30", "on_demand": "yes", "idle_timeout": str(IDLE_S)}
SECRET = "hunter2"


@dataclass
class House:
    """A node that relays one stream, its registry, and its web server; players ask it in virtual time."""

    node: OfOrigins
    registry: MemoryRegistry
    client: httpx.AsyncClient
    leaving: asyncio.Event = field(default_factory=asyncio.Event)

    async def get(self, path: str = "index.m3u8", stream: str = "news") -> httpx.Response:
        return await self.client.get(f"/live/{stream}/{path}")

    async def media(self, track: str = "source") -> Snapshot:
        answer = (await self.get(f"{track}/index.m3u8")).raise_for_status()
        playlist = parse(answer.content, "file:///")
        assert isinstance(playlist, Snapshot)
        return playlist

    async def watched(self, seconds: float, every_s: float = 4.0) -> Snapshot:
        """Play for so long: a playlist every now and then. Returns the last."""
        until_s = now_s() + seconds
        while True:
            last = await self.media()
            if now_s() >= until_s:
                return last
            await asyncio.sleep(every_s)

    async def state(self, wanted: str, within_s: float = 60.0) -> None:
        """Wait until the relay reports *wanted*."""
        async with asyncio.timeout(within_s):
            while self.registry.streams["news"].get("state") != wanted:  # the registry tells nobody that it changed  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    def playlists(self) -> list[str]:
        return sorted(path.name for path in self.folder.rglob("*.m3u8"))

    @property
    def folder(self) -> Path:
        return self.node.live / "news"

    def segments(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("source/*.ts"))


def now_s() -> float:
    return asyncio.get_running_loop().time()


class OfOrigins(Node):
    """A node whose sources are a test's."""

    origin: Origin
    refused = ""

    def connect(self) -> Upstream:
        return Upstream(transport=self.origin.transport())

    def refusal(self) -> str:
        return self.refused


def scenario(folder: Path, play: Callable[[House], Awaitable[None]], origin: Origin | None = None, **fields: str) -> House:
    """Relay a stream in virtual time while *play* goes on."""

    async def run() -> House:
        registry = MemoryRegistry()
        await registry.register("news", FIELDS | fields)
        folder.mkdir(exist_ok=True)
        node = OfOrigins(load_settings(), folder, registry, Children(), NoEncoder(), clock=VirtualClock())
        node.origin = origin or Origin()
        transport = httpx.ASGITransport(create_app(RelaySite(node)), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://relay") as client:
            house = House(node, registry, client)
            stream = await admitted(Registered("news", registry.streams["news"]), node)
            relaying = asyncio.create_task(relay_stream(stream, node, house.leaving))
            playing = asyncio.ensure_future(play(house))
            await asyncio.wait((relaying, playing), return_when=asyncio.FIRST_COMPLETED)
            if relaying.done():
                relaying.result()
            await playing
            house.leaving.set()
            await relaying
        return house

    return run_virtually(run())


def recorded(storage: LocalStorage) -> Progress:
    progress = LocalLedger(storage).resume()
    assert progress is not None
    return progress


def loads(house: House) -> int:
    return sum(path.endswith(".m3u8") for path in house.node.origin.requests)


def test_nothing_is_asked_of_the_source_until_somebody_watches(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.state("idle")
        await asyncio.sleep(300)
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
        answers = await asyncio.gather(*(house.get("index.m3u8" if one % 2 else "source/index.m3u8") for one in range(40)))
        assert {answer.status_code for answer in answers} == {200}
        assert loads(house) == 2  # one look at what the source presents, one load

    scenario(tmp_path / "live", play, Origin(segment_takes_s=0.5))


def test_a_request_for_a_segment_or_another_stream_starts_nothing(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.state("idle")
        began_s = now_s()
        assert (await house.get("source/105.ts")).status_code == 404
        assert (await house.get("index.m3u8", stream="weather")).status_code == 404
        assert now_s() == began_s
        await asyncio.sleep(5)
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
        await asyncio.sleep(300)
        assert loads(house) == before
        assert house.segments() == [], "after their time the files are removed"

    scenario(tmp_path / "live", play)


def test_segments_keep_a_stream_alive_as_playlists_do(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        last = (await house.media()).segments[-1].uri.rpartition("/")[2]
        for _ in range(20):
            await asyncio.sleep(IDLE_S / 4)
            await house.get(f"source/{last}")
        assert house.registry.streams["news"]["state"] == "running"
        await house.state("idle", IDLE_S + 2)

    scenario(tmp_path / "live", play)


@pytest.mark.parametrize("away_s", [IDLE_S + 3, 60, 600])
@pytest.mark.parametrize("pdt", [False, True])
def test_who_comes_back_finds_numbers_and_times_that_go_on_and_nothing_listed_twice(away_s: int, pdt: bool, tmp_path: Path) -> None:
    async def play(house: House) -> None:
        seen: list[Snapshot] = []
        for _ in range(3):
            seen.append(await house.watched(60))
            await asyncio.sleep(away_s)
            await house.state("idle")
            again = await house.media()
            before, first = seen[-1], again.segments[0]
            # The last playlist that was seen is not the last that was published: until it was left, the stream went on.
            assert before.segments[-1].sequence < again.media_sequence <= before.segments[-1].sequence + IDLE_S / 4 + 2
            assert first.discontinuity
            count = before.discontinuity_sequence + sum(one.discontinuity for one in before.segments)
            assert again.discontinuity_sequence == count
            assert again.target_duration_s == before.target_duration_s
            assert first.time is not None
            assert before.segments[-1].time is not None
            assert first.time > before.segments[-1].time
            bodies = [(await house.get(f"source/{one.uri.rpartition('/')[2]}")).content for one in again.segments]
            sources = {body: path for path, body in house.node.origin.sent.items()}
            paths = [sources[body] for body in bodies]
            newest = house.node.origin.newest()
            assert int(paths[-1].rpartition("-")[2].removesuffix(".ts")) >= newest - 1, "it begins at the live edge"
            assert len(set(paths)) == len(paths)
            assert not set(paths) & played
            played.update(paths)

    played: set[str] = set()
    scenario(tmp_path / "live", play, Origin(pdt=pdt))


@pytest.mark.parametrize("away_s", [30, 100, 3000])
def test_tracks_that_go_and_come_back_together_agree_on_their_discontinuities(away_s: int, tmp_path: Path) -> None:
    async def play(source: Show) -> None:
        clock, names = VirtualClock(), NAMES.values()
        for _ in range(3):
            await source.relayed(now_s() + 60)
            before = {name: source.listed(name) for name in names}
            generation = recorded(source.storage).position.generation
            withdraw(source.storage, clock)
            withdraw(source.storage, clock)  # twice is as good as once
            assert recorded(source.storage).position.generation == generation + 1
            assert source.storage.published() == []
            await asyncio.sleep(away_s)
            await source.relayed(now_s() + 20)
            assert len(source.discontinuity_sequences()) == 1
            ends: list[datetime] = []
            for name in names:
                again, last = source.listed(name), before[name].segments[-1]
                assert again.media_sequence == last.sequence + 1
                assert [one.discontinuity for one in again.segments] == [True, *[False] * (len(again.segments) - 1)]
                assert not any(one.gap for one in again.segments)
                ends += [one.time for one in again.segments[-1:] if one.time]
            assert max(ends) - min(ends) <= timedelta(seconds=4)
            assert timedelta(0) <= clock.utc_now() - max(ends) <= timedelta(seconds=12), "times go on with the clock, not from the last end"
            assert all(source.whole(track) for track in NAMES)
            assert "STREAM-INF" in source.text()

    show(tmp_path, play)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_source_did_meanwhile_numbers_go_on_one_by_one_and_nothing_comes_twice(seed: int, tmp_path: Path) -> None:
    chosen = Random(seed)

    async def play(watch: Watching) -> None:
        for turn in range(6):
            await relayed(watch, now_s() + chosen.uniform(5, 60))
            if chosen.random() < 0.5:
                watch.origin.restart(f"again{turn}", first=chosen.choice([0, 7, watch.origin.newest() - 3, watch.origin.newest() + 50]))
            withdraw(watch.storage, VirtualClock())
            await asyncio.sleep(chosen.choice([1, 5, 12, 40, 400]))
        await relayed(watch, now_s() + 30)

    watch = relay_scenario(tmp_path, play, Origin(pdt=seed % 2 == 0))
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))
    assert watch.relayed_exactly()
    assert watch.gaps() == []
    assert watch.times() == sorted(set(watch.times()))


def test_a_track_that_comes_while_nobody_watches_agrees_on_the_discontinuities_of_the_others(tmp_path: Path) -> None:
    async def play(source: Show) -> None:
        whole = source.master
        source.master = "".join(line for line in whole.splitlines(True) if "TYPE=SUBTITLES" not in line).replace(',SUBTITLES="s"', "")
        await source.relayed(60)
        withdraw(source.storage, VirtualClock())
        await asyncio.sleep(30)
        source.master = whole
        await source.relayed(now_s() + 60)
        assert len(source.discontinuity_sequences()) == 1

    show(tmp_path, play)


def test_a_track_that_stays_silent_at_first_is_not_filled_with_gaps_for_the_time_that_nobody_watched(tmp_path: Path) -> None:
    async def play(source: Show) -> None:
        await source.relayed(60)
        withdraw(source.storage, VirtualClock())
        await asyncio.sleep(30)
        source.origins["de"].silent = True
        await source.relayed(now_s() + 30)
        assert source.storage.read("source/index.m3u8")
        assert source.storage.read("subtitles-de/index.m3u8") is None
        source.origins["de"].silent = False
        await source.relayed(now_s() + 10)
        assert not any(one.gap for one in source.listed("subtitles-de").segments)
        assert len(source.discontinuity_sequences()) == 1

    show(tmp_path, play)


def test_a_track_that_goes_while_nobody_watches_is_forgotten(tmp_path: Path) -> None:
    async def play(source: Show) -> None:
        await source.relayed(60)
        withdraw(source.storage, VirtualClock())
        source.operator.stream = replace(source.operator.stream, source=f"{PLAIN}/index.m3u8")
        await asyncio.sleep(30)
        await source.relayed(now_s() + 200)
        assert source.storage.ledgers() == ["source"]
        assert source.storage.published() == ["index.m3u8", "source/index.m3u8"]

    show(tmp_path, play)


def test_where_the_record_is_lost_the_playlist_that_tells_the_numbers_stays(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        await relayed(watch, 60)
        (watch.storage.folder / LEDGER).write_text("torn")
        last = watch.numbers()[-1]
        withdraw(watch.storage, VirtualClock())
        assert watch.storage.published() == ["source/index.m3u8"]
        await asyncio.sleep(30)
        await relayed(watch, 120)
        assert watch.numbers() == list(range(103, watch.numbers()[-1] + 1))
        assert watch.numbers()[-1] > last

    relay_scenario(tmp_path, play)


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
        await asyncio.sleep(100)
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
        await asyncio.sleep(3 * IDLE_S)
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
            await asyncio.sleep(90)
            counts.append((len(asyncio.all_tasks()), len(list(house.folder.rglob("*")))))
        assert recorded(house.node.storages["news"]).retired == ()

    scenario(tmp_path / "live", play)
    assert set(counts[3:]) == {counts[3]}
