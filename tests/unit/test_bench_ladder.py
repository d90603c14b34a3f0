"""The bench of the ladder: its figures are what they say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.content import FRAME_RATE, SCENES, SEGMENT_S, scenes_graph
from bench.instructions import counted, summary
from bench.ladder import Pass, Row, rate_rows, speed_rows, table
from bench.quality import Packets, read_off
from hlsrelay.codecs import BUFSIZE, MAXRATE
from hlsrelay.model import Rung

RUNG = Rung("360p", 360, 600)
PER_PICTURE = RUNG.video_kbps * 1000 // 8 // FRAME_RATE  # bytes of a picture at exactly the named bitrate


def taken(cpu_s: float, *latencies: float, mib: float = 100.0) -> Pass:
    return Pass(cpu_s, mib, {}, latencies)


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_cpu_time_is_the_median_pass_for_a_minute_of_source() -> None:
    ours = [taken(4.0, 0.5), taken(9.0, 0.5), taken(5.0, 0.5)]
    theirs = [taken(10.0), taken(10.0), taken(1.0)]
    row = by_name(speed_rows(ours, theirs, theirs, source_s=12))["CPU s per source-minute"]
    assert (row.ours, row.theirs, row.ratio) == (25.0, 50.0, 0.5)


def test_latency_is_over_all_segments_of_all_passes_and_the_best_pass_is_a_whole_one() -> None:
    rows = by_name(speed_rows([taken(1, 0.1, 0.9, 0.8), taken(1, 0.4, 0.5, 0.3)], [taken(1)], [taken(1)], 60))
    assert rows["latency / duration, median"].ours == pytest.approx(0.45)
    assert rows["latency / duration, best pass"].ours == 0.4
    assert rows["latency / duration, worst"].ours == 0.9


def test_the_bitrate_is_that_of_the_pictures_whatever_the_segments() -> None:
    steady = Packets(((PER_PICTURE,) * 30, (PER_PICTURE,) * 90))
    twice = Packets(((2 * PER_PICTURE,) * 30, (PER_PICTURE,) * 30))
    row = by_name(rate_rows(RUNG, steady, twice))["360p bitrate / named"]
    assert row.ours == pytest.approx(1.0)
    assert row.theirs == pytest.approx(1.5)


def test_a_segment_above_the_vbv_shows_though_the_mean_is_low() -> None:
    allowed = round(RUNG.video_kbps * (MAXRATE * 6 + 0.9 * BUFSIZE) * 1000 / 8)
    full = (allowed // 180,) * 180
    assert Packets((full, (1,) * 180)).worst_share(RUNG) == pytest.approx(1.0, rel=0.01)
    assert Packets(((1,) * 180, tuple(size + size // 10 for size in full))).worst_share(RUNG) == pytest.approx(1.1, rel=0.01)


def test_the_buffer_carries_over_from_one_segment_to_the_next() -> None:
    third = round(RUNG.video_kbps * BUFSIZE * 1000 / 8 / 3)
    apart = Packets(((third, *(0,) * 179), (third, *(0,) * 179)))
    at_the_joint = Packets((((0,) * 179 + (third,)), (third, *(0,) * 179)))
    assert apart.buffer_needed(RUNG) == pytest.approx(1 / 3, rel=0.01)
    assert at_the_joint.buffer_needed(RUNG) == pytest.approx(2 / 3, rel=0.05)


def test_quality_is_read_off_at_the_bitrate_asked_for_between_the_two_nearest_points() -> None:
    assert read_off(1000, [(1000, 90.0), (2000, 96.0)]) == pytest.approx(90.0)
    assert read_off(2**0.5 * 1000, [(2000, 96.0), (1000, 90.0)]) == pytest.approx(93.0)
    assert read_off(1000, [(1000.1, 90.0), (1000.2, 91.0)]) == pytest.approx(90.5)  # no slope from two points that are one


def test_a_figure_that_one_side_lacks_has_no_ratio() -> None:
    printed = table([Row("latency", 0.4, None), Row("CPU", 45.0, 50.0)]).splitlines()
    assert printed[1].split() == ["latency", "0.400", "-", "-"]
    assert printed[2].split() == ["CPU", "45.000", "50.000", "0.900"]


def test_scenes_come_round_until_there_are_enough_and_none_is_cut_where_a_segment_is() -> None:
    ends = [sum(seconds for seconds, _ in SCENES[:count]) for count in range(1, len(SCENES) + 1)]
    assert all(abs(end / SEGMENT_S - round(end / SEGMENT_S)) > 0.05 for end in ends[:-1])
    assert "concat=n=2" in scenes_graph(SCENES[0][0] + 1)
    assert f"concat=n={len(SCENES) + 1}" in scenes_graph(ends[-1] + 1)


CACHEGRIND = "desc: I1 cache: 32768 B\ncmd: ffmpeg\nevents: Ir\nfl=a.c\nfn=main\n10 500\nfl=b.c\nfn=summary\n3 1700\nsummary: 2200\n"


def test_instructions_are_those_of_all_functions(tmp_path: Path) -> None:
    asked: list[Sequence[str]] = []

    async def run(argv: Sequence[str]) -> None:
        asked.append(argv)
        (tmp_path / "told").write_text(CACHEGRIND)

    assert asyncio.run(counted(run, Path("/usr/bin/valgrind"), ["ffmpeg", "-i", "a.ts"], tmp_path / "told")) == 2200
    assert asked[0][0] == "/usr/bin/valgrind"
    assert asked[0][-3:] == ["ffmpeg", "-i", "a.ts"]


@pytest.mark.parametrize("told", ["", "events: Ir\nfn=main\n1 2\n", CACHEGRIND.replace("events: Ir", "events: Ir Dr")])
def test_a_count_that_was_cut_short_or_is_of_something_else_is_none(told: str) -> None:
    with pytest.raises(ValueError, match="cachegrind"):
        summary(told)
