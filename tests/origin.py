"""A live source in virtual time behind respx, with faults on demand. Segments are small and their content is their name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime

import httpx
import respx

from hlsrelay.addresses import AddressPolicy
from hlsrelay.upstream import TransportFactory
from tests.playlists import URL, Listed, Playlist, at
from tests.virtual import elapse

BASE = URL.rpartition("/")[0]
Fault = Callable[[httpx.Request], httpx.Response | None]


def ts_packets(text: str) -> bytes:
    """Return bytes that pass for MPEG-TS by their sync bytes and are unlike any other segment's."""
    body = text.encode()
    packets = [b"\x47\x1f\xff\x10" + body[at : at + 184].ljust(184, b"\xff") for at in range(0, len(body), 184)]
    return b"".join(packets * 4)


@dataclass
class Origin:
    """Publishes a segment each *duration_s* since virtual time 0, *window* of them at a time."""

    duration_s: float = 4.0
    window: int = 6
    first: int = 100
    name: str = "a"
    base: str = BASE
    began_s: float = 0.0
    fault: Fault | None = None
    behind: int = 0
    """How many segments less than there are the playlist lists, as an edge does that is behind."""
    silent: bool = False
    ended: bool = False
    segment_takes_s: float = 0.0
    pdt: bool = False
    """Whether each segment has a PROGRAM-DATE-TIME, of the one programme that all origins show."""
    content: Callable[[str], bytes] = ts_packets
    """A segment's bytes by its path."""
    sent: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def newest(self) -> int:
        """Return the number of the newest segment published by now."""
        return self.newest_at(asyncio.get_running_loop().time())

    def newest_at(self, now_s: float) -> int:
        """Return the number of the newest segment published by then."""
        return self.first + self.window - 1 + int((now_s - self.began_s) / self.duration_s) - self.behind

    def restart(self, name: str, first: int = 0) -> None:
        """Begin anew with other names and numbers, and a window that grows from one segment, as an encoder does."""
        self.name, self.first = name, first
        self.began_s = asyncio.get_running_loop().time() + (self.window - 1) * self.duration_s

    def playlist(self) -> Playlist:
        """Return what is listed now."""
        newest = self.newest()
        numbers = range(max(self.first, newest - self.window + 1), newest + 1)
        items = tuple(Listed(n, f"{self.name}-{n}.ts", duration=f"{self.duration_s:.3f}", pdt=self._time(n)) for n in numbers)
        return Playlist(items, target_duration=str(round(self.duration_s)), end=self.ended)

    def _time(self, number: int) -> datetime | None:
        if not self.pdt:
            return None
        return at(self.began_s + (number - self.first - self.window) * self.duration_s)

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        if self.segment_takes_s and not request.url.path.endswith(".m3u8"):
            number = int(request.url.path.rpartition("-")[2].removesuffix(".ts"))
            await elapse(self.segment_takes_s * (1 + (number + 2) % 3))  # 103 once, 104 twice, 105 thrice
        path = str(request.url).removeprefix(self.base + "/")
        self.requests.append(path)
        if self.fault is not None and (fault := self.fault(request)) is not None:
            return fault
        if self.silent:
            return httpx.Response(503)
        if path.endswith(".m3u8"):
            return httpx.Response(200, text=self.playlist().text())
        body = self.sent.setdefault(path, self.content(path))
        return httpx.Response(200, content=body)

    def transport(self, *others: Origin) -> TransportFactory:
        """Return what an Upstream makes its transport with; *others* are reached through it too."""

        def make(_: AddressPolicy, __: str) -> httpx.AsyncBaseTransport:
            router = respx.Router(assert_all_called=False)
            for origin in (self, *others):
                router.route(url__startswith=origin.base).mock(side_effect=origin.answer)
            return Streaming(httpx.MockTransport(router.async_handler))

        return make


class Streaming(httpx.AsyncBaseTransport):
    """Gives a mock's answers as a network does: as a stream of chunks, read by whoever wants them."""

    def __init__(self, mock: httpx.MockTransport) -> None:
        self._mock = mock

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._mock.handle_async_request(request)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=_Chunks(answer.content))


class _Chunks(httpx.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for begin in range(0, len(self._body), 300):
            yield self._body[begin : begin + 300]
