"""Numbering: which segments of a snapshot are new, and which number each gets. Pure.

Laws, for every history of snapshots (tests drive tens of thousands):
  1. Numbers rise by exactly one from entry to entry, over restarts too: nothing is repeated, nothing steps back.
  2. A segment of the source is numbered at most once.
  3. Where the source's timeline breaks (its own DISCONTINUITY, a reset, another source), the first entry after it is a DISCONTINUITY.
  4. What the source lost while we watched is a GAP of its own number, as long as the hole is small; a larger one is a DISCONTINUITY.
  5. A stale playlist changes nothing.
  6. All tracks of a presentation begin a generation at the same moment (RFC 8216 6.2.4).

`number = source's media sequence + offset`; a *generation* is a run of the source's numbering for which the offset holds. As long as
the source does not reset, two nodes that never talk give a segment the same number. A playlist that does not fit the generation is
only a *candidate* for a new one (an edge may be stale, or two origins may alternate): it is believed once it moves on by itself,
no faster than the clock, while the generation has been silent. What lists names that *passed* by unrelayed, so that no digest can
tell, has to wait for longer: until players have nothing left. What goes on from a playlist in doubt is in doubt too. Where names and
numbers can't tell (the same number under another path, a restarted encoder that uses its names again, another origin of the same
programme), the Step asks for the digest of a listed segment's content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from hlsrelay.hls.doubt import (
    FURTHEST_BEHIND,
    fell_back,
    is_silent,
    is_stuck,
    lists_newest_of,
    moves_on,
    too_early,
    watched_long,
    watching,
)
from hlsrelay.hls.likeness import another_clock, another_time, file_name, known_as, looks_like, same_as
from hlsrelay.hls.numbering import (
    NOTHING_AGREED,
    REMEMBERED,
    Agreed,
    Load,
    Step,
    beginning,
    begun,
    lost,
    near,
    newest_of,
    numbered,
    passed,
    resumed,
    undoubted,
)
from hlsrelay.hls.parse import identity
from hlsrelay.model import Candidate, Position, Seen, Segment, Slice, Snapshot, Stream

FAR = 2**48
"""Numbers begin below this, and so never come to where players that count in doubles (2^53), or the rules (2^64), know no next one."""


def advance(
    position: Position | None,
    snapshot: Snapshot,
    stream: Stream,
    now: datetime,
    *,
    first_number: int | None = None,
    agreed: Agreed = NOTHING_AGREED,
    digests: Mapping[str, str] | None = None,
    slices: Mapping[int, tuple[Slice, ...]] | None = None,
) -> Step:
    """Return the segments of *snapshot* not yet relayed, numbered, and the position after them.

    *position* is None for a stream that was never relayed: it starts near the live edge, with the source's own numbers, or with
    *first_number* where an older playlist of this stream has used the numbers below it. *agreed* is what the other tracks of the
    presentation have come to. *digests* answers what steps asked for, by `content_key`: empty where it can't be had. *slices* tells,
    by the source's numbers, how segments longer than the target duration are cut: each slice gets a number of its own.
    """
    load = Load(snapshot, stream, now, agreed, slices or {}, digests or {})
    if position and position.withdrawn:
        return _begun_again(position, load)
    if position is None:
        fresh = live_edge(snapshot)
        offset = -(fresh[0].sequence // FAR * FAR) if first_number is None else first_number - fresh[0].sequence
        last = fresh[0].sequence + offset - 1
        start = Position(stream.source, agreed.generation, offset, last, (), now, beginning(fresh, load), stream.ladder)
        start = replace(start, past_sequence=snapshot.segments[0].sequence, passed=passed(None, fresh[0].sequence, load))
        return numbered(start, fresh, load, opens=first_number is None, cut=first_number is not None)
    if position.source != stream.source:
        fresh = _joined(position, load)
        return begun(position, fresh, load, "source_changed") if fresh else Step(position)
    segments, first, newest = snapshot.segments, snapshot.segments[0].sequence, snapshot.segments[-1]
    shared = [(seen, segments[seen.sequence - first]) for seen in position.recent if 0 <= seen.sequence - first < len(segments)]
    newer = segments[max(0, position.seen_sequence + 1 - first) :]
    if any(same_as(*pair, snapshot) for pair in [pair for pair in shared if not pair[1].gap] or shared):
        if shared[-1][0].digest and _doubtful(position, newer, shared, load):
            told = load.digest(shared[-1][1])
            if told is None or (not told and not is_stuck(position, load, 2)):
                return Step(position, repairs=("playlist_in_doubt",), question=shared[-1][1] if told is None else None)
            if told and told != shared[-1][0].digest:
                return _put_in_doubt(position, load)
        if newer and not any(seen.digest for seen, _ in shared) and (again := _again(position, load)):
            return again
        if newer or newest.sequence == position.seen_sequence:
            return _went_on(position, newer, load)
        return fell_back(position, load, *shared[-1])
    if _earlier(position, load):
        if shared:  # the same numbers with other names: what goes on from there is no more ours than this
            position, _ = watching(position, load, known=False)
        return Step(position, repairs=("stale_playlist",))
    if renumbered := _under_another_number(position, load):
        return renumbered
    if not shared and (again := _again(position, load)):
        return again
    if not shared and _still_behind(position, load):
        return Step(watching(position, load, known=True)[0], repairs=("stale_playlist",))
    gaps = bool(position.recent) and position.recent[0].sequence <= first and newest.sequence <= position.seen_sequence
    if not shared and (gaps or _passed(position, newest)):
        return fell_back(position, load, Seen(newest.sequence, identity(newest)), newest)
    if renamed := _under_another_name(position, shared, load):
        return renamed
    before = known_as(position.older, newest, load)
    if before and (before.digest or same_as(before, newest, snapshot)) and not (newer and newer[0].sequence == position.seen_sequence + 1):
        return fell_back(position, load, before, newest)
    if before and before.digest and (told := load.digest(newest)) in (None, "", before.digest):
        return Step(position, repairs=("stale_playlist",), question=newest if told is None else None)
    if not shared and len(newer) == len(segments):
        return _after_hole(position, newer, load)
    return _put_in_doubt(position, load)


def live_edge(snapshot: Snapshot) -> tuple[Segment, ...]:
    """Return the newest segments, three target durations of them or all: where a player would begin (RFC 8216 6.3.3)."""
    length_s, kept = 0.0, 0
    for segment in reversed(snapshot.segments):
        if kept >= 3 and length_s >= 3 * snapshot.target_duration_s:
            break
        length_s += segment.duration_s
        kept += 1
    return snapshot.segments[-kept:]


def _begun_again(position: Position, load: Load) -> Step:
    """Begin at the live edge a stream that listed nothing for a while, because nobody watched: after our last number, repeating nothing."""
    snapshot, agreed = load.snapshot, load.agreed
    seen = {one.sequence: one for one in position.recent} if position.source == load.stream.source else {}
    known = [index for index, one in enumerate(snapshot.segments) if one.sequence in seen and looks_like(seen[one.sequence], one, snapshot)]
    unseen = snapshot.segments[known[-1] + 1 if known else 0 :]
    own, newest = position.next_program_date_time, snapshot.segments[-1].time
    if position.dated and newest is not None and near(newest, own, load.stream):
        unseen = tuple(one for one in unseen if one.time and one.time > own - timedelta(seconds=one.duration_s / 2))
    if not unseen:
        return Step(replace(position, listed_at=load.now))
    fresh = live_edge(replace(snapshot, segments=unseen))
    start = Position(
        load.stream.source,
        agreed.generation,
        position.last_number + 1 - fresh[0].sequence,
        position.last_number,
        (),
        load.now,
        max(own, beginning(fresh, load)),
        load.stream.ladder,
        older=(*position.older, *position.recent)[-REMEMBERED:],
        past_sequence=snapshot.segments[0].sequence,
    )
    return numbered(start, fresh, load, cut=True)


def _doubtful(position: Position, newer: tuple[Segment, ...], shared: list[tuple[Seen, Segment]], load: Load) -> bool:
    """Return whether a playlist that lists our names under our numbers may yet be another encoder's, so that only a digest tells."""
    candidate, snapshot = position.candidate, load.snapshot
    if (candidate and candidate.resembles) or _thrown_away(position, load):
        return True
    if any(another_time(*pair, snapshot) or another_clock(*pair, snapshot) for pair in shared):
        return True
    if not newer:
        return False
    if candidate and len(candidate.newest) > 1 and is_silent(position, load):  # what looked stale has moved on meanwhile
        return True
    if load.snapshot.segments[0].sequence < position.past_sequence:  # from before the generation began, and yet ahead of us
        return True
    listed_before = any(one.digest and looks_like(one, newer[-1], snapshot) for one in position.older)
    return listed_before or known_as(position.passed, newer[-1], load) is not None


def _thrown_away(position: Position, load: Load) -> bool:
    """Return whether more of the window is gone than time explains, as with an encoder that starts anew: a window slides.

    Where what is listed goes on from ours, it has slid by as much as has come.
    """
    segments = load.snapshot.segments
    since_s = (load.now - (position.listed_at or position.advanced_at)).total_seconds()
    gone = position.listed - max(0, position.seen_sequence + 1 - segments[0].sequence)
    came = segments[-1].sequence - position.seen_sequence if segments[0].sequence <= position.seen_sequence + 1 else gone
    return gone > 2 + min(came, since_s / min(load.snapshot.target_duration_s, segments[0].duration_s))


def _earlier(position: Position, load: Load) -> bool:
    """Return whether the time that the newest segment tells is before one that ours told: another edge, which is behind."""
    newest, ours = load.snapshot.segments[-1].time, max((one.written for one in position.recent if one.written), default=None)
    told = [one.written for one in (*position.older, *position.recent) if one.written]
    if newest is None or ours is None or is_stuck(position, load):
        return False
    return newest < ours and any(near(newest, one, load.stream) for one in told)


def _passed(position: Position, newest: Segment) -> bool:
    """Return whether an edge that is behind may list *newest* as its newest: the source's numbering passed it without us."""
    behind = position.seen_sequence - newest.sequence
    if any(one.sequence == newest.sequence and one.identity.rpartition("/")[2] != file_name(newest) for one in position.passed):
        return False
    return newest.sequence >= position.past_sequence and 0 < behind <= max(position.listed, FURTHEST_BEHIND)


def _under_another_number(position: Position, load: Load) -> Step | None:
    """Go on where the source only counts anew: the newest of our segments that it lists is the same, under another number."""
    snapshot = load.snapshot
    listed = {identity(segment): segment for segment in snapshot.segments}
    for by_name in (identity, file_name):
        names = listed if by_name is identity else {by_name(segment): segment for segment in snapshot.segments}
        for seen in reversed(position.recent):
            segment = names.get(seen.identity if by_name is identity else seen.identity.rpartition("/")[2])
            if segment is None or segment.sequence == seen.sequence or not seen.digest or another_time(seen, segment, snapshot):
                continue
            told = load.digest(segment)
            if not told:
                watched, _ = watching(position, load, known=False)
                return Step(
                    position if told is None else watched, repairs=("playlist_in_doubt",), question=segment if told is None else None
                )
            if told == seen.digest:
                ahead = snapshot.segments[-1].sequence - segment.sequence
                if seen.sequence + ahead < position.seen_sequence:  # another origin that is behind: ours is worth more until it is not
                    position, _ = watching(position, load, known=True)
                    assert position.candidate is not None
                    shift = seen.sequence - segment.sequence
                    return Step(replace(position, candidate=replace(position.candidate, shift=shift)), repairs=("stale_playlist",))
                return _counted_anew(position, seen.sequence - segment.sequence, load, "renumbered")
            break
    return None


def _still_behind(position: Position, load: Load) -> bool:
    """Return whether a playlist goes on from another origin's, whose numbers are known to differ by so much, and has not caught up."""
    candidate = position.candidate
    if candidate is None or candidate.shift is None or not moves_on(candidate, load):
        return False
    return load.snapshot.segments[-1].sequence + candidate.shift <= position.seen_sequence


def _again(position: Position, load: Load) -> Step | None:
    """Return what comes of a playlist that fits nowhere, and lists again what was relayed: nothing, unless more comes after that."""
    relayed = {seen.identity.rpartition("/")[2]: seen for seen in (*position.older, *position.recent) if seen.digest}
    listed = load.snapshot.segments
    for segment in reversed(listed[-FURTHEST_BEHIND:]):
        seen = None if segment.gap else relayed.get(file_name(segment))
        if seen is None:
            continue
        told = load.digest(segment)
        if told is None:
            return Step(position, repairs=("playlist_in_doubt",), question=segment)
        if told == seen.digest and segment is not listed[-1] and not listed[-1].gap:
            return _put_in_doubt(position, load)
        return Step(position, repairs=("stale_playlist",)) if told in ("", seen.digest) else None
    return None


def _counted_anew(position: Position, shift: int, load: Load, repair: str) -> Step:
    """Go on with what the source lists after our newest segment, now that its numbers are known to have fallen by *shift*."""
    segments, first = load.snapshot.segments, load.snapshot.segments[0].sequence
    recent = []
    for seen in position.recent:
        index = seen.sequence - shift - first
        name = identity(segments[index]) if 0 <= index < len(segments) else seen.identity
        recent.append(replace(seen, sequence=seen.sequence - shift, identity=name))
    passed = tuple(replace(one, sequence=one.sequence - shift) for one in position.passed)
    position = replace(position, offset=position.offset + shift, past_sequence=position.past_sequence - shift)
    ahead = tuple(replace(one, sequence=one.sequence - shift) for one in position.ahead)
    position = undoubted(replace(position, recent=tuple(recent), passed=passed, ahead=ahead))
    newer = segments[max(0, position.seen_sequence + 1 - first) :]
    step = _after_hole(position, newer, load) if len(newer) == len(segments) else _went_on(position, newer, load)
    return replace(step, repairs=(*step.repairs, repair))


def _under_another_name(position: Position, shared: list[tuple[Seen, Segment]], load: Load) -> Step | None:
    """Go on where our numbers are listed under other names: a token in the path, a cache that renames."""
    pair = next((pair for pair in reversed(shared) if pair[0].digest and not another_time(*pair, load.snapshot)), None)
    if pair is None:
        return None
    told = load.digest(pair[1])
    if not told:
        alike = told is None or looks_like(*pair, load.snapshot)
        watched = position if alike else watching(position, load, known=False)[0]
        return Step(watched, repairs=("playlist_in_doubt",), question=pair[1] if told is None else None)
    if told != pair[0].digest:
        return None
    return _counted_anew(position, 0, load, "names_changed")


def _joined(position: Position, load: Load) -> tuple[Segment, ...]:
    """Return what of another source goes on from where we are: by the programme's time where both tell it, else by the time gone by.

    Empty where the other source is behind: what comes next of it has been relayed already.
    """
    segments, own = load.snapshot.segments, position.next_program_date_time
    newest = segments[-1].time
    if position.dated and newest is not None and near(newest, own, load.stream):
        after = (index for index, one in enumerate(segments) if one.time and one.time > own - timedelta(seconds=one.duration_s / 2))
        return segments[next(after, len(segments)) :]
    return newest_of(live_edge(load.snapshot), load.now - position.advanced_at)


def _went_on(position: Position, newer: tuple[Segment, ...], load: Load) -> Step:
    return resumed(position, newer, load) if newer and position.given_up else numbered(position, newer, load)


def _after_hole(position: Position, newer: tuple[Segment, ...], load: Load) -> Step:
    """The window moved past our last segment: by what the clock explains, or the numbering is another one."""
    missing = newer[0].sequence - position.seen_sequence - 1
    target_s = load.snapshot.target_duration_s
    too_far = missing * _shortest_s(position, load) > (load.now - position.advanced_at).total_seconds() + 3 * target_s
    doubted = _goes_on_from_doubt(position, missing, newer, load)
    gone_by = any(known_as(position.passed, one, load) for one in newer[:REMEMBERED]) and len(newer) > 1
    gone_by = gone_by or any(position.seen_sequence < one.sequence < newer[0].sequence for one in position.passed)
    gone_by = gone_by or ((missing > 0 or len(newer) > 1) and any(looks_like(one, newer[-1], load.snapshot) for one in position.passed))
    if (
        _lists_ahead_otherwise(position, load)
        or gone_by
        or (missing and (too_far or _too_soon(position, missing, newer[0])))
        or _thrown_away(position, load)
        or doubted
    ):
        return _put_in_doubt(position, load)
    if missing * target_s > load.stream.window_s:  # GAPs all over the window: players would wade through them for nothing
        step = begun(position, live_edge(load.snapshot), load, "hole_skipped")
        return replace(step, position=replace(step.position, past_sequence=position.seen_sequence + 1))
    if position.given_up:
        step = resumed(position, newer, load)
        missing = newer[0].sequence - position.last_sequence - 1
        if step.fresh or missing <= 0:
            return step
    if newer[0].era > position.era:  # the source's own break lies in the hole
        newer = (replace(newer[0], discontinuity=True), *newer[1:])
    step = numbered(position, (*lost(position, missing, newer[0], target_s), *newer), load)
    return replace(step, repairs=(*step.repairs, "hole_filled")) if missing else step


def _lists_ahead_otherwise(position: Position, load: Load) -> bool:
    """Return whether what the source listed after our last segment has another name now: a predecessor met it, and published no more."""
    listed = {one.sequence: one for one in load.snapshot.segments}
    return any(not looks_like(one, listed[one.sequence], load.snapshot) for one in position.ahead if one.sequence in listed)


def _too_soon(position: Position, missing: int, then: Segment) -> bool:
    """Return whether the programme's time leaves no room for so many missing segments: it is the numbers that jumped."""
    if then.time is None or not position.dated or position.given_up:
        return False
    return 2 * (then.time - position.next_program_date_time).total_seconds() < missing * min(
        then.duration_s, position.segment_s or then.duration_s
    )


def _goes_on_from_doubt(position: Position, missing: int, newer: tuple[Segment, ...], load: Load) -> bool:
    """Return whether a playlist may go on from one in doubt instead of ours: what goes on from doubt is in doubt too."""
    candidate = position.candidate
    if candidate is None:
        return False
    exactly = not missing and len(newer) == 1
    if exactly and _when_due(position, newer[0]) and not _lists_our_last_otherwise(candidate, position):
        return False
    if not exactly and lists_newest_of(candidate, load):
        return True
    stale = candidate.known and candidate.shift is None
    return not stale and (not exactly or moves_on(candidate, load))


def _lists_our_last_otherwise(candidate: Candidate, position: Position) -> bool:
    """Return whether a candidate has our last segment's number under another name, or its name under another number."""
    if not position.recent:
        return False
    ours = position.recent[-1]
    name = ours.identity.rpartition("/")[2]
    return any((one.sequence == ours.sequence) != (one.identity.rpartition("/")[2] == name) for one in candidate.newest)


def _when_due(position: Position, then: Segment) -> bool:
    """Return whether a segment tells the very time at which ours goes on."""
    if then.program_date_time is None or not position.dated:
        return False
    return abs((then.program_date_time - position.next_program_date_time).total_seconds()) < min(0.5, then.duration_s / 2)


def _shortest_s(position: Position, load: Load) -> float:
    listed_s = min(one.duration_s for one in load.snapshot.segments[:REMEMBERED])
    return min(listed_s, position.segment_s or listed_s)


def _put_in_doubt(position: Position, load: Load) -> Step:
    """The playlist fits nowhere: a stale edge, another origin, or a reset. Believe it once it moves on while ours is silent."""
    newest = load.snapshot.segments[-1]
    ours = max((one.program_date_time for one in position.recent if one.program_date_time), default=None)
    if newest.time is not None and ours is not None and newest.time <= ours and near(newest.time, ours, load.stream):
        return Step(watching(position, load, known=False)[0], repairs=("stale_playlist",))
    position, moved_on = watching(position, load, known=False)
    if not moved_on:
        return Step(position, repairs=("playlist_in_doubt",))
    segments, names = load.snapshot.segments, {one.identity.rpartition("/")[2]: one for one in position.older if one.digest}
    for index in range(len(segments) - 1, max(-1, len(segments) - 1 - REMEMBERED), -1):
        if seen := names.get(file_name(segments[index])):
            told = load.digest(segments[index])
            if not told:
                return Step(position, repairs=("playlist_in_doubt",), question=segments[index] if told is None else None)
            if told == seen.digest:
                return _earlier_goes_on(position, seen, index, load)
            break
    oldest = load.snapshot.segments[0]
    if any(one.digest for one in position.recent):
        told = load.digest(oldest)
        if not told:
            return Step(position, repairs=("playlist_in_doubt",), question=oldest if told is None else None)
        if ours_too := next((one for one in reversed(position.recent) if one.digest == told), None):
            return _counted_anew(position, ours_too.sequence - oldest.sequence, load, "origin_changed")
        if seen := next((one for one in reversed(position.older) if one.digest == told), None):
            return _earlier_goes_on(position, seen, 0, load)
    if too_early(position, load):
        return Step(position, repairs=("stale_playlist",))
    return begun(position, load.snapshot.segments, load, "source_reset")


def _earlier_goes_on(position: Position, seen: Seen, index: int, load: Load) -> Step:
    """Go on with a source of an earlier generation, which lists at *index* what it had listed as *seen*: if it is not only behind.

    It is, until it has been watched for as long as players have anything left.
    """
    last = seen
    for one in position.older[position.older.index(seen) + 1 :]:
        if not 0 < one.sequence - last.sequence <= one.number - last.number:
            break
        last = one
    after = load.snapshot.segments[index + 1 + last.sequence - seen.sequence :]
    gone_by = any(looks_like(one, load.snapshot.segments[-1], load.snapshot) for one in position.passed)
    if not after or gone_by or not watched_long(position, load):
        return Step(position, repairs=("stale_playlist",))
    return begun(position, after, load, "source_reset")
