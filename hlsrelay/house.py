"""All tracks of one stream together: where each was left, what the multivariant playlist lists, and who goes on for a track that went."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime
from itertools import takewhile

from hlsrelay.clock import Clock, Pacer
from hlsrelay.desk import Agreement, Choice, Desk, Tools
from hlsrelay.errors import StorageAway
from hlsrelay.hls.render import multivariant_playlist, told_apart
from hlsrelay.hls.tracks import telling
from hlsrelay.hls.window import Progress, expired, followed, known_paths, taken_up, withdrawn
from hlsrelay.ledger import LocalLedger
from hlsrelay.model import SOURCE, Entry, Made, Presentation, Stream, Track
from hlsrelay.stages import publish, swept
from hlsrelay.storage import MULTIVARIANT, LocalStorage
from hlsrelay.values import replace

WAIT_FOR_ALL_TARGET_DURATIONS = 3
"""A track that has nothing to show after this long is left out of the multivariant playlist until it has."""
SWEPT_EVERY_S = 1.0
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
        self._printed: tuple[object, ...] = ()
        """What the multivariant playlist was last printed from."""
        self._told: dict[str, tuple[Progress, tuple[object, ...]]] = {}
        self._shown_for: Stream | None = None
        """The wishes under which all tracks were shown last, as they are in `_published`; None where that is another matter."""
        self.choice = Choice(tools)
        for name in tools.storage.ledgers():
            if progress := LocalLedger(tools.storage, name).resume():
                self._published[name] = taken_up(progress, tools.clock.utc_now())
        if len(self._published) == len(tools.storage.ledgers()):  # else something is listed that no record names
            tools.storage.sweep({path for progress in self._published.values() for path in known_paths(progress)})
        with suppress(OSError):  # a full disk: what is there stays, and the next number tries again
            for name, progress in self._published.items():
                self._published[name] = publish(progress, LocalLedger(tools.storage, name), tools)
        if main := self._published.get(SOURCE):
            self.choice = Choice(tools, last=main.position.source)

    def known(self) -> list[Track]:
        """Return the tracks that are published, those that the source no longer has too: players have their names."""
        return [Track(name, progress.kind, (), progress.attributes) for name, progress in self._published.items()]

    def furnished(self, presentation: Presentation, stream: Stream) -> list[Desk]:
        """Return what each track's pipeline works with; tracks of before that are not among them follow the main one."""
        main = self._published.get(SOURCE)
        names = {track.name for track in presentation.tracks}
        agreement = Agreement.resumed(self._published, names)
        self._presentation, self._stream = presentation, stream
        for track in presentation.tracks:
            if track.name in self._published:
                self._published[track.name] = replace(self._published[track.name], attributes=telling(track))
        self._first_shown_s = self._shown_for = None
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
        if progress is None or (made is None and not error and progress is self._published.get(name) and self._is_whole()):
            return error
        self._published[name], self._shown_for = progress, None
        if error:
            return error
        try:
            if made and name == SOURCE:
                self._follow(progress)
            self._show()
        except OSError as failure:
            return f"can't publish: {failure.strerror}"
        return ""

    def _is_whole(self) -> bool:
        """Return whether what was shown last has all tracks, and is there still: a load that brought nothing changes nothing of it."""
        return self._shown_for is self.choice.stream and MULTIVARIANT in self._tools.storage.playlists

    def held_up(self) -> None:
        """What held the stream up was not its source."""
        self.choice.progressed()

    def closed(self) -> None:
        """End the playlists of tracks that only followed: the stream is stopped, and nothing comes after."""
        with suppress(OSError):
            for name, progress in self._published.items():
                if progress.entries and not progress.ended:
                    self._published[name] = publish(replace(progress, ended=True), LocalLedger(self._tools.storage, name), self._tools)

    def _follow(self, main: Progress) -> None:
        """Let tracks that the source no longer has list what the main one does, for a while; then end them, and at last forget them."""
        present = {track.name for track in self._presentation.tracks}
        rungs = {rendition.name for rendition in main.renditions}
        now, now_s = self._tools.clock.utc_now(), self._tools.clock.monotonic_s()
        for name in set(self._published) - present - rungs:
            progress, ledger = self._published[name], LocalLedger(self._tools.storage, name)
            if progress.position.withdrawn:  # it went while nobody watched: nobody plays it
                self._published[name] = progress = swept(progress, self._tools)
                if not progress.retired:
                    ledger.forget()
                    del self._published[name]
                continue
            self._tools.storage.held.pop(name, None)  # what it lists the main one has
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
        held = self._tools.storage.held
        here = {name: progress for name, progress in self._published.items() if name in names and progress.entries and name not in held}
        now_s = self._tools.clock.monotonic_s()
        if self._first_shown_s is None:
            self._first_shown_s = now_s
        patience_s = WAIT_FOR_ALL_TARGET_DURATIONS * max((progress.target_duration_s for progress in here.values()), default=1)
        if len(here) == len(names) or (SOURCE in here and now_s - self._first_shown_s >= patience_s):
            keys = self.choice.stream.keys
            says = (self._presentation, keys, *(self._told_of(name, progress) for name, progress in here.items()))
            if says != self._printed or MULTIVARIANT not in self._tools.storage.playlists:  # it may have been taken back
                self._tools.storage.publish(MULTIVARIANT, multivariant_playlist(self._presentation, here, keys))
                self._printed = says
            self._tools.storage.due.clear()  # what is not here by now may never be
            self._shown_for = self.choice.stream if len(here) == len(names) else None

    def _told_of(self, name: str, progress: Progress) -> tuple[object, ...]:
        """Return what `told_apart` says of a track's progress; of loads that brought nothing it is the one of before."""
        known = self._told.get(name)
        if known is None or known[0] is not progress:
            known = self._told[name] = progress, told_apart(progress)
        return known[1]


def withdraw(storage: LocalStorage, clock: Clock) -> None:
    """Take back all that is published of a stream that nobody watches: its playlists now, its files once no player may ask for them.

    Numbers go on after these when somebody comes: what is recorded is recorded first. Raises OSError where the disk says no.
    """
    names = storage.ledgers()
    found = {name: progress for name in names if (progress := LocalLedger(storage, name).resume())}
    lost = {SOURCE, *names} - found.keys()  # their playlists are all that tells which numbers were used
    try:
        if not all(progress.position.withdrawn for progress in found.values()):
            generation = max(progress.position.generation for progress in found.values()) + 1
            discontinuities = max(progress.discontinuities for progress in found.values())
            for name, progress in found.items():
                LocalLedger(storage, name).record(withdrawn(progress, generation, discontinuities, clock.utc_now()))
    finally:
        storage.remove(path for path in storage.published() if path.partition("/")[0] not in lost)


async def cleared(storage: LocalStorage, clock: Clock) -> None:
    """Remove the files of a withdrawn stream as their time comes; returns once there are none. Raises Superseded."""
    while True:
        with suppress(StorageAway):
            await storage.settled()
        due: list[datetime] = []
        for name in storage.ledgers():
            if progress := LocalLedger(storage, name).resume():
                left, gone = expired(progress, clock.utc_now())
                if gone:
                    storage.remove(gone)
                    with suppress(OSError):  # a full disk: what is gone already is removed again
                        LocalLedger(storage, name).record(left)
                due += [one.until for one in left.retired]
        if not due and not storage.unsettled:
            return
        left_s = 0.0 if storage.unsettled else (min(due) - clock.utc_now()).total_seconds()
        await asyncio.sleep(max(SWEPT_EVERY_S, left_s))


def _after(number: int, progress: Progress) -> list[Entry]:
    return list(takewhile(lambda entry: entry.number > number, reversed(progress.entries)))[::-1]
