"""A process that stood still (SIGSTOP, a debugger, a suspended machine) may have lost its streams, and has yet to hear of it.

Laws:
- Who went on all the time asks nobody: it hears in time that a stream is another's (link, session).
- Who stood still asks Redis whose a stream is before it writes anything of it. Where Redis does not answer, it goes on: the media waits for
  that once, and not for longer than ASKED_WITHIN_S.
"""

from __future__ import annotations

import asyncio

import structlog

from hlsrelay.clock import Clock
from hlsrelay.errors import RegistryUnavailable
from hlsrelay.link import Claim
from hlsrelay.registry import Registry

STILL_S = 2.0
"""A lease without a beat: so long nobody else can have claimed what we had."""
ASKED_WITHIN_S = 1.0

log = structlog.get_logger()


class Awake:
    """Counts how often this process stood still for longer than STILL_S, if it is asked more often than that."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen = self._now()
        self._stops = 0

    def stops(self) -> int:
        """Return how often it did so far. A wall clock that jumps counts too: the other one does not count what a machine slept."""
        before, self._seen = self._seen, self._now()
        self._stops += any(abs(now_s - before_s) > STILL_S for now_s, before_s in zip(self._seen, before, strict=True))
        return self._stops

    def _now(self) -> tuple[float, float]:
        return self._clock.monotonic_s(), self._clock.utc_now().timestamp()


class Fence:
    """Stands before what is written of a stream that we have claimed."""

    def __init__(self, awake: Awake, registry: Registry, stream_id: str, claim: Claim) -> None:
        self._awake = awake
        self._registry = registry
        self._stream_id = stream_id
        self._claim = claim
        self._stops = awake.stops()

    async def passed(self) -> None:
        """Return once the stream may be written: at once, unless we stood still. Never, where it is another's: its link ends the relay."""
        if (stops := self._awake.stops()) == self._stops:
            return
        try:
            async with asyncio.timeout(ASKED_WITHIN_S):
                found = await self._registry.get(self._stream_id)
        except (RegistryUnavailable, TimeoutError):
            found = None
        told = found.fields.get("epoch", "") if found else ""
        claimed_since = told.isdecimal() and int(told) > self._claim.epoch  # by us, where Redis had forgotten us (link)
        if found and claimed_since and found.fields.get("session") != self._claim.session:
            log.warning("stream.fenced", stream=self._stream_id, reason="this process stood still, and another node has it now")
            await asyncio.Event().wait()
        self._stops = stops
