"""The whole pipeline of one stream against a faulty live source, in virtual time, and a player who holds each tick against the rules."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from hlsrelay.caches import Caches
from hlsrelay.clock import Nudges
from hlsrelay.desk import Tools
from hlsrelay.encoder import Encoded, Encoder
from hlsrelay.errors import EncodeError
from hlsrelay.hls.parse import parse
from hlsrelay.model import Snapshot, Stream
from hlsrelay.recipe import EncodeJob
from hlsrelay.relay import Tick, relay
from hlsrelay.storage import LocalStorage
from hlsrelay.upstream import Upstream
from tests.origin import Origin
from tests.playlists import stream
from tests.virtual import VirtualClock, run_virtually

Into = Callable[[Path], LocalStorage]
"""Makes the storage of a stream from the folder for its files."""


class NoEncoder:
    async def encode(self, job: EncodeJob) -> Encoded:
        raise EncodeError("not here")

    def shed(self) -> bool:
        return False


@dataclass
class Operator:
    """stages.Control: what the test wants of the stream."""

    stream: Stream = field(default_factory=stream)


@dataclass
class Watching:
    """A relay under test, and a player's view of it that checks the rules with every tick."""

    storage: LocalStorage
    operator: Operator
    nudges: Nudges
    origin: Origin
    encoder: Encoder = field(default_factory=NoEncoder)
    caches: Caches | None = None
    ticks: list[Tick] = field(default_factory=list, repr=False)  # asyncio prints results of futures: a day of ticks takes minutes
    played: dict[int, tuple[str, bool, bool]] = field(default_factory=dict)
    """number: (sha256 of the bytes, is a gap, is a discontinuity)"""
    last: Snapshot | None = None
    when: dict[int, datetime] = field(default_factory=dict)
    reads: Callable[[str], bytes | None] | None = None
    """What the player gets at a path of the stream's; None: what is in the folder."""
    _body: bytes = b""

    def look(self) -> None:
        """Read the published playlist as a player does, every listed file too; hold it against what was there before."""
        reads = self.reads or self.storage.read
        body = reads("source/index.m3u8")
        if body is None:
            return
        if body == self._body and self.last:
            names = [segment.uri.rpartition("/")[2] for segment in self.last.segments if not segment.gap]
            there = self.reads or (lambda path: b"" if (self.storage.folder / path).exists() else None)
            assert all(there(f"source/{name}") is not None for name in names), "what is listed is not there any more"
            return
        self._body = body
        playlist = parse(body, "file:///")
        assert isinstance(playlist, Snapshot)
        assert playlist.repairs == ()
        if self.last:
            assert playlist.media_sequence >= self.last.media_sequence
            assert playlist.target_duration_s == self.last.target_duration_s
        for segment in playlist.segments:
            name = segment.uri.rpartition("/")[2]
            content = b"" if segment.gap else reads(f"source/{name}")
            assert content is not None, f"{name} is listed and not there"
            if segment.program_date_time:
                assert self.when.setdefault(segment.sequence, segment.program_date_time) == segment.program_date_time
            seen = (hashlib.sha256(content).hexdigest(), segment.gap, segment.discontinuity)
            assert self.played.setdefault(segment.sequence, seen) == seen, f"number {segment.sequence} changed"
        self.last = playlist

    def numbers(self) -> list[int]:
        return sorted(self.played)

    def times(self) -> list[datetime]:
        return [self.when[number] for number in self.numbers()]

    def gaps(self) -> list[int]:
        return [number for number in self.numbers() if self.played[number][1]]

    def cuts(self) -> list[int]:
        return [number for number in self.numbers() if self.played[number][2]]

    def repairs(self) -> set[str]:
        return {repair for tick in self.ticks if tick.turn for repair in tick.turn.repairs}

    def relayed_exactly(self) -> bool:
        """Whether every segment's bytes are some source segment's, each used once."""
        sources = {hashlib.sha256(body).hexdigest() for body in self.origin.sent.values()}
        ours = [digest for digest, gap, _ in self.played.values() if not gap]
        return set(ours) <= sources and len(set(ours)) == len(ours)


@asynccontextmanager
async def watching(
    live: Path, origin: Origin, *others: Origin, window_s: float = 30.0, into: Into | None = None
) -> AsyncGenerator[Watching, None]:
    operator = Operator(stream(window_s=window_s))
    with into(live) if into else LocalStorage(live, "news") as storage:
        await storage.taken()
        yield Watching(storage, operator, Nudges(), origin)


async def working(work: Coroutine[object, object, None], until_s: float) -> None:
    """Let *work* go on until virtual time *until_s*, or until it ends by itself."""
    running = asyncio.ensure_future(work)
    await asyncio.wait((running,), timeout=until_s - asyncio.get_running_loop().time())
    if running.done():
        running.result()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def relayed(watch: Watching, until_s: float, *others: Origin) -> None:
    """Run the relay until virtual time *until_s*, or until it ends by itself."""
    transport = watch.origin.transport(*others)
    async with Upstream(transport=transport) as upstream, Upstream(transport=transport) as spare:
        tools = Tools(upstream, watch.storage, watch.encoder, watch.operator, VirtualClock(), watch.nudges, spare, watch.caches)
        async with aclosing(relay(tools)) as ticks:

            async def run() -> None:
                async for tick in ticks:
                    watch.ticks.append(tick)
                    watch.look()

            await working(run(), until_s)


def scenario(live: Path, play: Callable[[Watching], Awaitable[None]], origin: Origin | None = None, into: Into | None = None) -> Watching:
    """Play a scenario in virtual time; returns what was seen."""

    async def run() -> Watching:
        async with watching(live, origin or Origin(), into=into) as watch:
            await play(watch)
            return watch

    return run_virtually(run())


def later(seconds: float, act: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_later(seconds, act)
