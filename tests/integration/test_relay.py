"""The whole pipeline of one stream against a faulty live source, in virtual time: what players would have seen at every moment."""

from __future__ import annotations

import asyncio
import gc
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from hlsrelay.model import Desired, Snapshot
from tests.integration.relaying import Watching, later, relayed, scenario
from tests.needs import NIGHTLY
from tests.origin import Origin
from tests.playlists import parsed
from tests.unit.test_media_probe import picture
from tests.unit.test_media_probe import segment as ts_segment


def test_every_segment_comes_out_once_in_order_and_byte_for_byte(tmp_path: Path) -> None:
    watch = scenario(tmp_path, lambda watch: relayed(watch, 120))
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))
    assert len(watch.numbers()) >= 30
    assert watch.gaps() == watch.cuts() == []
    assert watch.relayed_exactly()
    assert watch.storage.read("index.m3u8") is not None


def test_a_restart_goes_on_without_gap_or_repeat(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        for until_s in (30, 41, 77, 100):
            await relayed(watch, until_s)

    watch = scenario(tmp_path, play)
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))
    assert watch.gaps() == watch.cuts() == []
    assert watch.relayed_exactly()


@pytest.mark.parametrize("kills", range(8))
def test_a_relay_that_dies_at_any_moment_is_followed_without_gap_or_repeat(tmp_path: Path, kills: int) -> None:
    """The generators are dropped wherever they are; what is on disk is all that the next one knows."""

    async def play(watch: Watching) -> None:
        for turn in range(12):
            await relayed(watch, 10 + turn * 7 + kills * 0.5)

    watch = scenario(tmp_path, play)
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))
    assert watch.gaps() == watch.cuts() == []
    assert watch.relayed_exactly()


def test_a_relay_that_dies_in_the_middle_of_a_load_is_followed_from_what_was_published(tmp_path: Path) -> None:
    """Of the first load's three segments, fetched at different speeds, only some are published when it dies."""

    async def play(watch: Watching) -> None:
        for until_s in (2.5, 3.5, 5.5, 7.5, 9.5, 60.0):
            await relayed(watch, until_s)
            if until_s == 3.5:
                assert watch.numbers() == [103], "the test wants a death between two segments of one load"

    watch = scenario(tmp_path, play, Origin(segment_takes_s=1.5))
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))
    assert watch.gaps() == watch.cuts() == []
    assert watch.relayed_exactly()


def test_what_a_crash_left_behind_is_swept_at_the_next_start(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        await relayed(watch, 30)
        stray = watch.storage.folder / "source" / "99999.ts"
        stray.write_bytes(b"downloaded and never listed")
        await relayed(watch, 31)
        assert not stray.exists()

    assert scenario(tmp_path, play).gaps() == []


def test_stop_ends_the_playlist_and_the_relay(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        def stop() -> None:
            watch.operator.stream = replace(watch.operator.stream, desired=Desired.STOP)
            watch.nudges.nudge()

        later(30, stop)
        await relayed(watch, 1000)
        assert asyncio.get_running_loop().time() < 31
        assert (watch.storage.read("source/index.m3u8") or b"").endswith(b"#EXT-X-ENDLIST\n")

    scenario(tmp_path, play)


def test_a_source_that_resets_costs_one_discontinuity_and_nothing_is_repeated(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        later(40, lambda: watch.origin.restart("b"))
        await relayed(watch, 120)

    watch = scenario(tmp_path, play)
    assert len(watch.cuts()) == 1
    assert watch.relayed_exactly()
    assert "source_reset" in watch.repairs()
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))


def test_a_source_that_is_away_for_a_while_is_taken_up_again(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        later(40, lambda: setattr(watch.origin, "silent", True))
        later(52, lambda: setattr(watch.origin, "silent", False))
        await relayed(watch, 120)

    watch = scenario(tmp_path, play)
    assert watch.cuts() == watch.gaps() == []
    assert watch.relayed_exactly()
    assert any(tick.turn and tick.turn.error for tick in watch.ticks)


def test_segments_that_slid_away_while_the_source_was_unreachable_become_gaps(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        later(40, lambda: setattr(watch.origin, "silent", True))
        later(76, lambda: setattr(watch.origin, "silent", False))
        await relayed(watch, 160)

    watch = scenario(tmp_path, play)
    assert 1 <= len(watch.gaps()) <= 5
    assert watch.cuts() == []
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))
    assert "hole_filled" in watch.repairs()


def answers(*statuses: int | bytes) -> Callable[[str], httpx.Response | None]:
    left = list(statuses)

    def answer(_: str) -> httpx.Response | None:
        if not left:
            return None
        now = left.pop(0)
        return httpx.Response(now) if isinstance(now, int) else httpx.Response(200, content=now)

    return answer


@pytest.mark.parametrize(
    "first_answers",
    [(404, 404), (403,), (500, 502), (b"",), (b"short",), (b"short" * 1000,)],
    ids=["404 twice", "403 once", "5xx", "empty", "cut short", "cut short, longer than the whole"],
)
def test_a_segment_that_fails_for_a_moment_is_had_in_the_end(tmp_path: Path, first_answers: tuple[int | bytes, ...]) -> None:
    fault = answers(*first_answers)

    def on_segment(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.endswith("-108.ts"):
            return None
        found = fault(request.url.path)
        if found is not None and found.content.startswith(b"short"):
            found.headers["content-length"] = "99999"
        return found

    watch = scenario(tmp_path, lambda watch: relayed(watch, 60), Origin(fault=on_segment))
    assert watch.gaps() == []
    assert 108 in watch.numbers()
    assert watch.relayed_exactly()


@pytest.mark.parametrize("body", [404, b"<html>login</html>"], ids=["404", "HTML with 200"])
def test_a_segment_that_never_comes_is_a_gap_and_the_rest_goes_on(tmp_path: Path, body: int | bytes) -> None:
    def on_segment(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.endswith("-108.ts"):
            return None
        return httpx.Response(body) if isinstance(body, int) else httpx.Response(200, content=body)

    watch = scenario(tmp_path, lambda watch: relayed(watch, 90), Origin(fault=on_segment))
    assert watch.gaps() == [108]
    assert watch.numbers()[-1] > 115
    assert watch.relayed_exactly()


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"#EXTM3U\n", b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n", 404, 500],
    ids=["empty", "HTML", "header only", "no segment", "404", "500"],
)
def test_a_bad_playlist_now_and_then_changes_nothing(tmp_path: Path, body: bytes | int) -> None:
    count = 0

    def on_playlist(request: httpx.Request) -> httpx.Response | None:
        nonlocal count
        count += request.url.path.endswith(".m3u8")
        if not request.url.path.endswith(".m3u8") or count % 3:
            return None
        return httpx.Response(body) if isinstance(body, int) else httpx.Response(200, content=body)

    watch = scenario(tmp_path, lambda watch: relayed(watch, 120), Origin(fault=on_playlist))
    assert watch.gaps() == watch.cuts() == []
    assert len(watch.numbers()) >= 28
    assert watch.relayed_exactly()


def test_another_source_follows_after_one_discontinuity(tmp_path: Path) -> None:
    other = Origin(first=7, name="other", base="https://backup.example/x")

    async def play(watch: Watching) -> None:
        def change() -> None:
            watch.operator.stream = replace(watch.operator.stream, source="https://backup.example/x/index.m3u8")
            watch.nudges.nudge()

        later(40, change)
        await relayed(watch, 80, other)

    watch = scenario(tmp_path, play)
    assert len(watch.cuts()) == 1
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))


def test_an_ended_source_ends_only_after_a_hold_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        def end() -> None:
            watch.origin.ended = True

        later(21, end)
        await relayed(watch, 30)
        assert watch.last is not None
        assert not watch.last.ended
        text = watch.origin.playlist().text()
        watch.origin.fault = lambda request: httpx.Response(200, text=text) if request.url.path.endswith(".m3u8") else None
        await relayed(watch, 60)
        assert watch.last.ended
        watch.origin.fault, watch.origin.ended = None, False
        await relayed(watch, 80)
        assert not watch.last.ended

    watch = scenario(tmp_path, play)
    assert len(watch.cuts()) == 1


def test_a_disk_that_is_full_for_a_while_loses_only_what_could_not_be_stored(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        commit = watch.storage.commit

        def full(temp: Path, path: str) -> None:
            raise OSError(28, "No space left on device")

        later(30, lambda: setattr(watch.storage, "commit", full))
        later(45, lambda: setattr(watch.storage, "commit", commit))
        await relayed(watch, 100)

    watch = scenario(tmp_path, play)
    assert 1 <= len(watch.gaps()) <= 5
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))
    assert any("No space left" in tick.error for tick in watch.ticks)


def test_a_lost_ledger_never_makes_the_sequence_fall(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        await relayed(watch, 40)
        (watch.storage.folder / ".ledger.json").write_bytes(b"{torn")
        watch.origin.restart("b")
        await relayed(watch, 90)

    watch = scenario(tmp_path, play)
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))
    assert len(watch.cuts()) == 1


def timed(began_90k: int) -> Callable[[str], bytes]:
    """Content whose time stamps count on from segment to segment, four seconds each; from segment 115 on anew from *began_90k*."""

    def content(path: str) -> bytes:
        number = int(path.rpartition("-")[2].removesuffix(".ts"))
        start = number * 360_000 if number < 115 else began_90k + (number - 115) * 360_000
        pictures = [picture(start + frame * 3600, idr=frame == 0) for frame in range(100)]
        return ts_segment(*pictures)

    return content


@pytest.mark.parametrize(
    ("began_90k", "cuts"),
    [(126_000, [115]), (115 * 360_000, []), (115 * 360_000 + 9000, []), (115 * 360_000 + 900_000, [115])],
    ids=["begins anew", "goes on", "a small step", "ten seconds later"],
)
def test_time_stamps_that_do_not_go_on_are_a_discontinuity_that_the_source_forgot(tmp_path: Path, began_90k: int, cuts: list[int]) -> None:
    watch = scenario(tmp_path, lambda watch: relayed(watch, 90), Origin(content=timed(began_90k)))
    assert watch.cuts() == cuts
    assert any(tick.made and tick.made.repairs for tick in watch.ticks) == bool(cuts)


def test_time_stamps_that_wrap_are_no_discontinuity(tmp_path: Path) -> None:
    def content(path: str) -> bytes:
        number = int(path.rpartition("-")[2].removesuffix(".ts")) - 108
        return ts_segment(*[picture(((1 << 33) + number * 360_000 + frame * 3600) % (1 << 33), idr=frame == 0) for frame in range(100)])

    assert scenario(tmp_path, lambda watch: relayed(watch, 90), Origin(content=content)).cuts() == []


def test_nothing_stays_behind_of_segments_that_were_lost(tmp_path: Path) -> None:
    def on_segment(request: httpx.Request) -> httpx.Response | None:
        odd = request.url.path.endswith(("1.ts", "3.ts", "5.ts", "7.ts", "9.ts"))
        return httpx.Response(200, content=b"<html>" + b"x" * 5000) if odd else None

    async def play(watch: Watching) -> None:
        await relayed(watch, 120)
        assert list((watch.storage.folder / ".tmp").iterdir()) == []

    assert len(scenario(tmp_path, play, Origin(fault=on_segment)).gaps()) >= 10


def test_an_init_section_that_comes_back_after_a_break_is_there(tmp_path: Path) -> None:
    origin = Origin()

    def with_maps(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.endswith(".m3u8"):
            return None
        lines = []
        for item in origin.playlist().items:
            name = "b" if 110 <= item.sequence < 140 else "a"
            lines += [f'#EXT-X-MAP:URI="{name}.mp4"', *item.lines()]
        head = ["#EXTM3U", "#EXT-X-VERSION:6", "#EXT-X-TARGETDURATION:4", f"#EXT-X-MEDIA-SEQUENCE:{origin.playlist().items[0].sequence}"]
        return httpx.Response(200, text="\n".join([*head, *lines, ""]))

    origin.fault = with_maps

    async def play(watch: Watching) -> None:
        for until_s in range(20, 320, 20):
            asyncio.get_running_loop().call_at(float(until_s), lambda: every_map_is_there(watch))
        await relayed(watch, 320.0)

    def every_map_is_there(watch: Watching) -> None:
        text = (watch.storage.read("source/index.m3u8") or b"").decode()
        listed.update(names := set(re.findall(r'EXT-X-MAP:URI="([^"]+)"', text)))
        missing.update(name for name in names if watch.storage.read(f"source/{name}") is None)

    listed: set[str] = set()
    missing: set[str] = set()
    scenario(tmp_path, play, origin)
    assert len(listed) == 3
    assert missing == set()


def test_a_public_source_is_asked_no_more_often_than_the_protocol_allows(tmp_path: Path) -> None:
    watch = scenario(tmp_path, lambda watch: relayed(watch, 400))
    loads = sum(path.endswith(".m3u8") for path in watch.origin.requests)
    assert loads <= 2 * 100 + 2


def _published(watch: Watching) -> Snapshot:
    return parsed((watch.storage.read("source/index.m3u8") or b"").decode(), "file:///")


def test_a_long_segment_that_nobody_can_cut_raises_the_target_duration_and_is_counted(tmp_path: Path) -> None:
    def longer(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.endswith(".m3u8"):
            return None
        text = origin.playlist().text()
        return httpx.Response(200, text=text.replace("#EXTINF:4.000,\na-109.ts", "#EXTINF:7.000,\na-109.ts"))

    origin = Origin(fault=longer)

    async def play(watch: Watching) -> None:
        watch.look = lambda: None  # type: ignore[method-assign]  # it holds A2, which is given up here
        await relayed(watch, 60)

    watch = scenario(tmp_path, play, origin)
    assert _published(watch).target_duration_s == 7
    assert sum(tick.turn.repairs.count("target_duration_grew") for tick in watch.ticks if tick.turn) == 1


def test_a_long_webvtt_segment_is_listed_in_slices_that_fit_the_target_duration(tmp_path: Path) -> None:
    def longer(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.endswith(".m3u8"):
            return httpx.Response(200, text=f"WEBVTT\n\n00:01.000 --> 00:02.000\n{request.url.path}\n")
        text = origin.playlist().text().replace(".ts", ".vtt")
        return httpx.Response(200, text=text.replace("#EXTINF:4.000,\na-109.vtt", "#EXTINF:7.000,\na-109.vtt"))

    origin = Origin(fault=longer)
    watch = scenario(tmp_path, lambda watch: relayed(watch, 30), origin)
    listed = _published(watch)
    assert listed.target_duration_s == 4
    assert [segment.duration_s for segment in listed.segments].count(3.5) == 2


def _footprint(folder: Path) -> tuple[int, int, int]:
    gc.collect()
    return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")), sum(1 for path in folder.rglob("*") if path.is_file())


def test_hours_of_relay_end_with_as_many_tasks_files_and_descriptors_as_ten_minutes(tmp_path: Path) -> None:
    hours = 24 if NIGHTLY else 2
    footprints: list[tuple[int, int, int]] = []

    async def play(watch: Watching) -> None:
        watch.look = watch.ticks.clear  # type: ignore[method-assign]  # a player's checks each tick would take minutes
        for seconds in (605.9, hours * 3600 + 5.9):  # between two loads
            later(seconds, lambda: footprints.append(_footprint(watch.storage.folder)))
        await relayed(watch, hours * 3600 + 7)
        watch.ticks.clear()

    watch = scenario(tmp_path, play, Origin(duration_s=10.0))
    first, last = footprints
    assert last[0] == first[0]
    assert last[1] == first[1]
    assert abs(last[2] - first[2]) <= 1
    assert len(watch.origin.sent) >= hours * 3600 / 10
