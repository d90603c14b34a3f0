"""Read a live source over HTTP, as a careful player would: whole answers or a named error, and never an address it may not reach.

Timeouts per read never fire on a drip, so `asyncio.timeout` stands round the whole of each request.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Self

from hlsrelay.addresses import AddressPolicy
from hlsrelay.aside import aside
from hlsrelay.asking import Asking, Came, host_of
from hlsrelay.bodies import NOT_MODIFIED, Body, declared, limited
from hlsrelay.errors import AddressRefused, ConfigError, PlaylistError, SegmentLost, TrackGone, UpstreamError
from hlsrelay.expanding import BadEncoding
from hlsrelay.hls.following import Following, is_long
from hlsrelay.hls.tracks import chosen, media_playlist_alone
from hlsrelay.hls.variables import variables_of
from hlsrelay.http1 import Head, HttpError
from hlsrelay.model import SOURCE, ByteRange, Presentation, Restart, Sink, Snapshot, Stream, Track
from hlsrelay.pace import Pace
from hlsrelay.ranges import Enough, is_part, is_whole
from hlsrelay.settings import Network
from hlsrelay.transport import TransportFactory, door_of, http_transport
from hlsrelay.unchanged import Unchanged
from hlsrelay.urls import redacted
from hlsrelay.values import replace

__all__ = ["PLAYLIST_DEADLINE_S", "SEGMENT_LIMIT_BYTES", "Answer", "TransportFactory", "Upstream", "http_transport", "wires"]

PLAYLIST_LIMIT_BYTES = 4 << 20
"""Ten thousand segments with dates and signed URLs; how many lines and segments it may have is the parser's limit."""
SEGMENT_LIMIT_BYTES = 64 << 20
PLAYLIST_DEADLINE_S = 8.0
SHORTEST_PLAYLIST_DEADLINE_S = 2.0
PLAYLIST_DEADLINE_TARGET_DURATIONS = 2.0
"""Players hold three target durations: a load that takes longer than this is better begun anew."""
AGAIN_WITHIN_S = (0.25, 0.5, 1.0, 2.0)
"""After a failed attempt the next is begun within so long, at random; the last one is for all that follow."""
STALE_CHILD_STATUS = (401, 403, 404, 410)
"""A child playlist that answers so may have moved: ask the multivariant playlist again (hls-rules B29)."""
SURVEYED_AGAIN = "source_surveyed_again"
_NOTHING: Mapping[str, str] = MappingProxyType({})


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
        self._asking: Asking | None = None
        self._stream: Stream | None = None
        self._variables: dict[str, str] = {}
        self._known: dict[str, Track] = {}
        self._tracks: dict[str, Track] = {}
        self._turns: dict[str, int] = {}
        self._last: dict[str, tuple[bytes, str, Snapshot]] = {}
        self._following: dict[str, Following] = {}
        self._unchanged: dict[str, Unchanged] = {}

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
        _, body, url = await self._whole_body(source, deadline_s)
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
        then that one has failed too. The error says what failed last and, where that was something else, before: the deadline may
        cut off an attempt that has hardly begun.
        """
        loop = asyncio.get_running_loop()
        until_s, failures, said, before = loop.time() + deadline_s, 0, "", ""
        while True:
            try:
                length = await self._once(uri, byterange, restart(), Pace(deadline_s, until_s, again=bool(failures)), most_bytes)
                if not (missing := whole()):
                    return length
                failed = f"{redacted(uri)}: {missing}"
            except _FINAL as error:
                raise SegmentLost(str(error)) from error
            except UpstreamError as error:
                failed = str(error)
            if failed != said:
                before, said = said, failed
            pause_s = random.uniform(0.0, AGAIN_WITHIN_S[min(failures, len(AGAIN_WITHIN_S) - 1)])
            left_s = until_s - loop.time()
            await asyncio.sleep(min(pause_s, max(0.0, left_s)))
            if pause_s >= left_s:
                raise SegmentLost(f"not had within {deadline_s:.1f} s: {said}" + (f"; before that: {before}" if before else ""))
            failures += 1

    async def get(self, url: str, headers: Mapping[str, str], *, most_bytes: int, deadline_s: float) -> Answer:
        """Return the whole answer for *url*, whatever its status, expanded where it is compressed. Raises UpstreamError.

        For whoever watches a server rather than relays it; an answer larger than *most_bytes* is an error.
        """
        body, heads = bytearray(), list[Head]()

        def write(piece: bytes | memoryview) -> None:
            body.extend(piece)
            if len(body) > most_bytes:
                raise _TooLarge(f"{redacted(url)}: larger than {most_bytes >> 10} KiB")

        try:
            async with asyncio.timeout(deadline_s):
                came = await self._asked(url, headers, Body(write, most_bytes), heads.append)
        except TimeoutError:
            raise UpstreamError(f"{redacted(url)}: no whole answer within {deadline_s:.0f} s") from None
        return Answer(heads[0].status, _all_said(heads[0]), bytes(body), came.url, came.redirected)

    async def aclose(self) -> None:
        """Close all connections and forget what was learnt; the next load starts anew."""
        asking, self._asking = self._asking, None
        self._stream = None
        self._variables, self._known, self._tracks, self._turns = {}, {}, {}, {}
        self._last, self._following, self._unchanged = {}, {}, {}
        if asking is not None:
            await asking.aclose()

    def _ready(self, url: str) -> Asking:
        """Return who asks; without a stream, *url* is what somebody wrote who may know where it leads. Raises HttpError."""
        if self._asking is None:
            stream = self._stream
            source = stream.source if stream else url
            policy = AddressPolicy(self._allowed, host_of(source))
            door = door_of(self._transport(policy, stream.proxy if stream else ""))
            self._asking = Asking(door, policy, source, stream.headers if stream else ())
        return self._asking

    async def _media(self, name: str, url: str, deadline_s: float) -> Snapshot:
        last, since = self._last.get(name), self._unchanged.setdefault(name, Unchanged())
        child = self._stream is not None and url != self._stream.source
        head, body, final_url = await self._whole_body(url, deadline_s, child=child, asks=since.asks(url) if last else {})
        if head.status == NOT_MODIFIED and last and last[1] == final_url:
            since.said_so()
            return last[2]
        if head.status == NOT_MODIFIED:  # it leads elsewhere now
            since.forget()
            head, body, final_url = await self._whole_body(url, deadline_s, child=child)
        if last and last[0] == body and last[1] == final_url:
            since.came(url, head.headers, new=False)
            return last[2]
        playlist = await self._read(name, body, final_url, self._variables)
        if isinstance(playlist, Presentation):
            raise PlaylistError(f"{redacted(url)} is a multivariant playlist where a media playlist should be")
        self._last[name] = (body, final_url, playlist)
        since.came(url, head.headers, new=True)
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

    async def _whole_body(
        self, url: str, deadline_s: float, *, child: bool = False, asks: Mapping[str, str] = _NOTHING
    ) -> tuple[Head, bytes, str]:
        """Return the head of a playlist's answer, its bytes, decompressed, and the URL they came from.

        *asks* are headers that may be answered with NOT_MODIFIED, and no bytes.
        """
        body, heads = bytearray(), list[Head]()

        def heard(head: Head) -> bool:
            heads.append(head)
            return head.status == NOT_MODIFIED and bool(asks)

        headers = {"accept-encoding": "gzip, deflate", **asks}
        try:
            async with asyncio.timeout(deadline_s):
                write = limited(body, PLAYLIST_LIMIT_BYTES)
                final_url = await self._get(url, headers, write, PLAYLIST_LIMIT_BYTES, child=child, heard=heard)
        except TimeoutError:
            raise UpstreamError(f"{redacted(url)}: no whole answer within {deadline_s:.0f} s") from None
        return heads[-1], bytes(body), final_url

    async def _once(self, uri: str, byterange: ByteRange | None, write: Sink, pace: Pace, most_bytes: int) -> int:
        length = 0

        def counted(piece: bytes | memoryview) -> None:
            nonlocal length
            length += len(piece)
            if length > most_bytes:
                raise _TooLarge(f"{redacted(uri)}: larger than {_size(most_bytes)}")
            pace.has(length)
            write(piece)

        try:
            async with pace.limit:
                await self._get(uri, {"accept-encoding": "identity"}, counted, most_bytes, span=byterange, begun=pace.answered)
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
        write: Sink,
        most_bytes: int,
        *,
        child: bool = False,
        span: ByteRange | None = None,
        begun: Callable[[int | None], object] = lambda _: None,
        heard: Callable[[Head], bool] = lambda _: False,
    ) -> str:
        """Write the body of *url*'s answer and return the URL it came from. Raises UpstreamError for all but a whole one.

        *begun* hears the length that the answer declares, before its body comes. *heard* hears its head, and says whether that is as it
        should be all the same.
        """
        if span:
            headers = {**headers, "range": f"bytes={span.offset}-{span.offset + span.length - 1}"}
        body = Body(write, most_bytes)

        def answered(head: Head) -> None:
            status, said = head.status, head.headers
            if heard(head):
                return
            if child and status in STALE_CHILD_STATUS:
                raise _StaleChild(f"{redacted(url)}: HTTP {status}")
            whole = is_whole(status, said)
            if not whole and not (span and is_part(status, said, span)):
                raise UpstreamError(f"{redacted(url)}: HTTP {status}" + (", of another range" if status == 206 else ""))
            if span and whole:
                if span.offset > most_bytes:
                    raise UpstreamError(f"{redacted(url)}: the whole file, where a range was asked for")
                body.cut(span)
            begun(None if span and whole else declared(head))

        try:
            return (await self._asked(url, headers, body, answered)).url
        except Enough:
            return url

    async def _asked(self, url: str, headers: Mapping[str, str], body: Body, answered: Callable[[Head], object]) -> Came:
        """Ask for *url* as the stream does, for an answer that goes into *body*; *answered* hears its head before that.

        Raises UpstreamError, with a text that says of which URL, and what *answered* and *body* raise.
        """

        def begin(head: Head) -> Sink:
            answered(head)
            return body.begin(head)

        try:
            came = await self._ready(url).get(url, headers, begin)
            body.finish()
            return came
        except (AddressRefused, BadEncoding) as error:
            raise type(error)(f"{redacted(url)}: {error}") from error
        except HttpError as error:
            raise UpstreamError(f"{redacted(url)}: {error}") from error


def wires(stream: Stream) -> tuple[object, ...]:
    """Return what of a stream's wishes decides how its source is reached: where that changes, all is learnt anew."""
    return stream.source, stream.headers, stream.proxy


class _StaleChild(UpstreamError):
    """A variant's playlist is gone where it was."""


class _TooLarge(UpstreamError):
    """More bytes than a segment may have: asking again would not change that."""


_FINAL = (AddressRefused, _TooLarge)


def _all_said(head: Head) -> dict[str, str]:
    return dict(head.headers) | ({"set-cookie": ", ".join(head.cookies)} if head.cookies else {})


def _size(limit: int) -> str:
    return f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
