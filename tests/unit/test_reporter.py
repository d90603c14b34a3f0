"""What others see of a relay: each fault told once while it lasts and again when it comes again, repairs by name."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hlsrelay.clock import Clock
from hlsrelay.hls.advance import advance
from hlsrelay.link import Link
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.model import Made, Numbered, Turn
from hlsrelay.node import Node
from hlsrelay.processes import Children
from hlsrelay.relay import Tick
from hlsrelay.reporter import Reporter
from hlsrelay.settings import load_settings
from tests.integration.relaying import NoEncoder
from tests.playlists import at, gap, live, stream
from tests.unit.test_window import entry

ID = "news"


class StandingClock(Clock):
    def monotonic_s(self) -> float:
        return 0.0

    def utc_now(self) -> datetime:
        return at(0)


class Told(Link):
    """A link that keeps what is reported."""

    def __init__(self) -> None:
        super().__init__(MemoryRegistry(), ID)
        self.fields: dict[str, str] = {}

    def report(self, **fields: str) -> None:
        self.fields |= fields


class Reported:
    """A reporter, and what it told."""

    def __init__(self, folder: Path) -> None:
        self.link = Told()
        self.node = Node(load_settings(), folder, MemoryRegistry(), Children(), NoEncoder(), clock=StandingClock())
        self.reporter = Reporter(self.link, ID, self.node)

    def events(self, *ticks: Tick) -> list[str]:
        """Return the log's events of these ticks."""
        with capture_logs() as lines:
            for tick in ticks:
                self.reporter.tick(tick)
        return [line["event"] for line in lines]

    def repairs(self) -> dict[str, int]:
        return {name: int(count) for name, _, count in (pair.partition("=") for pair in self.link.fields.get("repairs", "").split())}


@pytest.fixture
def reported(tmp_path: Path) -> Reported:
    return Reported(tmp_path)


NUMBERED: Numbered = advance(None, live(0).snapshot(), stream(), at(0)).fresh[0]
MADE = Made(entry(0), NUMBERED)
GOOD = Tick(None, "source", MADE)
FULL = replace(GOOD, error="can't publish: No space left on device")


def test_a_disk_that_is_full_again_is_told_again(reported: Reported) -> None:
    assert reported.events(FULL, FULL) == ["publish.failed"]
    assert reported.events(GOOD, GOOD) == ["publish.recovered"]
    assert reported.events(FULL) == ["publish.failed"]


def test_a_track_that_can_be_published_takes_back_no_other_tracks_fault(reported: Reported) -> None:
    assert reported.events(replace(FULL, track="audio-en"), GOOD) == ["publish audio-en.failed"]
    assert reported.events(replace(GOOD, track="audio-en")) == ["publish audio-en.recovered"]


def test_a_rung_that_fails_again_is_told_again_and_a_lost_segment_takes_nothing_back(reported: Reported) -> None:
    failing = replace(GOOD, made=replace(MADE, failed={"360p": "no room"}))
    other = replace(GOOD, made=replace(MADE, failed={"480p": "no room"}))
    lost = replace(GOOD, made=Made(replace(entry(0), files={}), NUMBERED, lost="HTTP 404"))
    assert reported.events(failing, failing) == ["rung 360p.failed"]
    assert reported.events(lost) == ["segment.lost"]
    assert reported.events(failing) == []
    assert reported.events(other) == ["rung 480p.failed", "rung 360p.recovered"]
    assert reported.events(GOOD, failing) == ["rung 480p.recovered", "rung 360p.failed"]


def test_overload_is_told_once_counted_and_over_when_ten_segments_had_every_rung(reported: Reported) -> None:
    short = replace(GOOD, made=replace(MADE, dropped={"720p": "overload"}))
    assert reported.events(short, GOOD, short, GOOD) == ["ladder 720p.failed"]
    assert reported.link.fields["ladder_trouble"] == "overloaded: 720p dropped 2 of the last 4"
    assert "ladder 720p: overload" in reported.link.fields["last_error"]
    assert reported.events(*[GOOD] * 9) == ["ladder 720p.recovered"]
    assert reported.link.fields["ladder_trouble"] == ""
    figure = reported.node.metrics.registry.get_sample_value
    assert figure("hlsrelay_rung_gaps_total", {"stream": ID, "rung": "720p", "reason": "overload"}) == 2
    assert not figure("hlsrelay_rung_gaps_total", {"stream": ID, "rung": "720p", "reason": "failure"})


def test_a_paused_ladder_is_told_while_it_is_paused(reported: Reported) -> None:
    paused = replace(GOOD, made=replace(MADE, failed={"720p": "the ladder is paused"}, ladder_paused=True))
    figure = reported.node.metrics.registry.get_sample_value
    reported.events(paused)
    assert reported.link.fields["ladder_trouble"] == "paused: the ladder is paused"
    assert figure("hlsrelay_ladder_paused", {"stream": ID}) == 1
    reported.events(GOOD)
    assert reported.link.fields["ladder_trouble"] == ""
    assert figure("hlsrelay_ladder_paused", {"stream": ID}) == 0


def test_a_field_that_was_put_right_may_be_wrong_again(reported: Reported) -> None:
    for _ in range(2):
        reported.link.fields.clear()
        reported.reporter.fault("field", "window is 'x'")
        assert reported.link.fields["last_error"].endswith("field: window is 'x'")
        reported.reporter.well("field")


def test_what_could_not_be_had_is_a_repair_and_a_gap_of_the_sources_is_none(reported: Reported) -> None:
    absent = advance(None, live(gap(0)).snapshot(), stream(), at(0)).fresh[0]
    bare = replace(entry(0), files={})
    reported.events(replace(GOOD, made=Made(bare, NUMBERED, lost="HTTP 404")), replace(GOOD, made=Made(bare, absent, lost="a gap")))
    assert reported.repairs() == {"segment_lost": 1}


def test_each_load_that_failed_is_counted(reported: Reported) -> None:
    failed = Tick(None, "source", turn=Turn(stream(), error="HTTP 503", repairs=("track_fell_behind",)))
    reported.events(failed, failed, Tick(None, "source", turn=Turn(stream())))
    assert reported.repairs() == {"load_failed": 2, "track_fell_behind": 2}
    figure = reported.node.metrics.registry.get_sample_value
    assert figure("hlsrelay_repairs_total", {"stream": ID, "repair": "load_failed"}) == 2
