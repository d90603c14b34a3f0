"""When a source will publish next, learnt from when it did. Pure.

Laws:
- A live source publishes on a beat of its own: each time when the next of its segments is complete. The beat is as long as what the last
  loads brought; where in it the source publishes, its *phase*, is learnt from when loads found something new and when they did not yet.
- The first load of a beat comes when one publication in ten has come already, and the next ones follow closely until one has: that is
  how fresh it can be had for about two requests a beat. The more of them there are than BUDGET on average, the rarer they get.
- A phase is only believed as long as it holds: when nothing comes, loads get rarer at once, as RFC 8216 6.3.4 has them; when something
  comes at another time, that is the new phase.

Times are monotonic seconds. An observation is an interval: after the start of the last load that found nothing new, at most when the first
load that did was answered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median_low

CLOSEST_S = 0.1
"""Between two loads of one playlist there is at least this, or what the operator says."""
BUDGET = 2.5
"""Requests for each segment, on average."""
SAVED = 8.0
"""Requests that were not needed may be spent later: so many of them."""
REMEMBERED = 20
EARLY_SHARE = 0.1
FOLLOWS = 0.2
"""How much of what a publication was early or late the phase follows: a drift at once, jitter hardly."""
ELSEWHERE_BEATS = 0.4
"""A publication that is off by more than this says nothing of jitter: the source has another phase now."""
LONGEST_WAIT = 1.25
"""No wait is longer than so many of those that RFC 8216 has: a source that brought two segments at a time may bring one now, and a playlist
that nobody looked at for 1.5 target durations passes for silent."""
MOST_EARLY = 4
"""So many publications in a row found by the first loads of their beats have come long before."""
WAITS = 0.9
"""How many gaps between loads an average publication is waited for after the first load of its beat."""
SAVES_BELOW = 3.0
"""With less than this left, gaps get longer, up to FEWEST times at nothing left."""
FEWEST = 2.5


@dataclass(frozen=True, slots=True)
class Phase:
    """What is known of a source's beat. *expected_s*: when it publishes next, give or take *unsure_s*; None as long as that is not known.

    *lates_s* are by how much the last publications came after they were expected, once that is known as well as loads can tell.
    *missed_s* is the start of the newest load of this beat that found nothing new, *gap_s* what was waited after it. *brought* are how
    many segments each of the last publications had. *off* and *early* count publications in a row: at another time than the phase says,
    and found by the first load of their beats. *left* are the requests not needed so far.
    """

    expected_s: float | None = None
    unsure_s: float = 0.0
    beat_s: float = 0.0
    lates_s: tuple[float, ...] = ()
    brought: tuple[int, ...] = ()
    missed_s: float | None = None
    gap_s: float = CLOSEST_S
    off: int = 0
    early: int = 0
    asked_s: float | None = None
    left: float = SAVED
    closest_s: float = CLOSEST_S


def asked(phase: Phase, started_s: float) -> Phase:
    """Return the phase once a load has begun at *started_s*."""
    since_s = started_s - phase.asked_s if phase.asked_s is not None else 0.0
    earned = BUDGET * since_s * median_low(phase.brought) / phase.beat_s if phase.beat_s else 0.0
    return replace(phase, asked_s=started_s, left=min(SAVED, phase.left + earned) - 1)


def found_nothing(phase: Phase, started_s: float, usual_s: float) -> tuple[Phase, float]:
    """Return the phase after a load, begun at *started_s*, that brought nothing new, and when the next one is due.

    *usual_s* is what is waited where the phase can't tell: half a target duration (RFC 8216 6.3.4).
    """
    missed = replace(phase, missed_s=started_s)
    if phase.expected_s is None:
        return missed, started_s + usual_s
    first_s = _first_s(phase)
    if started_s < first_s - phase.closest_s:  # a nudge, or the longest wait: the beat's own loads come all the same, and tell more
        return phase, min(first_s, started_s + 2 * usual_s)
    latest_s = phase.expected_s + max(phase.unsure_s, *phase.lates_s, 0.0)
    gap_s = _gap_s(phase) if phase.missed_s is None or started_s <= latest_s else min(usual_s, 1.5 * phase.gap_s)
    return replace(missed, gap_s=gap_s), started_s + gap_s


def found_new(phase: Phase, started_s: float, durations_s: tuple[float, ...], usual_s: float) -> tuple[Phase, float]:
    """Return the phase after a load, begun at *started_s*, that brought segments of *durations_s*, and when the next one is due.

    *usual_s* is what is waited where the phase can't tell: a target duration (RFC 8216 6.3.4).
    """
    brought = (*phase.brought, len(durations_s))[-5:]
    beat_s = max(phase.closest_s, sum(durations_s[-median_low(brought) :]))
    early = phase.early + 1 if phase.missed_s is None else 0
    known = replace(phase, brought=brought, beat_s=beat_s, missed_s=None, gap_s=phase.closest_s, early=early)
    if phase.expected_s is None and phase.missed_s is None:  # the first load of all: anything may have come before it
        return known, started_s + usual_s
    known = _sought(known, started_s - beat_s / 2, started_s) if early >= MOST_EARLY else _learnt(known, phase.missed_s, started_s)
    assert known.expected_s is not None
    known = replace(known, expected_s=known.expected_s + beat_s)
    first_s = min(_first_s(known), started_s + LONGEST_WAIT * usual_s)
    return known, max(first_s, started_s + phase.closest_s)


def _learnt(phase: Phase, missed_s: float | None, found_s: float) -> Phase:
    """Return the phase once a publication is known to have come between two moments; *missed_s* is None where only the later is known."""
    if phase.expected_s is None:
        assert missed_s is not None
        return _sought(phase, missed_s, found_s)
    if phase.unsure_s:
        since_s = max(phase.expected_s - phase.unsure_s, missed_s if missed_s is not None else 0.0)
        until_s = min(phase.expected_s + phase.unsure_s, found_s)
        if since_s < until_s:
            return _sought(phase, since_s, until_s)
        return _sought(phase, missed_s if missed_s is not None else found_s - 2 * phase.unsure_s, found_s)
    before_s = missed_s if missed_s is not None else min(found_s, _first_s(phase)) - _gap_s(phase)
    late_s = (before_s + found_s) / 2 - phase.expected_s
    unsure_s = (found_s - before_s) / 2
    widest_s = max(abs(one) for one in phase.lates_s)
    off = phase.off + 1 if abs(late_s) > widest_s + 2 * unsure_s + phase.closest_s else 0
    if off > 1 or abs(late_s) > ELSEWHERE_BEATS * phase.beat_s + unsure_s:
        return _sought(phase, before_s, found_s)
    if off:  # once is nothing yet, and must not pass for jitter
        return replace(phase, off=off)
    step_s = FOLLOWS * late_s
    lates_s = tuple(one - step_s for one in (*phase.lates_s, late_s)[-REMEMBERED:])
    return replace(phase, expected_s=phase.expected_s + step_s, lates_s=lates_s, off=0)


def _sought(phase: Phase, since_s: float, until_s: float) -> Phase:
    """Return the phase where all that is known is that it lies between two moments."""
    unsure_s = (until_s - since_s) / 2
    if unsure_s <= phase.closest_s:
        return replace(phase, expected_s=since_s + unsure_s, unsure_s=0.0, lates_s=(-unsure_s, unsure_s), off=0)
    return replace(phase, expected_s=since_s + unsure_s, unsure_s=unsure_s, lates_s=(), off=0)


def _first_s(phase: Phase) -> float:
    """When the first load of the beat is due: when one publication in ten has come, or a third of the time in which it may come is over."""
    assert phase.expected_s is not None
    if phase.unsure_s:
        return phase.expected_s - phase.unsure_s / 3
    return phase.expected_s + sorted(phase.lates_s)[int(EARLY_SHARE * len(phase.lates_s))]


def _gap_s(phase: Phase) -> float:
    """What is waited between two loads of a beat: the wider publications are spread, the more, for the same number of them."""
    assert phase.expected_s is not None
    if phase.unsure_s:
        return max(phase.closest_s, phase.unsure_s * 2 / 3)
    mean_s = sum(phase.lates_s) / len(phase.lates_s)
    saving = 1 + (FEWEST - 1) * min(1.0, max(0.0, 1 - phase.left / SAVES_BELOW))
    return saving * max(phase.closest_s, (phase.expected_s + mean_s - _first_s(phase)) / WAITS)
