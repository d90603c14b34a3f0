"""Streams that an operator deleted while we looked on: a Redis that goes back to an older state does not bring them back.

Laws:
- What is gone was deleted only where Redis is in the life that it was in before (registry.follow): else it has lost it, and who relays it
  writes it back (link).
- What is there again is what was deleted only if its epoch is none that came later. A stream that is registered anew has no epoch yet; so
  one that was never relayed does come back.
- Each node that takes on streams remembers for itself, and forgets when it ends.
"""

from __future__ import annotations

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
        self._gone: dict[str, int] = {}
        self._deleted: dict[str, int] = {}

    def take(self, stream_id: str, registered: Registered | None) -> None:
        """Take a stream's hash, None where it is gone."""
        before = self._seen.pop(stream_id, 0)
        if registered is not None:
            self._seen[stream_id] = _epoch(registered)
            self._gone.pop(stream_id, None)
        elif before:
            self._gone[stream_id] = before

    async def upheld(self) -> list[str]:
        """Delete again what came back, and return the ids of that. Raises RegistryUnavailable; it is done the next time then."""
        life = self._member.life
        gone = dict(self._gone)
        if gone and await self._member.lives() == self._life:
            self._deleted = dict([*self._deleted.items(), *gone.items()][-MOST:])
        self._gone = {stream_id: epoch for stream_id, epoch in self._gone.items() if stream_id not in gone}
        self._life = life
        found = []
        for stream_id in self._seen.keys() & self._deleted.keys():
            if 0 < self._seen[stream_id] <= self._deleted[stream_id]:
                log.warning("stream.deleted_again", stream=stream_id, reason="Redis went back to before it was deleted")
                await self._registry.delete(stream_id)
                del self._seen[stream_id]
                found.append(stream_id)
            else:
                del self._deleted[stream_id]
        return found


def _epoch(one: Registered) -> int:
    text = one.fields.get("epoch", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0
