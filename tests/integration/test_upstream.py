"""Reading a source over HTTP: whole answers or a named error, and never an address that it may not reach."""

from __future__ import annotations

import asyncio
import gzip
import signal
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_network

import httpx
import pytest
import respx

from hlsrelay import upstream as upstream_module
from hlsrelay.errors import AddressRefused, PlaylistError, SegmentLost, UpstreamError
from hlsrelay.model import SOURCE, ByteRange, Snapshot
from hlsrelay.upstream import SEGMENT_LIMIT_BYTES, Upstream
from tests.origin import Streaming
from tests.playlists import URL, at, live, stream
from tests.virtual import elapse, run_virtually

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
BASE = URL.rpartition("/")[0]


def upstream(router: respx.Router) -> Upstream:
    return Upstream(transport=lambda *_: Streaming(httpx.MockTransport(router.async_handler)))


def router() -> respx.Router:
    return respx.Router(assert_all_called=False)


async def loaded(source: Upstream, url: str) -> Snapshot:
    """Survey *url* and load its main track."""
    await source.survey(stream(url))
    return await source.load(SOURCE)


async def fetched(source: Upstream, uri: str, byterange: ByteRange | None = None, deadline_s: float = 5.0) -> bytes:
    body = bytearray()

    def restart() -> Callable[[bytes], object]:
        body.clear()
        return body.extend

    await source.fetch(uri, byterange, restart, deadline_s)
    return bytes(body)


# the real transport


@asynccontextmanager
async def server(
    answer: Callable[[str], bytes | Awaitable[bytes]], host: str = "127.0.0.1", heads: list[bytes] | None = None
) -> AsyncGenerator[int, None]:
    """A raw HTTP server on loopback: *answer* gives the bytes for a path; the connection closes after them. *heads* are what was asked.

    It ends once all its connections have: one that is left open would fail whichever test comes when it is collected.
    """
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # who asked has had enough
            request = await reader.readuntil(b"\r\n\r\n")
            if heads is not None:
                heads.append(request)
            found = answer(request.split()[1].decode())
            writer.write(found if isinstance(found, bytes) else await found)
            await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    running = await asyncio.start_server(serve, host, 0)
    async with running:
        yield running.sockets[0].getsockname()[1]
        async with asyncio.timeout(30.0):
            await asyncio.gather(*(task for task in serving if task), return_exceptions=True)


def ok(body: bytes, *headers: str) -> bytes:
    head = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "[::ffff:127.0.0.1]"])
def test_loopback_by_any_spelling_is_refused_on_the_real_transport(host: str) -> None:
    async def run() -> None:
        async with server(lambda _: ok(live(1).text().encode())) as port, Upstream() as source:
            with pytest.raises(UpstreamError):
                await loaded(source, f"http://{host}:{port}/live.m3u8")

    asyncio.run(run())


def test_a_refusal_names_address_and_setting_and_an_allowed_range_opens() -> None:
    async def run() -> None:
        async with server(lambda _: ok(live(1).text().encode())) as port:
            url = f"http://127.0.0.1:{port}/live.m3u8"
            async with Upstream() as source:
                with pytest.raises(AddressRefused, match=r"127\.0\.0\.1 is not a public address.*HLSRELAY_ALLOW_NETWORKS"):
                    await loaded(source, url)
            async with Upstream(LOOPBACK) as source:
                assert (await loaded(source, url)).segments[0].sequence == 1

    asyncio.run(run())


def test_a_body_cut_short_is_no_segment_on_the_real_transport() -> None:
    async def run() -> None:
        cut = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n" + b"x" * 10
        async with server(lambda _: cut) as port, Upstream(LOOPBACK) as source:
            with pytest.raises(SegmentLost):
                await fetched(source, f"http://127.0.0.1:{port}/1.ts", deadline_s=1.0)

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\n\r\n" + live(1, 2).text().encode(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (live(1, 2).text().encode()[:20], live(1, 2).text().encode()[20:]))
        + b"0\r\n\r\n",
        ok(gzip.compress(live(1, 2).text().encode()), "Content-Encoding: gzip"),
        ok(zlib.compress(live(1, 2).text().encode()), "Content-Encoding: deflate"),
    ],
    ids=["HTTP/1.0", "chunked", "gzip", "deflate"],
)
def test_playlists_come_in_every_encoding_that_http_has(answer: bytes) -> None:
    async def run() -> None:
        async with server(lambda _: answer) as port, Upstream(LOOPBACK) as source:
            assert len((await loaded(source, f"http://127.0.0.1:{port}/live.m3u8")).segments) == 2

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 banana\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"",
    ],
    ids=["status line", "length", "chunk size", "header of 20 kB", "nothing"],
)
def test_what_is_no_http_is_a_failed_load_whose_error_holds_no_token(answer: bytes) -> None:
    async def run() -> None:
        async with server(lambda _: answer) as port, Upstream(LOOPBACK) as source:
            with pytest.raises(UpstreamError) as caught:
                await loaded(source, f"http://127.0.0.1:{port}/live.m3u8?token=secret")
            assert "secret" not in str(caught.value)
            with pytest.raises(SegmentLost) as lost:
                await fetched(source, f"http://127.0.0.1:{port}/1.ts?token=secret", deadline_s=1.0)
            assert "secret" not in str(lost.value)

    asyncio.run(run())


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a limit is to be met and not the deadline, however busy the machine is."""
    monkeypatch.setattr(upstream_module, "PLAYLIST_DEADLINE_S", 60.0)


@pytest.mark.usefixtures("unhurried")
def test_a_compression_bomb_meets_the_limit_before_the_memory() -> None:
    bomb = gzip.compress(b"#EXTM3U\n" + bytes(20 << 20), 1)

    async def run() -> None:
        async with server(lambda _: ok(bomb, "Content-Encoding: gzip")) as port, Upstream(LOOPBACK) as source:
            with pytest.raises(PlaylistError, match="larger than 4096 KiB"):
                await loaded(source, f"http://127.0.0.1:{port}/live.m3u8")

    asyncio.run(run())


@pytest.mark.usefixtures("unhurried")
def test_a_window_of_ten_thousand_segments_with_dates_and_signed_urls_is_read() -> None:
    lines = (
        f"#EXT-X-PROGRAM-DATE-TIME:{at(number).isoformat()}\n#EXTINF:1,\n{number}.ts?signature={number:0250}\n" for number in range(10_000)
    )
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n" + "".join(lines)

    async def run() -> None:
        async with server(lambda _: ok(text.encode())) as port, Upstream(LOOPBACK) as source:
            assert len((await loaded(source, f"http://127.0.0.1:{port}/live.m3u8")).segments) == 10_000

    asyncio.run(run())


@pytest.mark.parametrize("cut", [1, 8, 20, 100])
def test_a_compressed_body_that_is_cut_off_is_a_failed_load_and_no_segment(cut: int) -> None:
    async def run() -> None:
        packed = gzip.compress(live(*range(200)).text().encode())[:-cut]
        async with server(lambda _: ok(packed, "Content-Encoding: gzip")) as port, Upstream(LOOPBACK) as source:
            with pytest.raises(UpstreamError, match=r"live\.m3u8: the compressed body is cut off"):
                await loaded(source, f"http://127.0.0.1:{port}/live.m3u8")
            with pytest.raises(SegmentLost, match="cut off"):
                await fetched(source, f"http://127.0.0.1:{port}/1.ts", deadline_s=1.0)

    asyncio.run(run())


def test_a_redirect_is_followed_and_its_address_checked() -> None:
    def moved(to: str) -> bytes:
        return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()

    async def run() -> None:
        found = {"/ok": moved("/live/x.m3u8?token=1"), "/live/x.m3u8?token=1": ok(live(1).text().encode())}
        found["/loop"], found["/file"], found["/inside"] = moved("/loop"), moved("file:///etc/passwd"), moved("http://127.0.0.2:9/x")
        async with server(lambda path: found[path]) as port:
            here = f"http://127.0.0.1:{port}"
            async with Upstream(LOOPBACK) as source:
                assert (await loaded(source, f"{here}/ok")).segments[0].uri == f"{here}/live/1.ts"
                with pytest.raises(UpstreamError, match="redirects"):
                    await loaded(source, f"{here}/loop")
                with pytest.raises(AddressRefused, match="http or https"):
                    await loaded(source, f"{here}/file")
            async with Upstream((ip_network("127.0.0.1/32"),)) as source:
                with pytest.raises(AddressRefused, match=r"127\.0\.0\.2"):
                    await loaded(source, f"{here}/inside")

    asyncio.run(run())


def test_a_redirected_get_has_no_body() -> None:
    """Many servers refuse one that has."""
    heads: list[bytes] = []

    def answer(path: str) -> bytes:
        if any(name in heads[-1].lower() for name in (b"transfer-encoding", b"content-length", b"content-type")):
            return b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        if path.startswith("/from"):
            to = path.replace("from", "to")
            return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        return ok(live(1).text().encode() if path.endswith("m3u8") else b"media")

    async def run() -> None:
        async with server(answer, heads=heads) as port, Upstream(LOOPBACK) as source:
            assert (await loaded(source, f"http://127.0.0.1:{port}/from.m3u8")).segments
            assert await fetched(source, f"http://127.0.0.1:{port}/from.ts", deadline_s=5.0) == b"media"
        assert sum(head.startswith(b"GET /to") for head in heads) == 3

    asyncio.run(run())


# what respx answers


def test_the_same_bytes_give_the_same_snapshot_unparsed() -> None:
    async def run() -> None:
        routes = router()
        routes.get(URL).respond(text=live(1, 2).text())
        async with upstream(routes) as source:
            assert await loaded(source, URL) is await source.load(SOURCE)

    asyncio.run(run())


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


@pytest.mark.parametrize("status", [204, 301, 400, 401, 404, 429, 500, 503])
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


class Drip(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """A server that sends a byte a second, for ever."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=self)

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while True:
            await elapse(1.0)
            yield b"#"


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


class Line(httpx.AsyncBaseTransport):
    """Answers each request after *thinks_s* with the next of *bodies*, each of which is chunks and the pauses before them.

    A *length* is declared where there is one.
    """

    def __init__(self, *bodies: list[tuple[float, int]], length: int | None = None, thinks_s: float = 0.0) -> None:
        self._bodies, self._length, self._thinks_s = list(bodies), length, thinks_s
        self.asked = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        await elapse(self._thinks_s)
        headers = {} if self._length is None else {"content-length": str(self._length)}
        return httpx.Response(200, headers=headers, stream=_Paced(self._bodies[min(self.asked, len(self._bodies)) - 1]))


class _Paced(httpx.AsyncByteStream):
    def __init__(self, chunks: list[tuple[float, int]]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        for pause_s, length in self._chunks:
            await elapse(pause_s)
            yield b"x" * length


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


def test_what_is_missing_from_an_answer_that_looks_whole_makes_it_a_failed_attempt() -> None:
    async def run() -> None:
        routes, body = router(), bytearray()
        route = routes.get(f"{BASE}/1.ts?token=secret")
        route.mock(
            side_effect=[httpx.Response(200, content=b"ha"), httpx.Response(200, content=b"hal"), httpx.Response(200, content=b"half")]
        )

        def restart() -> Callable[[bytes], object]:
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

        def restart() -> Callable[[bytes], object]:
            return take

        def take(chunk: bytes) -> None:
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
