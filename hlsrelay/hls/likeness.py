"""Whether a listed segment is one that we have seen, as far as its number, name and times tell, and what its digest is worth. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hlsrelay.hls.numbering import Load
from hlsrelay.hls.parse import identity
from hlsrelay.model import Position, Seen, Segment, Snapshot

ALIKE = "~"
"""The digest of content that tells no time, of subtitles without cues, begins so: it is that of many segments."""


def same_as(seen: Seen, segment: Segment, snapshot: Snapshot) -> bool:
    """Return whether a listed segment is the one seen under its number: names may be used again, at another time of the programme."""
    same_name = seen.identity == identity(segment) or (segment.gap and looks_like(seen, segment, snapshot))
    return same_name and not another_time(seen, segment, snapshot)


def looks_like(seen: Seen, segment: Segment, snapshot: Snapshot) -> bool:
    """Return whether a listed segment may be the one seen, as far as the end of its path tells: folders may hold tokens."""
    return seen.identity.rpartition("/")[2] == file_name(segment) and not another_time(seen, segment, snapshot)


def known_as(seen: tuple[Seen, ...], segment: Segment, load: Load) -> Seen | None:
    """Return what of *seen* has the number and the name of a listed segment."""
    return next((one for one in seen if one.sequence == segment.sequence and looks_like(one, segment, load.snapshot)), None)


def another_time(seen: Seen, segment: Segment, snapshot: Snapshot) -> bool:
    told, known = segment.program_date_time, seen.written
    return told is not None and known is not None and abs((told - known).total_seconds()) > snapshot.target_duration_s


def another_clock(seen: Seen, segment: Segment, snapshot: Snapshot) -> bool:
    """Return whether the times that others of its playlist imply for a segment are not those that were implied before."""
    told, known = segment.time, seen.program_date_time or seen.written
    return told is not None and known is not None and abs((told - known).total_seconds()) > snapshot.target_duration_s


def is_alike(position: Position, digest: str | None) -> bool:
    """Return whether two segments with this digest may yet be two: so are those of subtitles without cues, or with a cue that goes on."""
    if not digest:
        return False
    pairs = (pair for seen in (position.older, position.recent) for pair in pairwise(seen))
    repeated = any(one.digest == digest == after.digest and after.sequence == one.sequence + 1 for one, after in pairs)
    return repeated or digest.startswith(ALIKE)


def telling(position: Position, seen: Iterable[Seen]) -> tuple[Seen, ...]:
    """Return what of *seen* is recognised by its digest alone."""
    return tuple(one for one in seen if one.digest and not is_alike(position, one.digest))


def file_name(segment: Segment) -> str:
    return identity(segment).rpartition("/")[2]
