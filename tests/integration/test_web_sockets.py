"""The web server on a real socket: addresses, stops, and viewers who hang up or take nothing any more."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
import uvloop

from hlsrelay.errors import ConfigError, ResourceBusy
from hlsrelay.web import create_app, direct, serve, server
from hlsrelay.web.files import SMALL_BYTES
from tests.integration.memory_site import LONG, PLAYLIST, SLOW, MemorySite, descriptors
from tests.waiting import becomes_true, comes_true


@pytest.fixture
def site(tmp_path: Path) -> MemorySite:
    return MemorySite(tmp_path)


def served(site: MemorySite, use: Callable[[str], Awaitable[None]], http: str = "127.0.0.1:0") -> None:
    """Run *use* with the URL of a server, and check that nothing is left of it afterwards."""

    async def run() -> None:
        before = asyncio.all_tasks()
        async with asyncio.timeout(20):
            async with serve(create_app(site), http) as url:
                await use(url)
            assert asyncio.all_tasks() == before

    opened = descriptors()
    asyncio.run(run())
    assert descriptors() == opened


def held(name: str) -> int:
    """Return how many descriptors of this process are open on a file of that name."""
    links = (os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
    return sum(link.endswith(f"/{name}") for link in links)


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = httpx.URL(url)
    return await asyncio.open_connection(parts.host, parts.port)


def test_a_server_that_is_told_to_go_goes_at_once_though_it_wakes_seldom(site: MemorySite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DATE_EVERY_S", 3600.0)

    async def use(url: str) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(url)).headers["date"]

    served(site, use)


def test_answers_say_the_time_that_it_is(site: MemorySite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DATE_EVERY_S", 0.01)

    async def use(url: str) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            first = (await client.get(url)).headers["date"]

            async def later() -> bool:
                return (await client.get(url)).headers["date"] != first

            await becomes_true(later)

    served(site, use)


def test_port_zero_takes_a_free_one_and_the_url_says_which(site: MemorySite) -> None:
    async def use(url: str) -> None:
        assert not url.endswith(":0")
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{url}/live/news/720p/813.ts")).content == LONG
            assert (await client.get(f"{url}/live/news/720p/813.ts", headers={"range": "bytes=1-2"})).content == LONG[1:3]
            assert (await client.head(f"{url}/live/news/720p/813.ts")).headers["content-length"] == str(len(LONG))
            assert (await client.get(f"{url}/live/news/720p/index.m3u8")).content == PLAYLIST

    served(site, use)


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 on this machine")
def test_every_address_of_both_families_is_served_when_asked_for(site: MemorySite) -> None:
    async def use(url: str) -> None:
        assert url.startswith("http://[::]:")
        async with httpx.AsyncClient(trust_env=False) as client:
            for host in ("127.0.0.1", "[::1]"):
                assert (await client.get(f"http://{host}:{httpx.URL(url).port}/healthz")).status_code == 200

    served(site, use, "[::]:0")


def test_a_taken_port_is_one_line_that_names_the_setting(site: MemorySite) -> None:
    async def use(url: str) -> None:
        with pytest.raises(ResourceBusy, match=r"^HLSRELAY_HTTP: 127\.0\.0\.1:\d+ is in use"):
            async with serve(create_app(site), url.removeprefix("http://")):
                pass

    served(site, use)


@pytest.mark.parametrize(
    "http",
    [
        "",
        "8080",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:99999",
        "http://127.0.0.1:80",
        "::1:80",
        "[::1",
        "no.such.host.invalid:80",
        "192.0.2.1:0",
    ],
)
def test_what_is_no_address_is_a_config_error_that_shows_one(site: MemorySite, http: str) -> None:
    async def run() -> None:
        with pytest.raises(ConfigError, match=r"^HLSRELAY_HTTP: .* write .*"):
            async with serve(create_app(site), http):
                pass

    asyncio.run(run())


def test_the_process_keeps_its_own_signal_handlers(site: MemorySite) -> None:
    def handlers() -> list[Any]:
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    async def run() -> None:
        before = handlers()
        async with serve(create_app(site), "127.0.0.1:0"):
            assert handlers() == before
        assert handlers() == before

    asyncio.run(run())


def test_uvicorn_writes_nothing_into_our_log(site: MemorySite, caplog: pytest.LogCaptureFixture) -> None:
    async def use(url: str) -> None:
        site.fault = RuntimeError("broken")
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{url}/live/nothing/1.ts")).status_code == 404
            assert (await client.get(f"{url}/api/streams")).status_code == 500

    with caplog.at_level(logging.INFO):
        served(site, use)
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


def test_a_viewer_who_hangs_up_in_the_middle_of_a_segment_frees_its_file(site: MemorySite) -> None:
    (site.live_dir / "news" / "slow.ts").write_bytes(bytes(SLOW))

    async def use(url: str) -> None:
        reader, writer = await connect(url)
        writer.write(b"GET /live/news/slow.ts HTTP/1.1\r\nHost: relay\r\n\r\n")
        await reader.readexactly(100_000)
        assert held("slow.ts") == 1  # the viewer's socket is full and the rest of the file waits for it
        writer.transport.abort()
        await comes_true(lambda: not held("slow.ts"))

    served(site, use)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="not Linux")
def test_a_viewer_who_takes_nothing_any_more_is_cut_off_and_frees_its_file(site: MemorySite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hlsrelay.web.port.STUCK_CLIENT_MS", 500)
    (site.live_dir / "news" / "slow.ts").write_bytes(bytes(SLOW))

    async def use(url: str) -> None:
        reader, writer = await connect(url)
        writer.write(b"GET /live/news/slow.ts HTTP/1.1\r\nHost: relay\r\n\r\n")
        await reader.readexactly(100_000)
        await comes_true(lambda: not held("slow.ts"))
        writer.transport.abort()

    served(site, use)


def test_a_viewer_who_takes_nothing_holds_a_stop_up_for_the_grace_period_only(site: MemorySite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hlsrelay.web.server.STOP_GRACE_S", 1)
    (site.live_dir / "news" / "slow.ts").write_bytes(bytes(SLOW))
    kept: list[asyncio.StreamWriter] = []

    async def use(url: str) -> None:
        reader, writer = await connect(url)
        kept.append(writer)
        writer.write(b"GET /live/news/slow.ts HTTP/1.1\r\nHost: relay\r\n\r\n")
        await reader.readexactly(100_000)

    async def run() -> None:
        before = asyncio.all_tasks()
        async with asyncio.timeout(10):
            async with serve(create_app(site), "127.0.0.1:0") as url:
                await use(url)
            assert asyncio.all_tasks() == before
            kept[0].transport.abort()
            await kept[0].wait_closed()

    opened = descriptors()
    asyncio.run(run())
    assert descriptors() == opened


def test_a_stop_lets_a_viewer_finish_the_segment_it_is_reading(site: MemorySite) -> None:
    (site.live_dir / "news" / "slow.ts").write_bytes(bytes(SLOW))

    async def run() -> None:
        async with serve(create_app(site), "127.0.0.1:0") as url:
            reader, writer = await connect(url)
            writer.write(b"GET /live/news/slow.ts HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            rest = asyncio.create_task(reader.read(-1))
        assert len(await rest) == SLOW
        writer.close()
        await writer.wait_closed()

    asyncio.run(run())


LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
Loop = Callable[[], asyncio.AbstractEventLoop]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@LOOPS
def test_viewers_who_stall_in_a_segment_hold_none_of_its_bytes(site: MemorySite, loop: Loop) -> None:
    (site.live_dir / "news/720p/814.ts").write_bytes(os.urandom(SLOW))
    count = 40

    async def main() -> None:
        async with serve(create_app(site), "127.0.0.1:0") as url:
            clients = [socket.socket() for _ in range(count + 1)]

            async def begin(one: socket.socket) -> None:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.setblocking(False)
                await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", int(url.rpartition(":")[2])))
                await asyncio.get_running_loop().sock_sendall(one, b"GET /live/news/720p/814.ts HTTP/1.1\r\nHost: x\r\n\r\n")
                await asyncio.get_running_loop().sock_recv(one, 100)

            await begin(clients[0])
            before = resident_bytes()
            for one in clients[1:]:
                await begin(one)
            await comes_true(lambda: held("814.ts") == count + 1)
            assert resident_bytes() - before < count * 100_000
            for one in clients:
                one.close()
            await comes_true(lambda: held("814.ts") == 0)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@LOOPS
def test_answers_over_one_connection_come_whole_and_in_order_however_slowly_they_are_taken(site: MemorySite, loop: Loop) -> None:
    asked = ["index.m3u8", *["813.ts", "812.ts"] * 4, "none.ts", "index.m3u8"]
    request = "".join(f"GET /live/news/720p/{name} HTTP/1.1\r\nHost: x\r\n\r\n" for name in asked)
    bodies = {"index.m3u8": PLAYLIST, "813.ts": os.urandom(SLOW // 4), "812.ts": os.urandom(SMALL_BYTES)}
    for name in ("812.ts", "813.ts"):
        (site.live_dir / "news/720p" / name).write_bytes(bodies[name])

    async def main() -> None:
        async with serve(create_app(site), "127.0.0.1:0") as url:
            reader, writer = await connect(url)
            writer.write(request.encode())
            for name in asked:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
                assert head.startswith(b"HTTP/1.1 200" if name in bodies else b"HTTP/1.1 404")
                assert head.count(b"\r\ndate: ") == 1
                assert body == bodies.get(name, body)
            writer.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


def test_a_fault_of_ours_is_said_as_such_and_the_connection_stays(site: MemorySite, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> bytes | None:
        raise ZeroDivisionError(path)

    async def use(url: str) -> None:
        async with httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=1)) as client:
            with monkeypatch.context() as patch:
                patch.setattr(site, "playlist", broken)
                found = await client.get(f"{url}/live/news/720p/index.m3u8")
            assert (found.status_code, found.text.split(":")[0]) == (500, "Something went wrong here; the relay's log says what.\n")
            assert (await client.get(f"{url}/live/news/720p/index.m3u8")).content == PLAYLIST

    served(site, use)


def test_a_file_waits_for_what_was_written_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    events = list[str]()
    transport = Mock(**{"get_write_buffer_size.side_effect": lambda: 0 if "drained" in events else 5})

    async def drained() -> None:
        events.append("drained")

    cycle = Mock(transport=transport, disconnected=False, expected_content_length=9, flow=Mock(drain=drained))

    def sent(_socket: int, _file: int, _offset: int, count: int) -> int:
        events.append("sent")
        return count

    monkeypatch.setattr(os, "sendfile", sent)
    asyncio.run(direct._send_file(cycle, 3, 0, 9))
    assert events == ["drained", "sent"]
    assert cycle.expected_content_length == 0
