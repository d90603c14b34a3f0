"""Ways past uvicorn's own for what thousands of viewers ask for.

- The ASGI extension http.response.zerocopysend: the kernel itself sends a file (sendfile(2)). So a segment costs no copy of ours, and a
  client that stalls in the middle of one holds no bytes but the kernel's. https://asgi.readthedocs.io/en/latest/extensions.html#zero-copy-send
- A head that was sent before is not made and checked again: all viewers of a stream are sent the same one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE, RequestResponseCycle

from hlsrelay.remembered import remembered

ZERO_COPY_SEND = "http.response.zerocopysend"
AT_ONCE_BYTES = 1 << 20
"""What one call may send: others get their turn then."""
_CANNOT = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""A file system that can't do it."""


class Direct:
    """Gives *app* these, where uvicorn's httptools protocol over a plain socket answers; else it changes nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = getattr(send, "__self__", None)
        if scope["type"] != "http" or not isinstance(cycle, RequestResponseCycle) or sys.platform != "linux" or scope["scheme"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and _started(cycle, message):
                return
            if message["type"] == ZERO_COPY_SEND:
                await _send_file(cycle, message["file"], message["offset"], message["count"])
                message = {"type": "http.response.body", "more_body": message.get("more_body", False)}
            await send(message)

        scope["extensions"] = {**scope.get("extensions", {}), ZERO_COPY_SEND: {}}
        await self._app(scope, receive, sending)


@remembered(1024)
def _head(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, int] | None:
    """Return what uvicorn would write, but for what it adds itself, and how long the body is; None where it has to see to that itself."""
    names = dict(headers)
    lengths = [value for name, value in headers if name == b"content-length"]
    safe = not any(HEADER_RE.search(name) or HEADER_VALUE_RE.search(value) for name, value in headers)
    if not safe or len(lengths) != 1 or b"connection" in names or b"transfer-encoding" in names:
        return None
    return STATUS_LINE[status] + b"".join(b"%b: %b\r\n" % one for one in headers), int(lengths[0])


def _started(cycle: RequestResponseCycle, message: MutableMapping[str, Any]) -> bool:
    """Send a head and return True, or leave it to uvicorn."""
    if cycle.response_started or not cycle.keep_alive or cycle.flow.write_paused or cycle.disconnected:
        return False
    if (head := _head(message["status"], tuple(message.get("headers", ())))) is None:
        return False
    cycle.response_started, cycle.waiting_for_100_continue, cycle.chunked_encoding = True, False, False
    written, cycle.expected_content_length = head
    cycle.transport.write(b"".join((written, *(b"%b: %b\r\n" % one for one in cycle.default_headers), b"\r\n")))
    return True


async def _send_file(cycle: RequestResponseCycle, file: int, offset: int, count: int) -> None:
    """Send *count* bytes of *file* behind what was written before; fewer where the client goes, or the file has no more."""
    transport = cycle.transport
    if transport.get_write_buffer_size():  # of what is before it, or of its head
        transport.set_write_buffer_limits(0)
        await cycle.flow.drain()
        transport.set_write_buffer_limits()
    own = -1
    try:
        while count and not cycle.disconnected:
            try:
                sent = os.sendfile(transport.get_extra_info("socket").fileno(), file, offset, min(count, AT_ONCE_BYTES))
            except BlockingIOError:
                # The loop lets nobody wait for its transports' sockets: so it waits for another descriptor of the same.
                own = os.dup(transport.get_extra_info("socket").fileno()) if own < 0 else own
                await _writable(own)
                continue
            except ConnectionError:  # the transport hears of it too
                transport.abort()
                return
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                chunk = os.pread(file, min(count, AT_ONCE_BYTES), offset)
                transport.write(chunk)
                await cycle.flow.drain()
                sent = len(chunk)
            if not sent:
                return
            offset, count = offset + sent, count - sent
            cycle.expected_content_length -= sent
            if count and sent == AT_ONCE_BYTES:
                await asyncio.sleep(0)
    finally:
        if own >= 0:
            os.close(own)


async def _writable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        loop.remove_writer(descriptor)
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(descriptor, tell)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)
