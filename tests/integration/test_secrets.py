"""Secrets of a stream: heard by its source alone, and in no log line, field or error."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from hlsrelay.addresses import AddressPolicy
from hlsrelay.errors import ConfigError, PlaylistError, UpstreamError
from hlsrelay.fields import stream_of
from hlsrelay.link import Link
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.model import Stream
from hlsrelay.node import Node
from hlsrelay.processes import Children
from hlsrelay.reporter import Reporter
from hlsrelay.settings import load_settings
from hlsrelay.upstream import Upstream
from tests.integration.fetching import fetched, loaded, server
from tests.integration.relaying import NoEncoder, Watching, relayed, scenario
from tests.integration.test_hostile import Hostile, errors, moved
from tests.origin import Streaming
from tests.playlists import URL, live, stream

# what operators write

INJECTED = ["a\r\nEvil: 1", "a\nEvil: 1", "a\rEvil", "a\x00b", "a\x1b[2J", "a\x7f", "a\x85b", "a\u2028b", "ä"]


@pytest.mark.parametrize("value", INJECTED)
@pytest.mark.parametrize("name", ["User-Agent", "Cookie", "X-Token"])
def test_no_header_of_an_operator_can_hold_another(name: str, value: str) -> None:
    for headers in ({name: value}, {f"{name}{value}": "x"}):
        with pytest.raises(ConfigError, match="headers"):
            stream_of("news", {"source": URL, "headers": json.dumps(headers)})


@pytest.mark.parametrize("value", [one for one in INJECTED if one != "ä"])
@pytest.mark.parametrize("field_name", ["source", "proxy", "backup", "preload"])
def test_no_url_of_an_operator_can_hold_a_line_or_a_control_character(field_name: str, value: str) -> None:
    for url in (f"https://user:hidden@x.example/{value}", f"https://user:hidden@{value}/", f"https://x.example/?q=hidden{value}"):
        with pytest.raises(ConfigError) as caught:
            stream_of("news", {"source": URL, field_name: url})
        assert "hidden" not in str(caught.value)
        assert str(caught.value).isprintable()


# who hears what

HEADERS = (("Authorization", "Bearer own"), ("Cookie", "own=1"), ("X-Token", "own"), ("Referer", "https://r/"), ("User-Agent", "mine"))
SECRET_NAMES = ("authorization", "cookie", "x-token")


class World:
    """Notes what each host is sent; *where* redirects."""

    def __init__(self, **where: str) -> None:
        self.where = {name.replace("_", "/"): to for name, to in where.items()}
        self.heard: dict[str, dict[str, str]] = {}

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.heard[str(request.url)] = dict(request.headers)
        if to := self.where.get(request.url.path.rpartition("/")[2]):
            return moved(to)
        if request.url.path.endswith(".m3u8"):
            return httpx.Response(200, text=live(1).text(), headers={"set-cookie": "turn=1; Path=/"})
        return httpx.Response(200, content=b"x")

    def transport(self, _: AddressPolicy, __: str) -> httpx.AsyncBaseTransport:
        return Streaming(httpx.MockTransport(self.answer))

    def secrets(self, url: str) -> set[str]:
        heard = {name: self.heard[url].get(name, "") for name in SECRET_NAMES}
        return {name for name, value in heard.items() if "own" in value or value.startswith("Basic")}


def asked(world: World, source: str, *uris: str) -> None:
    """Survey *source* with headers, and fetch."""

    async def run() -> None:
        async with Upstream(transport=world.transport) as upstream:
            await upstream.survey(replace(stream(source), headers=HEADERS))
            for uri in uris:
                await fetched(upstream, uri)

    asyncio.run(run())


def test_an_operators_secrets_go_to_the_sources_own_host_and_nowhere_else() -> None:
    world = World()
    own = ("https://a.example/1.ts", "https://a.example:443/2.ts", "https://A.EXAMPLE/3.ts")
    foreign = (
        "https://cdn.example/1.ts",
        "https://a.example.evil.example/1.ts",
        "https://sub.a.example/1.ts",
        "https://a.example:8443/1.ts",
    )
    downgraded = "http://a.example/1.ts"
    asked(world, "https://a.example/live.m3u8", *own, *foreign, downgraded)
    heard = [httpx.URL(url) for url in own]
    assert all(world.secrets(str(url)) == set(SECRET_NAMES) for url in heard)
    for url in (*foreign, downgraded):
        assert world.secrets(url) == set(), url
        assert world.heard[url]["referer"] == "https://r/"
        assert world.heard[url]["user-agent"] == "mine"


def test_the_operators_cookie_and_the_sources_go_together() -> None:
    world = World()
    asked(world, "https://a.example/live.m3u8", "https://a.example/1.ts")
    assert set(world.heard["https://a.example/1.ts"]["cookie"].split("; ")) == {"own=1", "turn=1"}


def test_a_redirect_carries_no_secret_to_another_host_and_gives_them_back_at_home() -> None:
    world = World(**{"live.m3u8": "https://evil.example/2.m3u8", "2.m3u8": "https://a.example/3.m3u8", "3.m3u8": "http://a.example/4.m3u8"})
    asked(world, "https://u:pw@a.example/live.m3u8")
    assert world.secrets("https://a.example/live.m3u8") == set(SECRET_NAMES)
    assert world.secrets("https://evil.example/2.m3u8") == set()
    assert world.secrets("https://a.example/3.m3u8") == set(SECRET_NAMES)
    assert world.secrets("http://a.example/4.m3u8") == set()


def test_user_info_goes_home_only_and_https_is_as_good_as_http() -> None:
    world = World(**{"live.m3u8": "https://a.example/2.m3u8", "2.m3u8": "https://evil.example/3.m3u8"})

    async def run() -> None:
        async with Upstream(transport=world.transport) as upstream:
            await upstream.survey(stream("http://us%40er:p%3Aw@a.example/live.m3u8"))

    asyncio.run(run())
    assert httpx.BasicAuth("us@er", "p:w")._auth_header == world.heard["http://a.example/live.m3u8"]["authorization"]
    assert world.secrets("https://a.example/2.m3u8") == {"authorization"}
    assert world.secrets("https://evil.example/3.m3u8") == set()


def test_a_backup_that_is_relayed_is_the_source() -> None:
    world = World()

    async def run() -> None:
        async with Upstream(transport=world.transport) as upstream:
            wishes = replace(stream("https://a.example/live.m3u8"), headers=HEADERS, backups=("https://b.example/live.m3u8",))
            await upstream.survey(wishes)
            await fetched(upstream, "https://b.example/before.ts")
            await upstream.survey(replace(wishes, source="https://b.example/live.m3u8"))
            await fetched(upstream, "https://b.example/after.ts")
            await fetched(upstream, "https://a.example/after.ts")

    asyncio.run(run())
    assert world.secrets("https://b.example/before.ts") == world.secrets("https://a.example/after.ts") == set()
    assert world.secrets("https://b.example/after.ts") == set(SECRET_NAMES)


class EndlessRedirect(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """A redirect whose body never ends: httpx reads such bodies."""

    def __init__(self) -> None:
        self.sent = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/next.m3u8":
            return httpx.Response(200, stream=httpx.ByteStream(live(1).text().encode()))
        return httpx.Response(302, headers={"Location": "/next.m3u8", "Content-Encoding": "gzip"}, stream=self)

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while True:
            self.sent += 1 << 20
            yield bytes(1 << 20)


def test_the_body_of_a_redirect_is_not_read() -> None:
    async def run() -> None:
        transport = EndlessRedirect()
        async with Upstream(transport=lambda *_: transport) as upstream:
            assert (await loaded(upstream, URL)).segments[0].sequence == 1
        assert transport.sent == 0

    asyncio.run(run())


# through a proxy


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxys_credentials_are_for_the_proxy(scheme: str) -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        body = live(1).text().encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        if scheme == "https":
            heard.append(await reader.read(20_000))
        writer.close()

    async def run() -> None:
        proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = proxy.sockets[0].getsockname()[1]
        wishes = replace(stream(f"{scheme}://origin.example/live.m3u8"), proxy=f"http://us%40er:p%C3%A4ss@127.0.0.1:{port}")
        async with proxy, Upstream() as upstream:
            with suppress(UpstreamError):  # of the tunnel's end nobody speaks TLS
                await upstream.survey(wishes)

    asyncio.run(run())
    told = base64.b64encode("us@er:päss".encode())
    assert b"Proxy-Authorization: Basic " + told in heard[0].replace(b"proxy-authorization", b"Proxy-Authorization")
    assert heard[0].startswith(b"GET http://origin.example/live.m3u8" if scheme == "http" else b"CONNECT origin.example:443")
    assert all(told not in later for later in heard[1:])


# secrets

SECRET = "hunter2"
SECRETIVE = Stream(
    "news",
    f"https://{SECRET}:{SECRET}@origin.example/live/hdntl={SECRET}/index.m3u8;p={SECRET}?token={SECRET}&{SECRET}",
    headers=(("Authorization", SECRET), ("Cookie", f"a={SECRET}"), ("X-Token", SECRET)),
    proxy=f"http://{SECRET}:{SECRET}@127.0.0.1:1",
    backups=(f"https://{SECRET}:{SECRET}@backup.example/x?{SECRET}",),
    window_s=30.0,
)


def failing(request: httpx.Request) -> httpx.Response:
    """Fail in another way each time, and set a cookie."""
    failing.turn = getattr(failing, "turn", 0) + 1  # type: ignore[attr-defined]
    turn: int = failing.turn  # type: ignore[attr-defined]
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{turn}\n#EXTINF:4,\n{turn}.ts?token={SECRET}\n"
    ways = [
        httpx.Response(500),
        httpx.Response(302, headers={"Location": f"file:///x={SECRET}?{SECRET}"}),
        httpx.Response(302, headers={"Location": f"http://{SECRET}:{SECRET}@127.0.0.1/?{SECRET}"}),
        httpx.Response(302, headers={"Location": f"https://origin.example/?token={SECRET}"}),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, text=text),
        httpx.Response(200, text=text, headers={"Content-Length": "9999999"}),
        httpx.Response(404),
        httpx.Response(200, content=b""),
    ]
    answer = ways[turn % len(ways)]
    answer.headers["set-cookie"] = f"session={SECRET}; Path=/"
    return answer


def test_no_log_line_and_no_field_holds_a_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    origin = Hostile()
    registry = MemoryRegistry()
    registry.streams["news"] = {"source": "x"}
    caplog.set_level(logging.DEBUG)

    async def play(watch: Watching) -> None:
        watch.operator.stream = SECRETIVE
        watch.origin.transport = lambda *_: lambda *_: Streaming(httpx.MockTransport(failing))  # type: ignore[method-assign]
        await relayed(watch, 300)
        link = Link(registry, "news")
        reporter = Reporter(link, "news", Node(load_settings(), tmp_path, registry, Children(), NoEncoder()))
        for tick in watch.ticks:
            reporter.tick(tick)
        await link.flush()

    with capture_logs() as lines:
        watch = scenario(tmp_path, play, origin)
    assert len(set(errors(watch).splitlines())) > 5
    assert lines
    assert registry.streams["news"]["last_error"]
    for text in (errors(watch), str(lines), str(registry.streams), caplog.text):
        assert SECRET not in text, next(line for line in text.splitlines() if SECRET in line)


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "302 Found\r\nLocation: http://x/?hunter2", "banana"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_fails_tells_no_secret(status: str, scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "aiohttp")
    caplog.set_level(logging.DEBUG, "httpx")

    async def run() -> None:
        answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        async with server(lambda _: answer) as port, Upstream() as upstream:
            wishes = replace(
                SECRETIVE, source=SECRETIVE.source.replace("https", scheme), proxy=f"http://{SECRET}:{SECRET}@127.0.0.1:{port}"
            )
            with pytest.raises(UpstreamError) as caught:
                await upstream.survey(wishes)
            assert SECRET not in str(caught.value)

    asyncio.run(run())


def test_a_playlist_that_repeats_our_secret_is_quoted_in_few_words_only() -> None:
    async def run() -> None:
        echo = Streaming(httpx.MockTransport(lambda request: httpx.Response(200, text="x" * 30 + request.headers["x-token"])))
        async with Upstream(transport=lambda *_: echo) as upstream:
            with pytest.raises(PlaylistError) as caught:
                await upstream.survey(SECRETIVE)
            assert SECRET not in str(caught.value)

    asyncio.run(run())
