"""Decompresses answers of HTTP in bounded steps, so that a bomb meets the limit before it meets the memory. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from hlsrelay.errors import UpstreamError

STEP_BYTES = 64 << 10
MOST_MEMBERS = 64
"""gzip's bodies may be several, one after the other (RFC 1952 2.2); empty ones would keep us busy for nothing."""
_GZIP_OR_ZLIB, _GZIP = zlib.MAX_WBITS | 32, zlib.MAX_WBITS | 16


class BadEncoding(UpstreamError):
    """A compressed body that can't be expanded, whole and within bounds."""


class Expander:
    """Expands one body, fed chunk by chunk. Raises BadEncoding, by *encoding* too where that was not asked for.

    *most_bytes* are as many as may be fed: no honest body grows by compression.
    """

    def __init__(self, encoding: str, most_bytes: int) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise BadEncoding(f"Content-Encoding {encoding[:32]!r} was not asked for")
        self._unzip = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)
        self._members = 1
        self._left = most_bytes
        self._begun = False

    def feed(self, chunk: bytes, write: Callable[[bytes], object]) -> None:
        """Write what *chunk* expands to."""
        self._begun = self._begun or bool(chunk)
        self._left -= len(chunk)
        if self._left < 0:
            raise BadEncoding("the compressed body is larger than what it may hold")
        while chunk:
            if self._unzip.eof:
                chunk = chunk.lstrip(b"\0")  # padding
                if not chunk:
                    return
                self._members += 1
                if self._members > MOST_MEMBERS:
                    raise BadEncoding(f"the compressed body has more than {MOST_MEMBERS} members")
                self._unzip = zlib.decompressobj(wbits=_GZIP)
            try:
                expanded = self._unzip.decompress(chunk, STEP_BYTES)
            except zlib.error as error:
                raise BadEncoding(f"the body is not compressed as it says: {error}") from error
            write(expanded)
            chunk = self._unzip.unconsumed_tail or self._unzip.unused_data

    def finish(self) -> None:
        """Raise BadEncoding where the body was cut off: zlib itself is silent about that."""
        if self._begun and not self._unzip.eof:
            raise BadEncoding("the compressed body is cut off")
