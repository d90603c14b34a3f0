"""The stage that fetches: segments, and what they need beside themselves, byte for byte to where they are served from."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from hlsrelay.desk import Desk
from hlsrelay.errors import SegmentLost
from hlsrelay.hls.window import FEWEST_ENTRIES
from hlsrelay.media.probe import Container, MediaError, probe
from hlsrelay.model import (
    InitSection,
    Key,
    KeyPolicy,
    MediaFile,
    Numbered,
    Turn,
)
from hlsrelay.storage import LocalStorage

_SUFFIX = {
    Container.TS: "ts",
    Container.FMP4: "m4s",
    Container.AAC: "aac",
    Container.MP3: "mp3",
    Container.AC3: "ac3",
    Container.VTT: "vtt",
}
_SAFE_SUFFIXES = {"ts", "m4s", "mp4", "aac", "mp3", "ac3", "ec3", "vtt"}


@dataclass(frozen=True, slots=True)
class Clip:
    """A segment on disk, byte for byte, published name and all; *lost* says why there is none."""

    numbered: Numbered
    file: MediaFile | None = None
    init: bytes | None = None
    keys: tuple[Key, ...] = ()
    secrets: tuple[bytes, ...] = ()
    lost: str = ""


class Downloading:
    """Fetches segments (and their init sections, once each) to where they will be served from."""

    def __init__(self, desk: Desk) -> None:
        self._tools = desk.tools
        self._name = desk.track.name
        self._beside = _Beside(desk)

    async def __call__(self, item: Numbered | Turn) -> Clip | Turn:
        if isinstance(item, Turn):
            return item
        segment = item.segment
        if segment.gap:
            return Clip(item, lost="a gap of the source")
        deadline_s = max(2.0 * item.target_duration_s, 6.0)
        try:
            init = await self._beside.init(segment.init, item.number, deadline_s) if segment.init else None
            keys = [
                await self._beside.key(key, item, f"key-{item.number}-{index}.key", deadline_s) for index, key in enumerate(segment.keys)
            ]
            temp = self._tools.storage.temp(f"{self._name}-{item.number}")
            with _Growing(self._tools.storage, temp) as file:
                size = await self._tools.upstream.fetch(segment.uri, segment.byterange, file.restart, deadline_s)
            suffix = _suffix(file.head, segment.uri, encrypted=bool(segment.keys))
            self._tools.storage.commit(temp, f"{self._name}/{item.number}.{suffix}")
        except SegmentLost as error:
            return self._lost(item, str(error))
        except OSError as error:
            return self._lost(item, f"can't be stored: {error.strerror}")
        key_uris = tuple(extra.uri for _, extra in keys if extra)
        secrets = tuple(extra.body for _, extra in keys if extra)
        published = MediaFile(f"{item.number}.{suffix}", size, init.uri if init else None, key_uris)
        return Clip(item, published, init.body if init else None, tuple(key for key, _ in keys), secrets)

    def _lost(self, item: Numbered, reason: str) -> Clip:
        with suppress(OSError):
            self._tools.storage.temp(f"{self._name}-{item.number}").unlink(missing_ok=True)
        return Clip(item, lost=reason)


@dataclass(frozen=True, slots=True)
class _Extra:
    """A small file that segments need: an init section or a key; *uri* is its name in the track's folder."""

    uri: str
    body: bytes


class _Beside:
    """Fetches what segments need beside themselves, once each, and publishes it in the track's folder."""

    MOST = 16

    def __init__(self, desk: Desk) -> None:
        self._tools = desk.tools
        self._name = desk.track.name
        self._had: OrderedDict[InitSection, asyncio.Task[_Extra]] = OrderedDict()
        self._used: dict[InitSection, int] = {}

    async def init(self, section: InitSection, number: int, deadline_s: float) -> _Extra:
        """Return an init section. Raises SegmentLost."""
        return await self._once(section, number, f"init-{number}.mp4", deadline_s)

    async def key(self, key: Key, item: Numbered, name: str, deadline_s: float) -> tuple[Key, _Extra | None]:
        """Return *key* as players of ours get it, and its file where we serve it. Raises SegmentLost.

        Only identity keys have a format that is known to us; keys of DRM systems are theirs to hand out.
        """
        if key.keyformat != "identity" or not key.uri or not key.uri.startswith(("http:", "https:")):
            return key, None
        if item.stream.keys is KeyPolicy.ORIGIN:
            return key, None
        extra = await self._once(InitSection(key.uri), item.number, name, deadline_s)
        return replace(key, uri=extra.uri), extra

    async def _once(self, section: InitSection, number: int, name: str, deadline_s: float) -> _Extra:
        """Return the file, fetched again where nothing has used it for so long that it may have left the playlist, and the disk."""
        task = self._had.get(section)
        if number - self._used.get(section, number) >= FEWEST_ENTRIES:
            task = None
        self._used[section] = max(number, self._used.get(section, number))
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._had[section] = asyncio.ensure_future(self._fetched(section, name, deadline_s))
            while len(self._had) > self.MOST:
                self._used.pop(self._had.popitem(last=False)[0], None)
        return await asyncio.shield(task)

    async def _fetched(self, section: InitSection, name: str, deadline_s: float) -> _Extra:
        body = bytearray()

        def restart() -> Callable[[bytes], object]:
            body.clear()
            return body.extend

        await self._tools.upstream.fetch(section.uri, section.byterange, restart, deadline_s)
        self._tools.storage.write(f"{self._name}/{name}", bytes(body))
        return _Extra(name, bytes(body))


class _Growing:
    """A file that an attempt at a download fills, from its beginning each time; its first bytes are kept to tell what it is."""

    HEAD = 64 << 10

    def __init__(self, storage: LocalStorage, path: Path) -> None:
        self._file: BinaryIO = storage.open_temp(path)
        self.head = b""

    def __enter__(self) -> _Growing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def restart(self) -> Callable[[bytes], object]:
        self._file.seek(0)
        self._file.truncate()
        self.head = b""
        return self._write

    def _write(self, chunk: bytes) -> None:
        if len(self.head) < self.HEAD:
            self.head += chunk[: self.HEAD - len(self.head)]
        self._file.write(chunk)


def _suffix(head: bytes, uri: str, *, encrypted: bool) -> str:
    """Return the published name's suffix: by content, else what the source calls it if players know that. Raises SegmentLost."""
    try:
        container = probe(head).container
    except MediaError:
        container = Container.UNKNOWN
    if container is Container.UNKNOWN and not encrypted and head.lstrip()[:1] in (b"<", b"{", b"#"):
        raise SegmentLost(f"a text page, not media: it begins {head.lstrip()[:24]!r}")
    theirs = PurePosixPath(urlsplit(uri).path).suffix.lower().removeprefix(".")
    return _SUFFIX.get(container) or (theirs if theirs in _SAFE_SUFFIXES else "ts")
