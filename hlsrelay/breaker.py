"""A breaker: what has failed several times in a row is left alone for a while, then tried once. Pure: time and chance are told."""

from __future__ import annotations

from dataclasses import dataclass

FAILURES = 3
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 300.0
JITTER = 0.2
"""Part of a pause by which it is longer or shorter, so that what failed together is not tried together."""


@dataclass(slots=True)
class Breaker:
    """Closed until FAILURES in a row; then open, each pause twice as long as the one before until a trial goes well."""

    reason: str = ""
    failures: int = 0
    pause_s: float = 0.0
    until_s: float = 0.0
    trying: bool = False

    @property
    def open(self) -> bool:
        """Whether nothing but a trial is let through."""
        return self.pause_s > 0

    def admits(self, now_s: float) -> bool:
        """Return whether an attempt may begin; where it is a trial, the next is not let through before that one has ended."""
        if not self.open:
            return True
        if self.trying or now_s < self.until_s:
            return False
        self.trying = True
        return True

    def undecided(self) -> None:
        """An attempt ended and showed nothing, neither way."""
        self.trying = False

    def failed(self, now_s: float, reason: str, chance: float) -> bool:
        """An attempt has failed; *chance* is from 0 to 1. Returns whether the breaker opens, or stays open for longer."""
        self.failures += 1
        self.reason = reason
        if self.open and not self.trying:  # it began before the breaker opened
            return False
        if self.failures < FAILURES:
            return False
        self.trying = False
        self.pause_s = min(max(2 * self.pause_s, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)
        self.until_s = now_s + self.pause_s * (1 + JITTER * (2 * chance - 1))
        return True
