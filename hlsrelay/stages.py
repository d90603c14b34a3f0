"""The stages between the source's playlist and ours, as generators that pull from one another.

    surveyed -> for each track: loaded -> numbered -> in_order(Downloading) -> in_order(Transcoding) -> published

Each stage takes one item at a time and gives one: a loss is a value (a Made without files), a Turn marks the end of a load and goes
through untouched. The look-ahead of `in_order` is what lets the loader go on while the encoder is busy, and what stops it in the end.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from hlsrelay.clock import Pacer
from hlsrelay.desk import Choice, Desk, Tools
from hlsrelay.errors import ConfigError, UpstreamError
from hlsrelay.hls.advance import advance
from hlsrelay.hls.parse import identity
from hlsrelay.hls.render import media_playlist
from hlsrelay.hls.window import Progress, expired
from hlsrelay.ledger import Ledger
from hlsrelay.model import (
    SOURCE,
    Desired,
    Numbered,
    Snapshot,
    Stream,
    Turn,
)

END_HOLD_TARGET_DURATIONS = 3
"""An encoder that restarts may write ENDLIST and go on: players wait this long before they give up, so ours is held back as long."""


@dataclass(frozen=True, slots=True)
class Load:
    """One turn's look at the source: a snapshot, or why there is none."""

    stream: Stream
    snapshot: Snapshot | None = None
    error: str = ""


async def loaded(desk: Desk) -> AsyncGenerator[Load, None]:
    """Yield the track's playlist each time it is due, until the operator wants the stream stopped or another source."""
    async for _ in desk.pacer:
        if not desk.followed:
            return
        stream = desk.choice.stream
        try:
            snapshot = await desk.tools.upstream.load(desk.track.name)
        except UpstreamError as error:
            desk.pacer.failed()
            yield Load(stream, error=str(error))
        else:
            yield Load(stream, snapshot)


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
            newest = (await tools.spare.load(SOURCE)).segments[-1]
        except (UpstreamError, ConfigError):
            choice.primary_seen(None)
        else:
            choice.primary_seen(f"{newest.sequence} {identity(newest)}")
    yield


async def numbered(loads: AsyncIterator[Load], desk: Desk) -> AsyncGenerator[Numbered | Turn, None]:
    """Yield each new segment under its number, then the Turn of its load."""
    position = desk.progress.position if desk.progress else None
    first_number = None if desk.progress else desk.ledger.first_free_number()
    clock, agreement = desk.tools.clock, desk.agreement
    ended_s: float | None = None
    async for load in loads:
        if (snapshot := load.snapshot) is None:
            yield Turn(load.stream, error=load.error)
            continue
        step = advance(position, snapshot, load.stream, clock.utc_now(), first_number=first_number, generation=agreement.generation)
        position = step.position
        agreement.generation = max(agreement.generation, position.generation)
        desk.pacer.loaded(changed=bool(step.fresh), target_duration_s=snapshot.target_duration_s, newest_s=snapshot.segments[-1].duration_s)
        for one in step.fresh:
            yield one
        now_s = clock.monotonic_s()
        ended_s = None if not snapshot.ended or step.fresh else now_s if ended_s is None else ended_s
        ended = ended_s is not None and now_s - ended_s >= END_HOLD_TARGET_DURATIONS * snapshot.target_duration_s
        yield Turn(load.stream, repairs=(*snapshot.repairs, *step.repairs), ended=ended)


def publish(progress: Progress, ledger: Ledger, tools: Tools) -> Progress:
    """Record, then show, then sweep. Returns the progress without what was swept. Raises OSError where the disk says no."""
    ledger.record(progress)
    for rendition in progress.renditions:
        tools.storage.publish(f"{rendition.name}/index.m3u8", media_playlist(progress, rendition.name))
    return swept(progress, tools)


def swept(progress: Progress, tools: Tools) -> Progress:
    """Remove the files that nobody may ask for any more (hls-rules A7)."""
    progress, gone = expired(progress, tools.clock.utc_now())
    tools.storage.remove(gone)
    return progress
