"""What the pipeline of a track works with: the tools of its stream, and what the tracks of one presentation decide together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from hlsrelay.clock import Clock, Nudges, Pacer
from hlsrelay.encoder import Encoder
from hlsrelay.failover import Standing, considered, hold_s, primary_seen, progressed, stall_s, wanted
from hlsrelay.hls.window import Progress
from hlsrelay.ledger import Ledger
from hlsrelay.model import (
    ByteRange,
    Desired,
    Presentation,
    Restart,
    Snapshot,
    Stream,
    Track,
)
from hlsrelay.storage import LocalStorage


class Source(Protocol):
    """What the stages need of the upstream."""

    async def survey(self, stream: Stream) -> Presentation:
        """Return what the source presents. Raises UpstreamError, ConfigError."""

    async def load(self, name: str) -> Snapshot:
        """Return the media playlist of a surveyed track. Raises UpstreamError."""

    async def fetch(self, uri: str, byterange: ByteRange | None, restart: Restart, deadline_s: float) -> int:
        """Fetch a segment whole. Raises SegmentLost."""


class Control(Protocol):
    """What the operator wants, as known now; never waits."""

    @property
    def stream(self) -> Stream:
        """The stream's fields, as last read."""


@dataclass
class Agreement:
    """What the tracks of one presentation decide together (RFC 8216 6.2.4): where they break off, and the target duration."""

    generation: int = 1
    target_duration_s: int = 0
    discontinuities: int | None = None
    """Where a track that comes later begins to count; None: as the source does."""


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


def surveyed_for(stream: Stream) -> tuple[object, ...]:
    """Return the wishes that a survey follows: where one changes, the source is surveyed again."""
    return stream.source, stream.variants, stream.headers, stream.proxy


class Choice:
    """Which source is relayed now (failover has the rules)."""

    def __init__(self, tools: Tools, last: str = "") -> None:
        self._tools = tools
        self._last = last
        self._standing: Standing | None = None
        self.target_duration_s = 0.0

    @property
    def standing(self) -> Standing:
        """The standing, for the operator's sources of now."""
        self._standing = wanted(self._standing, self._tools.control.stream, self._tools.clock.monotonic_s(), self._last)
        return self._standing

    @property
    def stream(self) -> Stream:
        """The operator's wishes, with the source that is to be relayed."""
        return replace(self._tools.control.stream, source=self.standing.current)

    def progressed(self) -> None:
        """The current source has brought something new."""
        self._take(progressed(self.standing, self._tools.clock.monotonic_s()))

    def considered(self) -> None:
        """Leave the current source if it has been silent for too long."""
        patience_s = stall_s(self._tools.control.stream, self.target_duration_s)
        self._take(considered(self.standing, patience_s, self._tools.clock.monotonic_s()))

    def primary_seen(self, newest: str | None) -> None:
        """Take a look at the primary into account."""
        stream = self._tools.control.stream
        patience_s, well_s = stall_s(stream, self.target_duration_s), hold_s(stream, self.target_duration_s)
        self._take(primary_seen(self.standing, newest, patience_s, well_s, self._tools.clock.monotonic_s()))

    def _take(self, standing: Standing) -> None:
        moved = self._standing is not None and standing.current != self._standing.current
        self._standing = standing
        if moved:
            self._last = standing.current
            self._tools.nudges.nudge()


@dataclass(frozen=True)
class Desk:
    """What the pipeline of one track works with."""

    tools: Tools
    track: Track
    stream: Stream
    """The wishes that the source was surveyed for."""
    ledger: Ledger
    pacer: Pacer
    agreement: Agreement
    choice: Choice
    alone: bool = True
    """Whether it is the presentation's only track: then a break found in the media needs nobody's agreement."""
    progress: Progress | None = None
    """Where the track was left."""

    @property
    def followed(self) -> bool:
        """Whether the operator still wants what was surveyed, and wants it to run."""
        now = self.choice.stream
        return now.desired is Desired.RUN and surveyed_for(now) == surveyed_for(self.stream)
