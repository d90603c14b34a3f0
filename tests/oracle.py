"""An oracle for hlsrelay.hls.advance: plays a history of a source (tests.histories) and judges the relay by what was really on air.

`python -m tests.oracle --first N --last N` plays what these seeds draw, of windows of 1, 2, 6 and 60, and names what breaks a law.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from hlsrelay.hls.advance import advance
from hlsrelay.hls.doubt import FURTHEST_BEHIND, STUCK_TARGET_DURATIONS, WINDOWS_BEHIND
from hlsrelay.hls.numbering import REMEMBERED, Step, content_key, noted
from hlsrelay.model import Numbered, Position, Segment
from tests.histories import CALM_KINDS, Event, Killed, Met, calm, drawn, loads, spoken
from tests.playlists import at, stream
from tests.world import TARGET_S, Content, Habits, Listing, World

END_HOLD_S = 3 * TARGET_S
SHORT_WINDOW = 2
"""An encoder that starts anew at numbers just below ours does not show by a window that grows where it lists no more than this: it is
waited for until it comes to what a digest tells (doubt.counts_to_ours)."""
STREAM = stream()
_PATH_TOKEN = re.compile(r"/t\d+/")


@dataclass(frozen=True, slots=True)
class Out:
    """An entry of ours and what it really holds; None for a GAP."""

    numbered: Numbered
    content: Content | None
    discontinuity: bool
    load: int


@dataclass
class Relay:
    """The caller of `advance`: its memory as the stages keep it, what it fetches, and its end at any moment."""

    failing_fetches: int = 0
    """Every so many-th answer to a question is a failed fetch."""
    position: Position | None = None
    out: list[Out] = field(default_factory=list)
    met: list[Met] = field(default_factory=list)
    published: int = 0
    ended_s: float | None = None
    finished: bool = False
    asked: int = 0
    failed: int = 0
    """How many of the questions brought no answer."""
    repairs: Counter[str] = field(default_factory=Counter)

    def meets(self, met: Met) -> None:
        self.met.append(met)
        if isinstance(met, Killed):
            self.killed(met.unpublished)
        else:
            self.loaded(met)

    def loaded(self, listing: Listing) -> None:
        step = self._advanced(listing)
        self.repairs.update(step.repairs)
        for one in step.fresh:
            content = listing.content(one.segment)
            self.out.append(Out(one, content, one.discontinuity or self.finished, len(self.met) - 1))
            self.finished = False
        self.position = noted(step.position, self.digests())
        if not listing.snapshot.ended or step.fresh:
            self.ended_s = None
        elif self.ended_s is None:
            self.ended_s = listing.at_s
        self.finished = self.finished or (self.ended_s is not None and listing.at_s - self.ended_s >= END_HOLD_S)

    def _advanced(self, listing: Listing) -> Step:
        digests: dict[str, str] = {}
        step = advance(self.position, listing.snapshot, STREAM, at(listing.at_s))
        while step.question is not None:
            self.asked += 1
            content = listing.content(step.question)
            assert content is not None, "a question about what isn't listed"
            key = content_key(step.question)
            assert key not in digests, "it asks again what was answered"
            failed = self.failing_fetches and self.asked % self.failing_fetches == 0
            self.failed += bool(failed)
            digests[key] = "" if failed else str(content.id)
            step = advance(self.position, listing.snapshot, STREAM, at(listing.at_s), digests=digests)
        return step

    def killed(self, unpublished: int) -> None:
        """Go on as a successor would: from what was published."""
        self.published = max(self.published, len(self.out) - unpublished)
        self.out = self.out[: self.published]
        self.ended_s = None
        if not self.out:
            self.position = None
            return
        last = self.out[-1].numbered
        self.position = noted(last.position, self.digests())

    def digests(self) -> dict[int, str]:
        """What is known of the newest entries once they are downloaded."""
        return {one.numbered.number: str(one.content.id) for one in self.out[-REMEMBERED:] if one.content and not one.content.gap}


@dataclass
class Verdict:
    """What the oracle found: broken laws, and what is lawful but better seldom."""

    broken: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    first_load: int = -1
    """The load that broke a law first."""
    superfluous: list[int] = field(default_factory=list)
    """The loads that brought a DISCONTINUITY where nothing is cut."""

    def breaks(self, law: str, one: Out) -> None:
        self.first_load = one.load if self.first_load < 0 else self.first_load
        self.broken.append(law)


def judged(relay: Relay) -> Verdict:
    """Hold what was relayed against what was on air."""
    verdict = Verdict()
    before: Out | None = None
    gaps, cut = 0, False
    for index, one in enumerate(relay.out):
        number = one.numbered.number
        if index and number != relay.out[index - 1].numbered.number + 1:
            verdict.breaks(f"numbers: {number} after {relay.out[index - 1].numbered.number}", one)
        cut = cut or one.discontinuity
        here = one.content
        if here is None or here.gap:
            gaps += 1
            continue
        if before is not None and before.content is not None:
            _compare(verdict, relay, before, one, gaps, cut)
        before, gaps, cut = one, 0, False
    return verdict


def _compare(verdict: Verdict, relay: Relay, before: Out, one: Out, gaps: int, cut: bool) -> None:
    last, here = before.content, one.content
    assert last is not None
    assert here is not None
    number = one.numbered.number
    missing = here.id - last.id - 1
    if missing < 0:
        listing = relay.met[one.load]
        alone = isinstance(listing, Listing) and len(listing.snapshot.segments) == 1  # and nothing beside it that could contradict it
        if (cut or alone or _could_go_on(relay, before, one, gaps)) and _never_met(relay, before, one.load):
            verdict.counts["old content under names and numbers that nobody had seen"] += 1
        elif alone and _could_go_on(relay, before, one, gaps) and all(out.content != here for out in relay.out[: relay.out.index(one)]):
            verdict.counts["old content that goes on by its number, under a name as of an encoder that uses names in rounds"] += 1
        elif cut and _never_downloaded(relay, before, one):
            verdict.counts["old content that was listed and never relayed, long after the source fell silent"] += 1
        else:
            verdict.breaks(f"{'repeat' if missing == -1 else 'step back'}: {number} holds {here.id}, after {last.id}", one)
        return
    if here.piece == last.piece and missing in (0, gaps):
        verdict.counts["superfluous GAP"] += gaps - missing
        if cut:
            verdict.superfluous.append(one.load)
        return
    if cut:
        return
    if here.piece != last.piece and here.run == last.run and missing and missing == gaps:
        verdict.counts["the source's DISCONTINUITY lost in a hole"] += 1
    elif _could_go_on(relay, before, one, gaps):
        verdict.counts["nothing told it from going on"] += 1
    else:
        what = (
            "another encoder's"
            if here.run != last.run
            else "another piece"
            if here.piece != last.piece
            else f"{missing} missing, {gaps} GAPs"
        )
        verdict.breaks(f"no DISCONTINUITY: {number} holds {here.id}, after {last.id}: {what}", one)


def _never_downloaded(relay: Relay, last: Out, one: Out) -> bool:
    """Whether old content may be another encoder's, which uses names again, to any relay that players have waited for long enough.

    None of what is listed was relayed, so that no digest can tell; no times tell; nothing new came for so long that players have
    nothing left; and the playlist lists no more than an encoder that started anew meanwhile has had the time for.
    """
    here, taken = relay.met[one.load], relay.met[last.load]
    assert isinstance(here, Listing)
    assert isinstance(taken, Listing)
    if here.snapshot.segments[-1].time and last.numbered.segment.time:
        return False
    relayed = {out.content for out in relay.out if out.load < one.load and out.content}
    silent_s = here.at_s - taken.at_s
    longest_s = silent_s + 3 * TARGET_S
    listed_s = sum(segment.duration_s for segment in here.snapshot.segments)
    return silent_s >= STUCK_TARGET_DURATIONS * TARGET_S and listed_s <= longest_s and relayed.isdisjoint(here.contents)


def _never_met(relay: Relay, last: Out, load: int) -> bool:
    """Whether a load lists no name that the relay can know of when it took *last*, and its times, which tell nothing beside
    a *last* without one, are none: it could be another encoder's."""
    here = relay.met[load]
    assert isinstance(here, Listing)
    before = last.load
    if here.snapshot.segments[-1].time and last.numbered.segment.time:
        return False
    lives = max((index for index, one in enumerate(relay.met[:load]) if isinstance(one, Killed)), default=0)
    known = {_name(one) for old in relay.met[lives : before + 1] if isinstance(old, Listing) for one in old.snapshot.segments}
    known.update(_name(one.numbered.segment) for one in relay.out if one.load <= before)
    holds = {_name(one.numbered.segment): one.content.id for one in relay.out if one.load <= before and one.content}
    # A name that was relayed with another content is used again, as a digest tells: what it was met with else says nothing.
    return not any(
        _name(one) in known and holds.get(_name(one), held.id) == held.id
        for one, held in zip(here.snapshot.segments, here.contents, strict=False)
    )


def _name(segment: Segment) -> str:
    """What stays of a name: not the tokens, in the query or in the path."""
    return _PATH_TOKEN.sub("/", segment.uri.partition("?")[0])


def _could_go_on(relay: Relay, before: Out, one: Out, gaps: int) -> bool:
    """Whether a source that nothing happened to could have shown these loads, frozen edges and failed loads aside: only the media tells."""
    met, earlier = relay.met, relay.out[: relay.out.index(one)]
    killed = max((index for index in range(before.load, one.load) if isinstance(met[index], Killed)), default=0)
    published = max((out.load for out in earlier if out.load < killed), default=before.load)
    brought = next(out for out in reversed(earlier) if out.content)
    if brought is not before:  # a GAP that the source lists itself is something that came
        came = brought.numbered.number - before.numbered.number - 1
        if _could_go_on(relay, before, brought, came) and _could_go_on(relay, brought, one, gaps - came - 1):
            return True
    taken, new, last = met[before.load], met[one.load], before.content
    assert isinstance(taken, Listing)
    assert isinstance(new, Listing)
    # A successor knows what was published.
    since = [*met[before.load : published + 1], *met[killed + 1 : one.load]] if killed else met[before.load : one.load]
    assert last is not None
    shown = [each for each in since if isinstance(each, Listing)]
    shortest_s = min(segment.duration_s for each in (*shown, new) for segment in each.snapshot.segments[-3:])
    shortest_s = min(shortest_s, *(segment.duration_s for segment in new.snapshot.segments[:3]))
    olds = [each for each in shown if last in each.contents]
    return any(_leads(taken, old, new, met[one.load - 1], last, one, gaps, shortest_s) for old in olds)


def _leads(taken: Listing, old: Listing, new: Listing, doubt: Met, last: Content, one: Out, gaps: int, shortest_s: float) -> bool:
    """Whether the load *new* may follow *old*, which lists the *last* that was relayed: several origins may, each with its own numbers."""
    # What goes on from a playlist that doesn't fit doesn't fit either, to a relay that lived to see it.
    was = old.snapshot.segments[old.contents.index(last)]
    number = was.sequence
    if not _agrees(old, new) or (isinstance(doubt, Listing) and not _agrees(old, doubt) and not _due(was, one.numbered.segment)):
        return False
    went_by = (new.at_s - old.at_s) / shortest_s
    caught_up = (new.at_s - taken.at_s + 3 * TARGET_S) / shortest_s  # an edge or an encoder that stood still brings all at once
    first, newest = new.snapshot.segments[0].sequence, old.snapshot.segments[-1].sequence
    slid = first <= newest or (first <= newest + 1 + caught_up and len(old.snapshot.segments) <= 2 + went_by)
    return slid and gaps == one.numbered.segment.sequence - number - 1


def _due(last: Segment, then: Segment) -> bool:
    """Whether a segment tells the very number and time at which *last* goes on: another origin may have come between."""
    if last.program_date_time is None or then.program_date_time is None or then.sequence != last.sequence + 1:
        return False
    return abs((then.program_date_time - last.program_date_time).total_seconds() - last.duration_s) < 0.5


def _agrees(old: Listing, new: Listing) -> bool:
    """Whether two loads call the same what they number the same, and what isn't in both is not told apart by its times."""
    before = {segment.sequence: (segment, content) for segment, content in zip(old.snapshot.segments, old.contents, strict=False)}
    for now, holds in zip(new.snapshot.segments, new.contents, strict=False):
        was, held = before.get(now.sequence, (None, None))
        if was and _name(was) != _name(now) and holds != held:  # digests tell of names that only changed
            return False
        if was and was.time and now.time and abs((was.time - now.time).total_seconds()) > TARGET_S:
            return False
    return True


@dataclass
class Played:
    """A whole history."""

    world: World
    relay: Relay
    verdict: Verdict

    @property
    def blamed(self) -> Counter[str]:
        """The superfluous DISCONTINUITYs, by what last happened to the source before them."""
        found: Counter[str] = Counter()
        for load in self.verdict.superfluous:
            listing = self.relay.met[load]
            assert isinstance(listing, Listing)
            found[
                next(
                    (kind for when, kind in reversed(self.world.disturbances) if when <= listing.at_s and kind not in CALM_KINDS), "nothing"
                )
            ] += 1
        return found

    def told(self) -> str:
        """What failed, and how to see it again."""
        met = self.relay.met[: self.verdict.first_load + 1] if self.verdict.first_load >= 0 else self.relay.met
        out = ", ".join(
            f"{one.numbered.number}{'|' if one.discontinuity else ''}={one.content.id if one.content else 'GAP'}"
            for one in self.relay.out[-60:]
        )
        return f"{self.verdict.broken}\n{self.world.habits}\n{spoken(met)}\nrelayed (number=content): {out}\n{dict(self.relay.repairs)}"


def play(source: Habits, happens: list[Event], failing_fetches: int = 0) -> Played:
    """Relay a history and judge it."""
    world, relay = World(source), Relay(failing_fetches)
    for met in loads(world, happens):
        relay.failing_fetches *= not world.calm
        try:
            relay.meets(met)
        except AssertionError as error:
            return Played(world, relay, Verdict([f"raised {error}"]))
    waits_s = min(FURTHEST_BEHIND, WINDOWS_BEHIND * source.window) * TARGET_S if source.window <= SHORT_WINDOW else 0.0
    for met in calm(world, waits_s):
        if at_edge(relay):
            break
        relay.meets(met)
    verdict = judged(relay)
    newest = relay.met[-1]
    assert isinstance(newest, Listing)
    if not at_edge(relay):
        last = relay.out[-1].content if relay.out else None
        verdict.broken.append(f"not at the edge after a calm: {last.id if last else None}, the source is at {newest.contents[-1].id}")
    return Played(world, relay, verdict)


def at_edge(relay: Relay) -> bool:
    """Return whether the newest that the source lists is relayed."""
    newest = relay.met[-1]
    assert isinstance(newest, Listing)
    last = relay.out[-1].content if relay.out else None
    return last is not None and last.id == newest.contents[-1].id


# Each event may bring so many DISCONTINUITYs that the media did not need; what is not named here brings none.
MOST_SUPERFLUOUS = {"restart": 1, "renumber": 1, "wrong": 2, "origins": 2, "switch": 1, "hole": 1, "end": 1}


def lawful(played: Played) -> None:
    """Assert every law of the relay over a history."""
    assert not played.verdict.broken, played.told()
    happened = Counter(kind for _, kind in played.world.disturbances)
    allowed = sum(MOST_SUPERFLUOUS.get(kind, 0) * count for kind, count in happened.items())
    allowed += played.relay.repairs["dates_jumped"]  # A12: PROGRAM-DATE-TIMEs that don't go on need one
    allowed += played.relay.failed  # a doubt that no digest ended: a DISCONTINUITY too many is better than one too few
    assert len(played.verdict.superfluous) <= allowed, f"superfluous DISCONTINUITYs: {played.blamed}\n{played.told()}"


def broken(first: int, last: int, windows: tuple[int, ...] = (1, 2, 6, 60)) -> Iterator[tuple[int, int, str]]:
    """Yield seed, window and the broken law of each history that these seeds draw and that breaks one."""
    for seed in range(first, last + 1):
        for window in windows:
            chance = random.Random(f"{seed}-{window}")
            source, happens = drawn(chance, window)
            try:
                lawful(play(source, happens, chance.choice((0, 0, 3))))
            except AssertionError as error:
                yield seed, window, str(error).partition("\n")[0]


def main() -> int:
    """Play, and say what broke; exit code 1 if anything."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--first", type=int, required=True, help="seed")
    arguments.add_argument("--last", type=int, required=True, help="seed, played too")
    wanted = arguments.parse_args()
    count = 0
    for seed, window, law in broken(wanted.first, wanted.last):
        count += 1
        print(f"seed {seed}, window {window}: {law}", flush=True)
    print(f"{count} of {4 * (wanted.last + 1 - wanted.first)} histories break a law")
    return 1 if count else 0


if __name__ == "__main__":
    raise SystemExit(main())
