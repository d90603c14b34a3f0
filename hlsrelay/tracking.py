"""Hears from Redis which keys change, as they do (client tracking, https://redis.io/docs/latest/develop/reference/client-side-caching/).

With RESP2 a client is told over a channel; the connection that is told may be the one that asked for it. What redis-py raises comes out
as it is: registry translates it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import redis.asyncio
import redis.exceptions

from hlsrelay.errors import HlsRelayError

INVALIDATED = "__redis__:invalidate"
SIGN_OF_LIFE_S = 1.0
SILENT_FOR_S = 3.0


class Untracked(HlsRelayError):
    """Redis answers, and can't tell what changes: an old server, a proxy, or an ACL that does not allow it."""


async def invalidated(client: redis.asyncio.Redis, *prefixes: str) -> AsyncGenerator[list[str] | None, None]:
    """Yield the keys that begin with one of *prefixes* and changed; None where any may have, as at first. Raises Untracked.

    A connection of its own is asked for a sign of life each second: one that says nothing for SILENT_FOR_S may be dead.
    """
    connection: Any = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    connection.socket_timeout = SILENT_FOR_S
    asking: asyncio.Task[None] | None = None
    try:
        await connection.connect()
        try:
            number = await _answer(connection, "CLIENT", "ID")
            words = [word for prefix in prefixes for word in ("PREFIX", prefix)]
            await _answer(connection, "CLIENT", "TRACKING", "on", "REDIRECT", str(number), "BCAST", *words)
            await _answer(connection, "SUBSCRIBE", INVALIDATED)
        except redis.exceptions.ResponseError as error:
            raise Untracked(str(error)) from None
        asking = asyncio.create_task(_asking(connection), name="client tracking")
        yield None
        while True:
            kind, *rest = await connection.read_response()
            if kind == "message":
                yield rest[1]
    finally:
        if asking:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await connection.disconnect()


async def _answer(connection: Any, *words: str) -> Any:
    await connection.send_command(*words)
    return await connection.read_response()


async def _asking(connection: Any) -> None:
    with suppress(redis.exceptions.RedisError, OSError):  # its reader hears of it too
        while True:
            await asyncio.sleep(SIGN_OF_LIFE_S)
            await connection.send_command("PING")
