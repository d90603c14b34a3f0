"""All tracks of one stream together: where each was left, what the multivariant playlist lists, and who goes on for a track that went."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import takewhile

from hlsrelay.clock import Pacer
from hlsrelay.desk import Agreement, Choice, Desk, Tools
from hlsrelay.hls.render import multivariant_playlist
from hlsrelay.hls.window import Progress, followed, known_paths
from hlsrelay.ledger import LocalLedger
from hlsrelay.model import SOURCE, Entry, Made, Presentation, Stream
from hlsrelay.stages import publish

WAIT_FOR_ALL_TARGET_DURATIONS = 3
"""A track that has nothing to show after this long is left out of the multivariant playlist until it has."""
FOLLOWS_S = 3600.0
"""Players of a track that the source no longer has are played on for so long: what still plays then is no player that chose it once."""


class House:
    """The published side of a stream over changes of its source, in this process and over restarts."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._presentation = Presentation(())
        self._stream: Stream | None = None
        self._published: dict[str, Progress] = {}
        self._first_shown_s: float | None = None
        self._followed: dict[str, int] = {}
        """Up to which number of the main track those that the source no longer has are followed."""
        self._ended_s: dict[str, float] = {}
        """Since when ENDLIST stands in those that nobody follows any more."""
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
        names = {track.name for track in presentation.tracks}
        agreement = Agreement.resumed(self._published, names)
        self._presentation, self._stream = presentation, stream
        self._first_shown_s = None
        last = main.entries[-1].number if main and main.entries else -1
        self._followed = {name: self._followed.get(name, last) for name in self._published if name not in names}
        self._ended_s = {name: since_s for name, since_s in self._ended_s.items() if name not in names}
        return [
            Desk(
                tools=self._tools,
                track=track,
                stream=stream,
                surveys=self.choice.surveys,
                ledger=LocalLedger(self._tools.storage, track.name),
                pacer=Pacer(self._tools.clock, self._tools.nudges),
                agreement=agreement,
                choice=self.choice,
                alone=len(presentation.tracks) == 1,
                progress=self._published.get(track.name),
            )
            for track in presentation.tracks
        ]

    def shown(self, name: str, progress: Progress | None, made: Made | None, error: str = "") -> str:
        """Take a track's progress, show the multivariant playlist as it is now; returns why that failed, empty when it did not.

        *error* says why the track itself could not be shown: then nothing is, and the next that can be shows all.
        """
        if name == SOURCE:
            self.choice.target_duration_s = progress.target_duration_s if progress else 0.0
            if made and not made.lost:
                self.choice.progressed()
            self.choice.considered()
        if progress is None:
            return error
        self._published[name] = progress
        if error:
            return error
        try:
            if made and name == SOURCE:
                self._follow(progress)
            self._show()
        except OSError as failure:
            return f"can't publish: {failure.strerror}"
        return ""

    def closed(self) -> None:
        """End the playlists of tracks that only followed: the stream is stopped, and nothing comes after."""
        with suppress(OSError):
            for name, progress in self._published.items():
                if not progress.ended:
                    self._published[name] = publish(replace(progress, ended=True), LocalLedger(self._tools.storage, name), self._tools)

    def _follow(self, main: Progress) -> None:
        """Let tracks that the source no longer has list what the main one does, for a while; then end them, and at last forget them."""
        present = {track.name for track in self._presentation.tracks}
        rungs = {rendition.name for rendition in main.renditions}
        now, now_s = self._tools.clock.utc_now(), self._tools.clock.monotonic_s()
        for name in set(self._published) - present - rungs:
            progress, ledger = self._published[name], LocalLedger(self._tools.storage, name)
            stopped = progress.ended and progress.position.source == ""
            if not stopped and (now - progress.position.advanced_at).total_seconds() < FOLLOWS_S:
                for entry in _after(self._followed.get(name, main.entries[-1].number - 1), main):
                    progress = followed(progress, main, entry, self._stream.window_s if self._stream else 0.0, now)
                self._published[name] = publish(progress, ledger, self._tools)
                self._followed[name] = main.entries[-1].number
            elif not progress.ended:
                self._published[name] = publish(replace(progress, ended=True), ledger, self._tools)
            elif now_s - self._ended_s.setdefault(name, now_s) > sum(entry.duration_s for entry in progress.entries):
                # What it lists has been played, and what it lists of the main track may go.
                ledger.forget()
                self._tools.storage.remove([*known_paths(progress), *(f"{one.name}/index.m3u8" for one in progress.renditions)])
                del self._published[name]

    def _show(self) -> None:
        names = {track.name for track in self._presentation.tracks}
        here = {name: progress for name, progress in self._published.items() if name in names and progress.entries}
        now_s = self._tools.clock.monotonic_s()
        if self._first_shown_s is None:
            self._first_shown_s = now_s
        patience_s = WAIT_FOR_ALL_TARGET_DURATIONS * max((progress.target_duration_s for progress in here.values()), default=1)
        if len(here) == len(names) or (SOURCE in here and now_s - self._first_shown_s >= patience_s):
            self._tools.storage.publish("index.m3u8", multivariant_playlist(self._presentation, here, self.choice.stream.keys))


def _after(number: int, progress: Progress) -> list[Entry]:
    return list(takewhile(lambda entry: entry.number > number, reversed(progress.entries)))[::-1]
