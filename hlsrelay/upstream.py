"""Read a live source over HTTP, as a careful player would: whole answers or a named error, and never an address it may not reach.

The only module that imports httpx and tenacity. httpx's own connection pool leaks on cancelled requests, so its requests go
through aiohttp; each stream has a small client of its own (one cookie jar, one pool). Timeouts of both libraries are per
read and never fire on a drip, so `asyncio.timeout` stands round the whole of each request.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import httpx
import tenacity
from httpx_aiohttp import AiohttpTransport

from hlsrelay import __version__
from hlsrelay.errors import AddressRefused, ConfigError, PlaylistError, SegmentLost, UpstreamError
from hlsrelay.hls.parse import parse, variables_of
from hlsrelay.hls.tracks import chosen, media_playlist_alone
from hlsrelay.model import ByteRange, Presentation, Restart, Snapshot, Stream, Track
from hlsrelay.settings import Network
from hlsrelay.urls import SCHEMES, redacted

PLAYLIST_LIMIT_BYTES = 1 << 20
SEGMENT_LIMIT_BYTES = 64 << 20
MOST_REDIRECTS = 5
PLAYLIST_DEADLINE_S = 8.0
STALE_CHILD_STATUS = (401, 403, 404, 410)
"""A child playlist that answers so may have moved: ask the multivariant playlist again (hls-rules B29)."""

_NEVER = (IPv4Address("169.254.169.254"), IPv6Address("fd00:ec2::254"))  # cloud metadata

TransportFactory = Callable[["AddressPolicy", str], httpx.AsyncBaseTransport]
"""Makes a transport that keeps to a policy, through an HTTP proxy unless that is empty."""


class AddressPolicy:
    """Which addresses a stream's requests may reach. Checked where sockets are made, so no redirect or literal gets past it.

    Public addresses always; others only inside *allowed*, and only for a source whose own host is there: a public source never
    leads into a private network. Metadata addresses never.
    """

    def __init__(self, allowed: tuple[Network, ...] = ()) -> None:
        self._allowed = allowed
        self._private_source: bool | None = None

    def check(self, address: str) -> None:
        """Raise AddressRefused unless *address* (an IP address) may be reached."""
        ip = ip_address(address.partition("%")[0])
        if isinstance(ip, IPv6Address):
            ip = ip.ipv4_mapped or _embedded_ipv4(ip) or ip
        if ip in _NEVER:
            raise AddressRefused(f"{ip} is a metadata address: never a source")
        if ip.is_global and not ip.is_multicast:
            if self._private_source is None:
                self._private_source = False
            return
        if not any(ip in network for network in self._allowed):
            span = f"{ip}/{ip.max_prefixlen}"
            raise AddressRefused(f"{ip} is not a public address: to allow it set HLSRELAY_ALLOW_NETWORKS={span} (or a wider range)")
        if self._private_source is None:  # the first connection is to the URL that the operator wrote
            self._private_source = True
        if not self._private_source:
            raise AddressRefused(f"{ip} is not a public address, and this source is: it may not lead there")

    def make_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """aiohttp's socket factory: *info* is one getaddrinfo result."""
        family, kind, protocol, _, address = info
        try:
            self.check(address[0])
        except AddressRefused as error:
            raise _RefusedSocket(str(error)) from error
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made


class _RefusedSocket(OSError):
    """AddressRefused, in the only family that aiohttp lets through."""


def _embedded_ipv4(ip: IPv6Address) -> IPv4Address | None:
    """The IPv4 address inside NAT64 (64:ff9b::/96) and 6to4 addresses: both may lead back into a private network."""
    if ip.packed[:12] == bytes.fromhex("0064ff9b") + bytes(8):
        return IPv4Address(ip.packed[12:])
    return ip.sixtofour


@functools.cache
def _tls() -> ssl.SSLContext:
    """One context for all streams: each costs about 1 MiB."""
    return httpx.create_ssl_context(trust_env=False)


def http_transport(policy: AddressPolicy, proxy: str) -> httpx.AsyncBaseTransport:
    """Return the real transport, of one stream. Call it inside the running loop.

    Through a proxy the only address that is connected to is the proxy's, which is the operator's own: where it leads is its business.
    """
    factory = None if proxy else policy.make_socket
    connector = aiohttp.TCPConnector(ssl=_tls(), limit=8, keepalive_timeout=30, socket_factory=factory)
    session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
    return AiohttpTransport(verify=False, trust_env=False, client=session, proxy=httpx.Proxy(proxy) if proxy else None)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, of any status, header names in lower case; *url* is where it came from, after redirects if it was *redirected*."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    redirected: bool = False


class Upstream:
    """One stream's source. `load` and `fetch` may run side by side; `aclose` when done."""

    def __init__(self, allowed: tuple[Network, ...] = (), *, transport: TransportFactory = http_transport) -> None:
        self._allowed = allowed
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._stream: Stream | None = None
        self._variables: dict[str, str] = {}
        self._tracks: dict[str, Track] = {}
        self._turns: dict[str, int] = {}
        self._last: dict[str, tuple[bytes, str, Snapshot]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def survey(self, stream: Stream) -> Presentation:
        """Return what the stream's source presents, and of a multivariant one the part that is wanted. Raises UpstreamError, ConfigError.

        Requests carry the stream's headers, go through its proxy, and share one cookie jar, anew for another source.
        """
        if self._stream is None or wires(stream) != wires(self._stream):
            await self.aclose()
        self._stream = stream
        source = stream.source
        body, url = await self._body(source)
        playlist = parse(body, url)
        if isinstance(playlist, Snapshot):
            found = media_playlist_alone(source)
        else:
            found = chosen(playlist, stream.variants)
            self._variables = variables_of(body, url)
        self._tracks = {track.name: track for track in found.tracks}
        return found

    async def load(self, name: str) -> Snapshot:
        """Return the media playlist of the surveyed track *name*. Raises UpstreamError.

        An answer with the same bytes as the last one gives the same object, unparsed. Where a playlist is gone from where it was, the
        multivariant playlist is asked again (tokens expire); where it fails, the next load tries the next of its redundant copies.
        """
        track = self._tracks.get(name)
        if track is None:
            raise UpstreamError(f"the source has no track '{name}' any more")
        turn = self._turns.get(name, 0)
        try:
            return await self._media(name, track.uris[turn % len(track.uris)])
        except UpstreamError as error:
            self._turns[name] = turn + 1
            if not isinstance(error, _StaleChild) or self._stream is None:
                raise
            try:
                await self.survey(self._stream)
            except ConfigError as changed:  # the wish fitted what the source had before
                raise UpstreamError(str(changed)) from changed
            if name not in self._tracks:
                raise UpstreamError(f"the source has no track '{name}' any more") from error
            uris = self._tracks[name].uris
            return await self._media(name, uris[turn % len(uris)])

    async def fetch(self, uri: str, byterange: ByteRange | None, restart: Restart, deadline_s: float) -> int:
        """Fetch a segment whole and return its length in bytes; raises SegmentLost once *deadline_s* has passed.

        *restart* is called before each attempt and gives what its bytes go to: an attempt that failed half way leaves nothing in
        the next one.
        """
        last: list[str] = []

        async def attempt() -> int:
            try:
                return await self._once(uri, byterange, restart())
            except UpstreamError as error:
                last.append(str(error))
                raise

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, UpstreamError) and not isinstance(error, _FINAL)),
            wait=tenacity.wait_random_exponential(multiplier=0.25, max=2.0),
            reraise=True,
        )
        try:
            async with asyncio.timeout(deadline_s):
                return await retrying(attempt)
        except TimeoutError:
            raise SegmentLost(f"not had within {deadline_s:.1f} s: {last[-1] if last else 'no answer'}") from None
        except UpstreamError as error:
            raise SegmentLost(str(error)) from error

    async def get(self, url: str, headers: Mapping[str, str], *, most_bytes: int, deadline_s: float) -> Answer:
        """Return the whole answer for *url*, whatever its status, expanded where it is compressed. Raises UpstreamError.

        For whoever watches a server rather than relays it; an answer larger than *most_bytes* is an error.
        """
        if urlsplit(url).scheme not in SCHEMES:
            raise AddressRefused(f"{redacted(url)}: only http and https are fetched")
        body = bytearray()

        def write(chunk: bytes) -> None:
            body.extend(chunk)
            if len(body) > most_bytes:
                raise _TooLarge(f"{redacted(url)}: larger than {most_bytes >> 10} KiB")

        try:
            async with asyncio.timeout(deadline_s), self._ready().stream("GET", url, headers=dict(headers)) as answer:
                expand = _expander(answer.headers.get("content-encoding", "identity").strip().lower())
                await _read_whole(answer, expand, write, redacted(url))
                return Answer(answer.status_code, dict(answer.headers), bytes(body), str(answer.url), bool(answer.history))
        except TimeoutError:
            raise UpstreamError(f"{redacted(url)}: no whole answer within {deadline_s:.0f} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, zlib.error, ValueError) as error:
            if refused := _refusal(error):
                raise AddressRefused(f"{redacted(url)}: {refused}") from error
            raise UpstreamError(f"{redacted(url)}: {_told(error)}") from error

    async def aclose(self) -> None:
        """Close all connections and forget what was learnt; the next load starts anew."""
        client, self._client = self._client, None
        self._stream = None
        self._variables, self._tracks, self._turns, self._last = {}, {}, {}, {}
        if client is not None:
            await client.aclose()

    def _auth(self, url: str) -> httpx.BasicAuth | None:
        """Return the credentials of the source's URL, for its own host only: segments may lie elsewhere."""
        if self._stream is None:
            return None
        source, target = httpx.URL(self._stream.source), httpx.URL(url)
        if not source.userinfo or (source.scheme, source.netloc) != (target.scheme, target.netloc):
            return None
        return httpx.BasicAuth(source.username, source.password)

    def _ready(self) -> httpx.AsyncClient:
        if self._client is None:
            headers = {"user-agent": f"hlsrelay/{__version__}", "accept": "*/*"}
            headers |= {name.lower(): value for name, value in (self._stream.headers if self._stream else ())}
            self._client = httpx.AsyncClient(
                transport=self._transport(AddressPolicy(self._allowed), self._stream.proxy if self._stream else ""),
                headers=headers,
                timeout=httpx.Timeout(PLAYLIST_DEADLINE_S),
                follow_redirects=True,
                max_redirects=MOST_REDIRECTS,
                trust_env=False,
            )
        return self._client

    async def _media(self, name: str, url: str) -> Snapshot:
        body, final_url = await self._body(url, child=self._stream is not None and url != self._stream.source)
        last = self._last.get(name)
        if last and last[0] == body and last[1] == final_url:
            return last[2]
        playlist = parse(body, final_url, self._variables)
        if isinstance(playlist, Presentation):
            raise PlaylistError(f"{redacted(url)} is a multivariant playlist where a media playlist should be")
        self._last[name] = (body, final_url, playlist)
        return playlist

    async def _body(self, url: str, *, child: bool = False) -> tuple[bytes, str]:
        """Return a playlist's bytes, decompressed, and the URL they came from."""
        body = bytearray()
        headers = {"Accept-Encoding": "gzip, deflate"}
        try:
            async with asyncio.timeout(PLAYLIST_DEADLINE_S):
                final_url = await self._get(url, headers, _limited(body, PLAYLIST_LIMIT_BYTES), decode=True, child=child)
        except TimeoutError:
            raise UpstreamError(f"{redacted(url)}: no whole answer within {PLAYLIST_DEADLINE_S:.0f} s") from None
        return bytes(body), final_url

    async def _once(self, uri: str, byterange: ByteRange | None, write: Callable[[bytes], object]) -> int:
        headers = {"Accept-Encoding": "identity"}
        if byterange:
            headers["Range"] = f"bytes={byterange.offset}-{byterange.offset + byterange.length - 1}"
        length = 0

        def counted(chunk: bytes) -> None:
            nonlocal length
            length += len(chunk)
            if length > SEGMENT_LIMIT_BYTES:
                raise _TooLarge(f"{redacted(uri)}: larger than {SEGMENT_LIMIT_BYTES >> 20} MiB")
            write(chunk)

        await self._get(uri, headers, counted, decode=False)
        if length == 0:
            raise UpstreamError(f"{redacted(uri)}: empty")
        if byterange and length != byterange.length:
            raise UpstreamError(f"{redacted(uri)}: {length} bytes for a range of {byterange.length}")
        return length

    async def _get(self, url: str, headers: dict[str, str], write: Callable[[bytes], object], *, decode: bool, child: bool = False) -> str:
        """Write the body of *url*'s answer and return the URL it came from. Raises UpstreamError for all but a whole 200 or 206."""
        if urlsplit(url).scheme not in SCHEMES:
            raise AddressRefused(f"{redacted(url)}: only http and https are relayed")
        shown = redacted(url)
        try:
            async with self._ready().stream("GET", _without_user(url), headers=headers, auth=self._auth(url)) as answer:
                if child and answer.status_code in STALE_CHILD_STATUS:
                    raise _StaleChild(f"{shown}: HTTP {answer.status_code}")
                if answer.status_code != (206 if "Range" in headers else 200):
                    raise UpstreamError(f"{shown}: HTTP {answer.status_code}")
                encoding = answer.headers.get("content-encoding", "identity").strip().lower()
                expand = _expander(encoding) if decode or encoding not in ("", "identity") else None
                await _read_whole(answer, expand, write, shown)
                return str(answer.url)
        except httpx.TooManyRedirects:
            raise UpstreamError(f"{shown}: more than {MOST_REDIRECTS} redirects") from None
        except httpx.UnsupportedProtocol:
            raise AddressRefused(f"{shown}: redirected to something other than http or https") from None
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, zlib.error, ValueError) as error:
            if refused := _refusal(error):
                raise AddressRefused(f"{shown}: {refused}") from error
            raise UpstreamError(f"{shown}: {_told(error)}") from error


def _without_user(url: str) -> str:
    """Return *url* without user info: the cookie jar takes it for a part of the host, and URIs resolved against it would hold it."""
    found = httpx.URL(url)
    return str(found.copy_with(userinfo=b"")) if found.userinfo else url


def wires(stream: Stream) -> tuple[object, ...]:
    """Return what of a stream's wishes decides how its source is reached: where that changes, all is learnt anew."""
    return stream.source, stream.headers, stream.proxy


class _StaleChild(UpstreamError):
    """A variant's playlist is gone where it was."""


class _TooLarge(UpstreamError):
    """More bytes than a segment may have: asking again would not change that."""


_FINAL = (AddressRefused, _TooLarge)


Expander = Callable[[bytes, Callable[[bytes], object]], None]


async def _read_whole(answer: httpx.Response, expand: Expander | None, write: Callable[[bytes], object], shown: str) -> None:
    """Write an answer's body, decompressed. Raises UpstreamError where fewer or more bytes come than it declared."""
    received = 0
    async for chunk in answer.aiter_raw():
        received += len(chunk)
        if expand is None:
            write(chunk)
        else:
            expand(chunk, write)
    declared = answer.headers.get("content-length")
    if declared is not None and declared.isdecimal() and int(declared) != received:
        raise UpstreamError(f"{shown}: {received} of {declared} bytes")


def _limited(body: bytearray, limit: int) -> Callable[[bytes], None]:
    def write(chunk: bytes) -> None:
        body.extend(chunk)
        if len(body) > limit:
            raise PlaylistError(f"the playlist is larger than {limit >> 10} KiB")

    return write


def _expander(encoding: str) -> Expander | None:
    """Return what decompresses an answer in bounded steps, so that a bomb meets the limit before it meets the memory."""
    if encoding in ("", "identity"):
        return None
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UpstreamError(f"Content-Encoding {encoding!r} was not asked for")
    unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by its header

    def expand(chunk: bytes, write: Callable[[bytes], object]) -> None:
        while chunk and not unzip.eof:
            write(unzip.decompress(chunk, 64 << 10))
            chunk = unzip.unconsumed_tail

    return expand


def _refusal(error: BaseException) -> str | None:
    """Return the refusal that the connection error came from; several addresses may have been tried."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _RefusedSocket):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    text = str(error)
    return text if "not a public address" in text or "metadata address" in text else None


def _told(error: BaseException) -> str:
    """Return an error's text; aiohttp's own texts hold whole URLs, tokens included, so of those only the kind is told."""
    if isinstance(error, aiohttp.ClientError):
        return type(error).__name__
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:200]
