"""The fault table in virtual time: each row through the whole pipeline, and the judge reads every state that is published."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hlsrelay.upstream import Upstream
from tests.fault_watch import Watch, in_virtual_time
from tests.faults import FAULTS
from tests.faulty_source import Fault, Source
from tests.needs import NIGHTLY
from tests.virtual import VirtualClock, run_virtually

BASE = "https://origin.example/live"
TARGET_S = 4.0


def relayed(fault: Fault, live: Path, *, dated: bool = False) -> Watch:
    """Run one row in virtual time."""

    async def run() -> Watch:
        source = Source(fault, BASE, TARGET_S, asyncio.get_running_loop().time, dated=dated)
        watch = Watch(source, live)
        async with Upstream(transport=in_virtual_time(source)) as upstream:
            await watch.relay(upstream, VirtualClock(), fault.runs_td)
        return watch

    return run_virtually(run())


def test_a_good_source_is_relayed_without_a_repair(tmp_path: Path) -> None:
    watch = relayed(Fault("good", "nothing is wrong"), tmp_path)
    assert watch.complaints() == []
    assert watch.counts() == {}
    assert len(watch.shown) >= 25


ROWS = [(fault, dated) for index, fault in enumerate(FAULTS) for dated in (False, True) if NIGHTLY or dated == bool(index % 2)]
"""Each fault both ways at night, by day one way in turn."""


@pytest.mark.parametrize(("fault", "dated"), ROWS, ids=[f"{fault.name}{'-dated' if dated else ''}" for fault, dated in ROWS])
def test_viewers_play_on_by_the_rules_whatever_the_source_does(fault: Fault, dated: bool, tmp_path: Path) -> None:
    """*dated*: every segment has a PROGRAM-DATE-TIME, by which the relay may recognise it."""
    watch = relayed(fault, tmp_path, dated=dated)
    assert watch.complaints() == [], fault.how
