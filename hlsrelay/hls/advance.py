"""Numbering: which segments of a snapshot are new, and which number each gets. Pure.

Laws, for every history of snapshots (tests drive tens of thousands):
  1. Numbers rise by exactly one from entry to entry, over restarts too: nothing is repeated, nothing steps back.
  2. A segment of the source is numbered at most once.
  3. Where the source's timeline breaks (its own DISCONTINUITY, a reset, another source), the first entry after it is a DISCONTINUITY.
  4. What the source lost while we watched is a GAP of its own number, as long as the hole is small; a larger one is a DISCONTINUITY.
  5. A stale playlist changes nothing.

`number = source's media sequence + offset`; a *generation* is a run of the source's numbering for which the offset holds. As long as
the source does not reset, two nodes that never talk give a segment the same number. A playlist that does not fit the generation is
only a *candidate* for a new one (an edge may be stale, or two origins may alternate): it is believed once it moves on by itself
while the generation has been silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from hlsrelay.hls.parse import identity
from hlsrelay.model import Candidate, Numbered, Position, Seen, Segment, Snapshot, Stream

REMEMBERED = 64
"""How many of the source's last segments are kept to recognise a playlist by."""
RECOGNISED_BY = 3
"""As many segments in a row under the same names are the same, whatever their numbers."""
SILENT_TARGET_DURATIONS = 1.5
"""A playlist unchanged for this long is suspect (RFC 8216 6.3.4)."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one snapshot brought: the new position, the new segments oldest first, and named repairs to count."""

    position: Position
    fresh: tuple[Numbered, ...] = ()
    repairs: tuple[str, ...] = ()


def advance(
    position: Position | None,
    snapshot: Snapshot,
    stream: Stream,
    now: datetime,
    *,
    first_number: int | None = None,
    generation: int = 1,
) -> Step:
    """Return the segments of *snapshot* not yet relayed, numbered, and the position after them.

    *position* is None for a stream that was never relayed: it starts near the live edge, with the source's own numbers, or with
    *first_number* where an older playlist of this stream has used the numbers below it. *generation* is the highest that any track of
    the presentation has reached: one that is behind makes a DISCONTINUITY too, because they count them together (RFC 8216 6.2.4).
    """
    load = _Load(snapshot, stream, now, generation)
    if position is None:
        fresh = live_edge(snapshot)
        offset = 0 if first_number is None else first_number - fresh[0].sequence
        start = Position(stream.source, generation, offset, fresh[0].sequence + offset - 1, (), now, now - _length(fresh), stream.ladder)
        return _emit(start, fresh, load, cut=first_number is not None)
    if position.source != stream.source:
        fresh = _joined(position, load)
        return _new_generation(position, fresh, load, "source_changed") if fresh else Step(position)
    known = {seen.sequence: seen for seen in position.recent}
    shared = [segment for segment in snapshot.segments if segment.sequence in known]
    newer = tuple(segment for segment in snapshot.segments if segment.sequence > position.last_sequence)
    if any(_same(known[segment.sequence], segment, snapshot) for segment in shared):
        return _emit(position, newer, load)
    newest = snapshot.segments[-1]
    if any((one.sequence, one.identity) == (newest.sequence, identity(newest)) for one in position.older):
        return Step(position, repairs=("stale_playlist",))
    if shift := _renumbered(position, snapshot):
        moved = tuple(replace(seen, sequence=seen.sequence - shift) for seen in position.recent)
        position = replace(position, offset=position.offset + shift, recent=moved, candidate=None)
        step = _emit(position, tuple(one for one in snapshot.segments if one.sequence > position.last_sequence), load)
        return replace(step, repairs=("renumbered",))
    if not shared and len(newer) == len(snapshot.segments):
        return _after_hole(position, newer, load)
    return _doubt(position, load)


def live_edge(snapshot: Snapshot) -> tuple[Segment, ...]:
    """Return the newest segments, three target durations of them or all: where a player would begin (RFC 8216 6.3.3)."""
    kept: list[Segment] = []
    for segment in reversed(snapshot.segments):
        if len(kept) >= 3 and sum(one.duration_s for one in kept) >= 3 * snapshot.target_duration_s:
            break
        kept.append(segment)
    return tuple(reversed(kept))


def _same(seen: Seen, segment: Segment, snapshot: Snapshot) -> bool:
    """Return whether a listed segment is the one seen under its number: names may be used again, at another time of the programme."""
    told, known = segment.program_date_time, seen.program_date_time
    another_time = told is not None and known is not None and abs((told - known).total_seconds()) > snapshot.target_duration_s
    return seen.identity == identity(segment) and not another_time


def _renumbered(position: Position, snapshot: Snapshot) -> int:
    """Return by how much the source's numbers fell, where it still lists our newest segments, in their order; 0 where it does not."""
    ours = [seen.identity for seen in position.recent[-RECOGNISED_BY:]]
    theirs = [identity(segment) for segment in snapshot.segments]
    for index in range(len(theirs) - len(ours) + 1):
        if len(ours) == RECOGNISED_BY and theirs[index : index + len(ours)] == ours:
            return position.recent[-len(ours)].sequence - snapshot.segments[index].sequence
    return 0


def _joined(position: Position, load: _Load) -> tuple[Segment, ...]:
    """Return what of another source goes on from where we are: by the programme's time where both tell it, else by the time gone by.

    Empty where the other source is behind: what comes next of it has been relayed already.
    """
    segments = load.snapshot.segments
    ours = position.recent[-1].program_date_time if position.recent else None
    if ours is not None and any(segment.program_date_time for segment in segments):
        times = _times(segments)
        after = (index for index, time in enumerate(times) if time > ours + timedelta(seconds=segments[index].duration_s / 2))
        later = segments[next(after, len(segments)) :]
        near = abs((times[-1] - ours).total_seconds()) <= 3 * load.stream.window_s
        if near:  # else the clocks have nothing to do with one another
            return later
    elapsed_s = (load.now - position.advanced_at).total_seconds()
    kept: list[Segment] = []
    for segment in reversed(live_edge(load.snapshot)):
        if kept and sum(one.duration_s for one in kept) + segment.duration_s > elapsed_s:
            break
        kept.append(segment)
    return tuple(reversed(kept))


def _times(segments: tuple[Segment, ...]) -> list[datetime]:
    """Every segment's PROGRAM-DATE-TIME, counted on from the last one that is written, or back from the first (RFC 8216 4.3.2.6)."""
    first = next(index for index, segment in enumerate(segments) if segment.program_date_time)
    when = segments[first].program_date_time
    assert when is not None
    when -= _length(segments[:first])
    times = []
    for segment in segments:
        when = segment.program_date_time or when
        times.append(when)
        when += timedelta(seconds=segment.duration_s)
    return times


@dataclass(frozen=True, slots=True)
class _Load:
    snapshot: Snapshot
    stream: Stream
    now: datetime
    generation: int


def _after_hole(position: Position, newer: tuple[Segment, ...], load: _Load) -> Step:
    """The window moved past our last segment: by what the clock explains, or the numbering is another one."""
    missing = newer[0].sequence - position.last_sequence - 1
    target_s = load.snapshot.target_duration_s
    elapsed_s = (load.now - position.advanced_at).total_seconds()
    too_far = missing * target_s > 2 * (elapsed_s + 3 * target_s)
    # A window slides by what time brings; one of which nothing is left too soon was thrown away, as by an encoder that starts anew.
    too_soon = position.listed > 2 + elapsed_s / min(target_s, newer[0].duration_s)
    if (missing and too_far) or too_soon or position.candidate:  # what is in doubt may be what this goes on from
        return _doubt(position, load)
    if missing * target_s > load.stream.window_s:  # GAPs all over the window: players would wade through them for nothing
        return _new_generation(position, live_edge(load.snapshot), load, "hole_skipped")
    # Durations of what is gone are unknown; that of the next one listed is the best guess, and never above the target duration.
    first = position.last_sequence + 1
    lost = tuple(Segment(sequence=first + index, uri="", duration_s=newer[0].duration_s, gap=True) for index in range(missing))
    step = _emit(position, lost + newer, load)
    return replace(step, repairs=("hole_filled",)) if missing else step


def _doubt(position: Position, load: _Load) -> Step:
    """The playlist fits nowhere: a stale edge, another origin, or a reset. Believe it once it moves on while ours is silent."""
    seen = {(one.sequence, one.identity) for one in position.recent}
    snapshot, now = load.snapshot, load.now
    newest = snapshot.segments[-1]
    ours = max((one.program_date_time for one in position.recent if one.program_date_time), default=None)
    older = newest.program_date_time is not None and ours is not None and newest.program_date_time <= ours
    if older or all((segment.sequence, identity(segment)) in seen for segment in snapshot.segments):
        return Step(replace(position, candidate=None), repairs=("stale_playlist",))
    mark = f"{newest.sequence} {identity(newest)}"
    candidate = replace(position.candidate or Candidate(now, mark, mark), newest=mark)
    waited = now - candidate.since >= timedelta(seconds=snapshot.target_duration_s)
    silent = now - position.advanced_at >= timedelta(seconds=SILENT_TARGET_DURATIONS * snapshot.target_duration_s)
    if candidate.newest != candidate.first_newest and waited and silent:
        return _new_generation(position, snapshot.segments, load, "source_reset")
    return Step(replace(position, candidate=candidate), repairs=("playlist_in_doubt",))


def _new_generation(position: Position, fresh: tuple[Segment, ...], load: _Load, repair: str) -> Step:
    start = replace(
        position,
        source=load.stream.source,
        generation=max(position.generation + 1, load.generation),
        offset=position.last_number + 1 - fresh[0].sequence,
        recent=(),
        older=(*position.older, *position.recent)[-REMEMBERED:],
        candidate=None,
        next_program_date_time=max(position.next_program_date_time, load.now - _length(fresh)),
    )
    return replace(_emit(start, fresh, load, cut=True), repairs=(repair,))


def _emit(position: Position, fresh: tuple[Segment, ...], load: _Load, *, cut: bool = False) -> Step:
    """Number *fresh*; *cut* puts a DISCONTINUITY on the first, as does a ladder that changed (its encodings do)."""
    if not fresh:
        return Step(replace(position, candidate=None))
    if fresh[0].sequence != position.last_sequence + 1:
        raise AssertionError(f"source's segment {fresh[0].sequence} after {position.last_sequence}")
    first_ever = not position.recent and not cut
    cut = cut or position.ladder != load.stream.ladder or position.generation < load.generation
    told: dict[int, datetime] = {}
    dated = position.dated
    if not position.recent or cut or fresh[0].discontinuity:
        dated = any(segment.program_date_time for segment in load.snapshot.segments)
    if dated and any(segment.program_date_time for segment in load.snapshot.segments):
        told = {segment.sequence: time for segment, time in zip(load.snapshot.segments, _times(load.snapshot.segments), strict=True)}
    when = position.next_program_date_time
    times: list[datetime] = []
    for segment in fresh:
        times.append(told.get(segment.sequence, when))
        when = times[-1] + timedelta(seconds=segment.duration_s)
    seen = tuple(Seen(segment.sequence, identity(segment), told.get(segment.sequence)) for segment in fresh if segment.uri)
    after = replace(
        position,
        generation=max(position.generation, load.generation),
        last_number=fresh[-1].sequence + position.offset,
        recent=(*position.recent, *seen)[-REMEMBERED - len(seen) :],  # *upto* may take back all but the first
        advanced_at=load.now,
        next_program_date_time=when,
        ladder=load.stream.ladder,
        listed=len(load.snapshot.segments),
        dated=dated,
        candidate=None,
    )
    listed = {segment.sequence: count for segment, count in zip(load.snapshot.segments, _counted(load.snapshot), strict=True)}
    numbered = []
    for index, (segment, time) in enumerate(zip(fresh, times, strict=True)):
        discontinuity = segment.discontinuity
        if index == 0:  # nothing stands before the first ever, so nothing is cut there
            discontinuity = cut or (discontinuity and not first_ever)
        number = segment.sequence + position.offset
        numbered.append(
            Numbered(
                number,
                segment,
                discontinuity,
                time,
                load.snapshot.target_duration_s,
                load.stream,
                after,
                discontinuity_sequence=listed.get(segment.sequence, 0),
                i_frames_only=load.snapshot.i_frames_only,
            )
        )
    return Step(after, tuple(numbered))


def _counted(snapshot: Snapshot) -> Iterator[int]:
    """Yield each listed segment's discontinuity sequence number at the source, its own DISCONTINUITY counted (RFC 8216 6.2.1)."""
    count = snapshot.discontinuity_sequence
    for segment in snapshot.segments:
        count += segment.discontinuity
        yield count


def _length(segments: Iterable[Segment]) -> timedelta:
    return timedelta(seconds=sum(segment.duration_s for segment in segments))
