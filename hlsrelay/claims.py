"""Which of the registered streams this process relays: it claims what is free, lets go of what it is to let go of, and backs off.

Laws:
- Nothing is claimed that there is no room for, and no more than our part while others have room too: their part is taken only if they
  leave it lying.
- What another node offers because it leaves is asked for as what is free is. What is wanted by one node is left to it.
- Of a node that has more than its part one stream at a time is asked for, now and then, if we are the less taken by that.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import structlog

from hlsrelay.deletions import Deletions
from hlsrelay.errors import ConfigError, HlsRelayError, RegistryUnavailable, ResourceBusy, Superseded, UnknownStream
from hlsrelay.fields import Registered
from hlsrelay.handover import LONGEST_BACK_OFF_S, LOOKED_EVERY_S, claimed, offered, relayed, taken_over
from hlsrelay.ladder import weight_of
from hlsrelay.link import Claim
from hlsrelay.model import Desired
from hlsrelay.node import Node
from hlsrelay.registry import Session
from hlsrelay.session import DRAINING, Member, holder, is_here, is_told_to_drain, takes_on
from hlsrelay.worker import admitted, possible

LEFT_LYING = 3
"""What nobody took so many looks long is taken beyond our part."""
OFFERED_PATIENCE = 4
BALANCED_EVERY_S = 30.0
FAILED_HERE_S = 300.0
"""What failed here is left to others for so long: it may be this node that is broken."""
TAKEN_OVER_AT_ONCE = 8
JUST_AFTER_S = 0.02
"""What a node had that came no more is looked for as soon as its lease is over."""
ROOM_PER_CORE = 50

log = structlog.get_logger()


def capacity_of(node: Node) -> int:
    """Return how much a node takes on."""
    return node.settings.capacity or ROOM_PER_CORE * (os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A stream that is to run, and how many looks long nobody has had it; *offered*: somebody has it still, who is to let go of it."""

    registered: Registered
    weight: int
    looks: int
    offered: bool = False

    @property
    def is_left_lying(self) -> bool:
        """Whether nobody seems to come for it; what is offered is taken a few at a time."""
        return self.looks >= LEFT_LYING * (OFFERED_PATIENCE if self.offered else 1)


class Claims:
    """The streams of a worker."""

    def __init__(self, node: Node, leaving: asyncio.Event) -> None:
        self.member = Member(node.registry, self._tells, node.metrics.registry_up.set, node.edge.hears_redis)
        node.hears_redis = lambda: self.member.hears
        node.lives = self.member.lives
        self._deletions = Deletions(node.registry, self.member)
        self._node = node
        self._leaving = leaving
        self._let_go = asyncio.Event()
        self._running: dict[str, tuple[asyncio.Task[float], int]] = {}
        self._free: dict[str, int] = {}
        self._failed_s: dict[str, float] = {}
        self._unreadable: set[str] = set()
        self._told_to_drain = False
        self._taking_over = asyncio.Semaphore(TAKEN_OVER_AT_ONCE)
        self._balanced_s = node.clock.monotonic_s()
        self._lease_ends_in_s = math.inf

    @property
    def load(self) -> int:
        """What of the capacity is taken."""
        return sum(weight for _, weight in self._running.values())

    @property
    def _drains(self) -> bool:
        return self._leaving.is_set() or self._told_to_drain

    def _tells(self) -> dict[str, str]:
        """Return what the session says of us."""
        return {
            "name": self._node.name,
            "state": DRAINING if self._drains else "active",
            "capacity": str(capacity_of(self._node)),
            "load": str(self.load),
            "streams": str(len(self._running)),
            **self._node.place(),
        }

    async def kept(self) -> dict[str, float]:
        """Claim and relay until told to leave; then hand on what others take, let go of the rest, and return.

        Returns what was relayed then: target durations, in seconds, by stream id.
        """
        gone = asyncio.create_task(self._leaving.wait())
        cut_off = asyncio.create_task(self.member.cut_off.wait())
        try:
            while not gone.done():
                await self._looked(cut_off)
                self._reaped()
                next_s = min(LOOKED_EVERY_S * random.uniform(0.8, 1.2), self._lease_ends_in_s + JUST_AFTER_S)
                self._lease_ends_in_s = math.inf
                await asyncio.wait((gone, cut_off), timeout=next_s, return_when=asyncio.FIRST_COMPLETED)
                if cut_off.done():
                    await self._yielded(gone)
                    cut_off = asyncio.create_task(self.member.cut_off.wait())
            had = {stream_id: task for stream_id, (task, _) in self._running.items()}
            self._node.draining = True
            await offered(self._node, self.member, lambda: [task for task in had.values() if not task.done()], self.looked_elsewhere)
            self._let_go.set()
            await asyncio.gather(*had.values(), return_exceptions=True)
            return {stream_id: task.result() for stream_id, task in had.items() if not task.cancelled() and not task.exception()}
        finally:
            gone.cancel()
            cut_off.cancel()
            for task, _ in self._running.values():
                task.cancel()
            await asyncio.gather(*(task for task, _ in self._running.values()), return_exceptions=True)
            self._reaped()

    async def _looked(self, cut_off: asyncio.Task[bool]) -> None:
        looking = asyncio.ensure_future(self._look())
        try:
            await asyncio.wait((looking, cut_off), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not looking.done():
                looking.cancel()  # a claim whose answer is lost so is made again: see _waiting
            try:
                await looking
            except (RegistryUnavailable, asyncio.CancelledError):
                pass
            except Exception:
                log.exception("node.look_failed")

    async def looked_elsewhere(self) -> None:
        """See again where the streams of others are served. Raises RegistryUnavailable."""
        self._reaped()
        self._node.elsewhere = self._elsewhere(await self._node.registry.all(), await self._node.registry.sessions())

    async def _yielded(self, gone: asyncio.Task[bool]) -> None:
        """Stop all that we relay, before others begin with it, and wait until Redis answers us again."""
        self._let_go.set()
        self._let_go = asyncio.Event()
        while self.member.cut_off.is_set() and not gone.done():
            await asyncio.wait((gone,), timeout=LOOKED_EVERY_S)

    def _reaped(self) -> None:
        for stream_id in [stream_id for stream_id, (task, _) in self._running.items() if task.done()]:
            self._ended(stream_id)

    def _ended(self, stream_id: str) -> None:
        task, _ = self._running.pop(stream_id)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Superseded):
            if not isinstance(error, RegistryUnavailable):
                self._failed_s[stream_id] = self._node.clock.monotonic_s()
            if isinstance(error, HlsRelayError):
                log.warning("stream.failed", stream=stream_id, reason=str(error))
            else:
                log.error("stream.failed", stream=stream_id, exc_info=error)

    async def _look(self) -> None:
        sessions = await self._node.registry.sessions()
        self._lease_ends_in_s = min((one.left_s for one in sessions if one.lives and one.id != self.member.id), default=math.inf)
        self._told_to_drain = any(one.id == self.member.id and is_told_to_drain(one) for one in sessions)
        self.member.peers = tuple(one.fields["url"] for one in sessions if one.id != self.member.id and one.lives and one.fields.get("url"))
        streams = await self._deletions.upheld(await self._node.registry.all())
        self._node.elsewhere = self._elsewhere(streams, sessions)
        wanted = await self._wanted(streams, sessions)
        total = sum(weight for _, weight in wanted)
        self._node.metrics.load.set(self.load)
        self._node.metrics.load_wanted.set(total)
        waiting = self._waiting(wanted, sessions)
        self._free = {one.registered.id: one.looks for one in waiting}
        if self._node.refusal() or self._drains:
            return
        part = our_part(total, self.member.id, sessions)
        waiting += self._surplus(wanted, sessions, part)
        room = capacity_of(self._node)
        for one in sorted(waiting, key=lambda one: (-one.looks, random.random())):
            asked_of_us = one.registered.fields.get("wanted") == self.member.id
            beyond = self.load and self.load + one.weight > part and not one.is_left_lying and not asked_of_us
            if self._leaving.is_set() or (self.load and self.load + one.weight > room) or beyond:
                continue
            if one.offered:
                work = self._taken_over(one.registered)
            elif isinstance(claim := await claimed(self._node, self.member, one.registered), Claim):
                work = relayed(claim, self._node, self._let_go)
            else:
                continue
            task = asyncio.create_task(work, name=f"relay {one.registered.id}")
            self._running[one.registered.id] = task, one.weight

    async def _taken_over(self, registered: Registered) -> float:
        try:
            async with self._taking_over:
                claim = await taken_over(self._node, self.member, registered)
        except (ResourceBusy, Superseded, UnknownStream, RegistryUnavailable) as error:  # another was faster, or it stays where it is
            log.info("stream.not_taken_over", stream=registered.id, reason=str(error))
            return 0.0
        return await relayed(claim, self._node, self._let_go)

    async def _wanted(self, streams: Iterable[Registered], sessions: list[Session]) -> list[tuple[Registered, int]]:
        """Return the streams that are to run, with their weights; of others that nobody has, and that make no sense, say so, once."""
        found = []
        for one in streams:
            try:
                stream = possible(one, serves=self._node.serves)
            except ConfigError as error:
                told = (one.fields.get("state"), one.fields.get("reason")) == ("failed", str(error))
                if not told and holder(one.fields, sessions) is None:  # who relays it goes on with what it had, and says so
                    with suppress(ConfigError):
                        await admitted(one, self._node)
                continue
            except Exception:  # a bug of ours: no field of one stream may hold up the others
                if one.id not in self._unreadable:
                    self._unreadable.add(one.id)
                    log.exception("stream.unreadable", stream=one.id)
                continue
            if stream.desired is Desired.RUN:
                found.append((one, weight_of(stream.ladder)))
        return found

    def _elsewhere(self, streams: Iterable[Registered], sessions: list[Session]) -> dict[str, str]:
        """Return where the streams are served that others relay into folders of their own.

        One that nobody has just now, and that one of these had last, is there still, or will be somewhere else before long.
        """
        ours = str(self._node.live.resolve())
        there = [one for one in sessions if one.fields.get("url") and not (is_here(one.id) and one.fields.get("live") == ours)]
        urls = {one.id: one.fields["url"] for one in there if one.lives}
        living = {one.id for one in sessions if one.lives}
        found = {}
        for one in streams:
            owner = one.fields.get("session", "")
            if owner in urls:
                found[one.id] = urls[owner]
            elif owner not in living and one.id in self._node.elsewhere and one.fields.get("desired") != Desired.STOP:
                found[one.id] = self._node.elsewhere[one.id]
        return {stream_id: url for stream_id, url in found.items() if stream_id not in self._running}

    def _waiting(self, wanted: Iterable[tuple[Registered, int]], sessions: list[Session]) -> list[Waiting]:
        """Return what nobody has, who leaves has, or we are to take over; not what another one is to take over, unless it does not."""
        now = self._node.clock.utc_now()
        takers = {one.id for one in sessions if one.lives and takes_on(one)}
        now_s = self._node.clock.monotonic_s()
        self._failed_s = {stream_id: at_s for stream_id, at_s in self._failed_s.items() if now_s - at_s < FAILED_HERE_S}
        found = []
        for one, weight in wanted:
            if one.id in self._running or _backs_off(one, now):
                continue
            has, taker = holder(one.fields, sessions), one.fields.get("wanted", "")
            has = None if has and has.id == self.member.id else has  # claimed, and we never heard of it
            offered = has is not None and (has.fields.get("state") == DRAINING or taker == self.member.id)
            waiting = Waiting(one, weight, self._free.get(one.id, -1) + 1, offered)
            theirs = (taker in takers and taker != self.member.id) or (one.id in self._failed_s and takers - {self.member.id})
            if (has is None or offered) and (not theirs or waiting.is_left_lying):
                found.append(waiting)
        return found

    def _surplus(self, wanted: Iterable[tuple[Registered, int]], sessions: list[Session], part: int) -> list[Waiting]:
        """Return one stream, now and then, of a node that is more taken than we shall be once we have it."""
        now_s, capacity = self._node.clock.monotonic_s(), capacity_of(self._node)
        if self._failed_s or now_s - self._balanced_s < BALANCED_EVERY_S or any(task.done() for task, _ in self._running.values()):
            return []
        self._balanced_s = now_s + random.uniform(0, BALANCED_EVERY_S / 2)
        others = {one.id: one.fields for one in sessions if one.id != self.member.id and one.lives and takes_on(one)}
        for one, weight in sorted(wanted, key=lambda _: random.random()):
            has = others.get(one.fields.get("session", ""))
            if has is None or one.fields.get("wanted") or one.fields.get("state") != "running" or self.load + weight > part:
                continue
            theirs, load = int(has["capacity"]), int(has.get("load", "0"))
            if theirs and (load - weight) / theirs >= (self.load + weight) / capacity:
                return [Waiting(one, weight, 0, offered=True)]
        return []


def our_part(total: int, session: str, sessions: Iterable[Session]) -> int:
    """Return how much of *total* is ours, by the capacities of all that live and take on."""
    capacities = {one.id: int(one.fields.get("capacity", "0")) for one in sessions if one.id == session or (one.lives and takes_on(one))}
    whole = sum(capacities.values())
    return math.ceil(total * capacities.get(session, 0) / whole) if whole else total


def _backs_off(one: Registered, now: datetime) -> bool:
    """Return whether a stream that failed is left alone yet; what no node's pause can come to is of a clock that is ahead of ours."""
    try:
        pause_s = (datetime.fromisoformat(one.fields["retry_at"]) - now).total_seconds()
        return 0 < pause_s <= 2 * LONGEST_BACK_OFF_S
    except (KeyError, ValueError, TypeError):
        return False
