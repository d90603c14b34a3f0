"""Keeps a stream's relay alive in this process: takes its folder, follows the operator's wishes, reports, and lets go in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass
from typing import Any

import structlog

from hlsrelay.awake import Fence
from hlsrelay.backfill import Backfill, Former, taken_up
from hlsrelay.clock import Nudges
from hlsrelay.demand import Demand
from hlsrelay.desk import Tools, at_once
from hlsrelay.errors import ConfigError, HlsRelayError, RegistryUnavailable, StorageAway, Superseded
from hlsrelay.fields import Registered, stream_of
from hlsrelay.house import cleared, withdraw
from hlsrelay.ladder import format_ladder
from hlsrelay.ledger import unpacked
from hlsrelay.link import Claim, Link
from hlsrelay.model import SOURCE, Desired, Stream
from hlsrelay.node import Node
from hlsrelay.relay import Tick, relay
from hlsrelay.reporter import Reporter
from hlsrelay.storage import MULTIVARIANT, LocalStorage
from hlsrelay.urls import redacted
from hlsrelay.values import replace

LAST_WORDS_S = 2.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LONGEST_WAIT_FOR_STORAGE_S = 4.0
STARTS_WITHIN_S = 120.0
"""A stream that is new waits for those that this process has already; if they leave it no room for so long, it starts all the same."""
LOOKS_UP_EVERY_S = 1.0
LET_GO = {"node": "", "session": "", "wanted": "", "ladder_trouble": ""}
HANDED_ON = {name: value for name, value in LET_GO.items() if name != "wanted"}
"""Who has asked for the stream is still to be seen: it is left to that one."""

log = structlog.get_logger()


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
    link = Link(node.registry, stream.id, node.redis.ensure if node.redis else None, claim, node.roster, node.lives)
    reporter = Reporter(link, stream.id, node)
    wishes = Wishes(stream, serves=node.serves)
    nudges = Nudges()
    demand = Demand(lambda: wishes.stream, node.clock, nudges, node.refusal)
    with node.storage(stream.id, claim.epoch if claim else 0) as storage:
        node.storages[stream.id] = storage
        if node.objects is None:
            node.coming.add(stream.id)
        node.demands[stream.id] = demand
        node.metrics.begun(stream.id)
        reporter.state("starting", node=node.name, reason="", wanted="", ladder_trouble="")
        log.info("stream.starting", stream=stream.id, source=redacted(stream.source), ladder=format_ladder(stream.ladder))
        following = asyncio.create_task(_follow(link, wishes, nudges, reporter), name=f"follow {stream.id}")
        gone = asyncio.create_task(leaving.wait())
        wanted = asyncio.create_task(link.wanted.wait())
        try:
            keeper = _Keeper(storage, claim, wishes, nudges, demand, reporter, node)
            keeping = asyncio.create_task(keeper.kept(), name=f"keep {stream.id}")
            await asyncio.wait((keeping, gone, wanted, following), return_when=asyncio.FIRST_COMPLETED)
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping
            if node.objects is None:  # a record may know of more than the bucket has
                with suppress(OSError):
                    reporter.left(storage)
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
            node.coming.discard(stream.id)
            demand.closed()
            demand.failed("it is being stopped")
            await _last_words(link)
            node.left(stream.id)
    return 0.0 if demand.idle else reporter.target_duration_s


@dataclass(frozen=True, slots=True)
class _Keeper:
    """Keeps one stream relayed as its operator wishes, from taking it up to its end."""

    storage: LocalStorage
    claim: Claim | None
    wishes: Wishes
    nudges: Nudges
    demand: Demand
    reporter: Reporter
    node: Node

    async def kept(self) -> None:
        """Relay the stream to its end, and fetch meanwhile what only its owners before have of what is listed."""
        sure = Fence(self.node.awake, self.node.registry, self.storage.stream_id, self.claim).passed if self.claim else at_once
        if not await self._taken_up():
            return
        work, backfill = self._wanted(sure), self.storage.absent
        await (_beside(backfill.filled(), work) if isinstance(backfill, Backfill) else work)

    async def _taken_up(self) -> bool:
        """Go on from where an owner before us stood, by what is published, or by what it told in Redis if that knows more.

        Storage that is away is waited for; returns False where the stream is to stop meanwhile. Raises Superseded.
        """
        storage, reporter, node = self.storage, self.reporter, self.node
        pause_s = SHORTEST_PAUSE_S
        while True:
            try:
                await storage.taken()
                break
            except StorageAway as error:
                if self.wishes.stream.desired is Desired.STOP:
                    return False
                reporter.fault("storage", str(error))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_WAIT_FOR_STORAGE_S)
        reporter.well("storage")
        known = self.claim.registered.fields if self.claim else {}
        carried = await node.registry.carried(storage.stream_id) if known.get("carried") else ""
        if node.objects is not None:
            unpacked(carried, storage)
        else:
            # Who lets go in order tells last where the stream stands, and only then that it is free.
            former = Former(carried, in_order=not known.get("session") and known.get("carried") == known.get("epoch"))
            await taken_up(storage, former, node.edge, node.url)
            node.coming.discard(storage.stream_id)
        reporter.resumed(storage)
        return True

    async def _wanted(self, sure: Callable[[], Awaitable[object]]) -> None:
        """Relay the stream to its end; one that is on_demand only while somebody watches, and meanwhile nothing of it runs or is shown."""
        storage, wishes, demand, reporter, node = self.storage, self.wishes, self.demand, self.reporter, self.node
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
                tools = Tools(upstream, storage, node.encoder, wishes, node.clock, self.nudges, spare, node.caches, sure, node.turns)
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
    with ExitStack() as starting:
        if await _may_start(tools):
            starting.callback(tools.turns.end)
        while True:
            try:
                async with aclosing(relay(tools)) as ticks:
                    async for tick in ticks:
                        starting.close()  # it has, or can't
                        reporter.tick(tick)
                        _tell(demand, tick, tools)
                        pause_s = SHORTEST_PAUSE_S if tick.made else pause_s
                return
            except Superseded:
                raise
            except Exception as error:
                starting.close()
                log.exception("relay.failed", again_in_s=pause_s)
                reporter.fault("relay", f"{type(error).__name__}, a fault of hlsrelay: see its log; taken up again in {pause_s:.0f} s")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _may_start(tools: Tools) -> bool:
    """Wait until a stream that nobody can be playing may start, where this process has all hands full; returns whether it has a turn.

    It waits for no longer than STARTS_WITHIN_S, and not at all where it is to stop, or somebody waits for it.
    """
    until_s = tools.clock.monotonic_s() + STARTS_WITHIN_S
    while tools.control.stream.desired is Desired.RUN and not tools.control.stream.on_demand and not tools.storage.ledgers():
        if await tools.turns.start(LOOKS_UP_EVERY_S):
            return True
        if tools.clock.monotonic_s() >= until_s:
            break
    return False


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
