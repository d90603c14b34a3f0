"""When a child is hung, by the laws of hlsrelay.progress."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hlsrelay.progress import HUNG_AFTER_S, PERIOD_S, Progress, Watch, parse

BLOCK = """frame=50
fps=0.00
bitrate= 300.8kbits/s
total_size=70688
out_time_us=1880011
out_time_ms=1880011
out_time=00:00:01.880011
speed=12.3x"""
STUCK = Progress(7, 0.28, 900, 1.0)


def hung_at(
    cpu_s: Callable[[float], float] = lambda now_s: 1.0,
    progress: Callable[[float], Progress | None] = lambda now_s: STUCK,
    runnable: Callable[[float], bool] = lambda now_s: False,
    period_s: float = PERIOD_S,
    until_s: float = 60.0,
) -> float | None:
    """Return after how many seconds a child that does so is hung."""
    watch, now_s = Watch(0.0), 0.0
    while now_s < until_s:
        now_s += period_s
        if watch.hung(now_s, progress(now_s), cpu_s(now_s), runnable=runnable(now_s)):
            return now_s
    return None


def test_a_block_of_ffmpegs_is_read() -> None:
    pairs = dict(line.split("=", 1) for line in BLOCK.splitlines())
    assert parse(pairs) == Progress(50, 1.880011, 70688, 12.3)


@pytest.mark.parametrize("value", ["N/A", "", "nan", "inf", "1e400", "x"])
def test_what_is_no_number_is_not_known(value: str) -> None:
    assert parse(dict.fromkeys(("frame", "out_time_us", "total_size", "speed"), value)) == Progress()


def test_who_waits_and_gets_nowhere_is_hung_after_five_seconds() -> None:
    assert hung_at() == HUNG_AFTER_S + PERIOD_S  # the first look is where it begins
    assert hung_at(progress=lambda now_s: None) == HUNG_AFTER_S + PERIOD_S


@pytest.mark.parametrize("name", ["frame", "out_time_s", "size_bytes"])
def test_any_figure_that_moves_is_progress(name: str) -> None:
    assert hung_at(progress=lambda now_s: Progress(**{name: int(now_s / 4)})) is None


def test_a_speed_that_changes_alone_is_none() -> None:
    assert hung_at(progress=lambda now_s: Progress(7, 0.28, 900, 1 / now_s)) == HUNG_AFTER_S + PERIOD_S


def test_cpu_time_is_progress_but_not_the_little_that_timers_cost() -> None:
    assert hung_at(cpu_s=lambda now_s: now_s / 50) is None
    assert hung_at(cpu_s=lambda now_s: 1 + now_s / 1000) is not None


def test_who_gets_no_core_is_starved_and_not_hung() -> None:
    assert hung_at(runnable=lambda now_s: True) is None


def test_what_was_not_watched_does_not_count() -> None:
    assert hung_at(period_s=8.0, until_s=48.0) is None
    found = hung_at(period_s=8.0, until_s=200.0)
    assert found is not None
    assert found >= 8 * HUNG_AFTER_S / PERIOD_S


def test_progress_in_between_begins_the_patience_anew() -> None:
    assert hung_at(progress=lambda now_s: Progress(1 if now_s < 4.9 else 2)) == pytest.approx(4.9 + HUNG_AFTER_S, abs=PERIOD_S)
