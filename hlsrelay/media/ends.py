"""What a segment is, when it plays and for how long, told by its head and its tail: a fraction of what reading it through costs. Pure.

It sees what a relay has to notice of each segment: one that ends too early, time stamps that begin anew, other codecs, another size. Times
are of the first and the last picture that begin in what is looked at, so they may be a few pictures off, as pictures are not in the order
they are shown in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hlsrelay.media.boxes import FIRST_BOXES
from hlsrelay.media.fmp4 import probe_fmp4
from hlsrelay.media.info import PTS_MODULUS, MediaError, MediaInfo, in_presentation_order
from hlsrelay.media.packets import PACKET, first_packet, looks_like_ts
from hlsrelay.media.ts import Packets
from hlsrelay.media.whole import Read, outermost_fragments

HEAD_BYTES = 64 << 10
TAILS_BYTES = (64 << 10, 1 << 20)
"""A key frame of high bitrate can fill the smaller one, and then no other picture begins there."""


@dataclass(frozen=True, slots=True)
class Glimpse:
    """*codecs* as far as they are told, *size* of the picture where that is; the time stamps are the first and the last picture's."""

    codecs: tuple[str, ...]
    size: tuple[int, int] | None
    first_pts_90k: int
    last_pts_90k: int


class Ends:
    """The head and the tail of a file of *size* bytes, read and taken apart once for all that is asked of them."""

    def __init__(self, read: Read, size: int, init: bytes | None) -> None:
        self._read, self._size, self._init = read, size, init
        self._head = read(0, HEAD_BYTES)
        self._is_ts = looks_like_ts(self._head)
        self._is_fmp4 = not self._is_ts and init is not None and self._head[4:8] in FIRST_BOXES
        self._tails: dict[int, Packets] = {}

    def lasts_s(self) -> float | None:
        """Return how much time lies between the first and the last picture or sound that begins in the file; None where that can't be told.

        A whole segment's EXTINF is one picture more than that.
        """
        try:
            if self._is_ts and (first := self._packets.stamps()):
                last = next((found for tail in TAILS_BYTES if (found := self._tail(tail).stamps())), None)
                return _span_s([*first, *last]) if last else None
            if self._is_fmp4:
                info = probe_fmp4(b"".join(self._indexes), self._init)
                return _span_s([info.video.first_pts_90k, info.video.last_pts_90k]) if info.video else None
        except MediaError:
            pass
        return None

    def glimpse(self) -> Glimpse | None:
        """Return what the file is; None where head and tail don't tell, or there is no picture."""
        try:
            if self._is_ts:
                return self._glimpse_of_ts()
            if self._is_fmp4:
                return self._glimpse_of_fmp4()
        except MediaError:
            pass
        return None

    @cached_property
    def _packets(self) -> Packets:
        return Packets(self._head, self._init)

    def _tail(self, length: int) -> Packets:
        """Return the packets of the last *length* bytes, one more for where these are cut."""
        if length not in self._tails:
            begin = first_packet(self._head)
            at = begin + max(0, self._size - begin - length) // PACKET * PACKET
            self._tails[length] = Packets(self._read(at, length + PACKET), self._packets)
        return self._tails[length]

    @cached_property
    def _indexes(self) -> list[bytes]:
        return outermost_fragments(self._read, self._size)

    def _glimpse_of_ts(self) -> Glimpse | None:
        if not (first := self._packets.picture_stamps()):
            return None
        for tail in TAILS_BYTES:
            if last := self._tail(tail).picture_stamps():
                picture, sound = self._packets.coded_as()
                codecs = (picture.codecs if picture else None, sound)
                shape = (picture.width, picture.height) if picture and picture.height else None
                return Glimpse(tuple(one for one in codecs if one), shape, first[0], last[-1])
        return None

    def _glimpse_of_fmp4(self) -> Glimpse | None:
        ends: list[MediaInfo] = [probe_fmp4(index, self._init) for index in self._indexes]
        if not ends or not (first := ends[0].video) or not (last := ends[-1].video):
            return None
        codecs = (first.codecs, ends[0].audio.codecs if ends[0].audio else None)
        shape = (first.width, first.height) if first.height else None
        return Glimpse(tuple(one for one in codecs if one), shape, first.first_pts_90k, last.last_pts_90k)


def _span_s(pts: list[int]) -> float:
    ordered = in_presentation_order(pts)
    return (ordered[-1] - ordered[0]) % PTS_MODULUS / 90_000
