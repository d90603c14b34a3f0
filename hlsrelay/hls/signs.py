"""What speaks against a playlist that seems to go on from ours, and for one that seems not to. Pure: numbers, names, times, the clock.

None of this decides: where it leaves a doubt, `advance` asks for a digest, or watches the playlist as a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from hlsrelay.hls.doubt import FURTHEST_BEHIND, is_silent, is_still, is_stuck, lists_newest_of, moves_on, watched_long
from hlsrelay.hls.likeness import another_clock, another_time, file_name, known_as, looks_like
from hlsrelay.hls.numbering import REMEMBERED, Load, near
from hlsrelay.model import Candidate, Position, Seen, Segment

WARY_TARGET_DURATIONS = 20
"""So long after others were listed under numbers of ours, what goes on from ours is looked into."""


def doubtful(position: Position, newer: Sequence[Segment], shared: list[tuple[Seen, Segment]], load: Load) -> bool:
    """Return whether a playlist that lists our names under our numbers may yet be another encoder's, so that only a digest tells."""
    candidate, snapshot = position.candidate, load.snapshot
    if (candidate and candidate.resembles) or thrown_away(position, load) or started_over(position, newer, load):
        return True
    if any(another_time(*pair, snapshot) or another_clock(*pair, snapshot) for pair in shared):
        return True
    if any(seen.written and segment.time is None for seen, segment in shared):  # its time was told, and nothing tells it any more
        return True
    if not newer and len(snapshot.segments) > 1:  # one alone will not be listed beside what comes next
        return False
    if position.mistaken_at and load.now - position.mistaken_at < WARY_TARGET_DURATIONS * timedelta(seconds=snapshot.target_duration_s):
        return True
    elapsed_s = (load.now - position.advanced_at).total_seconds()
    if len(newer) * shortest_s(position, load) > elapsed_s + 3 * snapshot.target_duration_s:  # more than there was the time for
        return True
    if candidate and len(candidate.newest) > 1 and is_silent(position, load):  # what looked stale has moved on meanwhile
        return True
    if load.snapshot.segments[0].sequence < position.past_sequence:  # from before the generation began, and yet ahead of us
        return True
    newest = snapshot.segments[-1]
    listed_before = any(one.digest and looks_like(one, newest, snapshot) for one in position.older)
    return listed_before or known_as(position.passed, newest, load) is not None


def lists_others_as_ours(position: Position, load: Load) -> bool:
    """Return whether a name, or a digest, tells that what is listed under one of our numbers is something else."""
    ours = {one.sequence: one for one in position.recent if one.digest}
    pairs = ((ours[one.sequence], one) for one in load.snapshot.segments[-REMEMBERED:] if one.sequence in ours)
    return any(
        not looks_like(seen, one, load.snapshot) or load.digest(one) not in (None, "", seen.digest) for seen, one in pairs if not one.gap
    )


def thrown_away(position: Position, load: Load) -> bool:
    """Return whether more of the window is gone than time explains, as with an encoder that starts anew: a window slides.

    Where what is listed goes on from ours, it has slid by as much as has come.
    """
    segments = load.snapshot.segments
    stale = position.candidate is not None and position.candidate.known  # and so may that have been which listed our newest last
    since_s = (load.now - (position.advanced_at if stale else position.listed_at or position.advanced_at)).total_seconds()
    gone = position.listed - max(0, position.seen_sequence + 1 - segments[0].sequence)
    came = segments[-1].sequence - position.seen_sequence if segments[0].sequence <= position.seen_sequence + 1 else gone
    some = segments[:REMEMBERED]
    mean_s = sum([one.duration_s for one in some]) / len(some)
    return gone > 2 + min(came, since_s / min(load.snapshot.target_duration_s, mean_s))


def started_over(position: Position, newer: Sequence[Segment], load: Load) -> bool:
    """Return whether a window was short after a silence, as that of an encoder that starts anew: one that slides keeps its length.

    Where it lists as much again, it shows by what grew and lost nothing at its head, or by what was listed meanwhile.
    """
    candidate, grown = position.candidate, position.listed + len(newer)
    meanwhile = candidate is not None and candidate.length < position.listed
    grew = bool(newer) and len(load.snapshot.segments) == grown
    return is_short(position, newer, load) or ((meanwhile or grew) and is_silent(position, load) and not _when_due(position, newer))


def is_short(position: Position, newer: Sequence[Segment], load: Load) -> bool:
    """Return whether a window is shorter than it was, after a silence, and no time tells that it goes on from ours."""
    return len(load.snapshot.segments) < position.listed and is_silent(position, load) and not _when_due(position, newer)


def tells_earlier(position: Position, load: Load) -> bool:
    """Return whether the time that the newest segment tells is before one that ours told: another edge, which is behind."""
    newest, ours = load.snapshot.segments[-1].time, max((one.written for one in position.recent if one.written), default=None)
    told = [one.written for one in (*position.older, *position.passed, *position.recent) if one.written]
    if newest is None or ours is None or (is_stuck(position, load) and watched_long(position, load) and not is_still(position, load)):
        return False
    return newest < ours and any(near(newest, one, load.stream) for one in told)


def passed_otherwise(position: Position, newest: Segment) -> bool:
    """Return whether something else went by under the number of *newest*, as its name tells."""
    return any(one.sequence == newest.sequence and one.identity.rpartition("/")[2] != file_name(newest) for one in position.passed)


def may_be_behind(position: Position, newest: Segment) -> bool:
    """Return whether an edge that is behind may list *newest* as its newest: the source's numbering passed it without us."""
    behind = position.seen_sequence - newest.sequence
    return newest.sequence >= position.past_sequence and 0 < behind <= max(position.listed, FURTHEST_BEHIND)


def still_behind(position: Position, load: Load) -> bool:
    """Return whether a playlist goes on from another origin's, whose numbers are known to differ by so much, and has not caught up."""
    candidate = position.candidate
    if candidate is None or candidate.shift is None or not moves_on(candidate, load):
        return False
    return load.snapshot.segments[-1].sequence + candidate.shift <= position.seen_sequence


def folders_change(position: Position) -> bool:
    """Return whether the source's folders are known to change, as they do with a token in the path."""
    return position.renames or len({one.identity.rpartition("/")[0] for one in position.recent[-4:]}) != 1


def lists_ahead_otherwise(position: Position, load: Load) -> bool:
    """Return whether what the source listed after our last segment has another name now: a predecessor met it, and published no more."""
    listed = {one.sequence: one for one in load.snapshot.segments}
    return any(not looks_like(one, listed[one.sequence], load.snapshot) for one in position.ahead if one.sequence in listed)


def too_soon(position: Position, missing: int, then: Segment) -> bool:
    """Return whether the programme's time leaves no room for so many missing segments: it is the numbers that jumped."""
    if then.time is None or not position.dated or position.given_up:
        return False
    return 2 * (then.time - position.next_program_date_time).total_seconds() < missing * min(
        then.duration_s, position.segment_s or then.duration_s
    )


def may_be_of_the_one_behind(position: Position, missing: int, load: Load) -> bool:
    """Return whether what comes after a hole may go on from an origin that was behind, by whose numbers the hole is another one."""
    behind = position.behind
    if not missing or behind is None or not behind.shift or behind.moved_at < position.advanced_at:
        return False
    ahead = load.snapshot.segments[-1].sequence - behind.newest[-1].sequence
    went_by_s = (load.now - behind.moved_at).total_seconds() + load.snapshot.target_duration_s
    return ahead >= 0 and (ahead - FURTHEST_BEHIND) * shortest_s(position, load) <= went_by_s  # it need not be behind any more


def goes_on_from_doubt(position: Position, missing: int, newer: Sequence[Segment], load: Load) -> bool:
    """Return whether a playlist may go on from one in doubt instead of ours: what goes on from doubt is in doubt too."""
    candidate = position.candidate
    if candidate is None:
        return False
    exactly = not missing and len(newer) == 1
    if exactly and lists_newest_of(candidate, load) and _contradicts(position, candidate.newest[-1]):
        return True
    if not missing and _when_due(position, newer) and not _lists_our_last_otherwise(candidate, position):
        return False
    if not exactly and lists_newest_of(candidate, load):
        return True
    stale = candidate.known and candidate.shift is None
    return not stale and (not exactly or moves_on(candidate, load))


def goes_on_from_others(position: Position, missing: int, newer: Sequence[Segment]) -> bool:
    """Return whether something else was listed under our numbers, and ours was not since: an encoder that started anew, and goes on."""
    if position.mistaken_at is None or position.listed_at is None or position.mistaken_at <= position.listed_at:
        return False
    return missing > 0 or not _when_due(position, newer)


def _contradicts(position: Position, seen: Seen) -> bool:
    """Return whether our segment of this number has another name."""
    name = seen.identity.rpartition("/")[2]
    return any(one.sequence == seen.sequence and one.identity.rpartition("/")[2] != name for one in position.recent)


def _lists_our_last_otherwise(candidate: Candidate, position: Position) -> bool:
    """Return whether a candidate has our last segment's number under another name, or its name under another number."""
    if not position.recent:
        return False
    ours = position.recent[-1]
    name = ours.identity.rpartition("/")[2]
    listed = (*candidate.newest, *candidate.listed)
    return any((one.sequence == ours.sequence) != (one.identity.rpartition("/")[2] == name) for one in listed)


def _when_due(position: Position, newer: Sequence[Segment]) -> bool:
    """Return whether the first of what is new tells the very time at which ours goes on."""
    then = newer[0] if newer else None
    if then is None or then.program_date_time is None or not position.dated:
        return False
    return abs((then.program_date_time - position.next_program_date_time).total_seconds()) < min(0.5, then.duration_s / 2)


def shortest_s(position: Position, load: Load) -> float:
    listed_s = min(one.duration_s for one in load.snapshot.segments[:REMEMBERED])
    return min(listed_s, position.segment_s or listed_s)
