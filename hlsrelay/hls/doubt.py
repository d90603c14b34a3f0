"""Playlists that do not fit the numbering: stale edges, other origins, encoders that began anew. When one is believed. Pure.

A playlist in doubt is watched as a candidate. It is believed once it has moved on by itself, no faster than the clock, while our
generation was silent; where it lists what went by unrelayed, so that no digest can tell, only once players have nothing left.
"""

from __future__ import annotations

import re
from datetime import timedelta

from hlsrelay.hls.likeness import another_time, file_name, is_alike, looks_like, telling
from hlsrelay.hls.numbering import REMEMBERED, Load, Step, begun, undoubted
from hlsrelay.hls.parse import identity
from hlsrelay.model import Candidate, Position, Seen, Segment
from hlsrelay.values import replace

SILENT_TARGET_DURATIONS = 1.5
"""A playlist unchanged for this long is suspect (RFC 8216 6.3.4)."""
STUCK_TARGET_DURATIONS = 3.5
"""What looks like a stale edge, and nothing tells that it is none, is believed after this long: players have nothing left by then."""
FURTHEST_BEHIND = 16
"""No edge is more segments behind than this, or than the window holds."""
WINDOWS_BEHIND = 4
"""Of what was listed before we relayed, no edge is more windows behind than this: an encoder may restart at a number just below ours."""


def passed_by(position: Position, load: Load) -> bool:
    """Return whether some of what is listed went by before, as far as names tell, or numbers of just before our generation began."""
    if 0 < position.past_sequence - load.snapshot.segments[-1].sequence <= _furthest(position):
        return True
    seen: dict[str, list[Seen]] = {}
    for one in (*position.passed, *(one for one in position.recent if not one.digest)):
        seen.setdefault(one.identity.rpartition("/")[2], []).append(one)
    listed = load.snapshot.segments[-REMEMBERED:]
    return any(not another_time(one, segment, load.snapshot) for segment in listed for one in seen.get(file_name(segment), ()))


def all_passed(position: Position, load: Load) -> bool:
    """Return whether a playlist is another origin's that is behind, and comes to what we have before long.

    All that it lists went by before, and is more than an encoder that started anew after our newest segment has had the time for.
    """
    if counts_to_ours(position, load):
        return True
    # What went by long before our newest was listed by no edge that is behind now: a name that is used in rounds.
    lately = position.seen_sequence - 2 * FURTHEST_BEHIND
    passed = [one.identity.rpartition("/")[2] for one in position.passed if one.sequence >= lately]
    segments, newest = load.snapshot.segments, load.snapshot.segments[-1]
    moves = len(position.candidate.newest) if position.candidate else 0
    if is_stuck(position, load, 5) and moves > STUCK_TARGET_DURATIONS:  # it would have come there by now; seen, not after an outage
        return False
    if file_name(newest) not in passed:
        return False
    if _had_time(position, load):
        return False
    to_come = passed[::-1].index(file_name(newest))
    names = {*passed, *(one.identity.rpartition("/")[2] for one in (*position.older, *position.recent))}
    soon = to_come * newest.duration_s <= STUCK_TARGET_DURATIONS * load.snapshot.target_duration_s
    numbered = {one.sequence: one.identity.rpartition("/")[2] for one in (*position.passed, *position.recent)}
    if all(numbered.get(one.sequence, file_name(one)) == file_name(one) for one in segments[-REMEMBERED:]):  # they are our numbers
        soon = soon or 0 < position.seen_sequence - newest.sequence <= FURTHEST_BEHIND
    return soon and all(file_name(one) in names for one in segments[-FURTHEST_BEHIND:])


def counts_to_ours(position: Position, load: Load) -> bool:
    """Return whether numbers and names may be those that ours had just before: an edge that is behind, maybe since before we relayed."""
    candidate, segments = position.candidate, load.snapshot.segments
    furthest = min(_furthest(position), WINDOWS_BEHIND * position.listed)
    if not position.recent or not 0 < position.seen_sequence - segments[-1].sequence <= furthest:
        return False
    grown = len(segments) - candidate.length if candidate else 0
    if grown > 1 or (candidate and grown == 1 and segments[0].sequence == candidate.first):  # from nothing
        return False
    last, ours = position.recent[-1], (*position.passed, *position.recent)
    pattern = _pattern(last.sequence, last.identity.rpartition("/")[2])
    told, newest = max((one.written for one in ours if one.written), default=None), segments[-1].time
    if told and newest and newest > told:
        return False
    digests = {one.sequence: load.digest(one) for one in segments[-REMEMBERED:]}
    if any(one.digest and digests.get(one.sequence) not in (None, "", one.digest) for one in position.recent):
        return False
    names = {one.sequence: one.identity.rpartition("/")[2] for one in ours}
    numbers = {name: sequence for sequence, name in names.items()}
    listed = [(one.sequence, file_name(one)) for one in segments[-REMEMBERED:]]
    return all(
        names.get(sequence, name) == name and numbers.get(name, sequence) == sequence and _pattern(sequence, name) == pattern
        for sequence, name in listed
    )


def _pattern(sequence: int, name: str) -> str:
    """Return what is common to the names of one encoder, as far as one tells: all but what counts in it."""
    runs = [(each.start(), each.end()) for each in re.finditer(r"\d+", name.rpartition(".")[0] or name)]
    counting = next((run for run in runs if name[slice(*run)].lstrip("0") == str(sequence or "")), runs[-1] if runs else None)
    return f"{name[: counting[0]]}#{name[counting[1] :]}" if counting else name


def _had_time(position: Position, load: Load) -> bool:
    """Return whether an encoder that started anew after our newest segment has had the time for all that is listed."""
    elapsed_s = (load.now - position.advanced_at).total_seconds()
    return sum(one.duration_s for one in load.snapshot.segments) <= elapsed_s + 3 * load.snapshot.target_duration_s


def fell_back(position: Position, load: Load, known: Seen, listed: Segment) -> Step:
    """The playlist ends with what we relayed a while ago: a stale edge, or a restarted encoder that uses its names again."""
    if listed.program_date_time is not None and known.written is not None:  # and they agree: it is that very segment
        return Step(watching(position, load, known=True)[0], repairs=("stale_playlist",))
    stale = Step(position, repairs=("stale_playlist",))
    another = bool(known.digest) and load.digest(listed) not in (None, "", known.digest)
    position, moved_on = watching(position, load, known=not another)
    if moved_on and not known.number and not all_passed(position, load) and is_stuck(position, load):
        return believed(position, load)
    if not moved_on or not known.digest:
        return replace(stale, position=position)
    told = load.digest(listed)
    if told is None:
        return replace(stale, position=position, question=listed)
    if told == known.digest and _plays_again(position, known, load):
        return begun(position, load.snapshot.segments, load, "source_reset")
    if not told or told == known.digest:
        return replace(stale, position=position)
    ours = {one.sequence: one for one in telling(position, position.recent) if one.sequence < listed.sequence}
    if other := next((one for one in load.snapshot.segments if one.sequence in ours), None):  # before a restart that nothing told
        told = load.digest(other)
        if told in (None, "", ours[other.sequence].digest):
            return replace(stale, position=position, question=other if told is None else None)
    if too_early(position, load):
        return replace(stale, position=position)
    return believed(position, load)


def _plays_again(position: Position, known: Seen, load: Load) -> bool:
    """Return whether what has the digest of a segment of ours is no edge that is behind: an encoder plays the same file again.

    It began anew, or no edge is so far behind.
    """
    if began_anew(position, load):
        return True
    return position.last_number - known.number > _furthest(position) and watched_long(position, load)


def _furthest(position: Position) -> int:
    """Return how many segments an edge may be behind: one that lists many may be so by as many."""
    return max(position.listed, FURTHEST_BEHIND)


def began_anew(position: Position, load: Load) -> bool:
    """Return whether the candidate's window has grown from nothing where ours slid, while players came to have nothing left.

    An edge that is behind, and was so from the stream's beginning on, grows too: where it comes to what we have before long, it may.
    """
    candidate, segments = position.candidate, load.snapshot.segments
    if candidate is None or not is_stuck(position, load):
        return False
    slid = position.seen_sequence + 1 - position.listed > segments[0].sequence
    grows = segments[0].sequence == candidate.first and len(segments) >= candidate.length + 2
    behind_s = (position.seen_sequence - segments[-1].sequence) * segments[-1].duration_s
    soon = behind_s <= STUCK_TARGET_DURATIONS * load.snapshot.target_duration_s
    return slid and grows and not soon and _had_time(position, load)


def has_played_long(position: Position, load: Load) -> bool:
    """Return whether a playlist has moved on by itself for so long that it is what is on air, whatever it holds, if it was relayed once.

    Players have had nothing for a long time; an edge that is behind would have come to what we have by now.
    """
    candidate = position.candidate
    newest = candidate.newest if candidate else ()
    if candidate is None or len(newest) < FURTHEST_BEHIND or not is_stuck(position, load, 5):
        return False
    watched_s = (load.now - candidate.since).total_seconds()
    if position.listed > FURTHEST_BEHIND and watched_s < position.listed * load.snapshot.target_duration_s:
        return False
    return newest[-1].sequence == load.snapshot.segments[-1].sequence


def believed(position: Position, load: Load) -> Step:
    """Begin a generation with a playlist that is believed at last, behind what of it was relayed under other names, as digests tell."""
    relayed = {one.digest for one in telling(position, (*position.older, *position.recent))}
    names = {one.identity.rpartition("/")[2] for one in (*position.older, *position.recent) if one.digest}
    segments = load.snapshot.segments
    while segments:
        step = begun(position, segments, load, "source_reset")
        fresh = [one.segment for one in step.fresh if not one.segment.gap]
        if not fresh or not relayed:
            return step
        unlike = [one for one in fresh[:FURTHEST_BEHIND] if not is_alike(position, load.digest(one))]
        if not unlike:
            return step
        first = next((one for one in unlike if load.digest(one) != ""), None)  # what can't be had tells nothing
        told = load.digest(first) if first else None
        if first is None or told is None:
            return Step(position, repairs=("playlist_in_doubt",), question=first)
        # What can't be had, and is named as what was relayed, may be just that.
        doubtful = any(file_name(one) in names for one in fresh[: fresh.index(first)])
        if told not in relayed and not doubtful:
            last = next((one for one in reversed(unlike) if file_name(one) in names), None)
            told = load.digest(last) if last else None
            if last is None or (told and told not in relayed):
                return step
            if not told:
                return Step(position, repairs=("playlist_in_doubt",), question=last if told is None else None)
            first = last  # an edge that is behind: it lists what went by before we relayed, and then ours
        segments = segments[(told in relayed) + first.sequence - segments[0].sequence :]
    return Step(position, repairs=("stale_playlist",))


def watching(position: Position, load: Load, *, known: bool) -> tuple[Position, bool]:
    """Return the position with the playlist as candidate, and whether that has moved on while our generation was silent."""
    newest, now = load.snapshot.segments[-1], load.now
    seen = Seen(newest.sequence, identity(newest), written=newest.program_date_time)
    candidate = position.candidate
    if candidate is None or not moves_on(candidate, load):
        position = undoubted(position)
        candidate = Candidate(now, now, (seen,), known, first=load.snapshot.segments[0].sequence, length=len(load.snapshot.segments))
    elif newest.sequence > candidate.newest[-1].sequence:
        candidate = replace(candidate, moved_at=now, newest=(*candidate.newest, seen)[-FURTHEST_BEHIND:])
    candidate = replace(candidate, known=candidate.known and known)
    if not known and not candidate.resembles:
        ours = {seen.identity.rpartition("/")[2] for seen in position.recent}
        resembles = any(file_name(segment) in ours for segment in load.snapshot.segments[-REMEMBERED:])
        candidate = replace(candidate, resembles=resembles)
    waited = now - candidate.since >= _target(load)
    candidate = replace(candidate, listed=_with_listed(candidate.listed, load))
    return replace(position, candidate=candidate), len(candidate.newest) > 1 and waited and is_silent(position, load)


def _with_listed(passed: tuple[Seen, ...], load: Load) -> tuple[Seen, ...]:
    """Return what a candidate has listed, and what it lists now: should it be believed later on, this went by."""
    known = {(one.sequence, one.identity) for one in passed}
    listed = [Seen(one.sequence, identity(one), written=one.program_date_time) for one in load.snapshot.segments[-FURTHEST_BEHIND:]]
    return (*passed, *(one for one in listed if (one.sequence, one.identity) not in known))[-REMEMBERED:]


def moves_on(candidate: Candidate, load: Load) -> bool:
    """Return whether a playlist may go on from the candidate, as far as its numbers, the clock, and a name that both list tell."""
    segments, last = load.snapshot.segments, candidate.newest[-1]
    ahead, index = segments[-1].sequence - last.sequence, last.sequence - segments[0].sequence
    elapsed_s = (load.now - candidate.moved_at).total_seconds()
    if ahead < 0 or ahead * min(one.duration_s for one in segments[-REMEMBERED:]) > elapsed_s + load.snapshot.target_duration_s:
        return False
    return index < 0 or looks_like(last, segments[index], load.snapshot)


def lists_newest_of(candidate: Candidate, load: Load) -> bool:
    """Return whether the newest segment of the candidate is listed, under whatever number."""
    name = candidate.newest[-1].identity.rpartition("/")[2]
    return any(file_name(one) == name for one in load.snapshot.segments[-REMEMBERED:])


def is_silent(position: Position, load: Load) -> bool:
    return load.now - position.advanced_at >= SILENT_TARGET_DURATIONS * _target(load)


def is_still(position: Position, load: Load) -> bool:
    """Return whether the candidate stands still too: there is nothing to be won by believing it."""
    return position.candidate is None or load.now - position.candidate.moved_at >= SILENT_TARGET_DURATIONS * _target(load)


def is_stuck(position: Position, load: Load, times: int = 1) -> bool:
    return load.now - position.advanced_at >= times * STUCK_TARGET_DURATIONS * _target(load)


def too_early(position: Position, load: Load) -> bool:
    """Return whether what is listed went by once, or counts up to ours, and no digest tells whether it is that: players have some left."""
    if began_anew(position, load):
        return False
    starved = is_stuck(position, load) and watched_long(position, load)
    if not starved and counts_to_ours(position, load):
        return True
    return (not starved or all_passed(position, load)) and passed_by(position, load)


def watched_long(position: Position, load: Load) -> bool:
    """Return whether the candidate has been watched for as long as it takes until players have nothing left."""
    since = position.candidate.since if position.candidate else load.now
    return load.now - since >= STUCK_TARGET_DURATIONS * _target(load)


def _target(load: Load) -> timedelta:
    return timedelta(seconds=load.snapshot.target_duration_s)
