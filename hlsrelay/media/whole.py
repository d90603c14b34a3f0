"""Is this file a whole segment, as far as the containers tell? (ends: by its times.) Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hlsrelay.media.boxes import FIRST_BOXES
from hlsrelay.media.packets import PACKET, first_packet, looks_like_ts

Read = Callable[[int, int], bytes]
"""Returns so many bytes from there, fewer at the end of the file."""

HEAD_BYTES = 16 * PACKET
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


def outermost_fragments(read: Read, size: int) -> list[bytes]:
    """Return the index boxes of the first and the last fragment, which may be one; none where they are too large."""
    found = [(begin, end) for kind, begin, end in _boxes(read, size) if kind == b"moof"]
    indexes = dict.fromkeys((found[0], found[-1])) if found else {}
    if sum(end - begin for begin, end in indexes) > LARGEST_INDEX_BYTES:
        return []
    return [read(begin, end - begin) for begin, end in indexes]


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
