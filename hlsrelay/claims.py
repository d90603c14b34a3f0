"""Which of the registered streams this process relays: it claims what is free, lets go of what it is to let go of, and backs off.

Laws:
- A stream is relayed by the session that made the last claim, and by none whose lease is over, once another has claimed it.
- Nothing is claimed that there is no room for, and no more than our part while others have room too: their part is taken only if they
  leave it lying.
- A stream that fails backs off by itself, wherever it is tried next, and holds up no other.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from hlsrelay import proc
from hlsrelay.errors import ConfigError, HlsRelayError, RegistryUnavailable, ResourceBusy, Superseded, UnknownStream
from hlsrelay.fields import Registered
from hlsrelay.link import Claim
from hlsrelay.model import Desired, Stream
from hlsrelay.registry import LEASE_S, Refused, Session
from hlsrelay.session import Member, holder, is_dead, process_of
from hlsrelay.storage import lock_holder
from hlsrelay.worker import Node, admitted, possible, relay_stream

LOOKED_EVERY_S = 0.7
LEFT_LYING = 3
"""What nobody took so many looks long is taken beyond our part."""
SHORTEST_BACK_OFF_S, LONGEST_BACK_OFF_S = 1.0, 60.0
TAKE_OVER_WITHIN_S = 20.0
FREED_WITHIN_S = 10.0
"""A process that lost a stream and lives learns of it and lets go of its folder; one that did not is stuck."""
PASS_THROUGH_WEIGHT, RUNG_WEIGHT = 1, 10
ROOM_PER_CORE = 50

log = structlog.get_logger()


def weight_of(stream: Stream) -> int:
    """Return what a stream takes of a node's capacity: a rung that is encoded costs far more than passing through."""
    return PASS_THROUGH_WEIGHT + RUNG_WEIGHT * sum(rung.height is not None for rung in stream.ladder)


def capacity_of(node: Node) -> int:
    """Return how much a node takes on."""
    return node.settings.capacity or ROOM_PER_CORE * (os.cpu_count() or 1)


async def claimed(node: Node, member: Member, registered: Registered) -> Claim | Refused:
    """Claim a stream. Raises RegistryUnavailable."""
    found, life = await node.registry.follow(registered.id)
    if found is None:
        return Refused.UNKNOWN
    owner = found.fields.get("session", "")
    epoch = await node.registry.claim(registered.id, member.id, {"node": node.name}, dead=owner if is_dead(owner) else "")
    return Claim(found, member.id, epoch, life) if epoch > 0 else Refused(epoch)


async def obtained(node: Node, member: Member, registered: Registered, *, take_over: bool = False) -> Claim:
    """Claim a stream for a process that relays it alone. Raises ResourceBusy that says who has it, UnknownStream, RegistryUnavailable.

    One whose owner seems to be dead is waited for, until its lease is over; with *take_over* so is one that is asked to let go.
    """
    first: Session | None = None
    waited_s, patience_s = 0.0, TAKE_OVER_WITHIN_S if take_over else 2 * LEASE_S + LOOKED_EVERY_S
    if take_over:
        await node.registry.report(registered.id, {"wanted": member.id})
    while True:
        claim = await claimed(node, member, registered)
        if isinstance(claim, Claim):
            return claim
        if claim is Refused.UNKNOWN:
            raise UnknownStream(f"stream '{registered.id}' was removed meanwhile")
        has = holder((await node.registry.get(registered.id) or registered).fields, await node.registry.sessions())
        renewed = has and first and has.id == first.id and has.left_s > first.left_s - waited_s + LOOKED_EVERY_S
        if (renewed and not take_over) or waited_s > patience_s:
            raise _held(registered, has)
        first = first or has
        await asyncio.sleep(LOOKED_EVERY_S / 2)
        waited_s += LOOKED_EVERY_S / 2


def _held(registered: Registered, has: Session | None) -> ResourceBusy:
    who = has.fields.get("name", has.id) if has else registered.fields.get("node") or "another node"
    since = f", {registered.fields['state']} since {registered.fields.get('since', '')}" if registered.fields.get("state") else ""
    return ResourceBusy(f"stream '{registered.id}' is relayed by {who}{since}: stop it there, or have it handed over with --take-over")


async def relayed(claim: Claim, node: Node, leaving: asyncio.Event) -> float:
    """Relay a claimed stream (worker.relay_stream); whoever had it before is kept from writing its folder. Lets go of it if it fails."""
    stream_id, before = claim.registered.id, claim.registered.fields.get("session", "")
    try:
        if possible(claim.registered, serves=node.serves).desired is Desired.STOP:  # meanwhile
            await node.registry.report(stream_id, {"session": "", "node": ""}, claim.epoch)
            return 0.0
        stream = await admitted(claim.registered, node)
        for waited_s in range(math.ceil(FREED_WITHIN_S)):
            try:
                return await relay_stream(stream, node, leaving, claim)
            except ResourceBusy:
                if waited_s and not _fenced(before, node.live / stream_id, stuck=waited_s > FREED_WITHIN_S / 2):
                    raise
                await asyncio.sleep(1)
        raise ResourceBusy(f"the folder of stream '{stream_id}' is in other hands")
    except Superseded:
        raise
    except Exception as error:
        await _backed_off(claim, node, error)
        raise


def _fenced(session: str, folder: Path, *, stuck: bool) -> bool:
    """Return whether the process that had a stream's folder is, or will be, out of the way: it lost the stream, and may write no more.

    It may stand still (SIGSTOP, a debugger): what it would write when it goes on would be of another time. It is killed.
    """
    pid = process_of(session)
    if pid is None or lock_holder(folder) != str(pid):
        return False
    if proc.is_stopped(pid) or stuck:
        log.warning(
            "node.fenced", pid=pid, folder=str(folder), reason="its lease is over, and it holds the folder of a stream that it lost"
        )
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return True


async def _backed_off(claim: Claim, node: Node, error: Exception) -> None:
    fields = claim.registered.fields
    attempt = int(fields["attempt"]) + 1 if fields.get("attempt", "").isdecimal() else 1
    pause_s = min(LONGEST_BACK_OFF_S, SHORTEST_BACK_OFF_S * 2 ** min(attempt - 1, 10)) * random.uniform(0.8, 1.2)
    retry_at = (node.clock.utc_now() + timedelta(seconds=pause_s)).isoformat(timespec="milliseconds")
    reason = str(error) if isinstance(error, HlsRelayError) else type(error).__name__
    told = {"state": "failed", "reason": reason, "node": "", "session": "", "attempt": str(attempt), "retry_at": retry_at}
    with suppress(RegistryUnavailable, Superseded):
        await node.registry.report(claim.registered.id, told, claim.epoch)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A stream that is to run, and how many looks long nobody has had it."""

    registered: Registered
    weight: int
    looks: int


class Claims:
    """The streams of a worker."""

    def __init__(self, node: Node, leaving: asyncio.Event) -> None:
        self.member = Member(node.registry, self._tells, node.metrics.registry_up.set)
        self._node = node
        self._leaving = leaving
        self._running: dict[str, tuple[asyncio.Task[object], int]] = {}
        self._free: dict[str, int] = {}

    @property
    def load(self) -> int:
        """What of the capacity is taken."""
        return sum(weight for _, weight in self._running.values())

    def _tells(self) -> dict[str, str]:
        """Return what the session says of us."""
        state = "draining" if self._leaving.is_set() else "active"
        return {
            "name": self._node.name,
            "state": state,
            "capacity": str(capacity_of(self._node)),
            "load": str(self.load),
            "streams": str(len(self._running)),
        }

    async def kept(self) -> None:
        """Claim and relay until told to leave; then let go of all, and return."""
        gone = asyncio.create_task(self._leaving.wait())
        try:
            while not gone.done():
                with suppress(RegistryUnavailable):
                    await self._look()
                for stream_id in [stream_id for stream_id, (task, _) in self._running.items() if task.done()]:
                    self._ended(stream_id)
                await asyncio.wait((gone,), timeout=LOOKED_EVERY_S * random.uniform(0.8, 1.2))
        finally:
            gone.cancel()
            for task, _ in self._running.values():
                if not self._leaving.is_set():
                    task.cancel()
            await asyncio.gather(*(task for task, _ in self._running.values()), return_exceptions=True)
            for stream_id in list(self._running):
                self._ended(stream_id)

    def _ended(self, stream_id: str) -> None:
        task, _ = self._running.pop(stream_id)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Superseded):
            if isinstance(error, HlsRelayError):
                log.warning("stream.failed", stream=stream_id, reason=str(error))
            else:
                log.error("stream.failed", stream=stream_id, exc_info=error)

    async def _look(self) -> None:
        sessions = await self._node.registry.sessions()
        wanted = await self._wanted(await self._node.registry.all(), sessions)
        waiting = self._waiting(wanted, sessions)
        self._free = {one.registered.id: one.looks for one in waiting}
        if self._node.refusal():
            return
        part = our_part(sum(weight for _, weight in wanted), self.member.id, sessions)
        room = capacity_of(self._node)
        for one in sorted(waiting, key=lambda one: (-one.looks, random.random())):
            beyond = self.load and self.load + one.weight > part and one.looks < LEFT_LYING
            if self._leaving.is_set() or (self.load and self.load + one.weight > room) or beyond:
                continue
            claim = await claimed(self._node, self.member, one.registered)
            if isinstance(claim, Claim):
                task = asyncio.create_task(relayed(claim, self._node, self._leaving), name=f"relay {one.registered.id}")
                self._running[one.registered.id] = task, one.weight

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
            if stream.desired is Desired.RUN:
                found.append((one, weight_of(stream)))
        return found

    def _waiting(self, wanted: Iterable[tuple[Registered, int]], sessions: list[Session]) -> list[Waiting]:
        now = self._node.clock.utc_now()
        return [
            Waiting(one, weight, self._free.get(one.id, -1) + 1)
            for one, weight in wanted
            if one.id not in self._running and not _backs_off(one, now) and holder(one.fields, sessions) is None
        ]


def our_part(total: int, session: str, sessions: Iterable[Session]) -> int:
    """Return how much of *total* is ours, by the capacities of all that live and take on."""
    capacities = {one.id: int(one.fields.get("capacity", "0")) for one in sessions if one.id == session or (one.lives and _takes_on(one))}
    whole = sum(capacities.values())
    return math.ceil(total * capacities.get(session, 0) / whole) if whole else total


def _takes_on(session: Session) -> bool:
    return session.fields.get("state") == "active" and session.fields.get("capacity", "").isdecimal()


def _backs_off(one: Registered, now: datetime) -> bool:
    try:
        return datetime.fromisoformat(one.fields["retry_at"]) > now
    except (KeyError, ValueError, TypeError):
        return False
