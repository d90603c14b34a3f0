"""What a segment is and when it plays, told by its head and its tail: a fraction of what reading it through costs. Pure.

It sees what a relay has to notice of each segment: time stamps that begin anew, other codecs, another size. Times are of the first and
the last picture that begin in what is looked at, so they may be a few pictures off, as pictures are not in the order they are shown in.
"""

from __future__ import annotations

from dataclasses import dataclass

from hlsrelay.media.fmp4 import FIRST_BOXES, probe_fmp4
from hlsrelay.media.info import MediaError
from hlsrelay.media.ts import PACKET, coded_as, first_packet, looks_like_ts, picture_stamps
from hlsrelay.media.whole import TAILS_BYTES, Read, outermost_fragments


@dataclass(frozen=True, slots=True)
class Glimpse:
    """*codecs* as far as they are told, *size* of the picture where that is; the time stamps are the first and the last picture's."""

    codecs: tuple[str, ...]
    size: tuple[int, int] | None
    first_pts_90k: int
    last_pts_90k: int


def glimpsed(read: Read, size: int, init: bytes | None) -> Glimpse | None:
    """Return what a file of *size* bytes is; None where head and tail don't tell, or there is no picture."""
    head = read(0, TAILS_BYTES[0])
    try:
        if looks_like_ts(head):
            return _of_ts(read, size, head, init)
        if head[4:8] in FIRST_BOXES and init:
            return _of_fmp4(read, size, init)
    except MediaError:
        pass
    return None


def _of_ts(read: Read, size: int, head: bytes, init: bytes | None) -> Glimpse | None:
    first, begin = picture_stamps(head, init), first_packet(head)
    for tail in TAILS_BYTES if first else ():
        at = begin + max(0, size - begin - tail) // PACKET * PACKET
        if last := picture_stamps(read(at, tail + PACKET), head):
            picture, sound = coded_as(head, init)
            codecs = (picture.codecs if picture else None, sound)
            shape = (picture.width, picture.height) if picture and picture.height else None
            return Glimpse(tuple(one for one in codecs if one), shape, first[0], last[-1])
    return None


def _of_fmp4(read: Read, size: int, init: bytes) -> Glimpse | None:
    indexes = outermost_fragments(read, size)
    ends = [probe_fmp4(index, init) for index in indexes]
    if not ends or not (first := ends[0].video) or not (last := ends[-1].video):
        return None
    codecs = (first.codecs, ends[0].audio.codecs if ends[0].audio else None)
    shape = (first.width, first.height) if first.height else None
    return Glimpse(tuple(one for one in codecs if one), shape, first.first_pts_90k, last.last_pts_90k)
