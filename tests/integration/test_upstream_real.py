"""The upstream on its real transport: sockets, encodings, redirects, what is no HTTP."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from ipaddress import ip_network

import pytest

from hlsrelay import upstream as upstream_module
from hlsrelay.errors import AddressRefused, PlaylistError, SegmentLost, UpstreamError
from hlsrelay.upstream import Upstream
from tests.integration.fetching import LOOPBACK, fetched, loaded, ok, server
from tests.playlists import at, live


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
