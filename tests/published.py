"""What several nodes published of their streams, as seen from outside, and the laws that it has to keep. Pure.

Times are seconds of one clock, that of the machine that saw it all. Who wrote is a node's name. A content is known by its digest; an
empty one is a GAP.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

TICK_S = 0.01
"""A file's time is the kernel's last tick, up to so much before its clock (10 ms where CONFIG_HZ is 100): what a node writes just after its
claim may seem to be of before."""


@dataclass(frozen=True, slots=True)
class Written:
    """A playlist that a node wrote: what it lists, by number, and when."""

    at_s: float
    stream: str
    writer: str
    entries: tuple[tuple[int, str], ...]
    cuts: int = 0
    ended: bool = False

    @property
    def last(self) -> int:
        """The newest number."""
        return self.entries[-1][0]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim that Redis told of."""

    at_s: float
    stream: str
    epoch: int
    node: str


@dataclass(frozen=True, slots=True)
class Offered:
    """A content, and for how long the source listed it. All streams of a history are of one source."""

    digest: str
    from_s: float
    until_s: float = float("inf")


class Law(StrEnum):
    """What may not be."""

    TWO_CONTENTS = "a number is used for two contents"
    REPEATED = "a content is listed under two numbers"
    MISSING = "what the source listed, while somebody wrote, was never listed"
    LATE = "who no longer has a stream writes"
    TWO_OWNERS = "two write at once"
    WENT_BACK = "the sequence goes back"
    LONG = "nothing new for two target durations: a gap of more than one"
    ENDED = "it ends, and nobody had it end"
    CUT = "a DISCONTINUITY that the source has not"


@dataclass(frozen=True, slots=True)
class Finding:
    """A law that was broken, in which stream, and how."""

    law: Law
    stream: str
    detail: str


@dataclass(frozen=True)
class History:
    """All that was seen, in any order."""

    writes: Sequence[Written]
    claims: Sequence[Claimed]
    offers: Sequence[Offered]
    target_duration_s: float

    def findings(self) -> list[Finding]:
        """Return what broke a law, each fault once."""
        found: list[Finding] = []
        for stream, writes in self.streams().items():
            claims = sorted((one for one in self.claims if one.stream == stream), key=lambda one: one.epoch)
            found += [
                *_by_number(stream, writes),
                *_by_content(stream, writes),
                *_missing(stream, writes, self.offers),
                *_late(stream, writes, claims),
                *_two_owners(stream, writes, claims),
                *_went_back(stream, writes),
                *_long(stream, writes, 2 * self.target_duration_s),
                *(Finding(Law.ENDED, stream, f"by {one.writer}") for one in writes if one.ended),
                *(Finding(Law.CUT, stream, f"by {one.writer}") for one in writes if one.cuts),
            ]
        return list(dict.fromkeys(found))

    def streams(self) -> dict[str, list[Written]]:
        """Return what was written of each stream, in order."""
        found: dict[str, list[Written]] = defaultdict(list)
        for one in sorted(self.writes, key=lambda one: one.at_s):
            if one.entries:
                found[one.stream].append(one)
        return dict(found)

    def longest_interval_s(self, after_s: float = float("-inf")) -> float:
        """Return the longest time from when something new was listed to the next one, of any stream, that ended after that time."""
        return max(
            (until_s - since_s for writes in self.streams().values() for since_s, until_s in _rises(writes) if until_s > after_s),
            default=0.0,
        )

    def numbers(self) -> int:
        """Return how many segments of all streams were listed."""
        return sum(len({number for one in writes for number, digest in one.entries if digest}) for writes in self.streams().values())

    def told(self) -> str:
        """Return the figures in a line."""
        counts: Mapping[str, int] = {law: sum(one.law is law for one in self.findings()) for law in Law}
        claims = len({(one.stream, one.epoch) for one in self.claims})
        return (
            f"{len(self.streams())} streams, {self.numbers()} segments in {len(self.writes)} playlists, {claims} claims: "
            f"{counts[Law.REPEATED] + counts[Law.TWO_CONTENTS]} repeated, {counts[Law.MISSING]} missing, {counts[Law.LATE]} late writes, "
            f"{counts[Law.TWO_OWNERS]} by two at once, {counts[Law.WENT_BACK]} back, {counts[Law.CUT]} cuts; "
            f"longest interval {self.longest_interval_s():.2f} s, TD {self.target_duration_s:g} s"
        )


def _by_number(stream: str, writes: Sequence[Written]) -> Iterator[Finding]:
    contents: dict[int, str] = {}
    for one in writes:
        for number, digest in one.entries:
            if contents.setdefault(number, digest) != digest:
                yield Finding(Law.TWO_CONTENTS, stream, f"{number}, by {one.writer}")


def _by_content(stream: str, writes: Sequence[Written]) -> Iterator[Finding]:
    numbers: dict[str, int] = {}
    for one in writes:
        for number, digest in one.entries:
            if digest and numbers.setdefault(digest, number) != number:
                yield Finding(Law.REPEATED, stream, f"{numbers[digest]} and {number}, by {one.writer}")


def _missing(stream: str, writes: Sequence[Written], offers: Sequence[Offered]) -> Iterator[Finding]:
    """What left the source's list before anybody wrote anything again can't be had."""
    listed = {digest for one in writes for _, digest in one.entries}
    known = [index for index, one in enumerate(offers) if one.digest in listed]
    lost = False
    for one in offers[known[0] : known[-1]] if known else ():
        if one.digest in listed:
            continue
        if any(one.from_s <= write.at_s <= one.until_s for write in writes):
            yield Finding(Law.MISSING, stream, f"{one.digest[:8]}, listed by the source from {one.from_s:.2f} to {one.until_s:.2f} s")
        else:
            lost = True
    numbers = {number for one in writes for number, _ in one.entries}
    for number in range(min(numbers), max(numbers)):
        if number not in numbers and not lost:
            yield Finding(Law.MISSING, stream, f"number {number}")


def _late(stream: str, writes: Sequence[Written], claims: Sequence[Claimed]) -> Iterator[Finding]:
    """The highest epoch that was claimed by then is whose the stream is; Redis may go back, time doesn't."""
    for one in writes:
        had = [claim for claim in claims if claim.at_s <= one.at_s + (TICK_S if claim.node == one.writer else 0.0)]
        if had and had[-1].node != one.writer:
            yield Finding(
                Law.LATE, stream, f"{one.writer} lists {one.last} {one.at_s - had[-1].at_s:.2f} s after {had[-1].node} claimed it"
            )


def _two_owners(stream: str, writes: Sequence[Written], claims: Sequence[Claimed]) -> Iterator[Finding]:
    since_s: dict[str, float] = {}
    last_s: dict[str, float] = {}
    for before, one in pairwise(writes):
        since_s.setdefault(before.writer, before.at_s)
        last_s[before.writer] = before.at_s
        if one.writer != before.writer and one.writer in last_s:
            again = any(claim.node == one.writer and last_s[one.writer] < claim.at_s <= one.at_s + TICK_S for claim in claims)
            if not again:
                yield Finding(Law.TWO_OWNERS, stream, f"{one.writer} lists {one.last} after {before.writer} began, at {one.at_s:.2f} s")


def _went_back(stream: str, writes: Sequence[Written]) -> Iterator[Finding]:
    last = -1
    for one in writes:
        if one.last < last:
            yield Finding(Law.WENT_BACK, stream, f"from {last} to {one.last}, by {one.writer}")
        last = max(last, one.last)


def _rises(writes: Sequence[Written]) -> Iterator[tuple[float, float]]:
    """Yield the times between which nothing new was listed."""
    since_s, last = writes[0].at_s, writes[0].last
    for one in writes:
        if one.last > last:
            yield since_s, one.at_s
            since_s, last = one.at_s, one.last


def _long(stream: str, writes: Sequence[Written], longest_s: float) -> Iterator[Finding]:
    for since_s, until_s in _rises(writes):
        if until_s - since_s > longest_s:
            yield Finding(Law.LONG, stream, f"{until_s - since_s:.2f} s, until {until_s:.2f} s")


def of(findings: Iterable[Finding], *but: Law) -> list[Finding]:
    """Return the findings of other laws."""
    return [one for one in findings if one.law not in but]
