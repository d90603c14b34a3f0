"""Segments of one load, most of which the load before had too: held once, however many they are. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from hlsrelay.model import Segment

FEWEST_LEFT = 16
SHARE_LEFT = 8


class Run(Sequence[Segment]):
    """*first*, and behind it those of *behind* from *start* to *stop*.

    Runs share that list. It only ever grows at its end, which no run that is there reaches to: so a run never changes.
    """

    __slots__ = ("_behind", "_first", "_start", "_stop")

    def __init__(self, first: Segment, behind: list[Segment], start: int, stop: int) -> None:
        self._first, self._behind, self._start, self._stop = first, behind, start, stop

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Run:
        """Return a run of *segments*."""
        return cls(segments[0], list(segments[1:]), 0, len(segments) - 1)

    def moved_on(self, first: Segment, left: int, kept: int, then: Sequence[Segment]) -> Run:
        """Return *first*, which stands for the one after *left* that have left, the *kept* ones after that, and *then*.

        The newest run only may be moved on, and only once.
        """
        behind, start = self._behind, self._start + left
        stop = start + kept
        same = len(behind) - stop
        if behind[stop:] != list(then[:same]):  # what was there has changed
            behind, start, stop, same = behind[start:stop], 0, kept, 0
        behind.extend(then[same:])
        if start > max(FEWEST_LEFT, len(behind) // SHARE_LEFT):
            behind, start = behind[start:], 0
        return Run(first, behind, start, len(behind))

    def __len__(self) -> int:
        return 1 + self._stop - self._start

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Segment, ...]: ...
    def __getitem__(self, index: int | slice) -> Segment | tuple[Segment, ...]:
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            if step != 1:
                return tuple(self)[index]
            behind = self._behind[self._start + max(0, begin - 1) : max(self._start, self._start + end - 1)]
            return (self._first, *behind) if begin == 0 < end else tuple(behind)
        count = self._stop - self._start
        at = index if index >= 0 else index + count + 1
        if 0 < at <= count:
            return self._behind[self._start + at - 1]
        if at == 0:
            return self._first
        raise IndexError(index)

    def __iter__(self) -> Iterator[Segment]:
        yield self._first
        for at in range(self._start, self._stop):
            yield self._behind[at]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, tuple | Run) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))
