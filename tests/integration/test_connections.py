"""HTTP/1.1 of our own on real sockets: when a connection is used again, how bodies come, and what is no answer."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bench.origin import make_certificate
from hlsrelay import connections, http1
from hlsrelay.addresses import AddressPolicy
from hlsrelay.connections import Connections
from hlsrelay.http1 import READ_BYTES, Head, HttpError, Target
from hlsrelay.model import Sink
from tests.integration.fetching import LOOPBACK, ok

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What a server does with one connection."""


class Server:
    """A server on loopback that gives the first connection to the first talk, and so on, and the last of them to all others."""

    def __init__(self, *talks: Talk) -> None:
        self._talks = talks
        self.taken = 0
        self.talking: set[asyncio.Task[None] | None] = set()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = self._talks[min(self.taken, len(self._talks) - 1)]
        self.taken += 1
        self.talking.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def asking(*talks: Talk, tls: Path | None = None, trusted: bool = True) -> AsyncGenerator[tuple[Connections, Server, Target], None]:
    """Give connections to a server that talks so, and a URL there."""
    served = Server(*talks)
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    if tls:
        theirs.load_cert_chain(tls)
        if trusted:
            ours.load_verify_locations(tls)
    running = await asyncio.start_server(served.talk, "127.0.0.1", 0, ssl=theirs if tls else None)
    port = running.sockets[0].getsockname()[1]
    made = Connections(AddressPolicy(LOOPBACK, "127.0.0.1"), lambda: ours)
    scheme = "https" if tls else "http"
    try:
        async with asyncio.timeout(30.0):
            yield made, served, Target(f"{scheme}://127.0.0.1:{port}/x", scheme, "127.0.0.1", port, f"127.0.0.1:{port}", "/x")
    finally:
        await made.aclose()
        running.close()
        async with asyncio.timeout(30.0):
            await asyncio.gather(*(task for task in served.talking if task), return_exceptions=True)


async def got(made: Connections, target: Target) -> bytes:
    """Return the body of an answer."""
    body = bytearray()
    await made.get(target, {}, lambda _: body.extend)
    return bytes(body)


def kept(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def says(*answers: bytes, then: str = "close") -> Talk:
    """Give an answer to each request, then close or wait for the other side to do so."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        if then == "wait":
            await reader.read()

    return talk


def test_a_connection_is_used_again_after_a_whole_answer() -> None:
    async def run() -> None:
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\nTrailer: x\r\n\r\n"
        empty = b"HTTP/1.1 204 No Content\r\n\r\n"
        hinted = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + kept(b"late")
        answers = kept(b"one"), kept(b""), chunked, empty, hinted, kept(b"x" * 300_000)
        async with asking(says(*answers, then="wait")) as (made, server, target):
            found = [await got(made, target) for _ in answers]
            assert found == [b"one", b"", b"abcde", b"", b"late", b"x" * 300_000]
            assert server.taken == 1

    asyncio.run(run())


def test_what_an_answer_went_to_is_let_go_of_without_a_collection() -> None:
    class Body(bytearray):
        """One that can be asked whether anybody has it still."""

    async def run() -> None:
        async with asking(says(kept(b"one"))) as (made, _, target):
            body = Body()
            seen = weakref.ref(body)
            await made.get(target, {}, lambda _, sink=body.extend: sink)  # type: ignore[misc]
            del body
            assert seen() is None

    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()


def test_one_that_was_closed_meanwhile_costs_no_answer() -> None:
    async def run() -> None:
        async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await says(kept(b"one"))(reader, writer)
            await reader.readuntil(b"\r\n\r\n")  # as a server does that closes just when it is asked

        async with asking(reset, says(kept(b"two"))) as (made, server, target):
            assert [await got(made, target) for _ in range(2)] == [b"one", b"two"]
            assert server.taken == 2

    asyncio.run(run())


def test_a_new_one_that_is_closed_without_a_word_is_a_failure_and_is_not_asked_for_ever() -> None:
    async def run() -> None:
        async with asking(says(b"")) as (made, server, target):
            with pytest.raises(HttpError, match="closed without an answer"):
                await got(made, target)
            assert server.taken == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        kept(b"ab") + b"c",
        kept(b"ab") + kept(b"nobody asked"),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab",
    ],
    ids=["more than declared", "two answers", "close", "HTTP/1.0"],
)
def test_a_connection_is_not_used_again_where_what_comes_next_is_not_ours(answer: bytes) -> None:
    async def run() -> None:
        async with asking(says(answer, then="wait"), says(kept(b"next"))) as (made, server, target):
            assert [await got(made, target) for _ in range(2)] == [b"ab", b"next"]
            assert server.taken == 2

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "2 of 5 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + b"x" * 400_000, "400000 of 500000 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "closed within"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", "closed within"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", "'gzip, chunked' was not asked for"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "more than 128 headers"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 9000 + b"\r\n\r\n", "more than 8190 bytes"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000, "no HTTP"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "another protocol"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20_000, "no HTTP"),
        (b"ICY 200 OK\r\n\r\n", "no HTTP"),
    ],
)
def test_what_is_no_http_or_not_whole_is_an_error_with_a_name(answer: bytes, said: str) -> None:
    async def run() -> None:
        async with asking(says(answer)) as (made, _, target):
            with pytest.raises(HttpError, match=said):
                await got(made, target)

    asyncio.run(run())


def test_a_body_without_length_ends_with_the_connection() -> None:
    async def run() -> None:
        async with asking(says(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 400_000)) as (made, server, target):
            assert [len(await got(made, target)) for _ in range(2)] == [400_000, 400_000]
            assert server.taken == 2

    asyncio.run(run())


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_what_is_there_is_handed_on_though_the_rest_stays_away(tls: bool, tmp_path: Path) -> None:
    """Whoever watches how fast a body comes must see a drip as it is."""

    async def run() -> None:
        came = asyncio.Event()

        async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            writer.write(b"x" * 30_000)
            await came.wait()
            writer.write(b"x" * 970_000)
            await writer.drain()
            await reader.read()

        async with asking(drips, tls=make_certificate(tmp_path) if tls else None) as (made, _, target):
            length = 0

            def take(piece: bytes | memoryview) -> None:
                nonlocal length
                length += len(piece)
                if length == 30_000:
                    came.set()

            await made.get(target, {}, lambda _: take)
            assert length == 1_000_000

    asyncio.run(run())


@pytest.mark.skipif(sys.platform != "linux", reason="others wake sooner")
def test_a_body_that_comes_in_small_packets_wakes_us_seldom() -> None:
    async def run() -> None:
        async def trickles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n")
            for _ in range(500):
                writer.write(b"x" * 4000)
                await asyncio.sleep(0)  # the other side may read now
            await reader.read()

        async with asking(trickles) as (made, _, target):
            pieces: list[int] = []
            loop, began_s = asyncio.get_running_loop(), asyncio.get_running_loop().time()
            await made.get(target, {}, lambda _: lambda piece: pieces.append(len(piece)))
            looks = (loop.time() - began_s) / 0.2
            assert sum(pieces) == 2_000_000
            assert len(pieces) <= 2_000_000 / READ_BYTES + 5 + looks

    asyncio.run(run())


@pytest.mark.parametrize("most", [1 << 20, http1.WAKE_BYTES])
def test_a_body_that_is_there_is_taken_at_once_but_no_more_than_others_can_wait_for(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "WAKE_BYTES", most)
    body = bytes(8 << 20)

    async def run() -> None:
        async with asking(says(kept(body), then="wait")) as (made, _, target):
            taken, loop = [0], asyncio.get_running_loop()

            def turn() -> None:
                taken.append(0)
                loop.call_soon(turn)

            def take(piece: bytes | memoryview) -> None:
                taken[-1] += len(piece)

            loop.call_soon(turn)
            await made.get(target, {}, lambda _: take)
            assert sum(taken) == len(body)
            assert http1.READ_BYTES < max(taken) <= most

    asyncio.run(run())


def test_over_tls_a_body_comes_whole_and_the_connection_is_used_again(tmp_path: Path) -> None:
    body = bytes(range(256)) * 5000

    async def run() -> None:
        async with asking(says(*[kept(body)] * 3, then="wait"), tls=make_certificate(tmp_path)) as (made, server, target):
            assert [await got(made, target) for _ in range(3)] == [body] * 3
            assert server.taken == 1

    asyncio.run(run())


def test_a_certificate_that_nobody_trusts_is_an_error_that_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        async with asking(says(kept(b"x")), tls=make_certificate(tmp_path), trusted=False) as (made, _, target):
            with pytest.raises(HttpError, match="certificate"):
                await got(made, target)

    asyncio.run(run())


def test_what_a_reader_raises_comes_out_and_the_rest_is_not_read() -> None:
    class Full(OSError):
        pass

    def raises(*_: object) -> Sink:
        raise Full

    async def run() -> None:
        async with asking(says(kept(b"x" * 500_000), then="wait"), says(kept(b"next"))) as (made, server, target):
            for answered in (raises, lambda _: raises):
                with pytest.raises(Full):
                    await made.get(target, {}, answered)
            assert await got(made, target) == b"next"
            assert server.taken == 3

    asyncio.run(run())


@pytest.mark.parametrize(("body", "connections_made"), [(b"", 1), (b"x" * 100_000, 2)], ids=["empty", "long"])
def test_a_body_that_nobody_wants_is_not_read(body: bytes, connections_made: int) -> None:
    async def run() -> None:
        heads: list[Head] = []
        async with asking(says(kept(body), kept(b"next"), then="wait"), says(kept(b"next"))) as (made, server, target):
            await made.get(target, {}, heads.append)
            assert await got(made, target) == b"next"
            assert (heads[0].status, server.taken) == (200, connections_made)

    asyncio.run(run())


def hanging() -> tuple[asyncio.Event, Talk]:
    """Return a server's part that never answers, and what is set each time that it is asked."""
    asked = asyncio.Event()

    async def hangs(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()

    return asked, hangs


def test_whoever_gives_up_takes_no_connection_with_it() -> None:
    async def run() -> None:
        asked, hangs = hanging()
        talks = [hangs] * (2 * Connections.MOST)
        async with asking(*talks, says(kept(b"next"))) as (made, _, target):
            for _ in talks:
                asked.clear()
                task = asyncio.create_task(got(made, target))
                await asked.wait()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert await got(made, target) == b"next"

    asyncio.run(run())


def test_no_more_than_a_few_connections_are_open_at_once() -> None:
    async def run() -> None:
        full, go = asyncio.Event(), asyncio.Event()
        waiting = 0

        async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal waiting
            while True:
                await reader.readuntil(b"\r\n\r\n")
                waiting += 1
                if waiting == Connections.MOST:
                    full.set()
                await go.wait()
                writer.write(kept(b"x"))

        async with asking(waits) as (made, server, target):
            tasks = [asyncio.create_task(got(made, target)) for _ in range(3 * Connections.MOST)]
            await full.wait()
            go.set()
            assert await asyncio.gather(*tasks) == [b"x"] * len(tasks)
            assert server.taken == Connections.MOST

    asyncio.run(run())


def test_closing_ends_what_is_under_way_as_an_error() -> None:
    async def run() -> None:
        asked, hangs = hanging()
        async with asking(hangs) as (made, _, target):
            task = asyncio.create_task(got(made, target))
            await asked.wait()
            await made.aclose()
            with pytest.raises(HttpError, match="closed by us"):
                await task

    asyncio.run(run())


def test_a_connection_that_nobody_needs_any_more_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "KEPT_S", 0.05)

    async def run() -> None:
        closed = asyncio.Event()

        async def watches(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await says(kept(b"x"), then="wait")(reader, writer)
            closed.set()

        async with asking(watches) as (made, _, target):
            await got(made, target)
            await closed.wait()

    asyncio.run(run())


def test_a_name_is_resolved_once_for_all_who_ask_and_again_where_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    really = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **rest: Any) -> Any:
        asked.append(host)
        if len(asked) == 1:
            raise socket.gaierror(-2, "Name or service not known")
        return really("127.0.0.1" if host == "camera.example" else host, *args, **rest)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def run() -> None:
        async with asking(says(ok(b"x"))) as (_, _, target):
            named = Target(target.text, "http", "camera.example", target.port, "camera.example", "/x")
            made = Connections(AddressPolicy(LOOPBACK, "camera.example"), ssl.create_default_context)
            with pytest.raises(HttpError, match=r"camera\.example.*not known"):
                await got(made, named)
            assert await asyncio.gather(*(got(made, named) for _ in range(4))) == [b"x"] * 4
            assert asked == ["camera.example"] * 2
            await made.aclose()

    asyncio.run(run())
