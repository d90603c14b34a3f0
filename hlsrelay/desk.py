"""What the pipeline of a track works with: the tools of its stream, and what the tracks of one presentation decide together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from hlsrelay.caches import Caches
from hlsrelay.clock import Clock, Nudges, Pacer
from hlsrelay.encoder import Encoder
from hlsrelay.failover import Standing, considered, hold_s, primary_seen, progressed, stall_s, wanted
from hlsrelay.hls.numbering import REMEMBERED, Agreed, Step, near
from hlsrelay.hls.window import Progress
from hlsrelay.ledger import Ledger
from hlsrelay.model import (
    SOURCE,
    ByteRange,
    Desired,
    Entry,
    Numbered,
    Presentation,
    Restart,
    Segment,
    Snapshot,
    Stream,
    Track,
)
from hlsrelay.storage import LocalStorage
from hlsrelay.turns import Turns
from hlsrelay.values import replace


class Source(Protocol):
    """What the stages need of the upstream."""

    async def survey(self, stream: Stream, known: Iterable[Track] = ()) -> Presentation:
        """Return what the source presents, tracks *known* from before under their names. Raises UpstreamError, ConfigError."""

    async def load(self, name: str) -> Snapshot:
        """Return the media playlist of a surveyed track. Raises UpstreamError."""

    async def fetch(
        self,
        uri: str,
        byterange: ByteRange | None,
        restart: Restart,
        deadline_s: float,
        *,
        whole: Callable[[], str] = ...,
        most_bytes: int = ...,
    ) -> int:
        """Fetch a segment whole; *whole* names what is missing after an attempt. Raises SegmentLost."""


class Control(Protocol):
    """What the operator wants, as known now; never waits."""

    @property
    def stream(self) -> Stream:
        """The stream's fields, as last read."""


@dataclass
class Agreement:
    """What the tracks of one presentation decide together (RFC 8216 6.2.4): where they break off, the target duration, who waits.

    *ends* and *shown* tell by track where what is numbered and what is published ends, on our clock.
    """

    generation: int = 1
    since: datetime | None = None
    target_duration_s: int = 0
    discontinuities: int | None = None
    """The discontinuity sequence number before the first of *cuts*, which a track that comes later counts on from.

    None: it begins with the source's own.
    """
    cuts: list[datetime | None] = field(default_factory=list)
    """Where the programme breaks off, as the first track to come there says; None: a generation begins, which each track does by itself."""
    had: dict[str, int] = field(default_factory=dict)
    """How many of *cuts* each track has."""
    joined: dict[str, int] = field(default_factory=dict)
    """Which generation each track has come to."""
    shifts: dict[str, int] = field(default_factory=dict)
    """What is added to the source's own discontinuity sequence numbers of a track, where they differ from the main track's."""
    ends: dict[str, datetime] = field(default_factory=dict)
    shown: dict[str, datetime] = field(default_factory=dict)
    clock: str = SOURCE
    times: OrderedDict[int, datetime] = field(default_factory=OrderedDict)
    """What the track *clock* says of the source's last numbers; until it is there, whichever came first: its times hold for all."""
    begins: dict[str, datetime] = field(default_factory=dict)
    """When those tracks begin that tell their times: where the one does whose edge was furthest behind at the first look."""
    moved: Nudges = field(default_factory=Nudges)
    listed_s: float = 0.0
    """How much the main track lists."""

    @classmethod
    def resumed(cls, published: Mapping[str, Progress], tracks: Collection[str]) -> Agreement:
        """Return what *tracks* have come to, by what was *published*: one may have been left short of a DISCONTINUITY of the others."""
        here = {name: progress for name, progress in published.items() if name in tracks}
        left = {name: progress for name, progress in here.items() if not progress.position.withdrawn}
        ends = {name: progress.position.next_program_date_time for name, progress in left.items()}
        shown = {name: _published_end(progress) for name, progress in left.items()}  # a track that is played on has its entries only
        lead = left[max(shown, key=shown.__getitem__)].entries if left else ()
        cuts = [one for one in lead if one.discontinuity and one.program_date_time > min(shown.values()) - _half(one)]
        had = {name: sum(one.program_date_time < end - _half(one) for one in cuts) for name, end in shown.items()}
        # What the others had since a track was withdrawn, it owes: the last of them is the DISCONTINUITY that it begins with.
        counts = {name: progress.discontinuities - had.get(name, 0) for name, progress in here.items()}
        owed = max(counts.values()) - min(counts.values()) if len(left) < len(here) and left else 0
        had = {name: owed + count for name, count in had.items()}
        main = published.get(SOURCE)
        return cls(
            generation=max((progress.position.generation for progress in published.values()), default=1),
            target_duration_s=max((progress.target_duration_s for progress in published.values()), default=0),
            discontinuities=main.discontinuities - had.get(SOURCE, 0) if main else None,
            cuts=[None] * owed + [one.program_date_time for one in cuts],
            had=had,
            joined={name: progress.position.generation for name, progress in here.items()},
            ends=ends,
            shown=dict(ends),
            listed_s=main.listed_s if main else 0.0,
        )

    def seen_at_first(self, found: Mapping[str, Snapshot]) -> None:
        """Take the first look at all tracks: a moment has one discontinuity sequence number, and the main track's is taken."""
        if (main := found.get(SOURCE)) is None:
            return
        for name, snapshot in found.items():
            if both := next(_same_moment(main.segments, snapshot.segments), None):
                self.shifts[name] = max(both[0].era - both[1].era, -snapshot.discontinuity_sequence)

    def known_to(self, track: str) -> Agreed:
        """Return what numbering a segment of *track* must keep to."""
        lead = max((end for name, end in self.ends.items() if name != track), default=None)
        times = {} if track == self.clock and track in self.ends else self.times
        return Agreed(self.generation, self.since, lead, times, self.begins.get(track))

    def numbered(self, track: str, step: Step) -> None:
        """A track has numbered what its playlist brought; it may have begun a generation."""
        at = self.ends.get(track)
        for one in step.fresh:
            begins = one.position.generation != self.joined.setdefault(track, one.position.generation)
            if one.position.generation > self.generation:
                self.generation, self.since = one.position.generation, one.program_date_time
                self.cuts.append(None)
            elif one.discontinuity and not begins and at is not None and not self._is_cut(at, one.duration_s):
                self.cuts.append(at)
            self.joined[track] = one.position.generation
            at = one.position.next_program_date_time
            if track == self.clock or self.clock not in self.ends:
                self.told(one.segment.sequence, one.program_date_time)
        if step.begins_at and step.position.generation == self.generation:
            self.generation, self.since = self.generation + 1, step.begins_at
            self.cuts.append(None)
        if step.fresh:
            self.ends[track] = step.position.next_program_date_time

    def _is_cut(self, at: datetime, duration_s: float) -> bool:
        return any(cut is not None and abs((cut - at).total_seconds()) <= duration_s / 2 for cut in self.cuts[-REMEMBERED:])

    def first_count(self, track: str, new: Numbered) -> int:
        """Return the discontinuity sequence number that a track begins with; it has none of the cuts that lie before it."""
        latest = new.program_date_time + timedelta(seconds=new.duration_s / 2)
        self.had[track] = sum(cut is None or cut <= latest for cut in self.cuts)
        if self.discontinuities is None:
            return new.discontinuity_sequence + self.shifts.get(track, 0)
        return self.discontinuities + self.had[track]

    def count_again(self, track: str, new: Numbered, count: int) -> int:
        """Return the discontinuity sequence number that a withdrawn track goes on with after *count*, without the cuts before it."""
        self.first_count(track, new)
        self.had[track] = max(0, self.had[track] - 1)  # the last of them is the DISCONTINUITY that it begins with
        return count + self.had[track]

    def breaks_off(self, track: str, at: datetime, duration_s: float) -> bool:
        """Return whether what a track publishes next, *at* our time for it, is a DISCONTINUITY because another track has one there."""
        due = next(iter(self.cuts[max(0, self.had.get(track, 0)) :]), None)
        return due is not None and at >= due - timedelta(seconds=duration_s / 2)

    def broke_off(self, track: str, at: datetime) -> None:
        """A track has published a DISCONTINUITY: all have the same number of them in the end, so their sequence numbers agree."""
        self.had[track] = self.had.get(track, 0) + 1
        if self.had[track] > len(self.cuts):
            self.cuts.append(at)
        if (settled := min(self.had.values())) > REMEMBERED:
            del self.cuts[:settled]
            self.had = {name: count - settled for name, count in self.had.items()}
            self.discontinuities = None if self.discontinuities is None else self.discontinuities + settled

    def told(self, sequence: int, when: datetime) -> None:
        """The track that sets the clock has this segment at that time."""
        self.times[sequence] = when
        while len(self.times) > REMEMBERED:
            self.times.popitem(last=False)

    def published(self, track: str, progress: Progress) -> None:
        """A track has published all of *progress*."""
        self.shown[track] = progress.position.next_program_date_time
        self.listed_s = progress.listed_s if track == SOURCE else self.listed_s
        self.moved.nudge()

    def waits_for(self, track: str, end: datetime, stream: Stream) -> str:
        """Return a track that would be left more than a target duration behind if *track* went on to *end*; empty if there is none."""
        limit = end - timedelta(seconds=self.target_duration_s + 0.5)
        others = (name for name, shown in self.shown.items() if name != track and shown < limit and near(shown, end, stream))
        return next(others, "")

    def behind(self, track: str, stream: Stream) -> bool:
        """Return whether another track has a segment more of the same source."""
        own, lead = self.ends.get(track), self.known_to(track).lead
        return (
            own is not None and lead is not None and near(own, lead, stream) and (lead - own).total_seconds() > self.target_duration_s / 2
        )


def _published_end(progress: Progress) -> datetime:
    last = progress.entries[-1] if progress.entries else None
    return last.program_date_time + timedelta(seconds=last.duration_s) if last else progress.position.next_program_date_time


def _half(entry: Entry) -> timedelta:
    return timedelta(seconds=entry.duration_s / 2)


def _same_moment(ones: Sequence[Segment], others: Sequence[Segment]) -> Iterator[tuple[Segment, Segment]]:
    """Yield pairs of segments that begin together, newest first: by time where both tell it, else by the source's numbers."""
    for other in reversed(others[-REMEMBERED:]):
        for one in reversed(ones[-REMEMBERED:]):
            if one.time and other.time:
                together = abs((one.time - other.time).total_seconds()) <= min(one.duration_s, other.duration_s) / 2
            else:
                together = one.sequence == other.sequence
            if together:
                yield one, other


async def at_once() -> None:
    """Be sure without asking anybody."""


@dataclass(frozen=True)
class Tools:
    """What one stream's relay works with."""

    upstream: Source
    storage: LocalStorage
    encoder: Encoder
    control: Control
    clock: Clock
    nudges: Nudges = field(default_factory=Nudges)
    spare: Source | None = None
    """Looks at the primary while a backup is relayed; without it there is no way back."""
    caches: Caches | None = None
    """What pulls new files through the caches in front of us."""
    sure: Callable[[], Awaitable[object]] = at_once
    """Returns once the stream may be written: a process that stood still may have lost it (awake)."""
    turns: Turns = field(default_factory=Turns)
    """When downloads may begin; one for all of a process."""


def surveyed_for(stream: Stream) -> tuple[object, ...]:
    """Return the wishes that a survey follows: where one changes, the source is surveyed again."""
    return stream.source, stream.variants, stream.headers, stream.proxy


class Choice:
    """Which source is relayed now (failover has the rules)."""

    def __init__(self, tools: Tools, last: str = "") -> None:
        self._tools = tools
        self._last = last
        self._standing: Standing | None = None
        self._wishes: Stream | None = None
        """What the standing is for."""
        self._chosen: tuple[Stream, Stream] | None = None
        """The wishes that were asked for last while a backup is relayed, and what `stream` makes of them."""
        self.target_duration_s = 0.0
        self.surveys = 0
        """Raised where the source is to be surveyed again: it lacks a track that it had."""

    @property
    def standing(self) -> Standing:
        """The standing, for the operator's sources of now."""
        wishes = self._tools.control.stream
        if self._standing is None or self._wishes is not wishes:
            self._standing, self._wishes = wanted(self._standing, wishes, self._tools.clock.monotonic_s(), self._last), wishes
        return self._standing

    @property
    def stream(self) -> Stream:
        """The operator's wishes, with the source that is to be relayed."""
        wishes, current = self._tools.control.stream, self.standing.current
        if wishes.source == current:
            return wishes
        if self._chosen is None or self._chosen[0] is not wishes or self._chosen[1].source != current:
            self._chosen = wishes, replace(wishes, source=current)
        return self._chosen[1]

    def progressed(self) -> None:
        """The current source has brought something new."""
        self._take(progressed(self.standing, self._tools.clock.monotonic_s()))

    def considered(self) -> None:
        """Leave the current source if it has been silent for too long."""
        patience_s = stall_s(self._tools.control.stream, self.target_duration_s)
        self._take(considered(self.standing, patience_s, self._tools.clock.monotonic_s()))

    def primary_seen(self, newest: str | None) -> None:
        """Take a look at the primary into account."""
        self._take(self._once_seen(newest))

    def takes_back(self, newest: str) -> bool:
        """Return whether this look at the primary would take it back."""
        return self._once_seen(newest).index == 0

    def survey_again(self) -> None:
        """The source is not what was surveyed any more."""
        self.surveys += 1
        self._tools.nudges.nudge()

    def _once_seen(self, newest: str | None) -> Standing:
        stream = self._tools.control.stream
        patience_s, well_s = stall_s(stream, self.target_duration_s), hold_s(stream, self.target_duration_s)
        return primary_seen(self.standing, newest, patience_s, well_s, self._tools.clock.monotonic_s())

    def _take(self, standing: Standing) -> None:
        moved = self._standing is not None and standing.current != self._standing.current
        self._standing = standing
        if moved:
            self._last = standing.current
            self._tools.nudges.nudge()


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a track's playlist: a snapshot, or why there is none."""

    stream: Stream
    snapshot: Snapshot | None = None
    error: str = ""


@dataclass(frozen=True)
class Desk:
    """What the pipeline of one track works with."""

    tools: Tools
    track: Track
    stream: Stream
    """The wishes that the source was surveyed for."""
    surveys: int
    ledger: Ledger
    pacer: Pacer
    agreement: Agreement
    choice: Choice
    alone: bool = True
    """Whether it is the presentation's only track: then a break found in the media needs nobody's agreement."""
    progress: Progress | None = None
    """Where the track was left."""
    first_look: list[Look] = field(default_factory=list)
    """The look that all tracks were given at once, before any began; taken out by the first to use it."""
    digests: dict[int, str] = field(default_factory=dict)
    """What was downloaded under our last numbers."""

    @property
    def followed(self) -> bool:
        """Whether the operator still wants what was surveyed, and wants it to run."""
        now = self.choice.stream
        return now.desired is Desired.RUN and surveyed_for(now) == surveyed_for(self.stream) and self.choice.surveys == self.surveys
