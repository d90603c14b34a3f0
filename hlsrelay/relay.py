"""The story of one stream: load the playlist, take what is new, download, transcode, publish, see what the operator wants, load again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from hlsrelay.hls.window import Progress, slide
from hlsrelay.model import Made, Turn
from hlsrelay.stages import DOWNLOADS_AHEAD, Downloading, Tools, Transcoding, in_order, loaded, numbered, publish, resumed, swept


@dataclass(frozen=True, slots=True)
class Tick:
    """One step of the story, told to whoever watches: a number published (*made*) or a load dealt with (*turn*).

    *error* says why what was made could not be shown: it is, with the next tick that can.
    """

    progress: Progress | None
    made: Made | None = None
    turn: Turn | None = None
    error: str = ""


async def relay(tools: Tools, encodes_ahead: int = 4) -> AsyncGenerator[Tick, None]:
    """Relay one stream tick by tick until the operator wants it stopped; then ENDLIST, and the generator is done.

    Closing it at any point leaves a playable stream that a successor goes on from.
    """
    progress = resumed(tools)
    first_number = None if progress else tools.ledger.first_free_number()
    loads = loaded(tools)
    fresh = numbered(loads, progress, first_number, tools)
    clips = in_order(fresh, Downloading(tools), ahead=DOWNLOADS_AHEAD)
    ready = in_order(clips, Transcoding(tools), ahead=encodes_ahead)
    async with aclosing(loads), aclosing(ready):
        async for item in ready:
            error = ""
            try:
                if isinstance(item, Made):
                    progress = entered(progress, item, tools)
                    progress = publish(progress, tools)
                elif progress and item.ended and not progress.ended:
                    progress = publish(replace(progress, ended=True), tools)
                elif progress:
                    progress = swept(progress, tools)
            except OSError as failure:  # the disk: what was made stays in *progress* and is shown as soon as that works again
                error = f"can't publish: {failure.strerror}"
            yield Tick(progress, item if isinstance(item, Made) else None, item if isinstance(item, Turn) else None, error)
    if progress and not progress.ended:
        progress = publish(replace(progress, ended=True), tools)
        yield Tick(progress)


def entered(progress: Progress | None, made: Made, tools: Tools) -> Progress:
    """Return *progress* with what was made in its window."""
    new = made.numbered
    progress = progress or Progress(new.position, new.target_duration_s)
    return slide(progress, made.entry, new.position, new.stream.window_s, tools.clock.utc_now())
