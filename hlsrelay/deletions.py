"""Streams that an operator deleted while we looked on: a Redis that goes back to an older state does not bring them back.

Laws:
- What is gone was deleted only where Redis is in the life that it was in before (registry.follow): else it has lost it, and who relays it
  writes it back (link).
- What is there again is what was deleted only if its epoch is none that came later. A stream that is registered anew has no epoch yet; so
  one that was never relayed does come back.
- Each node that takes on streams remembers for itself, and forgets when it ends.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from hlsrelay.fields import Registered
from hlsrelay.registry import Registry
from hlsrelay.session import Member

MOST = 10_000
"""So many of the last ones are remembered."""

log = structlog.get_logger()


class Deletions:
    """What was deleted, as far as one node knows."""

    def __init__(self, registry: Registry, member: Member) -> None:
        self._registry = registry
        self._member = member
        self._seen: dict[str, int] = {}
        self._life = ""
        self._deleted: dict[str, int] = {}

    async def upheld(self, streams: Iterable[Registered]) -> list[Registered]:
        """Return *streams*, all that are registered, without those that came back: they are deleted again. Raises RegistryUnavailable."""
        found = {one.id: one for one in streams}
        epochs = {stream_id: _epoch(one) for stream_id, one in found.items()}
        before, life, self._seen, self._life = self._seen, self._life, epochs, self._member.life
        gone = {stream_id: epoch for stream_id, epoch in before.items() if epoch and stream_id not in found}
        if gone and await self._member.lives() == life:
            self._deleted = dict([*self._deleted.items(), *gone.items()][-MOST:])
        for stream_id in found.keys() & self._deleted.keys():
            if 0 < epochs[stream_id] <= self._deleted[stream_id]:
                log.warning("stream.deleted_again", stream=stream_id, reason="Redis went back to before it was deleted")
                await self._registry.delete(stream_id)
                del found[stream_id], self._seen[stream_id]
            else:
                del self._deleted[stream_id]
        return list(found.values())


def _epoch(one: Registered) -> int:
    text = one.fields.get("epoch", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0
