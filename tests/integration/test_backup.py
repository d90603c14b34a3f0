"""Backups in virtual time: failed over to, joined where the programme is, and left again without flapping."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from tests.integration.relaying import Watching, relayed, scenario
from tests.origin import Origin
from tests.playlists import URL

BASE = "https://backup.example/x"


def backed(watch: Watching) -> Origin:
    watch.operator.stream = replace(watch.operator.stream, backups=(f"{BASE}/live.m3u8",), hold_s=30.0)
    return Origin(name="backup", base=BASE, first=7000, pdt=watch.origin.pdt)


def later(seconds: float, watch: Watching, silent: bool) -> None:
    asyncio.get_running_loop().call_later(seconds, lambda: setattr(watch.origin, "silent", silent))


@pytest.mark.parametrize("pdt", [False, True], ids=["without PDT", "with PDT"])
def test_a_silent_primary_is_left_within_the_stall_time_at_one_discontinuity(tmp_path: Path, pdt: bool) -> None:
    async def play(watch: Watching) -> None:
        backup = backed(watch)
        later(40, watch, silent=True)
        await relayed(watch, 120, backup)
        assert set(backup.sent.values()) & {watch.storage.read(f"source/{number}.ts") for number in watch.numbers()[-5:]}

    watch = scenario(tmp_path, play, Origin(pdt=pdt))
    assert len(watch.cuts()) == 1
    assert watch.gaps() == []
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))
    assert len(watch.numbers()) >= (120 - 15) / 4
    if pdt:
        times = watch.times()
        assert all((later - earlier).total_seconds() == pytest.approx(4.0, abs=0.5) for earlier, later in pairwise(times))


def test_the_primary_is_taken_back_after_the_hold_and_not_before(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        backup = backed(watch)
        later(40, watch, silent=True)
        later(80, watch, silent=False)
        await relayed(watch, 105, backup)
        assert len(watch.cuts()) == 1
        await relayed(watch, 200, backup)

    watch = scenario(tmp_path, play)
    assert len(watch.cuts()) == 2
    assert watch.gaps() == []


def test_a_primary_that_comes_and_goes_never_makes_us_flap(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        backup = backed(watch)
        for turn in range(12):
            later(40 + turn * 20, watch, silent=turn % 2 == 0)
        await relayed(watch, 280, backup)

    watch = scenario(tmp_path, play)
    assert len(watch.cuts()) <= 2
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))


@pytest.mark.parametrize(
    ("lacks", "answer", "tag"),
    [
        (".ts", httpx.Response(403), ""),
        (".ts", httpx.Response(200, text="<p>please try again</p>"), ""),
        (".mp4", httpx.Response(403), '#EXT-X-MAP:URI="i.mp4"'),
        (".key", httpx.Response(403), '#EXT-X-KEY:METHOD=AES-128,URI="k.key"'),
        (".key", httpx.Response(200, text="no"), '#EXT-X-KEY:METHOD=AES-128,URI="k.key"'),
        ("", None, "#EXT-X-GAP"),
    ],
    ids=["segments", "a page for segments", "init section", "key", "a page for the key", "only gaps"],
)
def test_a_primary_whose_playlist_goes_on_is_not_taken_back_before_what_it_lists_can_be_had(
    tmp_path: Path, lacks: str, answer: httpx.Response | None, tag: str
) -> None:
    origin = Origin()

    def fault(request: httpx.Request) -> httpx.Response | None:
        path, now_s = request.url.path, asyncio.get_running_loop().time()
        if 40 <= now_s < 80:
            return httpx.Response(503)
        if path.endswith(".m3u8"):
            tags = tag if "GAP" not in tag or 80 <= now_s < 200 else ""
            return httpx.Response(200, text=origin.playlist().text().replace("#EXTINF", f"{tags}\n#EXTINF"))
        if answer and path.endswith(lacks) and 80 <= now_s < 200:
            return answer
        return httpx.Response(200, content=b"0123456789abcdef") if path.endswith(".key") else None

    async def play(watch: Watching) -> None:
        backup = backed(watch)
        origin.fault = fault
        await relayed(watch, 200, backup)
        assert len(watch.cuts()) == 1
        await relayed(watch, 270, backup)
        assert len(watch.cuts()) == 2

    assert scenario(tmp_path, play, origin).gaps() == []


def test_a_primary_that_is_well_until_it_is_taken_back_is_taken_back_more_and_more_rarely(tmp_path: Path) -> None:
    origin, asked_s = Origin(), [0.0]

    def fault(request: httpx.Request) -> httpx.Response | None:
        now_s = asyncio.get_running_loop().time()
        if now_s < 40 or not request.url.path.endswith(".ts"):
            return None
        before_s, asked_s[0] = asked_s[0], now_s
        return httpx.Response(403) if now_s - before_s < 20 else None  # it breaks down where more than one is asked for

    async def play(watch: Watching) -> None:
        origin.fault = fault
        await relayed(watch, 600, backed(watch))

    watch = scenario(tmp_path, play, origin)
    relayed_from = [tick.turn.stream.source for tick in watch.ticks if tick.turn]
    assert 2 <= sum(before != URL and now == URL for before, now in pairwise(relayed_from)) <= 4  # after 30, 60, 120 and 240 seconds


def test_without_a_backup_a_silent_source_is_waited_for(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        later(40, watch, silent=True)
        later(52, watch, silent=False)
        await relayed(watch, 120)
        assert watch.operator.stream.source == URL

    assert scenario(tmp_path, play).cuts() == []
