"""Watches a live playlist, over HTTP or as files on disk, and lets the judge say what is wrong with it.

All playlists of a presentation are loaded one after the other, so that what one said was true when the next was asked; media are
fetched beside that, each segment once, and removed segments are asked for again shortly before they may go.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from hlsrelay.clock import Clock
from hlsrelay.errors import UpstreamError
from hlsrelay.judge import Finding, Judge, MediaPlaylist, Multivariant, Resource, Severity
from hlsrelay.judge.listed import Listed, unquoted
from hlsrelay.media.decrypt import can_decrypt, decrypted
from hlsrelay.media.probe import Container, MediaError, MediaInfo, probe
from hlsrelay.model import Key, Stream
from hlsrelay.places import Place, place_of
from hlsrelay.upstream import Answer, TransportFactory, http_transport
from hlsrelay.urls import redacted

FETCHES_AT_ONCE = 3
PROBED_AT_FIRST = 8
PEEKED_AT_FIRST = 64
"""Of the window that is there when the watch begins: how many of the newest segments are fetched whole, how many more are touched."""
REMOVED_PROBED = 32
"""Removed segments that are asked for again, at most at a time: a sample is enough."""
BEFORE_DUE_S = 1.0
LEAVING_WITHIN_S = 2.0
AFTER_THE_END_TARGET_DURATIONS = 2
"""A playlist that ended while it was watched is looked at for so long after: what it says then is for ever."""
MOST_PLAYLISTS = 32
MOST_BESIDE = 64
"""MAPs and keys that are kept."""

Tell = Callable[[Finding], None]


@dataclass
class Report:
    """What a watch saw, and what the judge found."""

    target: str
    watched_s: float = 0.0
    playlists: int = 0
    loads: int = 0
    segments: int = 0
    removed: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The broken rules."""
        return tuple(one for one in self.findings if one.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Advice not followed, and doubts."""
        return tuple(one for one in self.findings if one.severity is Severity.WARNING)

    @property
    def verdict(self) -> str:
        """One line."""
        said = f"{_count(len(self.errors), 'rule')} broken" if self.errors else "no rule broken"
        seen = f"{_count(self.playlists, 'playlist')} loaded {_count(self.loads, 'time')}, {_count(self.segments, 'segment')} fetched"
        again = f", {_count(self.removed, 'removed one')} again" if self.removed else ""
        return f"{said}, {_count(len(self.warnings), 'warning')}: {seen}{again} in {self.watched_s:.0f} s"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


async def check(
    target: str,
    seconds: float,
    *,
    media: bool = True,
    tell: Tell = lambda _: None,
    leaving: asyncio.Event | None = None,
    clock: Clock | None = None,
    transport: TransportFactory = http_transport,
    stream: Stream | None = None,
) -> Report:
    """Watch *target*, the URL of a playlist or a folder, for *seconds* or until *leaving* is set; *tell* hears findings as they come.

    Requests carry the headers of *stream*, whose source *target* is then, and go through its proxy. Without *media* only the first bytes
    of each segment are asked for. Raises ConfigError where *target* can be no playlist, and UpstreamError where it can't be loaded at the
    beginning.
    """
    async with place_of(target, transport, stream) as (place, roots):
        watch = _Watch(target, place, roots, media=media, tell=tell, clock=clock or Clock())
        try:
            await watch.run(seconds, leaving or asyncio.Event())
        finally:
            await watch.aclose()
        return watch.report


@dataclass
class _Watch:
    target: str
    place: Place
    roots: list[str]
    media: bool
    tell: Tell
    clock: Clock
    judge: Judge = field(default_factory=Judge)
    _asked: set[Resource] = field(default_factory=set)
    _asked_again: set[Resource] = field(default_factory=set)
    _had_beside: OrderedDict[Resource, asyncio.Task[tuple[int, bytes]]] = field(default_factory=OrderedDict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _failures: list[BaseException] = field(default_factory=list)
    _multivariant_s: dict[str, float] = field(default_factory=dict)
    _over_s: dict[str, float] = field(default_factory=dict)
    _loaded: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.report = Report(self.target)
        self._slots = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._began_s = self.clock.monotonic_s()

    def _now_s(self) -> float:
        """Return the seconds since the watch began."""
        return self.clock.monotonic_s() - self._began_s

    async def run(self, seconds: float, leaving: asyncio.Event) -> None:
        """Look again and again until the time is over, we are told to go, or there is nothing live to watch."""
        while True:
            await self._round()
            self._heard()
            self.report.watched_s = self._now_s()
            left_s = seconds - self.report.watched_s
            if left_s <= 0 or leaving.is_set() or self._nothing_lives():
                break
            try:
                async with asyncio.timeout(min(left_s, self._pause_s())):
                    await leaving.wait()
            except TimeoutError:
                pass
        self._ask_again(at_the_end=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LEAVING_WITHIN_S if leaving.is_set() else None)
        self._heard()

    async def aclose(self) -> None:
        """Leave nothing running."""
        waiting = [*self._tasks, *self._had_beside.values()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    def _heard(self) -> None:
        if self._failures:
            raise self._failures[0]
        for finding in self.judge.news():
            self.tell(finding)
        self.report.findings = self.judge.findings
        self.report.playlists = len(self._loaded)

    def _pause_s(self) -> float:
        """Often enough to see each version of the playlist, seldom enough not to be a burden."""
        playlists = [one for where in self._loaded if isinstance(one := self.judge.latest(where), MediaPlaylist)]
        shortest_s = min((one.target_duration_s for one in playlists), default=1) / 4
        return min(self.place.longest_s, max(self.place.shortest_s, shortest_s))

    def _nothing_lives(self) -> bool:
        """Return whether all playlists had ended when they were first seen, or ended so long ago that their players have seen it."""
        media = {where for where in self._loaded if isinstance(self.judge.latest(where), MediaPlaylist)}
        return bool(media) and all(self._over_s.get(where, math.inf) <= self._now_s() for where in media)

    # Playlists ------------------------------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        """Load every playlist once; a multivariant one at the pace of its target duration."""
        seen: list[str] = []
        queue = list(self.roots)
        while queue:
            where = queue.pop(0)
            if where in seen or len(seen) >= MOST_PLAYLISTS:
                continue
            seen.append(where)
            if self._is_due(where):
                await self._load(where)
            if isinstance(playlist := self.judge.latest(where), Multivariant):
                queue += [variant.uri for variant in playlist.variants]
        for where in self._loaded - set(seen):  # who follows a variant that is listed no more goes on following it
            if isinstance(self.judge.latest(where), MediaPlaylist):
                await self._load(where)
        self._ask_again(at_the_end=False)

    def _is_due(self, where: str) -> bool:
        if not isinstance(self.judge.latest(where), Multivariant):
            return True
        return self._now_s() - self._multivariant_s.get(where, -1e9) >= 2.0

    async def _load(self, where: str) -> None:
        at_s = self._now_s()
        self._multivariant_s[where] = at_s
        first = where not in self._loaded
        try:
            answer = await self.place.playlist(where)
            if answer.status != 200:
                raise _Refused(answer.status, f"{redacted(where)}: HTTP {answer.status}")
        except UpstreamError as error:
            if where in self.roots and first:
                raise
            self.judge.unavailable(where, getattr(error, "status", 0), str(error), at_s)
            return
        self.report.loads += 1
        self.judge.playlist(where, answer.body, self.place.headers(answer), at_s, base=answer.url)
        playlist = self.judge.latest(where)
        if playlist is None:
            return
        self._loaded.add(where)
        if isinstance(playlist, MediaPlaylist):
            if playlist.ended:
                self._over_s.setdefault(where, at_s if first else at_s + AFTER_THE_END_TARGET_DURATIONS * playlist.target_duration_s)
            self._fetch(self.judge.fresh(where), first=first)

    # Media ----------------------------------------------------------------------------------------------------------------------------

    def _fetch(self, fresh: Iterable[Listed], *, first: bool) -> None:
        segments = [segment for segment in fresh if not segment.gap and segment.resource not in self._asked]
        newest = segments[-PROBED_AT_FIRST:]
        if first:
            segments = segments[-PROBED_AT_FIRST - PEEKED_AT_FIRST :]
        for segment in segments:
            self._asked.add(segment.resource)
            whole = self.media and (not first or segment in newest)
            self._start(self._segment(segment, whole))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failures.append(failure)  # a mistake of ours: it ends the watch

    async def _segment(self, segment: Listed, whole: bool) -> None:
        """Fetch one segment and tell the judge."""
        async with self._slots:
            at_s = self._now_s()
            resource = segment.resource
            try:
                answer = await self.place.media(resource, whole)
            except UpstreamError as error:
                self.judge.media(resource.uri, 0, None, None, at_s, span=resource.span, broken=str(error))
                return
            self.report.segments += 1
            size, broken, info = _size(answer, resource, whole), "", None
            if answer.status in (200, 206) and not answer.body:
                broken = "empty"
            elif whole and answer.status in (200, 206):
                info, broken = await self._probed(segment, answer.body)
            self.judge.media(
                resource.uri,
                answer.status,
                size,
                info,
                at_s,
                span=resource.span,
                broken=broken,
                redirected=answer.redirected,
            )

    async def _probed(self, segment: Listed, body: bytes) -> tuple[MediaInfo | None, str]:
        """Return what a segment is, and what is wrong with it; neither where that can't be told from here."""
        init: bytes | None = None
        try:
            if segment.keys:
                body = await self._opened(segment, body)
            if segment.init:
                status, init = await self._beside(segment.init)
                if status not in (200, 206):
                    return None, f"its MAP can't be fetched: {_why(status)}"
            info = probe(body, init)
        except _OutOfReach:
            return None, ""
        except MediaError as error:
            return None, str(error)
        if segment.keys and info.container is Container.UNKNOWN:
            return None, "its KEY does not open it"
        return info, ""

    async def _opened(self, segment: Listed, body: bytes) -> bytes:
        """Return an AES-128 segment in the clear. Raises MediaError where its key is not there or is another's, _OutOfReach for DRM."""
        (attributes, *others) = map(dict, segment.keys)
        keyformat = unquoted(attributes.get("KEYFORMAT", "identity"))
        key = Key(attributes.get("METHOD", ""), attributes.get("URI"), attributes.get("IV", hex(segment.sequence)), keyformat, ())
        if others or not can_decrypt((key,)) or not key.uri or segment.init:
            raise _OutOfReach
        status, secret = await self._beside(Resource(key.uri))
        if status in (404, 410):
            raise MediaError(f"its KEY can't be fetched: {_why(status)}")
        if status != 200:  # it may be for those only who have paid
            raise _OutOfReach
        return decrypted(body, key, secret)

    async def _beside(self, resource: Resource) -> tuple[int, bytes]:
        """Return status and bytes of a MAP or key, fetched once; the status is 0 where no answer came."""
        task = self._had_beside.get(resource)
        if task is None:
            task = self._had_beside[resource] = asyncio.create_task(self._fetch_beside(resource))
            while len(self._had_beside) > MOST_BESIDE:
                self._had_beside.popitem(last=False)[1].cancel()
        return await asyncio.shield(task)

    async def _fetch_beside(self, resource: Resource) -> tuple[int, bytes]:
        try:
            answer = await self.place.media(resource, True)
        except UpstreamError:
            return 0, b""
        return answer.status, answer.body

    def _ask_again(self, *, at_the_end: bool) -> None:
        """Ask for removed segments shortly before they may go, or when the watch ends before that."""
        now_s = self._now_s()
        waiting = [one for one in self.judge.retiring(now_s) if one.resource not in self._asked_again]
        due = [one for one in waiting if at_the_end or one.due_s - now_s < 2 * BEFORE_DUE_S + self._pause_s()]
        for one in due[-REMOVED_PROBED:]:
            if one.due_s - now_s > BEFORE_DUE_S / 2:  # else the answer would come too late to mean anything
                self._asked_again.add(one.resource)
                self._start(self._removed(one.resource))

    async def _removed(self, resource: Resource) -> None:
        async with self._slots:
            at_s = self._now_s()
            try:
                answer = await self.place.media(resource, False)
            except UpstreamError:
                return  # the line may be bad: that is no proof
            self.report.removed += 1
            if answer.status not in (200, 206):
                self.judge.media(resource.uri, answer.status, None, None, at_s, span=resource.span)


class _OutOfReach(Exception):
    """What is in a segment is not for us to know."""


class _Refused(UpstreamError):
    """An answer that is no playlist."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def _why(status: int) -> str:
    return f"HTTP {status}" if status else "no answer"


def _size(answer: Answer, resource: Resource, whole: bool) -> int | None:
    """Return the segment's length in bytes, None where the answer doesn't tell."""
    if whole or (answer.status == 200 and resource.span is None):
        return len(answer.body)
    total = answer.headers.get("content-range", "").rpartition("/")[2]
    return int(total) if resource.span is None and total.isdecimal() else None
