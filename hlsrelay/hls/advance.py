"""Numbering: which segments of a snapshot are new, and which number each gets. Pure.

Laws, for every history of snapshots (tests drive tens of thousands):
  1. Numbers rise by exactly one from entry to entry, over restarts too: nothing is repeated, nothing steps back.
  2. A segment of the source is numbered at most once. (But of an edge that is further behind than any is taken to be, see
     `doubt.FURTHEST_BEHIND`, what is listed again after so long is relayed again: it is an encoder that plays its file once more.)
  3. Where the source's timeline breaks (its own DISCONTINUITY, a reset, another source), the first entry after it is a DISCONTINUITY.
  4. What the source lost while we watched is a GAP of its own number, as long as the hole is small; a larger one is a DISCONTINUITY.
  5. A stale playlist changes nothing.
  6. All tracks of a presentation begin a generation at the same moment (RFC 8216 6.2.4).

`number = source's media sequence + offset`; a *generation* is a run of the source's numbering for which the offset holds. As long as
the source does not reset, two nodes that never talk give a segment the same number. A playlist that does not fit the generation is
only a *candidate* for a new one (an edge may be stale, or two origins may alternate): it is believed once it moves on by itself,
no faster than the clock, while the generation has been silent. What lists names that *passed* by unrelayed, so that no digest can
tell, has to wait for longer: until players have nothing left; and what may be an edge that counts up to ours, until it has come there.
What goes on from a playlist in doubt is in doubt too. Where names and numbers can't tell (the same number under another path, a
restarted encoder that uses its names again, another origin of the same programme), the Step asks for the digest of a listed
segment's content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from hlsrelay.hls.doubt import (
    FURTHEST_BEHIND,
    believed,
    counts_to_ours,
    fell_back,
    has_played_long,
    is_stuck,
    too_early,
    watched_long,
    watching,
)
from hlsrelay.hls.likeness import another_time, file_name, is_alike, known_as, looks_like, same_as, telling
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
    opening,
    passed,
    resumed,
    undoubted,
)
from hlsrelay.hls.parse import identity
from hlsrelay.hls.signs import (
    doubtful,
    folders_change,
    goes_on_from_doubt,
    goes_on_from_others,
    is_short,
    lists_ahead_otherwise,
    lists_others_as_ours,
    may_be_behind,
    may_be_of_the_one_behind,
    passed_otherwise,
    shortest_s,
    still_behind,
    tells_earlier,
    thrown_away,
    too_soon,
)
from hlsrelay.model import Position, Seen, Segment, Slice, Snapshot, Stream
from hlsrelay.values import replace

NAMES_USED_AGAIN = 2
"""So many digests that differ are proof enough that names are used again, as each costs a fetch."""
NAMES_COUNTED_ANEW = 3
"""So many names of ours, all under other numbers by as much, tell what digests that are alike do not."""
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
        fresh = opening(live_edge(snapshot), load)
        offset = -(fresh[0].sequence // FAR * FAR) if first_number is None else first_number - fresh[0].sequence
        last = fresh[0].sequence + offset - 1
        start = Position(stream.source, agreed.generation, offset, last, (), now, beginning(fresh, load), stream.ladder)
        start = replace(start, past_sequence=snapshot.segments[0].sequence, passed=passed(None, fresh[0].sequence, load))
        return numbered(start, fresh, load, opens=first_number is None, cut=first_number is not None)
    if position.source != stream.source:
        fresh = _joined(position, load)
        return begun(position, fresh, load, "source_changed") if fresh else Step(position)
    step = _mapped(position, load)
    if not step.fresh and step.question is None and has_played_long(step.position, load):
        step = begun(step.position, snapshot.segments, load, "source_reset")
    if lists_others_as_ours(position, load) and step.position.generation == position.generation:
        listed_at = step.position.listed_at if step.fresh else position.listed_at  # it was not ours that was listed
        return replace(step, position=replace(step.position, mistaken_at=now, listed_at=listed_at))
    return step


def _mapped(position: Position, load: Load) -> Step:
    """Return what a playlist of the source that is relayed brings."""
    snapshot = load.snapshot
    segments, first, newest = snapshot.segments, snapshot.segments[0].sequence, snapshot.segments[-1]
    since = max(first, min((seen.sequence for seen in position.recent), default=first))
    ours = segments[since - first :] if since - first < len(segments) else ()
    shared = [(seen, ours[seen.sequence - since]) for seen in position.recent if 0 <= seen.sequence - since < len(ours)]
    newer = segments[max(0, position.seen_sequence + 1 - first) :]
    if any(same_as(*pair, snapshot) for pair in [pair for pair in shared if not pair[1].gap] or shared):
        if any(seen.digest for seen, _ in shared) and doubtful(position, newer, shared, load):
            pairs = [pair for pair in reversed(shared) if pair[0].digest]
            known, listed = next((pair for pair in pairs if not is_alike(position, pair[0].digest)), pairs[0])
            told = load.digest(listed)
            if told is None or (not told and not is_stuck(position, load, 2)):
                return Step(position, repairs=("playlist_in_doubt",), question=listed if told is None else None)
            if told != known.digest:
                return _put_in_doubt(position, load)
        if newer and not any(seen.digest for seen, _ in shared):
            if again := _again(position, load, fits=True):
                return again
            if goes_on_from_others(position, 0, newer):
                return _put_in_doubt(position, load)
        if newer or newest.sequence == position.seen_sequence:
            return _went_on(position, newer, load)
        return fell_back(position, load, *shared[-1])
    if tells_earlier(position, load):
        # The same numbers with other names: what goes on from there is no more ours than this.
        position, _ = watching(position, load, known=not shared)
        shift = _shift_told(position, snapshot)
        if shift and position.candidate:
            position = replace(position, behind=replace(position.candidate, shift=shift))
        return Step(position, repairs=("stale_playlist",))
    # Names that are used in rounds are found under other numbers too: what number and name agree on is looked into first.
    if shared and looks_like(*shared[-1], snapshot) and (renamed := _under_another_name(position, shared, load)):
        return renamed
    if renumbered := _under_another_number(position, load):
        return renumbered
    if not shared and (again := _again(position, load, fits=False)):
        return again
    if not shared and still_behind(position, load):
        return Step(watching(position, load, known=True)[0], repairs=("stale_playlist",))
    gaps = bool(position.recent) and position.recent[0].sequence <= first and newest.sequence <= position.seen_sequence
    if not shared and not passed_otherwise(position, newest) and (gaps or may_be_behind(position, newest)):
        return fell_back(position, load, Seen(newest.sequence, identity(newest)), newest)
    if renamed := _under_another_name(position, shared, load):
        return renamed
    before = known_as(position.older, newest, load)
    if before and (before.digest or same_as(before, newest, snapshot)) and not (newer and newer[0].sequence == position.seen_sequence + 1):
        return fell_back(position, load, before, newest)
    if before and before.digest and not _plays_on(position, before, newest) and (told := load.digest(newest)) in (None, "", before.digest):
        return Step(position, repairs=("stale_playlist",), question=newest if told is None else None)
    if not shared and len(newer) == len(segments):
        return _after_hole(position, newer, load)
    return _put_in_doubt(position, load)


def live_edge(snapshot: Snapshot) -> Sequence[Segment]:
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
                if is_alike(position, told) and not _lists_ours_shifted(position, seen.sequence - segment.sequence, snapshot):
                    continue
                ahead = snapshot.segments[-1].sequence - segment.sequence
                if seen.sequence + ahead < position.seen_sequence:  # another origin that is behind: ours is worth more until it is not
                    position, _ = watching(position, load, known=True)
                    assert position.candidate is not None
                    shift = seen.sequence - segment.sequence
                    candidate = replace(position.candidate, shift=shift)
                    return Step(replace(position, candidate=candidate, behind=candidate), repairs=("stale_playlist",))
                return _counted_anew(position, seen.sequence - segment.sequence, load, "renumbered")
            if any(one.digest == told for one in (*position.older, *position.recent)):  # of an earlier round of names: it is behind
                return Step(watching(position, load, known=True)[0], repairs=("stale_playlist",))
            break
    for seen in position.recent[-len(snapshot.segments) - 1 :]:  # a GAP that is listed again: no digest tells
        again = None if seen.digest else listed.get(seen.identity)
        if again and again.gap and again.sequence != seen.sequence and not another_time(seen, again, snapshot):
            return _put_in_doubt(position, load)
    return None


def _lists_ours_shifted(position: Position, shift: int, snapshot: Snapshot) -> bool:
    """Return whether several names of ours are listed *shift* below our numbers: an encoder that began anew has used one or two again."""
    names = {one.sequence: one.identity.rpartition("/")[2] for one in position.recent}
    listed = [one for one in snapshot.segments[-REMEMBERED:] if names.get(one.sequence + shift) == file_name(one)]
    return len(listed) >= NAMES_COUNTED_ANEW


def _shift_told(position: Position, snapshot: Snapshot) -> int:
    """Return by how much numbers of ours are above those of another origin, as far as names and times tell that two segments are one."""
    seen = {one.identity.rpartition("/")[2]: one for one in (*position.passed, *position.recent) if one.written}
    pairs = ((seen.get(file_name(one)), one) for one in reversed(snapshot.segments[-REMEMBERED:]))
    return next((ours.sequence - one.sequence for ours, one in pairs if ours and ours.written == one.program_date_time), 0)


def _again(position: Position, load: Load, *, fits: bool) -> Step | None:
    """Return what comes of a playlist that lists again what was relayed: nothing, unless more comes after that.

    *fits*: its numbers go on from ours behind a GAP, so that it is no candidate for other ones.
    """
    relayed = {seen.identity.rpartition("/")[2]: seen for seen in (*position.older, *position.recent) if seen.digest}
    listed, others = load.snapshot.segments, 0
    for segment in reversed(listed[-FURTHEST_BEHIND:]):
        seen = None if segment.gap else relayed.get(file_name(segment))
        if seen is None:
            continue
        told = load.digest(segment)
        if told is None:
            return Step(position, repairs=("playlist_in_doubt",), question=segment)
        if told == seen.digest and is_alike(position, told):
            continue
        if told == seen.digest and segment is not listed[-1] and not listed[-1].gap:
            return _put_in_doubt(position, load)
        if told not in ("", seen.digest):  # a name that is used again: what stands before it may tell more
            others += 1
            if others == NAMES_USED_AGAIN:
                return None
            continue
        if _plays_on(position, seen, segment):
            return None
        return Step(position if fits else watching(position, load, known=True)[0], repairs=("stale_playlist",))
    return None


def _plays_on(position: Position, seen: Seen, segment: Segment) -> bool:
    """Return whether what was relayed as *seen* is listed after what came before it then, which is our newest again: a file plays again."""
    index = position.older.index(seen) if seen in position.older else 0
    before, ours = position.older[index - 1] if index else seen, position.recent[-1:]
    exactly = segment.sequence == position.seen_sequence + 1
    return exactly and bool(ours) and bool(before.digest) and before.digest == ours[0].digest


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
    pairs = [pair for pair in reversed(shared) if pair[0].digest and not another_time(*pair, load.snapshot)]
    pairs = [pair for pair in pairs if looks_like(*pair, load.snapshot) or not is_alike(position, pair[0].digest)]
    if not pairs:
        return None
    pair = next((pair for pair in pairs if not pair[1].gap), None)
    told = load.digest(pair[1]) if pair else ""
    if pair is None or not told:
        if told is not None and is_stuck(position, load, 2):
            return None
        if told is None:
            return Step(position, repairs=("playlist_in_doubt",), question=pair and pair[1])
        watched, _ = watching(position, load, known=False)
        if pair and looks_like(*pair, load.snapshot) and folders_change(position):
            watched = undoubted(watched)  # no candidate: what it lists went by
        return Step(watched, repairs=("playlist_in_doubt",))
    if told != pair[0].digest:
        return None
    return _counted_anew(replace(position, renames=True), 0, load, "names_changed")


def _joined(position: Position, load: Load) -> Sequence[Segment]:
    """Return what of another source goes on from where we are: by the programme's time where both tell it, else by the time gone by.

    Empty where the other source is behind: what comes next of it has been relayed already.
    """
    segments, own = load.snapshot.segments, position.next_program_date_time
    newest = segments[-1].time
    if position.dated and newest is not None and near(newest, own, load.stream):
        after = (index for index, one in enumerate(segments) if one.time and one.time > own - timedelta(seconds=one.duration_s / 2))
        return segments[next(after, len(segments)) :]
    return newest_of(live_edge(load.snapshot), load.now - position.advanced_at)


def _went_on(position: Position, newer: Sequence[Segment], load: Load) -> Step:
    return resumed(position, newer, load) if newer and position.given_up else numbered(position, newer, load)


def _after_hole(position: Position, newer: Sequence[Segment], load: Load) -> Step:
    """The window moved past our last segment: by what the clock explains, or the numbering is another one."""
    missing = newer[0].sequence - position.seen_sequence - 1
    target_s = load.snapshot.target_duration_s
    hole = missing
    if position.recent and not position.given_up:  # what a predecessor filled of it counts: the clock explains one hole once
        hole = newer[0].sequence - position.recent[-1].sequence - 1
    too_far = hole * shortest_s(position, load) > (load.now - position.advanced_at).total_seconds() + 3 * target_s
    doubted = goes_on_from_doubt(position, missing, newer, load)
    gone_by = any(known_as(position.passed, one, load) for one in newer[:REMEMBERED]) and len(newer) > 1
    gone_by = gone_by or any(position.seen_sequence < one.sequence < newer[0].sequence for one in position.passed)
    named = any(looks_like(one, each, load.snapshot) for one in position.passed for each in (newer[0], newer[-1]))
    gone_by = gone_by or (named and (missing > 0 or len(newer) > 1))
    if (
        lists_ahead_otherwise(position, load)
        or gone_by
        or (missing and (too_far or too_soon(position, missing, newer[0])))
        or thrown_away(position, load)
        or (not missing and is_short(position, newer, load))
        or may_be_of_the_one_behind(position, missing, load)
        or goes_on_from_others(position, missing, newer)
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


def _put_in_doubt(position: Position, load: Load) -> Step:
    """The playlist fits nowhere: a stale edge, another origin, or a reset. Believe it once it moves on while ours is silent."""
    newest = load.snapshot.segments[-1]
    ours = max((one.program_date_time for one in position.recent if one.program_date_time), default=None)
    if newest.time is not None and ours is not None and newest.time <= ours and near(newest.time, ours, load.stream):
        return Step(watching(position, load, known=False)[0], repairs=("stale_playlist",))
    position, moved_on = watching(position, load, known=counts_to_ours(position, load))
    if not moved_on:
        return Step(position, repairs=("playlist_in_doubt",))
    segments, names = load.snapshot.segments, {one.identity.rpartition("/")[2]: one for one in telling(position, position.older)}
    for index in range(len(segments) - 1, max(-1, len(segments) - 1 - REMEMBERED), -1):
        if seen := names.get(file_name(segments[index])):
            told = load.digest(segments[index])
            if not told:
                return Step(position, repairs=("playlist_in_doubt",), question=segments[index] if told is None else None)
            if told == seen.digest:
                return _earlier_goes_on(position, seen, index, load)
            break
    oldest = next((one for one in segments[:FURTHEST_BEHIND] if not is_alike(position, load.digest(one))), None)
    if oldest and telling(position, position.recent):
        told = load.digest(oldest)
        if not told:
            return Step(position, repairs=("playlist_in_doubt",), question=oldest if told is None else None)
        if ours_too := next((one for one in reversed(position.recent) if one.digest == told), None):
            shift = ours_too.sequence - oldest.sequence
            listed = {one.sequence + shift: load.digest(one) for one in segments}
            if all(listed.get(one.sequence) in (None, "", one.digest) for one in position.recent if one.digest):
                return _counted_anew(position, shift, load, "origin_changed")
        if seen := next((one for one in reversed(position.older) if one.digest == told), None):
            return _earlier_goes_on(position, seen, segments.index(oldest), load)
    if too_early(position, load):
        return Step(position, repairs=("stale_playlist",))
    return believed(position, load)


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
