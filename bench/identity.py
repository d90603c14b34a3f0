"""Which of the source's segments a relay's segment is, remuxed or not: told by its first key picture, which remuxing leaves as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bench.schedule import file_of

PACKET = 188
HEAD_BYTES = 64 * 1024
"""What of a segment is enough to find its first key picture in."""
PRINT_BYTES = 64
COARSE_S = 0.02
"""How far file systems' time stamps may be behind the wall clock."""

_KEY_PICTURE = re.compile(rb"\x00\x00\x01[\x25\x45\x65]")  # a slice of an IDR picture (H.264 7.3.1), whatever its nal_ref_idc


def key_picture(head: bytes) -> bytes | None:
    """Return the first bytes of the first H.264 key picture in *head*, the beginning of an MPEG-TS segment; None where there is none."""
    video: int | None = None
    stream = bytearray()
    for at in range(0, len(head) - PACKET + 1, PACKET):
        if head[at] != 0x47:
            return None
        pid = (head[at + 1] & 0x1F) << 8 | head[at + 2]
        begins, has_adaptation, has_payload = head[at + 1] & 0x40, head[at + 3] & 0x20, head[at + 3] & 0x10
        if not has_payload:
            continue
        payload = head[at + 4 + (1 + head[at + 4] if has_adaptation else 0) : at + PACKET]
        if begins and payload[:3] == b"\0\0\x01" and b"\xe0" <= payload[3:4] <= b"\xef" and video in (None, pid):
            video = pid
        if pid == video:
            stream += payload
            found = _KEY_PICTURE.search(stream)
            if found and len(stream) >= found.start() + PRINT_BYTES:
                return bytes(stream[found.start() : found.start() + PRINT_BYTES])
    return None


def prints_of(files: list[Path]) -> dict[bytes, int]:
    """Return which of the source's files each key picture begins. Raises ValueError where two files begin alike, or one has none."""
    prints: dict[bytes, int] = {}
    for index, path in enumerate(files):
        with path.open("rb") as file:
            found = key_picture(file.read(HEAD_BYTES))
        if found is None or found in prints:
            raise ValueError(f"{path}: its first key picture tells it from no other segment")
        prints[found] = index
    return prints


def number_of(index: int, published: Mapping[int, float], arrived_s: float, files: int) -> int | None:
    """Return the newest segment made of the file *index* that was published by *arrived_s*; None where none was."""
    numbers = [number for number, when_s in published.items() if file_of(number, files) == index and when_s <= arrived_s + COARSE_S]
    return max(numbers, default=None)
