"""A relay's memory over a series of loads, for the tests of hls.advance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hlsrelay.hls.advance import advance
from hlsrelay.hls.numbering import Step, content_key, noted
from hlsrelay.model import Numbered, Position, Snapshot
from tests.playlists import Playlist, at, stream


@dataclass
class History:
    """A relay's memory over a series of loads, as the stages keep it."""

    position: Position | None = None
    out: list[Numbered] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)
    holds: Callable[[str], str] = str
    """The digest of what has a name: the name, unless a test says otherwise."""
    held: dict[int, str] = field(default_factory=dict)
    """The digest of what is relayed, by number."""
    asked: int = 0

    def load(self, playlist: Playlist | Snapshot, seconds: float, source: str = "", ladder: str = "") -> Step:
        snapshot = playlist if isinstance(playlist, Snapshot) else playlist.snapshot()
        wanted = stream(source, ladder) if source else stream(ladder=ladder)
        digests: dict[str, str] = {}
        step = advance(self.position, snapshot, wanted, at(seconds))
        while step.question:
            self.asked += 1
            digests[content_key(step.question)] = self.holds(step.question.uri.rpartition("/")[2])
            step = advance(self.position, snapshot, wanted, at(seconds), digests=digests)
        self.held |= {one.number: self.holds(one.segment.uri.rpartition("/")[2]) for one in step.fresh if one.segment.uri}
        self.position = noted(step.position, self.held)
        self.out += step.fresh
        self.repairs += step.repairs
        return step

    def numbers(self) -> list[int]:
        return [one.number for one in self.out]

    def cuts(self) -> list[int]:
        return [one.number for one in self.out if one.discontinuity]

    def names(self) -> list[str]:
        return [one.segment.uri.rpartition("/")[2] for one in self.out]
