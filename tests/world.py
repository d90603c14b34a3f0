"""A live source of the tests: what is on air, and the encoders and edges between it and us. Independent of hlsrelay.hls.advance.

What is on air is a row of contents, each with an id that rises. A source has `Habits`; a `World` is one, and its time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta

from hlsrelay.model import Segment, Snapshot
from tests.playlists import T0, URL, Listed, Playlist, parsed

TARGET_S = 4
LONG = 1000
"""Windows longer than this have no tokens, and tell the time always or never: what is listed of them is made once, to be fast."""


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
