"""How one stream comes into this process's hands, and how it leaves them: no viewer is to notice.

Laws:
- A stream is relayed by the session that made the last claim, and by none whose lease is over, once another has claimed it.
- Who leaves offers what it has, and relays it until another asks for it; what nobody asks for in time it lets go of.
- A stream that fails backs off by itself, wherever it is tried next, and holds up no other.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import structlog

from hlsrelay import proc
from hlsrelay.errors import HlsRelayError, RegistryUnavailable, ResourceBusy, Superseded, UnknownStream
from hlsrelay.fields import Registered
from hlsrelay.link import Claim
from hlsrelay.model import Desired
from hlsrelay.node import Node
from hlsrelay.registry import LEASE_S, Refused, Session
from hlsrelay.session import Member, holder, is_dead, process_of, takes_on
from hlsrelay.storage import lock_holder
from hlsrelay.worker import admitted, possible, relay_stream

LOOKED_EVERY_S = 0.7
ASKED_EVERY_S = 0.1
"""Who has asked for a stream looks so often whether it is free: nothing of it is published meanwhile."""
TAKE_OVER_WITHIN_S = 20.0
FREED_WITHIN_S = 10.0
"""A process that lost a stream and lives learns of it and lets go of its folder; one that did not is stuck."""
OFFERED_FOR_S = 30.0
"""What nobody has taken by then nobody has room for."""
SHORTEST_BACK_OFF_S, LONGEST_BACK_OFF_S = 1.0, 60.0

log = structlog.get_logger()


async def claimed(node: Node, member: Member, registered: Registered) -> Claim | Refused:
    """Claim a stream. Raises RegistryUnavailable."""
    found, life = await node.registry.follow(registered.id)
    if found is None:
        return Refused.UNKNOWN
    owner = found.fields.get("session", "")
    epoch = await node.registry.claim(registered.id, member.id, {"node": node.name, "wanted": ""}, dead=owner if is_dead(owner) else "")
    return Claim(found, member.id, epoch, life) if epoch > 0 else Refused(epoch)


async def obtained(node: Node, member: Member, registered: Registered) -> Claim:
    """Claim a stream that is free, or whose owner seems to be dead: that is waited for, until its lease is over.

    Raises ResourceBusy that says who has it, UnknownStream, RegistryUnavailable.
    """
    first: Session | None = None
    waited_s = 0.0
    while True:
        claim = await claimed(node, member, registered)
        if isinstance(claim, Claim):
            return claim
        has = await _owner(node, registered, claim)
        renewed = has and first and has.id == first.id and has.left_s > first.left_s - waited_s + LOOKED_EVERY_S
        if renewed or waited_s > 2 * LEASE_S + LOOKED_EVERY_S:
            raise _held(registered, has)
        first = first or has
        await asyncio.sleep(LOOKED_EVERY_S / 2)
        waited_s += LOOKED_EVERY_S / 2


async def taken_over(node: Node, member: Member, registered: Registered) -> Claim:
    """Ask the owner of a stream to let go of it, and claim it then.

    Raises ResourceBusy where it does not, or another was faster; Superseded where it changed hands just then; UnknownStream;
    RegistryUnavailable.
    """
    claim = await claimed(node, member, registered)
    if isinstance(claim, Claim):
        return claim
    first = await _owner(node, registered, claim)
    if first is None or first.id != registered.fields.get("session"):  # another was faster: it is not asked to let go again
        raise _held(registered, first)
    now = await node.registry.get(registered.id) or registered
    epoch = now.fields.get("epoch", "")
    await node.registry.report(
        registered.id, {"wanted": member.id}, int(epoch) if epoch.isdecimal() else 0
    )  # of this owner, and no later one
    waited_s = 0.0
    try:
        while not isinstance(claim := await claimed(node, member, registered), Claim):
            has = await _owner(node, registered, claim)
            if waited_s > TAKE_OVER_WITHIN_S or (has and first and has.id != first.id):
                raise _held(registered, has)
            await asyncio.sleep(ASKED_EVERY_S)
            waited_s += ASKED_EVERY_S
    except asyncio.CancelledError:
        await node.registry.report(registered.id, {"wanted": ""}, int(epoch) if epoch.isdecimal() else 0)  # the owner may keep it
        raise
    return claim


async def _owner(node: Node, registered: Registered, why: Refused) -> Session | None:
    if why is Refused.UNKNOWN:
        raise UnknownStream(f"stream '{registered.id}' was removed meanwhile")
    return holder((await node.registry.get(registered.id) or registered).fields, await node.registry.sessions())


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
        waited_s = 0.0
        while True:
            try:
                return await relay_stream(stream, node, leaving, claim)
            except ResourceBusy:  # who has just let go of it is about to let go of its folder too
                gone = not _fenced(before, node.live / stream_id, stuck=waited_s > FREED_WITHIN_S / 2)
                if waited_s >= FREED_WITHIN_S or (waited_s > 1 and gone):
                    raise
            await asyncio.sleep(pause_s := ASKED_EVERY_S if waited_s < 1 else 1.0)
            waited_s += pause_s
    except Exception as error:
        await _backed_off(claim, node, error)  # what is another's by now is not told of
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
    told = {"state": "failed", "reason": reason, "node": "", "session": "", "wanted": "", "attempt": str(attempt), "retry_at": retry_at}
    with suppress(RegistryUnavailable, Superseded):
        await node.registry.report(claim.registered.id, told, claim.epoch)


async def offered(
    node: Node,
    member: Member,
    relaying: Callable[[], Collection[asyncio.Task[float]]],
    meanwhile: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Relay on what *relaying* gives until others have taken it: the session says that it is draining. Returns once nobody will.

    Nobody will where no other node takes on streams, Redis is away, or OFFERED_FOR_S have gone by. *meanwhile* is done at each look.
    """
    until_s = node.clock.monotonic_s() + OFFERED_FOR_S
    with suppress(RegistryUnavailable):
        await member.beat()
        while node.clock.monotonic_s() < until_s:
            heirs = [one for one in await node.registry.sessions() if one.id != member.id and one.lives and takes_on(one)]
            if not heirs or not (left := relaying()):
                return
            await asyncio.wait(left, timeout=LOOKED_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            if meanwhile is not None:
                await meanwhile()


async def has_heir(node: Node, member: Member, stream_id: str) -> bool:
    """Return whether another node has a stream that we had, or is about to. Raises RegistryUnavailable."""
    found = await node.registry.get(stream_id)
    return found is not None and any(found.fields.get(name, "") not in ("", member.id) for name in ("session", "wanted"))
