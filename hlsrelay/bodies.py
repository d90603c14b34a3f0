"""What becomes of the body of a source's answer: expanded, cut to what was asked for, no larger than it may be. Pure."""

from __future__ import annotations

from hlsrelay.errors import PlaylistError
from hlsrelay.expanding import Expander
from hlsrelay.http1 import Head
from hlsrelay.model import ByteRange, Sink
from hlsrelay.ranges import cut_out

NOT_MODIFIED = 304
_NO_COMPRESSION = {"", "identity", "none", "binary", "utf-8", "aws-chunked"}
"""What servers, object stores most of all, say in Content-Encoding where the body is as it is; browsers pass over it."""


class Body:
    """Writes an answer's body, expanded where it is compressed. Raises BadEncoding."""

    def __init__(self, write: Sink, most_bytes: int) -> None:
        self._write, self._most_bytes = write, most_bytes
        self._expander: Expander | None = None

    def cut(self, span: ByteRange) -> None:
        """Write the *span* of it only, and raise Enough behind that."""
        self._write = cut_out(self._write, span)

    def begin(self, head: Head) -> Sink:
        """Return what the answer's bytes go to."""
        if head.status == NOT_MODIFIED or not (said := head.headers.get("content-encoding")):
            return self._write
        named = (one.strip() for one in said.lower().split(","))
        encoding = ", ".join(one for one in named if one not in _NO_COMPRESSION)
        if not encoding:
            return self._write
        expander = self._expander = Expander(encoding, self._most_bytes)
        return lambda piece: expander.feed(bytes(piece), self._write)

    def finish(self) -> None:
        """All of it has come."""
        if self._expander is not None:
            self._expander.finish()


def declared(head: Head) -> int | None:
    """Return the length of an answer's body as its header says, None where that says nothing."""
    text = head.headers.get("content-length", "")
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def limited(body: bytearray, limit: int) -> Sink:
    """Return what fills *body*, and raises PlaylistError for more than *limit* bytes."""

    def write(piece: bytes | memoryview) -> None:
        body.extend(piece)
        if len(body) > limit:
            raise PlaylistError(f"the playlist is larger than {limit >> 10} KiB")

    return write
