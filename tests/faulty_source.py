"""A live source that misbehaves as it is told: the model behind the fault table. Pure; who asks brings the time.

Two doors lead to it: respx in virtual time (`tests.fault_watch`) and a server on real sockets (`tests.fault_origin`). Its programme is a
row of *pieces*, counted from 0: what a perfect relay would give its viewers, once each and in order. Time is counted in target
durations since the source began (`td`), so that one table serves four seconds of virtual and one of real time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import parse_qsl

from tests.unit.test_media_probe import picture, segment, sound
from tests.virtual import EPOCH

LISTED = 6
KEPT_TD = 8.0
"""How long a segment can be fetched after it left the playlist."""
PHASE_TD = 0.3
"""The source is as old as this when the relay comes: loads and new segments do not fall together."""
NULL_PACKET = b"\x47\x1f\xff\x10"


@dataclass(frozen=True)
class Reply:
    """An answer, or what comes in its place. *declared* is the Content-Length (None: what is true); *sent*: the line goes dead after so
    many bytes of the body; *byte_takes_s*: a drip. Status 0: the connection is closed without a word."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    declared: int | None = None
    without_length: bool = False
    chunked: bool = False
    version: str = "1.1"
    sent: int | None = None
    byte_takes_s: float = 0.0

    def length(self) -> int | None:
        """Return what Content-Length says; None where there is none."""
        if self.without_length or self.chunked:
            return None
        return len(self.body) if self.declared is None else self.declared


@dataclass(frozen=True)
class Run:
    """From piece *first* on, another life of the encoder: *pause_td* after the piece before, numbers from *number*, names from
    *name_first* (None: the number). *fresh*: nothing of before is listed. *clock*: time stamps begin anew. *replays*: it plays the
    file that its first life played, byte for byte."""

    first: int
    number: int
    name: str = "a"
    name_first: int | None = None
    pause_td: float = 0.0
    fresh: bool = True
    clock: bool = True
    replays: bool = False


@dataclass(frozen=True)
class Ask:
    """One request: *path* below the source, *again* how often the same path was asked for before, *piece* where it is a segment."""

    source: Source
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    again: int
    td: float
    piece: int | None

    @property
    def is_playlist(self) -> bool:
        """Whether a playlist is asked for."""
        return self.path.endswith(".m3u8")


Answering = Callable[[Ask], Reply | None]
"""What a fault answers in place of a good source; None: nothing."""


@dataclass(frozen=True)
class Fault:
    """One row of the table: how the source misbehaves, and what must come out."""

    name: str
    how: str
    answer: Answering = lambda _: None
    entry: Callable[[Source, int, int, list[str]], list[str]] = lambda source, piece, number, lines: lines
    """Changes the lines of one segment, given its piece and its number."""
    head: Callable[[Source, int, list[str]], list[str]] = lambda source, newest, lines: lines
    runs: tuple[Run, ...] = ()
    listed: int = LISTED
    length_td: Callable[[int], float] = lambda piece: 1.0
    seal: Callable[[int, int, bytes], bytes] = lambda piece, number, body: body
    """Encrypts a piece under its number."""
    extras: Mapping[str, bytes] = field(default_factory=dict)
    """Further files by name: keys, init sections."""
    init: Callable[[int], str] = lambda piece: ""
    """The name of a piece's init section."""
    jitter_td: float = 0.0
    """By how much a segment may be listed sooner or later than it should be."""
    runs_td: float = 24.0

    repairs: tuple[str, ...] = ()
    """Each must be counted."""
    counted: tuple[tuple[str, str], ...] = ()
    """Further figures that must not be nought: name of the metric, its outcome."""
    returns_td: float | None = None
    """When a source that was away is back."""
    lost: frozenset[int] = frozenset()
    """Pieces that nobody could have had."""
    most_gaps: int = 0
    cuts: int = 0
    pause_td: float = 2.5
    """The longest time between two new entries while the source is not away."""
    splits: bool = False
    """Pieces longer than a target duration may come out in parts."""


class Source:
    """A live source that keeps every rule but for its fault."""

    def __init__(self, fault: Fault, base: str, target_s: float, now_s: Callable[[], float], *, dated: bool = False) -> None:
        self.fault, self.base, self.target_s, self.dated = fault, base, target_s, dated
        self.random = random.Random(fault.name)
        self._now_s = now_s
        self.began_s = now_s() - PHASE_TD * target_s
        self._runs = (Run(0, 100, clock=False), *fault.runs)
        if fault.runs and fault.runs[0].first == 0:
            self._runs = fault.runs
        self._published_td: list[float] = []
        self._asked: dict[str, int] = {}
        self._bodies: dict[int, bytes] = {}
        self._ended_td: float | None = None
        self.notes: dict[str, float] = {}
        """What a fault remembers: tokens and when they were given."""

    def td(self) -> float:
        """Return the target durations gone by, until it was ended."""
        if self._ended_td is not None:
            return self._ended_td
        return (self._now_s() - self.began_s) / self.target_s

    def end(self) -> None:
        """The run is over: its time stands still."""
        self._ended_td = self.td()

    def published_td(self, piece: int) -> float:
        """Return when *piece* is listed first."""
        return self._on_time_td(piece) + (self._jitter_td(piece) if piece >= self.fault.listed else 0.0)

    def _jitter_td(self, piece: int) -> float:
        return random.Random(f"{self.fault.name} {piece}").uniform(-1, 1) * self.fault.jitter_td

    def _on_time_td(self, piece: int) -> float:
        while len(self._published_td) <= piece:
            index = len(self._published_td)
            before = self._published_td[-1] if index else 0.0
            pause_td = next((run.pause_td for run in self._runs if run.first == index), 0.0)
            self._published_td.append(0.0 if index < self.fault.listed else before + pause_td + self.fault.length_td(index))
        return self._published_td[piece]

    def newest(self, td: float | None = None) -> int:
        """Return the newest piece that is published."""
        now = self.td() if td is None else td
        piece = self.fault.listed - 1
        while self.published_td(piece + 1) <= now:
            piece += 1
        return piece

    def run_of(self, piece: int) -> Run:
        """Return the life of the encoder that made *piece*."""
        return [run for run in self._runs if run.first <= piece][-1]

    def number(self, piece: int) -> int:
        """Return the media sequence number under which *piece* is listed as long as its run lasts."""
        run = self.run_of(piece)
        return run.number + piece - run.first

    def file(self, piece: int) -> str:
        """Return the file name of *piece*."""
        run = self.run_of(piece)
        return f"{run.name}-{(run.number if run.name_first is None else run.name_first) + piece - run.first}.ts"

    def body(self, piece: int) -> bytes:
        """Return the bytes of *piece*, as a good source sends them."""
        if piece not in self._bodies:
            self._bodies[piece] = self.fault.seal(piece, self.number(piece), self.plain(piece))
        return self._bodies[piece]

    def plain(self, piece: int) -> bytes:
        """Return *piece* in the clear: MPEG-TS, a key frame every quarter of a target duration."""
        if (run := self.run_of(piece)).replays:
            return self.plain(piece - run.first)
        first = max([run.first for run in self._runs if run.clock and run.first <= piece], default=0)
        begins_td = sum(self.fault.length_td(before) for before in range(first, piece))
        start = 900_000 + round(begins_td * self.target_s * 90_000)
        frames = round(self.fault.length_td(piece) * 16)
        step = round(self.target_s * 90_000 / 16)
        parts = []
        for frame in range(frames):
            at = start + frame * step
            parts += [picture(at, idr=frame % 4 == 0), *([sound(at)] if frame % 4 == 0 else [])]
        return segment(*parts) + NULL_PACKET + f"piece {piece}".encode().ljust(184, b"\xff")

    def pieces(self, newest: int) -> range:
        """Return what is listed when *newest* is the newest."""
        run = self.run_of(newest)
        return range(max(newest - self.fault.listed + 1, run.first if run.fresh else 0), newest + 1)

    def text(self, newest: int | None = None, *, shift: int = 0) -> str:
        """Return the media playlist; *shift* is added to its numbers."""
        newest = self.newest() if newest is None else newest
        pieces = self.pieces(newest)
        numbers = [self.number(newest) - (newest - piece) + shift for piece in pieces]
        head = ["#EXTM3U", "#EXT-X-VERSION:6", f"#EXT-X-TARGETDURATION:{round(self.target_s)}", f"#EXT-X-MEDIA-SEQUENCE:{numbers[0]}"]
        lines = self.fault.head(self, newest, head)
        for piece, number in zip(pieces, numbers, strict=True):
            dated = [f"#EXT-X-PROGRAM-DATE-TIME:{self._when(piece)}"] if self.dated else []
            mapped = [f'#EXT-X-MAP:URI="{name}"'] if (name := self.fault.init(piece)) else []
            extinf = f"#EXTINF:{self.fault.length_td(piece) * self.target_s:.3f},"
            lines = lines + self.fault.entry(self, piece, number, [*dated, *mapped, extinf, self.file(piece)])
        return "\n".join([*lines, ""])

    def _when(self, piece: int) -> str:
        """Dates go on with the time stamps, and begin anew with them."""
        begins_td = sum(self.fault.length_td(before) for before in range(piece)) - self.fault.listed
        begins_td += sum(run.pause_td for run in self._runs if run.clock and run.first <= piece)
        return (EPOCH + timedelta(seconds=begins_td * self.target_s)).isoformat(timespec="milliseconds")

    def piece(self, file: str) -> int | None:
        """Return the newest published piece of that file name."""
        return next((piece for piece in range(self.newest(), -1, -1) if self.file(piece) == file), None)

    def answer(self, path: str, query: str = "", headers: Mapping[str, str] | None = None) -> Reply:
        """Answer a request for *path*, below the source."""
        td, file = self.td(), path.rpartition("/")[2]
        again = self._asked.get(path, 0)
        self._asked[path] = again + 1
        ask = Ask(self, path, dict(parse_qsl(query)), headers or {}, again, td, self.piece(file))
        if (reply := self.fault.answer(ask)) is not None:
            return reply
        return self.good(ask)

    def good(self, ask: Ask) -> Reply:
        """Answer as a good source does."""
        if ask.is_playlist:
            return playlist(self.text())
        if ask.piece is not None:
            kept = ask.td <= self.published_td(ask.piece) + self.fault.listed + KEPT_TD
            return media(self.body(ask.piece)) if kept else Reply(404)
        body = self.fault.extras.get(ask.path.rpartition("/")[2])
        return Reply(404) if body is None else media(body)


def playlist(text: str | bytes) -> Reply:
    """Return a playlist's answer."""
    body = text if isinstance(text, bytes) else text.encode()
    return Reply(body=body, headers=(("Content-Type", "application/vnd.apple.mpegurl"),))


def media(body: bytes) -> Reply:
    """Return a segment's answer."""
    return Reply(body=body, headers=(("Content-Type", "video/mp2t"),))
