"""The boxes of an MP4 (ISO/IEC 14496-12, 4.2), whatever is in them, and the numbers that they hold. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hlsrelay.media.info import MediaError

FIRST_BOXES = frozenset(b"ftyp styp moof moov sidx ssix emsg prft mdat free skip uuid pdin".split())
"""What a file or a segment may begin with."""
_MOST_BOXES = 20_000
_MOST_SAMPLES = 50_000


@dataclass(frozen=True, slots=True)
class Box:
    """A box, by its bytes."""

    kind: bytes
    begin: int  # of its header
    body: int
    end: int


class Walk:
    """Boxes, counted: hostile bytes can nest or line up only so many. What is cut or too much raises MediaError."""

    def __init__(self) -> None:
        self.left = _MOST_BOXES
        self.samples_left = _MOST_SAMPLES

    def boxes(self, data: bytes, at: int, end: int) -> Iterator[Box]:
        """Yield the boxes that lie one after the other from *at* to *end*; an `mdat` may be cut."""
        while at + 8 <= end:
            self.left -= 1
            if self.left < 0:
                raise MediaError("an MP4 of too many boxes")
            size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
            body = at + 8
            if size == 1:
                size, body = int.from_bytes(data[at + 8 : at + 16]), at + 16
            elif size == 0:
                size = end - at  # the last one, up to the end of the file
            if size < body - at:
                raise MediaError("an MP4 box smaller than its header")
            if at + size > end:
                if kind != b"mdat":
                    raise MediaError(f"an MP4 box {kind!r} that is cut")
                size = end - at
            yield Box(kind, at, body, at + size)
            at += size

    def path(self, data: bytes, box: Box, *kinds: bytes) -> Box | None:
        """Return the first box below *box* along *kinds*."""
        for kind in kinds:
            found = next((inner for inner in self.boxes(data, box.body, box.end) if inner.kind == kind), None)
            if found is None:
                return None
            box = found
        return box


class Fields:
    """Big-endian numbers one after the other. Reading past the end raises MediaError."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end

    def take(self, size: int) -> int:
        """Return the next number, of *size* bytes."""
        if self.at + size > self.end:
            raise MediaError("an MP4 box ends too early")
        value = int.from_bytes(self.data[self.at : self.at + size])
        self.at += size
        return value


def after_dates(data: bytes, box: Box) -> Fields:
    """Return what follows the two dates, of 32 or 64 bits, with which `mvhd`, `tkhd` and `mdhd` begin."""
    fields = Fields(data, box.body, box.end)
    fields.take(16 if fields.take(4) >> 24 else 8)
    return fields


def signed(value: int, width: int) -> int:
    """Return *value*, a number of *width* bits, as two's complement: ffmpeg writes decode times before 0 so."""
    return value - (1 << width) if value >= 1 << width - 1 else value
