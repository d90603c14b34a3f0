"""Workers that share streams, for the tests of hlsrelay.claims: over a registry in memory, and relays that do nothing but be there."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hlsrelay.claims import Claims
from hlsrelay.errors import RegistryUnavailable, Superseded
from hlsrelay.link import Claim
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.node import Node
from hlsrelay.processes import Children
from hlsrelay.registry import Heard, Registry
from hlsrelay.session import Member
from hlsrelay.settings import load_settings
from hlsrelay.worker import HANDED_ON, LET_GO
from tests.integration.relaying import NoEncoder
from tests.integration.test_registry import FIELDS
from tests.virtual import VirtualClock, elapse

LINK_S = 0.5
"""So long a relay may take to hear that its stream is wanted."""
TARGET_DURATION_S = 4.0


class Door:
    """One node's way to a registry: it may be cut, or lead to one that stands still."""

    def __init__(self, registry: MemoryRegistry) -> None:
        self._registry = registry
        self.is_cut = False
        self.stands_still = False

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*words: Any, **named: Any) -> Any:
            for _ in range(40):
                if not self.stands_still:
                    break
                await elapse(0.1)
            if self.is_cut or self.stands_still:
                raise RegistryUnavailable("no answer")
            return await getattr(self._registry, name)(*words, **named)

        return ask

    async def heard(self, only: str = "") -> AsyncGenerator[Heard | None, None]:
        """What the registry tells, as far as it gets through; a way that is cut, or stands still for long, ends it."""
        async with aclosing(self._registry.heard(only)) as hearing:
            told = asyncio.ensure_future(anext(hearing))
            try:
                while not self.is_cut and not self.stands_still:
                    await asyncio.wait((told,), timeout=1)
                    if told.done():
                        yield told.result()
                        told = asyncio.ensure_future(anext(hearing))
            finally:
                told.cancel()
                await asyncio.gather(told, return_exceptions=True)
        raise RegistryUnavailable("no answer")


@dataclass
class Worker:
    """A worker that was started."""

    name: str
    claims: Claims
    leaving: asyncio.Event
    kept: asyncio.Task[dict[str, float]]
    door: Door


@dataclass
class House:
    """Workers, a registry, and when each stream was relayed by whom."""

    folder: Path
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)
    on_air: dict[str, list[tuple[float, float, str]]] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)

    async def relayed(self, claim: Claim, node: Node, leaving: asyncio.Event) -> float:
        """Be there as a relay is (handover.relayed)."""
        stream, loop = claim.registered.id, asyncio.get_running_loop()
        with suppress(RegistryUnavailable):
            await node.registry.report(stream, {"state": "running", "wanted": ""}, claim.epoch)
        began_s, wanted = loop.time(), ""
        while not leaving.is_set() and wanted in ("", claim.session):
            await elapse(LINK_S)
            wanted = self.registry.streams[stream].get("wanted", "")
        self.on_air.setdefault(stream, []).append((began_s, loop.time(), node.name))
        with suppress(RegistryUnavailable, Superseded):
            await node.registry.report(stream, {"state": "registered", **(LET_GO if leaving.is_set() else HANDED_ON)}, claim.epoch)
        return TARGET_DURATION_S

    @asynccontextmanager
    async def worker(self, name: str, capacity: int = 100) -> AsyncGenerator[Worker, None]:
        """Run a worker while the block runs."""
        settings, door = load_settings(http="none", node=name, capacity=capacity), Door(self.registry)
        node = Node(settings, self.folder, cast(Registry, door), Children(), NoEncoder(), clock=VirtualClock(), url=name)
        leaving = asyncio.Event()
        one = Claims(node, leaving)
        one.member.id = f"session of {name}"
        one.member._hears = self.hears
        async with one.taking_part():
            kept = asyncio.create_task(one.kept())
            try:
                self.members[name] = one.member
                yield Worker(name, one, leaving, kept, door)
            finally:
                leaving.set()
                await kept

    async def hears(self, url: str) -> bool:
        await elapse(0.01)
        return self.members[url].hears

    async def registered(self, count: int) -> None:
        for number in range(count):
            await self.registry.register(f"s{number}", FIELDS)

    def owners(self) -> list[str]:
        """Who has each stream."""
        return [one.get("node", "") if one.get("session") else "" for _, one in sorted(self.registry.streams.items())]

    def longest_break_s(self) -> float:
        """The longest time that a stream was with nobody, between two who relayed it."""
        breaks = [after[0] - before[1] for spans in self.on_air.values() for before, after in itertools.pairwise(spans)]
        return max(breaks, default=0.0)
