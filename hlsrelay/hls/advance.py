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
only a *candidate* for a new one (an edge may be stale, or two origins may alternate): it is believed once it moves on by itself
while the generation has been silent. Where names and numbers can't tell (the same number under another path, a restarted encoder
that uses its names again, another origin of the same programme), the Step asks for the digest of a listed segment's content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

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
    resumed,
)
from hlsrelay.hls.parse import identity
from hlsrelay.model import Candidate, Position, Seen, Segment, Slice, Snapshot, Stream

SILENT_TARGET_DURATIONS = 1.5
"""A playlist unchanged for this long is suspect (RFC 8216 6.3.4)."""
STUCK_TARGET_DURATIONS = 3.5
"""What looks like a stale edge, and nothing tells that it is none, is believed after this long: players have nothing left by then."""
FAR = 2**48
"""Numbers begin below this, and so never come to where players that count in doubles (2^53), or the rules (2^64), know no next one."""
FURTHEST_BEHIND = 16
"""No edge is more segments behind than this, or than the window holds."""


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
        start = replace(start, past_sequence=snapshot.segments[0].sequence)
        return numbered(start, fresh, load, opens=first_number is None, cut=first_number is not None)
    if position.source != stream.source:
        fresh = _joined(position, load)
        return begun(position, fresh, load, "source_changed") if fresh else Step(position)
    segments, first, newest = snapshot.segments, snapshot.segments[0].sequence, snapshot.segments[-1]
    shared = [(seen, segments[seen.sequence - first]) for seen in position.recent if 0 <= seen.sequence - first < len(segments)]
    newer = segments[max(0, position.seen_sequence + 1 - first) :]
    if any(_same(*pair, snapshot) for pair in shared):
        doubtful = (position.candidate and position.candidate.resembles) or _thrown_away(position, load)
        doubtful = doubtful or any(_another_time(*pair, snapshot) for pair in shared)
        if doubtful and shared[-1][0].digest:
            told = load.digest(shared[-1][1])
            if told is None:
                return Step(position, repairs=("playlist_in_doubt",), question=shared[-1][1])
            if told and told != shared[-1][0].digest:
                return _doubt(position, load)
        if newer or newest.sequence == position.seen_sequence:
            return _went_on(position, newer, load)
        return _fell_back(position, load, shared[-1][0])
    if not shared and position.recent and position.recent[0].sequence <= first and newest.sequence <= position.seen_sequence:
        return Step(position, repairs=("stale_playlist",))  # numbers that became GAPs
    if renumbered := _under_another_number(position, load):
        return renumbered
    if not shared and _passed(position, newest):
        return _fell_back(position, load, Seen(newest.sequence, identity(newest)))
    if renamed := _under_another_name(position, shared, load):
        return renamed
    before = next((one for one in position.older if one.sequence == newest.sequence and _alike(one, newest, snapshot)), None)
    if before and (before.digest or _same(before, newest, snapshot)) and not (newer and newer[0].sequence == position.seen_sequence + 1):
        return _fell_back(position, load, before)
    if before and before.digest and (told := load.digest(newest)) in (None, "", before.digest):
        return Step(position, repairs=("stale_playlist",), question=newest if told is None else None)
    if not shared and len(newer) == len(segments):
        return _after_hole(position, newer, load)
    return _doubt(position, load)


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
    known = [index for index, one in enumerate(snapshot.segments) if one.sequence in seen and _alike(seen[one.sequence], one, snapshot)]
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


def _thrown_away(position: Position, load: Load) -> bool:
    """Return whether more of the window is gone than time explains, as with an encoder that starts anew: a window slides."""
    segments = load.snapshot.segments
    since_s = (load.now - (position.listed_at or position.advanced_at)).total_seconds()
    gone = position.listed - max(0, position.seen_sequence + 1 - segments[0].sequence)
    return gone > 2 + since_s / min(load.snapshot.target_duration_s, segments[0].duration_s)


def _passed(position: Position, newest: Segment) -> bool:
    """Return whether an edge that is behind may list *newest* as its newest: the source's numbering passed it without us."""
    behind = position.seen_sequence - newest.sequence
    return newest.sequence >= position.past_sequence and 0 < behind <= max(position.listed, FURTHEST_BEHIND)


def _same(seen: Seen, segment: Segment, snapshot: Snapshot) -> bool:
    """Return whether a listed segment is the one seen under its number: names may be used again, at another time of the programme."""
    same_name = seen.identity == identity(segment) or (segment.gap and _alike(seen, segment, snapshot))
    return same_name and not _another_time(seen, segment, snapshot)


def _alike(seen: Seen, segment: Segment, snapshot: Snapshot) -> bool:
    """Return whether a listed segment may be the one seen, as far as the end of its path tells: folders may hold tokens."""
    return seen.identity.rpartition("/")[2] == _last_component(segment) and not _another_time(seen, segment, snapshot)


def _another_time(seen: Seen, segment: Segment, snapshot: Snapshot) -> bool:
    told, known = segment.program_date_time, seen.written
    return told is not None and known is not None and abs((told - known).total_seconds()) > snapshot.target_duration_s


def _under_another_number(position: Position, load: Load) -> Step | None:
    """Go on where the source only counts anew: the newest of our segments that it lists is the same, under another number."""
    snapshot = load.snapshot
    listed = {identity(segment): segment for segment in snapshot.segments}
    for by_name in (identity, _last_component):
        names = listed if by_name is identity else {by_name(segment): segment for segment in snapshot.segments}
        for seen in reversed(position.recent):
            segment = names.get(seen.identity if by_name is identity else seen.identity.rpartition("/")[2])
            if segment is None or segment.sequence == seen.sequence or not seen.digest or _another_time(seen, segment, snapshot):
                continue
            told = load.digest(segment)
            if not told:
                return Step(position, repairs=("playlist_in_doubt",), question=segment if told is None else None)
            if told == seen.digest:
                return _counted_anew(position, seen.sequence - segment.sequence, load, "renumbered")
            break
    return None


def _last_component(segment: Segment) -> str:
    return identity(segment).rpartition("/")[2]


def _counted_anew(position: Position, shift: int, load: Load, repair: str) -> Step:
    """Go on with what the source lists after our newest segment, now that its numbers are known to have fallen by *shift*."""
    segments, first = load.snapshot.segments, load.snapshot.segments[0].sequence
    recent = []
    for seen in position.recent:
        index = seen.sequence - shift - first
        name = identity(segments[index]) if 0 <= index < len(segments) else seen.identity
        recent.append(replace(seen, sequence=seen.sequence - shift, identity=name))
    position = replace(position, offset=position.offset + shift, recent=tuple(recent), candidate=None)
    step = _went_on(position, segments[max(0, position.seen_sequence + 1 - first) :], load)
    return replace(step, repairs=(*step.repairs, repair))


def _under_another_name(position: Position, shared: list[tuple[Seen, Segment]], load: Load) -> Step | None:
    """Go on where our numbers are listed under other names: a token in the path, a cache that renames."""
    pair = next((pair for pair in reversed(shared) if pair[0].digest and not _another_time(*pair, load.snapshot)), None)
    if pair is None:
        return None
    told = load.digest(pair[1])
    if not told:
        return Step(position, repairs=("playlist_in_doubt",), question=pair[1] if told is None else None)
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
    elapsed_s = (load.now - position.advanced_at).total_seconds()
    too_far = missing * target_s > 2 * (elapsed_s + 3 * target_s)
    doubted = position.candidate and not position.candidate.known  # what is in doubt may be what this goes on from
    if (missing and too_far) or _thrown_away(position, load) or doubted:
        return _doubt(position, load)
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


def _doubt(position: Position, load: Load) -> Step:
    """The playlist fits nowhere: a stale edge, another origin, or a reset. Believe it once it moves on while ours is silent."""
    newest = load.snapshot.segments[-1]
    ours = max((one.program_date_time for one in position.recent if one.program_date_time), default=None)
    if newest.time is not None and ours is not None and newest.time <= ours and near(newest.time, ours, load.stream):
        return Step(replace(position, candidate=None), repairs=("stale_playlist",))
    position, moved_on = _watched(position, load, known=False)
    if not moved_on:
        return Step(position, repairs=("playlist_in_doubt",))
    oldest = load.snapshot.segments[0]
    if any(one.digest for one in position.recent):
        told = load.digest(oldest)
        if not told:
            return Step(position, repairs=("playlist_in_doubt",), question=oldest if told is None else None)
        if ours_too := next((one for one in reversed(position.recent) if one.digest == told), None):
            return _counted_anew(position, ours_too.sequence - oldest.sequence, load, "origin_changed")
        if any(one.digest == told for one in position.older):
            return Step(replace(position, candidate=None), repairs=("stale_playlist",))
    return begun(position, load.snapshot.segments, load, "source_reset")


def _fell_back(position: Position, load: Load, known: Seen) -> Step:
    """The playlist ends with what we relayed a while ago: a stale edge, or a restarted encoder that uses its names again."""
    stale = Step(replace(position, candidate=None), repairs=("stale_playlist",))
    newest = load.snapshot.segments[-1]
    if newest.program_date_time is not None and known.written is not None:  # and they agree: it is that very segment
        return stale
    position, moved_on = _watched(position, load, known=True)
    if moved_on and not known.number and load.now - position.advanced_at >= STUCK_TARGET_DURATIONS * _target(load):
        return begun(position, load.snapshot.segments, load, "source_reset")
    if not moved_on or not known.digest:
        return replace(stale, position=position)
    told = load.digest(newest)
    if told is None:
        return replace(stale, position=position, question=newest)
    return begun(position, load.snapshot.segments, load, "source_reset") if told and told != known.digest else stale


def _watched(position: Position, load: Load, *, known: bool) -> tuple[Position, bool]:
    """Return the position with the playlist as candidate, and whether that has moved on while our generation was silent."""
    newest, now = load.snapshot.segments[-1], load.now
    mark = f"{newest.sequence} {_last_component(newest)}"
    candidate = position.candidate
    if candidate is None or candidate.known != known:
        candidate = Candidate(now, mark, mark, known)
    resembles = candidate.resembles
    if not known and not resembles:
        ours = {seen.identity for seen in position.recent}
        resembles = any(identity(segment) in ours for segment in load.snapshot.segments[-REMEMBERED:])
    candidate = replace(candidate, newest=mark, resembles=resembles)
    waited = now - candidate.since >= _target(load)
    silent = now - position.advanced_at >= SILENT_TARGET_DURATIONS * _target(load)
    return replace(position, candidate=candidate), candidate.newest != candidate.first_newest and waited and silent


def _target(load: Load) -> timedelta:
    return timedelta(seconds=load.snapshot.target_duration_s)
