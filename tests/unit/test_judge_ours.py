"""The judge and our own playlists: what the relay publishes breaks no rule, whatever it lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.hls.advance import advance
from hlsrelay.hls.render import media_playlist, multivariant_playlist
from hlsrelay.hls.tracks import media_playlist_alone
from hlsrelay.hls.window import Progress, slide
from hlsrelay.judge import Judge, Severity
from hlsrelay.model import SOURCE, Entry, MediaFile, Traits
from tests.playlists import Listed, at, live, stream
from tests.unit.judging import HEADERS, RANGE, media
from tests.unit.test_window import POSITION

TRAITS = {SOURCE: Traits("avc1.64001f,mp4a.40.2", 1280, 720, 30.0), "360p": Traits("avc1.64001e,mp4a.40.2", 640, 360, 30.0)}
TRAITS["480p"] = Traits("avc1.64001e,mp4a.40.2", 854, 480, 30.0)
BASE = "https://relay.example/live/news/"
_ROW = st.tuples(st.floats(0.5, 4.4), st.booleans(), st.booleans(), st.integers(1, 5000))


def relayed(rows: list[tuple[float, bool, bool, int]], rungs_of: Callable[[int], tuple[str, ...]], window_s: float) -> Judge:
    """Drive the relay's own window and renderer, and let the judge read all that they publish."""
    judge = Judge()
    progress, now_s = Progress(POSITION, 4), 0.0
    for number, (duration_s, discontinuity, lost, packets) in enumerate(rows):
        rungs = rungs_of(number)
        files = {name: MediaFile(f"{number}.ts", packets * 188, traits=TRAITS[name]) for name in (SOURCE, *rungs)}
        entry = Entry(number, duration_s, discontinuity, at(now_s), {} if lost else files, rungs)
        now_s += duration_s
        progress = slide(progress, entry, replace(POSITION, last_number=number), window_s, at(now_s))
        for rendition in progress.renditions:
            judge.playlist(f"{BASE}{rendition.name}/index.m3u8", media_playlist(progress, rendition.name).encode(), HEADERS, now_s)
        if any(one.total_s for one in progress.renditions):
            judge.playlist(
                f"{BASE}index.m3u8",
                multivariant_playlist(media_playlist_alone("https://origin.example/live.m3u8"), {SOURCE: progress}).encode(),
                HEADERS,
                now_s + 0.01,
            )
        for rendition in progress.renditions:
            if (file := progress.entries[-1].files.get(rendition.name)) is not None and not file.uri.startswith("../"):
                judge.media(f"{BASE}{rendition.name}/{file.uri}", 200, file.size_bytes, None, now_s + 0.02)
    return judge


def broken(judge: Judge) -> list[str]:
    return [f"{one.rule} {one.where.removeprefix(BASE)}: {one.text}" for one in judge.findings if one.severity is Severity.ERROR]


@given(st.lists(_ROW, min_size=1, max_size=60), st.floats(6, 60))
def test_what_the_relay_publishes_breaks_no_rule(rows: list[tuple[float, bool, bool, int]], window_s: float) -> None:
    assert broken(relayed(rows, lambda _: ("360p",), window_s)) == []


@given(st.lists(_ROW, min_size=1, max_size=60), st.lists(st.sampled_from([(), ("360p",), ("480p", "360p")]), min_size=60, max_size=60))
def test_what_the_relay_publishes_breaks_no_rule_when_its_ladder_changes(
    rows: list[tuple[float, bool, bool, int]], rungs: list[tuple[str, ...]]
) -> None:
    assert broken(relayed(rows, lambda number: rungs[number], 24.0)) == []


def test_a_rung_that_comes_states_what_all_that_it_lists_is() -> None:
    judge = relayed([(4.0, False, False, 1000)] * 4, lambda number: ("360p",) if number >= 3 else (), 24.0)
    judge.media(f"{BASE}source/2.ts", 200, 1000 * 188, media(2), 16.0)
    assert broken(judge) == []


def published(entries: list[Entry]) -> Judge:
    """Publish *entries* one after the other, of the source alone."""
    judge, progress = Judge(), Progress(POSITION, 4)
    for entry in entries:
        progress = slide(progress, entry, replace(POSITION, last_number=entry.number), 24.0, entry.program_date_time)
        judge.playlist(f"{BASE}source/index.m3u8", media_playlist(progress, SOURCE).encode(), None, entry.number * 4.0)
    return judge


def plain(number: int, **changes: object) -> Entry:
    entry = Entry(number, 4.0, False, at(number * 4), {SOURCE: MediaFile(f"{number}.ts", 1000)})
    return replace(entry, **changes)  # type: ignore[arg-type]


def test_a_daterange_stays_as_long_as_it_maps_to_a_listed_segment() -> None:
    tag = RANGE.format(at(0).isoformat())
    assert broken(published([plain(0, tags=(tag,)), *(plain(number) for number in range(1, 10))])) == []


def test_a_source_that_begins_to_tell_the_time_breaks_no_rule() -> None:
    first = advance(None, live(1, 2, 3).snapshot(), stream(), at(0))
    second = advance(first.position, live(2, 3, Listed(4, pdt=at(1000))).snapshot(), stream(), at(4))
    entries = [
        plain(one.number, program_date_time=one.program_date_time, discontinuity=one.discontinuity) for one in (*first.fresh, *second.fresh)
    ]
    assert broken(published(entries)) == []
