"""Random histories of a live source, which is a `World`: all that goes wrong with it.

A history is its `Habits` and a list of `Event`s; `loads` plays one, and yields what a relay meets. What is drawn by a seed
`python -m tests.oracle` plays by the thousand.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.playlists import URL
from tests.world import LONG, TARGET_S, Habits, Listing, World

CALM_S = 6 * TARGET_S
HOLES = (1, 2, 3, 5, 8, 20, 100, 1000)
DOWN_S = (0, 2, 8, 30, 90)


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
class Killed:
    """The relay ends, with its last *unpublished* entries not published yet; its successor's first load comes later."""

    unpublished: int


Met = Listing | Killed


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
    yield from calm(world, CALM_S + behind_s)


def calm(world: World, seconds: float) -> Iterator[Met]:
    """Look each 2 s, while nothing happens."""
    for _ in range(int(seconds) // 2):
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
