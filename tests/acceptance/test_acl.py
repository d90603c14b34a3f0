"""The Redis users that deploy/README.md gives hlsrelay and its operators' programs: they can do what they need to, and nothing else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from hlsrelay.redis_registry import RedisRegistry
from hlsrelay.registry import Heard
from tests.acceptance.nodes import working
from tests.acceptance.relay_process import RedisServer, environment, hlsrelay, redis_server
from tests.needs import needs
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, needs("redis-server", "redis-cli")]

GUIDE = Path(__file__).parents[2] / "deploy" / "README.md"
LINES = {line.split()[2]: line.replace("PASSWORD", "secret").split() for line in re.findall(r"(?m)^ACL SETUSER .+$", GUIDE.read_text())}
NOT_SEEN = {"client|id", "client|tracking", "subscribe", "unsubscribe", "select"}
"""Granted, and not in the figures after this test: commands of a connection that is set up, or of another database than 0."""


class User(RedisServer):
    """What a user of Redis is reached by."""

    @property
    def url(self) -> str:
        """What HLSRELAY_REDIS_URL is set to."""
        return f"unix://hlsrelay:secret@{self.socket}"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        for line in LINES.values():
            assert server.cli(*line) == "OK"
        yield server


def connected(server: RedisServer, user: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket), username=user, password="secret", protocol=2, decode_responses=True)


async def everything(registry: RedisRegistry, server: RedisServer) -> set[str]:
    """Ask a registry for all that it can do; returns the names of its methods that were asked."""
    asked: set[str] = set()

    async def ask(method: Any, *arguments: Any, **more: Any) -> Any:
        asked.add(method.__name__)
        answer: Awaitable[Any] = method(*arguments, **more)
        return await answer

    await ask(registry.ping)
    asked.add("heard")
    hearing = registry.heard()
    assert await anext(hearing) is None
    with redis.Redis(unix_socket_path=str(server.socket), username="operator", password="secret", protocol=2) as operator:
        operator.rpush("hlsrelay:queue", "one")
    assert await anext(hearing) == Heard(frozenset(("one",)))
    await hearing.aclose()
    assert await ask(registry.register, "one", {"source": "https://example.com/x.m3u8", "window": "30"})
    assert await ask(registry.change, "one", {"desired": "run"}, ("window",))
    last = await ask(registry.beat, "a", None, {"name": "a"})
    await ask(registry.beat, "a", last, {"name": "a"})
    epoch = await ask(registry.claim, "one", "a", {"node": "a"})
    assert epoch > 0
    await ask(registry.claim, "one", "b", {"node": "b"})  # each way through the script
    assert await ask(registry.report, "one", {"state": "running", "lag": "0.1"}, epoch)
    assert await registry.report("one", {"lag": "0.2"}, epoch, position="here", soon=False)
    assert await ask(registry.carried, "one") == "here"
    assert (await ask(registry.follow, "one"))[0]
    assert await ask(registry.get, "one")
    assert await ask(registry.all)
    assert await ask(registry.ids) == (["one"], 0)
    assert (await ask(registry.hashes, ["one"]))[0][1]
    assert await ask(registry.sessions)
    assert (await ask(registry.leases, ["a"])).told
    assert await ask(registry.tell_session, "a", {"wish": "drain"})
    await ask(registry.tell, "a", "{}", 10)
    assert await ask(registry.told)
    assert await ask(registry.delete, "one")
    await ask(registry.leave, "a")
    await registry.aclose()
    return asked


def granted(user: str) -> set[str]:
    return {word.removeprefix("+") for word in LINES[user] if word.startswith("+")}


def used(server: RedisServer) -> set[str]:
    """Return the commands that were carried out since the figures were reset, those of scripts too."""
    return {line.partition(":")[0].removeprefix("cmdstat_") for line in server.cli("INFO", "commandstats").split() if "calls=" in line}


def refused(server: RedisServer) -> list[str]:
    """Return what was refused for want of a right, as Redis logged it."""
    return re.findall(r"(?m)^object\n(.+)$", server.cli("ACL", "LOG"))


def test_the_registry_needs_no_other_right_than_the_guide_gives_and_each_of_these(server: RedisServer) -> None:
    server.cli("CONFIG", "RESETSTAT")
    asked = asyncio.run(everything(RedisRegistry(User(server.socket).url), server))
    assert asked == {name for name in vars(RedisRegistry) if not name.startswith("_")} - {"aclose"}, "ask the new ones in `everything`"
    assert refused(server) == []
    by_the_test = {"acl|log", "config|resetstat", "info", "auth", "hello", "rpush"}  # and what everybody may
    assert used(server) - by_the_test <= granted("hlsrelay")
    assert granted("hlsrelay") - used(server) <= NOT_SEEN


@pytest.mark.night
def test_workers_and_all_commands_need_no_other_right(server: RedisServer, tmp_path: Path) -> None:
    user = User(server.socket)
    env = environment(tmp_path / "a", user)
    with (
        working("a", tmp_path / "a", server, HLSRELAY_REDIS_URL=user.url),
        working("b", tmp_path / "b", server, HLSRELAY_REDIS_URL=user.url),
    ):
        hlsrelay("add", "news", "http://127.0.0.1:1/x.m3u8", env=env)
        first = until(lambda: server.cli("HGET", "hlsrelay:stream:news", "node") or None)
        until(lambda: "load" in server.cli("HGET", "hlsrelay:stat:news", "last_error"))
        second = "b" if first == "a" else "a"
        hlsrelay("move", "news", second, env=env)
        hlsrelay("drain", second, env=env)
        until(lambda: server.cli("HGET", "hlsrelay:stream:news", "node") == first)
        for words in (("ls",), ("nodes",), ("ps",), ("show", "news"), ("set", "news", "window=30"), ("stop", "news"), ("rm", "news")):
            hlsrelay(*words, env=env)
    assert refused(server) == []


@pytest.mark.parametrize(
    "command",
    [
        *(
            "FLUSHALL",
            "FLUSHDB",
            "KEYS *",
            "CONFIG GET *",
            "ACL LIST",
            "SHUTDOWN",
            "MONITOR",
            "SCRIPT FLUSH",
            "CLIENT LIST",
        ),
        *("GET other", "SET other 1", "DEL other", "HSET other a b", "SUBSCRIBE other", "PUBLISH other 1"),
        "EVAL return(redis.call('GET','other')) 0",
        "EVAL return(redis.call('FLUSHALL')) 0",
        "EVAL return(1) 1 other",
    ],
)
@pytest.mark.parametrize("name", ["hlsrelay", "operator"])
def test_what_is_not_hlsrelays_is_refused(redis_of_all: RedisServer, name: str, command: str) -> None:
    with connected(redis_of_all, name) as user, pytest.raises(redis.exceptions.RedisError, match=r"(?i)no permissions?|can't (run|access)"):
        user.execute_command(*command.split())
    assert redis_of_all.cli("GET", "other") == "kept"


@pytest.fixture(scope="module")
def redis_of_all() -> Iterator[RedisServer]:
    with redis_server() as server:
        for line in LINES.values():
            server.cli(*line)
        server.cli("SET", "other", "kept")
        yield server


def test_an_operators_program_writes_reads_and_deletes_streams_and_reaches_nothing_beside_them(server: RedisServer) -> None:
    with connected(server, "operator") as user:
        key = "hlsrelay:stream:news"
        assert user.hset(key, mapping={"source": "https://example.com/x.m3u8", "desired": "run"})
        assert user.hgetall(key) == {"source": "https://example.com/x.m3u8", "desired": "run"}
        assert user.hget(key, "desired") == "run"
        assert user.hdel(key, "desired")
        assert user.delete(key)
        for other in ("hlsrelay:life", "hlsrelay:nodes", "hlsrelay:node:a", "hlsrelay:pos:news"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                user.hgetall(other)
