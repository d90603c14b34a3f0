"""Whole presentations in virtual time: variants, audio and subtitles of a multivariant source, relayed together."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
import respx

from hlsrelay import house
from hlsrelay.addresses import AddressPolicy
from hlsrelay.clock import Nudges
from hlsrelay.desk import Tools
from hlsrelay.hls.parse import parse
from hlsrelay.model import Snapshot
from hlsrelay.relay import Tick, relay
from hlsrelay.storage import LocalStorage
from hlsrelay.upstream import TransportFactory, Upstream
from tests.integration.relaying import NoEncoder, Operator, later, working
from tests.origin import Origin, Streaming, ts_packets
from tests.playlists import URL, stream
from tests.virtual import VirtualClock, run_virtually

MASTER = """#EXTM3U
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="English",LANGUAGE="en",DEFAULT=YES,URI="en/live.m3u8"
#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="s",NAME="Deutsch",LANGUAGE="de",URI="de/live.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=900000,RESOLUTION=640x360,CODECS="avc1.4d401e,mp4a.40.2",AUDIO="a",SUBTITLES="s"
low/live.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=2500000,RESOLUTION=1280x720,CODECS="avc1.64001f,mp4a.40.2",AUDIO="a",SUBTITLES="s"
high/live.m3u8
"""
NAMES = {"high": "source", "low": "v360p-900k", "en": "audio-en", "de": "subtitles-de"}
PLAIN = "https://plain.example/x"


@dataclass
class Show:
    """A source of several media playlists that share one clock, and its relay."""

    storage: LocalStorage
    operator: Operator
    nudges: Nudges
    origins: dict[str, Origin]
    ticks: list[Tick] = field(default_factory=list, repr=False)  # asyncio prints results of futures
    master: str = MASTER

    def transport(self) -> TransportFactory:
        def make(_: AddressPolicy, __: str) -> httpx.AsyncBaseTransport:
            router = respx.Router(assert_all_called=False)
            for index in (URL, "https://other.example/live/index.m3u8"):
                router.get(index).mock(side_effect=lambda _: httpx.Response(200, text=self.master))
            for origin in self.origins.values():
                router.route(url__startswith=origin.base).mock(side_effect=origin.answer)
            return Streaming(httpx.MockTransport(router.async_handler))

        return make

    async def relayed(self, until_s: float) -> None:
        async with Upstream(transport=self.transport()) as upstream:
            tools = Tools(upstream, self.storage, NoEncoder(), self.operator, VirtualClock(), self.nudges)

            async def run() -> None:
                async for tick in relay(tools):
                    self.ticks.append(tick)

            await working(run(), until_s)

    def listed(self, name: str) -> Snapshot:
        found = parse(self.storage.read(f"{name}/index.m3u8") or b"", "file:///x/")
        assert isinstance(found, Snapshot)
        return found

    def text(self) -> str:
        return (self.storage.read("index.m3u8") or b"").decode()

    def discontinuity_sequences(self) -> set[int]:
        return {
            self.listed(name).discontinuity_sequence + sum(one.discontinuity for one in self.listed(name).segments)
            for name in NAMES.values()
        }

    def whole(self, track: str) -> bool:
        """Whether every listed segment of the track holds bytes that its origin sent under the same number."""
        name = NAMES[track]
        files = [segment.uri.rpartition("/")[2] for segment in self.listed(name).segments if not segment.gap]
        return bool(files) and {self.storage.read(f"{name}/{file}") for file in files} <= set(self.origins[track].sent.values())


def show(live: Path, play: Callable[[Show], object]) -> Show:
    async def run() -> Show:
        base = URL.rpartition("/")[0]
        origins = {track: Origin(name=track, base=f"{base}/{track}") for track in NAMES}
        origins["plain"] = Origin(name="plain", base=PLAIN, first=7000)
        with LocalStorage(live, "news") as storage:
            made = Show(storage, Operator(stream(window_s=30.0)), Nudges(), origins)
            result = play(made)
            assert asyncio.iscoroutine(result)
            await result
            return made

    return run_virtually(run())


def test_every_track_is_relayed_whole_and_the_multivariant_playlist_points_to_ours(tmp_path: Path) -> None:
    shown = show(tmp_path, lambda show: show.relayed(90))
    assert all(shown.whole(track) for track in NAMES)
    text = shown.text()
    assert set(re.findall(r'(?m)(?:URI="|^)([a-z0-9-]+)/index\.m3u8', text)) == set(NAMES.values())
    assert "example" not in text
    assert text.count('AUDIO="a"') == text.count('SUBTITLES="s"') == 2
    assert len({shown.listed(name).target_duration_s for name in NAMES.values()}) == 1
    assert shown.discontinuity_sequences() == {0}


def test_bandwidth_counts_the_renditions_that_play_along(tmp_path: Path) -> None:
    text = show(tmp_path, lambda show: show.relayed(60)).text()
    peaks = [int(found) for found in re.findall(r"STREAM-INF:BANDWIDTH=(\d+)", text)]
    assert peaks == [2 * 752 * 8 // 4, 2 * 752 * 8 // 4]


def test_bandwidth_is_told_anew_where_segments_come_to_be_larger(tmp_path: Path) -> None:
    said: list[str] = []

    async def play(show: Show) -> None:
        high = show.origins["high"]

        def grow() -> None:
            said.append(show.text())
            high.content = lambda path: 4 * ts_packets(path)

        later(30, grow)
        await show.relayed(60)
        said.append(show.text())

    show(tmp_path, play)
    before, after = (max(map(int, re.findall(r"STREAM-INF:BANDWIDTH=(\d+)", text))) for text in said)
    assert after > before


def test_a_reset_that_one_track_notices_first_is_one_discontinuity_in_all(tmp_path: Path) -> None:
    async def play(show: Show) -> None:
        def reset() -> None:
            for origin in show.origins.values():
                origin.restart(origin.name + "2", first=5)

        asyncio.get_running_loop().call_later(40, reset)
        await show.relayed(110)

    shown = show(tmp_path, play)
    assert shown.discontinuity_sequences() == {1}
    assert all(shown.whole(track) for track in NAMES)


def test_a_track_that_lost_its_place_alone_takes_the_others_with_it(tmp_path: Path) -> None:
    async def play(show: Show) -> None:
        asyncio.get_running_loop().call_later(40, lambda: show.origins["en"].restart("en2", first=9000))
        await show.relayed(110)

    assert len(show(tmp_path, play).discontinuity_sequences()) == 1


def test_a_restart_goes_on_in_every_track(tmp_path: Path) -> None:
    numbers: dict[str, set[int]] = {name: set() for name in NAMES.values()}

    async def play(show: Show) -> None:
        for until_s in (33, 47, 70):
            await show.relayed(until_s)
            for name, seen in numbers.items():
                seen |= {segment.sequence for segment in show.listed(name).segments}

    shown = show(tmp_path, play)
    assert all(sorted(seen) == list(range(min(seen), max(seen) + 1)) for seen in numbers.values())
    assert shown.discontinuity_sequences() == {0}


def measured_anew(show: Show) -> None:
    show.master = MASTER.replace("900000", "907431").replace("2500000", "2431000")


def test_a_restart_goes_on_in_every_track_of_a_source_that_measures_its_bandwidth(tmp_path: Path) -> None:
    async def play(show: Show) -> None:
        await show.relayed(40)
        measured_anew(show)
        await show.relayed(80)

    shown = show(tmp_path, play)
    assert set(shown.storage.ledgers()) == set(NAMES.values())
    assert shown.discontinuity_sequences() == {0}
    assert all(shown.whole(track) for track in NAMES)


def test_a_child_that_expires_is_had_again_though_the_source_measured_another_bandwidth(tmp_path: Path) -> None:
    async def play(show: Show) -> None:
        expired = iter([True])
        low = show.origins["low"]

        def expire() -> None:
            measured_anew(show)
            low.fault = lambda asked: httpx.Response(403) if asked.url.path.endswith(".m3u8") and next(expired, False) else None

        asyncio.get_running_loop().call_later(40, expire)
        await show.relayed(80)

    shown = show(tmp_path, play)
    assert set(shown.storage.ledgers()) == set(NAMES.values())
    assert any("source_surveyed_again" in tick.turn.repairs for tick in shown.ticks if tick.turn)
    assert shown.discontinuity_sequences() == {0}
    assert all(shown.whole(track) for track in NAMES)


def test_a_track_that_never_answers_is_left_out_and_no_variant_names_its_group(tmp_path: Path) -> None:
    async def play(show: Show) -> None:
        show.origins["de"].fault = lambda _: httpx.Response(404)
        await show.relayed(60)

    text = show(tmp_path, play).text()
    assert "subtitles" not in text.lower()
    assert text.count("source/index.m3u8") == 1


def test_players_of_a_track_that_the_next_source_lacks_are_played_on(tmp_path: Path) -> None:
    async def play(show: Show) -> None:
        await show.relayed(40)
        before = {name: show.listed(name).segments[-1].sequence for name in NAMES.values()}
        show.operator.stream = replace(show.operator.stream, source=f"{PLAIN}/live.m3u8")
        await show.relayed(60)
        low = show.listed("v360p-900k").segments
        assert low[-1].sequence > before["v360p-900k"]
        assert low[-1].uri.startswith("file:///source/")
        assert sum(segment.discontinuity for segment in low) == 1
        assert show.listed("audio-en").segments[-1].gap
        show.operator.stream = replace(show.operator.stream, source=URL)
        await show.relayed(100)
        assert not show.listed("audio-en").segments[-1].gap
        assert all(show.whole(track) for track in ("high", "en", "de"))

    shown = show(tmp_path, play)
    assert shown.discontinuity_sequences() == {2}
    for name in NAMES.values():
        numbers = [segment.sequence for segment in shown.listed(name).segments]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_players_of_a_track_that_went_miss_nothing_while_the_disk_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LocalStorage.publish

    def publish(self: LocalStorage, playlist: str, text: str) -> None:
        if 70 < asyncio.get_running_loop().time() < 90 and playlist == "source/index.m3u8":
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(self, playlist, text)

    async def play(show: Show) -> None:
        show.operator.stream = replace(show.operator.stream, window_s=60.0)
        await show.relayed(40)
        show.operator.stream = replace(show.operator.stream, source=f"{PLAIN}/live.m3u8")
        monkeypatch.setattr(LocalStorage, "publish", publish)
        await show.relayed(110)

    shown = show(tmp_path, play)
    assert any(tick.error for tick in shown.ticks)
    uris = [segment.uri for segment in shown.listed("v360p-900k").segments]
    lent = [int(uri.rpartition("/")[2].removesuffix(".ts")) for uri in uris if "/source/" in uri]
    assert len(lent) > 10
    assert lent == list(range(lent[0], lent[0] + len(lent)))
    assert lent[-1] == shown.listed("source").segments[-1].sequence


def test_a_full_disk_of_ours_is_no_silence_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LocalStorage.publish

    def publish(self: LocalStorage, playlist: str, text: str) -> None:
        if 40 < asyncio.get_running_loop().time() < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(self, playlist, text)

    async def play(show: Show) -> None:
        monkeypatch.setattr(LocalStorage, "publish", publish)
        show.operator.stream = replace(show.operator.stream, backups=(f"{PLAIN}/live.m3u8",))
        await show.relayed(130)

    shown = show(tmp_path, play)
    made = [tick.made for tick in shown.ticks if tick.made and tick.track == "source"]
    assert sum(bool(tick.error) for tick in shown.ticks if tick.made) > 20
    assert {one.numbered.stream.source for one in made} == {URL}
    assert [one.entry.number for one in made] == list(range(made[0].entry.number, made[-1].entry.number + 1))
    assert shown.listed("source").segments[-1].sequence == made[-1].entry.number


def test_a_track_that_went_long_ago_ends_and_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "FOLLOWS_S", 60.0)
    went = ("v360p-900k", "audio-en", "subtitles-de")

    async def play(show: Show) -> None:
        await show.relayed(40)
        show.operator.stream = replace(show.operator.stream, source=f"{PLAIN}/live.m3u8")
        await show.relayed(90)
        assert not any(show.listed(name).ended for name in went)
        await show.relayed(115)
        assert all(show.listed(name).ended for name in went)
        await show.relayed(118)  # by another process: what it lists may still be played
        assert all(show.listed(name).ended for name in went)
        await show.relayed(170)
        assert [path for name in went for path in (show.storage.folder / name).glob("*")] == []
        assert show.storage.ledgers() == ["source"]
        assert not show.listed("source").ended
        show.operator.stream = replace(show.operator.stream, source=URL)
        await show.relayed(240)
        assert all(show.whole(track) for track in NAMES)

    assert len(show(tmp_path, play).discontinuity_sequences()) == 1


def test_a_stop_ends_every_track(tmp_path: Path) -> None:
    async def play(show: Show) -> None:
        def stop() -> None:
            show.operator.stream = replace(show.operator.stream, desired=type(show.operator.stream.desired)("stop"))
            show.nudges.nudge()

        asyncio.get_running_loop().call_later(30, stop)
        await show.relayed(200)
        assert asyncio.get_running_loop().time() < 31

    shown = show(tmp_path, play)
    assert all(shown.listed(name).ended for name in NAMES.values())
