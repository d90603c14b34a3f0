"""Backups in virtual time: failed over to, joined where the programme is, and left again without flapping."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

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


def test_without_a_backup_a_silent_source_is_waited_for(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        later(40, watch, silent=True)
        later(52, watch, silent=False)
        await relayed(watch, 120)
        assert watch.operator.stream.source == URL

    assert scenario(tmp_path, play).cuts() == []
