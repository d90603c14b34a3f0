"""Who takes part, as Redis told it last: kept up from what Redis tells of changes, so that to look at a hundred sessions is cheap.

Laws:
- It may be late, and nothing that matters rests on it: who is dead, and who gets a stream, is decided in Redis (redis_keys.CLAIM).
- That a lease is renewed is told to nobody. Whose lease is over is asked for at each look, which costs the same with any number of nodes.
- Where Redis can't tell, all is read at each look. Where it can, all is read where the numbers differ, and again now and then.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable

from hlsrelay.registry import Leases, Registry, Session
from hlsrelay.values import replace

SHORTEST_ROUND_S, ROUND_PER_SESSION_S = 10.0, 0.3
"""All is read again no sooner than this after the last time: all nodes together ask for a few sessions for each node, a second."""


class Membership:
    """The sessions of all processes; *is_told*: whether `heard` hears of changes just now."""

    def __init__(self, registry: Registry, is_told: Callable[[], bool]) -> None:
        self.next_s = math.inf
        """When the next lease is over, in the loop's time, if it is not renewed."""
        self._registry = registry
        self._is_told = is_told
        self._known: dict[str, Session] = {}
        self._stale: set[str] = set()
        self._whole_s = -math.inf
        self._reading = asyncio.Lock()

    @property
    def is_stale(self) -> bool:
        """Whether some tell something else than we have read, as far as we have heard."""
        return bool(self._stale) or self._whole_s == -math.inf

    def heard(self, sessions: frozenset[str] | None) -> None:
        """Hear which sessions tell something else than before, came or left; None: any may."""
        if sessions is None:
            self._whole_s = -math.inf
        else:
            self._stale |= sessions

    async def asked(self) -> list[Session]:
        """Return all sessions, by name, up to date; of one that lives it is known that it does, not for how long.

        Raises RegistryUnavailable.
        """
        async with self._reading:
            loop = asyncio.get_running_loop()
            whole = not self._is_told() or loop.time() >= self._whole_s
            stale, self._stale = self._stale, set()
            try:
                leases = None if whole else await self._registry.leases(stale)
                if leases is not None:
                    self._take(leases, stale)
                if leases is None or leases.count != len(self._known):  # something was missed, or has not reached us yet
                    self._whole_s = loop.time() + max(SHORTEST_ROUND_S, ROUND_PER_SESSION_S * len(self._known)) * random.uniform(1, 1.5)
                    leases = self._taken_whole(await self._registry.sessions())
            except BaseException:
                self._stale |= stale
                self._whole_s = -math.inf if whole else self._whole_s
                raise
            self.next_s = loop.time() + leases.next_s
            return sorted(self._known.values(), key=lambda one: (one.fields.get("name", ""), one.id))

    def _take(self, leases: Leases, stale: set[str]) -> None:
        for name in stale:
            self._known.pop(name, None)
        self._known |= {one.id: one for one in leases.told}
        for name, one in self._known.items():
            left_s = leases.over.get(name, max(0.0, one.left_s))
            if left_s != one.left_s:
                self._known[name] = replace(one, left_s=left_s)

    def _taken_whole(self, found: list[Session]) -> Leases:
        self._known = {one.id: one for one in found}
        return Leases(
            len(found),
            {one.id: one.left_s for one in found if not one.lives},
            min((one.left_s for one in found if one.lives), default=math.inf),
        )
