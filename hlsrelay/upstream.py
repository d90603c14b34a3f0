"""Read a live source over HTTP, as a careful player would: whole answers or a named error, and never an address it may not reach.

The only module, beside `transport`, that imports httpx. Timeouts of the HTTP libraries are per read and never fire on a drip, so
`asyncio.timeout` stands round the whole of each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Self
from urllib.parse import urlsplit

import aiohttp
import httpx
import tenacity

from hlsrelay import __version__
from hlsrelay.addresses import AddressPolicy, RefusedSocket
from hlsrelay.aside import aside
from hlsrelay.cookies import BoundedJar
from hlsrelay.errors import AddressRefused, ConfigError, PlaylistError, SegmentLost, TrackGone, UpstreamError
from hlsrelay.expanding import BadEncoding, Expander
from hlsrelay.hls.following import Following, is_long
from hlsrelay.hls.tracks import chosen, media_playlist_alone
from hlsrelay.hls.variables import variables_of
from hlsrelay.model import SOURCE, ByteRange, Presentation, Restart, Snapshot, Stream, Track
from hlsrelay.ranges import Enough, cut_out, is_part, is_whole
from hlsrelay.settings import Network
from hlsrelay.transport import Guarded, TransportFactory, http_transport
from hlsrelay.urls import SCHEMES, redacted

__all__ = ["PLAYLIST_DEADLINE_S", "SEGMENT_LIMIT_BYTES", "Answer", "TransportFactory", "Upstream", "http_transport", "wires"]

PLAYLIST_LIMIT_BYTES = 4 << 20
"""Ten thousand segments with dates and signed URLs; how many lines and segments it may have is the parser's limit."""
SEGMENT_LIMIT_BYTES = 64 << 20
MOST_REDIRECTS = 5
PLAYLIST_DEADLINE_S = 8.0
SHORTEST_PLAYLIST_DEADLINE_S = 2.0
PLAYLIST_DEADLINE_TARGET_DURATIONS = 2.0
"""Players hold three target durations: a load that takes longer than this is better begun anew."""
STALE_CHILD_STATUS = (401, 403, 404, 410)
"""A child playlist that answers so may have moved: ask the multivariant playlist again (hls-rules B29)."""
SURVEYED_AGAIN = "source_surveyed_again"
_NO_COMPRESSION = {"", "identity", "none", "binary", "utf-8", "aws-chunked"}
"""What servers, object stores most of all, say in Content-Encoding where the body is as it is; browsers pass over it."""


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
        self._known: dict[str, Track] = {}
        self._tracks: dict[str, Track] = {}
        self._turns: dict[str, int] = {}
        self._last: dict[str, tuple[bytes, str, Snapshot]] = {}
        self._following: dict[str, Following] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def survey(self, stream: Stream, known: Iterable[Track] = ()) -> Presentation:
        """Return what the stream's source presents, and of a multivariant one the part that is wanted. Raises UpstreamError, ConfigError.

        What is among the tracks *known* from before keeps its name. Requests carry the stream's headers, go through its proxy, and share
        one cookie jar, anew for another source.
        """
        if self._stream is None or wires(stream) != wires(self._stream):
            await self.aclose()
        self._known = {track.name: track for track in known}
        return await self._surveyed(stream, PLAYLIST_DEADLINE_S)

    async def _surveyed(self, stream: Stream, deadline_s: float) -> Presentation:
        self._stream = stream
        source = stream.source
        body, url = await self._body(source, deadline_s)
        playlist = await self._read(SOURCE, body, url, {})
        if isinstance(playlist, Snapshot):
            found = media_playlist_alone(source)
        else:
            found = chosen(playlist, stream.variants, (self._known | self._tracks).values())
            self._variables = variables_of(body, url)
        self._tracks = {track.name: track for track in found.tracks}
        return found

    async def load(self, name: str) -> Snapshot:
        """Return the media playlist of the surveyed track *name*. Raises UpstreamError.

        An answer with the same bytes as the last one gives the same object, unparsed. Where a playlist is gone from where it was, the
        multivariant playlist is asked again (tokens expire), which is a repair; where it fails, the next load tries the next of its
        redundant copies.
        """
        track = self._tracks.get(name)
        if track is None:
            raise TrackGone(f"the source has no track '{name}' any more")
        turn, deadline_s = self._turns.get(name, 0), self._patience_s(name)
        try:
            return await self._media(name, track.uris[turn % len(track.uris)], deadline_s)
        except UpstreamError as error:
            self._turns[name] = turn + 1
            if not isinstance(error, _StaleChild) or self._stream is None:
                raise
            try:
                await self._surveyed(self._stream, deadline_s)
            except ConfigError as changed:  # the wish fitted what the source had before
                raise UpstreamError(str(changed)) from changed
            if name not in self._tracks:
                raise TrackGone(f"the source has no track '{name}' any more") from error
            uris = self._tracks[name].uris
            snapshot = await self._media(name, uris[turn % len(uris)], deadline_s)
            return replace(snapshot, repairs=(*snapshot.repairs, SURVEYED_AGAIN))

    def _patience_s(self, name: str) -> float:
        """Return how long a load of the track *name* may take: players of short segments have little to live on."""
        last = self._last.get(name)
        if last is None:
            return PLAYLIST_DEADLINE_S
        patience_s = PLAYLIST_DEADLINE_TARGET_DURATIONS * last[2].target_duration_s
        return min(PLAYLIST_DEADLINE_S, max(SHORTEST_PLAYLIST_DEADLINE_S, patience_s))

    async def fetch(
        self,
        uri: str,
        byterange: ByteRange | None,
        restart: Restart,
        deadline_s: float,
        *,
        whole: Callable[[], str] = str,
        most_bytes: int = SEGMENT_LIMIT_BYTES,
    ) -> int:
        """Fetch a segment whole and return its length in bytes; raises SegmentLost once *deadline_s* has passed.

        *restart* is called before each attempt and gives what its bytes go to: an attempt that failed half way leaves nothing in
        the next one. *whole* is called after an attempt that brought what was declared, and names what is missing all the same:
        then that one has failed too.
        """
        last: list[str] = []
        until_s = asyncio.get_running_loop().time() + deadline_s

        async def attempt() -> int:
            try:
                length = await self._once(uri, byterange, restart(), _Pace(deadline_s, until_s, again=bool(last)), most_bytes)
                if missing := whole():
                    raise UpstreamError(f"{redacted(uri)}: {missing}")
                return length
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
        body = bytearray()

        def write(chunk: bytes) -> None:
            body.extend(chunk)
            if len(body) > most_bytes:
                raise _TooLarge(f"{redacted(url)}: larger than {most_bytes >> 10} KiB")

        try:
            async with asyncio.timeout(deadline_s), self._asked(url, headers) as answer:
                await _read_whole(answer, write, redacted(url), most_bytes)
                return Answer(answer.status_code, dict(answer.headers), bytes(body), str(answer.url), bool(answer.history))
        except TimeoutError:
            raise UpstreamError(f"{redacted(url)}: no whole answer within {deadline_s:.0f} s") from None

    async def aclose(self) -> None:
        """Close all connections and forget what was learnt; the next load starts anew."""
        client, self._client = self._client, None
        self._stream = None
        self._variables, self._known, self._tracks, self._turns, self._last, self._following = {}, {}, {}, {}, {}, {}
        if client is not None:
            await client.aclose()

    def _ready(self, url: str) -> httpx.AsyncClient:
        """Return the client; without a stream, *url* is what somebody wrote who may know where it leads."""
        if self._client is None:
            stream, jar = self._stream, BoundedJar()
            source = httpx.URL(stream.source if stream else url)
            policy = AddressPolicy(self._allowed, source.raw_host.decode())
            transport = self._transport(policy, stream.proxy if stream else "")
            self._client = httpx.AsyncClient(
                transport=Guarded(transport, policy, jar, source, stream.headers if stream else ()),
                headers={"user-agent": f"hlsrelay/{__version__}", "accept": "*/*"},
                cookies=jar,
                timeout=httpx.Timeout(None, connect=PLAYLIST_DEADLINE_S),  # for each read none: see transport.open_transport
                follow_redirects=True,
                max_redirects=MOST_REDIRECTS,
                trust_env=False,
            )
        return self._client

    async def _media(self, name: str, url: str, deadline_s: float) -> Snapshot:
        body, final_url = await self._body(url, deadline_s, child=self._stream is not None and url != self._stream.source)
        last = self._last.get(name)
        if last and last[0] == body and last[1] == final_url:
            return last[2]
        playlist = await self._read(name, body, final_url, self._variables)
        if isinstance(playlist, Presentation):
            raise PlaylistError(f"{redacted(url)} is a multivariant playlist where a media playlist should be")
        self._last[name] = (body, final_url, playlist)
        return playlist

    async def _read(self, name: str, body: bytes, url: str, variables: Mapping[str, str]) -> Snapshot | Presentation:
        """Return the playlist that *body* holds: what is new of one that goes on, the whole of another; a long one aside."""
        following = self._following.setdefault(name, Following())
        if (snapshot := following.read_on(body, url)) is not None:
            return snapshot
        anew = partial(following.read_anew, body, url, variables)
        playlist, following = await aside(anew) if is_long(body) else anew()
        if isinstance(playlist, Snapshot):
            self._following[name] = following
        return playlist

    async def _body(self, url: str, deadline_s: float, *, child: bool = False) -> tuple[bytes, str]:
        """Return a playlist's bytes, decompressed, and the URL they came from."""
        body = bytearray()
        headers = {"Accept-Encoding": "gzip, deflate"}
        try:
            async with asyncio.timeout(deadline_s):
                final_url = await self._get(url, headers, _limited(body, PLAYLIST_LIMIT_BYTES), PLAYLIST_LIMIT_BYTES, child=child)
        except TimeoutError:
            raise UpstreamError(f"{redacted(url)}: no whole answer within {deadline_s:.0f} s") from None
        return bytes(body), final_url

    async def _once(self, uri: str, byterange: ByteRange | None, write: Callable[[bytes], object], pace: _Pace, most_bytes: int) -> int:
        headers = {"Accept-Encoding": "identity"}
        length = 0

        def counted(chunk: bytes) -> None:
            nonlocal length
            length += len(chunk)
            if length > most_bytes:
                raise _TooLarge(f"{redacted(uri)}: larger than {_size(most_bytes)}")
            pace.has(length)
            write(chunk)

        try:
            async with pace.limit:
                await self._get(uri, headers, counted, most_bytes, span=byterange, answered=pace.answered)
        except TimeoutError:
            raise UpstreamError(f"{redacted(uri)}: too slow, {length} bytes so far") from None
        if length == 0:
            raise UpstreamError(f"{redacted(uri)}: empty")
        if byterange and length != byterange.length:
            raise UpstreamError(f"{redacted(uri)}: {length} bytes for a range of {byterange.length}")
        return length

    async def _get(
        self,
        url: str,
        headers: Mapping[str, str],
        write: Callable[[bytes], object],
        most_bytes: int,
        *,
        child: bool = False,
        span: ByteRange | None = None,
        answered: Callable[[int | None], object] | None = None,
    ) -> str:
        """Write the body of *url*'s answer and return the URL it came from. Raises UpstreamError for all but a whole one.

        *answered* hears the length that the answer declares, before its body comes.
        """
        shown = redacted(url)
        if span:
            headers = {**headers, "Range": f"bytes={span.offset}-{span.offset + span.length - 1}"}
        async with self._asked(url, headers) as answer:
            if child and answer.status_code in STALE_CHILD_STATUS:
                raise _StaleChild(f"{shown}: HTTP {answer.status_code}")
            status, said = answer.status_code, answer.headers
            whole = is_whole(status, said)
            if not whole and not (span and is_part(status, said, span)):
                raise UpstreamError(f"{shown}: HTTP {status}" + (", of another range" if status == 206 else ""))
            if span and whole:
                if span.offset > most_bytes:
                    raise UpstreamError(f"{shown}: the whole file, where a range was asked for")
                write = cut_out(write, span)
            if answered:
                answered(None if span and whole else _declared(answer))
            with suppress(Enough):
                await _read_whole(answer, write, shown, most_bytes)
            return _without_user(str(answer.url))

    @asynccontextmanager
    async def _asked(self, url: str, headers: Mapping[str, str]) -> AsyncGenerator[httpx.Response, None]:
        """Give the answer for *url*, its body still to be read. Raises UpstreamError for whatever goes wrong in the block with HTTP."""
        shown = redacted(url)
        try:
            if urlsplit(url).scheme not in SCHEMES:
                raise AddressRefused("only http and https are relayed")
            async with self._ready(url).stream("GET", _without_user(url), headers=dict(headers)) as answer:
                yield answer
        except (AddressRefused, BadEncoding) as error:
            raise type(error)(f"{shown}: {error}") from error
        except httpx.TooManyRedirects:
            raise UpstreamError(f"{shown}: more than {MOST_REDIRECTS} redirects") from None
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, ValueError) as error:
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


class _Pace:
    """Ends an attempt that eats the deadline for nothing: asking again may give the same at once.

    A body that would be whole by the deadline at the rate that it comes at goes on, and so does one that declares no length and keeps
    to LEAST_BYTES_PER_S; else it gets BODY_SHARE of the deadline. Servers may think for long before they answer: that ends only in
    time for another attempt, the first time.
    """

    ANSWER_SHARE, BODY_SHARE = 0.8, 1 / 3
    SHORTEST_S = 1.5
    LEAST_BYTES_PER_S = 1024.0

    def __init__(self, deadline_s: float, until_s: float, *, again: bool) -> None:
        self._until_s = until_s
        self._grace_s = max(self.SHORTEST_S, deadline_s * self.BODY_SHARE)
        self._declared: int | None = None
        self._first: tuple[float, int] | None = None
        self.limit = asyncio.timeout(None if again else deadline_s * self.ANSWER_SHARE)

    def answered(self, declared: int | None) -> None:
        """The answer has begun, and declares that many bytes."""
        self._declared = declared
        self.limit.reschedule(asyncio.get_running_loop().time() + self._grace_s)

    def has(self, length: int) -> None:
        """So many bytes have come."""
        now_s = asyncio.get_running_loop().time()
        if self._first is None:
            self._first = now_s, length
            self._go_on(now_s, self._grace_s / 2)
            return
        began_s, begun_with = self._first
        came, took_s = length - begun_with, now_s - began_s
        if self._declared is None:
            well = came >= self.LEAST_BYTES_PER_S * took_s
        else:
            well = (self._declared - length) * took_s <= came * (self._until_s - now_s)
        if well:
            self._go_on(now_s, self._grace_s)
        if took_s >= self._grace_s:
            self._first = now_s, length  # what went well before says nothing of now

    def _go_on(self, now_s: float, for_s: float) -> None:
        if now_s + 0.75 * for_s > (self.limit.when() or 0.0):  # not for each chunk: timers cost
            self.limit.reschedule(now_s + for_s)


async def _read_whole(answer: httpx.Response, write: Callable[[bytes], object], shown: str, most_bytes: int) -> None:
    """Write an answer's body, expanded. Raises UpstreamError where fewer or more bytes come than it declared, or compression ends early."""
    named = (one.strip() for one in answer.headers.get("content-encoding", "").lower().split(","))
    encoding = ", ".join(one for one in named if one not in _NO_COMPRESSION)
    expander = Expander(encoding, most_bytes) if encoding else None
    received = 0
    async for chunk in answer.aiter_raw():
        received += len(chunk)
        if expander is None:
            write(chunk)
        else:
            expander.feed(chunk, write)
    declared = _declared(answer)
    if declared not in (None, received):
        raise UpstreamError(f"{shown}: {received} of {declared} bytes")
    if expander is not None:
        expander.finish()


def _declared(answer: httpx.Response) -> int | None:
    """Return the length of an answer's body as its header says, None where that says nothing."""
    text = answer.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


def _size(limit: int) -> str:
    return f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"


def _limited(body: bytearray, limit: int) -> Callable[[bytes], None]:
    def write(chunk: bytes) -> None:
        body.extend(chunk)
        if len(body) > limit:
            raise PlaylistError(f"the playlist is larger than {limit >> 10} KiB")

    return write


def _refusal(error: BaseException) -> str | None:
    """Return the refusal that the connection error came from; several addresses may have been tried."""
    seen: BaseException | None = error
    passed: set[int] = set()  # chains of exceptions can be rings
    while seen is not None and id(seen) not in passed:
        if isinstance(seen, RefusedSocket):
            return str(seen)
        passed.add(id(seen))
        seen = seen.__cause__ or seen.__context__
    text = str(error)
    return text if "not a public address" in text or "metadata address" in text else None


def _told(error: BaseException) -> str:
    """Return an error's text; aiohttp's own texts hold whole URLs, tokens included, so of those only the kind is told."""
    for one in (error, error.__cause__):
        if isinstance(one, aiohttp.ClientResponseError | aiohttp.InvalidURL) or (one is error and isinstance(one, aiohttp.ClientError)):
            return type(one).__name__
    text = str(error) or type(error).__name__
    return "".join(char if char.isprintable() else "?" for char in text[:200])
