"""Output that several nodes share: a stream is published into a bucket; its folder is where files grow, are encoded from and sent from.

    <prefix>/live/<stream>/...      what players get, under the same names as in the folder
    <prefix>/state/<stream>.json    the record: whose it is (epoch), and the ledgers of all tracks. Not for players: it names the source.

Laws:
- Each change is noted at once and carried out by `settled`, in the order that keeps every rule at any moment, whoever looks and whenever
  we die: files, then the record, then media playlists, then the multivariant one, and removals last.
- The record and the playlists change by compare-and-swap only. Who takes a stream over first writes its epoch into the record, then into
  each playlist, and only then reads: what an earlier owner still writes of them is refused, and whatever it came to write before is read.
  The record is always there, and no playlist appears or goes without a swap of it just before: it fences what is not there yet too.
- What is put under one name by one owner is put there by no other: names have the epoch in them.
- A file goes only as long after the last playlist in the bucket that listed it as A7 wants, however late that was replaced.
- What the bucket has confirmed is shown to players by us too, and nothing else: one truth for all.
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import structlog

from hlsrelay.bucket_texts import (
    EPOCH,
    EPOCH_LINE,
    LARGE_BYTES,
    Listing,
    base36,
    epoch_of,
    is_ledger,
    listed_in,
    packed,
    squeezed,
    unpacked,
)
from hlsrelay.errors import ConfigError, StorageAway, Superseded
from hlsrelay.log import Repeated
from hlsrelay.objects import NEW, Headers, Objects, Raced, keeps_conditions
from hlsrelay.storage import FILE_CACHE, MULTIVARIANT, PLAYLIST, PLAYLIST_CACHE, TYPES, LocalStorage

T = TypeVar("T")
AT_ONCE = 4
"""Requests of one stream under way: more would only share the same line."""
MOST_RACES = 5
MOST_REMOVED_AT_ONCE = 500
"""S3 takes a thousand."""
SMALL_BYTES = 1 << 20
"""Keys and init sections, which the next owner needs to name what it lists after them alike."""

_RECORD = Headers("application/json", "no-store")

log = structlog.get_logger()


class BucketStorage(LocalStorage):
    """One stream, published into *objects* by the owner whose claim has *epoch*; *now_s* tells seconds that never step back."""

    def __init__(self, live: Path, stream_id: str, objects: Objects, epoch: int, now_s: Callable[[], float]) -> None:
        super().__init__(live, stream_id)
        self._objects = objects
        self._epoch = epoch
        self._now_s = now_s
        self._key = f"state/{stream_id}.json"
        # What is in the bucket.
        self._tags: dict[str, str] = {}
        self._stored: set[str] = set()
        self._listed: dict[str, Listing] = {}
        self._stays_until_s: dict[str, float] = {}
        """Files that a playlist listed last, and not any more."""
        self._others_stay_until_s = 0.0
        # What is noted.
        self._files: set[str] = set()
        self._ledgers: dict[str, bytes] = {}
        self._version = self._settled_version = 0
        """Of the ledgers."""
        self._pages: dict[str, bytes | None] = {}
        """Playlists to replace; those to remove have None."""
        self._leaving: set[str] = set()
        self._not_removed = Repeated()
        self._coming: dict[str, asyncio.Task[None]] = {}
        self._lanes = asyncio.Semaphore(AT_ONCE)

    def __enter__(self) -> Self:
        """See LocalStorage. What the folder shows is of an earlier time: what the bucket has is shown once it is known."""
        super().__enter__()
        super().remove(super().published())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._coming.values():
            task.cancel()
        super().__exit__(kind, error, trace)

    # Taking over -------------------------------------------------------------------------------------------------------------------------

    async def taken(self) -> None:
        """See LocalStorage."""
        ledgers = await self._taken_record()
        found = await self._objects.list(self._folder_key)
        paths = {key.removeprefix(self._folder_key): size for key, size in found.items()}
        bodies = dict(await self._each(self._taken_playlist, [path for path in paths if path.endswith(PLAYLIST)]))
        self._stored = {path for path in paths if not path.endswith(PLAYLIST)}
        self._ledgers = ledgers
        for name in [path.name for path in self.folder.glob(".ledger*.json")]:
            if name not in ledgers:
                super().remove([name])
        for name, body in ledgers.items():
            super().write(name, body)
        for path, page in bodies.items():
            if page is not None:
                self._shown(path, page)
        # When playlists last listed what they don't list now nobody knows: it stays as if they had done so up to now.
        self._others_stay_until_s = self._now_s() + max((one.stays_s for one in self._listed.values()), default=0.0)
        small = {path for one in self._listed.values() for path in one.beside if paths.get(path, SMALL_BYTES) < SMALL_BYTES}
        await self._each(self._brought, [path for path in small if not (self.folder / path).exists()])

    async def _taken_record(self) -> dict[str, bytes]:
        """Write our epoch into the record; returns the ledgers that are in it."""

        async def take() -> dict[str, bytes]:
            found = await self._objects.get(self._key)
            epoch, ledgers = unpacked(found.body) if found else (0, {})
            self._later(epoch)
            body = squeezed(packed(self._epoch, ledgers))
            self._tags[self._key] = await self._objects.put(self._key, body, _RECORD, tag=found.tag if found else NEW)
            if not await keeps_conditions(self._objects, self._key, body, _RECORD):
                raise ConfigError(
                    f"{self._objects.url} overlooks If-Match and If-None-Match, which keep two owners apart: "
                    "set HLSRELAY_STORAGE to a bucket of S3, MinIO or R2, of a release that knows them, or to local"
                )
            return ledgers

        return await self._raced(take)

    async def _taken_playlist(self, path: str) -> tuple[str, bytes | None]:
        """Write our epoch into a playlist; returns it, None where it is gone."""

        async def take() -> tuple[str, bytes | None]:
            found = await self._objects.get(self._folder_key + path)
            if found is None:
                return path, None
            self._later(epoch_of(found.body))
            body = self._ours(EPOCH_LINE.sub(b"", found.body).rstrip(b"\n") + b"\n")
            self._tags[path] = await self._objects.put(self._folder_key + path, body, _headers(path), tag=found.tag)
            return path, body

        return await self._raced(take)

    async def _raced(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do *work* anew where something else came between what it read and what it wrote."""
        for _ in range(MOST_RACES):
            with suppress(Raced):
                return await work()
        raise StorageAway(f"{self._objects.url}: somebody else writes stream '{self.stream_id}' too")

    def _later(self, epoch: int) -> None:
        if epoch > self._epoch:
            raise Superseded(f"stream '{self.stream_id}' in {self._objects.url} has a later owner: its claim {epoch}, ours {self._epoch}")

    # Noting ------------------------------------------------------------------------------------------------------------------------------

    def named(self, stem: str, suffix: str) -> str:
        """See LocalStorage."""
        return f"{stem}-{base36(self._epoch)}.{suffix}"

    def commit(self, temp: Path | str, path: str) -> None:
        """See LocalStorage: it is stored with the first playlist that lists it."""
        super().commit(temp, path)
        if "/" in path and not path.startswith(".") and not path.endswith(PLAYLIST):
            self._files.add(path)
            self._stored.discard(path)
            self._leaving.discard(path)

    def write(self, path: str, body: bytes) -> None:
        """See LocalStorage."""
        super().write(path, body)
        if is_ledger(path):
            self._ledgers[path] = body
            self._version += 1

    def keep(self, files: Mapping[str, bytes]) -> None:
        """See LocalStorage: one that was to go stays."""
        super().keep(files)
        self._leaving.difference_update(files)
        self._files.update(files.keys() - self._stored)

    def publish(self, playlist: str, text: str) -> None:
        """See LocalStorage."""
        body = self._ours(text.encode())
        if playlist in self._pages or self.playlists.get(playlist) != body:
            self._pages[playlist] = body

    def remove(self, paths: Iterable[str]) -> None:
        """See LocalStorage."""
        for path in paths:
            if is_ledger(path):
                super().remove([path])
                self._version += self._ledgers.pop(path, None) is not None
            elif path.endswith(PLAYLIST) and (path in self._tags or path in self._pages):
                self._pages[path] = None
            elif path.endswith(PLAYLIST):
                super().remove([path])
            else:
                self._files.discard(path)
                self._leaving.add(path)

    def sweep(self, known: set[str]) -> int:
        """See LocalStorage."""
        unknown = self._stored - known
        self.remove(unknown)
        self._files &= known
        return super().sweep(known | self._stored) + len(unknown)

    def published(self) -> list[str]:
        """See LocalStorage."""
        there = {path for path in self._tags if path.endswith(PLAYLIST)} | {path for path, body in self._pages.items() if body is not None}
        return sorted(there - {path for path, body in self._pages.items() if body is None}, key=lambda path: (path != MULTIVARIANT, path))

    # Carrying out ------------------------------------------------------------------------------------------------------------------------

    @property
    def unsettled(self) -> bool:
        """See LocalStorage."""
        return bool(self._pages or self._leaving) or self._version != self._settled_version

    async def settled(self) -> None:
        """See LocalStorage."""
        # What is noted while we wait is of another time, and for the next call: a record may know more than the playlists, never less.
        assert self._key in self._tags, "the stream has not been taken over"
        version, pages = self._version, dict(self._pages)
        record = packed(self._epoch, self._ledgers) if pages or version != self._settled_version else b""
        wanted = {path for page, body in pages.items() if body for path in listed_in(page, body).paths}
        await self._each(self._stored_file, sorted(wanted & self._files))
        if version != self._settled_version or any(body is None or page not in self._tags for page, body in pages.items()):
            if len(record) > LARGE_BYTES:
                record = await asyncio.to_thread(squeezed, record)
            await self._swapped(self._key, self._key, record, _RECORD)
            self._settled_version = version
        replaced = [page for page, body in pages.items() if body is not None]
        for turn in ([page for page in replaced if page != MULTIVARIANT], [page for page in replaced if page == MULTIVARIANT]):
            await self._each(lambda page: self._replaced(page, pages[page] or b""), turn)
        for page in sorted((page for page, body in pages.items() if body is None), key=lambda page: page != MULTIVARIANT):
            await self._objects.delete([self._folder_key + page])
            self._gone(page)
        try:
            await self._left()
        except StorageAway as error:  # what is there too long holds nothing up
            if self._not_removed.is_news(str(error)):
                log.warning("bucket.not_removed", stream=self.stream_id, reason=str(error))
        else:
            self._not_removed = Repeated()

    async def _stored_file(self, path: str) -> None:
        file, key = self.folder / path, self._folder_key + path
        if not file.exists():
            log.error("bucket.file_lost", stream=self.stream_id, file=path, reason="it is no longer in the data directory")
        else:
            try:
                await self._objects.put(key, file, _headers(path), tag=NEW)
            except Raced:  # put by us, and nobody told us so; or before we began anew, and it was never listed
                if path.rpartition(".")[0].endswith(f"-{base36(self._epoch)}"):
                    await self._objects.put(key, file, _headers(path))
            self._stored.add(path)
        self._files.discard(path)

    async def _replaced(self, page: str, body: bytes) -> None:
        await self._swapped(page, self._folder_key + page, body, _headers(page))
        if self._pages.get(page) == body:
            del self._pages[page]
        self._shown(page, body)

    async def _swapped(self, name: str, key: str, body: bytes, headers: Headers) -> None:
        """Replace what we wrote last at *key*. Raises Superseded where another owner was there."""
        for _ in range(MOST_RACES):
            try:
                self._tags[name] = await self._objects.put(key, body, headers, tag=self._tags.get(name, NEW))
                return
            except Raced:
                found = await self._objects.get(key)
            if found is None:
                if name == self._key:
                    raise Superseded(f"stream '{self.stream_id}' was removed from {self._objects.url}")
                self._tags.pop(name, None)
                continue
            self._later(unpacked(found.body)[0] if name == self._key else epoch_of(found.body))
            self._tags[name] = found.tag  # ours, of which we were not told; or an earlier owner's, written as we came
            if found.body == body:
                return
        raise StorageAway(f"{self._objects.url}: somebody else writes stream '{self.stream_id}' too")

    def _shown(self, page: str, body: bytes) -> None:
        """The bucket has a playlist: show it here too."""
        listing = listed_in(page, body)
        self._unlisted(page, listing.paths)
        self._listed[page] = listing
        self.playlists[page] = body
        try:
            super().write(page, body)
        except OSError as error:  # our own web server has it all the same
            log.warning("bucket.not_mirrored", stream=self.stream_id, file=page, reason=error.strerror)

    def _gone(self, page: str) -> None:
        self._unlisted(page, frozenset())
        self._listed.pop(page, None)
        self._tags.pop(page, None)
        if self._pages.get(page, b"") is None:
            del self._pages[page]
        super().remove([page])

    def _unlisted(self, page: str, still: frozenset[str]) -> None:
        if before := self._listed.get(page):
            until_s = self._now_s() + before.stays_s
            for path in (before.paths - still) & self._stored:
                self._stays_until_s[path] = max(until_s, self._stays_until_s.get(path, 0.0))

    async def _left(self) -> None:
        """Remove what may go."""
        now_s = self._now_s()
        listed = frozenset[str]().union(*(one.paths for one in self._listed.values())) if self._leaving else frozenset[str]()
        due = [
            path
            for path in sorted(self._leaving - listed)
            if path not in self._stored or self._stays_until_s.get(path, self._others_stay_until_s) <= now_s
        ][:MOST_REMOVED_AT_ONCE]
        if stored := [path for path in due if path in self._stored]:
            self._stored.difference_update(stored)  # what is made again meanwhile is stored again
            try:
                await self._objects.delete([self._folder_key + path for path in stored])
            except BaseException:
                self._stored.update(path for path in stored if path in self._leaving)
                raise
        due = [path for path in due if path in self._leaving]  # not what was made again meanwhile
        for path in due:
            self._stays_until_s.pop(path, None)
            self._leaving.discard(path)
        super().remove(due)

    # Reading -----------------------------------------------------------------------------------------------------------------------------

    def is_stored(self, path: str) -> bool:
        """See LocalStorage."""
        return path in self._stored

    async def brought(self, path: str) -> None:
        """See LocalStorage: it is fetched once for all who ask, and goes as those go that we made."""
        if path not in self._stored or (self.folder / path).exists():
            return
        task = self._coming.get(path)
        if task is None:
            task = self._coming[path] = asyncio.create_task(self._brought_quietly(path), name=f"bring {path}")
            task.add_done_callback(lambda _: self._coming.pop(path, None))
        await asyncio.wait((task,))

    async def _brought_quietly(self, path: str) -> None:
        try:
            async with self._lanes:
                await self._brought(path)
        except (StorageAway, OSError) as error:
            log.warning("bucket.not_brought", stream=self.stream_id, file=path, reason=str(error))

    async def _brought(self, path: str) -> None:
        found = await self._objects.get(self._folder_key + path)
        if found is not None:
            temp = self.temp(f"brought-{path.replace('/', '-')}")
            temp.write_bytes(found.body)
            super().commit(temp, path)

    # -------------------------------------------------------------------------------------------------------------------------------------

    @property
    def _folder_key(self) -> str:
        return f"live/{self.stream_id}/"

    def _ours(self, text: bytes) -> bytes:
        return text + f"{EPOCH}{self._epoch}\n".encode()

    @staticmethod
    async def _each(work: Callable[[str], Awaitable[T]], paths: Iterable[str]) -> list[T]:
        """Do *work* for each of *paths*, a few at a time. Raises what one of them raises; the others are cancelled then, and gone."""
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(path: str) -> T:
            async with limit:
                return await work(path)

        tasks = [asyncio.ensure_future(one(path)) for path in paths]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def forgotten(objects: Objects, stream_id: str, epoch: int) -> None:
    """Remove all that is in the bucket of a stream; who relays it still is refused from now on, whatever its claim up to *epoch*.

    Raises StorageAway.
    """
    key, folder = f"state/{stream_id}.json", f"live/{stream_id}/"
    for _ in range(MOST_RACES):
        found = await objects.get(key)
        if found is None:
            break
        before, _ = unpacked(found.body)
        with suppress(Raced):
            await objects.put(key, packed(max(epoch, before + 1), {}), _RECORD, tag=found.tag)
            break
    while keys := sorted(await objects.list(folder), key=lambda one: (one != folder + MULTIVARIANT, not one.endswith(PLAYLIST), one)):
        await objects.delete(keys[:MOST_REMOVED_AT_ONCE])
    await objects.delete([key])


def _headers(path: str) -> Headers:
    suffix = posixpath.splitext(path)[1]
    cache = PLAYLIST_CACHE if suffix == PLAYLIST else f"{FILE_CACHE}, immutable"
    return Headers(TYPES.get(suffix, "application/octet-stream"), cache)
