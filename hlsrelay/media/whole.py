"""Is this file a whole segment? Told by its head and its tail: nobody can read hundreds of streams through for that. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hlsrelay.media.fmp4 import FIRST_BOXES, probe_fmp4
from hlsrelay.media.info import PTS_MODULUS, MediaError, in_presentation_order
from hlsrelay.media.ts import PACKET, first_packet, looks_like_ts, stamps

Read = Callable[[int, int], bytes]
"""Returns so many bytes from there, fewer at the end of the file."""

HEAD_BYTES = 16 * PACKET
TAILS_BYTES = (64 << 10, 1 << 20)
"""A key frame of high bitrate can fill the smaller one, and then no other picture begins there."""
MOST_BOXES = 4096
LARGEST_INDEX_BYTES = 256 << 10
BLOCK_BYTES = 16


def cut_off(read: Read, size: int, *, encrypted: bool = False) -> str:
    """Return what shows that a file of *size* bytes ends too early; empty where nothing does. *encrypted* as a whole, in CBC mode."""
    if encrypted:
        return f"{size} bytes are no whole blocks of AES" if size % BLOCK_BYTES else ""
    head = read(0, HEAD_BYTES)
    if looks_like_ts(head) or (size < PACKET and head[:1] == b"\x47"):
        return f"{size} bytes are no whole MPEG-TS packets" if (size - first_packet(head)) % PACKET else ""
    if head[4:8] in FIRST_BOXES:
        *_, (kind, _, end) = _boxes(read, size)
        return f"an MP4 box {kind!r} is cut" if end > size else ""
    return ""


def lasts_s(read: Read, size: int, init: bytes | None) -> float | None:
    """Return how much time lies between the first and the last picture or sound that begins in the file; None where that can't be told.

    A whole segment's EXTINF is one picture more than that.
    """
    head = read(0, TAILS_BYTES[0])
    try:
        if looks_like_ts(head):
            return _ts_lasts_s(read, size, head)
        if head[4:8] in FIRST_BOXES and init:
            return _fmp4_lasts_s(read, size, init)
    except MediaError:
        pass
    return None


def _ts_lasts_s(read: Read, size: int, head: bytes) -> float | None:
    first = stamps(head)
    begin = first_packet(head)
    for tail in TAILS_BYTES:
        at = begin + max(0, size - begin - tail) // PACKET * PACKET
        last = stamps(read(at, tail + PACKET))
        if first and last:
            return _span_s([*first, *last])
    return None


def outermost_fragments(read: Read, size: int) -> list[bytes]:
    """Return the index boxes of the first and the last fragment, which may be one; none where they are too large."""
    found = [(begin, end) for kind, begin, end in _boxes(read, size) if kind == b"moof"]
    indexes = dict.fromkeys((found[0], found[-1])) if found else {}
    if sum(end - begin for begin, end in indexes) > LARGEST_INDEX_BYTES:
        return []
    return [read(begin, end - begin) for begin, end in indexes]


def _fmp4_lasts_s(read: Read, size: int, init: bytes) -> float | None:
    video = probe_fmp4(b"".join(outermost_fragments(read, size)), init).video
    return _span_s([video.first_pts_90k, video.last_pts_90k]) if video else None


def _span_s(pts: list[int]) -> float:
    ordered = in_presentation_order(pts)
    return (ordered[-1] - ordered[0]) % PTS_MODULUS / 90_000


def _boxes(read: Read, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of each box of the outermost level, the end as the box says: the last may lie outside the file."""
    at = 0
    for _ in range(MOST_BOXES):
        header = read(at, 16)
        length = int.from_bytes(header[:4])
        if length == 1:
            length = int.from_bytes(header[8:])
        to_the_end = len(header) >= 8 and length in (0, *range(2, 8))  # 0 says so; smaller than its header, it is no box at all
        end = size if to_the_end else at + max(length, 8)
        yield header[4:8], at, end
        if end > size - 8:  # what is too short for a box after a whole one hurts nobody, and some packagers leave it
            return
        at = end
