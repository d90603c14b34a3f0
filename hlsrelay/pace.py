"""How long an attempt at a segment may take: as long as it comes to something. On the loop that runs."""

from __future__ import annotations

import asyncio


class Pace:
    """Ends an attempt that eats the deadline for nothing: asking again may give the same at once.

    A body that would be whole by the deadline at the rate that it comes at goes on, and so does one that declares no length and keeps
    to LEAST_BYTES_PER_S; else it gets BODY_SHARE of the deadline. Servers may think for long before they answer: that ends only in
    time for another attempt, the first time.
    """

    ANSWER_SHARE, BODY_SHARE = 0.8, 1 / 3
    SHORTEST_S = 1.5
    LEAST_BYTES_PER_S = 1024.0

    def __init__(self, deadline_s: float, until_s: float, *, again: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._until_s = until_s
        self._grace_s = max(self.SHORTEST_S, deadline_s * self.BODY_SHARE)
        self._declared: int | None = None
        self._first: tuple[float, int] | None = None
        self._ends_s = until_s if again else min(until_s, self._loop.time() + deadline_s * self.ANSWER_SHARE)
        self.limit = asyncio.timeout_at(self._ends_s)

    def answered(self, declared: int | None) -> None:
        """The answer has begun, and declares that many bytes."""
        self._declared = declared
        self._ends(self._loop.time() + self._grace_s)

    def has(self, length: int) -> None:
        """So many bytes have come."""
        now_s = self._loop.time()
        if self._first is None:
            self._first = now_s, length
            self._go_on(now_s, self._grace_s / 2)
            return
        began_s, begun_with = self._first
        came, took_s = length - begun_with, now_s - began_s
        if self._declared is None:
            well = came >= self.LEAST_BYTES_PER_S * took_s
        else:
            well = (self._declared - length) * took_s <= came * (self._until_s - now_s)
        if well:
            self._go_on(now_s, self._grace_s)
        if took_s >= self._grace_s:
            self._first = now_s, length  # what went well before says nothing of now

    def _go_on(self, now_s: float, for_s: float) -> None:
        if now_s + 0.75 * for_s > self._ends_s < self._until_s:  # not for each chunk: timers cost
            self._ends(now_s + for_s)

    def _ends(self, at_s: float) -> None:
        self._ends_s = min(at_s, self._until_s)
        self.limit.reschedule(self._ends_s)
