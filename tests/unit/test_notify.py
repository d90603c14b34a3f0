"""What a service manager hears: sockets of both kinds, the watchdog's beat from the event loop, and nothing where nobody listens."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hlsrelay.notify import BEAT, BEATS_PER_LIMIT, READY, STOPPING, notifying, watchdog_s
from tests.virtual import elapse, run_virtually

LIMIT_S = 0.09


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A manager's socket, and what NOTIFY_SOCKET names it by."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@hlsrelay-test-{os.getpid()}-{id(request)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        listening.settimeout(5)
        yield listening, name


def test_the_manager_is_told_what_we_say_and_that_we_leave(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager

    async def serve() -> None:
        leaving = asyncio.Event()
        async with notifying(leaving, {"NOTIFY_SOCKET": name}) as tell:
            tell(f"{READY}\nSTATUS=all is well")
            leaving.set()
            await asyncio.to_thread(said.append, listening.recv(99).decode())
            said.append((await asyncio.to_thread(listening.recv, 99)).decode())

    said: list[str] = []
    asyncio.run(serve())
    assert said == ["READY=1\nSTATUS=all is well", STOPPING]
    listening.setblocking(False)
    with pytest.raises(BlockingIOError):  # it was told once
        listening.recv(99)


def test_an_end_that_nobody_asked_for_is_told_too(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager

    async def serve() -> None:
        async with notifying(asyncio.Event(), {"NOTIFY_SOCKET": name}):
            pass

    asyncio.run(serve())
    assert listening.recv(99).decode() == STOPPING


def test_a_loop_that_is_stuck_beats_no_more_and_one_that_goes_on_does(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager
    stuck, freed, ended = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        stuck.set()
        freed.wait(10)

    async def serve() -> None:
        loop.append(asyncio.get_running_loop())
        async with notifying(asyncio.Event(), {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": str(int(LIMIT_S * 1e6))}):
            await asyncio.to_thread(ended.wait)

    loop: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert [listening.recv(99).decode() for _ in range(3)] == [BEAT] * 3
        loop[0].call_soon_threadsafe(hold)
        assert stuck.wait(10)
        listening.setblocking(False)
        while True:  # what came before it was stuck
            try:
                listening.recv(99)
            except BlockingIOError:
                break
        listening.settimeout(3 * LIMIT_S)
        with pytest.raises(TimeoutError):
            listening.recv(99)
        freed.set()
        listening.settimeout(5)
        assert listening.recv(99).decode() == BEAT
    finally:
        freed.set()
        ended.set()
        thread.join(10)


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": "/nobody/is/there"}])
def test_where_no_manager_listens_nothing_happens(environment: dict[str, str]) -> None:
    async def serve() -> None:
        async with notifying(asyncio.Event(), environment | {"WATCHDOG_USEC": "1000"}) as tell:
            tell(READY)
            await elapse(1.0)

    run_virtually(serve())


def test_a_manager_with_no_room_is_not_waited_for(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager

    async def serve() -> None:
        async with asyncio.timeout(10), notifying(asyncio.Event(), {"NOTIFY_SOCKET": name}) as tell:
            for _ in range(5000):
                tell(READY)

    asyncio.run(serve())
    assert listening.recv(99).decode() == READY


def test_the_watchdog_is_fed_only_where_it_watches_this_process() -> None:
    assert BEATS_PER_LIMIT >= 2
    assert watchdog_s({"WATCHDOG_USEC": "30000000"}) == 30.0
    assert watchdog_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 30.0
    assert watchdog_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    for odd in ("", "0", "-1", "soon"):
        assert watchdog_s({"WATCHDOG_USEC": odd}) is None
