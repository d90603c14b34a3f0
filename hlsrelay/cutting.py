"""What numbering has to know of the media itself: whether a segment is the one relayed before, and where one that is too long is cut."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from hlsrelay.desk import Desk
from hlsrelay.errors import SegmentLost
from hlsrelay.hls.advance import advance
from hlsrelay.hls.likeness import ALIKE
from hlsrelay.hls.numbering import Step, content_key, noted
from hlsrelay.hls.window import round_half_up
from hlsrelay.media.split import split_freely
from hlsrelay.media.ts import first_tables
from hlsrelay.media.whole import cut_off
from hlsrelay.model import InitSection, Position, Segment, Sink, Slice, Snapshot, Stream

LOOKED_AT_BYTES = 64 << 10
TOLD_APART_BYTES = 16 << 10
SEARCHED_PACKETS = 400
AT_THE_BEGINNING = 8
"""PAT and PMT among so many packets of a transport stream begin it."""


class Digest:
    """Tells contents apart by their first bytes and their length: time stamps are among the first."""

    def __init__(self) -> None:
        self.head = b""
        """The first LOOKED_AT_BYTES."""
        self._length = 0
        self._told: tuple[int, str] = 0, ""

    def update(self, piece: bytes | memoryview) -> None:
        """Take the next bytes in."""
        self._length += len(piece)
        if (left := LOOKED_AT_BYTES - len(self.head)) > 0:
            self.head += piece[:left]

    @property
    def text(self) -> str:
        """The digest of what was taken in."""
        if self._told[0] == self._length and self._told[1]:
            return self._told[1]
        alike = ALIKE if self._length == len(self.head) and _is_webvtt(self.head) and b"-->" not in self.head else ""
        begins = hashlib.blake2b(memoryview(self.head)[:TOLD_APART_BYTES], digest_size=12).hexdigest()
        self._told = self._length, f"{alike}{self._length:x}-{begins}"
        return self._told[1]


class Cutting:
    """Numbers what a track's playlist brings, and fetches what has to be looked into for that. Both are rare."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._first_number = None if desk.progress else desk.ledger.first_free_number()
        self._whole = False
        self.repairs: tuple[str, ...] = ()
        """What was repaired in the last step, beside what numbering repairs."""

    async def step(self, position: Position | None, snapshot: Snapshot, stream: Stream) -> Step:
        """Return what *snapshot* brings. No answer outlives the step: a name may be used again, and what failed may succeed."""
        desk = self._desk
        digests: dict[str, str] = {}
        now = desk.tools.clock.utc_now()
        if position:
            position = noted(position, desk.digests)

        def look(slices: Mapping[int, tuple[Slice, ...]] | None = None) -> Step:
            agreed, first = desk.agreement.known_to(desk.track.name), self._first_number
            return advance(position, snapshot, stream, now, first_number=first, agreed=agreed, digests=digests, slices=slices)

        self.repairs = ()
        step = look()
        while step.question and content_key(step.question) not in digests:
            digests[content_key(step.question)] = await self._digest(step.question, snapshot)
            step = look()
        if slices := await self._slices(step, snapshot):
            step = look(slices)
        return step

    async def _digest(self, segment: Segment, snapshot: Snapshot) -> str:
        """Return the digest of a listed segment's content; an empty one where it can't be had."""
        body = Digest()

        def restart() -> Sink:
            nonlocal body
            body = Digest()
            return body.update

        try:
            await self._desk.tools.upstream.fetch(segment.uri, segment.byterange, restart, snapshot.target_duration_s)
        except SegmentLost:
            return ""
        return body.text

    async def _slices(self, step: Step, snapshot: Snapshot) -> dict[int, tuple[Slice, ...]]:
        """Return, by the source's numbers, how the new segments that are too long for our target duration are cut."""
        target_s = self._desk.agreement.target_duration_s
        found: dict[int, tuple[Slice, ...]] = {}
        for segment in {one.segment.sequence: one.segment for one in step.fresh}.values():
            if not target_s or round_half_up(segment.duration_s) <= target_s:
                continue
            if slices := await self._cut(segment, target_s, snapshot):
                self.repairs = ("long_segment_cut",)
                found[segment.sequence] = slices
            else:
                self.repairs = (*self.repairs, "target_duration_grew")
        return found

    async def _cut(self, segment: Segment, target_s: int, snapshot: Snapshot) -> tuple[Slice, ...]:
        """Return the slices of a segment, of a file that waits to be cut; empty where it can only be listed as it is."""
        pieces = math.ceil(segment.duration_s / target_s)
        gaps = (Slice("", 0, 0, segment.duration_s / pieces),) * pieces
        if segment.gap:
            return gaps
        if segment.keys or snapshot.i_frames_only or self._whole:
            return ()
        deadline_s = max(2.0 * target_s, 6.0)
        try:
            data = await self._fetched(InitSection(segment.uri, segment.byterange), deadline_s)
            if _is_webvtt(data):
                bounds = [(0, len(data), segment.duration_s / pieces)] * pieces  # players pass over cues that they have
            else:
                init = await self._fetched(segment.init, deadline_s) if segment.init else None
                found = split_freely(data, init, segment.duration_s, target_s + 0.5) or ()
                bounds = [(one.start, one.end, one.duration_s) for one in found]
        except SegmentLost:
            return gaps
        if not bounds:
            self._whole = True  # as with packed audio: that of the next ones would be fetched for nothing
            return ()
        path = f"long-{self._desk.track.name}-{segment.sequence}"
        try:
            self._desk.tools.storage.temp(path).write_bytes(data)
        except OSError:
            return gaps
        head = first_tables(data, SEARCHED_PACKETS)  # what begins without them could not be joined (RFC 8216 3.2)
        return tuple(
            Slice(path, start, end, length_s, b"" if first_tables(data[start:end], AT_THE_BEGINNING) else head)
            for start, end, length_s in bounds
        )

    async def _fetched(self, what: InitSection, deadline_s: float) -> bytes:
        body = bytearray()

        def restart() -> Sink:
            body.clear()
            return body.extend

        def missing() -> str:
            return cut_off(lambda at, count: bytes(body[at : at + count]), len(body))

        await self._desk.tools.upstream.fetch(what.uri, what.byterange, restart, deadline_s, whole=missing)
        return bytes(body)


def _is_webvtt(data: bytes | bytearray) -> bool:
    return data.lstrip(b"\xef\xbb\xbf").startswith(b"WEBVTT")
