"""/live: playlists from the relay's memory, segments from the page cache.

The kernel sends segments where it can (direct). Else they are read in the event loop itself: they were written seconds ago and
come from memory, and a hop to a thread for each chunk costs five times what the bytes do. Published files never change under their
name, so size and time identify them.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from starlette.types import Receive, Scope, Send

from hlsrelay import storage
from hlsrelay.edge import HOP
from hlsrelay.storage import PLAYLIST
from hlsrelay.web.answers import NOSNIFF, Answer, Headers, Texts, short
from hlsrelay.web.direct import ZERO_COPY_SEND
from hlsrelay.web.negotiate import has_already, header, wanted
from hlsrelay.web.site import Site

CHUNK_BYTES = 256 * 1024
SMALL_BYTES = 64 * 1024
"""So much is written with the head as soon as it is copied."""
PATH_LIMIT = 512

TYPES = {suffix: kind.encode() for suffix, kind in storage.TYPES.items()}

CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"Accept-Ranges, Content-Length, Content-Range, Date, ETag"),
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"timing-allow-origin", b"*"),
)
PLAYLIST_CACHE = (b"cache-control", storage.PLAYLIST_CACHE.encode())
START_AGAIN = (b"retry-after", b"2")
SEGMENT_CACHE = (b"cache-control", storage.FILE_CACHE.encode())

PREFLIGHT = Answer(
    204,
    (
        (b"access-control-allow-origin", b"*"),
        (b"access-control-allow-methods", b"GET, HEAD, OPTIONS"),
        (b"access-control-allow-headers", b"Range, If-None-Match, If-Range, Cache-Control, *"),
        (b"access-control-max-age", b"86400"),
        (b"allow", b"GET, HEAD, OPTIONS"),
    ),
)
NOT_FOUND = short(404, "There is no such file here.", *CORS)
NOT_ALLOWED = short(405, "This can only be read.", (b"allow", b"GET, HEAD, OPTIONS"), *CORS)
BUSY = short(503, "This can't be read just now.", (b"retry-after", b"1"), *CORS)

ELSEWHERE = short(503, "The node that relays this stream can't be reached just now.", (b"retry-after", b"1"), *CORS)

_PATH = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)+[A-Za-z0-9_-][A-Za-z0-9._-]*")
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG, errno.ENXIO}


class Live:
    """The ASGI application below /live. A request for what isn't there leaves nothing behind."""

    def __init__(self, site: Site, texts: Texts) -> None:
        self._site = site
        self._texts = texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path_params"]["path"]
        if method == "OPTIONS":
            await PREFLIGHT(scope, receive, send)
        elif method not in ("GET", "HEAD"):
            await NOT_ALLOWED(scope, receive, send)
        elif not _is_ours(path):
            await NOT_FOUND(scope, receive, send)
        elif self._site.waits(path) and (reason := await self._site.started(path)):
            await short(503, reason, START_AGAIN, *CORS)(scope, receive, send)
        elif self._site.elsewhere(path) and not header(scope, HOP.encode()):
            if path.endswith(PLAYLIST) or not await _send_segment(f"{self._site.live_dir}/{path}", scope, receive, send, or_else=True):
                await (await self._from_owner(scope, path))(scope, receive, send)
        elif path.endswith(PLAYLIST):
            await self._playlist(scope, path)(scope, receive, send)
        else:
            file = f"{self._site.live_dir}/{path}"
            if not await _send_segment(file, scope, receive, send, or_else=self._site.is_stored(path)):
                await self._site.brought(path)
                await _send_segment(file, scope, receive, send)

    def _playlist(self, scope: Scope, path: str) -> Answer:
        body = self._site.playlist(path)
        if body is None:
            try:
                body = _read(f"{self._site.live_dir}/{path}")
            except OSError as error:
                return _failed(error)
        return self._listing(scope, path, body)

    async def _from_owner(self, scope: Scope, path: str) -> Answer:
        found = await self._site.fetched(path)
        if found.status == 404:
            return NOT_FOUND
        if found.status != 200:
            return ELSEWHERE
        if path.endswith(PLAYLIST):
            return self._listing(scope, path, found.body)
        status, headers, span = _head(path, len(found.body), found.etag, scope)
        return Answer(status, headers, found.body[span.start : span.stop])

    def _listing(self, scope: Scope, path: str, body: bytes) -> Answer:
        return self._texts.answer(scope, f"live/{path}", body, (b"content-type", TYPES[PLAYLIST]), PLAYLIST_CACHE, *CORS)


def _is_ours(path: str) -> bool:
    """Say whether *path* can be a published file: letters, digits, '.', '_', '-'; no part hidden or above; a suffix we serve."""
    return len(path) <= PATH_LIMIT and _PATH.fullmatch(path) is not None and _suffix(path) in TYPES


def _suffix(path: str) -> str:
    """Return what a path that _PATH allows ends with, from its last dot on."""
    name = path[path.rfind("/") + 1 :]
    return name[name.rfind(".") :] if "." in name else ""


def _failed(error: OSError) -> Answer:
    return NOT_FOUND if error.errno in _MISSING else BUSY


def _open(path: str) -> tuple[int, os.stat_result]:
    """Open a regular file, not through a link; the caller closes it. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # NONBLOCK: a FIFO must not stop the loop
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.ENOENT, "no regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, facts


def _read(path: str) -> bytes:
    descriptor, facts = _open(path)
    try:
        return os.pread(descriptor, facts.st_size, 0)
    finally:
        os.close(descriptor)


async def _send_segment(path: str, scope: Scope, receive: Receive, send: Send, *, or_else: bool = False) -> bool:
    """Answer with a file; returns whether that was done: not where there is none, if there is something *or_else*."""
    try:
        descriptor, facts = _open(path)
    except OSError as error:
        if not or_else:
            await _failed(error)(scope, receive, send)
        return not or_else
    try:
        # no inode: the same on every node that holds a copy with its time
        status, headers, span = _head(path, facts.st_size, f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"', scope)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        position, stop = span.start, span.stop
        if ZERO_COPY_SEND in scope.get("extensions", ()) and len(span) > SMALL_BYTES:
            await send({"type": ZERO_COPY_SEND, "file": descriptor, "offset": position, "count": len(span)})
            return True
        while stop - position > CHUNK_BYTES:
            chunk = os.pread(descriptor, CHUNK_BYTES, position)
            if not chunk:
                return True  # cut short under our hands: the connection ends, nobody takes it for complete
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            position += len(chunk)
        rest = os.pread(descriptor, stop - position, position)
    finally:
        os.close(descriptor)  # before the last, and mostly the only, wait for the client
    if len(rest) == stop - position:
        await send({"type": "http.response.body", "body": rest})
    return True


def _head(path: str, size: int, etag: str, scope: Scope) -> tuple[int, Headers, range]:
    """Return status, headers, and which bytes of the file to send."""
    common = ((b"etag", etag.encode()), (b"accept-ranges", b"bytes"), SEGMENT_CACHE, NOSNIFF, *CORS)
    if has_already(header(scope, b"if-none-match"), etag):
        return 304, common, range(0)
    span = None
    if scope["method"] == "GET" and header(scope, b"if-range") in ("", etag):
        span = wanted(header(scope, b"range"), size)
    if span is not None and not span:
        return (
            416,
            ((b"content-range", b"bytes */%d" % size), (b"content-length", b"0"), (b"cache-control", b"no-store"), NOSNIFF, *CORS),
            span,
        )
    sent = range(size) if span is None else span
    head: Headers = ((b"content-type", TYPES[_suffix(path)]), (b"content-length", b"%d" % len(sent)), *common)
    if span is not None:
        return 206, ((b"content-range", b"bytes %d-%d/%d" % (span.start, span.stop - 1, size)), *head), span
    return 200, head, sent if scope["method"] == "GET" else range(0)
