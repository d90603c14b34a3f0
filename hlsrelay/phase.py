"""When a source will publish next, learnt from when it did. Pure.

Laws:
- A live source publishes on a beat of its own: each time when the next of its segments is complete. The beat is as long as the last
  segments were; where in it the source publishes, its *phase*, is learnt from when loads found something new and when they did not yet.
- The phase is *sought* at once, with the requests saved for it: an eighth of a beat between loads until the first publication is found,
  then a quarter of what is not known yet. Two or three beats after the first load it is known to CLOSEST_S.
- A *steady* source is asked once a beat, just after it publishes. Just after is found by coming a little earlier each time until one load
  comes too early. Every few beats a load more comes CLOSEST_S before: it costs no time, and sees what came early.
- Where publications are *spread*, the first load of a beat comes when one publication in ten has come already, and the next ones follow
  closely until one has: that is how fresh it can be had for about two requests a beat. The more of them there are than BUDGET on average,
  the rarer they get.
- A phase is only believed as long as it holds: when nothing comes, loads get rarer at once, as RFC 8216 6.3.4 has them; when something
  comes at another time, that is the new phase.

Times are monotonic seconds. An observation is an interval: after the start of the last load that found nothing new, at most when the first
load that did was answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from hlsrelay.values import replace

CLOSEST_S = 0.1
"""Between two loads of one playlist there is at least this, or what the operator says."""
BUDGET = 2.5
"""Requests for each segment, on average."""
SAVED = 8.0
"""Requests that were not needed may be spent later: so many of them."""
REMEMBERED = 20
RECENT = 5
FIRST_STEPS = 8
"""In so many parts of a beat the first publication is looked for, with the saved requests."""
STEPS = 4
"""In so many parts each of the next beats divides what is not known yet; in two where requests are short."""
EARLY_SHARE = 0.1
FOLLOWS = 0.2
"""How much of what a publication was early or late the phase of a spread source follows: a drift at once, jitter hardly."""
ELSEWHERE_BEATS = 0.4
"""A publication that is off by more than this says nothing of jitter: the source has another phase now."""
WIDEST_BEATS = 0.6
"""An observation that is wider (the source was away, or is asked politely) says nothing of the phase."""
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
# What follows is in shares of the closest two loads may come.
KNOWN = 1.5
"""A phase that is known so well is not sought any more."""
SPREAD, STEADY = 1.5, 1.0
"""With more than SPREAD between publications, one in ten left out at each end, a source is not steady; with STEADY or less it is again."""
FINE = 0.3
"""What is known less well is divided, a quarter at a time. Then the load comes earlier by CREEP each time, by twice that after BOLD_HITS,
and by BACK at most."""
CREEP = 0.005
BOLD_HITS = 16
BACK = 0.3
"""A load that came too early comes so much later the next time."""
FAR = 4.0
"""A publication of a steady source that is late by more is looked at twice before it is believed."""
WATCHED_BEATS = 10
"""Every so many beats a steady source is asked earlier as well."""


@dataclass(frozen=True)
class Phase:
    """What is known of a source's beat. *expected_s*: when it publishes next; None as long as that is not known.

    While that is sought it is give or take *unsure_s*. Of a steady source it is at the latest then, and *known_s* earlier at most; *hits*
    publications in a row were found by the load that was meant to. Of a spread one *known_s* is 0. *lates_s* are by how much the last
    publications came after they were expected.

    *beat_s* is how long the next segments that come together will be, as far as *lasted_s* tells, the durations of the last segments.
    *missed_s* is the start of the newest load of this beat that found nothing new, *gap_s* what was waited after it. *brought* are how
    many segments each of the last publications had. *off* and *early* count publications in a row: at another time than the phase says,
    and found by a load that was to find nothing. *left* are the requests not needed so far.
    """

    expected_s: float | None = None
    unsure_s: float = 0.0
    known_s: float = 0.0
    hits: int = 0
    beat_s: float = 0.0
    lates_s: tuple[float, ...] = ()
    brought: tuple[int, ...] = ()
    lasted_s: tuple[float, ...] = ()
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
    earned = BUDGET * since_s * _together(phase) / phase.beat_s if phase.beat_s else 0.0
    return replace(phase, asked_s=started_s, left=min(SAVED, phase.left + earned) - 1)


def found_nothing(phase: Phase, started_s: float, usual_s: float) -> tuple[Phase, float]:
    """Return the phase after a load, begun at *started_s*, that brought nothing new, and when the next one is due.

    *usual_s* is what is waited where the phase can't tell: half a target duration (RFC 8216 6.3.4).
    """
    missed = replace(phase, missed_s=started_s)
    if phase.expected_s is None:
        beat_s = phase.beat_s or max(phase.closest_s, 2 * usual_s)
        gap_s = max(phase.closest_s, beat_s / FIRST_STEPS if phase.left >= 1 else min(usual_s, 1.5 * phase.gap_s))
        return replace(missed, gap_s=gap_s, beat_s=beat_s), started_s + gap_s
    first_s, slack_s = _first_s(phase), phase.closest_s / 2
    if started_s < first_s - phase.closest_s:  # a nudge, or the longest wait: the beat's own loads come all the same, and tell more
        return phase, max(started_s + phase.closest_s, min(first_s, started_s + 2 * usual_s))
    if phase.known_s and started_s < (aim_s := _aim_s(phase)) - slack_s:
        return missed, max(aim_s, started_s + phase.closest_s)
    latest_s = phase.expected_s + max(phase.unsure_s, 0.0, *phase.lates_s) + slack_s
    gap_s = _gap_s(phase) if phase.missed_s is None or started_s <= latest_s else 1.5 * phase.gap_s
    gap_s = max(phase.closest_s, min(usual_s, gap_s))
    return replace(missed, gap_s=gap_s), started_s + gap_s


def found_new(phase: Phase, started_s: float, durations_s: tuple[float, ...], usual_s: float) -> tuple[Phase, float]:
    """Return the phase after a load, begun at *started_s*, that brought segments of *durations_s*, and when the next one is due.

    *usual_s* is what is waited where the phase can't tell: a target duration (RFC 8216 6.3.4).
    """
    if phase.expected_s is None and phase.missed_s is None:  # the first load of all: anything may have come before it
        known = replace(phase, beat_s=max(phase.closest_s, durations_s[-1]), missed_s=started_s)
        return replace(known, gap_s=known.beat_s / FIRST_STEPS), started_s + max(phase.closest_s, known.beat_s / FIRST_STEPS)
    longer_s = sum(durations_s) - phase.beat_s
    if len(durations_s) != _together(phase) and (phase.expected_s or 0.0) + longer_s > started_s + phase.closest_s / 2:
        longer_s = 0.0  # it does not bring more because so much time has passed
    known = _learnt(phase, phase.missed_s, started_s, longer_s)
    brought, lasted_s = (*phase.brought, len(durations_s))[-RECENT:], (*phase.lasted_s, *durations_s)[-RECENT:]
    known = replace(known, brought=brought, lasted_s=lasted_s, missed_s=None, gap_s=phase.closest_s)
    beat_s = max(phase.closest_s, _together(known) * median(lasted_s))
    assert known.expected_s is not None
    known = replace(known, beat_s=beat_s, expected_s=known.expected_s + beat_s)
    first_s = min(_first_s(known), started_s + LONGEST_WAIT * usual_s)
    return known, max(first_s, started_s + phase.closest_s)


def _learnt(phase: Phase, missed_s: float | None, found_s: float, longer_s: float) -> Phase:
    """Return the phase once a publication is known to have come between two moments; *missed_s* is None where only the later is known.

    What it brought was *longer_s* longer than expected, and so it came as much later.
    """
    if phase.expected_s is None:
        assert missed_s is not None
        return _sought(phase, missed_s, found_s)
    expected_s = phase.expected_s + longer_s
    phase, beats = replace(phase, expected_s=expected_s), (found_s - expected_s) / phase.beat_s
    if found_s - (_first_s(phase) - longer_s if missed_s is None else missed_s) > WIDEST_BEATS * phase.beat_s:
        passed = int(beats + BACK * phase.closest_s / phase.beat_s)
        return replace(phase, expected_s=expected_s + max(0, passed) * phase.beat_s)
    if beats > 1 - ELSEWHERE_BEATS / 4:  # whole beats without a publication, and on as before
        phase = replace(phase, expected_s=expected_s + round(beats) * phase.beat_s)
    if phase.unsure_s:
        return _narrowed(phase, missed_s, found_s)
    return (_tracked if phase.known_s else _followed)(phase, missed_s, found_s, longer_s)


def _sought(phase: Phase, since_s: float, until_s: float) -> Phase:
    """Return the phase where all that is known is that it lies between two moments: steady, as long as nothing says otherwise."""
    fresh, since_s = replace(phase, known_s=0.0, lates_s=(), hits=0, off=0, early=0), max(since_s, until_s - phase.beat_s)
    if until_s - since_s <= KNOWN * phase.closest_s:
        return replace(fresh, expected_s=until_s, unsure_s=0.0, known_s=max(FINE * phase.closest_s, until_s - since_s))
    return replace(fresh, expected_s=(since_s + until_s) / 2, unsure_s=(until_s - since_s) / 2)


def _narrowed(phase: Phase, missed_s: float | None, found_s: float) -> Phase:
    """Return a phase that was sought, once a publication came."""
    assert phase.expected_s is not None
    since_s, until_s = phase.expected_s - phase.unsure_s, phase.expected_s + phase.unsure_s
    if found_s <= since_s:
        return _sought(phase, found_s - phase.beat_s / 2 if missed_s is None else missed_s, found_s)
    if missed_s is None or missed_s < until_s:
        return _sought(phase, since_s if missed_s is None else max(since_s, missed_s), min(until_s, found_s))
    closest_s, middle_s = phase.closest_s, (missed_s + found_s) / 2
    if max(until_s - since_s, found_s - missed_s) > FAR * closest_s or middle_s - phase.expected_s > ELSEWHERE_BEATS * phase.beat_s:
        return _sought(phase, missed_s, found_s)
    lates_s = (phase.expected_s - middle_s, 0.0)  # it came there once and here once
    return replace(phase, expected_s=middle_s, unsure_s=0.0, known_s=0.0, lates_s=lates_s, off=0, early=0)


def _tracked(phase: Phase, missed_s: float | None, found_s: float, longer_s: float) -> Phase:
    """Return the phase of a steady source once a publication came."""
    assert phase.expected_s is not None
    expected_s, aim_s, closest_s = phase.expected_s, _aim_s(phase), phase.closest_s
    if missed_s is None and found_s < aim_s - closest_s / 2:  # the load that was to find nothing
        if phase.early or found_s < _first_s(phase) - closest_s:
            return _sought(phase, found_s - phase.beat_s / 2, found_s)
        seen = _steady_still(phase, found_s - closest_s / 2 - aim_s + longer_s)
        return replace(seen, expected_s=found_s, early=1, hits=0) if seen.known_s else seen
    if missed_s is None or missed_s < aim_s - closest_s / 4:
        if phase.early and missed_s is not None:
            return _sought(phase, missed_s, min(aim_s, found_s))
        if missed_s is not None or abs(longer_s) > FINE * closest_s:
            phase = _steady_still(phase, longer_s - closest_s / 2)
        known_s = max(FINE * closest_s, phase.known_s - (expected_s - aim_s)) if phase.known_s else 0.0
        return replace(phase, expected_s=aim_s, known_s=known_s, hits=phase.hits + 1, off=0, early=0)
    late_s, unsure_s = (missed_s + found_s) / 2 - aim_s, (found_s - missed_s) / 2
    if late_s > FAR * closest_s + unsure_s:
        if phase.off or late_s > ELSEWHERE_BEATS * phase.beat_s + unsure_s:
            return _sought(phase, missed_s, found_s)
        return replace(phase, off=1, early=0)  # once is nothing yet, and must not pass for jitter
    seen = replace(_steady_still(phase, late_s + longer_s), off=0, early=0)
    if not seen.known_s:
        return seen
    again = not phase.hits and phase.lates_s
    latest_s = found_s if again or late_s > closest_s else max(expected_s, aim_s + BACK * closest_s)
    return replace(seen, expected_s=latest_s, known_s=max(FINE * closest_s, latest_s - missed_s), hits=0)


def _steady_still(phase: Phase, late_s: float) -> Phase:
    """Return the phase of a steady source with one more publication, spread where that shows it."""
    seen = replace(phase, lates_s=(*phase.lates_s, late_s)[-REMEMBERED:])
    return seen if _spread_s(seen) <= SPREAD * phase.closest_s else replace(seen, known_s=0.0)


def _followed(phase: Phase, missed_s: float | None, found_s: float, longer_s: float) -> Phase:
    """Return the phase of a spread source once a publication came."""
    assert phase.expected_s is not None
    early = phase.early + 1 if missed_s is None else 0
    if early >= MOST_EARLY:
        return _sought(phase, found_s - phase.beat_s / 2, found_s)
    before_s = missed_s if missed_s is not None else min(found_s, _first_s(phase) - longer_s) - _gap_s(phase)
    late_s = (before_s + found_s) / 2 - phase.expected_s
    unsure_s = (found_s - before_s) / 2
    widest_s = max(abs(one) for one in phase.lates_s)
    off = phase.off + 1 if abs(late_s) > widest_s + 2 * unsure_s + phase.closest_s else 0
    if off > 1 or abs(late_s) > ELSEWHERE_BEATS * phase.beat_s + unsure_s:
        return _sought(phase, before_s, found_s)
    if off:
        return replace(phase, off=off, early=early)
    step_s = FOLLOWS * late_s
    lates_s = tuple(one - step_s for one in (*phase.lates_s, late_s + longer_s)[-REMEMBERED:])
    known = replace(phase, expected_s=phase.expected_s + step_s, lates_s=lates_s, off=0, early=early)
    if len(lates_s) < REMEMBERED / 2 or _spread_s(known) > STEADY * phase.closest_s:
        return known
    latest_s = phase.expected_s + step_s + median(lates_s) + phase.closest_s / 2
    return replace(known, expected_s=latest_s, known_s=phase.closest_s, lates_s=(), hits=0, early=0)


def _together(phase: Phase) -> int:
    """How many segments come together: the median, the lower one of two."""
    return sorted(phase.brought)[(len(phase.brought) - 1) // 2] if phase.brought else 1


def _spread_s(phase: Phase) -> float:
    """How far publications are from one another, but for one in ten at either end."""
    ordered, left_out = sorted(phase.lates_s), int(EARLY_SHARE * len(phase.lates_s))
    return ordered[-1 - left_out] - ordered[left_out]


def _aim_s(phase: Phase) -> float:
    """When the load is due that is meant to bring a steady source's publication."""
    assert phase.expected_s is not None
    if phase.known_s > FINE * phase.closest_s:
        return phase.expected_s - phase.known_s / STEPS
    return phase.expected_s - phase.closest_s * min(BACK, CREEP * (1 + (phase.hits / BOLD_HITS) ** 2))


def _first_s(phase: Phase) -> float:
    """When the first load of the beat is due."""
    assert phase.expected_s is not None
    if phase.unsure_s:
        return phase.expected_s - phase.unsure_s + _gap_s(phase)
    if phase.known_s:
        watched = phase.early or phase.hits % WATCHED_BEATS == 1
        ahead_s = phase.closest_s * (STEPS if phase.early else 1)
        return _aim_s(phase) - (ahead_s if watched and 2 * ahead_s < phase.beat_s else 0.0)
    return phase.expected_s + sorted(phase.lates_s)[int(EARLY_SHARE * len(phase.lates_s))]


def _gap_s(phase: Phase) -> float:
    """What is waited between two loads of a beat: the wider publications are spread, the more, for the same number of them."""
    assert phase.expected_s is not None
    if phase.unsure_s:
        return max(phase.closest_s, 2 * phase.unsure_s / (STEPS if phase.left >= STEPS / 2 else 2))
    if phase.known_s:
        return phase.closest_s
    mean_s = sum(phase.lates_s) / len(phase.lates_s)
    saving = 1 + (FEWEST - 1) * min(1.0, max(0.0, 1 - phase.left / SAVES_BELOW))
    return saving * max(phase.closest_s, (phase.expected_s + mean_s - _first_s(phase)) / WAITS)
