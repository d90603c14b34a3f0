"""Segments that look whole and are not: what a server gives of one that an encoder still writes, pages in place of media, and what is
too large to be what it should be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from hlsrelay import transcoding
from tests.integration.relaying import Watching, relayed, scenario
from tests.integration.test_keys import SECRET, announcing, encrypted_with, now_s
from tests.origin import Origin
from tests.unit.test_media_probe import picture
from tests.unit.test_media_probe import segment as ts_segment
from tests.unit.test_whole import fragment, init_section


def timed(path: str, *, share: float = 1.0) -> bytes:
    """Return a segment of four seconds, 25 pictures each, or the first part of one."""
    start = int(path.rpartition("-")[2].removesuffix(".ts")) * 360_000
    return ts_segment(*(picture(start + frame * 3600, idr=frame == 0) for frame in range(round(100 * share))))


def serving(answer: Callable[[str, int], bytes | None]) -> Origin:
    """An origin of which *answer* tells what comes of a segment, by its path and by how often it was asked for before."""
    asked: dict[str, int] = {}
    origin = Origin(content=timed)

    def fault(request: httpx.Request) -> httpx.Response | None:
        path = str(request.url).removeprefix(origin.base + "/")
        if not path.endswith(".ts"):
            return None
        again = asked[path] = asked.get(path, -1) + 1
        body = answer(path, again)
        return None if body is None else httpx.Response(200, content=body)

    origin.fault = fault
    return origin


def lost(watch: Watching) -> dict[int, str]:
    return {tick.made.entry.number: tick.made.lost for tick in watch.ticks if tick.made and tick.made.lost}


def refetched(watch: Watching) -> list[int]:
    return [tick.made.entry.number for tick in watch.ticks if tick.made and "segment_refetched" in tick.made.repairs]


async def minutes(watch: Watching) -> None:
    await relayed(watch, 120)


def test_a_segment_is_fetched_until_it_has_grown_to_its_length(tmp_path: Path) -> None:
    """Already long enough to pass for a segment whose EXTINF is rounded up, but known to have grown."""
    watch = scenario(tmp_path, minutes, serving(lambda path, again: timed(path, share=(0.3, 0.8)[again]) if again < 2 else None))
    assert watch.gaps() == watch.cuts() == []
    assert watch.relayed_exactly()
    assert refetched(watch) == watch.numbers()


def test_what_was_looked_into_to_see_that_it_is_whole_is_not_looked_into_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcoding, "Ends", None)  # whoever uses it fails
    watch = scenario(tmp_path, minutes, Origin(content=timed))
    assert watch.gaps() == watch.cuts() == []
    assert watch.relayed_exactly()
    assert len(watch.numbers()) > 20


def test_what_grows_past_the_deadline_is_had_as_far_as_it_went(tmp_path: Path) -> None:
    """Six seconds for four seconds of media: it is better than a GAP, and each packet of it is whole."""
    origin = serving(lambda path, again: timed(path, share=0.2 + 0.01 * again) if "-110." in path else None)
    watch = scenario(tmp_path, minutes, origin)
    assert watch.gaps() == []
    body = watch.storage.read("source/110.ts") or timed("a-110.ts", share=0.2 + 0.01 * (origin.requests.count("a-110.ts") - 1))
    assert timed("a-110.ts", share=0.2) < body < timed("a-110.ts", share=0.5)
    assert 110 in refetched(watch)


def test_a_source_whose_extinf_is_never_true_is_not_waited_for(tmp_path: Path) -> None:
    origin = serving(lambda path, _: timed(path, share=0.3))
    watch = scenario(tmp_path, minutes, origin)
    assert watch.gaps() == []
    assert len(refetched(watch)) == 3
    later = [path for path in origin.requests if path.endswith(".ts") and int(path[2:-3]) > 107]
    assert len(later) == len(set(later)) > 15


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda path: timed(path)[:-100], "no whole MPEG-TS packets"),
        (lambda _: fragment(0, frames=40)[:-1], "an MP4 box b'mdat' is cut"),
        (lambda _: b"<html>please wait</html>", "a text page, not media: it begins b'<html>please wait</html>"),
        (lambda _: b"\xef\xbb\xbf\r\n<html>", "a text page"),
    ],
)
def test_what_stays_cut_off_is_a_gap_that_says_why_and_holds_nobody_up(tmp_path: Path, body: Callable[[str], bytes], reason: str) -> None:
    asked_s: list[float] = []

    def answer(path: str, _: int) -> bytes | None:
        if "-110." not in path:
            return None
        asked_s.append(now_s())
        return body(path)

    async def play(watch: Watching) -> None:
        await minutes(watch)
        assert list((watch.storage.folder / ".tmp").iterdir()) == []

    watch = scenario(tmp_path, play, serving(answer))
    assert watch.gaps() == [110]
    assert reason in lost(watch)[110]
    assert len(asked_s) > 3
    assert asked_s[-1] - asked_s[0] <= 1.5 * 4
    assert watch.relayed_exactly()


def test_an_encrypted_segment_is_whole_blocks(tmp_path: Path) -> None:
    cut = [7, 100]

    def served(name: str) -> httpx.Response | None:
        if name.startswith("k"):
            return httpx.Response(200, content=SECRET)
        number = int(name[2:-3])
        body = encrypted_with(SECRET, number, timed(name))
        return httpx.Response(200, content=body[: -cut.pop()] if number == 110 and cut else body)

    watch = scenario(tmp_path, minutes, announcing(lambda number: [f'#EXT-X-KEY:METHOD=AES-128,URI="k",IV={number:#x}'], served))
    assert watch.gaps() == []
    assert refetched(watch) == [110]


def test_an_mp4_segment_that_grows_by_fragments_is_fetched_until_it_is_whole(tmp_path: Path) -> None:
    asked: dict[str, int] = {}

    def served(name: str) -> httpx.Response | None:
        if name == "i.mp4":
            return httpx.Response(200, content=init_section())
        asked[name] = asked.get(name, 0) + 1
        pieces = 8 if asked[name] > 1 else 3
        start = int(name[2:-3]) * 4000
        return httpx.Response(200, content=b"".join(fragment(start + 500 * piece, frames=5) for piece in range(pieces)))

    watch = scenario(tmp_path, minutes, announcing(lambda _: ['#EXT-X-MAP:URI="i.mp4"'], served))
    assert watch.gaps() == []
    assert refetched(watch) == watch.numbers()
    sizes = {len(path.read_bytes()) for path in (watch.storage.folder / "source").glob("*.m4s")}
    assert sizes == {8 * len(fragment(0, frames=5))}


@pytest.mark.parametrize(("line", "reason"), [('#EXT-X-MAP:URI="big"', "its init section: .*big: larger than 1 MiB"),
                                              ('#EXT-X-KEY:METHOD=SAMPLE-AES,URI="big"', "its key: .*big: larger than 4 KiB")])  # fmt: skip
def test_what_is_kept_in_memory_has_a_limit(tmp_path: Path, line: str, reason: str) -> None:
    size = {"1 MiB": 1 << 20, "4 KiB": 4 << 10}[reason.rpartition("than ")[2]]

    def served(name: str) -> httpx.Response | None:
        return httpx.Response(200, content=bytes(size + (now_s() < 60))) if name == "big" else None

    watch = scenario(tmp_path, minutes, announcing(lambda _: [line], served))
    assert len(watch.gaps()) > 5
    assert len(watch.numbers()) - len(watch.gaps()) > 5
    assert all(re.fullmatch(reason, text) for text in lost(watch).values())


def test_a_byte_range_is_as_long_as_the_playlist_says_and_no_longer(tmp_path: Path) -> None:
    """It need not end with a packet: who asks again gets the same."""

    def served(name: str) -> httpx.Response | None:
        return httpx.Response(206, content=timed(name)[:1000]) if name.endswith(".ts") else None

    watch = scenario(tmp_path, minutes, announcing(lambda _: ["#EXT-X-BYTERANGE:1000@0"], served))
    assert len(watch.numbers()) > 20
    assert watch.gaps() == refetched(watch) == []


def test_one_picture_stands_for_a_whole_segment_in_an_i_frame_playlist(tmp_path: Path) -> None:
    def served(name: str) -> httpx.Response | None:
        return httpx.Response(200, content=timed(name, share=0.01)) if name.endswith(".ts") else None

    watch = scenario(tmp_path, minutes, announcing(lambda _: ["#EXT-X-I-FRAMES-ONLY"], served))
    assert len(watch.numbers()) > 20
    assert watch.gaps() == refetched(watch) == []
