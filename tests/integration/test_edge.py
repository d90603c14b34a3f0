"""What a node fetches from the one that relays a stream, once for all who ask here."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import uvloop

from hlsrelay import edge
from hlsrelay.edge import FOLLOWED_WITHIN_S, FRESH_S, HOP, Edge, Fetched
from tests.virtual import elapse, run_virtually

OWNER, NEXT = "http://one:8080", "http://other:8080"
SEGMENT = "news/source/12.ts"
PLAYLIST = "news/source/index.m3u8"


@dataclass
class Nodes(httpx.AsyncBaseTransport):
    """Nodes that have files, by URL; each answer takes a while."""

    files: dict[str, bytes] = field(default_factory=dict)
    takes_s: float = 0.05
    down: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = str(request.url)
        self.asked[url] += 1
        assert request.headers[HOP]
        await elapse(self.takes_s)
        if any(url.startswith(one) for one in self.down):
            raise httpx.ConnectError("refused")
        if url not in self.files:
            return httpx.Response(404)
        return httpx.Response(200, content=self.files[url], headers={"etag": '"tag"'})


def at(node: str, path: str) -> str:
    return f"{node}/live/{path}"


def played(body: Callable[[Edge, Nodes, dict[str, str]], Awaitable[None]]) -> None:
    async def within() -> None:
        nodes, where = Nodes(), {"news": OWNER}
        fetching = Edge(lambda stream_id: where.get(stream_id, ""), asyncio.get_running_loop().time, nodes)
        try:
            await body(fetching, nodes, where)
        finally:
            await fetching.aclose()

    run_virtually(within())


def test_a_thousand_viewers_cost_the_owner_one_fetch_of_a_segment_and_a_few_of_a_playlist() -> None:
    async def body(fetching: Edge, nodes: Nodes, where: dict[str, str]) -> None:
        nodes.files = {at(OWNER, SEGMENT): b"media", at(OWNER, PLAYLIST): b"#EXTM3U 1"}
        found = await asyncio.gather(*(fetching.get(SEGMENT) for _ in range(1000)))
        assert set(found) == {Fetched(200, b"media", '"tag"')}
        assert (await fetching.get(SEGMENT)).body == b"media"
        assert nodes.asked[at(OWNER, SEGMENT)] == 1
        for _ in range(100):
            await asyncio.gather(*(fetching.get(PLAYLIST) for _ in range(10)))
            await elapse(0.04)
        assert nodes.asked[at(OWNER, PLAYLIST)] <= 4 / FRESH_S + 1
        nodes.files[at(OWNER, PLAYLIST)] = b"#EXTM3U 2"
        await elapse(FRESH_S + 0.01)
        assert (await fetching.get(PLAYLIST)).body == b"#EXTM3U 2"

    played(body)


def test_who_asks_while_a_stream_changes_hands_waits_for_the_next_owner() -> None:
    async def body(fetching: Edge, nodes: Nodes, where: dict[str, str]) -> None:
        nodes.files = {at(NEXT, PLAYLIST): b"#EXTM3U"}
        nodes.down = {OWNER}
        asking = asyncio.ensure_future(fetching.get(PLAYLIST))
        await elapse(1)
        assert not asking.done()
        where["news"] = NEXT
        assert (await asking).body == b"#EXTM3U"

    played(body)


def test_an_owner_that_stays_away_is_503_or_502_after_a_while_and_what_it_lacks_is_404_at_once() -> None:
    async def body(fetching: Edge, nodes: Nodes, where: dict[str, str]) -> None:
        loop = asyncio.get_running_loop()
        at_s = loop.time()
        assert (await fetching.get(SEGMENT)).status == 404
        assert loop.time() - at_s < 0.1
        nodes.down = {OWNER}
        at_s = loop.time()
        assert (await fetching.get(PLAYLIST)).status == 502
        assert FOLLOWED_WITHIN_S <= loop.time() - at_s <= FOLLOWED_WITHIN_S + 0.5
        del where["news"]
        assert (await fetching.get(PLAYLIST)).status == 503

    played(body)


def test_what_is_kept_is_bounded_and_the_longest_unasked_goes_first() -> None:
    async def body(fetching: Edge, nodes: Nodes, _: dict[str, str]) -> None:
        each = edge.KEPT_BYTES // 4
        paths = [f"news/source/{number}.ts" for number in range(6)]
        nodes.files = {at(OWNER, path): bytes(each) for path in paths}
        for path in paths:
            await fetching.get(path)
            await fetching.get(paths[0])
        assert nodes.asked[at(OWNER, paths[0])] == 1
        await fetching.get(paths[5])
        assert nodes.asked[at(OWNER, paths[5])] == 1
        await fetching.get(paths[1])
        assert nodes.asked[at(OWNER, paths[1])] == 2

    played(body)


def test_who_gives_up_waiting_does_not_end_the_fetch_for_the_others() -> None:
    async def body(fetching: Edge, nodes: Nodes, _: dict[str, str]) -> None:
        nodes.files = {at(OWNER, SEGMENT): b"media"}
        first, second = (asyncio.ensure_future(fetching.get(SEGMENT)) for _ in range(2))
        await elapse(0.01)
        first.cancel()
        assert (await second).body == b"media"
        assert nodes.asked[at(OWNER, SEGMENT)] == 1

    played(body)


def test_an_owner_that_never_answers_holds_up_nobody_once_there_is_another() -> None:
    async def body(fetching: Edge, nodes: Nodes, where: dict[str, str]) -> None:
        nodes.files = {at(NEXT, PLAYLIST): b"#EXTM3U"}
        nodes.takes_s = 3600
        asking = asyncio.ensure_future(fetching.get(PLAYLIST))
        await elapse(4)
        nodes.takes_s = 0.05
        where["news"] = NEXT
        at_s = asyncio.get_running_loop().time()
        assert (await asking).body == b"#EXTM3U"
        assert asyncio.get_running_loop().time() - at_s < 0.5
        assert not await fetching.hears_redis("http://10.0.0.5:80800x"), "an address that is none is no answer"

    played(body)


def test_an_owner_that_hung_under_many_requests_is_asked_again_once_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On real sockets: a pool that loses a connection with each request that is given up would have none left."""
    monkeypatch.setattr(edge, "FETCHED_WITHIN_S", 0.2)
    monkeypatch.setattr(edge, "FOLLOWED_WITHIN_S", 0.7)

    async def body() -> None:
        answers = asyncio.Event()

        async def owner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    await answers.wait()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nmedia")
            writer.close()

        async with await asyncio.start_server(owner, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            fetching = Edge({"news": url}.__getitem__, asyncio.get_running_loop().time)
            paths = [f"news/source/{number}.ts" for number in range(3 * edge.MOST_CONNECTIONS)]
            hung = await asyncio.gather(*(fetching.get(path) for path in paths))
            assert {one.status for one in hung} == {502}
            answers.set()
            monkeypatch.setattr(edge, "FETCHED_WITHIN_S", 3.0)
            well = await asyncio.gather(*(fetching.get(path) for path in paths))
            assert {one.body for one in well} == {b"media"}
            await fetching.aclose()

    asyncio.run(body())


@pytest.mark.night
def test_connections_that_were_kept_for_longer_than_a_fetch_may_take_are_as_good_as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """On uvloop, as in production: there aiohttp leaves a timeout of one read running when the connection is kept."""
    monkeypatch.setattr(edge, "FETCHED_WITHIN_S", 3.0)
    monkeypatch.setattr(edge, "FOLLOWED_WITHIN_S", 0.0)
    body = bytes(700_000)

    class Owner(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    async def played(url: str) -> None:
        fetching = Edge({"news": url}.__getitem__, asyncio.get_running_loop().time)
        for turn in range(2):
            found = await asyncio.gather(*(fetching.get(f"news/source/{turn}-{number}.ts") for number in range(8)))
            assert {one.status for one in found} == {200}
            monkeypatch.setattr(edge, "FETCHED_WITHIN_S", 20.0)
            await asyncio.sleep(3.4 * (1 - turn))
        await fetching.aclose()

    with ThreadingHTTPServer(("127.0.0.1", 0), Owner) as owner:
        owner.daemon_threads = True
        threading.Thread(target=owner.serve_forever, daemon=True).start()
        try:
            uvloop.run(played(f"http://127.0.0.1:{owner.server_port}"))
        finally:
            owner.shutdown()
