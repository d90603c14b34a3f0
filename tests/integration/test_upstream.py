"""Reading a source over HTTP: whole answers or a named error, and never an address that it may not reach."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from hlsrelay.errors import PlaylistError, SegmentLost, UpstreamError
from hlsrelay.hls import parse
from hlsrelay.model import SOURCE, ByteRange, Sink
from hlsrelay.upstream import SEGMENT_LIMIT_BYTES, Upstream
from tests.integration.fetching import BASE, LOOPBACK, Drip, Line, fetched, loaded, ok, router, server, upstream
from tests.playlists import URL, live, stream
from tests.virtual import run_virtually


def test_the_same_bytes_give_the_same_snapshot_unparsed() -> None:
    async def run() -> None:
        routes = router()
        routes.get(URL).respond(text=live(1, 2).text())
        async with upstream(routes) as source:
            assert await loaded(source, URL) is await source.load(SOURCE)

    asyncio.run(run())


def test_a_playlist_is_asked_for_only_if_it_has_changed() -> None:
    asked: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        known = request.headers.get("if-none-match")
        asked.append(known)
        newest = 2 if len(asked) < 4 else 3
        etag = f'"{newest}"'
        return httpx.Response(304) if known == etag else httpx.Response(200, headers={"etag": etag}, text=live(newest - 1, newest).text())

    async def run() -> None:
        routes = router()
        routes.get(URL).mock(side_effect=answer)
        async with upstream(routes) as source:
            first = await loaded(source, URL)
            assert await source.load(SOURCE) is first
            assert [one.sequence for one in (await source.load(SOURCE)).segments] == [2, 3]
            assert asked == [None, None, '"2"', '"2"'], "a survey asks for the whole, and so does the first load"

    asyncio.run(run())


def test_a_server_that_says_for_ever_that_nothing_has_changed_is_not_believed_for_ever() -> None:
    async def run() -> None:
        newest = 2
        routes = router()
        routes.get(URL, headers={"if-none-match": '"x"'}).respond(304)
        routes.get(URL).mock(side_effect=lambda _: httpx.Response(200, headers={"etag": '"x"'}, text=live(newest).text()))
        async with upstream(routes) as source:
            assert (await loaded(source, URL)).segments[-1].sequence == 2
            newest = 3
            seen = [(await source.load(SOURCE)).segments[-1].sequence for _ in range(6)]
            assert seen == [2, 2, 2, 3, 3, 3]
            newest = 4
            assert (await source.load(SOURCE)).segments[-1].sequence == 4, "it had said the same of two that differ"

    asyncio.run(run())


def test_another_place_that_says_that_nothing_has_changed_is_asked_for_the_whole() -> None:
    async def run() -> None:
        routes = router()
        lead = [f"{BASE}/a.m3u8"] * 2 + [f"{BASE}/b.m3u8"] * 2
        routes.get(URL).mock(side_effect=[httpx.Response(302, headers={"location": one}) for one in lead])
        routes.get(f"{BASE}/a.m3u8").respond(headers={"etag": '"x"'}, text=live(1, 2).text())
        routes.get(f"{BASE}/b.m3u8", headers={"if-none-match": '"x"'}).respond(304)
        routes.get(f"{BASE}/b.m3u8").respond(headers={"etag": '"x"'}, text=live(5, 6).text())
        async with upstream(routes) as source:
            assert (await loaded(source, URL)).segments[-1].sequence == 2
            assert (await source.load(SOURCE)).segments[-1].sequence == 6

    asyncio.run(run())


def test_a_long_playlist_is_read_once_where_it_holds_nobody_up_and_read_on_from_then(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def noted(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return parse.read(*given)

    async def run() -> None:
        routes = router()
        answer = routes.get(URL)
        async with upstream(routes) as source:
            for first in range(3):
                answer.respond(text=live(*range(first, first + 800)).text())
                snapshot = await loaded(source, URL) if first == 0 else await source.load(SOURCE)
                assert [one.sequence for one in snapshot.segments] == list(range(first, first + 800))

    monkeypatch.setattr("hlsrelay.hls.following.read", noted)
    asyncio.run(run())
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_a_variant_that_moved_is_found_again_through_the_multivariant_playlist() -> None:
    async def run() -> None:
        routes = router()
        master = routes.get(URL)
        master.respond(text="#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv.m3u8?token=1\n")
        routes.get(f"{BASE}/v.m3u8?token=1").mock(side_effect=[httpx.Response(200, text=live(1).text()), httpx.Response(403)])
        routes.get(f"{BASE}/v.m3u8?token=2").respond(text=live(2).text())
        async with upstream(routes) as source:
            assert (await loaded(source, URL)).segments[0].sequence == 1
            master.respond(text="#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv.m3u8?token=2\n")
            moved = await source.load(SOURCE)
            assert (moved.segments[0].sequence, moved.repairs) == (2, ("source_surveyed_again",))
            assert (await source.load(SOURCE)).repairs == ()

    asyncio.run(run())


def test_a_track_that_is_gone_from_the_source_is_a_failed_load_and_no_crash() -> None:
    async def run() -> None:
        routes = router()
        master = routes.get(URL)
        variants = (
            "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=2,RESOLUTION=32x32\na.m3u8\n#EXT-X-STREAM-INF:BANDWIDTH=1,RESOLUTION=16x16\nb.m3u8\n"
        )
        master.respond(text=variants)
        routes.route().respond(404)
        async with upstream(routes) as source:
            names = [track.name for track in (await source.survey(stream())).tracks]
            master.respond(text=variants.rpartition("#EXT-X-STREAM-INF")[0])
            for name in (*names, *names):
                with pytest.raises(UpstreamError):
                    await source.load(name)

    asyncio.run(run())


def test_a_copy_that_fails_is_followed_by_the_next_one() -> None:
    async def run() -> None:
        routes = router()
        variant = "#EXT-X-STREAM-INF:BANDWIDTH=1,RESOLUTION=16x16"
        routes.get(URL).respond(text=f"#EXTM3U\n{variant}\na.m3u8\n{variant}\nb.m3u8\n")
        routes.get(f"{BASE}/a.m3u8").respond(503)
        routes.get(f"{BASE}/b.m3u8").respond(text=live(7).text())
        async with upstream(routes) as source:
            await source.survey(stream())
            with pytest.raises(UpstreamError, match="503"):
                await source.load(SOURCE)
            assert (await source.load(SOURCE)).segments[0].sequence == 7

    asyncio.run(run())


@pytest.mark.parametrize("status", [204, 301, 304, 400, 401, 404, 429, 500, 503])
def test_anything_but_200_is_a_failed_load(status: int) -> None:
    async def run() -> None:
        routes = router()
        routes.get(URL).respond(status)
        async with upstream(routes) as source:
            with pytest.raises(UpstreamError):
                await loaded(source, URL)

    asyncio.run(run())


def test_a_byte_range_is_asked_for_and_must_be_exact() -> None:
    async def run() -> None:
        routes = router()
        routes.get(f"{BASE}/1.ts", headers={"Range": "bytes=10-14"}).respond(206, content=b"abcde")
        routes.get(f"{BASE}/2.ts").respond(200, content=b"the whole file")
        routes.get(f"{BASE}/3.ts").respond(206, content=b"ab")
        async with upstream(routes) as source:
            assert await fetched(source, f"{BASE}/1.ts", ByteRange(5, 10)) == b"abcde"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "said", "content"),
    [(200, {}, b"short"), (206, {}, b"ab"), (206, {"Content-Range": "bytes 0-4/20"}, b"01234"), (304, {}, b""), (416, {}, b"")],
    ids=["whole, and too short", "cut", "another range", "not modified", "no such range"],
)
def test_what_is_not_all_of_a_range_is_no_segment(status: int, said: dict[str, str], content: bytes) -> None:
    async def run() -> None:
        routes = router()
        routes.get(f"{BASE}/2.ts").respond(status, headers=said, content=content)
        async with upstream(routes) as source:
            with pytest.raises(SegmentLost):
                await fetched(source, f"{BASE}/2.ts", ByteRange(5, 10), deadline_s=3.0)

    run_virtually(run())


@pytest.mark.parametrize(("status", "said"), [(200, {}), (203, {}), (206, {"Content-Range": "bytes 0-19/20"})])
def test_a_server_that_gives_the_whole_file_whatever_is_asked_for_gives_segments_too(status: int, said: dict[str, str]) -> None:
    async def run() -> None:
        routes = router()
        routes.get(f"{BASE}/1.ts").respond(status, headers=said, content=b"0123456789abcdefghij")
        async with upstream(routes) as source:
            assert await fetched(source, f"{BASE}/1.ts") == b"0123456789abcdefghij"
            assert await fetched(source, f"{BASE}/1.ts", ByteRange(5, 10)) == b"abcde"

    run_virtually(run())


@pytest.mark.parametrize("said", ["utf-8", "aws-chunked", "binary", "none", "identity"])
def test_a_content_encoding_that_is_no_compression_changes_nothing(said: str) -> None:
    async def run() -> None:
        async with server(lambda _: ok(b"as it is", f"Content-Encoding: {said}")) as port, Upstream(LOOPBACK) as source:
            assert await fetched(source, f"http://127.0.0.1:{port}/1.ts") == b"as it is"

    asyncio.run(run())


def test_an_attempt_that_failed_half_way_leaves_nothing_in_the_next() -> None:
    async def run() -> None:
        routes = router()
        broken = httpx.Response(200, content=b"first", headers={"content-length": "99"})
        routes.get(f"{BASE}/1.ts").mock(side_effect=[broken, httpx.Response(200, content=b"second")])
        async with upstream(routes) as source:
            assert await fetched(source, f"{BASE}/1.ts") == b"second"

    run_virtually(run())


def test_what_is_missing_from_an_answer_that_looks_whole_makes_it_a_failed_attempt() -> None:
    async def run() -> None:
        routes, body = router(), bytearray()
        route = routes.get(f"{BASE}/1.ts?token=secret")
        route.mock(
            side_effect=[httpx.Response(200, content=b"ha"), httpx.Response(200, content=b"hal"), httpx.Response(200, content=b"half")]
        )

        def restart() -> Sink:
            body.clear()
            return body.extend

        def whole() -> str:
            return "" if body == b"half" else f"only {len(body)} bytes"

        async with upstream(routes) as source:
            assert await source.fetch(f"{BASE}/1.ts?token=secret", None, restart, 6.0, whole=whole) == 4
            route.mock(return_value=httpx.Response(200, content=b"ha"))
            with pytest.raises(SegmentLost, match=r"not had within 6\.0 s: .*/1\.ts\?token=…: only 2 bytes"):
                await source.fetch(f"{BASE}/1.ts?token=secret", None, restart, 6.0, whole=whole)

    run_virtually(run())


def test_who_wants_little_says_so_and_gets_no_more() -> None:
    async def run() -> None:
        body = bytearray()
        async with Upstream(transport=lambda *_: Line([(0.0, 1000)] * 100)) as source:
            with pytest.raises(SegmentLost, match=r"key: larger than 4 KiB"):
                await source.fetch(f"{BASE}/key", None, lambda: body.extend, 5.0, most_bytes=4 << 10)
        assert len(body) == 4000

    run_virtually(run())


def test_errors_that_go_round_in_a_ring_are_told_all_the_same() -> None:
    class Ring(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            one, two = httpx.ConnectError("no way"), OSError("nor there")
            one.__context__, two.__context__ = two, one
            raise one

    def too_long(*_: object) -> None:
        raise TimeoutError("round and round")

    async def run() -> None:
        async with Upstream(transport=lambda *_: Ring()) as source:
            with pytest.raises(UpstreamError, match="no way"):
                await source.survey(stream())

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, 20.0)
    try:
        asyncio.run(run())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


class Endless(Drip):
    """A server that never stops sending."""

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while True:
            yield b"#" * (4 << 20)


def test_an_endless_body_is_cut_at_the_limit() -> None:
    async def run() -> None:
        taken = 0

        def restart() -> Sink:
            return take

        def take(chunk: bytes | memoryview) -> None:
            nonlocal taken
            taken += len(chunk)

        async with Upstream(transport=lambda *_: Endless()) as source:
            with pytest.raises(PlaylistError, match="larger"):
                await loaded(source, URL)
            with pytest.raises(SegmentLost, match="larger than 64 MiB"):
                await source.fetch(f"{BASE}/1.ts", None, restart, 5.0)
            assert taken <= SEGMENT_LIMIT_BYTES

    asyncio.run(run())


def test_secrets_of_a_url_are_in_no_error() -> None:
    async def run() -> None:
        routes = router()
        routes.route().respond(500)
        async with upstream(routes) as source:
            with pytest.raises(UpstreamError) as caught:
                await loaded(source, "https://user:password@origin.example/live.m3u8?token=secret")
            assert "password" not in str(caught.value)
            assert "secret" not in str(caught.value)

    asyncio.run(run())


def test_headers_and_cookies_and_basic_authentication_go_with_every_request_of_a_stream() -> None:
    async def run() -> None:
        seen: list[httpx.Request] = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            if request.url.path.endswith(".m3u8"):
                return httpx.Response(200, text=live(1).text(), headers={"set-cookie": f"turn={len(seen)}; Path=/"})
            return httpx.Response(200, content=b"x")

        routes = router()
        routes.route().mock(side_effect=answer)
        wishes = replace(stream(URL.replace("https://", "https://user:pw@")), headers=(("Referer", "https://r/"), ("User-Agent", "mine")))
        async with upstream(routes) as source:
            await source.survey(wishes)
            await source.load(SOURCE)
            await fetched(source, f"{BASE}/1.ts")
        assert {request.headers["referer"] for request in seen} == {"https://r/"}
        assert {request.headers["user-agent"] for request in seen} == {"mine"}
        assert [request.headers.get("cookie") for request in seen] == [None, "turn=1", "turn=2"]
        assert seen[0].headers["authorization"].startswith("Basic ")

    asyncio.run(run())


def test_other_headers_are_another_client() -> None:
    async def run() -> None:
        seen: list[str | None] = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers.get("x-token"))
            return httpx.Response(200, text=live(1).text())

        routes = router()
        routes.route().mock(side_effect=answer)
        async with upstream(routes) as source:
            await source.survey(replace(stream(), headers=(("X-Token", "a"),)))
            await source.survey(replace(stream(), headers=(("X-Token", "b"),)))
        assert seen == ["a", "b"]

    asyncio.run(run())


def test_a_proxy_is_asked_in_place_of_the_source() -> None:
    async def run() -> None:
        asked: list[str] = []

        def answer(target: str) -> bytes:
            asked.append(target)
            return ok(live(1).text().encode())

        async with server(answer) as port, Upstream() as source:
            await source.survey(replace(stream("http://origin.example/live.m3u8"), proxy=f"http://127.0.0.1:{port}"))
        assert asked == ["http://origin.example/live.m3u8"]

    asyncio.run(run())


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "ftp://x/y", "data:video/mp2t,x", "gopher://x"])
def test_other_schemes_are_refused(uri: str) -> None:
    async def run() -> None:
        async with upstream(router()) as source:
            with pytest.raises(SegmentLost, match="only http and https"):
                await fetched(source, uri)

    asyncio.run(run())
