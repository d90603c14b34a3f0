"""A stream's window on a node that had none of it: listed as its owner before listed it, and fetched from there while that one serves on.

Laws:
- What is listed is here whole, or can be had: who asks for a file that is not here yet is answered with it, fetched then.
- The newest come first, a few at a time (AT_ONCE, of all streams edge.AT_LEISURE), and nothing new ever waits for them.
- What can't be had any more is not listed: entries up to its own leave, in all tracks at one moment (RFC 8216 6.2.4).
- An owner that is gone without a word may have listed more than it told in Redis: nothing is shown that ends before (stages.caught_up).
- A file of ours of before counts where we listed it, and is as long as it is to be: the name alone says nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import structlog

from hlsrelay.edge import Edge
from hlsrelay.hls.window import Progress, known_paths, needed
from hlsrelay.ledger import Handed, LocalLedger, handed, news, unpacked
from hlsrelay.storage import MULTIVARIANT, LocalStorage

TOLD_WITHIN_S, GUESSED_WITHIN_S = 2.0, 0.7
"""An owner tells its window in a few milliseconds. One that has just handed the stream on lives, and is waited for longer, in case it is
busy; one that went without a word may be cut off from Redis alone, or dead."""
AT_ONCE = 3
WITHIN_S = 20.0
"""For one file."""
AGAIN_AFTER_S = 0.5
GIVEN_UP_AFTER_S = 5.0
"""An owner that could not be reached for so long is gone."""
_ETAG = re.compile(r'"([0-9a-f]+)-([0-9a-f]+)"')

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Former:
    """What the owner before us kept in Redis (ledger.packed). *in_order*: it let go of the stream, and told last where it stood."""

    carried: str = ""
    in_order: bool = True


@dataclass(frozen=True, slots=True)
class Lacking:
    """A file that is listed and not here: its size in bytes, and when the newest entry begins that lists it; None where that is unknown."""

    size_bytes: int | None
    begins: datetime | None


async def taken_up(storage: LocalStorage, former: Former, edge: Edge, ours: str = "") -> None:
    """Go on from where the owner before us stood, if it knows more than our folder, and with what it listed, if it is to be reached.

    *ours* is where we serve ourselves.
    """
    tracks = news(former.carried, storage)
    if tracks:
        urls = [url for url in next(iter(tracks.values())).former if url != ours]
        told = await _told(edge, urls[0], storage.stream_id, TOLD_WITHIN_S if former.in_order else GUESSED_WITHIN_S) if urls else None
        _cleaned(storage)
        unpacked(former.carried, storage, told)
        log.info(
            "stream.taken_up",
            stream=storage.stream_id,
            reason="its last owner's folder is not ours",
            window=sum(len(progress.entries) for progress in _recorded(storage)),
        )
        for name, progress in tracks.items():
            listed = told.tracks[name].last_number if told and name in told.tracks else -1
            if not former.in_order or listed > progress.position.last_number:
                storage.held[name] = listed
        if told:
            _shown(storage, told)
    _begun(storage, edge, ours)


async def _told(edge: Edge, url: str, stream_id: str, within_s: float) -> Handed | None:
    answer = await edge.asked(url, f"window/{stream_id}", within_s)
    found = handed(answer.body) if answer.status == 200 else None
    if found is None:
        reason = answer.reason or f"{url} answers {answer.status}"
        log.warning("window.lost", stream=stream_id, owner=url, reason=f"what its last owner listed can't be had: {reason}")
    return found


def _recorded(storage: LocalStorage) -> list[Progress]:
    return [progress for name in storage.ledgers() if (progress := LocalLedger(storage, name).resume())]


def _cleaned(storage: LocalStorage) -> None:
    """Remove what lies in the folder and was not listed by us, or is not as long as that: it is another's, or half of ours."""
    ours: dict[str, int | None] = {}
    for progress in _recorded(storage):
        ours |= {path: size for path, (size, _) in needed(progress).items()}
    whole = {path for path, size in ours.items() if _is_whole(storage, path, size)}
    storage.sweep(whole)


def _is_whole(storage: LocalStorage, path: str, size_bytes: int | None) -> bool:
    try:
        return size_bytes in (None, (storage.folder / path).stat().st_size)
    except OSError:
        return False


def _shown(storage: LocalStorage, told: Handed) -> None:
    """Have what the tracks need beside their segments, and the multivariant playlist where nothing of it is held."""
    wanted = {path for progress in _recorded(storage) for path in known_paths(progress)}
    storage.keep({path: body for path, body in told.files().items() if path in wanted})
    tracks = [progress for progress in _recorded(storage) if progress.entries]
    storage.due = {f"{one.name}/index.m3u8" for progress in tracks for one in progress.renditions}
    if tracks and told.multivariant:
        storage.due.add(MULTIVARIANT)
        if not storage.held:
            storage.publish(MULTIVARIANT, told.multivariant)


def _begun(storage: LocalStorage, edge: Edge, ours: str) -> None:
    """Begin to have what is listed and not here, now or before we were started anew."""
    tracks = [progress for progress in _recorded(storage) if progress.former]
    urls = [url for url in dict.fromkeys(url for progress in tracks for url in progress.former) if url != ours]
    lacking: dict[str, Lacking] = {}
    for progress in tracks:
        for path, (size, begins) in needed(progress).items():
            if not (storage.folder / path).exists():
                lacking[path] = Lacking(size, begins)
    if lacking:
        storage.absent = Backfill(storage, edge, urls, lacking)


class Backfill:
    """Fetches what is listed and *lacking* here from owners before us, at *urls*, the last one first (storage.Absent)."""

    def __init__(self, storage: LocalStorage, edge: Edge, urls: Iterable[str], lacking: Mapping[str, Lacking]) -> None:
        self._storage = storage
        self._edge = edge
        self._urls = tuple(urls)
        self._lacking = dict(sorted(lacking.items(), key=lambda one: one[1].begins.timestamp() if one[1].begins else 0.0, reverse=True))
        self._coming: dict[str, asyncio.Task[bool]] = {}
        self._reached_s = 0.0

    def has(self, path: str) -> bool:
        """See storage.Absent."""
        return path in self._lacking

    def forget(self, path: str) -> None:
        """See storage.Absent."""
        self._lacking.pop(path, None)

    async def bring(self, path: str) -> None:
        """See storage.Absent."""
        await self._once(path)

    async def filled(self) -> None:
        """Fetch all that is lacking, newest first; returns once nothing is, be it here or lost."""
        self._reached_s = asyncio.get_running_loop().time()
        count = len(self._lacking)
        lost = 0
        paths = iter(tuple(self._lacking))
        lanes = [asyncio.create_task(self._lane(paths), name=f"backfill {self._storage.stream_id}") for _ in range(AT_ONCE)]
        try:
            lost = sum(await asyncio.gather(*lanes))
        finally:
            for task in (*lanes, *self._coming.values()):
                task.cancel()
            await asyncio.gather(*lanes, *self._coming.values(), return_exceptions=True)
        self._storage.absent = None
        log.info("window.filled", stream=self._storage.stream_id, files=count - lost, lost=lost)

    async def _lane(self, paths: Iterable[str]) -> int:
        """Fetch one after another of *paths*, which others take from too; returns how many can't be had."""
        lost = 0
        loop = asyncio.get_running_loop()
        for path in paths:
            while path in self._lacking:
                async with self._edge.lanes:
                    if await self._once(path):
                        break
                if loop.time() - self._reached_s >= GIVEN_UP_AFTER_S:
                    self._lost(path)
                    lost += 1
                else:
                    await asyncio.sleep(AGAIN_AFTER_S)
        return lost

    async def _once(self, path: str) -> bool:
        """Fetch a file, or wait for who fetches it already; returns whether there is an end to it: who gives up ends it for nobody else."""
        task = self._coming.get(path)
        if task is None:
            task = self._coming[path] = asyncio.create_task(self._fetched(path), name=f"backfill {path}")
            task.add_done_callback(lambda _: self._coming.pop(path, None))
        await asyncio.wait((task,))
        return not task.cancelled() and task.result()

    async def _fetched(self, path: str) -> bool:
        refused = 0
        for url in self._urls:
            answer = await self._edge.asked(url, f"live/{self._storage.stream_id}/{path}", WITHIN_S)
            lacking = self._lacking.get(path)
            if lacking is None:  # it has left the window meanwhile
                return True
            if answer.status == 200 and lacking.size_bytes in (None, len(answer.body)):
                with suppress(OSError):  # a full disk: tried again
                    self._write(path, answer.body, answer.etag)
                    self._lacking.pop(path, None)
                    self._reached_s = asyncio.get_running_loop().time()
                    return True
                return False
            refused += answer.status in (200, 404)  # one of another length is of another time
        if refused == len(self._urls):
            self._lost(path)
            return True
        return False

    def _write(self, path: str, body: bytes, etag: str) -> None:
        self._storage.write(path, body)
        if (told := _ETAG.fullmatch(etag)) and int(told[2], 16) == len(body):  # players who have half of it go on with the rest of it
            os.utime(self._storage.folder / path, ns=(int(told[1], 16),) * 2)

    def _lost(self, path: str) -> None:
        lacking = self._lacking.pop(path, None)
        if lacking and lacking.begins:
            before = self._storage.lost_until
            self._storage.lost_until = max(before, lacking.begins) if before else lacking.begins
            log.warning("window.lost", stream=self._storage.stream_id, file=path, reason="its last owner is gone, or has it no more")
