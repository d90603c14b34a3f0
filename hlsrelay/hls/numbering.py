"""Giving numbers, times and DISCONTINUITYs to segments that are known to be new. Pure.

Laws:
  1. A number is the one before plus one, whatever the segment; `number = source's media sequence + offset`.
  2. A generation begins with a DISCONTINUITY, in every track of the presentation at the same moment: never before what any of them
     has listed. A track that is behind that moment fills up with GAPs, one that has segments of before it drops them, and one that
     has nothing of after it yet tells the others the moment, or else they would go on past it again and again.
  3. Times of one generation run on: they are the source's, or ours, from its first segment to its last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from hlsrelay.hls.parse import identity
from hlsrelay.model import Numbered, Position, Seen, Segment, Slice, Snapshot, Stream
from hlsrelay.values import replace

REMEMBERED = 64
"""How many of the source's last segments are kept to recognise a playlist by."""
STEADY_AFTER = 10
"""Times that jump again before so many segments went on are no clock."""
NEAR_WINDOWS = 3
"""Two times further apart than so many windows are of clocks that have nothing to do with one another."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """What the tracks of a presentation have come to: their generation, since when on our clock, and where the furthest one ends.

    *times* are those of the track that sets the clock, by the source's numbers: packagers use the same in each rendition. *begins*: when
    the track begins whose edge was furthest behind at the first look.
    """

    generation: int = 1
    since: datetime | None = None
    lead: datetime | None = None
    times: Mapping[int, datetime] = field(default_factory=dict)
    begins: datetime | None = None


NOTHING_AGREED = Agreed()


@dataclass(frozen=True)
class Step:
    """What one snapshot brought: the new position, the new segments oldest first, and named repairs to count.

    *question*: a listed segment whose digest would tell more than names and numbers do. Fetch it, and look again. *begins_at*: when a
    generation of all tracks is to begin, of which nothing is listed yet.
    """

    position: Position
    fresh: tuple[Numbered, ...] = ()
    repairs: tuple[str, ...] = ()
    question: Segment | None = None
    begins_at: datetime | None = None


@dataclass(frozen=True)
class Load:
    """One look at the source: what it lists, what the operator wants and the other tracks have come to, and when that was."""

    snapshot: Snapshot
    stream: Stream
    now: datetime
    agreed: Agreed = NOTHING_AGREED
    slices: Mapping[int, tuple[Slice, ...]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    def digest(self, segment: Segment) -> str | None:
        """Return the digest of a listed segment's content, empty where it can't be had, None where nobody has looked."""
        return self.digests.get(content_key(segment))


def content_key(segment: Segment) -> str:
    """Return what the content of a listed segment is called by: where it is, tokens and all."""
    return f"{segment.uri} {segment.byterange}" if segment.byterange else segment.uri


def numbered(position: Position, fresh: Sequence[Segment], load: Load, *, opens: bool = False, cut: bool = False) -> Step:
    """Number *fresh*, which goes on from *position*; *opens*: nothing was ever listed before; *cut*: a generation begins.

    One begins by itself where the other tracks have begun one, and where the ladder changed: its encodings do.
    """
    if not fresh:
        return Step(_unchanged(position, load))
    if fresh[0].sequence != position.last_sequence + 1:
        raise AssertionError(f"source's segment {fresh[0].sequence} after {position.last_sequence}")
    agreed, ladder = load.agreed, load.stream.ladder
    behind = not cut and position.generation < agreed.generation
    begins_at = agreed.since if behind else agreed.lead
    waits = behind or (not cut and not opens and position.ladder != ladder)
    listed_now = tuple(Seen(one.sequence, identity(one), written=one.program_date_time) for one in fresh)
    brought_at, recent = position.advanced_at, position.recent[-1:]
    position = _taking(position, listed_now, load)
    done: list[Numbered] = []
    repairs: list[str] = []
    for segment in fresh:
        first = not done
        at = position.next_program_date_time
        begins = cut and first
        told = segment.time
        if begins or segment.discontinuity or (opens and first):
            position = replace(position, dated=told is not None)
        when = told if told is not None and position.dated else _in_time(at, segment, agreed)
        if waits and (begins_at is None or not near(begins_at, when, load.stream) or when >= begins_at - _half(segment)):
            begins, waits = True, False
            position = replace(position, generation=agreed.generation if behind else position.generation + 1)
        if begins:
            position = replace(position, ladder=ladder)
        wanted = load.stream if load.stream.ladder == position.ladder else replace(load.stream, ladder=position.ladder)
        cuts = begins or segment.discontinuity
        if not cuts and not (opens and first):
            if _jumps(when, at, load) and position.dated:
                repairs.append("dates_jumped")
                cuts = position.last_number - position.jumped_number > STEADY_AFTER
                position = replace(position, jumped_number=position.last_number, dated=cuts)
                when = when if cuts else at  # dates that jump again and again are worth less than playing on
            if segment.init and position.init and _init_name(segment) != position.init:
                repairs.append("map_changed")
                cuts = True
        discontinuity = cuts and not (opens and first)  # nothing stands before the first ever
        after = 1 + segment.sequence - fresh[0].sequence
        ahead = tuple([one for one in listed_now[after : after + REMEMBERED] if one.identity])
        slices = load.slices.get(segment.sequence) or (None,)
        for index, piece in enumerate(slices):
            number = position.last_number + 1
            length_s = piece.duration_s if piece else segment.duration_s
            position = replace(
                position,
                last_number=number,
                ahead=ahead,
                offset=number - segment.sequence,
                next_program_date_time=when + timedelta(seconds=length_s),
                segment_s=segment.duration_s,
                era=segment.era,
                init=_init_name(segment) if segment.uri else position.init,
            )
            if segment.uri and index == len(slices) - 1:
                seen = Seen(segment.sequence, identity(segment), told, number, written=segment.program_date_time)
                position = replace(position, recent=(*position.recent, seen)[-REMEMBERED:])
            done.append(
                Numbered(
                    number,
                    replace(segment, tags=()) if index else segment,
                    discontinuity and index == 0,
                    when,
                    load.snapshot.target_duration_s,
                    wanted,
                    # After GAPs alone a successor waits for what fills the rest of the hole, and the clock explains one hole once.
                    position if position.recent[-1:] != recent else replace(position, advanced_at=brought_at),
                    discontinuity_sequence=segment.era,
                    i_frames_only=load.snapshot.i_frames_only,
                    slice=piece,
                    more=index < len(slices) - 1,
                )
            )
            when = position.next_program_date_time
    return Step(position, tuple(done), tuple(dict.fromkeys(repairs)))


def _unchanged(position: Position, load: Load) -> Position:
    """Return *position* after a load that brings nothing new."""
    position = position if position.candidate and position.candidate.known else undoubted(position)  # a stale edge may yet be none
    if load.snapshot.segments[-1].sequence < position.seen_sequence:  # an edge that is behind: its window is not the one that slides
        return position
    return replace(position, listed_at=load.now, listed=len(load.snapshot.segments))


def _jumps(when: datetime, at: datetime, load: Load) -> bool:
    """Return whether the programme's time does not go on: players take PROGRAM-DATE-TIME and durations for one clock (A12)."""
    return abs((when - at).total_seconds()) > load.snapshot.target_duration_s / 2


def _init_name(segment: Segment) -> str:
    """Return what an init section is recognised by: not its folder, which may hold a token."""
    if segment.init is None:
        return ""
    return f"{urlsplit(segment.init.uri).path.rpartition('/')[2]} {segment.init.byterange or ''}"


def beginning(fresh: Sequence[Segment], load: Load) -> datetime:
    """Return when *fresh*, the first of a track that tells no times, begins: as with the other tracks, or so that it ends now."""
    by_lead = (load.agreed.lead or load.now) - length_of(fresh)
    times = load.agreed.times
    known = next((index for index, one in enumerate(fresh) if one.sequence in times), None)  # the other may have begun with a later one
    by_number = None if known is None else times[fresh[known].sequence] - length_of(fresh[:known])
    return by_number if by_number and abs(by_number - by_lead) <= 3 * _half(fresh[0]) else by_lead


def opening(live: Sequence[Segment], load: Load) -> Sequence[Segment]:
    """Return *live*, the newest segments, with those before them from where the track begins whose edge is furthest behind."""
    begins, first = load.agreed.begins, live[0].time
    return _from(load.snapshot.segments, begins) if begins and first and begins < first else live


def _in_time(at: datetime, segment: Segment, agreed: Agreed) -> datetime:
    """Return *at*, or what the track that sets the clock says of the same number, if that is the same moment: so nothing drifts."""
    theirs = agreed.times.get(segment.sequence)
    return theirs if theirs and abs(theirs - at) < _half(segment) else at


def begun(position: Position, fresh: Sequence[Segment], load: Load, repair: str) -> Step:
    """Number *fresh* as the beginning of a generation, or of the one that other tracks have begun."""
    agreed, stream = load.agreed, load.stream
    joins = position.generation < agreed.generation
    own = position.next_program_date_time
    begin = agreed.since if joins else agreed.lead
    if begin is not None and not near(begin, own, stream):
        begin = None
    floor = own if begin is None else max(own, begin)
    starts = floor
    if fresh[0].time is not None and (position.dated or begin is not None):
        if near(fresh[-1].time or floor, floor, stream):
            fresh = _from(fresh, floor)
    elif begin is None:
        fresh = newest_of(fresh, load.now - position.advanced_at)
        starts = max(floor, load.now - length_of(fresh))
    else:
        ours_by_now = own - timedelta(seconds=position.given_up * position.segment_s) + (load.now - position.advanced_at)
        fresh = newest_of(fresh, ours_by_now - floor)
        starts = floor if joins else max(floor, ours_by_now - length_of(fresh))
    if not fresh:
        return Step(position, begins_at=floor if begin and (joins or begin >= own) else None)
    before = numbered(position, _gaps(position, floor - own, fresh[0].duration_s), replace(load, agreed=NOTHING_AGREED))
    start = replace(
        before.position,
        source=stream.source,
        generation=agreed.generation if joins else position.generation + 1,
        recent=(),
        older=(*position.older, *position.recent)[-REMEMBERED:],
        next_program_date_time=starts,
        past_sequence=load.snapshot.segments[0].sequence,
        passed=passed(position, fresh[0].sequence, load),
    )
    missed = timedelta(0)
    if joins and begin is not None and fresh[0].time is not None and near(fresh[0].time, starts, stream):
        missed = fresh[0].time - starts  # what the others have of the new generation already, and this one has not
    after = numbered(*_with_gaps_before(start, missed, fresh), load, cut=True)
    return Step(after.position, (*before.fresh, *after.fresh), (repair, *after.repairs))


def resumed(position: Position, newer: Sequence[Segment], load: Load) -> Step:
    """Number what a track brings after it was given up for a while: what comes too late is under a GAP already."""
    own = position.next_program_date_time
    if position.dated and newer[0].time is not None:
        fresh = _from(newer, own)
        if not fresh or not near(fresh[0].time or own, own, load.stream):
            return Step(position)
        start = replace(position, given_up=0, offset=position.last_number + 1 - fresh[0].sequence)
        return numbered(*_with_gaps_before(start, (fresh[0].time or own) - own, fresh), load)
    fresh = tuple(segment for segment in newer if segment.sequence > position.last_sequence)
    return numbered(position, fresh, load) if fresh else Step(position)


def given_up(position: Position, load: Load, until: datetime | None = None) -> Step:
    """Return GAPs up to where the other tracks are, for a track that brings nothing: players leave it for another one (A11, A20).

    *until*: it will bring what begins then, which is not for GAPs to begin.
    """
    own = position.next_program_date_time
    lead = min(load.agreed.lead, until) if load.agreed.lead and until else load.agreed.lead
    length_s = position.segment_s
    if lead is None or not near(lead, own, load.stream) or not length_s:
        return Step(position)
    count = int((lead - own) / timedelta(seconds=length_s) + 0.1)
    gaps = _gaps(position, timedelta(seconds=count * length_s), length_s)
    if not gaps:
        return Step(position)
    step = numbered(position, gaps, load)
    after = replace(step.position, given_up=position.given_up + len(gaps), advanced_at=position.advanced_at, candidate=position.candidate)
    fresh = tuple(
        replace(one, position=replace(one.position, given_up=position.given_up + index + 1, advanced_at=position.advanced_at))
        for index, one in enumerate(step.fresh)
    )
    return Step(after, fresh, ("track_fell_behind",))


def lost(position: Position, count: int, then: Segment, target_duration_s: int) -> Sequence[Segment]:
    """Return *count* segments that the source no longer lists, before *then*: their times tell how long they were, or it was like them."""
    first, each_s = position.last_sequence + 1, then.duration_s
    if count and then.time is not None and position.dated:
        told_s = (then.time - position.next_program_date_time).total_seconds() / count
        each_s = told_s if 0.1 < told_s < target_duration_s + 0.5 else each_s
    return tuple(Segment(sequence=first + index, uri="", duration_s=each_s, gap=True, era=position.era) for index in range(count))


def near(one: datetime, other: datetime, stream: Stream) -> bool:
    """Return whether two times can be of one clock."""
    return abs((one - other).total_seconds()) <= NEAR_WINDOWS * stream.window_s


def length_of(segments: Iterable[Segment]) -> timedelta:
    """Return how long *segments* last together."""
    return timedelta(seconds=sum(segment.duration_s for segment in segments))


def noted(position: Position, digests: Mapping[int, str]) -> Position:
    """Return *position* with the digests of what was downloaded meanwhile, told by our numbers."""
    if not [seen for seen in position.recent if not seen.digest and seen.number in digests]:
        return position
    recent = tuple(seen if seen.digest else replace(seen, digest=digests.get(seen.number, "")) for seen in position.recent)
    return replace(position, recent=recent)


def _taking(position: Position, taken: tuple[Seen, ...], load: Load) -> Position:
    """Return *position* as it is once *taken* are relayed: they did not go by. What a predecessor saw and we no longer get did."""
    names = {_known_by(one) for one in taken}
    before = undoubted(position).passed
    missed = (one for one in position.ahead if one.sequence <= taken[-1].sequence and one not in before)
    went_by = tuple(one for one in (*before, *missed) if _known_by(one) not in names)
    listed = len(load.snapshot.segments)
    return replace(
        position, given_up=0, candidate=None, passed=went_by[-REMEMBERED:], listed=listed, listed_at=load.now, advanced_at=load.now
    )


def undoubted(position: Position) -> Position:
    """Return *position* without its candidate: what that listed went by, all but what has been relayed."""
    if position.candidate is None:
        return position
    ours = {_known_by(one) for one in (*position.older, *position.recent, *position.passed)}
    listed = dict.fromkeys((*position.candidate.newest, *position.candidate.listed))
    went_by = [one for one in listed if _known_by(one) not in ours]
    return replace(position, candidate=None, passed=(*position.passed, *went_by)[-REMEMBERED:])


def _known_by(seen: Seen) -> tuple[int, str]:
    """Return what stays the same of a segment: folders may hold tokens."""
    return seen.sequence, seen.identity.rpartition("/")[2]


def passed(position: Position | None, first: int, load: Load) -> tuple[Seen, ...]:
    """Return what the source has listed and we did not relay, now that a generation begins with its number *first*."""
    segments = load.snapshot.segments
    skipped = segments[max(0, first - segments[0].sequence - REMEMBERED) : max(0, first - segments[0].sequence)]
    listed = (Seen(one.sequence, identity(one), written=one.program_date_time) for one in skipped)
    taken = {(one.sequence, identity(one)) for one in segments[max(0, first - segments[0].sequence) :]}
    candidate = position.candidate if position else None
    doubtful = dict.fromkeys((*candidate.newest, *candidate.listed)) if candidate else ()
    before = (one for one in (*position.passed, *doubtful) if (one.sequence, one.identity) not in taken) if position else ()
    return (*before, *listed)[-REMEMBERED:]


def _gaps(position: Position, length: timedelta, each_s: float) -> Sequence[Segment]:
    """Return GAPs that fill *length* from *position* on, none longer than *each_s*; none for less than half of one."""
    ratio = length.total_seconds() / each_s if each_s else 0.0
    count = math.ceil(ratio - 0.02) if ratio >= 0.5 else 0
    exact_s = length.total_seconds() / count if count else 0.0
    first = position.last_sequence + 1
    times = [position.next_program_date_time + timedelta(seconds=index * exact_s) for index in range(count)]
    return tuple(Segment(first + index, "", exact_s, gap=True, time=time) for index, time in enumerate(times))


def _with_gaps_before(position: Position, missed: timedelta, fresh: Sequence[Segment]) -> tuple[Position, tuple[Segment, ...]]:
    """Return *fresh* with GAPs for what is missing before it, and the position that both go on from."""
    gaps = _gaps(position, missed, fresh[0].duration_s)
    first = fresh[0].sequence - len(gaps)
    moved = tuple(replace(gap, sequence=first + index) for index, gap in enumerate(gaps))
    return replace(position, offset=position.last_number + 1 - first), (*moved, *fresh)


def newest_of(segments: Sequence[Segment], length: timedelta) -> Sequence[Segment]:
    """Return the newest of *segments* that last no longer than *length* together, one at least; half a segment is rounded up."""
    left_s, kept = length.total_seconds(), 0
    for segment in reversed(segments):
        if kept and left_s < segment.duration_s / 2:
            break
        left_s -= segment.duration_s
        kept += 1
    return segments[-kept:]


def _from(segments: Sequence[Segment], when: datetime) -> Sequence[Segment]:
    """Return *segments* from the first on that begins at *when* or later."""
    after = (index for index, segment in enumerate(segments) if (segment.time or when) >= when - _half(segment))
    return segments[next(after, len(segments)) :]


def _half(segment: Segment) -> timedelta:
    return timedelta(seconds=segment.duration_s / 2)
