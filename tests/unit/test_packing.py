"""Commands go to Redis as redis-py has them, though they are packed in C."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Connection

from hlsrelay.redis_registry import RedisRegistry, _packing

KIND: Any = Connection
BIG = "x" * 100_000


@pytest.mark.parametrize(
    "words",
    [
        ("EVALSHA", "c0", 2, "hlsrelay:stream:news", "", "ein Ü", BIG),
        ("CONFIG GET", "save"),
        ("SCAN", 0, "MATCH", b"hlsrelay:*", "COUNT", 500),
        ("SET", "at", 1.5, "EX", 3),
        ("HSET", "s", "error", "not UTF-8: \udcff"),
        (b"PING",),
        ("SET", "view", memoryview(b"bytes")),
    ],
)
def test_a_command_is_packed_as_redis_py_would(words: tuple[Any, ...]) -> None:
    options = {"encoding_errors": "replace", "decode_responses": True}
    theirs, ours = KIND(**options), _packing(Connection)(**options)
    assert b"".join(ours.pack_command(*words)) == b"".join(theirs.pack_command(*words))


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "rediss://127.0.0.1:1/0", "unix:///nowhere/redis.sock"])
def test_commands_are_packed_in_c_however_redis_is_reached(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = list[tuple[object, ...]]()
    monkeypatch.setattr("hiredis.pack_command", packed.append)
    connection: Any = RedisRegistry(url)._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    connection.pack_command("PING")
    assert packed == [("PING",)]
