"""Keeps a stream's relay alive in this process: takes its folder, follows the operator's wishes, reports, and lets go in order."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from hlsrelay.clock import Clock, Nudges
from hlsrelay.demand import Demand
from hlsrelay.desk import Tools
from hlsrelay.edge import Edge
from hlsrelay.embedded import EmbeddedRedis, embedded_ffmpeg_path, ffmpeg_path
from hlsrelay.encoder import Encoded, Encoder, LocalEncoder
from hlsrelay.errors import ConfigError, EncodeError, HlsRelayError, MissingProgram, RegistryUnavailable, Superseded
from hlsrelay.fields import Registered, stream_of
from hlsrelay.hls.window import Progress
from hlsrelay.house import cleared, withdraw
from hlsrelay.ladder import format_ladder
from hlsrelay.ledger import LocalLedger, packed, unpacked
from hlsrelay.link import Claim, Link
from hlsrelay.log import Repeated
from hlsrelay.memory import Pressure
from hlsrelay.metrics import Metrics
from hlsrelay.model import SOURCE, Desired, Made, Stream, Turn
from hlsrelay.processes import Children
from hlsrelay.recipe import EncodeJob
from hlsrelay.registry import Registry
from hlsrelay.relay import Tick, relay
from hlsrelay.settings import Settings
from hlsrelay.storage import MULTIVARIANT, LocalStorage
from hlsrelay.upstream import Upstream
from hlsrelay.urls import redacted

STALLED_TARGET_DURATIONS = 3.5
"""No new segment for this long: the source is stuck (hls-rules C)."""
LADDER_SEGMENTS = 50
"""So many are looked back on to say how much of the ladder is missing."""
OVERLOAD_OVER_SEGMENTS = 10
"""An overload is over when so many had every rung: told once, not each time that one more is missing."""
LAST_WORDS_S = 2.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LET_GO = {"node": "", "session": "", "wanted": "", "ladder_trouble": ""}
HANDED_ON = {name: value for name, value in LET_GO.items() if name != "wanted"}
"""Who has asked for the stream is still to be seen: it is left to that one."""
STATES = ("registered", "starting", "running", "stalled", "idle", "ended", "stopped", "failed")

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
    pressure: Pressure = field(default_factory=lambda: Pressure(100.0))
    storages: dict[str, LocalStorage] = field(default_factory=dict)
    demands: dict[str, Demand] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Streams that other nodes relay into folders that are not ours, and the URLs at which those serve."""
    url: str = ""
    """Where other nodes reach our web server, once it serves."""
    hears_redis: Callable[[], bool] = lambda: True
    """Says whether Redis has answered lately."""
    draining: bool = False
    """Whether it is about to leave: what balances load is to send viewers elsewhere."""
    told: Callable[[str], None] = lambda _: None
    """Hears each state that a stream comes to."""

    @functools.cached_property
    def edge(self) -> Edge:
        """What fetches from the other nodes."""
        return Edge(lambda: self.elsewhere, self.clock.monotonic_s)

    @property
    def name(self) -> str:
        """This node's name in Redis."""
        return self.settings.node or f"{socket.gethostname()}:{os.getpid()}"

    def place(self) -> dict[str, str]:
        """Return where we serve what, as our session tells it (session)."""
        return {"http": self.settings.http, "live": str(self.live.resolve()), "url": self.url}

    @property
    def serves(self) -> bool:
        """Whether players reach the streams through this process."""
        return self.settings.http != "none"

    @property
    def pressed(self) -> bool:
        """Whether memory is short (memory): no ladder job starts, and nothing new is claimed."""
        return self.pressure.pressed

    def connect(self) -> Upstream:
        """Return a way to a source."""
        return Upstream(self.settings.allow_networks)

    def refusal(self) -> str:
        """Return why nothing more may be started here now, empty where it may: the one place that is asked before a cold start."""
        return "memory is short on this node" if self.pressed else ""


def local_encoder(settings: Settings, children: Children) -> Encoder:
    """Return the encoder of this machine; where there is no ffmpeg one whose every job fails and says so."""
    try:
        ffmpeg, newer = (settings.ffmpeg, None) if settings.ffmpeg else (ffmpeg_path(), embedded_ffmpeg_path())
        slots = settings.transcode_slots or os.cpu_count() or 1
        return LocalEncoder(ffmpeg, children, slots, preferred=settings.encoders, newer=newer)
    except MissingProgram as error:
        return _NoEncoder(str(error))


class _NoEncoder:
    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def encode(self, _job: EncodeJob) -> Encoded:
        raise EncodeError(self._reason)

    def shed(self) -> bool:
        return False


class Wishes:
    """What the operator wants of one stream: the newest fields that make sense (stages.Control)."""

    def __init__(self, stream: Stream, *, serves: bool = True) -> None:
        self.stream = stream
        self.deleted = False
        self._serves = serves

    def take(self, registered: Registered | None) -> bool:
        """Follow the operator; returns whether anything changed. Raises ConfigError, and stays as it was, where the fields are wrong."""
        if registered is None:
            self.deleted = True
            wanted = replace(self.stream, desired=Desired.STOP)
        else:
            wanted = possible(registered, serves=self._serves)
        changed, self.stream = wanted != self.stream, wanted
        return changed


def possible(registered: Registered, *, serves: bool) -> Stream:
    """Return the stream that is wanted. Raises ConfigError where its fields make no sense here."""
    stream = stream_of(registered.id, registered.fields)
    if stream.on_demand and not serves:
        raise ConfigError("on_demand is 'yes', and who watches is known only where hlsrelay serves: set on_demand=no, or HLSRELAY_HTTP")
    return stream


async def admitted(registered: Registered, node: Node) -> Stream:
    """Return the stream that is to run. Raises ConfigError where its fields make no sense, and reports that, or where it is set to stop."""
    try:
        stream = possible(registered, serves=node.serves)
    except ConfigError as error:
        link = Link(node.registry, registered.id)
        Reporter(link, registered.id, node).state("failed", reason=str(error))
        await _last_words(link)
        raise
    if stream.desired is Desired.STOP:
        raise ConfigError(f"stream '{stream.id}' is set to stop: hlsrelay start {stream.id} first")
    return stream


async def relay_stream(stream: Stream, node: Node, leaving: asyncio.Event, claim: Claim | None = None) -> float:
    """Relay one registered stream until its operator stops or deletes it, another node asks for it, or *leaving* is set.

    Returns its target duration in seconds. Raises ResourceBusy where its folder is in other hands, Superseded where the stream came to be.
    """
    link = Link(node.registry, stream.id, node.redis.ensure if node.redis else None, claim)
    reporter = Reporter(link, stream.id, node)
    wishes = Wishes(stream, serves=node.serves)
    nudges = Nudges()
    demand = Demand(lambda: wishes.stream, node.clock, nudges, node.refusal)
    with LocalStorage(node.live, stream.id) as storage:
        await _taken_up(storage, node, stream.id, carried=bool(claim and claim.registered.fields.get("carried")))
        reporter.resumed(storage)
        node.storages[stream.id] = storage
        node.demands[stream.id] = demand
        reporter.state("starting", node=node.name, reason="", wanted="", ladder_trouble="")
        log.info("stream.starting", stream=stream.id, source=redacted(stream.source), ladder=format_ladder(stream.ladder))
        following = asyncio.create_task(_follow(link, wishes, nudges, reporter), name=f"follow {stream.id}")
        gone = asyncio.create_task(leaving.wait())
        wanted = asyncio.create_task(link.wanted.wait())
        try:
            keeping = asyncio.create_task(_kept(storage, wishes, nudges, demand, reporter, node), name=f"keep {stream.id}")
            await asyncio.wait((keeping, gone, wanted, following), return_when=asyncio.FIRST_COMPLETED)
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping
            if following.done():
                following.result()
            stopped = wishes.stream.desired is Desired.STOP
            reporter.state("stopped" if stopped else "registered", **(HANDED_ON if link.wanted.is_set() and not stopped else LET_GO))
            log.info("stream.stopped" if stopped else "stream.released", stream=stream.id)
        except Superseded as error:  # what we would write of it is refused
            log.warning("stream.superseded", stream=stream.id, reason=str(error))
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, HlsRelayError) else type(error).__name__
            reporter.state("failed", reason=reason, **LET_GO)
            raise
        finally:
            for task in (following, gone, wanted):
                task.cancel()
            await asyncio.gather(following, gone, wanted, return_exceptions=True)
            del node.storages[stream.id], node.demands[stream.id]
            demand.closed()
            demand.failed("it is being stopped")
            await _last_words(link)
    return 0.0 if demand.idle else reporter.target_duration_s


async def _taken_up(storage: LocalStorage, node: Node, stream_id: str, *, carried: bool) -> None:
    """Go on from where an owner on another machine stood, if our folder knows less of the stream.

    Raises RegistryUnavailable where that can't be had, and so nobody knows how far its numbers have come.
    """
    if carried and unpacked(await node.registry.carried(stream_id), storage):
        log.info("stream.taken_up", stream=stream_id, reason="its last owner's folder is not ours")


async def _kept(storage: LocalStorage, wishes: Wishes, nudges: Nudges, demand: Demand, reporter: Reporter, node: Node) -> None:
    """Relay the stream to its end; one that is on_demand only while somebody watches, and meanwhile nothing of it runs or is shown."""
    while True:
        if demand.unwanted:
            demand.idle = True
            reporter.idle()
            try:
                withdraw(storage, node.clock)
            except OSError as error:
                reporter.fault("withdraw", f"can't record what was published: {error.strerror}")
            await _beside(cleared(storage, node.clock), demand.wanted())
            if wishes.stream.desired is Desired.STOP:
                return
            demand.idle = False
            reporter.state("starting")
        async with node.connect() as upstream, node.connect() as spare:
            tools = Tools(upstream, storage, node.encoder, wishes, node.clock, nudges, spare)
            if not await _first_of(_relay(tools, reporter, demand), demand.left()):
                return
        demand.closed()


async def _first_of(*works: Coroutine[Any, Any, None]) -> int:
    """Return which of *works* was done first, or raise what it raised; the others are cancelled, and gone."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        first = next((index for index, task in enumerate(tasks) if task.done()), -1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    tasks[first].result()
    return first


async def _beside(work: Coroutine[Any, Any, None], awaited: Coroutine[Any, Any, None]) -> None:
    """Wait for *awaited*, and let *work* go on beside it until then."""
    task = asyncio.create_task(work)
    try:
        await awaited
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _relay(tools: Tools, reporter: Reporter, demand: Demand) -> None:
    """Run the relay to its end. What nobody foresaw does not take the stream down for good: it is taken up from its record again."""
    pause_s = SHORTEST_PAUSE_S
    while True:
        try:
            async with aclosing(relay(tools)) as ticks:
                async for tick in ticks:
                    reporter.tick(tick)
                    _tell(demand, tick, tools)
                    pause_s = SHORTEST_PAUSE_S if tick.made else pause_s
            return
        except Exception as error:
            log.exception("relay.failed", again_in_s=pause_s)
            reporter.fault("relay", f"{type(error).__name__}, a fault of hlsrelay: see its log; taken up again in {pause_s:.0f} s")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _tell(demand: Demand, tick: Tick, tools: Tools) -> None:
    """Let players who wait for a stream to start have its first window, all that the first load listed, or hear what went wrong."""
    if tick.track not in ("", SOURCE) or not tick.turn:
        return
    if reason := tick.turn.error or tick.error:
        if not tools.control.stream.backups:  # else another source may yet be taken
            demand.failed(reason)
    elif tick.progress and tick.progress.entries and MULTIVARIANT in tools.storage.playlists:
        demand.opened()


async def _follow(link: Link, wishes: Wishes, nudges: Nudges, reporter: Reporter) -> None:
    """Take the operator's changes as they come; a change that makes no sense is reported and the stream goes on as it was."""
    async with aclosing(link.changes()) as changes:
        async for registered in changes:
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
    with suppress(RegistryUnavailable, Superseded, TimeoutError):
        async with asyncio.timeout(LAST_WORDS_S):
            await link.flush()


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
        self.target_duration_s = 0.0

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
        self._missing(made)
        if not tick.error:
            self.state("running", attempt="", retry_at="")
            self._link.report(last_sequence=str(made.entry.number), lag=f"{lag_s:.2f}")
            self._link.carry(lambda: packed(self._tracks))

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
        self._metrics.ladder_paused.labels(self._id).set(made.ladder_paused)
        trouble = _ladder_trouble(self._dropped, made) if lately or made.ladder_paused else ""
        if trouble != self._trouble:
            self._trouble = trouble
            self._link.report(ladder_trouble=trouble)

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


def _ladder_trouble(dropped: Collection[frozenset[str]], made: Made) -> str:
    """Return in one line what the ladder lacks at present."""
    if made.ladder_paused:
        return f"paused: {next(iter(made.failed.values()), '')}"
    counts = Counter(rung for rungs in dropped for rung in rungs)
    return "overloaded: " + ", ".join(f"{rung} dropped {count} of the last {len(dropped)}" for rung, count in counts.most_common())


def _stamp(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
