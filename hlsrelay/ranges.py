"""What part of a resource an HTTP answer holds (RFC 9110 14, 15.3.7), and a part cut out of a whole one. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hlsrelay.model import ByteRange, Sink

_CONTENT_RANGE = re.compile(r"\s*bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\s*", re.IGNORECASE)


class Enough(Exception):
    """All that is wanted of a body has come."""


def is_whole(status: int, headers: Mapping[str, str]) -> bool:
    """Return whether an answer is all there is, whatever was asked for: some servers know no ranges, and some know nothing else."""
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    return status in (200, 203) or (status == 206 and found is not None and found[1] == "0" and found[3] == str(int(found[2]) + 1))


def is_part(status: int, headers: Mapping[str, str], span: ByteRange) -> bool:
    """Return whether an answer is the part that was asked for; how long it is shows when it has come."""
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    return status == 206 and (found is None or int(found[1]) == span.offset)


def cut_out(write: Sink, span: ByteRange) -> Sink:
    """Return what takes a whole body, chunk by chunk, and writes the *span* of it; it raises Enough behind that."""
    at = 0

    def cut(chunk: bytes | memoryview) -> None:
        nonlocal at
        begin, end = span.offset - at, span.offset + span.length - at
        at += len(chunk)
        if piece := chunk[max(0, begin) : max(0, end)]:
            write(piece)
        if at >= span.offset + span.length:
            raise Enough

    return cut
