"""Tracks of one presentation stay in step (RFC 8216 6.2.4) whatever one of them does alone: the judge reads all that is published."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from hlsrelay.clock import Nudges
from hlsrelay.judge import Judge, Severity
from hlsrelay.relay import Tick
from hlsrelay.storage import LocalStorage
from tests.integration.relaying import Operator
from tests.integration.test_presentation import MASTER, NAMES, Show
from tests.origin import Origin
from tests.playlists import URL, stream
from tests.virtual import run_virtually

WHERE = "https://relay.example/live/news/"
OTHER = "https://other.example/live"


class Watched(LocalStorage):
    """A folder whose every published playlist the judge reads."""

    def __init__(self, live: Path) -> None:
        super().__init__(live, "news")
        self.judge = Judge()

    def publish(self, playlist: str, text: str) -> None:
        super().publish(playlist, text)
        self.judge.playlist(WHERE + playlist, text.encode(), None, asyncio.get_running_loop().time())

    def broken(self) -> list[str]:
        """Return the rules that what was published broke; what the media are is not looked at."""
        return [f"{one.rule} {one.where.removeprefix(WHERE)}: {one.text}" for one in self.judge.findings if one.severity is Severity.ERROR]


def shown(live: Path, play: Callable[[Show], Awaitable[None]], *, pdt: bool) -> tuple[Show, list[str]]:
    async def run() -> tuple[Show, list[str]]:
        base = URL.rpartition("/")[0]
        origins = {track: Origin(name=track, base=f"{base}/{track}", pdt=pdt) for track in NAMES}
        with Watched(live) as storage:
            made = Show(storage, Operator(stream(window_s=30.0)), Nudges(), origins, [])
            await play(made)
            return made, storage.broken()

    return run_virtually(run())


def later(at_s: float, what: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_at(at_s, what)


dated = pytest.mark.parametrize("pdt", [False, True], ids=["undated", "dated"])


@dated
def test_tracks_of_a_good_source_are_in_step(tmp_path: Path, pdt: bool) -> None:
    _, broken = shown(tmp_path, lambda show: show.relayed(200), pdt=pdt)
    assert broken == []


@pytest.mark.parametrize("late", ["high", "en"])
@pytest.mark.parametrize("track", ["high", "en"])
def test_a_moment_has_one_date_though_a_track_lists_less_at_first_or_can_not_be_had(tmp_path: Path, track: str, late: str) -> None:
    async def play(show: Show) -> None:
        origin = show.origins[track]
        origin.first, origin.began_s = origin.first - 1, -3.5  # what it lists is half a second behind: the newest segment is not there yet
        asked = iter([None, httpx.Response(503)])
        show.origins[late].fault = lambda request: next(asked, None) if request.url.path.endswith(".m3u8") else None
        await show.relayed(60)

    show, broken = shown(tmp_path, play, pdt=False)
    assert broken == []
    ours = {name: {one.sequence: one.program_date_time for one in show.listed(NAMES[name]).segments} for name in ("high", "en", "low")}
    for name in ("en", "low"):
        both = ours["high"].keys() & ours[name].keys()
        assert len(both) >= 5
        assert {number: ours[name][number] for number in both} == {number: ours["high"][number] for number in both}


@pytest.mark.parametrize("behind", [2, 3])
@pytest.mark.parametrize("track", ["high", "en"])
def test_tracks_that_tell_their_times_begin_at_one_moment_though_the_edge_of_one_is_behind(tmp_path: Path, track: str, behind: int) -> None:
    async def play(show: Show) -> None:
        show.origins[track].behind = behind
        later(2, lambda: setattr(show.origins[track], "behind", 0))
        await show.relayed(30)

    show, broken = shown(tmp_path, play, pdt=True)
    assert broken == []
    assert len({show.listed(name).segments[0].program_date_time for name in NAMES.values()}) == 1


@dated
@pytest.mark.parametrize("track", ["high", "en"])
def test_a_track_that_stalls_alone_is_filled_up_with_gaps_and_goes_on_where_the_others_are(tmp_path: Path, track: str, pdt: bool) -> None:
    async def play(show: Show) -> None:
        later(40, lambda: setattr(show.origins[track], "fault", lambda _: httpx.Response(503)))
        later(80, lambda: setattr(show.origins[track], "fault", None))
        await show.relayed(75)
        assert show.listed(NAMES[track]).segments[-1].gap
        await show.relayed(160)

    show, broken = shown(tmp_path, play, pdt=pdt)
    assert broken == []
    assert show.discontinuity_sequences() == {0}
    assert not show.listed(NAMES[track]).segments[-1].gap
    assert show.whole(track)


@dated
@pytest.mark.parametrize("behind", [1, 2, 3])
def test_the_media_of_a_track_whose_edge_falls_behind_is_waited_for(tmp_path: Path, behind: int, pdt: bool) -> None:
    async def play(show: Show) -> None:
        later(100, lambda: setattr(show.origins["low"], "behind", behind))
        await show.relayed(160)

    show, broken = shown(tmp_path, play, pdt=pdt)
    assert broken == []
    assert not any(tick.made.numbered.segment.gap for tick in show.ticks if tick.made)


@dated
def test_a_track_whose_edges_stand_still_and_list_less_in_turn_is_filled_up_with_gaps(tmp_path: Path, pdt: bool) -> None:
    async def play(show: Show) -> None:
        def stand_still() -> None:
            listed = itertools.cycle([origin.playlist().text(), replace(origin.playlist(), items=origin.playlist().items[:-1]).text()])
            origin.fault = lambda request: httpx.Response(200, text=next(listed)) if request.url.path.endswith(".m3u8") else None

        origin = show.origins["low"]
        later(41, stand_still)
        later(80, lambda: setattr(origin, "fault", None))
        await show.relayed(78)
        assert show.listed(NAMES["low"]).segments[-1].gap
        await show.relayed(160)

    show, broken = shown(tmp_path, play, pdt=pdt)
    assert broken == []
    assert not show.listed(NAMES["low"]).segments[-1].gap


@dated
@pytest.mark.parametrize("track", ["high", "en"])
def test_a_track_that_loses_its_place_alone_breaks_off_at_the_same_moment_as_the_others(tmp_path: Path, track: str, pdt: bool) -> None:
    async def play(show: Show) -> None:
        later(40, lambda: show.origins[track].restart(track + "2", first=9000))
        await show.relayed(160)

    show, broken = shown(tmp_path, play, pdt=pdt)
    assert broken == []
    assert show.discontinuity_sequences() == {1}
    assert show.whole(track)


@dated
def test_a_reset_of_all_tracks_is_one_discontinuity_at_one_moment(tmp_path: Path, pdt: bool) -> None:
    async def play(show: Show) -> None:
        for delay_s, origin in enumerate(show.origins.values()):
            later(40 + delay_s, lambda origin=origin: origin.restart(origin.name + "2", first=5))  # type: ignore[misc]
        await show.relayed(160)

    show, broken = shown(tmp_path, play, pdt=pdt)
    assert broken == []
    assert show.discontinuity_sequences() == {1}


EMPTY = b"WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:900000,LOCAL:00:00:00.000\n\n"


def with_a_cue_now_and_then(path: str) -> bytes:
    """Return subtitles most of which have no cue."""
    return EMPTY + (f"00:01.000 --> 00:02.000\n{path}\n".encode() if path.removesuffix(".ts").endswith("7") else b"")


@dated
@pytest.mark.parametrize("content", [lambda _: EMPTY, with_a_cue_now_and_then], ids=["no cues", "few cues"])
def test_subtitles_without_cues_are_not_taken_for_those_of_before_a_reset(
    tmp_path: Path, content: Callable[[str], bytes], pdt: bool
) -> None:
    async def play(show: Show) -> None:
        show.origins["de"].content = content
        for origin in show.origins.values():
            later(100, lambda origin=origin: origin.restart(origin.name + "2"))  # type: ignore[misc]
        await show.relayed(160)

    show, broken = shown(tmp_path, play, pdt=pdt)
    assert broken == []
    assert show.discontinuity_sequences() == {1}
    assert [tick.turn.repairs.count("source_reset") for tick in show.ticks if tick.turn and "source_reset" in tick.turn.repairs] == [1] * 4
    assert not any(tick.made.numbered.segment.gap for tick in show.ticks if tick.made)


@pytest.mark.parametrize("behind", [1, 2])
def test_tracks_that_begin_anew_behind_one_that_goes_on_begin_where_it_breaks_off(tmp_path: Path, behind: int) -> None:
    async def play(show: Show) -> None:
        def restart() -> None:
            for origin in (show.origins[track] for track in ("high", "low", "en")):
                origin.restart(origin.name + "2")
                origin.behind = behind

        later(100, restart)
        await show.relayed(200)

    show, broken = shown(tmp_path, play, pdt=True)
    assert broken == [] or behind > 1  # which is more than a target duration, whatever we do
    begins = {tick.made.entry.program_date_time for tick in show.ticks if tick.made and tick.made.entry.discontinuity}
    assert len(begins) == 1
    assert show.discontinuity_sequences() == {1}
    assert len([tick for tick in show.ticks if tick.turn and "source_reset" in tick.turn.repairs]) == 3
    numbers = {one.program_date_time: one.sequence for one in show.listed("source").segments}
    assert [one for one in show.listed("subtitles-de").segments if numbers.get(one.program_date_time, one.sequence) != one.sequence] == []


@dated
def test_another_source_begins_at_one_moment_in_all_tracks(tmp_path: Path, pdt: bool) -> None:
    async def play(show: Show) -> None:
        show.origins |= {f"{track}-2": Origin(name=f"{track}-2", base=f"{OTHER}/{track}", first=7000, pdt=pdt) for track in NAMES}
        await show.relayed(41)
        for track, origin in show.origins.items():
            if track == "low":
                later(43, lambda origin=origin: setattr(origin, "silent", True))  # type: ignore[misc]
        later(50, lambda: setattr(show.operator, "stream", replace(show.operator.stream, source=f"{OTHER}/index.m3u8")))
        later(50, show.nudges.nudge)
        await show.relayed(160)

    show, broken = shown(tmp_path, play, pdt=pdt)
    assert broken == []
    assert show.discontinuity_sequences() == {1}


Lines = Callable[[int], list[str]]
"""The tags before a segment's EXTINF, by its number."""

BREAK = 112


def source_breaks(number: int) -> list[str]:
    return ["#EXT-X-DISCONTINUITY"] if number == BREAK else []


def map_changes(number: int) -> list[str]:
    return [f'#EXT-X-MAP:URI="{"a" if number < BREAK else "b"}.mp4"']


def with_lines(origin: Origin, lines: Lines) -> Callable[[httpx.Request], httpx.Response | None]:
    """Answer as the origin does, with *lines* in its playlist; what ends in mp4 is an init section."""

    def answer(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith(".mp4"):
            return httpx.Response(200, content=request.url.path.encode())
        if not request.url.path.endswith(".m3u8"):
            return None
        text = []
        for line in origin.playlist().text().splitlines():
            if line.startswith("#EXT-X-MEDIA-SEQUENCE:"):
                number = int(line.partition(":")[2])
                text.append(f"#EXT-X-DISCONTINUITY-SEQUENCE:{int(lines is source_breaks and number > BREAK)}")
            if line.startswith("#EXTINF"):
                text += lines(number)
                number += 1
            text.append(line)
        return httpx.Response(200, text="\n".join([*text, ""]))

    return answer


@pytest.mark.parametrize("tracks", [("high",), ("high", "low", "en")], ids=["in one", "in all but subtitles"])
@pytest.mark.parametrize("lines", [source_breaks, map_changes])
def test_a_discontinuity_of_some_tracks_is_one_of_all_at_the_same_moment(tmp_path: Path, lines: Lines, tracks: tuple[str, ...]) -> None:
    async def play(show: Show) -> None:
        for track in tracks:
            show.origins[track].fault = with_lines(show.origins[track], lines)
        await show.relayed(60)

    show, broken = shown(tmp_path, play, pdt=tracks == ("high",))
    assert broken == []
    assert show.discontinuity_sequences() == {1}


@dated
def test_tracks_whose_source_counts_their_discontinuities_differently_from_the_first_agree_on_the_main_tracks_count(
    tmp_path: Path, pdt: bool
) -> None:
    def counted(origin: Origin, count: int) -> Callable[[httpx.Request], httpx.Response | None]:
        def answer(request: httpx.Request) -> httpx.Response | None:
            if not request.url.path.endswith(".m3u8"):
                return None
            head, rest = origin.playlist().text().split("#EXT-X-MEDIA-SEQUENCE", 1)
            return httpx.Response(200, text=f"{head}#EXT-X-DISCONTINUITY-SEQUENCE:{count}\n#EXT-X-MEDIA-SEQUENCE{rest}")

        return answer

    async def play(show: Show) -> None:
        for count, track in enumerate(("low", "high", "en"), start=4):
            show.origins[track].fault = counted(show.origins[track], count)
        await show.relayed(30)

    show, broken = shown(tmp_path, play, pdt=pdt)
    assert broken == []
    assert show.discontinuity_sequences() == {5}


@pytest.mark.parametrize("tracks", [tuple(NAMES), ("high", "low", "de")], ids=["in all", "in the others"])
def test_a_relay_that_ends_while_one_track_is_short_of_a_discontinuity_goes_on_with_one_in_each(
    tmp_path: Path, tracks: tuple[str, ...]
) -> None:
    async def play(show: Show) -> None:
        for track in tracks:
            show.origins[track].fault = with_lines(show.origins[track], source_breaks)
        good = show.origins["en"].fault
        later(27, lambda: setattr(show.origins["en"], "fault", lambda _: httpx.Response(503)))
        await show.relayed(31)
        assert [show.listed(NAMES[track]).segments[-1].sequence for track in ("high", "en")] == [BREAK, BREAK - 1]
        show.origins["en"].fault = good
        await show.relayed(60)

    show, broken = shown(tmp_path, play, pdt=False)
    assert broken == []
    assert show.discontinuity_sequences() == {1}


def test_dates_that_jump_in_one_track_are_a_discontinuity_of_all(tmp_path: Path) -> None:
    async def play(show: Show) -> None:
        later(40, lambda: setattr(show.origins["high"], "began_s", show.origins["high"].began_s + 6.0))
        await show.relayed(80)

    show, _ = shown(tmp_path, play, pdt=True)
    assert show.discontinuity_sequences() == {1}


def test_a_source_that_lacks_a_track_all_at_once_is_surveyed_again(tmp_path: Path) -> None:
    async def play(show: Show) -> None:
        def drop() -> None:
            show.master = "\n".join(line for line in MASTER.split("\n") if "TYPE=SUBTITLES" not in line).replace(',SUBTITLES="s"', "")
            show.origins["de"].fault = lambda _: httpx.Response(404)

        later(40, drop)
        await show.relayed(120)

    show, broken = shown(tmp_path, play, pdt=False)
    assert "subtitles" not in show.text().lower()
    assert show.listed("subtitles-de").segments[-1].gap
    assert all(show.whole(track) for track in ("high", "low", "en"))
    assert broken == []


def test_a_track_that_is_gone_while_it_is_behind_the_others_is_given_up_at_once(tmp_path: Path) -> None:
    """Another of its size comes in its place."""
    expired = iter([httpx.Response(404)])

    def change(show: Show) -> None:
        show.master = MASTER.replace("640x360", "480x270")
        show.origins["low"].fault = lambda request: next(expired, None) if request.url.path.endswith(".m3u8") else None

    async def play(show: Show) -> None:
        show.origins["low"].began_s = 0.2
        show.ticks = Bounded()
        later(58, lambda: change(show))
        await show.relayed(100)
        assert not any(segment.gap for segment in show.listed("v270p-900k").segments)

    show, _ = shown(tmp_path, play, pdt=True)
    assert sum("no track 'v360p-900k'" in tick.turn.error for tick in show.ticks if tick.turn) == 1


class Bounded(list[Tick]):
    """Ticks of a few minutes at most: time that stands still is noticed."""

    def append(self, tick: Tick) -> None:
        assert len(self) < 1000, "time stands still"
        super().append(tick)


@pytest.mark.parametrize(("track", "duration_s"), [("de", 12.0), ("en", 12.0), ("de", 60.0)])
def test_a_track_of_longer_segments_lists_no_more_than_the_others_do(tmp_path: Path, track: str, duration_s: float) -> None:
    async def play(show: Show) -> None:
        show.origins[track].duration_s, show.origins[track].window = duration_s, 3
        await show.relayed(200)

    show, _ = shown(tmp_path, play, pdt=False)
    longer, main = show.listed(NAMES[track]), show.listed("source")
    (begins, least_s), (main_begins, main_s) = (
        (one.segments[0].time, sum(each.duration_s for each in one.segments)) for one in (longer, main)
    )
    assert begins
    assert main_begins
    assert abs((begins - main_begins).total_seconds()) <= main.target_duration_s
    assert min(least_s, main_s) >= 3 * main.target_duration_s
    assert len(main.segments) >= 6
