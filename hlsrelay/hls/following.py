"""Read a live media playlist load by load: what it repeats of the load before is not read again. Pure.

Laws:
  1. What `read_on` returns is what `parse` would: it may only ever decline.
  2. A load costs what its head and its new lines cost, however much it lists; comparing bytes, and copying references, aside.

A live playlist is the one before, less some blocks (hls.reader) at the beginning, more some at the end, with another head. So the head
down to the first URI line is read; from there on the bytes have to be those that followed the same segment before, up to the last
segment, or some before it (low-latency servers take a segment's parts away as it ages); the rest is read, with in force what was
in force there. Where anything else has changed, or a playlist says what can't be gone on from, it is read anew.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.dateranges import MOST_DATERANGES
from hlsrelay.hls.parse import MOST_LINES, MOST_SEGMENTS, built, cleaned, counted_back, ends_twice, finished, read, rounded, told_times
from hlsrelay.hls.reader import InForce, Reader, guess_s
from hlsrelay.hls.run import Run
from hlsrelay.hls.spelling import respelt
from hlsrelay.model import ByteRange, Presentation, Segment, Snapshot
from hlsrelay.values import replace

FEWEST_SEGMENTS = 4
"""What is read each time, head and last block, is no less than a shorter playlist."""
READ_AGAIN = (0, 1, 9)
"""Blocks at the end that are read again: the last may have been cut off, and those with parts lose them."""
LARGEST_PIECE_BYTES = 64 << 10
"""Head and rest may be this long; reading a longer one would hold up all other streams (`is_long`)."""
MOST_RETOLD = 500
"""Segments whose times are told again, where the head's has changed."""
LONG_LINES = 1000

Place = str | tuple[str, ByteRange]


def is_long(body: bytes) -> bool:
    """Return whether reading *body* anew takes more than some 15 ms: that is for a thread of its own."""
    return body.count(b"\n") > LONG_LINES


class Following:
    """One media playlist as it was read last."""

    def __init__(self) -> None:
        self._blocks: _Blocks | None = None
        self._last: Snapshot | None = None

    def read_on(self, body: bytes, url: str) -> Snapshot | None:
        """Return the playlist that *body*, loaded from *url*, holds, if it goes on from the one before; None: it has to be read anew."""
        blocks, self._blocks = self._blocks, None
        if blocks is None or blocks.url != url:
            return None
        try:
            snapshot = blocks.moved_on(body)
        except (PlaylistError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
            return None  # to read it anew says what is wrong with it
        if snapshot is not None:
            self._blocks, self._last = blocks, snapshot
        return snapshot

    def read_anew(self, body: bytes, url: str, variables: Mapping[str, str]) -> tuple[Snapshot | Presentation, Following]:
        """Return what *body*, loaded from *url*, holds, and what goes on from there; see `parse.parse`. Changes nothing: a thread may."""
        reader, after = Reader(url, self._last), Following()
        playlist, listed = read(body, reader, variables)
        if isinstance(playlist, Snapshot):
            after._last = playlist
            after._blocks = _blocks(playlist, body, reader, listed)
        return playlist, after


@dataclass
class _Blocks:
    """The blocks of a playlist, by what it takes to go on behind each.

    *ends* and *lines* tell where they end, in bytes and in lines; those of *body* count from *began* on. *dated* are the sequence numbers
    of the segments that tell their times themselves; *lengths* counts the segments of a length. *repairs* and *dateranges* come with the
    sequence number of the segment that they stand before.
    """

    url: str
    body: bytes
    segments: Run
    began: int
    ends: deque[int]
    lines: deque[int]
    in_force: deque[InForce]
    dated: deque[int]
    places: set[Place]
    lengths: Counter[int]
    repairs: deque[tuple[int, str]]
    dateranges: list[tuple[int, str]]

    def moved_on(self, body: bytes) -> Snapshot | None:
        """Return the playlist of *body*, whose blocks these are now; None, and they are nobody's, where it does not go on from them."""
        cut = _head_length(body)
        if not cut or not body.startswith(b"#EXTM3U"):
            return None
        reader, head = Reader(self.url), _lines(body[:cut])
        reader.guess_s = guess_s(head)
        listed = reader.listed_on(head, whole=True)
        drop = reader.media_sequence - self.segments[0].sequence
        if len(listed) != 1 or not 0 <= drop < len(self.segments) - 2 or reader.in_force() != self.in_force[drop]:
            return None
        last = self._same_up_to(body, cut, drop)
        rest = body[cut + self.ends[last] - self.ends[drop] :]
        if last == drop or len(rest) > LARGEST_PIECE_BYTES:
            return None
        whole = body.endswith(b"\n")
        reader.pass_over(last - drop, self.in_force[last], None if whole else self._uri_line(last))
        lines = _lines(rest)
        added = reader.listed_on(lines, whole=whole)
        if any(line.startswith("#EXT-X-STREAM-INF") for line in (*head, *lines)):
            return None
        if reader.once or len(head) + self.lines[last] - self.lines[drop] + len(lines) - 2 > MOST_LINES:
            return None
        fresh = built(added, reader, self.segments[last])
        opens, was = built(listed, reader, None)[0], self.segments[drop]
        era = reader.discontinuity_sequence + opens.discontinuity
        if (opens.uri, opens.byterange, opens.duration_s, era) != (was.uri, was.byterange, was.duration_s, was.era):
            return None
        if not self._forgot(drop, last, fresh):
            return None
        told = self._told(opens, era, drop, last, fresh)
        if told is None or ends_twice(told[-2:]) or len(told) > MOST_SEGMENTS or 0 <= reader.ended_at < len(told):
            return None
        self._learnt(fresh, [raw["in_force"] for raw in added], rest)
        self.began, self.body, self.segments = self.ends[0] - cut, body, told
        if len(self.ends) != len(told) or any(block >= len(told) for block, _ in reader.repairs):
            return None
        return self._finished(told[0], reader)

    def _same_up_to(self, body: bytes, cut: int, drop: int) -> int:
        """Return up to which block *body* says the same behind *cut* as was said behind the block *drop*; that one where nothing."""
        begin, before = self.ends[drop] - self.began, memoryview(self.body)  # which copies nothing
        for again in READ_AGAIN if self.body.endswith(b"\n") else READ_AGAIN[1:]:
            last = len(self.segments) - 1 - again
            if last > drop and body.startswith(before[begin : self.ends[last] - self.began], cut):
                return last
        return drop

    def _uri_line(self, block: int) -> str:
        """Return the URI line of a block."""
        end = self.ends[block] - self.began - 1
        return _lines(self.body[self.body.rfind(b"\n", 0, end) + 1 : end])[0]

    def _forgot(self, drop: int, last: int, fresh: list[Segment]) -> bool:
        """Forget the *drop* blocks that have left and those behind *last*, and know *fresh*; False where the latter are not told apart."""
        for one in (*self.segments[:drop], *self.segments[last + 1 :]):
            self.places.discard(_place(one))
            self.lengths[rounded(one.duration_s)] -= 1
        for one in fresh:
            if _place(one) in self.places:
                return False
            self.places.add(_place(one))
            self.lengths[rounded(one.duration_s)] += 1
        behind = len(self.segments) - 1 - last
        for kept in (self.ends, self.lines, self.in_force):
            for _ in range(drop):
                kept.popleft()
            for _ in range(behind):
                kept.pop()
        first, end = self.segments[drop].sequence, self.segments[last].sequence
        while self.dated and self.dated[0] <= first:
            self.dated.popleft()
        while self.dated and self.dated[-1] > end:
            self.dated.pop()
        while self.repairs and self.repairs[0][0] <= first:
            self.repairs.popleft()
        while self.repairs and self.repairs[-1][0] > end:
            self.repairs.pop()
        self.dateranges = [one for one in self.dateranges if first < one[0] <= end]
        return True

    def _told(self, opens: Segment, era: int, drop: int, last: int, fresh: list[Segment]) -> Run | None:
        """Return all segments with their times, *opens* the first one, of *era*; None where too many have other times now."""
        was, when = self.segments[drop], opens.program_date_time
        if when is None and self.dated:
            before = drop + self.dated[0] - opens.sequence
            told = self.segments[before].program_date_time
            assert told is not None
            when = counted_back(told, (opens, *self.segments[drop + 1 : before]))
        elif when is None and (new := next((index for index, one in enumerate(fresh) if one.program_date_time), None)) is not None:
            told = fresh[new].program_date_time
            assert told is not None
            when = counted_back(told, (opens, *self.segments[drop + 1 : last + 1], *fresh[:new]))
        opens = replace(opens, time=when, era=era)
        if when == was.time:
            end = self.segments[last]
            return self.segments.moved_on(opens, drop, last - drop, tuple(told_times(fresh, _end(end), end.era)))
        count = self.dated[0] - opens.sequence - 1 if self.dated else last - drop
        if count > MOST_RETOLD:
            return None
        retold = tuple(told_times(self.segments[drop + 1 : drop + 1 + count], _end(opens), opens.era))
        kept = (opens, *retold, *self.segments[drop + 1 + count : last + 1])
        return Run.of((*kept, *told_times(fresh, _end(kept[-1]), kept[-1].era)))

    def _learnt(self, fresh: list[Segment], in_force: list[InForce], rest: bytes) -> None:
        """Know where the blocks of *rest* end, and what is in force behind them."""
        at, line = self.ends[-1], self.lines[-1]
        for end, lines in _uri_lines(rest, len(fresh)):
            self.ends.append(at + end)
            self.lines.append(line + lines)
        self.in_force.extend(in_force)
        self.dated.extend(one.sequence for one in fresh if one.program_date_time)

    def _finished(self, opens: Segment, reader: Reader) -> Snapshot | None:
        """Return the snapshot; what *reader* has found in the first block and behind those that were kept is noted for the next."""
        if opens.program_date_time:
            self.dated.appendleft(opens.sequence)
        found = [(opens.sequence + block, name) for block, name in reader.repairs]
        dateranges = [(opens.sequence + block, line) for block, line in reader.dateranges]
        dateranges = sorted((*self.dateranges, *dateranges), key=itemgetter(0))
        if len(dateranges) > MOST_DATERANGES:
            return None
        self.repairs = deque(sorted((*self.repairs, *found))) if found else self.repairs
        self.dateranges = dateranges
        reader.dateranges = [(0, line) for _, line in dateranges]
        longest_s = max(length for length, count in self.lengths.items() if count)
        return finished(self.segments, longest_s, reader.discontinuity_sequence, reader, dict.fromkeys(name for _, name in self.repairs))


def _blocks(snapshot: Snapshot, body: bytes, reader: Reader, listed: list[dict[str, Any]]) -> _Blocks | None:
    """Return what can be gone on from; None where that is nothing."""
    segments, count = snapshot.segments, len(snapshot.segments)
    if reader.once or not FEWEST_SEGMENTS <= count == len(listed) or 0 <= reader.ended_at < count or any(one.query for one in segments):
        return None
    places = {_place(one) for one in segments}
    ends = _uri_lines(body, count)
    if not count == len(ends) == len(places) or any(block >= count for block, _ in reader.repairs):
        return None
    first = segments[0].sequence
    return _Blocks(
        url=reader.url,
        body=body,
        segments=Run.of(segments),
        began=0,
        ends=deque(end for end, _ in ends),
        lines=deque(line for _, line in ends),
        in_force=deque(raw["in_force"] for raw in listed),
        dated=deque(one.sequence for one in segments if one.program_date_time),
        places=places,
        lengths=Counter(rounded(one.duration_s) for one in segments),
        repairs=deque(sorted((first + block, name) for block, name in reader.repairs)),
        dateranges=[(first + block, line) for block, line in reader.dateranges],
    )


def _head_length(body: bytes) -> int:
    """Return how long the first block is; 0 where that is too long, or there is none."""
    begin = 0
    while begin < LARGEST_PIECE_BYTES and (end := body.find(b"\n", begin)) >= 0:
        if _is_uri(body[begin:end]):
            return end + 1
        begin = end + 1
    return 0


def _uri_lines(piece: bytes, most: int) -> list[tuple[int, int]]:
    """Return where the first *most* URI lines end: behind so many bytes, and so many lines."""
    found: list[tuple[int, int]] = []
    at = 0
    for index, line in enumerate(piece.split(b"\n")):
        at += len(line) + 1
        if len(found) < most and _is_uri(line):
            found.append((at, index + 1))
    return found


def _is_uri(line: bytes) -> bool:
    if line[:1].isalnum():  # most are told by that
        return True
    return bool(line) and line[:1] != b"#" and not _lines(line)[0].startswith("#") and bool(_lines(line)[0])


def _lines(piece: bytes) -> list[str]:
    return [respelt(line) for line in cleaned(piece.decode("utf-8", "replace"))]


def _place(segment: Segment) -> Place:
    """Return what told_apart tells segments apart by, if that does."""
    path = segment.uri.partition("?")[0]
    return (path, segment.byterange) if segment.byterange else path


def _end(segment: Segment) -> datetime | None:
    return None if segment.time is None else segment.time + timedelta(seconds=segment.duration_s)
