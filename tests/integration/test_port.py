"""A port that several processes of ours have: none of its connections is lost when one of them goes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path

import pytest
import uvloop

from hlsrelay.web import create_app, serve
from hlsrelay.web.port import giving, listening
from tests.hammer import Hammer
from tests.integration.memory_site import MemorySite, descriptors
from tests.waiting import comes_true

REPLACED = 6
ANSWERED_MEANWHILE = 40


def free_http() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@contextmanager
def closed_at_last(sockets: list[socket.socket]) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        for one in sockets:
            stack.enter_context(one)
        yield sockets


def inodes(sockets: list[socket.socket]) -> list[int]:
    return [Path(f"/proc/self/fd/{one.fileno()}").stat().st_ino for one in sockets]


def test_no_connection_is_lost_while_who_serves_a_port_is_replaced_again_and_again(tmp_path: Path) -> None:
    site, http = MemorySite(tmp_path), free_http()

    async def run() -> Hammer:
        hammer = Hammer(int(http.rpartition(":")[2]))
        old = AsyncExitStack()
        await old.enter_async_context(serve(create_app(site), http, name="0"))
        hammer.start()
        for number in range(1, REPLACED + 1):
            new = AsyncExitStack()
            await new.enter_async_context(serve(create_app(site), http, name=f"{number}", beside=[f"{number - 1}"]))
            answers = hammer.answers
            await old.aclose()
            await comes_true(lambda answers=answers: hammer.answers >= answers + ANSWERED_MEANWHILE)  # type: ignore[misc]
            old = new
        await asyncio.to_thread(hammer.end)
        await old.aclose()
        return hammer

    uvloop.run(asyncio.sleep(0))  # it opens a pipe that stays
    opened = descriptors()
    hammer = uvloop.run(run())
    assert hammer.failures == {}
    assert hammer.answers > REPLACED * ANSWERED_MEANWHILE
    assert descriptors() == opened


def test_who_comes_has_the_sockets_of_all_that_are_there_each_once_and_only_those_of_its_address() -> None:
    async def run() -> None:
        http, other = free_http(), free_http()
        with (
            closed_at_last(await listening(http)) as first,
            closed_at_last(await listening(http, ["nobody of this name"])) as second,
            closed_at_last(await listening(other)) as elsewhere,
            giving(first, "first"),
            giving([*second, *first, *elsewhere], "second"),
            closed_at_last(await listening(http, ["first", "second"])) as third,
        ):
            assert inodes(second) != inodes(first), "a socket of its own beside it"
            assert inodes(third) == [*inodes(first), *inodes(second)]
            with closed_at_last(await listening("127.0.0.1:0", ["first"])) as free:
                assert inodes(free) != inodes(first), "any free port is none that another has"

    opened = descriptors()
    asyncio.run(run())
    assert descriptors() == opened


def test_who_stands_still_gives_nothing_and_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hlsrelay.web.port.GIVEN_WITHIN_S", 0.05)

    async def run() -> None:
        http = free_http()
        with closed_at_last(await listening(http)) as first, socket.socket(socket.AF_UNIX) as door:
            door.bind("\0hlsrelay.still")
            door.listen()
            with closed_at_last(await listening(http, ["still"])) as second:
                assert inodes(second) != inodes(first)

    asyncio.run(run())


def test_sockets_are_neither_given_to_nor_taken_from_processes_of_other_users(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        http = free_http()
        with closed_at_last(await listening(http)) as first, giving(first, "ours"):
            monkeypatch.setattr("hlsrelay.web.port.os.geteuid", lambda: -2)
            with closed_at_last(await listening(http, ["ours"])) as second:
                assert inodes(second) != inodes(first)

    asyncio.run(run())
