"""Whole texts as answers: playlists, the page, the API. Digest and gzip are made once for each published body."""

from __future__ import annotations

import gzip
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hlsrelay.web.negotiate import accepts_gzip, has_already, header

Headers = Sequence[tuple[bytes, bytes]]

NO_STORE = (b"cache-control", b"no-store")
NOSNIFF = (b"x-content-type-options", b"nosniff")
KEPT_BYTES = 64 * 2**20


class Answer(Response):
    """A response that is there as a whole, with exactly these headers. It can be sent any number of times."""

    def __init__(self, status: int, headers: Headers, body: bytes = b"") -> None:
        self.status_code = status
        self.raw_headers = list(headers)
        self.body = body
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self.body})


def short(status: int, text: str, *more: tuple[bytes, bytes]) -> Answer:
    """Return one line for a person, which nobody may keep: a file that is missing now may exist in a second."""
    body = text.encode(errors="replace") + b"\n"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body)), NO_STORE, NOSNIFF, *more]
    return Answer(status, headers, body)


class _Text:
    """A body, its digest, and its gzip once somebody asked for that."""

    __slots__ = ("_gzipped", "body", "digest")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.digest = hashlib.blake2b(body, digest_size=12).hexdigest()
        self._gzipped: bytes | None = None

    def gzipped(self) -> bytes:
        if self._gzipped is None:
            self._gzipped = gzip.compress(self.body, 6, mtime=0)
        return self._gzipped


class Texts:
    """Answers texts by name, and remembers the latest of each; the longest unused go first when they outgrow KEPT_BYTES."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._limit_bytes = kept_bytes
        self._kept: OrderedDict[str, _Text] = OrderedDict()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def answer(self, scope: Scope, name: str, body: bytes, *headers: tuple[bytes, bytes]) -> Answer:
        """Return *body* as this client wants it: gzip, plain, or 304. The two encodings have ETags of their own (RFC 9110 8.8.3.3)."""
        text = self._text(name, body)
        zipped = accepts_gzip(header(scope, b"accept-encoding"))
        etag = f'"{text.digest}-gz"' if zipped else f'"{text.digest}"'
        fixed = (*headers, (b"etag", etag.encode()), (b"vary", b"Accept-Encoding"), NOSNIFF)
        if has_already(header(scope, b"if-none-match"), etag):
            return Answer(304, fixed)
        if not zipped:
            return Answer(200, (*fixed, (b"content-length", b"%d" % len(body))), body)
        packed = text.gzipped()
        return Answer(200, (*fixed, (b"content-encoding", b"gzip"), (b"content-length", b"%d" % len(packed))), packed)

    def _text(self, name: str, body: bytes) -> _Text:
        text = self._kept.pop(name, None)
        if text is not None and (text.body is body or text.body == body):
            self._kept[name] = text
            return text
        self._size_bytes += len(body) - (len(text.body) if text else 0)
        self._kept[name] = text = _Text(body)
        while self._size_bytes > self._limit_bytes and len(self._kept) > 1:
            self._size_bytes -= len(self._kept.popitem(last=False)[1].body)
        return text
