"""One stream's relay and its hash in Redis, kept in step beside the relay: neither ever waits for the other.

Laws:
- A stream whose hash is gone was deleted by its operator: its relay ends. But a Redis that has lost all it had (restarted without
  persistence, flushed), or what it had lately, has deleted nothing: who relays a stream writes it back, as the operator last had it, and
  goes on.
- A stream that was claimed again since our claim is another's: nothing more is written of it, and its relay ends, without ENDLIST.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from hlsrelay.bell import Bell
from hlsrelay.errors import HlsRelayError, RegistryUnavailable, Superseded
from hlsrelay.fields import FIGURES, RELAY_FIELDS, Registered
from hlsrelay.registry import Registry, apart
from hlsrelay.roster import Roster
from hlsrelay.values import replace

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Claim:
    """A stream that a session has taken: its hash as it was then, its epoch, and the life of the registry that this is of."""

    registered: Registered
    session: str
    epoch: int
    life: str


class Link:
    """Keeps one stream's relay and its hash in Redis in step, beside the relay: neither ever waits for the other."""

    PERIOD_S = 0.5
    LONG_PERIOD_S = 120.0
    """Where a roster hears of changes, the hash is still read so often: what was missed is not missed for long."""

    def __init__(
        self,
        registry: Registry,
        stream_id: str,
        revive: Callable[[], Awaitable[object]] | None = None,
        claim: Claim | None = None,
        roster: Roster | None = None,
        lives: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self._registry = registry
        self._stream_id = stream_id
        self._revive = revive
        self._claim = claim
        self._lives = lives
        """Tells the registry's life for certain, of one too that has just gone back to an older state and was not asked since."""
        self._wishes = _wishes(claim.registered) if claim else None
        self._pending: dict[str, str] = {}
        self._position: Callable[[], str] | None = None
        self._reported = {"session": claim.session, "epoch": str(claim.epoch)} if claim else {}
        self._woken = Bell()
        self._roster = roster
        self._stale = True
        self.wanted = asyncio.Event()
        """Set once another session asks for the stream to be handed over."""

    def report(self, **fields: str) -> None:
        """Have *fields* written soon; a later value of a field replaces one not written yet."""
        unknown = set(fields) - set(RELAY_FIELDS)
        if unknown:
            raise AssertionError(f"not a field of the relay's: {unknown}")
        self._pending |= fields
        self._woken.set()

    def carry(self, position: Callable[[], str]) -> None:
        """Have what *position* returns then kept soon, for an owner on another machine."""
        self._position = position
        self._woken.set()

    async def changes(self) -> AsyncGenerator[Registered | None, None]:
        """Yield the stream's hash whenever the operator changed it, None once it is deleted; carry reports back meanwhile.

        Raises Superseded where it is another node's now.
        """
        end = self._roster.listen(self._stream_id, self._changed) if self._roster else None
        loop, read_s = asyncio.get_running_loop(), 0.0
        life = self._claim.life if self._claim else ""
        now: Registered | None = None
        try:
            while True:
                try:
                    if self._stale or loop.time() >= read_s + self._period_s:
                        self._stale, read_s = False, loop.time()
                        now, lived = await self._registry.follow(self._stream_id)
                        if now is None and self._wishes and lived == life and self._lives:
                            lived = await self._lives()
                        if now is None and self._wishes and lived != life:
                            now = await self._restored(self._wishes)
                        elif now is not None and self._claim is not None:
                            self._claim = await self._asserted(self._claim, now)
                        life = lived
                    await self.flush()
                except RegistryUnavailable:
                    self._stale = True
                    if self._revive is not None:
                        with contextlib.suppress(HlsRelayError):
                            await self._revive()
                else:
                    wishes = _wishes(now) if now else None
                    if wishes != self._wishes:
                        self._wishes = wishes
                        yield now
                well = not (self._stale or self._pending or self._position)
                await self._woken.wait(read_s + self._period_s - loop.time() if well else self.PERIOD_S)
                self._woken.clear()
        finally:
            if end:
                end()

    @property
    def _period_s(self) -> float:
        return self.LONG_PERIOD_S if self._roster and self._roster.is_told else self.PERIOD_S

    def _changed(self, now: Registered | None) -> None:
        """Look at the hash anew, unless all that is new in it is what we wrote."""
        if now and self._claim and _wishes(now) == self._wishes and _is_ours(now, self._claim):
            return
        self._stale = True
        self._woken.set()

    async def _restored(self, wishes: Mapping[str, str]) -> Registered | None:
        """Write the stream back to a registry that has lost it; what others have written there meanwhile counts for more."""
        told, self._pending = apart({**self._reported, **self._pending})  # figures come with the next report
        if await self._registry.register(self._stream_id, {**wishes, **told}):
            log.warning("stream.restored", stream=self._stream_id, reason="Redis has lost all that it had")
        return await self._registry.get(self._stream_id)

    async def _asserted(self, claim: Claim, now: Registered) -> Claim:
        """Return our claim, made again where the registry knows none so late. Raises Superseded where it knows a later one."""
        text = now.fields.get("epoch", "")
        told = int(text) if text.isdecimal() else 0
        if told == claim.epoch:
            if now.fields.get("wanted", "") not in ("", claim.session):
                self.wanted.set()
            return claim
        epoch = 0
        if told < claim.epoch:  # registered anew after a loss, or Redis went back to an older state
            told_of = {name: value for name, value in self._reported.items() if name not in ("session", "epoch")}
            epoch = await self._registry.claim(self._stream_id, claim.session, told_of, epoch=claim.epoch)
        if epoch <= 0:
            raise Superseded(f"stream '{self._stream_id}' is relayed by {now.fields.get('node') or 'another node'} now")
        log.warning("stream.restored", stream=self._stream_id, reason="Redis had forgotten who relays it")
        self._reported["epoch"] = str(epoch)
        return replace(claim, epoch=epoch)

    async def flush(self) -> None:
        """Write what is pending now. Raises RegistryUnavailable, and keeps it then; Superseded, and it is lost."""
        epoch = self._claim.epoch if self._claim else 0
        position, self._position = self._position if epoch else None, None
        sending, self._pending = self._pending, {}
        if not sending and position is None:
            return
        self._reported |= sending
        told, soon = position() if position else "", not sending.keys() <= FIGURES
        try:
            if not await self._registry.report(self._stream_id, sending, epoch, position=told, soon=soon):
                self._stale = True  # it is gone
        except (RegistryUnavailable, asyncio.CancelledError):
            self._pending = sending | self._pending
            self._position = self._position or position
            raise


def _is_ours(registered: Registered, claim: Claim) -> bool:
    """Return whether a stream is ours still, and nobody asks for it."""
    return registered.fields.get("epoch") == str(claim.epoch) and registered.fields.get("wanted", "") in ("", claim.session)


def _wishes(registered: Registered) -> dict[str, str]:
    """Return the operator's part of a stream's hash."""
    return {name: value for name, value in registered.fields.items() if name not in RELAY_FIELDS}
