"""All time comes from here, so that tests can run a day of relay in seconds. The Pacer says when to load again."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from types import MappingProxyType

from hlsrelay.bell import Bell
from hlsrelay.model import EAGER, Polling
from hlsrelay.phase import Phase, asked, found_new, found_nothing
from hlsrelay.values import replace


class Clock:
    """The real clock, of one event loop. Tests put a virtual one in its place (a loop whose time jumps to the next timer)."""

    def __init__(self) -> None:
        self._time: Callable[[], float] | None = None

    def monotonic_s(self) -> float:
        """Return seconds that never step back, the loop's own; the origin is arbitrary."""
        if self._time is None:
            self._time = asyncio.get_running_loop().time  # asked for once: CPython 3.11 makes a system call each time
        return self._time()

    def utc_now(self) -> datetime:
        """Return the wall clock."""
        return datetime.fromtimestamp(time.time(), UTC)


def ticking_s() -> float:
    """Return seconds that never step back, as exact as the machine knows them: a loop's own time stands still while it is busy."""
    return time.monotonic()


class Nudges:
    """Wakes every pacer that listens: what each is waiting for is due now."""

    def __init__(self) -> None:
        self._bells: weakref.WeakSet[Bell] = weakref.WeakSet()

    def listen(self) -> Bell:
        """Return a bell that each nudge rings, for as long as somebody keeps it."""
        bell = Bell()
        self._bells.add(bell)
        return bell

    def nudge(self) -> None:
        """Wake them."""
        for bell in self._bells:
            bell.set()


class Pacer:
    """Yields each time the source's playlist is due: just when the source publishes, as far as that is known (phase).

    Where it is not, and where the operator wants it polite, as RFC 8216 6.3.4 paces a client. After a playlist that brought something
    new: one target duration after the *start* of that load, or the newest segment's duration where that is less. After one that did
    not: half of that. Of a playlist of one or two segments always sooner: one that comes late is pushed out early by the next. A nudge
    makes the next one due at once (the operator changed something).
    """

    SHORTEST_S = 0.25
    FEW_LISTED = MappingProxyType({1: 0.25, 2: 0.5})
    """What part of the usual time is waited, by how many segments are listed."""
    BEFORE_FIRST_S = 2.0

    def __init__(self, clock: Clock, nudges: Nudges) -> None:
        self._clock = clock
        self._nudged = nudges.listen()
        self._started_s: float | None = None
        self._due_s = 0.0
        self._usual_s = self.BEFORE_FIRST_S
        self._phase = Phase()

    def __aiter__(self) -> Pacer:
        return self

    async def __anext__(self) -> float:
        """Wait until the next load is due; returns the monotonic time at which it starts."""
        if self._started_s is not None:
            await self._nudged.wait(self._due_s - self._clock.monotonic_s())
        self._nudged.clear()
        self._started_s = self._clock.monotonic_s()
        self._due_s = self._started_s + self._usual_s
        self._phase = asked(self._phase, self._started_s)
        return self._started_s

    def loaded(
        self, *, fresh_s: tuple[float, ...], listed: int, target_duration_s: float, newest_s: float, polling: Polling = EAGER
    ) -> None:
        """Tell what the load that started last has brought, by the durations of what is new, of a playlist of so many segments."""
        assert self._started_s is not None, "nothing has been loaded yet"
        self._usual_s = max(self.SHORTEST_S, min(target_duration_s, newest_s) * self.FEW_LISTED.get(listed, 1.0 if fresh_s else 0.5))
        phase = self._phase if self._phase.closest_s == polling.closest_s else replace(self._phase, closest_s=polling.closest_s)
        if fresh_s:
            self._phase, due_s = found_new(phase, self._started_s, fresh_s, self._usual_s)
        else:
            self._phase, due_s = found_nothing(phase, self._started_s, self._usual_s)
        if polling.polite:
            due_s = self._started_s + self._usual_s
        elif listed in self.FEW_LISTED:
            due_s = min(due_s, self._started_s + self._usual_s)
        self._due_s = max(due_s, self._started_s + polling.closest_s)

    def failed(self) -> None:
        """Tell that the load that started last brought nothing usable: the usual pause, no faster."""
        assert self._started_s is not None, "nothing has been loaded yet"
        self._due_s = self._started_s + self._usual_s
