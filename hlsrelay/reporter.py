"""Turns the ticks of a relay into what others see: the stream's hash in Redis, metrics, one log line per event."""

from __future__ import annotations

import collections
from collections import deque
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import TypeVar, cast

import structlog
from prometheus_client import Counter, Gauge

from hlsrelay.hls.window import Progress
from hlsrelay.ledger import LocalLedger, packed
from hlsrelay.link import Link
from hlsrelay.log import Repeated
from hlsrelay.model import SOURCE, Made, Turn
from hlsrelay.node import Node
from hlsrelay.relay import Tick
from hlsrelay.storage import LocalStorage

STALLED_TARGET_DURATIONS = 3.5
"""No new segment for this long: the source is stuck (hls-rules C)."""
LADDER_SEGMENTS = 50
"""So many are looked back on to say how much of the ladder is missing."""
OVERLOAD_OVER_SEGMENTS = 10
"""An overload is over when so many had every rung: told once, not each time that one more is missing."""
STATES = ("registered", "starting", "running", "stalled", "idle", "ended", "stopped", "failed")

log = structlog.get_logger()

M = TypeVar("M", Counter, Gauge)


class Reporter:
    """Turns ticks into what others see: the hash in Redis, metrics, one log line per event."""

    def __init__(self, link: Link, stream_id: str, node: Node) -> None:
        self._link = link
        self._id = stream_id
        self._metrics = node.metrics
        self._clock = node.clock
        self._told = node.told
        self._state = ""
        self._faults: dict[str, Repeated] = {}
        self._repairs: dict[str, int] = {}
        self._made_s: float | None = None
        self._dropped: deque[frozenset[str]] = deque(maxlen=LADDER_SEGMENTS)
        self._trouble = ""
        self._tracks: dict[str, Progress] = {}
        self._served_at: Callable[[], str] = lambda: "" if node.objects else node.url  # in a bucket all have all
        self._is_taken_up = False
        self._own: dict[tuple[Counter | Gauge, tuple[str, ...]], Counter | Gauge] = {}
        self.target_duration_s = 0.0

    def _of(self, metric: M, *labels: str) -> M:
        """Return this stream's own of a metric; to ask the metric costs ten times as much."""
        own = self._own.get((metric, labels))
        if own is None:
            own = self._own[metric, labels] = metric.labels(self._id, *labels)
        return cast("M", own)

    def state(self, state: str, **fields: str) -> None:
        """Report a state, once."""
        if state not in STATES:
            raise AssertionError(f"no such state: {state}")
        if state != self._state:
            self._state = state
            self._told(state)
            self._link.report(state=state, since=_stamp(self._clock.utc_now()), **fields)

    def resumed(self, storage: LocalStorage) -> None:
        """Take up all tracks that were ever published: who comes next has to know of those too that bring nothing just now."""
        found = {name: LocalLedger(storage, name).resume() for name in storage.ledgers()}
        self._tracks = {name: progress for name, progress in found.items() if progress}
        self._is_taken_up = True

    def left(self, storage: LocalStorage) -> None:
        """Have the next owner go on from all that was published, told of in a tick or not, if we came to take the stream up."""
        if self._is_taken_up:
            self.resumed(storage)
            if self._tracks:
                self._carry()

    def idle(self) -> None:
        """Report that nobody watches: what comes after begins anew."""
        self._made_s = None
        self.state("idle")

    def fault(self, event: str, text: str) -> None:
        """Report what went wrong; the same again is only counted."""
        repeated = self._faults.setdefault(event, Repeated())
        if repeated.is_news(text):
            log.warning(f"{event}.failed", stream=self._id, reason=text)
            self._link.report(last_error=f"{_stamp(self._clock.utc_now())} {event}: {text}")

    def well(self, event: str) -> None:
        """Report that what went wrong does so no more: when it does again, that is news."""
        if (repeated := self._faults.pop(event, None)) is not None:
            log.info(f"{event}.recovered", stream=self._id, failures=repeated.count)

    def tick(self, tick: Tick) -> None:
        """Report one step of the relay."""
        main = tick.track in ("", SOURCE)
        if tick.made and tick.progress and not tick.error:
            self._tracks[tick.track or SOURCE] = tick.progress
        publishing = "publish" if main else f"publish {tick.track}"
        if tick.error:
            self.fault(publishing, tick.error)
            self._stalls()
        elif tick.made:
            self.well(publishing)
            self.well("relay")
        if tick.made:
            preloading = "preload" if main else f"preload {tick.track}"
            if tick.made.cold:
                self.fault(preloading, tick.made.cold)
            else:
                self.well(preloading)
            self._counted(tick.made, "" if main else f"{tick.track} ")
            if main:
                self._published(tick.made, tick)
        if tick.turn:
            self._turned(tick.turn, tick.track)
        if main and tick.progress and tick.progress.ended:
            self.state("ended")

    def _published(self, made: Made, tick: Tick) -> None:
        self._made_s = self._clock.monotonic_s()
        self.target_duration_s = made.numbered.target_duration_s
        lag_s = (self._clock.utc_now() - made.numbered.position.advanced_at).total_seconds()
        self._of(self._metrics.lag_s).set(lag_s)
        self._of(self._metrics.last_number).set(made.entry.number)
        self._missing(made)
        if not tick.error:
            self.state("running", attempt="", retry_at="")
            self._link.report(last_sequence=str(made.entry.number), lag=f"{lag_s:.2f}")
            self._carry()

    def _carry(self) -> None:
        self._link.carry(lambda: packed(self._tracks, self._served_at()))

    def _missing(self, made: Made) -> None:
        """Count and tell what the ladder lacks of a segment; one that was lost says nothing about the ladder."""
        for rung, reason in made.failed.items():
            self._metrics.rung_gaps.labels(self._id, rung, "failure").inc()
            self.fault(f"rung {rung}", reason)
        for rung, reason in made.dropped.items():
            self._metrics.rung_gaps.labels(self._id, rung, "overload").inc()
            self.fault(f"ladder {rung}", reason)
        if made.lost:
            return
        self._dropped.append(frozenset(made.dropped))
        lately = frozenset[str]().union(*list(self._dropped)[-OVERLOAD_OVER_SEGMENTS:])
        missing = {f"rung {rung}" for rung in made.failed} | {f"ladder {rung}" for rung in lately}
        for event in [one for one in self._faults if one.startswith(("rung ", "ladder ")) and one not in missing]:
            self.well(event)
        self._of(self._metrics.ladder_paused).set(made.ladder_paused)
        trouble = _ladder_trouble(self._dropped, made) if lately or made.ladder_paused else ""
        if trouble != self._trouble:
            self._trouble = trouble
            self._link.report(ladder_trouble=trouble)

    def _counted(self, made: Made, track: str) -> None:
        self._of(self._metrics.segments, "gap" if made.lost else "whole").inc()
        self._of(self._metrics.bytes_in).inc(made.received_bytes)
        had_been_there = bool(made.lost) and not made.numbered.segment.gap
        self._repaired((*made.repairs, "segment_lost") if had_been_there else made.repairs)
        if made.lost:
            log.warning("segment.lost", stream=self._id, track=track.strip(), number=made.entry.number, reason=made.lost)
            self._link.report(last_error=f"{_stamp(self._clock.utc_now())} segment {track}{made.entry.number}: {made.lost}")

    def _repaired(self, names: tuple[str, ...]) -> None:
        for name in names:
            self._metrics.repairs.labels(self._id, name).inc()
            self._repairs[name] = self._repairs.get(name, 0) + 1
        if names:
            self._link.report(repairs=" ".join(f"{name}={count}" for name, count in sorted(self._repairs.items())))

    def _turned(self, turn: Turn, track: str) -> None:
        event = f"load {track}".removesuffix(f" {SOURCE}").strip()
        self._of(self._metrics.loads, "failed" if turn.error else "good").inc()
        self._repaired((*turn.repairs, "load_failed") if turn.error else turn.repairs)
        if turn.error:
            self.fault(event, turn.error)
        else:
            self.well(event)
        self._stalls()

    def _stalls(self) -> None:
        silent_s = self._clock.monotonic_s() - self._made_s if self._made_s is not None else 0.0
        if self._state == "running" and silent_s > STALLED_TARGET_DURATIONS * self.target_duration_s:
            self.state("stalled")


def _ladder_trouble(dropped: Collection[frozenset[str]], made: Made) -> str:
    """Return in one line what the ladder lacks at present."""
    if made.ladder_paused:
        return f"paused: {next(iter(made.failed.values()), '')}"
    counts = collections.Counter(rung for rungs in dropped for rung in rungs)
    return "overloaded: " + ", ".join(f"{rung} dropped {count} of the last {len(dropped)}" for rung, count in counts.most_common())


def _stamp(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
