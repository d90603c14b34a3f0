"""All tracks of one stream together: where each was left, what the multivariant playlist lists, and who goes on for a track that went."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from hlsrelay.clock import Pacer
from hlsrelay.desk import Agreement, Choice, Desk, Tools
from hlsrelay.hls.render import multivariant_playlist
from hlsrelay.hls.window import Progress, followed, known_paths
from hlsrelay.ledger import LocalLedger
from hlsrelay.model import SOURCE, Made, Presentation, Stream
from hlsrelay.stages import publish

WAIT_FOR_ALL_TARGET_DURATIONS = 3
"""A track that has nothing to show after this long is left out of the multivariant playlist until it has."""


class House:
    """The published side of a stream over changes of its source, in this process and over restarts."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._presentation = Presentation(())
        self._stream: Stream | None = None
        self._published: dict[str, Progress] = {}
        self._first_shown_s: float | None = None
        self.choice = Choice(tools)
        for name in tools.storage.ledgers():
            if progress := LocalLedger(tools.storage, name).resume():
                self._published[name] = progress
        if len(self._published) == len(tools.storage.ledgers()):  # else something is listed that no record names
            tools.storage.sweep({path for progress in self._published.values() for path in known_paths(progress)})
        with suppress(OSError):  # a full disk: what is there stays, and the next number tries again
            for name, progress in self._published.items():
                self._published[name] = publish(progress, LocalLedger(tools.storage, name), tools)
        if main := self._published.get(SOURCE):
            self.choice = Choice(tools, last=main.position.source)

    def furnished(self, presentation: Presentation, stream: Stream) -> list[Desk]:
        """Return what each track's pipeline works with; tracks of before that are not among them follow the main one."""
        main = self._published.get(SOURCE)
        changed = main is not None and main.position.source != stream.source
        agreement = Agreement(
            generation=max((progress.position.generation for progress in self._published.values()), default=1),
            target_duration_s=max((progress.target_duration_s for progress in self._published.values()), default=0),
            discontinuities=main.discontinuities + changed if main else None,
        )
        self._presentation, self._stream = presentation, stream
        self._first_shown_s = None
        return [
            Desk(
                tools=self._tools,
                track=track,
                stream=stream,
                ledger=LocalLedger(self._tools.storage, track.name),
                pacer=Pacer(self._tools.clock, self._tools.nudges),
                agreement=agreement,
                choice=self.choice,
                alone=len(presentation.tracks) == 1,
                progress=self._published.get(track.name),
            )
            for track in presentation.tracks
        ]

    def shown(self, name: str, progress: Progress | None, made: Made | None) -> str:
        """Take a track's progress, show the multivariant playlist as it is now; returns why that failed, empty when it did not."""
        if name == SOURCE:
            self.choice.target_duration_s = progress.target_duration_s if progress else 0.0
            if made and not made.lost:
                self.choice.progressed()
            self.choice.considered()
        if progress is None:
            return ""
        self._published[name] = progress
        try:
            if made and name == SOURCE:
                self._follow(progress)
            self._show()
        except OSError as error:
            return f"can't publish: {error.strerror}"
        return ""

    def closed(self) -> None:
        """End the playlists of tracks that only followed: the stream is stopped, and nothing comes after."""
        with suppress(OSError):
            for name, progress in self._published.items():
                if not progress.ended:
                    self._published[name] = publish(replace(progress, ended=True), LocalLedger(self._tools.storage, name), self._tools)

    def _follow(self, main: Progress) -> None:
        present = {track.name for track in self._presentation.tracks}
        rungs = {rendition.name for rendition in main.renditions}
        for name in set(self._published) - present - rungs:
            window_s = self._stream.window_s if self._stream else 0.0
            progress = followed(self._published[name], main, window_s, self._tools.clock.utc_now())
            self._published[name] = publish(progress, LocalLedger(self._tools.storage, name), self._tools)

    def _show(self) -> None:
        names = {track.name for track in self._presentation.tracks}
        here = {name: progress for name, progress in self._published.items() if name in names and progress.entries}
        now_s = self._tools.clock.monotonic_s()
        if self._first_shown_s is None:
            self._first_shown_s = now_s
        patience_s = WAIT_FOR_ALL_TARGET_DURATIONS * max((progress.target_duration_s for progress in here.values()), default=1)
        if len(here) == len(names) or (SOURCE in here and now_s - self._first_shown_s >= patience_s):
            self._tools.storage.publish("index.m3u8", multivariant_playlist(self._presentation, here))
