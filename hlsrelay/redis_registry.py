"""The registry in Redis: keys and scripts are redis_keys'. Only it and tracking import redis."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import math
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

import hiredis
import redis.asyncio
import redis.exceptions

from hlsrelay.embedded import EmbeddedRedis
from hlsrelay.errors import ConfigError, RegistryUnavailable, Superseded
from hlsrelay.fields import Registered
from hlsrelay.processes import Children
from hlsrelay.redis_keys import BEAT, CHANGE, CLAIM, HASHES, LEASES, REGISTER, REPORT, SESSIONS, Keys
from hlsrelay.registry import LEASE_S, Beat, Heard, Leases, Session, apart
from hlsrelay.settings import Settings
from hlsrelay.tracking import invalidated

ANSWER_WITHIN_S = 3.0
ASKED_AT_ONCE = 8
"""So many connections a process has, and a few: hundreds of streams that report at a time wait for one another, a beat for none."""
SCANNED_AT_ONCE = 500
READ_AT_ONCE = 200
RUNG_AT_ONCE = 200


Words = tuple[tuple[str, ...], tuple[str, ...]]
"""The keys and the arguments of a script."""


class RedisRegistry:
    """The registry in Redis, every change of several steps one Lua script."""

    def __init__(self, url: str, prefix: str = "hlsrelay:") -> None:
        self._keys = Keys(prefix)
        try:
            # Both set explicitly: defaults change between versions of the library, and a frozen Redis must not hold us for long. How long
            # an answer may take `_asked` watches: the library would make a task for each command that it sends.
            self._redis = redis.asyncio.Redis.from_url(
                url,
                decode_responses=True,
                encoding_errors="replace",
                protocol=2,
                socket_timeout=None,
                socket_connect_timeout=ANSWER_WITHIN_S,
            )
        except (ValueError, redis.exceptions.RedisError) as error:
            raise ConfigError(f"HLSRELAY_REDIS_URL {url!r} is no Redis URL: {error}") from None
        self._redis.connection_pool.connection_class = _packing(self._redis.connection_pool.connection_class)
        self._where = url.rpartition("@")[2]
        self._at_once = asyncio.Semaphore(ASKED_AT_ONCE)
        self._together = Together(self._reported)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._together.aclose()
        await self._redis.aclose()

    async def ping(self) -> None:
        """Raise RegistryUnavailable unless Redis answers."""
        await self._asked(self._redis.ping)

    async def get(self, stream_id: str) -> Registered | None:
        """See Registry."""
        found: list[Registered] = await self._asked(lambda: self._whole([stream_id]))
        return found[0] if found else None

    async def _whole(self, ids: Iterable[str]) -> list[Registered]:
        """Return streams with their figures; those that are not registered are left out."""
        found = []
        for some in _chunks(ids):
            pipeline = self._redis.pipeline(transaction=False)
            for stream_id in some:
                pipeline.hgetall(self._keys.stream(stream_id))
                pipeline.hgetall(self._keys.figures(stream_id))
            answers = await pipeline.execute()
            for stream_id, fields, figures in zip(some, answers[::2], answers[1::2], strict=True):
                if fields:
                    found.append(Registered(stream_id, {**fields, **figures}))
        return found

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
            keys = [key async for key in self._redis.scan_iter(match=self._keys.stream_pattern(), count=SCANNED_AT_ONCE, _type="HASH")]
            return await self._whole(sorted({self._keys.stream_id(key) for key in keys}))

        found: list[Registered] = await self._asked(scan)
        return found

    async def hashes(self, ids: Iterable[str]) -> list[tuple[str, Registered | None]]:
        """See Registry."""

        found: list[tuple[str, Registered | None]] = []
        for some in _chunks(ids):
            answers = await self._scripted(HASHES, tuple(map(self._keys.stream, some)), ())
            found += [(one, Registered(one, _paired(flat)) if flat else None) for one, flat in zip(some, answers, strict=True)]
        return found

    async def ids(self, cursor: int = 0) -> tuple[list[str], int]:
        """See Registry."""

        async def scan() -> tuple[list[str], int]:
            ahead, keys = await self._redis.scan(cursor, match=self._keys.stream_pattern(), count=SCANNED_AT_ONCE, _type="HASH")
            return [self._keys.stream_id(str(key)) for key in keys], int(ahead)

        answer: tuple[list[str], int] = await self._asked(scan)
        return answer

    async def heard(self, only: str = "") -> AsyncGenerator[Heard | None, None]:
        """See Registry."""
        # One connection for all: who has heard of a stream has heard of the sessions that came before it.
        prefixes = (self._keys.stream(only),) if only else (self._keys.stream(""), self._keys.queue(), self._keys.node(""))
        async with contextlib.aclosing(invalidated(self._redis, *prefixes)) as told:
            while True:
                # No limit for it as a whole: a Redis where nothing changes has nothing to tell, and each wait in it has its own.
                keys = await self._asked(told.__anext__, within_s=None, at_once=True)
                yield None if keys is None else await self._changed(keys)

    async def _changed(self, keys: list[str]) -> Heard:
        stream, node = self._keys.stream(""), self._keys.node("")
        ids = {key.removeprefix(stream) for key in keys if key.startswith(stream)}
        if self._keys.queue() in keys:
            ids |= set(await self._asked(lambda: self._redis.lpop(self._keys.queue(), RUNG_AT_ONCE)) or ())
        return Heard(frozenset(ids), frozenset(key.removeprefix(node) for key in keys if key.startswith(node)))

    async def register(self, stream_id: str, fields: Mapping[str, str]) -> bool:
        """See Registry."""
        return bool(await self._scripted(REGISTER, (self._keys.stream(stream_id),), _flat(fields)))

    async def change(self, stream_id: str, fields: Mapping[str, str], unset: tuple[str, ...] = ()) -> bool:
        """See Registry."""
        return bool(await self._scripted(CHANGE, (self._keys.stream(stream_id),), (str(len(unset)), *unset, *_flat(fields))))

    async def delete(self, stream_id: str) -> bool:
        """See Registry."""

        async def deleted() -> int:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.delete(self._keys.stream(stream_id))
            pipeline.delete(self._keys.position(stream_id), self._keys.figures(stream_id))
            return int((await pipeline.execute())[0])

        return bool(await self._asked(deleted))

    async def report(self, stream_id: str, fields: Mapping[str, str], epoch: int = 0, *, position: str = "", soon: bool = True) -> bool:
        """See Registry."""
        told, figures = apart(fields)
        keys = self._keys.stream(stream_id), self._keys.figures(stream_id), self._keys.position(stream_id)
        arguments = str(epoch or ""), position, str(2 * len(told)), *_flat(told), *_flat(figures)
        answer = await (self._scripted(REPORT, keys, arguments) if soon else self._together.run(keys, arguments))
        if answer < 0:
            raise Superseded(f"stream '{stream_id}' was taken by another node")
        return bool(answer)

    async def carried(self, stream_id: str) -> str:
        """See Registry."""

        async def read() -> tuple[str, str]:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.hget(self._keys.stream(stream_id), "carried")
            pipeline.get(self._keys.position(stream_id))
            epoch, kept = await pipeline.execute()
            return epoch or "", kept or ""

        epoch, kept = await self._asked(read)
        told, _, text = kept.partition(" ")
        return text if epoch and told == epoch else ""

    async def beat(self, session: str, last: Beat | None, fields: Mapping[str, str], lease_s: float = LEASE_S) -> Beat:
        """See Registry."""
        keys = (self._keys.nodes(), self._keys.node(session), self._keys.meta(), self._keys.life())
        before = (str(last.at_ms), last.life) if last else ("0", "")
        arguments = (session, _ms(lease_s), *before, uuid.uuid4().hex, *_flat(fields))
        at_ms, life = await self._scripted(BEAT, keys, arguments, at_once=True)
        return Beat(int(at_ms), str(life))

    async def tell_session(self, session: str, fields: Mapping[str, str]) -> bool:
        """See Registry."""
        return bool(await self._scripted(CHANGE, (self._keys.node(session),), ("0", *_flat(fields))))

    async def leave(self, session: str) -> None:
        """See Registry."""

        async def left() -> None:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.zrem(self._keys.nodes(), session)
            pipeline.delete(self._keys.node(session))
            await pipeline.execute()

        await self._asked(left)

    async def sessions(self) -> list[Session]:
        """See Registry."""
        now_ms, *told = await self._scripted(SESSIONS, (self._keys.nodes(),), (self._keys.node(""),), at_once=True)
        return sorted((_session(now_ms, one) for one in told), key=lambda one: (one.fields.get("name", ""), one.id))

    async def leases(self, ids: Iterable[str] = ()) -> Leases:
        """See Registry."""
        answer = await self._scripted(LEASES, (self._keys.nodes(),), (self._keys.node(""), *ids), at_once=True)
        now_ms, count, over, ends, *told = answer
        left_s = {name: (float(until) - now_ms) / 1000 for name, until in zip(over[::2], over[1::2], strict=True)}
        next_s = (float(ends) - now_ms) / 1000 if ends else math.inf
        return Leases(count, left_s, next_s, tuple(_session(now_ms, one) for one in told))

    async def claim(
        self, stream_id: str, session: str, fields: Mapping[str, str], *, epoch: int = 0, dead: str = "", lease_s: float = LEASE_S
    ) -> int:
        """See Registry."""
        keys = (self._keys.stream(stream_id), self._keys.nodes(), self._keys.meta())
        return int(await self._scripted(CLAIM, keys, (session, _ms(lease_s), str(epoch), dead, *_flat(apart(fields)[0]))))

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

    async def _reported(self, reports: list[Words]) -> list[Any]:
        """Run REPORT for many, of which each is answered for itself."""

        async def run() -> list[Any]:
            pipeline = self._redis.pipeline(transaction=False)
            for keys, arguments in reports:
                pipeline.evalsha(_digest(REPORT), len(keys), *keys, *arguments)
            return list(await pipeline.execute(raise_on_error=False))

        answers: list[Any] = await self._asked(run)
        for index, (keys, arguments) in enumerate(reports):
            if isinstance(answers[index], redis.exceptions.NoScriptError):
                answers[index] = await self._scripted(REPORT, keys, arguments)
            elif isinstance(answers[index], Exception):
                answers[index] = RegistryUnavailable(f"Redis at {self._where} refused: {answers[index]}")
        return answers

    async def _scripted(self, script: str, keys: tuple[str, ...], arguments: Iterable[str], *, at_once: bool = False) -> Any:
        """Run a script by its digest, *at_once* if it may not wait; Redis is told its text where it does not know it."""

        async def run() -> Any:
            try:
                return await self._redis.evalsha(_digest(script), len(keys), *keys, *arguments)
            except redis.exceptions.NoScriptError:
                return await self._redis.eval(script, len(keys), *keys, *arguments)

        return await self._asked(run, at_once=at_once)

    async def _asked(self, ask: Callable[[], Any], within_s: float | None = ANSWER_WITHIN_S, *, at_once: bool = False) -> Any:
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task else 0
        try:
            async with asyncio.timeout(within_s), contextlib.nullcontext() if at_once else self._at_once:
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


class Together:
    """Has what many streams report in a moment written in one go: a request of its own costs each ten times as much."""

    GATHERED_S = 0.5
    MOST = 200

    def __init__(self, write: Callable[[list[Words]], Awaitable[list[Any]]]) -> None:
        self._write = write
        self._waiting: list[tuple[Words, asyncio.Future[Any]]] = []
        self._writing: set[asyncio.Task[None]] = set()

    async def run(self, keys: tuple[str, ...], arguments: tuple[str, ...]) -> Any:
        """Return the answer to one of them. Raises RegistryUnavailable."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(((keys, arguments), answer))
        if len(self._waiting) == 1:
            task = asyncio.create_task(self._written(), name="reports")
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
        return await answer

    async def _written(self) -> None:
        await asyncio.sleep(self.GATHERED_S)
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), self.MOST):
            some = [(words, answer) for words, answer in waiting[start : start + self.MOST] if not answer.done()]
            try:
                answers = await self._write([words for words, _ in some])
            except Exception as error:  # whatever it is, who waits for an answer has to hear it
                answers = [error] * len(some)
            for (_, answer), found in zip(some, answers, strict=True):
                if answer.done():
                    continue
                if isinstance(found, Exception):
                    answer.set_exception(found)
                else:
                    answer.set_result(found)

    async def aclose(self) -> None:
        """Return once all that was reported is written, or can't be."""
        await asyncio.gather(*self._writing)


def _packing(kind: Any) -> Any:
    """Return a connection that packs commands in C: redis-py's own that waits for nobody takes a dozen calls for each word."""

    class Packing(kind):  # type: ignore[misc]
        def pack_command(self, *words: Any) -> list[bytes]:
            name, *rest = words
            try:
                return [hiredis.pack_command((*name.split(), *rest))]  # "CONFIG GET" are two words
            except (TypeError, UnicodeError):  # what has to be encoded otherwise
                packed: list[bytes] = super().pack_command(*words)
                return packed

    return Packing


def _session(now_ms: int, told: tuple[str, str, list[str]]) -> Session:
    name, until, flat = told
    return Session(name, (float(until) - now_ms) / 1000, _paired(flat))


def _paired(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))


@functools.cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield *ids* a few at a time: what others ask of Redis meanwhile is answered in between."""
    listed = list(ids)
    for start in range(0, len(listed), READ_AT_ONCE):
        yield listed[start : start + READ_AT_ONCE]


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
