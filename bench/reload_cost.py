"""What one reload of a source costs by how much it lists: `python -m bench.reload_cost [--profile]`.

Prints medians of CPU time over many reloads, each of which brings one new segment, for windows of 6 to 10,000 segments: parsing it,
numbering the new segment, and sliding and printing our window of 60 s. What a load costs after the first may not grow. Times
of so little work say much about caches and the machine: so the longest playlist is made before each reload, as other streams would come
between two in a relay, and beside the times is how many lines of Python one reload runs, which no machine changes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median
from types import FrameType
from typing import Any, TypeVar

from hlsrelay.hls.advance import advance
from hlsrelay.hls.following import Following
from hlsrelay.hls.numbering import Step
from hlsrelay.hls.parse import parse
from hlsrelay.hls.render import media_playlist
from hlsrelay.hls.window import Progress, slide
from hlsrelay.model import SOURCE, Entry, MediaFile, Position, Presentation, Snapshot, Stream

WINDOWS = (6, 60, 900, 10_000)
SEGMENT_S = 4
WINDOW_S = 60.0
URL = "https://origin.example/live/index.m3u8"
T0 = datetime(2026, 1, 1, tzinfo=UTC)
STREAM = Stream("bench", URL, window_s=WINDOW_S)
PARTS = ("parse", "advance", "slide and print")
ALL = (*PARTS, "a reload")
LINES = ("parse, lines", "advance, lines", "slide and print, lines")
FIRST = "first load"
FULL = 80
"""After so many reloads our window is full, and so is what is remembered of what went by."""

T = TypeVar("T")


def playlist(first: int, count: int) -> bytes:
    """Return a source's playlist of *count* segments, each with its PROGRAM-DATE-TIME, as most encoders write it."""
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{SEGMENT_S}", f"#EXT-X-MEDIA-SEQUENCE:{first}"]
    for number in range(first, first + count):
        when = T0 + timedelta(seconds=number * SEGMENT_S)
        lines += [f"#EXT-X-PROGRAM-DATE-TIME:{when.isoformat()}", f"#EXTINF:{SEGMENT_S:.5f},", f"segment-{number}.ts?token=abcdef"]
    return "\n".join([*lines, ""]).encode()


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what *work* gives, and its CPU time in microseconds."""
    begun_ns = time.thread_time_ns()
    result = work()
    return result, (time.thread_time_ns() - begun_ns) / 1000


def counted(work: Callable[[], object]) -> int:
    """Return how many lines of Python *work* runs."""
    lines = 0

    def trace(_frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    gc.disable()  # what it calls is not the work's
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
        gc.enable()
    return lines


def snapshot_of(body: bytes) -> Snapshot:
    """Parse a media playlist."""
    found = parse(body, URL)
    assert not isinstance(found, Presentation)
    return found


def reloads(count: int, times: int) -> dict[str, float]:
    """Return the median microseconds of each part of a reload, of a source that lists *count* segments, and the lines of the last one."""
    spent: dict[str, list[float]] = {part: [] for part in PARTS}
    lines = dict.fromkeys(LINES, 0)
    position: Position | None = None
    progress: Progress | None = None
    following, first_us = Following(), 0.0
    for turn in range(times + FULL):
        playlist(1000 + turn, max(WINDOWS))  # so that all windows find caches as empty
        body = playlist(1000 + turn, count)
        now = T0 + timedelta(seconds=turn * SEGMENT_S)

        def read(body: bytes = body, following: Following = following) -> Snapshot | None:
            return following.read_on(body, URL)

        def read_anew(body: bytes = body, following: Following = following) -> tuple[Snapshot | Presentation, Following]:
            return following.read_anew(body, URL, {})

        found, parse_us = timed(read)
        if found is None:
            (anew, following), first_us = timed(read_anew)
            assert isinstance(anew, Snapshot)
            found = anew

        def numbered(old: Position | None = position, new: Snapshot = found, now: datetime = now) -> Step:
            return advance(old, new, STREAM, now)

        step, advance_us = timed(numbered)
        last = turn == times + FULL - 1
        lines["advance, lines"] = counted(numbered) if last else 0
        position = step.position
        for new in step.fresh:
            file = MediaFile(f"{new.number}.ts", 1_000_000)
            entry = Entry(new.number, new.segment.duration_s, new.discontinuity, new.program_date_time, {SOURCE: file})
            before = progress or Progress(new.position, SEGMENT_S)

            def slid(before: Progress = before, entry: Entry = entry, at: Position = new.position, now: datetime = now) -> Progress:
                after = slide(before, entry, at, WINDOW_S, now)
                media_playlist(after, SOURCE)
                return after

            progress, slide_us = timed(slid)
            lines["slide and print, lines"] = counted(slid) if last else 0
        if turn >= FULL and len(step.fresh) == 1:
            for part, us in zip(PARTS, (parse_us, advance_us, slide_us), strict=True):
                spent[part].append(us)
    body = playlist(1000 + times + FULL, count)
    lines["parse, lines"] = counted(lambda: following.read_on(body, URL))
    return {FIRST: first_us} | {part: median(all_us) for part, all_us in spent.items()} | lines


def profiled(count: int, times: int) -> None:
    """Print where the time of parsing goes."""
    body = playlist(1000, count)
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(times):
        snapshot_of(body)
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(18)


def main() -> None:
    """Measure, and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--times", type=int, default=200, help="reloads of the small windows; large ones get fewer")
    options.add_argument("--profile", action="store_true", help="print where parsing 900 segments spends its time")
    chosen = options.parse_args()
    if chosen.profile:
        profiled(900, 20)
        return
    print(
        f"{'segments':>9}{FIRST + ', us':>16}  "
        + "  ".join(f"{part + ', us':>23}" for part in ALL)
        + "".join(f"{part:>24}" for part in LINES)
    )
    base: dict[str, float] = {}
    for count in WINDOWS:
        found = reloads(count, max(20, min(chosen.times, chosen.times * 600 // count)))
        found["a reload"] = sum(found[part] for part in PARTS)
        base = base or found
        print(
            f"{count:>9}{found[FIRST]:>16.0f}  "
            + "  ".join(f"{found[part]:>13.1f} {'x' + format(found[part] / base[part], '.2f'):>9}" for part in ALL)
            + "".join(f"{found[part]:>24.0f}" for part in LINES),
            flush=True,
        )


if __name__ == "__main__":
    main()
