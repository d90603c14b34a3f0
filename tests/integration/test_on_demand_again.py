"""What viewers find who come back to a stream that was left for a while, and so was not relayed. In virtual time."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from hlsrelay.house import withdraw
from hlsrelay.model import Snapshot
from hlsrelay.storage import LEDGER
from tests.integration.on_demand_house import IDLE_S, House, now_s, recorded, scenario
from tests.integration.relaying import Watching, relayed
from tests.integration.relaying import scenario as relay_scenario
from tests.integration.test_presentation import NAMES, PLAIN, Show, show
from tests.origin import Origin
from tests.virtual import VirtualClock, elapse


@pytest.mark.parametrize("away_s", [IDLE_S + 3, 60, 600])
@pytest.mark.parametrize("pdt", [False, True])
def test_who_comes_back_finds_numbers_and_times_that_go_on_and_nothing_listed_twice(away_s: int, pdt: bool, tmp_path: Path) -> None:
    async def play(house: House) -> None:
        seen: list[Snapshot] = []
        for _ in range(3):
            seen.append(await house.watched(60))
            await elapse(away_s)
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
            await elapse(away_s)
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
            await elapse(chosen.choice([1, 5, 12, 40, 400]))
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
        await elapse(30)
        source.master = whole
        await source.relayed(now_s() + 60)
        assert len(source.discontinuity_sequences()) == 1

    show(tmp_path, play)


def test_a_track_that_stays_silent_at_first_is_not_filled_with_gaps_for_the_time_that_nobody_watched(tmp_path: Path) -> None:
    async def play(source: Show) -> None:
        await source.relayed(60)
        withdraw(source.storage, VirtualClock())
        await elapse(30)
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
        await elapse(30)
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
        await elapse(30)
        await relayed(watch, 120)
        assert watch.numbers() == list(range(103, watch.numbers()[-1] + 1))
        assert watch.numbers()[-1] > last

    relay_scenario(tmp_path, play)
