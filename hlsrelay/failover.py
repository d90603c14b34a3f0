"""Which of a stream's sources is relayed: the primary, or a backup while the primary brings nothing. Pure.

Laws:
  1. A source that brought nothing new for the stall time is left for the next one, round and round.
  2. The primary is taken back only after it moved on, unbroken, for the hold time; so a primary that comes and goes never makes us flap.
  3. Each time that it is left again before it was relayed for LASTING_S, the hold time doubles, up to LONGEST_HOLD_S: what it lists may
     look well and be none. After it was relayed for that long, the hold time is the usual one again.
  4. Being chosen counts as progress: each source gets its whole stall time.
"""

from __future__ import annotations

from dataclasses import dataclass

from hlsrelay.model import Stream
from hlsrelay.values import replace

STALL_TARGET_DURATIONS = 3.0
SHORTEST_STALL_S = 5.0
HOLD_TARGET_DURATIONS = 10.0
SHORTEST_HOLD_S = 30.0
LASTING_S = LONGEST_HOLD_S = 3600.0
"""An operator's hold time may be longer."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the choice stands; times are monotonic seconds.

    *chosen_s*: since when the current source is relayed. *returned*: it is the primary, taken back. *failed* counts the returns to it that
    did not last.
    """

    sources: tuple[str, ...]
    index: int
    progressed_s: float
    healthy_since_s: float | None = None
    newest: str = ""
    moved_s: float = 0.0
    chosen_s: float = 0.0
    returned: bool = False
    failed: int = 0

    @property
    def current(self) -> str:
        """The source to relay now."""
        return self.sources[self.index]


def stall_s(stream: Stream, target_duration_s: float) -> float:
    """Return how long a source may bring nothing new."""
    return stream.stall_s or max(STALL_TARGET_DURATIONS * target_duration_s, SHORTEST_STALL_S)


def hold_s(stream: Stream, target_duration_s: float) -> float:
    """Return how long the primary must have been well before it is taken back the first time."""
    return stream.hold_s or max(HOLD_TARGET_DURATIONS * target_duration_s, SHORTEST_HOLD_S)


def wanted(standing: Standing | None, stream: Stream, now_s: float, last: str = "") -> Standing:
    """Return the standing for the operator's sources of now; *last* is what was relayed before, gone on with if it is still wanted."""
    sources = (stream.source, *stream.backups)
    if standing and standing.sources == sources:
        return standing
    return Standing(sources, sources.index(last) if last in sources else 0, now_s, chosen_s=now_s)


def progressed(standing: Standing, now_s: float) -> Standing:
    """The current source has brought something new."""
    return replace(standing, progressed_s=now_s)


def considered(standing: Standing, patience_s: float, now_s: float) -> Standing:
    """Leave the current source if it brought nothing for *patience_s* and there is another."""
    if len(standing.sources) == 1 or now_s - standing.progressed_s < patience_s:
        return standing
    index = (standing.index + 1) % len(standing.sources)
    failed = standing.failed
    if standing.index == 0 and now_s - standing.chosen_s >= LASTING_S:
        failed = 0
    elif standing.returned:
        failed += 1
    return replace(_chosen(standing, index, now_s), failed=failed)


def primary_seen(standing: Standing, newest: str | None, patience_s: float, hold_s: float, now_s: float) -> Standing:
    """Take a look at the primary into account: *newest* names its newest segment, None where it failed. May take it back."""
    if standing.index == 0:
        return standing
    if newest is None:
        return replace(standing, healthy_since_s=None, newest="")
    if standing.newest != newest:
        first_look = standing.newest == ""
        standing = replace(standing, newest=newest, moved_s=now_s, healthy_since_s=standing.healthy_since_s if not first_look else None)
        if not first_look and standing.healthy_since_s is None:
            standing = replace(standing, healthy_since_s=now_s)
    elif now_s - standing.moved_s >= patience_s:
        return replace(standing, healthy_since_s=None)
    if standing.healthy_since_s is not None and now_s - standing.healthy_since_s >= _doubled_s(hold_s, standing.failed):
        return replace(_chosen(standing, 0, now_s), returned=True)
    return standing


def _chosen(standing: Standing, index: int, now_s: float) -> Standing:
    return replace(standing, index=index, progressed_s=now_s, chosen_s=now_s, healthy_since_s=None, newest="", returned=False)


def _doubled_s(hold_s: float, failed: int) -> float:
    while failed and hold_s < LONGEST_HOLD_S:
        hold_s, failed = min(LONGEST_HOLD_S, 2 * hold_s), failed - 1
    return hold_s
