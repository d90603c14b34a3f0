"""The stages between the source's playlist and ours, as generators that pull from one another.

    surveyed -> for each track: loaded -> numbered -> in_order(Downloading) -> in_order(Preloading(Transcoding)) -> published

Each stage takes one item at a time and gives one: a loss is a value (a Made without files), a Turn marks the end of a load and goes
through untouched. The look-ahead of `in_order` is what lets the loader go on while the encoder is busy, and what stops it in the end.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import datetime, timedelta

from hlsrelay.clock import Pacer
from hlsrelay.cutting import Cutting
from hlsrelay.desk import Choice, Desk, Look, Tools
from hlsrelay.errors import ConfigError, StorageAway, TrackGone, UpstreamError
from hlsrelay.hls.advance import live_edge
from hlsrelay.hls.dateranges import carried
from hlsrelay.hls.numbering import REMEMBERED, Load, Step, given_up, length_of
from hlsrelay.hls.parse import identity
from hlsrelay.hls.render import media_playlist
from hlsrelay.hls.window import Progress, expired, shortened
from hlsrelay.ledger import Ledger
from hlsrelay.model import (
    SOURCE,
    Desired,
    Made,
    Numbered,
    Snapshot,
    Stream,
    Turn,
)
from hlsrelay.sampling import newest_had
from hlsrelay.values import replace

END_HOLD_TARGET_DURATIONS = 3
"""An encoder that restarts may write ENDLIST and go on: players wait this long before they give up, so ours is held back as long."""
FIRST_LOOK_S = 5.0
CATCH_UP_TARGET_DURATIONS = 1.5
GIVEN_UP_TARGET_DURATIONS = 2.25
"""The next segment of an edge that is one behind comes after two; the others are held up for little longer (below)."""
STALE_TARGET_DURATIONS = 4.5
"""So long for edges that list less in turn: the others are held up no more when their second segment without this track is due."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 2.0
"""Between two attempts to have storage take what is published."""
STOPS_WITHIN_S = 10.0
"""So long storage that is away is given to take the end of a stream that is to stop."""
LONGEST_HOLD_TARGET_DURATIONS = 2.5
"""Players hold three target durations: a track that others can't keep up with goes on alone before theirs run dry."""


async def looked(desks: list[Desk]) -> None:
    """Look at all tracks at once before any begins: they agree on the target duration, and on a clock (RFC 8216 6.2.4)."""

    async def look(desk: Desk) -> None:
        try:
            async with asyncio.timeout(FIRST_LOOK_S):
                snapshot = await desk.tools.upstream.load(desk.track.name)
        except (UpstreamError, TimeoutError) as error:
            desk.first_look.append(Look(desk.stream, error=str(error) or "no playlist in time"))
        else:
            desk.first_look.append(Look(desk.stream, snapshot))

    await asyncio.gather(*(look(desk) for desk in desks))
    found = {desk.track.name: one.snapshot for desk in desks for one in desk.first_look if one.snapshot}
    agreement = desks[0].agreement
    agreement.seen_at_first(found)
    if not agreement.target_duration_s:
        agreement.target_duration_s = max((snapshot.target_duration_s for snapshot in found.values()), default=0)
    if not agreement.ends:
        agreement.begins = _begins(found, desks[0].stream)
    dated = next((name for name, snapshot in found.items() if snapshot.segments[-1].time), None)
    if dated and SOURCE not in agreement.ends:
        agreement.clock = SOURCE if SOURCE in found and found[SOURCE].segments[-1].time else dated
        for segment in found[agreement.clock].segments[-REMEMBERED:]:
            if segment.time:
                agreement.told(segment.sequence, segment.time)
                agreement.ends.setdefault(agreement.clock, segment.time)
                agreement.ends[agreement.clock] = segment.time + timedelta(seconds=segment.duration_s)


def _begins(found: Mapping[str, Snapshot], stream: Stream) -> dict[str, datetime]:
    """Return when tracks that tell their times begin: earlier than at the live edge by as much as the edge of one is behind another's."""
    edges = {name: live_edge(one) for name, one in found.items()}
    firsts = {name: edge[0].time for name, edge in edges.items() if edge[0].time}
    lasts = [edge[-1].time + length_of(edge[-1:]) for edge in edges.values() if edge[-1].time]
    behind = max(lasts) - min(lasts) if lasts else timedelta(0)
    if behind > timedelta(seconds=stream.window_s):  # their clocks have nothing to do with one another
        return {}
    return {name: max(firsts.values()) - behind for name in firsts}


async def loaded(desk: Desk) -> AsyncGenerator[Look, None]:
    """Yield the track's playlist each time it is due, until the operator wants the stream stopped or another source.

    Another source begins at one moment for all tracks: one that has a segment less than the others first catches up.
    """
    agreement, name = desk.agreement, desk.track.name
    left_s: float | None = None
    async for now_s in desk.pacer:
        stream = desk.choice.stream
        if not desk.followed:
            left_s = now_s if left_s is None else left_s
            catches_up = stream.desired is Desired.RUN and agreement.behind(name, desk.stream)
            if not catches_up or now_s - left_s >= CATCH_UP_TARGET_DURATIONS * agreement.target_duration_s:
                return
            stream = desk.stream
        if desk.first_look:
            look = desk.first_look.pop()
        else:
            try:
                look = Look(stream, await desk.tools.upstream.load(name))
            except TrackGone as error:
                desk.choice.survey_again()
                yield Look(stream, error=str(error))
                return  # there is nothing to catch up with, and each survey that is asked for makes the next load due
            except UpstreamError as error:
                look = Look(stream, error=str(error))
        if look.snapshot is None:
            desk.pacer.failed()
        yield look


async def watched_primary(choice: Choice, tools: Tools) -> AsyncGenerator[None, None]:
    """Look at the primary now and then while a backup is relayed. Yields nothing: what it sees goes into *choice*."""
    if tools.spare is None or choice.standing.index == 0:
        return
    pacer = Pacer(tools.clock, tools.nudges)
    relayed = choice.stream
    async for _ in pacer:
        stream = tools.control.stream
        if stream.desired is Desired.STOP or choice.stream.source != relayed.source or choice.standing.index == 0:
            return
        try:
            await tools.spare.survey(stream)
            snapshot = await tools.spare.load(SOURCE)
        except (UpstreamError, ConfigError):
            choice.primary_seen(None)
            continue
        newest = f"{snapshot.segments[-1].sequence} {identity(snapshot.segments[-1])}"
        well = not choice.takes_back(newest) or await newest_had(tools.spare, snapshot, stream.keys, tools.clock)
        choice.primary_seen(newest if well else None)
    yield


async def numbered(looks: AsyncIterator[Look], desk: Desk) -> AsyncGenerator[Numbered | Turn, None]:
    """Yield each new segment under its number, then the Turn of its load."""
    position = desk.progress.position if desk.progress else None
    clock, agreement, name = desk.tools.clock, desk.agreement, desk.track.name
    cutting = Cutting(desk)
    ended_s: float | None = None
    marks = deque([""], maxlen=REMEMBERED)
    moved_s = new_s = clock.monotonic_s()
    async for look in looks:
        snapshot, step = look.snapshot, Step(position) if position else None
        if snapshot is not None:
            step = await cutting.step(position, snapshot, look.stream)
            desk.pacer.loaded(
                fresh_s=tuple(one.duration_s for one in step.fresh),
                listed=len(snapshot.segments),
                target_duration_s=snapshot.target_duration_s,
                newest_s=snapshot.segments[-1].duration_s,
                polling=look.stream.polling,
            )
            mark = f"{snapshot.segments[-1].sequence} {identity(snapshot.segments[-1])}"
            new_s = clock.monotonic_s() if step.fresh or mark not in marks else new_s
            moved_s = clock.monotonic_s() if mark != marks[-1] else moved_s
            marks.append(mark)
        quiet_s, stale_s = clock.monotonic_s() - moved_s, clock.monotonic_s() - new_s
        target_s = agreement.target_duration_s
        silent = quiet_s >= GIVEN_UP_TARGET_DURATIONS * target_s or stale_s >= STALE_TARGET_DURATIONS * target_s
        goes_on = step and step.position.source == look.stream.source and not step.position.withdrawn
        if step and goes_on and not step.fresh and silent:
            seen = snapshot or Snapshot((), agreement.target_duration_s, 0)
            fallen = given_up(step.position, Load(seen, look.stream, clock.utc_now(), agreement.known_to(name)), step.begins_at)
            step = replace(fallen, repairs=(*step.repairs, *fallen.repairs), begins_at=step.begins_at)
        said = (*snapshot.repairs, *cutting.repairs) if snapshot else ()
        repairs = (*said, *step.repairs) if step else said
        if step:
            position = step.position
            agreement.numbered(name, step)
            for one in carried(step.fresh, look.snapshot):
                yield one
        if snapshot is None:
            yield Turn(look.stream, error=look.error, repairs=repairs)
            continue
        now_s = clock.monotonic_s()
        ended_s = None if not snapshot.ended or (step and step.fresh) else now_s if ended_s is None else ended_s
        ended = ended_s is not None and now_s - ended_s >= END_HOLD_TARGET_DURATIONS * snapshot.target_duration_s
        yield Turn(look.stream, repairs=repairs, ended=ended)


async def caught_up(ready: AsyncIterator[Made | Turn], desk: Desk) -> AsyncGenerator[Made | Turn, None]:
    """Pass on what a track's pipeline makes; the first of it, where it is held, once there is as much as players may know already.

    An owner before us that was gone, or cut off, without a word may have listed more than it could tell: all that the source lists, and
    what others saw. It is shown together. What can't be had is not waited for longer than players hold.
    """
    storage, clock, name = desk.tools.storage, desk.tools.clock, desk.track.name
    until_s = clock.monotonic_s() + LONGEST_HOLD_TARGET_DURATIONS * max(1, desk.agreement.target_duration_s)
    last = desk.progress.position.last_number if desk.progress else -1
    waiting: list[Made] = []
    looked = False
    async for item in ready:
        if name in storage.held:
            if isinstance(item, Made):
                last = item.entry.number
                waiting.append(item)
            else:
                looked = looked or not item.error
            if clock.monotonic_s() < until_s and not (looked and last >= storage.held[name]):
                if isinstance(item, Turn):
                    yield item
                continue
            for one in waiting[:-1]:
                yield replace(one, numbered=replace(one.numbered, more=True))
            if waiting:
                yield waiting.pop()
            waiting.clear()
            storage.held.pop(name, None)
            if isinstance(item, Made):
                continue
        yield item
    for one in waiting:
        yield one


async def in_step(progress: Progress, made: Made, desk: Desk) -> None:
    """Wait until no other track would be left more than a target duration behind (A20), as long as that can be waited for."""
    clock, agreement, name = desk.tools.clock, desk.agreement, desk.track.name
    end = progress.position.next_program_date_time
    patience = timedelta(seconds=LONGEST_HOLD_TARGET_DURATIONS * progress.target_duration_s)
    until = made.numbered.position.advanced_at + patience
    moved = agreement.moved.listen()
    while desk.followed and agreement.waits_for(name, end, made.numbered.stream) and (left := until - clock.utc_now()) > timedelta(0):
        await moved.wait(min(left.total_seconds(), 0.5))
        moved.clear()


async def published(progress: Progress, desk: Desk) -> Progress:
    """Publish what a track has come to, once it is sure that the stream is ours still. See `publish`."""
    await desk.tools.sure()
    return publish(progress, desk.ledger, desk.tools)


def publish(progress: Progress, ledger: Ledger, tools: Tools) -> Progress:
    """Record, then show, then sweep. Returns the progress without what was swept. Raises OSError where the disk says no."""
    progress, storage = to_be_had(progress, tools), tools.storage
    ledger.record(progress)
    if progress.track not in storage.held or progress.ended:
        for playlist, name in [(f"{one.name}/index.m3u8", one.name) for one in progress.renditions]:
            if progress.entries:
                storage.publish(playlist, media_playlist(progress, name))
            else:
                storage.remove([playlist])
    return swept(progress, tools)


def to_be_had(progress: Progress, tools: Tools) -> Progress:
    """Return *progress* without entries that a file is missing of and can't be had: its owner before us is gone."""
    if tools.storage.lost_until:
        progress = shortened(progress, tools.storage.lost_until, tools.clock.utc_now())
    if progress.former and tools.storage.absent is None:
        progress = replace(progress, former=())
    return progress


def swept(progress: Progress, tools: Tools) -> Progress:
    """Remove the files that nobody may ask for any more (hls-rules A7)."""
    progress, gone = expired(progress, tools.clock.utc_now())
    tools.storage.remove(gone)
    return progress


class Settling:
    """Has storage take what was published, before anything more is: while it is away, segments queue up to the look-ahead's end."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._pause_s = 0.0
        self._given_up_s: float | None = None
        self.error = ""
        """Why what was published is not there, where that was given up."""

    async def attempt(self) -> str:
        """Try once, after a pause where the last try failed; returns why it failed, empty where there is nothing more to try.

        That is so too where a stream that is to stop could not be ended in time. Raises Superseded.
        """
        if not self._tools.storage.unsettled:  # each tick passes here
            self.error, self._pause_s, self._given_up_s = "", 0.0, None
            return ""
        if self._pause_s and self._left_s() > 0:
            await asyncio.sleep(min(self._left_s(), self._pause_s))
        if (left_s := self._left_s()) <= 0:
            return ""
        try:
            async with asyncio.timeout(left_s if math.isfinite(left_s) else None):
                await self._tools.storage.settled()
        except (StorageAway, TimeoutError) as error:
            self.error = str(error) or "storage does not answer in time"
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s or SHORTEST_PAUSE_S)
            return self.error
        self.error, self._pause_s, self._given_up_s = "", 0.0, None
        return ""

    def _left_s(self) -> float:
        """Return for how long it is worth a try."""
        if self._tools.control.stream.desired is not Desired.STOP:
            self._given_up_s = None
            return math.inf
        if not self._pause_s:
            return STOPS_WITHIN_S
        now_s = self._tools.clock.monotonic_s()
        self._given_up_s = now_s + STOPS_WITHIN_S if self._given_up_s is None else self._given_up_s
        return self._given_up_s - now_s
