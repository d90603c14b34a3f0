"""Random histories of a live source: what is on air, the encoders and edges between it and us, and all that goes wrong with them.

Independent of hlsrelay.hls.advance. What is on air is a row of contents, each with an id that rises; a history is a `Habits` (what the
source always does) and a list of `Event`s (what happens to it). `loads` plays one, and yields what a relay meets.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta

from hypothesis import strategies as st

from hlsrelay.model import Segment, Snapshot
from tests.playlists import T0, URL, Listed, Playlist, parsed

TARGET_S = 4
CALM_S = 6 * TARGET_S
LONG = 1000
"""Windows longer than this have no tokens, and tell the time always or never: what is listed of them is made once, to be fast."""
HOLES = (1, 2, 3, 5, 8, 20, 100, 1000)
DOWN_S = (0, 2, 8, 30, 90)


@dataclass(frozen=True, slots=True)
class Content:
    """What is on air for a while; only its *id*, which rises with time, is what it is. The rest is what its encoder calls it.

    *piece* is the stretch of continuous timestamps that it belongs to.
    """

    id: int
    run: int
    piece: int
    number: int
    name: str
    began_s: float
    duration_s: float = 4.0
    cut: bool = False
    gap: bool = False


@dataclass(frozen=True, slots=True)
class Habits:
    """What a source does all the time."""

    window: int = 6
    first: int = 0
    names: str = "number"
    """number: `57.ts`, used again by an encoder that comes to 57 again; run: `r0-57.ts`; round: `57.ts`, and `0.ts` after the last."""
    pdt: str = "none"
    """On none, all, some, or the first that is listed."""
    durations: tuple[float, ...] = (4.0,)
    query_tokens: bool = False
    path_tokens: bool = False
    other_names: bool = False
    """The other origin has names of its own."""
    other_shift: int = 1000
    other_lag: int = 0
    tells_discontinuity_sequence: bool = True
    parsed: bool = False
    """Its playlists are printed and parsed; else the snapshots are made at once, which is faster."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens, and after it some loads; what *a* (0 to 9) and *b* (0 to 99) mean depends on *kind*."""

    kind: str
    a: int = 0
    b: int = 0


CALM_KINDS = ("loads", "fail", "outage", "stall", "stale", "flap", "freeze", "duplicate", "kill")
"""What takes nothing from the source's timeline: a relay has no reason for a DISCONTINUITY."""
KINDS = (*CALM_KINDS, "restart", "renumber", "wrong", "origins", "switch", "hole", "end", "cut", "gap")


@dataclass(frozen=True, slots=True)
class Listing:
    """One load as a relay meets it, and what is really behind it."""

    at_s: float
    snapshot: Snapshot
    contents: tuple[Content, ...]
    origin: int

    def content(self, segment: Segment) -> Content | None:
        """Return what *segment* holds; None for one that isn't listed."""
        index = segment.sequence - self.snapshot.segments[0].sequence
        if not segment.uri or not 0 <= index < len(self.contents):
            return None
        return self.contents[index] if self.snapshot.segments[index].uri == segment.uri else None


@dataclass(frozen=True, slots=True)
class Killed:
    """The relay ends, with its last *unpublished* entries not published yet; its successor's first load comes later."""

    unpublished: int


Met = Listing | Killed


@dataclass(frozen=True, slots=True)
class _Version:
    """A state of the playlist: the index of its newest content, and by how much its numbers are moved."""

    newest: int
    moved: int


@dataclass
class World:
    """The source, its edges, and the time."""

    habits: Habits
    now_s: float = 0.0
    contents: list[Content] = field(default_factory=list)
    versions: list[_Version] = field(default_factory=list)
    disturbances: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.moved = 0
        self.run = self.piece = 0
        self.next_id = 0
        self.next_number = self.habits.first
        self.run_starts = [0]
        self.cut_next = self.gap_next = self.ended = self.held = self.calm = False
        self.token = 0
        self.main = 0
        self.due_s = self.ahead_s = 0.0
        self._segments: dict[tuple[object, ...], Segment] = {}
        self._cuts = [0]
        self._since: list[int] = []
        self._rows: dict[tuple[int, int, int], list[Segment]] = {}
        began_s = -sum(self.habits.durations[n % len(self.habits.durations)] for n in range(self.habits.window))
        for _ in range(self.habits.window):
            began_s = self._publish(began_s)
        self.due_s = self.habits.durations[self.next_id % len(self.habits.durations)]

    def pass_time(self, seconds: float) -> None:
        """Let the time go by; the encoder goes on."""
        self.now_s += seconds
        while not self.held and not self.ended and self.due_s <= self.now_s:
            began_s = self.due_s - self.habits.durations[self.next_id % len(self.habits.durations)]
            self._publish(began_s)
            self.due_s += self.habits.durations[self.next_id % len(self.habits.durations)]

    def _publish(self, began_s: float) -> float:
        habits, number = self.habits, self.next_number
        match habits.names:
            case "run":
                name = f"r{self.run}-{number}.ts"
            case "round":
                name = f"{number % (2 * habits.window + 4)}.ts"
            case _:
                name = f"{number}.ts"
        duration_s = habits.durations[self.next_id % len(habits.durations)]
        one = Content(self.next_id, self.run, self.piece, number, name, began_s + self.ahead_s, duration_s, self.cut_next, self.gap_next)
        goes_on = bool(self.contents) and (self.contents[-1].run, self.contents[-1].number) == (self.run, number - 1)
        self._since.append(self._since[-1] if goes_on else len(self.contents))
        self.contents.append(one)
        self._cuts.append(self._cuts[-1] + one.cut)
        self.versions.append(_Version(len(self.contents) - 1, self.moved))
        self.next_id += 1
        self.next_number += 1
        self.cut_next = self.gap_next = False
        return began_s + duration_s

    def lose(self, count: int) -> None:
        """The encoder skips *count* numbers, and what was on air meanwhile."""
        self.next_id += count
        self.next_number += count

    def restart(self, first: int, names: str) -> None:
        """The encoder starts anew: another timeline, its window empty but for a first segment."""
        self.run, self.piece = self.run + 1, self.piece + 1
        self.next_id += 1  # something was on air meanwhile
        self.next_number, self.moved = first, 0
        self.habits = replace(self.habits, names=names)
        self.run_starts.append(len(self.contents))
        self.cut_next = False
        self._publish(self.now_s - self.habits.durations[self.next_id % len(self.habits.durations)])
        self.due_s = self.now_s + self.habits.durations[self.next_id % len(self.habits.durations)]

    def renumber(self, by: int) -> None:
        """All numbers change by the same from now on, the names and what they hold don't."""
        self.moved += max(by, -self.listing(origin=0).snapshot.media_sequence)  # no number is below 0
        self.versions.append(_Version(len(self.contents) - 1, self.moved))

    def jump(self, lost: int) -> None:
        """The playlist jumps ahead at once, window and all, and so does its clock."""
        self.lose(lost)
        began_s = self.contents[-1].began_s - self.ahead_s + self.habits.durations[0] * lost
        for _ in range(min(self.habits.window, 60)):
            began_s = self._publish(began_s)
        self.ahead_s += began_s - self.now_s
        self.due_s = self.now_s + self.habits.durations[self.next_id % len(self.habits.durations)]

    def cut(self) -> None:
        """The source's own DISCONTINUITY comes before its next segment."""
        if not self.cut_next:
            self.piece += 1
            self.cut_next = True

    def disturbed(self, kind: str) -> None:
        """Note what was done to the source."""
        self.disturbances.append((self.now_s, kind))

    def listing(self, *, lag: int = 0, wrong: int = 0, origin: int | None = None, doubled: bool = False, at: int | None = None) -> Listing:
        """One load: of the newest version, or of the one *lag* versions ago, or of the version *at*; all numbers *wrong* by so much."""
        origin = self.main if origin is None else origin
        lag += self.habits.other_lag if origin else 0
        version = self.versions[max(0, len(self.versions) - 1 - lag) if at is None else at]
        run = self.contents[version.newest].run
        # Playlists can't say that numbers jump: with a hole inside the window, what is before it has gone.
        start = max(self._since[version.newest], version.newest - self.habits.window + 1)
        contents = tuple(self.contents[start : version.newest + 1])
        of_origin = max(self.habits.other_shift, -self.contents[self.run_starts[run]].number - version.moved) if origin else 0
        first = max(0, contents[0].number + version.moved + wrong + of_origin)
        shift = first - contents[0].number
        self.token += 1
        cuts = self._cuts[version.newest + 1 - len(contents)] - self._cuts[self.run_starts[run]]  # an encoder that starts anew forgets them
        ended = self.ended and version == self.versions[-1]
        if self.habits.parsed or doubled:
            items = tuple(self._listed(one, index, shift, origin) for index, one in enumerate(contents))
            if doubled:
                items = (*items, replace(items[-1], sequence=items[-1].sequence + 1, discontinuity=False))
            playlist = Playlist(items, str(TARGET_S), ended)
            text = playlist.text()
            if self.habits.tells_discontinuity_sequence:
                text = text.replace("#EXT-X-MEDIA-SEQUENCE", f"#EXT-X-DISCONTINUITY-SEQUENCE:{cuts}\n#EXT-X-MEDIA-SEQUENCE")
            return Listing(self.now_s, parsed(text), contents, origin)
        if self.habits.path_tokens or self.habits.query_tokens:
            self._segments.clear()
        told = cuts if self.habits.tells_discontinuity_sequence else 0
        if self.habits.window > LONG:
            row = self._rows.setdefault((run, shift, origin), [])
            begins = self.run_starts[run]
            for one in self.contents[begins + len(row) : version.newest + 1]:
                era = self._cuts[begins + len(row) + 1] - self._cuts[begins]
                row.append(self._segment(one, 0, shift, origin, era, one.began_s if self.habits.pdt == "all" else None))
            listed = tuple(row[start - begins : version.newest + 1 - begins])
            return Listing(self.now_s, Snapshot(listed, TARGET_S, first, told, ended=ended), contents, origin)
        segments = []
        era, when = told, None
        if (first_told := next((index for index, one in enumerate(contents) if self._tells_time(one, index)), None)) is not None:
            when = contents[first_told].began_s - sum(one.duration_s for one in contents[:first_told])
        for index, one in enumerate(contents):
            era += one.cut
            when = one.began_s if self._tells_time(one, index) else when
            segments.append(self._segment(one, index, shift, origin, era, when))
            when = when + one.duration_s if when is not None else None
        return Listing(self.now_s, Snapshot(tuple(segments), TARGET_S, first, told, ended=ended), contents, origin)

    def _tells_time(self, one: Content, index: int) -> bool:
        match self.habits.pdt:
            case "all":
                return True
            case "some":
                return one.id % 5 == 0
            case "first":
                return index == 0
        return False

    def _name(self, one: Content, origin: int) -> str:
        name = f"b/{one.name}" if origin and self.habits.other_names else one.name
        if self.habits.path_tokens:
            name = f"t{self.token}/{name}"
        return f"{name}?t={self.token}" if self.habits.query_tokens else name

    def _listed(self, one: Content, index: int, shift: int, origin: int) -> Listed:
        when = T0 + timedelta(seconds=one.began_s) if self._tells_time(one, index) else None
        return Listed(one.number + shift, self._name(one, origin), str(one.duration_s), one.gap, one.cut, when)

    def _segment(self, one: Content, index: int, shift: int, origin: int, era: int, when_s: float | None) -> Segment:
        key = (one.id, shift, origin, era, when_s, self._tells_time(one, index))
        if (known := self._segments.get(key)) is None:
            item = self._listed(one, index, shift, origin)
            uri = URL.rpartition("/")[0] + "/" + item.name
            when = T0 + timedelta(seconds=when_s) if when_s is not None else None
            known = Segment(item.sequence, uri, one.duration_s, "", one.cut, item.pdt, gap=one.gap, time=when, era=era)
            self._segments[key] = known
        return known


def loads(world: World, events: list[Event]) -> Iterator[Met]:
    """Play *events*, then a calm of six target durations at the end of which a relay has to be at the edge again."""
    yield world.listing()
    for event in events:
        world.disturbed(event.kind)
        yield from _happens(world, event)
        for _ in range(event.b % 4):
            world.pass_time((2.0, 4.0, 1.0, 3.0)[(event.a + event.b) % 4])
            yield world.listing()
    world.calm = True
    behind_s = world.habits.other_lag * max(world.habits.durations) if world.main else 0.0  # so long it shows what was before the calm
    for _ in range(int(CALM_S + behind_s) // 2):
        world.pass_time(2.0)
        yield world.listing()


def _happens(world: World, event: Event) -> Iterator[Met]:
    a, b = event.a, event.b
    match event.kind:
        case "loads":
            for turn in range(a + 1):
                world.pass_time((4.0, 2.0, 1.0, 3.0, 5.0)[(b + turn) % 5])
                yield world.listing()
        case "fail":
            world.pass_time(2.0 * (a + 1))
        case "outage":
            world.pass_time(float(b) * (1 + a))
        case "stall":
            yield from _held(world, a + 1)
        case "stale":
            for _ in range(b % 3 + 1):
                world.pass_time(2.0)
                yield world.listing(lag=a + 1)
        case "flap":
            for turn in range(2 * (b % 4 + 1)):
                world.pass_time(2.0)
                yield world.listing(lag=(a + 1) * (turn % 2))
        case "freeze":
            frozen = len(world.versions) - 1
            for _ in range(a + 1):
                world.pass_time(2.0)
                yield world.listing(at=frozen)
        case "duplicate":
            yield world.listing(doubled=True)
        case "kill":
            yield Killed(a)
            world.pass_time(float((0, 1, 4, 10, 30, 200)[b % 6]))
        case "renumber":
            to_zero = -(world.listing().snapshot.media_sequence)
            world.renumber((to_zero, a + 1, -a - 1, 100_000, b)[b % 5])
        case "wrong":
            world.pass_time(2.0)
            yield world.listing(wrong=(a + 1, -a - 1, 1000, -(10**6))[b % 4])
        case "origins":
            for turn in range(2 * (b % 5 + 1)):
                world.pass_time(2.0)
                yield world.listing(origin=(world.main + turn + a) % 2)
        case "switch":
            world.main = 1 - world.main
        case "hole":
            lost = HOLES[a % len(HOLES)]
            if b % 3:
                yield from _held(world, lost * 2, most=a)
                world.lose(lost)
                world.due_s = world.now_s
            else:
                world.jump(lost)
        case "end":
            world.ended = True
            for _ in range(a + 1):
                world.pass_time(2.0)
                yield world.listing()
            world.ended = False
            if b % 2:
                _restarts(world, b % 7, b)
            else:
                world.due_s = max(world.due_s, world.now_s)
        case "restart":
            before = len(world.versions) - 1
            world.held = True
            down_s = DOWN_S[b % len(DOWN_S)]
            for _ in range(min(down_s // 2, 8)):
                world.pass_time(down_s / min(down_s // 2, 8))
                if b % 2:
                    yield world.listing(at=before)
            world.held = False
            _restarts(world, a, b)
        case "cut":
            world.cut()
        case "gap":
            world.gap_next = True


def _held(world: World, turns: int, most: int = 10) -> Iterator[Met]:
    """Nothing new comes for a while, and then all that had been due at once."""
    world.held = True
    for turn in range(turns):
        world.pass_time(2.0)
        if turn < most:
            yield world.listing()
    world.held = False


def _restarts(world: World, how: int, amount: int) -> None:
    last = world.next_number - 1 + world.moved
    firsts = (0, world.contents[world.run_starts[-1]].number, amount * 100_000 + 7, last - amount % 12, last + 1, last + 2 + amount % 5)
    world.restart(max(0, firsts[how % len(firsts)]), ("number", "run", world.habits.names)[amount % 3])


# How histories come to be: by Hypothesis, which shrinks what it finds, or by a seed.

_NAMES = ("number", "run", "round")
_PDT = ("none", "all", "some", "first")
_DURATIONS = ((4.0,), (2.0,), (4.0, 2.0, 3.0))
_FIRSTS = (0, 1, 57, 500, 123_456)
_SHIFTS = (0, 3, -3, 1000, -50)
_LAGS = (0, 0, 1, 2, 5)


def habits(windows: tuple[int, ...]) -> st.SearchStrategy[Habits]:
    """Sources with one of these windows."""
    long = max(windows) > LONG
    return st.builds(
        Habits,
        window=st.sampled_from(windows),
        first=st.sampled_from(_FIRSTS),
        names=st.sampled_from(_NAMES),
        pdt=st.sampled_from(_PDT[:2] if long else _PDT),
        durations=st.sampled_from(_DURATIONS),
        query_tokens=st.just(False) if long else st.booleans(),
        path_tokens=st.just(False) if long else st.sampled_from((False, False, False, True)),
        other_names=st.booleans(),
        other_shift=st.sampled_from(_SHIFTS),
        other_lag=st.sampled_from(_LAGS),
        tells_discontinuity_sequence=st.just(True) if long else st.booleans(),
        parsed=st.booleans() if max(windows) <= 6 else st.just(False),
    )


def events(kinds: tuple[str, ...] = KINDS, most: int = 25) -> st.SearchStrategy[list[Event]]:
    """What happens to a source."""
    return st.lists(st.builds(Event, st.sampled_from(kinds), st.integers(0, 9), st.integers(0, 99)), max_size=most)


def drawn(chance: random.Random, window: int, kinds: tuple[str, ...] = KINDS, most: int = 25) -> tuple[Habits, list[Event]]:
    """A history by chance alone: many times faster than Hypothesis, and the same for the same seed."""
    source = Habits(
        window=window,
        first=chance.choice(_FIRSTS),
        names=chance.choice(_NAMES),
        pdt=chance.choice(_PDT[: 2 if window > LONG else 4]),
        durations=chance.choice(_DURATIONS),
        query_tokens=window <= LONG and chance.random() < 0.5,
        path_tokens=window <= LONG and chance.random() < 0.25,
        other_names=chance.random() < 0.5,
        other_shift=chance.choice(_SHIFTS),
        other_lag=chance.choice(_LAGS),
        tells_discontinuity_sequence=window > LONG or chance.random() < 0.5,
        parsed=window <= 6 and chance.random() < 0.2,
    )
    return source, [Event(chance.choice(kinds), chance.randrange(10), chance.randrange(100)) for _ in range(chance.randrange(most + 1))]


def spoken(met: list[Met]) -> str:
    """A history in the playlist language of the tests, to be repeated by hand."""
    lines = []
    for one in met:
        if isinstance(one, Killed):
            lines.append(f"killed({one.unpublished})")
            continue
        items = []
        for segment, content in zip(one.snapshot.segments[-8:], one.contents[-8:], strict=False):
            name = segment.uri.removeprefix(URL.rpartition("/")[0] + "/")
            more = ", discontinuity=True" if segment.discontinuity else ""
            more += ", gap=True" if segment.gap else ""
            more += f", pdt=at({content.began_s})" if segment.program_date_time else ""
            more += f', duration="{segment.duration_s}"' if segment.duration_s != TARGET_S else ""
            items.append(f'Listed({segment.sequence}, "{name}"{more})')
        dots = f"{len(one.contents) - 8} more, " if len(one.contents) > 8 else ""
        end = ".ended()" if one.snapshot.ended else ""
        lines.append(f"history.load(live({dots}{', '.join(items)}){end}, {one.at_s})  # contents ..{one.contents[-1].id}")
    return "\n".join(lines)
