"""Nodes that only load Redis, for bench.control_plane: each sends what a node sends, and reads what it reads, and does nothing with it.

A hundred whole nodes with a hundred streams each need more than the two cores of a small machine, in Python; Redis does not. What a whole
node sends (link, roster, membership, session), and so one of these:

- a beat a second; a look at the leases when the next one may be over, with the sessions that changed or while a stream is free each 0.56 to
  0.84 s; a PING a second on the connection that tracks
- 50 ms after it was told of streams: their hashes; and some ids, and their hashes, of each step of a round (roster)
- of its own streams, what comes within 0.2 s in one go: each segment its position and its figures; of each, each 30 s: its hash, and the
  registry's life

Each is a request of its own, as a node's is; what of an answer nobody needs is read, and not parsed: an ECHO behind it shows its end.
Each begins with streams that it has, whose hashes it writes as they are once it has claimed them. It claims its part of what a session had
that is over, or nobody came for.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from itertools import count, cycle
from typing import Any
from urllib.parse import urlsplit

import hiredis

from hlsrelay.bell import Bell
from hlsrelay.claims import JUST_AFTER_S, LEFT_LYING, LOOKED_AGAIN_AFTER_S
from hlsrelay.handover import LOOKED_EVERY_S
from hlsrelay.link import Link
from hlsrelay.redis_keys import BEAT, CLAIM, HASHES, LEASES, REPORT, Keys
from hlsrelay.redis_registry import ASKED_AT_ONCE, READ_AT_ONCE, SCANNED_AT_ONCE, Together
from hlsrelay.registry import LEASE_S
from hlsrelay.roster import FULL_RATE_NODES, GATHERED_S, SHORTEST_ROUND_S, STEP_EVERY_S
from hlsrelay.session import BEAT_S, session_id
from hlsrelay.tracking import INVALIDATED, SIGN_OF_LIFE_S

END = b"$8\r\nthe end!\r\n"
LEASE_MS = str(round(1000 * LEASE_S))
SINCE = "2026-01-01T00:00:00Z"
KEYS = Keys()


def packed(words: Sequence[str]) -> bytes:
    """Return a request as Redis reads it."""
    packing: Any = hiredis.pack_command  # its types know of one word alone
    return bytes(packing(tuple(words)))


class Wire(asyncio.Protocol):
    """A connection: requests wait for one another as on one of a pool."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(encoding="utf-8")
        self._answers: deque[asyncio.Future[Any]] = deque()
        self._transport: Any = None
        self._skipping: asyncio.Future[None] | None = None
        self._tail = b""
        self._one_at_a_time = asyncio.Lock()
        self.told: asyncio.Queue[Any] = asyncio.Queue()
        """What comes unasked."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._skipping is not None:
            self._tail = (self._tail + data)[-len(END) :]
            if self._tail == END:
                self._skipping.set_result(None)
                self._skipping = None
            return
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            if self._answers:
                self._answers.popleft().set_result(answer)
            else:
                self.told.put_nowait(answer)

    async def ask(self, *requests: Sequence[str]) -> list[Any]:
        """Send requests in one go, and return their answers."""
        async with self._one_at_a_time:
            waiting = [asyncio.get_running_loop().create_future() for _ in requests]
            self._answers += waiting
            self._transport.write(b"".join(map(packed, requests)))
            return [await one for one in waiting]

    async def skip(self, words: Sequence[str]) -> None:
        """Send a request, and read its answer without a look at it."""
        async with self._one_at_a_time:
            self._skipping, self._tail = asyncio.get_running_loop().create_future(), b""
            self._transport.write(packed(words) + packed(("ECHO", "the end!")))
            await self._skipping

    def send(self, words: Sequence[str]) -> None:
        """Send a request whose answer comes with what comes unasked."""
        self._transport.write(packed(words))


async def connected(url: str) -> Wire:
    """Connect to the Redis at the path of a unix:// URL, or at a host and port."""
    loop, where = asyncio.get_running_loop(), urlsplit(url)
    if where.scheme == "unix":
        return (await loop.create_unix_connection(Wire, where.path))[1]
    return (await loop.create_connection(Wire, where.hostname or "127.0.0.1", where.port or 6379))[1]


def script(text: str, keys: Sequence[str], *words: str) -> list[str]:
    """Return the request that runs a script that Redis knows."""
    return ["EVALSHA", sha1(text.encode(), usedforsecurity=False).hexdigest(), str(len(keys)), *keys, *words]


class Owners:
    """Whose each stream is, as the first node of a process learns it for all; since when nobody's."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}
        self.free_since_s: dict[str, float] = {}

    def take(self, stream: str, session: str) -> None:
        """Take what a stream's hash says."""
        self.of[stream] = session
        if session:
            self.free_since_s.pop(stream, None)
        else:
            self.free_since_s.setdefault(stream, asyncio.get_running_loop().time())

    def left_lying(self) -> list[str]:
        """Return what nobody came for."""
        before_s = asyncio.get_running_loop().time() - LEFT_LYING * LOOKED_EVERY_S
        return [stream for stream, since_s in self.free_since_s.items() if since_s < before_s]


@dataclass(frozen=True, slots=True)
class Load:
    """What each node has room for; all streams, of which each node begins with its part; their source; how long a position is."""

    capacity: int
    streams: int
    source: str
    position_bytes: int


class LoadNode:
    """A node that only loads Redis."""

    def __init__(self, number: int, nodes: int, load: Load, owners: Owners, *, first: bool) -> None:
        self.session = f"{session_id()}.{number}"
        self._number, self._nodes, self._capacity, self._position = number, nodes, load.capacity, "x" * load.position_bytes
        self._begins_with = [f"s{stream}" for stream in range(number, load.streams, nodes)]
        self._source = load.source
        self._owners, self._first = owners, first
        self._epochs: dict[str, str] = {}
        self._stale: set[str] = set()
        self._sessions: set[str] = set()
        self._left: set[str] = set()
        """Sessions that are over, and have nothing any more."""
        self._woken = asyncio.Event()
        self._other_sessions = Bell()
        self._works: set[asyncio.Task[None]] = set()

    async def loads(self, url: str) -> None:
        """Be a node until cancelled."""
        self._beats, self._reads, self._tracks = [await connected(url) for _ in range(3)]
        self._pool = cycle([await connected(url) for _ in range(ASKED_AT_ONCE)])
        await self._begin()
        async with asyncio.TaskGroup() as tasks:
            for work in (self._beat, self._look, self._heard, self._read, self._round, self._segments, self._follow):
                tasks.create_task(work())

    async def _begin(self) -> None:
        fields = {"source": self._source, "desired": "run", "session": self.session, "epoch": "1", "node": f"node{self._number}"}
        fields |= {"wanted": "", "state": "running", "since": SINCE, "reason": "", "attempt": "", "retry_at": "", "carried": "1"}
        words = [word for pair in fields.items() for word in pair]
        await next(self._pool).ask(*(("HSET", KEYS.stream(stream), *words) for stream in self._begins_with))
        for stream in self._begins_with:
            self._epochs[stream] = "1"
            self._owners.take(stream, self.session)

    async def _beat(self) -> None:
        at_ms, life = "0", ""
        while True:
            name = f"node{self._number}"
            fields = {"name": name, "state": "active", "capacity": str(self._capacity), "load": str(len(self._epochs))}
            fields |= {"streams": str(len(self._epochs)), "http": "none", "live": f"/tmp/{name}/live", "url": f"http://{name}"}
            keys = (KEYS.nodes(), KEYS.node(self.session), KEYS.meta(), KEYS.life())
            words = [word for pair in fields.items() for word in pair]
            [[now, life]] = await self._beats.ask(script(BEAT, keys, self.session, LEASE_MS, at_ms, life, "0" * 32, *words))
            at_ms = str(now)
            await asyncio.sleep(BEAT_S)

    async def _look(self) -> None:
        loop, pause_s = asyncio.get_running_loop(), LOOKED_EVERY_S
        while True:
            soon_s = loop.time() + min(pause_s, LOOKED_EVERY_S * random.uniform(0.8, 1.2))
            await self._other_sessions.wait(pause_s)
            await asyncio.sleep(soon_s - loop.time())
            changed, self._sessions = self._sessions, set()
            self._other_sessions.clear()
            [answer] = await self._beats.ask(script(LEASES, (KEYS.nodes(),), KEYS.node(""), *changed))
            over = set(answer[2][::2])
            lost = over - self._left
            free = [stream for stream, owner in self._owners.of.items() if owner in lost] if lost else []
            self._left = self._left | lost if not free else self._left & over
            free += self._owners.left_lying()
            part = math.ceil(len(self._owners.of) / max(1, answer[1] - len(over))) - len(self._epochs)
            for stream in random.sample(free, max(0, min(len(free), part))):
                await self._claim(stream)
            over_s = (float(answer[3]) - answer[0]) / 1000 + JUST_AFTER_S if answer[3] else LEASE_S
            longest_s = LOOKED_EVERY_S * random.uniform(0.8, 1.2) if self._owners.free_since_s else LEASE_S
            pause_s = LOOKED_AGAIN_AFTER_S if free else min(longest_s, max(LOOKED_AGAIN_AFTER_S, over_s))

    async def _heard(self) -> None:
        wire = self._tracks
        [number] = await wire.ask(("CLIENT", "ID"))
        prefixes = [word for key in (KEYS.stream(""), KEYS.queue(), KEYS.node("")) for word in ("PREFIX", key)]
        await wire.ask(("CLIENT", "TRACKING", "on", "REDIRECT", str(number), "BCAST", *prefixes))
        await wire.ask(("SUBSCRIBE", INVALIDATED))
        asking = asyncio.create_task(self._pinging(wire))
        self._works.add(asking)
        stream, node = KEYS.stream(""), KEYS.node("")
        while True:
            told = await wire.told.get()
            if told[0] != "message" or not told[2]:
                continue
            self._stale.update(key.removeprefix(stream) for key in told[2] if key.startswith(stream))
            self._sessions.update(key.removeprefix(node) for key in told[2] if key.startswith(node))
            if self._sessions:
                self._other_sessions.set()
            if self._stale:
                self._woken.set()

    async def _pinging(self, wire: Wire) -> None:
        while True:
            await asyncio.sleep(SIGN_OF_LIFE_S)
            wire.send(("PING",))

    async def _read(self) -> None:
        while True:
            await self._woken.wait()
            await asyncio.sleep(GATHERED_S)
            self._woken.clear()
            stale, self._stale = self._stale, set()
            await self._hashes([*stale])

    async def _hashes(self, streams: list[str]) -> None:
        for start in range(0, len(streams), READ_AT_ONCE):
            some = streams[start : start + READ_AT_ONCE]
            words = script(HASHES, [KEYS.stream(one) for one in some])
            if not self._first:
                await self._reads.skip(words)
                continue
            [answer] = await self._reads.ask(words)
            for stream, flat in zip(some, answer, strict=True):
                self._owners.take(stream, dict(zip(flat[::2], flat[1::2], strict=True)).get("session", ""))

    async def _round(self) -> None:
        loop = asyncio.get_running_loop()
        cursor, began_s, share = "0", loop.time(), max(1.0, self._nodes / FULL_RATE_NODES)
        while True:
            await asyncio.sleep(STEP_EVERY_S * share * random.uniform(0.8, 1.2))
            if cursor == "0" and loop.time() - began_s < SHORTEST_ROUND_S * share:
                continue
            began_s = loop.time() if cursor == "0" else began_s
            words = ("SCAN", cursor, "MATCH", KEYS.stream_pattern(), "COUNT", str(SCANNED_AT_ONCE), "TYPE", "HASH")
            [[cursor, keys]] = await self._reads.ask(words)
            await self._hashes([KEYS.stream_id(key) for key in keys])

    async def _claim(self, stream: str) -> None:
        key = KEYS.stream(stream)
        if stream in self._epochs or len(self._epochs) >= self._capacity:
            return
        fields = ("node", f"node{self._number}", "wanted", "")
        await next(self._pool).ask(*self._following(stream))
        [epoch] = await next(self._pool).ask(script(CLAIM, (key, KEYS.nodes(), KEYS.meta()), self.session, LEASE_MS, "0", "", *fields))
        if epoch <= 0:
            return
        self._epochs[stream] = str(epoch)
        self._owners.take(stream, self.session)
        since = ("since", SINCE, "reason", "")
        for state in ("starting", "running"):
            words = ("state", state, "node", f"node{self._number}", *since)
            keys = key, KEYS.figures(stream), KEYS.position(stream)
            await next(self._pool).ask(script(REPORT, keys, str(epoch), "", str(len(words)), *words))

    def _following(self, stream: str) -> tuple[tuple[str, ...], ...]:
        return (("SET", KEYS.life(), "0" * 32, "NX"), ("HGETALL", KEYS.stream(stream)), ("GET", KEYS.life()))

    async def _paced(self, every_s: float, work: Any) -> None:
        """Do *work* for each stream once in *every_s*, evenly spread."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + random.uniform(0, 1)
        async with asyncio.TaskGroup() as tasks:
            for turn in count():
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                due_s = max(due_s, loop.time() - 1) + every_s / max(1, len(self._epochs))  # what there was no time for is left out
                streams = [*self._epochs]
                if streams:
                    tasks.create_task(work(streams[turn % len(streams)], turn))

    async def _segments(self, segment_s: float = 4.0) -> None:
        async def told(stream: str, turn: int) -> None:
            keys, epoch = (KEYS.stream(stream), KEYS.figures(stream), KEYS.position(stream)), self._epochs.get(stream, "")
            figures = ("last_sequence", str(turn), "lag", "0.10")
            gathered.append((stream, script(REPORT, keys, epoch, self._position, "0", *figures)))
            if len(gathered) > 1:
                return
            await asyncio.sleep(Together.GATHERED_S)
            some = [*gathered]
            gathered.clear()
            for (one, _), kept in zip(some, await next(self._pool).ask(*(words for _, words in some)), strict=True):
                if kept != 1:  # it is another's
                    self._epochs.pop(one, None)

        gathered: list[tuple[str, list[str]]] = []
        await self._paced(segment_s, told)

    async def _follow(self) -> None:
        async def follow(stream: str, _: int) -> None:
            await next(self._pool).ask(*self._following(stream))

        await self._paced(Link.LONG_PERIOD_S, follow)


async def load_nodes(first: int, number: int, nodes: int, load: Load, url: str) -> None:
    """Be *number* of *nodes* nodes, from *first* on, that only load Redis, until cancelled."""
    wire = await connected(url)
    for text in (BEAT, CLAIM, HASHES, LEASES, REPORT):
        await wire.ask(("SCRIPT", "LOAD", text))
    owners = Owners()
    async with asyncio.TaskGroup() as tasks:
        for index in range(first, first + number):
            tasks.create_task(LoadNode(index, nodes, load, owners, first=index == first).loads(url))
            await asyncio.sleep(0.02)
