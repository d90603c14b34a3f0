"""Keeps a stream's relay alive in this process: takes its folder, follows the operator's wishes, reports, and lets go in order."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from hlsrelay.clock import Clock, Nudges
from hlsrelay.desk import Tools
from hlsrelay.embedded import EmbeddedRedis, ffmpeg_path
from hlsrelay.encoder import Encoded, Encoder, LocalEncoder
from hlsrelay.errors import ConfigError, EncodeError, HlsRelayError, MissingProgram, RegistryUnavailable
from hlsrelay.fields import Registered, stream_of
from hlsrelay.ladder import format_ladder
from hlsrelay.log import Repeated
from hlsrelay.metrics import Metrics
from hlsrelay.model import SOURCE, Desired, Made, Stream, Turn
from hlsrelay.processes import Children
from hlsrelay.recipe import EncodeJob
from hlsrelay.registry import Link, RedisRegistry, Registry
from hlsrelay.relay import Tick, relay
from hlsrelay.settings import Settings
from hlsrelay.storage import LocalStorage
from hlsrelay.upstream import Upstream
from hlsrelay.urls import redacted

STALLED_TARGET_DURATIONS = 3.5
"""No new segment for this long: the source is stuck (hls-rules C)."""
LAST_WORDS_S = 2.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
STATES = ("registered", "starting", "running", "stalled", "ended", "stopped", "failed")

log = structlog.get_logger()


@dataclass
class Node:
    """What all relays of this process share."""

    settings: Settings
    live: Path
    registry: Registry
    children: Children
    encoder: Encoder
    metrics: Metrics = field(default_factory=Metrics)
    clock: Clock = field(default_factory=Clock)
    redis: EmbeddedRedis | None = None
    storages: dict[str, LocalStorage] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """This node's name in Redis."""
        return self.settings.node or f"{socket.gethostname()}:{os.getpid()}"


@asynccontextmanager
async def open_registry(settings: Settings, children: Children) -> AsyncGenerator[tuple[RedisRegistry, EmbeddedRedis | None], None]:
    """Give the registry that the settings name, answering; the embedded one is started where nobody else runs it."""
    embedded = None if settings.redis_url else EmbeddedRedis(settings.data, children)
    try:
        registry = RedisRegistry(await embedded.ensure() if embedded else settings.redis_url, settings.redis_prefix)
        try:
            await registry.ping()
            yield registry, embedded
        finally:
            await registry.aclose()
    finally:
        if embedded:
            await embedded.aclose()


def local_encoder(settings: Settings, children: Children) -> Encoder:
    """Return the encoder of this machine; where there is no ffmpeg one whose every job fails and says so."""
    try:
        return LocalEncoder(ffmpeg_path(), children, settings.transcode_slots or os.cpu_count() or 1, settings.encoders)
    except MissingProgram as error:
        return _NoEncoder(str(error))


class _NoEncoder:
    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def encode(self, _job: EncodeJob) -> Encoded:
        raise EncodeError(self._reason)


class Wishes:
    """What the operator wants of one stream: the newest fields that make sense (stages.Control)."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.deleted = False

    def take(self, registered: Registered | None) -> bool:
        """Follow the operator; returns whether anything changed. Raises ConfigError, and stays as it was, where the fields are wrong."""
        if registered is None:
            self.deleted = True
            wanted = replace(self.stream, desired=Desired.STOP)
        else:
            wanted = stream_of(registered.id, registered.fields)
        changed, self.stream = wanted != self.stream, wanted
        return changed


async def admitted(registered: Registered, node: Node) -> Stream:
    """Return the stream that is to run. Raises ConfigError where its fields make no sense, and reports that, or where it is set to stop."""
    try:
        stream = stream_of(registered.id, registered.fields)
    except ConfigError as error:
        link = Link(node.registry, registered.id)
        Reporter(link, registered.id, node).state("failed", reason=str(error))
        await _last_words(link)
        raise
    if stream.desired is Desired.STOP:
        raise ConfigError(f"stream '{stream.id}' is set to stop: hlsrelay start {stream.id} first")
    return stream


async def relay_stream(stream: Stream, node: Node, leaving: asyncio.Event) -> float:
    """Relay one registered stream until its operator stops or deletes it, or *leaving* is set; returns its target duration in seconds.

    Raises ResourceBusy where its folder is in other hands.
    """
    link = Link(node.registry, stream.id, node.redis.ensure if node.redis else None)
    reporter = Reporter(link, stream.id, node)
    wishes = Wishes(stream)
    nudges = Nudges()
    with LocalStorage(node.live, stream.id) as storage:
        node.storages[stream.id] = storage
        reporter.state("starting", node=node.name, reason="")
        log.info("stream.starting", stream=stream.id, source=redacted(stream.source), ladder=format_ladder(stream.ladder))
        following = asyncio.create_task(_follow(link, wishes, nudges, reporter, node), name=f"follow {stream.id}")
        gone = asyncio.create_task(leaving.wait())
        try:
            async with Upstream(node.settings.allow_networks) as upstream, Upstream(node.settings.allow_networks) as spare:
                tools = Tools(upstream, storage, node.encoder, wishes, node.clock, nudges, spare)
                relaying = asyncio.create_task(_relay(tools, reporter), name=f"relay {stream.id}")
                await asyncio.wait((relaying, gone, following), return_when=asyncio.FIRST_COMPLETED)
                relaying.cancel()
                with suppress(asyncio.CancelledError):
                    await relaying
                if following.done():
                    following.result()
            stopped = wishes.stream.desired is Desired.STOP
            reporter.state("stopped" if stopped else "registered", node="")
            log.info("stream.stopped" if stopped else "stream.released", stream=stream.id)
        except BaseException as error:
            reporter.state("failed", node="", reason=str(error) if isinstance(error, HlsRelayError) else type(error).__name__)
            raise
        finally:
            for task in (following, gone):
                task.cancel()
            await asyncio.gather(following, gone, return_exceptions=True)
            del node.storages[stream.id]
            await _last_words(link)
    return reporter.target_duration_s


async def _relay(tools: Tools, reporter: Reporter) -> None:
    """Run the relay to its end. What nobody foresaw does not take the stream down for good: it is taken up from its record again."""
    pause_s = SHORTEST_PAUSE_S
    while True:
        try:
            async with aclosing(relay(tools)) as ticks:
                async for tick in ticks:
                    reporter.tick(tick)
                    pause_s = SHORTEST_PAUSE_S if tick.made else pause_s
            return
        except Exception as error:
            log.exception("relay.failed", again_in_s=pause_s)
            reporter.fault("relay", f"{type(error).__name__}, a fault of hlsrelay: see its log; taken up again in {pause_s:.0f} s")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _follow(link: Link, wishes: Wishes, nudges: Nudges, reporter: Reporter, node: Node) -> None:
    """Take the operator's changes as they come; a change that makes no sense is reported and the stream goes on as it was."""
    async with aclosing(link.changes()) as changes:
        async for registered in changes:
            node.metrics.registry_up.set(link.up)
            try:
                if wishes.take(registered):
                    log.info(
                        "stream.changed", stream=wishes.stream.id, desired=wishes.stream.desired, source=redacted(wishes.stream.source)
                    )
                    nudges.nudge()
            except ConfigError as error:
                reporter.fault("field", str(error))
            else:
                reporter.well("field")


async def _last_words(link: Link) -> None:
    with suppress(RegistryUnavailable, TimeoutError):
        async with asyncio.timeout(LAST_WORDS_S):
            await link.flush()


class Reporter:
    """Turns ticks into what others see: the hash in Redis, metrics, one log line per event."""

    def __init__(self, link: Link, stream_id: str, node: Node) -> None:
        self._link = link
        self._id = stream_id
        self._metrics = node.metrics
        self._clock = node.clock
        self._state = ""
        self._faults: dict[str, Repeated] = {}
        self._repairs: dict[str, int] = {}
        self._made_s: float | None = None
        self.target_duration_s = 0.0

    def state(self, state: str, **fields: str) -> None:
        """Report a state, once."""
        if state not in STATES:
            raise AssertionError(f"no such state: {state}")
        if state != self._state:
            self._state = state
            self._link.report(state=state, since=_stamp(self._clock.utc_now()), **fields)

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
        publishing = "publish" if main else f"publish {tick.track}"
        if tick.error:
            self.fault(publishing, tick.error)
        elif tick.made:
            self.well(publishing)
            self.well("relay")
        if tick.made:
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
        self._metrics.lag_s.labels(self._id).set(lag_s)
        self._metrics.last_number.labels(self._id).set(made.entry.number)
        for rung, reason in made.failed.items():
            self._metrics.rung_gaps.labels(self._id, rung).inc()
            self.fault(f"rung {rung}", reason)
        if not made.lost:
            for event in [one for one in self._faults if one.startswith("rung ") and one.removeprefix("rung ") not in made.failed]:
                self.well(event)
        if not tick.error:
            self.state("running")
            self._link.report(last_sequence=str(made.entry.number), lag=f"{lag_s:.2f}")

    def _counted(self, made: Made, track: str) -> None:
        self._metrics.segments.labels(self._id, "gap" if made.lost else "whole").inc()
        self._metrics.bytes_in.labels(self._id).inc(made.received_bytes)
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
        self._metrics.loads.labels(self._id, "failed" if turn.error else "good").inc()
        self._repaired((*turn.repairs, "load_failed") if turn.error else turn.repairs)
        if turn.error:
            self.fault(event, turn.error)
        else:
            self.well(event)
        silent_s = self._clock.monotonic_s() - self._made_s if self._made_s is not None else 0.0
        if self._state == "running" and silent_s > STALLED_TARGET_DURATIONS * self.target_duration_s:
            self.state("stalled")


def _stamp(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
