"""The story of one stream: see what the source presents; for each track of it load the playlist, take what is new, download, transcode,
warm the caches in front of us, publish, see what the operator wants, and load again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from hlsrelay.clock import Pacer
from hlsrelay.desk import Desk, Tools
from hlsrelay.downloading import Downloading
from hlsrelay.errors import ConfigError, UpstreamError
from hlsrelay.hls.numbering import noted
from hlsrelay.hls.tracks import telling
from hlsrelay.hls.window import Progress, beside, slide
from hlsrelay.house import House
from hlsrelay.joints import in_order, merged
from hlsrelay.model import SOURCE, Desired, Made, Presentation, Stream, Turn
from hlsrelay.preloading import Preloading
from hlsrelay.stages import Settling, caught_up, in_step, loaded, looked, numbered, published, swept, to_be_had, watched_primary
from hlsrelay.transcoding import Transcoding
from hlsrelay.values import replace

DOWNLOADS_AHEAD = 3
"""Segments of a track fetched at once: more would only share the same line."""
ENCODES_AHEAD = 16
"""Segments and turns of a track with the encoder at once. It decides what runs when: nobody waits longer for queueing here."""


@dataclass(frozen=True)
class Tick:
    """One step of the story, told to whoever watches: a number published (*made*) or a load dealt with (*turn*), of the track *track*.

    *error* says why what was made could not be shown: it is, with the next tick that can.
    """

    progress: Progress | None
    track: str = ""
    made: Made | None = None
    turn: Turn | None = None
    error: str = ""


async def relay(tools: Tools, encodes_ahead: int = ENCODES_AHEAD) -> AsyncGenerator[Tick, None]:
    """Relay one stream tick by tick until the operator wants it stopped; then ENDLIST, and the generator is done.

    Closing it at any point leaves a playable stream that a successor goes on from.
    """
    house, settling = House(tools), Settling(tools)
    async with aclosing(surveyed(tools, house)) as surveys:
        async for presentation, stream, error in surveys:
            if presentation is None:
                house.choice.considered()
                yield Tick(None, turn=Turn(stream, error=error))
                continue
            desks = house.furnished(presentation, stream)
            await looked(desks)
            sources: list[AsyncGenerator[Tick | None, None]] = [relay_track(desk, encodes_ahead) for desk in desks]
            if house.choice.standing.index and tools.spare:
                sources.append(watched_primary(house.choice, tools))
            async with aclosing(merged(sources) if len(sources) > 1 else sources[0]) as ticks:
                async for tick in ticks:
                    if tick is not None:
                        failure = house.shown(tick.track, tick.progress, tick.made, tick.error)
                        while away := await settling.attempt():
                            yield Tick(None, error=away)
                            house.held_up()
                        yield replace(tick, error=failure or settling.error)
    house.closed()
    while away := await settling.attempt():
        yield Tick(None, error=away)


async def surveyed(tools: Tools, house: House) -> AsyncGenerator[tuple[Presentation | None, Stream, str], None]:
    """Yield what the source presents, or why that is unknown; again once that is dealt with, until the operator wants a stop."""
    pacer = Pacer(tools.clock, tools.nudges)
    async for _ in pacer:
        stream = house.choice.stream
        if stream.desired is Desired.STOP:
            return
        try:
            presentation = await tools.upstream.survey(stream, house.known())
        except (UpstreamError, ConfigError) as error:
            yield None, stream, str(error)
        else:
            yield presentation, stream, ""


async def relay_track(desk: Desk, encodes_ahead: int) -> AsyncGenerator[Tick, None]:
    """Relay one track until the operator wants something else; ENDLIST where that is a stop."""
    progress, tools = desk.progress, desk.tools
    loads = loaded(desk)
    clips = in_order(numbered(loads, desk), Downloading(desk), ahead=DOWNLOADS_AHEAD, passing=Turn)
    ready = in_order(clips, Preloading(desk, Transcoding(desk)), ahead=encodes_ahead, passing=Turn)
    shown = caught_up(ready, desk)
    held, name = tools.storage.held, desk.track.name
    unshown, together = name in held, list[Made]()
    async with aclosing(loads), aclosing(ready), aclosing(shown):
        async for item in shown:
            error = ""
            try:
                if isinstance(item, Made):
                    progress = entered(progress, item, desk)
                    tools.storage.keep(item.inits)  # a sweep may have taken one since: nothing that was published listed it
                    if item.numbered.more:  # players see the slices of a segment at once: a successor begins it again
                        together += [item] if name in held else []
                        continue
                    if held.pop(name, None) is None:  # else all tracks come with what they were behind
                        await in_step(progress, item, desk)
                    progress, unshown = await published(progress, desk), False
                    desk.agreement.published(name, progress)
                elif progress and progress.entries and item.ended and not progress.ended:
                    progress = await published(replace(progress, ended=True), desk)
                elif progress and ((unshown and name not in held) or to_be_had(progress, tools) is not progress):
                    progress, unshown = await published(progress, desk), False
                elif progress:
                    progress = swept(progress, tools)
            except OSError as failure:  # the disk: what was made stays in *progress* and is shown as soon as that works again
                error = f"can't publish: {failure.strerror}"
            for one in together:
                yield Tick(progress, name, one, error=error)
            together.clear()
            made, turn = (item, None) if isinstance(item, Made) else (None, item)
            yield Tick(progress, name, made, turn, error)
    if progress and progress.entries and not progress.ended and tools.control.stream.desired is Desired.STOP:
        error = ""
        try:
            progress = await published(replace(progress, ended=True), desk)
        except OSError as failure:
            error = f"can't publish: {failure.strerror}"
        yield Tick(progress, name, error=error)


def entered(progress: Progress | None, made: Made, desk: Desk) -> Progress:
    """Return *progress* with what was made in its window."""
    new, agreement, name = made.numbered, desk.agreement, desk.track.name
    agreement.target_duration_s = agreement.target_duration_s or new.target_duration_s
    entry, at = made.entry, progress.position.next_program_date_time if progress else None
    if progress is None:
        count = agreement.first_count(name, new)
        target_s, kind = agreement.target_duration_s, desk.track.kind
        progress = Progress(new.position, target_s, name, kind, discontinuity_sequence=count, i_frames_only=new.i_frames_only)
        progress = replace(progress, attributes=telling(desk.track))
    elif progress.position.withdrawn:
        progress = replace(progress, discontinuity_sequence=agreement.count_again(name, new, progress.discontinuity_sequence))
    elif at and agreement.breaks_off(name, at, entry.duration_s):
        entry = replace(entry, discontinuity=True)
    progress = replace(progress, target_duration_s=max(progress.target_duration_s, agreement.target_duration_s))
    position = noted(new.position, desk.digests)
    window_s = new.stream.window_s if name == SOURCE else beside(agreement.listed_s, entry.duration_s, new.stream.window_s)
    progress = slide(progress, entry, position, window_s, desk.tools.clock.utc_now())
    if at and progress.entries[-1].discontinuity:
        agreement.broke_off(name, at)
    agreement.target_duration_s = progress.target_duration_s
    return progress
