"""The registry of streams: what operators write to Redis and the relay writes back. The only module that imports redis.

Commands ask it and wait. A running relay never does: a `Link` reads its stream's hash beside it, hands on the newest good fields,
and carries reports back, newest first; while Redis is away both simply stand still.

Laws:
- A stream whose hash is gone was deleted by its operator: its relay ends. But a Redis that has lost all it had (restarted without
  persistence, flushed) has deleted nothing: who relays a stream writes it back, as the operator last had it, and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Protocol

import redis.asyncio
import redis.exceptions
import structlog

from hlsrelay.embedded import EmbeddedRedis
from hlsrelay.errors import ConfigError, HlsRelayError, RegistryUnavailable, UnknownStream
from hlsrelay.fields import RELAY_FIELDS, Registered
from hlsrelay.processes import Children
from hlsrelay.redis_keys import CHANGE, REGISTER, REPORT, Keys
from hlsrelay.settings import Settings

ANSWER_WITHIN_S = 3.0

log = structlog.get_logger()


class Registry(Protocol):
    """What commands and links need. Every method raises RegistryUnavailable where Redis does not answer."""

    async def get(self, stream_id: str) -> Registered | None:
        """Return one stream's fields."""

    async def follow(self, stream_id: str) -> tuple[Registered | None, str]:
        """Return one stream's fields, and the life of the registry that they are of: another one has lost what the last one had."""

    async def all(self) -> list[Registered]:
        """Return every stream, by id."""

    async def register(self, stream_id: str, fields: Mapping[str, str]) -> bool:
        """Write a new stream; False where one of that id exists."""

    async def change(self, stream_id: str, fields: Mapping[str, str], unset: tuple[str, ...] = ()) -> bool:
        """Set and unset operators' fields of a stream; False where there is none of that id."""

    async def delete(self, stream_id: str) -> bool:
        """Forget a stream; False where there is none of that id."""

    async def report(self, stream_id: str, fields: Mapping[str, str]) -> bool:
        """Write what the relay knows; False, and nothing written, where the operator has deleted the stream."""

    async def tell(self, incarnation: str, vitals: str, kept_s: int) -> None:
        """Keep what an hlsrelay process tells of itself (statuses) for *kept_s*."""

    async def told(self) -> list[str]:
        """Return what all processes have told."""


class RedisRegistry:
    """The registry in Redis, every change of several steps one Lua script."""

    def __init__(self, url: str, prefix: str = "hlsrelay:") -> None:
        self._keys = Keys(prefix)
        try:
            # Both set explicitly: defaults change between versions of the library, and a frozen Redis must not hold us for long.
            self._redis = redis.asyncio.Redis.from_url(
                url,
                decode_responses=True,
                encoding_errors="replace",
                protocol=2,
                socket_timeout=ANSWER_WITHIN_S,
                socket_connect_timeout=ANSWER_WITHIN_S,
            )
        except (ValueError, redis.exceptions.RedisError) as error:
            raise ConfigError(f"HLSRELAY_REDIS_URL {url!r} is no Redis URL: {error}") from None
        self._where = url.rpartition("@")[2]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def ping(self) -> None:
        """Raise RegistryUnavailable unless Redis answers."""
        await self._asked(self._redis.ping)

    async def get(self, stream_id: str) -> Registered | None:
        """See Registry."""
        fields = await self._asked(lambda: self._redis.hgetall(self._keys.stream(stream_id)))
        return Registered(stream_id, fields) if fields else None

    async def follow(self, stream_id: str) -> tuple[Registered | None, str]:
        """See Registry."""

        async def read() -> tuple[dict[str, str], str | None]:
            # No script: on a cluster the keys are in two slots. If all is lost between two of these, the life is another one's.
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.set(self._keys.life(), uuid.uuid4().hex, nx=True)
            pipeline.hgetall(self._keys.stream(stream_id))
            pipeline.get(self._keys.life())
            _, fields, life = await pipeline.execute()
            return fields, life

        fields, life = await self._asked(read)
        return (Registered(stream_id, fields) if fields else None), life or ""

    async def all(self) -> list[Registered]:
        """See Registry."""

        async def scan() -> list[Registered]:
            keys = sorted({key async for key in self._redis.scan_iter(match=self._keys.stream_pattern(), count=500, _type="HASH")})
            pipeline = self._redis.pipeline(transaction=False)
            for key in keys:
                pipeline.hgetall(key)
            answers = await pipeline.execute() if keys else []
            return [Registered(self._keys.stream_id(key), fields) for key, fields in zip(keys, answers, strict=True) if fields]

        found: list[Registered] = await self._asked(scan)
        return found

    async def register(self, stream_id: str, fields: Mapping[str, str]) -> bool:
        """See Registry."""
        return bool(await self._asked(lambda: self._redis.eval(REGISTER, 1, self._keys.stream(stream_id), *_flat(fields))))

    async def change(self, stream_id: str, fields: Mapping[str, str], unset: tuple[str, ...] = ()) -> bool:
        """See Registry."""
        arguments = (str(len(unset)), *unset, *_flat(fields))
        return bool(await self._asked(lambda: self._redis.eval(CHANGE, 1, self._keys.stream(stream_id), *arguments)))

    async def delete(self, stream_id: str) -> bool:
        """See Registry."""
        return bool(await self._asked(lambda: self._redis.delete(self._keys.stream(stream_id))))

    async def report(self, stream_id: str, fields: Mapping[str, str]) -> bool:
        """See Registry."""
        return bool(await self._asked(lambda: self._redis.eval(REPORT, 1, self._keys.stream(stream_id), *_flat(fields))))

    async def tell(self, incarnation: str, vitals: str, kept_s: int) -> None:
        """See Registry."""
        await self._asked(lambda: self._redis.set(self._keys.vitals(incarnation), vitals, ex=kept_s))

    async def told(self) -> list[str]:
        """See Registry."""

        async def scan() -> list[str]:
            keys = sorted({key async for key in self._redis.scan_iter(match=self._keys.vitals_pattern(), count=500, _type="STRING")})
            return [str(text) for text in (await self._redis.mget(keys) if keys else []) if text]

        found: list[str] = await self._asked(scan)
        return found

    async def _asked(self, ask: Callable[[], Any]) -> Any:
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task else 0
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S + 1):
                answer = await ask()
                # redis-py sends through asyncio.wait_for, which before Python 3.12 drops a cancellation that comes as it is done.
                if task and task.cancelling() > cancelled_before:
                    raise asyncio.CancelledError
                return answer
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, TimeoutError, OSError) as error:
            told = str(error) or "no answer"
            raise RegistryUnavailable(f"Redis at {self._where} does not answer ({told}): start it, or set HLSRELAY_REDIS_URL") from None
        except (redis.exceptions.RedisError, ValueError) as error:
            raise RegistryUnavailable(f"Redis at {self._where} refused: {error}") from None


class MemoryRegistry:
    """A registry in memory, behind the same contract: for tests that need speed or a virtual clock."""

    def __init__(self) -> None:
        self.streams: dict[str, dict[str, str]] = {}
        self.vitals: dict[str, str] = {}
        self.away = False
        self.lives = 1

    def lose(self) -> None:
        """Lose all that is registered, as a Redis does that is restarted without persistence."""
        self.streams.clear()
        self.lives += 1

    def _answering(self) -> None:
        if self.away:
            raise RegistryUnavailable("the registry is away")

    async def get(self, stream_id: str) -> Registered | None:
        """See Registry."""
        self._answering()
        fields = self.streams.get(stream_id)
        return Registered(stream_id, dict(fields)) if fields else None

    async def follow(self, stream_id: str) -> tuple[Registered | None, str]:
        """See Registry."""
        return await self.get(stream_id), str(self.lives)

    async def all(self) -> list[Registered]:
        """See Registry."""
        self._answering()
        return [Registered(stream_id, dict(fields)) for stream_id, fields in sorted(self.streams.items())]

    async def register(self, stream_id: str, fields: Mapping[str, str]) -> bool:
        """See Registry."""
        self._answering()
        if stream_id in self.streams:
            return False
        self.streams[stream_id] = dict(fields)
        return True

    async def change(self, stream_id: str, fields: Mapping[str, str], unset: tuple[str, ...] = ()) -> bool:
        """See Registry."""
        self._answering()
        if stream_id not in self.streams:
            return False
        kept = {name: value for name, value in self.streams[stream_id].items() if name not in unset}
        self.streams[stream_id] = {**kept, **fields}
        return True

    async def delete(self, stream_id: str) -> bool:
        """See Registry."""
        self._answering()
        return self.streams.pop(stream_id, None) is not None

    async def report(self, stream_id: str, fields: Mapping[str, str]) -> bool:
        """See Registry."""
        return await self.change(stream_id, fields)

    async def tell(self, incarnation: str, vitals: str, kept_s: int) -> None:  # noqa: ARG002
        """See Registry; it is kept for good."""
        self._answering()
        self.vitals[incarnation] = vitals

    async def told(self) -> list[str]:
        """See Registry."""
        self._answering()
        return list(self.vitals.values())


class Link:
    """Keeps one stream's relay and its hash in Redis in step, beside the relay: neither ever waits for the other."""

    PERIOD_S = 0.5

    def __init__(self, registry: Registry, stream_id: str, revive: Callable[[], Awaitable[object]] | None = None) -> None:
        self._registry = registry
        self._stream_id = stream_id
        self._revive = revive
        self._pending: dict[str, str] = {}
        self._reported: dict[str, str] = {}
        self._woken = asyncio.Event()
        self.up = True

    def report(self, **fields: str) -> None:
        """Have *fields* written soon; a later value of a field replaces one not written yet."""
        unknown = set(fields) - set(RELAY_FIELDS)
        if unknown:
            raise AssertionError(f"not a field of the relay's: {unknown}")
        self._pending |= fields
        self._woken.set()

    async def changes(self) -> AsyncGenerator[Registered | None, None]:
        """Yield the stream's hash whenever the operator changed it, None once it is deleted; carry reports back meanwhile."""
        last: Mapping[str, str] | None = None
        lived = ""
        while True:
            try:
                await self.flush()
                now, life = await self._registry.follow(self._stream_id)
                if now is None and last and life != lived:
                    now = await self._restored(last)
                lived = life
                self.up = True
            except RegistryUnavailable:
                self.up = False
                if self._revive is not None:
                    with contextlib.suppress(HlsRelayError):
                        await self._revive()
            else:
                wishes = {name: value for name, value in now.fields.items() if name not in RELAY_FIELDS} if now else None
                if wishes != last:
                    last = wishes
                    yield now
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.PERIOD_S):
                    await self._woken.wait()
            self._woken.clear()

    async def _restored(self, wishes: Mapping[str, str]) -> Registered | None:
        """Write the stream back to a registry that has lost it; what others have written there meanwhile counts for more."""
        if await self._registry.register(self._stream_id, {**wishes, **self._reported}):
            log.warning("stream.restored", stream=self._stream_id, reason="Redis has lost all that it had")
        return await self._registry.get(self._stream_id)

    async def flush(self) -> None:
        """Write what is pending now. Raises RegistryUnavailable, and keeps it then."""
        sending, self._pending = self._pending, {}
        if not sending:
            return
        self._reported |= sending
        try:
            await self._registry.report(self._stream_id, sending)
        except RegistryUnavailable:
            self._pending = sending | self._pending
            raise


async def fetched(registry: Registry, stream_id: str) -> Registered:
    """Return the stream of that id. Raises UnknownStream that says how to register it."""
    found = await registry.get(stream_id)
    if found is None:
        raise UnknownStream(f"no stream '{stream_id}' is registered: hlsrelay add {stream_id} <URL of its HLS playlist>")
    return found


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [word for pair in fields.items() for word in pair]


@contextlib.asynccontextmanager
async def open_registry(settings: Settings, children: Children) -> AsyncGenerator[tuple[RedisRegistry, EmbeddedRedis | None], None]:
    """Give the registry that the settings name, answering; the embedded one is started where nobody else runs it."""
    embedded = None if settings.redis_url else EmbeddedRedis(settings.data, children)
    try:
        registry = RedisRegistry(await embedded.ensure() if embedded else settings.redis_url, settings.redis_prefix)
        try:
            await registry.ping()
            yield registry, embedded
        finally:
            await registry.aclose()
    finally:
        if embedded:
            await embedded.aclose()
