"""Which of the registered streams this process relays: it claims what is free, lets go of what it is to let go of, and backs off.

Laws:
- Nothing is claimed that there is no room for, and no more than our part while others have room too: their part is taken only if they
  leave it lying.
- What another node offers because it leaves is asked for as what is free is. What is wanted by one node is left to it, unless
  it does not come for it.
- Of a node that has more than its part one stream at a time is asked for, now and then, if we are the less taken by that.
- It looks each LOOKED_EVERY_S where something waits, as soon where a session is another, and a little after a stream is another; where
  all is well, and Redis tells of changes, when the next lease is over, or after LEASE_S.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

import structlog

from hlsrelay.bell import Bell
from hlsrelay.board import Board
from hlsrelay.deletions import Deletions
from hlsrelay.errors import ConfigError, HlsRelayError, RegistryUnavailable, ResourceBusy, Superseded, UnknownStream
from hlsrelay.fields import Registered
from hlsrelay.handover import LONGEST_BACK_OFF_S, LOOKED_EVERY_S, claimed, offered, relayed, taken_over
from hlsrelay.link import Claim
from hlsrelay.membership import Membership
from hlsrelay.model import Desired
from hlsrelay.node import Node
from hlsrelay.registry import LEASE_S, Session
from hlsrelay.roster import Roster
from hlsrelay.session import DRAINING, Member, is_here, is_told_to_drain, takes_on
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
LOOKED_AGAIN_AFTER_S = 0.15
"""What changes meanwhile is looked at together."""
CLAIMED_AT_ONCE = 16
FORMER_SESSIONS = 1000
"""So many sessions that are over are remembered, and where they served."""

log = structlog.get_logger()


_CORES = os.cpu_count() or 1
"""Of the machine: to ask for it reads a file, and each beat would."""


def capacity_of(node: Node) -> int:
    """Return how much a node takes on."""
    return node.settings.capacity or ROOM_PER_CORE * _CORES


@dataclass(frozen=True, slots=True)
class Waiting:
    """A stream that is to run, and how many looks long nobody has had it; *offered*: somebody has it still, who is to let go of it."""

    registered: Registered
    weight: int
    looks: int
    offered: bool = False
    doubtful: bool = False
    """By its hash we have it, and do not: that may be of a moment ago, and another one may ask for it since."""

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
        self._free_since_s: dict[str, float] = {}
        self._is_quiet = False
        """Whether we have all that we may have: nothing waits for us, or for somebody who may not come."""
        self._failed_s: dict[str, float] = {}
        self._unreadable: set[str] = set()
        self._board = Board(lambda registered: possible(registered, serves=node.serves))
        self._membership = Membership(node.registry, lambda: self.roster.is_told)
        self.roster = node.roster = Roster(node.registry, self._heard, sessions=self._heard_of)
        self._stirred = Bell()
        """Rung where the time of the next look may be another."""
        self._moved = False
        """Whether a stream is another since the last look, or has ended here."""
        self._sessions: list[Session] = []
        self._sessions_s = -math.inf
        self._urls: dict[str, str] = {}
        node.elsewhere = self._elsewhere
        self._told_to_drain = False
        self._taking_over = asyncio.Semaphore(TAKEN_OVER_AT_ONCE)
        self._balanced_s = node.clock.monotonic_s()

    @property
    def load(self) -> int:
        """What of the capacity is taken."""
        return sum(weight for _, weight in self._running.values())

    @property
    def _knows(self) -> bool:
        """Whether no session is another than we have read, as far as Redis tells."""
        return self.roster.is_told and not self._membership.is_stale

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

    @asynccontextmanager
    async def taking_part(self) -> AsyncGenerator[None, None]:
        """Have a session, and hear what changes, while the block runs. Raises RegistryUnavailable at its beginning."""
        async with self.member.taking_part(), self.roster.kept_up():
            yield

    async def kept(self) -> dict[str, float]:
        """Claim and relay until told to leave; then hand on what others take, let go of the rest, and return.

        Returns what was relayed then: target durations, in seconds, by stream id.
        """
        gone, cut_off = self._stirred_by(self._leaving), self._stirred_by(self.member.cut_off)
        try:
            while not gone.done():
                self._reaped()
                await self._looked(cut_off)
                await self._next_due(gone, cut_off)
                if cut_off.done():
                    await self._yielded(gone)
                    cut_off = self._stirred_by(self.member.cut_off)
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

    async def _next_due(self, *ends: asyncio.Task[bool]) -> None:
        """Wait until it is time to look again, or one of *ends* has ended."""
        loop = asyncio.get_running_loop()
        now_s = began_s = loop.time()
        soon_s, rests = began_s + LOOKED_EVERY_S * random.uniform(0.8, 1.2), False
        while not any(one.done() for one in ends):
            if self._moved:
                look_s = began_s + LOOKED_AGAIN_AFTER_S
            elif self._is_quiet and self._knows:
                look_s, rests = began_s + LEASE_S, True
            else:
                if rests:  # a session is another: all nodes hear of that at the same moment
                    soon_s, rests = now_s + LOOKED_EVERY_S * random.random(), False
                look_s = soon_s
            until_s = min(look_s, self._membership.next_s + JUST_AFTER_S)
            if now_s >= until_s:
                return
            self._stirred.clear()
            await self._stirred.wait(until_s - now_s)
            now_s = loop.time()

    def _stirred_by(self, event: asyncio.Event) -> asyncio.Task[bool]:
        """Return what ends once *event* is set, and stirs us."""
        waiting = asyncio.create_task(event.wait())
        waiting.add_done_callback(self._stir)
        return waiting

    def _stir(self, _: object = None) -> None:
        self._stirred.set()

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
        await self._asked_sessions()

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

    def _heard_of(self, sessions: frozenset[str] | None) -> None:
        self._membership.heard(sessions)
        self._stir()

    def _heard(self, stream_id: str, registered: Registered | None) -> None:
        self._moved = True
        self._stir()
        self._deletions.take(stream_id, registered)
        try:
            self._board.take(stream_id, registered)
        except Exception:  # a bug of ours: no field of one stream may hold up the others
            if stream_id not in self._unreadable:
                self._unreadable.add(stream_id)
                log.exception("stream.unreadable", stream=stream_id)

    async def _asked_sessions(self) -> None:
        """See who takes part, and where they serve. Raises RegistryUnavailable."""
        loop = asyncio.get_running_loop()
        self._membership.next_s = math.inf
        self._sessions = sessions = await self._membership.asked()
        self._sessions_s = loop.time()
        self.roster.nodes = sum(one.lives for one in sessions)
        others = [one for one in sessions if one.id != self.member.id and one.fields.get("url")]
        self.member.peers = tuple(one.fields["url"] for one in others if one.lives)
        there = {one.id: one.fields["url"] for one in others if not (is_here(one.id) and one.fields.get("live") == self._node.live_at)}
        for session in self._urls.keys() & there.keys():
            del self._urls[session]  # the newest come last
        self._urls |= there
        for session in [*self._urls][: -len(there) - FORMER_SESSIONS]:
            del self._urls[session]

    async def _look(self) -> None:
        self._moved = self._is_quiet = False
        # Where something is free it counts who is there just now: a node that has just come has its part too.
        is_free = next(self._board.free({one.id for one in self._sessions if one.lives}), None) is not None
        kept_s = LOOKED_AGAIN_AFTER_S if is_free else LEASE_S if self._knows else 0.8 * LOOKED_EVERY_S
        due = asyncio.get_running_loop().time() >= min(self._sessions_s + kept_s, self._membership.next_s)
        if due or (is_free and self._membership.is_stale):
            await self._asked_sessions()
        sessions = self._sessions
        for stream_id in await self._deletions.upheld():
            self._board.take(stream_id, None)
        self._told_to_drain = any(one.id == self.member.id and is_told_to_drain(one) for one in sessions)
        self._node.metrics.load.set(self.load)
        self._node.metrics.load_wanted.set(self._board.total)
        living = {one.id: one for one in sessions if one.lives}
        await self._told_wrong(living)
        waiting = self._waiting(living)
        if self._node.refusal() or self._drains:
            return
        part = our_part(self._board.total, self.member.id, sessions)
        waiting += self._surplus(living, part)
        room = capacity_of(self._node)
        free: list[Waiting] = []
        load = self.load
        for one in sorted(waiting, key=lambda one: (-one.looks, random.random())):
            asked_of_us = one.registered.fields.get("wanted") == self.member.id
            beyond = load and load + one.weight > part and not one.is_left_lying and not asked_of_us
            if self._leaving.is_set() or (load and load + one.weight > room) or beyond or (one.doubtful and not one.looks):
                continue
            load += one.weight
            if one.offered:
                self._begin(one, self._taken_over(one.registered))
                continue
            free.append(one)
            if len(free) == CLAIMED_AT_ONCE:
                await self._claim(free)
                free, load = [], self.load
        await self._claim(free)

    async def _claim(self, free: Sequence[Waiting]) -> None:
        """Claim what others may claim too at this moment, and relay what we get."""
        answers = await asyncio.gather(*(claimed(self._node, self.member, one.registered) for one in free), return_exceptions=True)
        for one, answer in zip(free, answers, strict=True):
            if isinstance(answer, Claim):
                self._begin(one, relayed(answer, self._node, self._let_go))
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    def _begin(self, one: Waiting, work: Coroutine[Any, Any, float]) -> None:
        task = asyncio.create_task(work, name=f"relay {one.registered.id}")
        task.add_done_callback(self._has_ended)
        self._running[one.registered.id] = task, one.weight

    def _has_ended(self, _: object) -> None:
        """There is room, and it may be wanted again already."""
        self._moved = True
        self._stir()

    async def _taken_over(self, registered: Registered) -> float:
        try:
            async with self._taking_over:
                claim = await taken_over(self._node, self.member, registered)
        except (ResourceBusy, Superseded, UnknownStream, RegistryUnavailable) as error:  # another was faster, or it stays where it is
            log.info("stream.not_taken_over", stream=registered.id, reason=str(error))
            return 0.0
        return await relayed(claim, self._node, self._let_go)

    async def _told_wrong(self, living: Mapping[str, Session]) -> None:
        """Say of streams that nobody has, and that make no sense, that it is so, once; who relays one goes on with what it had."""
        for row in [self._board.rows[stream_id] for stream_id in self._board.wrong]:
            told = (row.registered.fields.get("state"), row.registered.fields.get("reason")) == ("failed", row.wrong)
            if not told and row.session not in living:
                with suppress(ConfigError):
                    await admitted(row.registered, self._node)

    def _elsewhere(self, stream_id: str) -> str:
        """Return where a stream is served that another node relays into a folder of its own; empty for all others.

        One that nobody has just now, and that one of these had last, is there still, or will be somewhere else before long.
        """
        row = self._board.rows.get(stream_id)
        if row is None or stream_id in self._node.storages:
            return ""
        if any(one.id == row.session and one.lives for one in self._sessions):
            return self._urls.get(row.session, "")
        return "" if row.registered.fields.get("desired") == Desired.STOP else self._urls.get(row.last, "")

    def _waiting(self, living: Mapping[str, Session]) -> list[Waiting]:
        """Return what nobody has, who leaves has, or we are to take over; not what another one is to take over, unless it does not."""
        now, us = self._node.clock.utc_now(), self.member.id
        takers = {one.id for one in living.values() if takes_on(one)}
        now_s = self._node.clock.monotonic_s()
        self._failed_s = {stream_id: at_s for stream_id, at_s in self._failed_s.items() if now_s - at_s < FAILED_HERE_S}
        leaving = [one.id for one in living.values() if one.fields.get("state") == DRAINING]
        rows = [*self._board.free(living), *self._board.of(us), *self._board.wanted_by(us), *chain(*map(self._board.of, leaving))]
        others = [row for row in {row.registered.id: row for row in rows}.values() if row.registered.id not in self._running]
        self._is_quiet = not others
        free_since_s, self._free_since_s = self._free_since_s, {}
        found = []
        for row in others:
            one, fields = row.registered, row.registered.fields
            if _backs_off(one, now):
                continue
            has, taker = living.get(row.session), fields.get("wanted", "")
            doubtful = has is not None and has.id == us  # claimed, and we never heard of it
            has = None if doubtful else has
            offered = has is not None and (has.fields.get("state") == DRAINING or taker == us)
            if has is not None and not offered:
                continue
            since_s = self._free_since_s[one.id] = free_since_s.get(one.id, now_s)
            waiting = Waiting(one, row.weight, int((now_s - since_s) / LOOKED_EVERY_S), offered, doubtful)
            if one.id in self._failed_s and takers - {us}:  # others come for it when it lies there, and come first
                is_ours = waiting.looks >= LEFT_LYING * OFFERED_PATIENCE
            else:
                is_ours = taker not in takers or taker == us or waiting.is_left_lying
            if is_ours:
                found.append(waiting)
        return found

    def _surplus(self, living: Mapping[str, Session], part: int) -> list[Waiting]:
        """Return one stream, now and then, of a node that is more taken than we shall be once we have it."""
        now_s, capacity = self._node.clock.monotonic_s(), capacity_of(self._node)
        if self._failed_s or now_s - self._balanced_s < BALANCED_EVERY_S or any(task.done() for task, _ in self._running.values()):
            return []
        self._balanced_s = now_s + random.uniform(0, BALANCED_EVERY_S / 2)
        others = [one for one in living.values() if one.id != self.member.id and takes_on(one) and int(one.fields["capacity"])]
        for has in random.sample(others, len(others)):
            theirs, load, rows = int(has.fields["capacity"]), int(has.fields.get("load", "0")), self._board.of(has.id)
            for row in random.sample(rows, len(rows)):
                fields, weight = row.registered.fields, row.weight
                if fields.get("wanted") or fields.get("state") != "running" or self.load + weight > part:
                    continue
                if (load - weight) / theirs >= (self.load + weight) / capacity:
                    return [Waiting(row.registered, weight, 0, offered=True)]
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
