"""The upstream and servers that are slow: when it asks again, and when it waits, in virtual time."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from hlsrelay.errors import SegmentLost, UpstreamError
from hlsrelay.model import SOURCE
from hlsrelay.upstream import Upstream
from tests.integration.fetching import BASE, Drip, Line, fetched, loaded
from tests.origin import Streaming
from tests.playlists import URL, stream
from tests.virtual import run_virtually


def test_a_drip_ends_with_the_deadline_and_not_with_the_last_byte() -> None:
    async def run() -> None:
        async with Upstream(transport=lambda *_: Drip()) as source:
            began_s = asyncio.get_running_loop().time()
            with pytest.raises(SegmentLost, match="not had within 6"):
                await fetched(source, f"{BASE}/1.ts", deadline_s=6.0)
            with pytest.raises(UpstreamError, match="no whole answer within 8 s"):
                await loaded(source, URL)
            assert asyncio.get_running_loop().time() - began_s == pytest.approx(14.0)

    run_virtually(run())


def test_a_segment_that_is_lost_says_what_was_wrong_before_the_deadline_cut_the_last_attempt_off() -> None:
    class Breaking(Drip):
        asked = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.asked += 1
            return httpx.Response(503) if self.asked < 3 else await super().handle_async_request(request)

    async def run() -> None:
        async with Upstream(transport=lambda *_: Breaking()) as source:
            with pytest.raises(
                SegmentLost, match=r"not had within 1\.4 s: .*/1\.ts: too slow, \d bytes so far; before that: .*/1\.ts: HTTP 503"
            ):
                await fetched(source, f"{BASE}/1.ts", deadline_s=1.4)

    run_virtually(run())


@pytest.mark.parametrize(("target_s", "patience_s"), [(1, 2.0), (3, 6.0), (10, 8.0)])
def test_a_load_is_begun_anew_before_players_of_short_segments_run_dry(target_s: int, patience_s: float) -> None:
    class Dripping(Drip):
        began = False

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if self.began:
                return await super().handle_async_request(request)
            self.began = True
            playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:{target_s}\n#EXTINF:{target_s},\n1.ts\n"
            return await Streaming(httpx.MockTransport(lambda _: httpx.Response(200, text=playlist))).handle_async_request(request)

    async def run() -> None:
        drip = Dripping()
        async with Upstream(transport=lambda *_: drip) as source:
            drip.began = True
            with pytest.raises(UpstreamError, match="within 8 s"):  # nobody knows yet
                await source.survey(stream())
            drip.began = False
            await source.survey(stream())
            drip.began = False
            await source.load(SOURCE)
            began_s = asyncio.get_running_loop().time()
            with pytest.raises(UpstreamError, match=f"within {patience_s:.0f} s"):
                await source.load(SOURCE)
            assert asyncio.get_running_loop().time() - began_s == pytest.approx(patience_s)

    run_virtually(run())


SEGMENT = 100_000
AT_ONCE = [(0.0, SEGMENT)]
DRIP = [(1.0, 1)] * SEGMENT
STEADY = [(0.55, SEGMENT // 10)] * 10
BURST_AND_DRIP = [*[(0.01, SEGMENT // 10)] * 9, *DRIP]
REAL_TIME_SOUND = [(0.5, 2000)] * 10


async def taken(line: Line, deadline_s: float = 6.0) -> tuple[int, float]:
    """Return how much came, and when."""
    async with Upstream(transport=lambda *_: line) as source:
        began_s = asyncio.get_running_loop().time()
        body = await fetched(source, f"{BASE}/1.ts", deadline_s=deadline_s)
        return len(body), asyncio.get_running_loop().time() - began_s


@pytest.mark.parametrize("length", [SEGMENT, None], ids=["length", "chunked"])
@pytest.mark.parametrize("slow", [DRIP, BURST_AND_DRIP, [(60.0, SEGMENT)]], ids=["drip", "burst and drip", "nothing"])
def test_a_drip_does_not_eat_the_deadline_where_asking_again_helps(slow: list[tuple[float, int]], length: int | None) -> None:
    line = Line(slow, AT_ONCE, length=length)
    body, took_s = run_virtually(taken(line))
    assert (body, line.asked) == (SEGMENT, 2)
    assert took_s < 5.5


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (Line(STEADY, length=SEGMENT), SEGMENT),
        (Line(STEADY), SEGMENT),
        (Line([(1.9, SEGMENT // 10), *[(0.4, SEGMENT // 10)] * 9], length=SEGMENT), SEGMENT),
        (Line(AT_ONCE, thinks_s=4.7, length=SEGMENT), SEGMENT),
        (Line(REAL_TIME_SOUND), 20_000),
    ],
    ids=["with length", "chunked", "late first byte", "late answer", "real time"],
)
def test_what_is_slow_and_steady_and_whole_by_the_deadline_is_asked_for_once(line: Line, body: int) -> None:
    assert run_virtually(taken(line))[0] == body
    assert line.asked == 1


def test_a_server_that_hangs_is_asked_again_within_the_deadline() -> None:
    class Hanging(Line):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self._thinks_s = 0.0 if self.asked else 60.0
            return await super().handle_async_request(request)

    line = Hanging(AT_ONCE)
    assert run_virtually(taken(line))[1] == pytest.approx(4.8, abs=0.5)
