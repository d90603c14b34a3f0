"""The stage that fetches: segments, and what they need beside themselves, byte for byte to where they are served from."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from hlsrelay.clock import Clock
from hlsrelay.cutting import Digest
from hlsrelay.desk import Desk
from hlsrelay.errors import SegmentLost
from hlsrelay.hls.numbering import REMEMBERED
from hlsrelay.hls.window import FEWEST_ENTRIES
from hlsrelay.media.decrypt import can_decrypt, decrypted
from hlsrelay.media.ends import Ends, Glimpse
from hlsrelay.media.probe import Container, MediaError, recognised
from hlsrelay.media.whole import cut_off
from hlsrelay.model import (
    InitSection,
    Key,
    KeyPolicy,
    MediaFile,
    Numbered,
    Sink,
    Slice,
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
KEY_BYTES = {"AES-128": 16, "AES-256": 32}
"""The methods that encrypt files as a whole, and how long their keys are."""
INIT_LIMIT_BYTES = 1 << 20
KEY_LIMIT_BYTES = 4 << 10
"""Both are kept in memory."""
REFETCHED = "segment_refetched"
_SAFE_SUFFIXES = {"ts", "m4s", "mp4", "aac", "mp3", "ac3", "ec3", "vtt"}


@dataclass(frozen=True, slots=True)
class Clip:
    """A segment on disk, byte for byte, published name and all; *lost* says why there is none, *repairs* what it took to have it.

    *init* is the init section in the clear, None where nobody here can read it; *glimpse* what was seen of it on the way.
    """

    numbered: Numbered
    file: MediaFile | None = None
    init: bytes | None = None
    keys: tuple[Key, ...] = ()
    secrets: tuple[bytes, ...] = ()
    lost: str = ""
    repairs: tuple[str, ...] = ()
    glimpse: Glimpse | None = None


class Downloading:
    """Fetches segments (and their init sections, once each) to where they will be served from.

    A segment, with all that it needs, has DEADLINE_TARGET_DURATIONS: what is finished behind it waits for that long, and players hold
    no more than three.
    """

    DEADLINE_TARGET_DURATIONS = 1.5
    SHORTEST_DEADLINE_S = 2.25

    def __init__(self, desk: Desk) -> None:
        self._tools = desk.tools
        self._name = desk.track.name
        self._beside = _Beside(desk)
        self._digests = desk.digests
        self._lengths = _Lengths(desk.tools.clock)
        self._since = 0

    @classmethod
    def deadline_s(cls, target_duration_s: float) -> float:
        """Return how long a segment may take."""
        return max(cls.DEADLINE_TARGET_DURATIONS * target_duration_s, cls.SHORTEST_DEADLINE_S)

    async def __call__(self, item: Numbered) -> Clip:
        if item.discontinuity:  # calls begin in the items' order
            self._since = item.number
        segment = item.segment
        if segment.gap:
            return Clip(item, lost="a gap of the source")
        if item.slice and not item.slice.path:
            return Clip(item, lost="too long, and it could not be had to be cut")
        until_s = self._tools.clock.monotonic_s() + self.deadline_s(item.target_duration_s)
        need = _Need(item, self._since, until_s)
        try:
            keys = await self._beside.keys(segment.keys, need, "key")
            init_keys = await self._beside.keys(segment.init.keys, need, "initkey") if segment.init else ()
            init = await self._beside.init(segment.init, need) if segment.init else None
            plain_init = _plain(init, init_keys) if init else None
            temp = self._tools.storage.temp(f"{self._name}-{item.number}")
            with _Growing(self._tools.storage, temp) as file:
                if item.slice:
                    size = self._sliced(item.slice, file, last=not item.more)
                else:
                    size = await self._whole(item, file, plain_init, until_s)
                    self._digests[item.number] = file.digest.text
                    self._digests.pop(item.number - REMEMBERED, None)
                suffix = _suffix(file.head, segment.uri)
                name = self._tools.storage.named(str(item.number), suffix)
                file.commit(f"{self._name}/{name}")
        except SegmentLost as error:
            return Clip(item, lost=str(error))
        except OSError as error:
            return Clip(item, lost=f"can't be stored: {error.strerror}")
        published = MediaFile(
            name,
            size,
            init_uri=init.uri if init else None,
            key_uris=tuple(dict.fromkeys(one.file.uri for one in (*keys, *init_keys) if one.file)),
            init_keys=tuple(one.key for one in init_keys) if init else None,
        )
        self._beside.listed(item.number, published)
        secrets = tuple(one.file.body for one in keys if one.file)
        repairs = (REFETCHED,) if file.attempts > 1 else ()
        return Clip(item, published, plain_init, tuple(one.key for one in keys), secrets, repairs=repairs, glimpse=file.glimpse)

    async def _whole(self, item: Numbered, file: _Growing, init: bytes | None, until_s: float) -> int:
        """Fetch a segment and return its length in bytes. Raises SegmentLost.

        What comes is looked at: servers give what an encoder still writes, or their error pages, as if nothing were wrong.
        """
        segment, fetch = item.segment, self._tools.upstream.fetch
        expected_s = 0.0 if item.i_frames_only or segment.byterange else segment.duration_s
        meter = self._lengths.meter(expected_s)

        def missing() -> str:
            if not segment.keys and (page := text_page(file.head)):
                return page
            if segment.byterange:
                return ""  # as long as the playlist says, to the byte
            encrypted = any(key.method in KEY_BYTES for key in segment.keys)
            if cut := cut_off(file.read, file.size, encrypted=encrypted):
                return cut
            if encrypted or not expected_s:
                return ""
            ends = Ends(file.read, file.size, init)
            if short := meter(ends.lasts_s(), file.digest.text):
                file.set_aside()
            file.glimpse = None if short or segment.keys else ends.glimpse()
            return short

        try:
            return await fetch(segment.uri, segment.byterange, file.restart, until_s - self._tools.clock.monotonic_s(), whole=missing)
        except SegmentLost:
            if not file.take_back():
                raise
            return file.size  # shorter than EXTINF says, and better than nothing

    def _sliced(self, piece: Slice, file: _Growing, *, last: bool) -> int:
        """Write a slice of a segment that was fetched to be cut; returns its length in bytes."""
        path = self._tools.storage.temp(piece.path)
        with path.open("rb") as whole:
            whole.seek(piece.start)
            file.restart()(piece.head + whole.read(piece.end - piece.start))
        if last:
            path.unlink()
        return len(piece.head) + piece.end - piece.start


@dataclass(frozen=True, slots=True)
class _Extra:
    """A small file that segments need: an init section or a key; *uri* is its name in the track's folder."""

    uri: str
    body: bytes


@dataclass(frozen=True, slots=True)
class _Need:
    """Which segment needs something beside itself, the number of the last DISCONTINUITY up to it, and until when it can wait."""

    item: Numbered
    since: int
    until_s: float


@dataclass(frozen=True, slots=True)
class _Given:
    """A key as players of ours get it, and its file where we serve it."""

    key: Key
    file: _Extra | None = None


class _Beside:
    """Fetches what segments need beside themselves, once each, and publishes it in the track's folder.

    After a DISCONTINUITY it is fetched again: encoders that restart write other content under the same URI.
    The same content keeps its file, whatever URI the source gives it next: tokens rotate, and a MAP or a KEY that is new by its name
    alone would make players begin anew. A file that none of the last entries lists may have left the playlist, and the disk.
    """

    MOST = 16
    WRONG_KEYS = 3
    WRONG_KEY_PAUSE_S = 1.0

    def __init__(self, desk: Desk) -> None:
        self._tools = desk.tools
        self._name = desk.track.name
        self._had: OrderedDict[tuple[int, InitSection], asyncio.Task[_Extra]] = OrderedDict()
        """By the number of the last DISCONTINUITY, and what was asked for."""
        self._files: dict[str, tuple[bytes, int]] = {}
        """What is in which file, and the newest number that lists it."""
        for entry in desk.progress.entries[-FEWEST_ENTRIES:] if desk.progress else ():
            file = entry.files.get(self._name)
            for uri in (file.init_uri, *file.key_uris) if file else ():
                if uri and (body := self._tools.storage.read(f"{self._name}/{uri}")):
                    self._files[uri] = body, entry.number

    def listed(self, number: int, file: MediaFile) -> None:
        """Take note that the entry *number* needs what *file* names."""
        for uri in (file.init_uri, *file.key_uris):
            if uri in self._files:
                body, before = self._files[uri]
                self._files[uri] = body, max(before, number)

    async def init(self, section: InitSection, need: _Need) -> _Extra:
        """Return an init section. Raises SegmentLost."""
        return await self._once(replace(section, keys=()), need, self._tools.storage.named(f"init-{need.item.number}", "mp4"))

    async def keys(self, keys: tuple[Key, ...], need: _Need, prefix: str) -> tuple[_Given, ...]:
        """Return *keys* as players of ours get them. Raises SegmentLost."""
        given = []
        for index, key in enumerate(keys):
            if not key.uri or not served_by_us(key, need.item.stream.keys):
                given.append(_Given(key))
                continue
            file = await self._once(
                InitSection(key.uri), need, self._tools.storage.named(f"{prefix}-{need.item.number}-{index}", "key"), key
            )
            ours_said = tuple((said, f'"{file.uri}"' if said == "URI" else value) for said, value in key.attributes)  # no token of theirs
            given.append(_Given(replace(key, uri=file.uri, attributes=ours_said), file))
        return tuple(given)

    async def _once(self, section: InitSection, need: _Need, name: str, key: Key | None = None) -> _Extra:
        """Return the file, fetched where it is not had or may be gone."""
        number, what = need.item.number, (need.since, section)
        task = self._had.get(what)
        if task is not None and task.done() and (task.cancelled() or task.exception() or not self._stays(task.result().uri, number)):
            task = None
        if task is None:
            task = self._had[what] = asyncio.ensure_future(self._fetched(section, need, name, key))
            while len(self._had) > self.MOST:
                self._had.popitem(last=False)
        self._had.move_to_end(what)
        return await asyncio.shield(task)

    def _stays(self, uri: str, number: int) -> bool:
        """Return whether a file is still listed by the time that the entry *number* is."""
        return uri in self._files and number - self._files[uri][1] < FEWEST_ENTRIES

    async def _fetched(self, section: InitSection, need: _Need, name: str, key: Key | None) -> _Extra:
        body, number = bytearray(), need.item.number
        length, what, limit = (KEY_BYTES.get(key.method), "key", KEY_LIMIT_BYTES) if key else (None, "init section", INIT_LIMIT_BYTES)

        def restart() -> Sink:
            body.clear()
            return body.extend

        for attempt in range(1, self.WRONG_KEYS + 1):
            left_s = max(0.0, need.until_s - self._tools.clock.monotonic_s())
            try:
                await self._tools.upstream.fetch(section.uri, section.byterange, restart, left_s, most_bytes=limit)
            except SegmentLost as error:
                raise SegmentLost(f"its {what}: {error}") from error
            if length in (None, len(body)):
                break
            if attempt == self.WRONG_KEYS:  # a page that says why not, most likely: to decrypt with it would give noise
                raise SegmentLost(f"the key has {len(body)} bytes, not {length}")
            await asyncio.sleep(self.WRONG_KEY_PAUSE_S)
        had = bytes(body)
        self._files = {uri: file for uri, file in self._files.items() if self._stays(uri, number)}
        for uri, (known, _) in self._files.items():
            if known == had and uri.rpartition(".")[2] == name.rpartition(".")[2]:
                return _Extra(uri, had)
        self._tools.storage.write(f"{self._name}/{name}", had)
        self._files[name] = had, number
        return _Extra(name, had)


def served_by_us(key: Key, policy: KeyPolicy) -> bool:
    """Return whether players get *key* from us.

    Only identity keys have a format that is known to us; keys of DRM systems are theirs to hand out.
    """
    return policy is KeyPolicy.PROXY and key.keyformat == "identity" and (key.uri or "").startswith(("http:", "https:"))


def _plain(init: _Extra, keys: tuple[_Given, ...]) -> bytes | None:
    """Return the init section in the clear, for whoever looks into the segment; players get it as it came."""
    if not any(one.key.method in KEY_BYTES for one in keys):  # SAMPLE-AES and its like leave init sections alone
        return init.body
    if len(keys) != 1 or keys[0].file is None or not can_decrypt((keys[0].key,)):
        return None
    try:
        return decrypted(init.body, keys[0].key, keys[0].file.body)
    except MediaError:
        return None


class _Growing:
    """A file that an attempt at a download fills, from its beginning each time; its digest holds its first bytes.

    A context manager: what was not moved away by its end is removed.
    """

    def __init__(self, storage: LocalStorage, path: Path) -> None:
        self._storage, self._path = storage, path
        self._file: BinaryIO = storage.open_temp(path)
        self._aside: tuple[Digest, int] | None = None
        self.digest, self.size = Digest(), 0
        self.attempts = 0
        self.glimpse: Glimpse | None = None
        """What it is, as far as that was seen on the way: who needs it looks again where it is None."""
        self._left = [path]
        """What is to be removed at the end."""

    def __enter__(self) -> _Growing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        for path in self._left:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @property
    def _second(self) -> Path:
        return self._path.with_name(f"{self._path.name}-aside")

    @property
    def head(self) -> bytes:
        """The first bytes, which tell what it is."""
        return self.digest.head

    def read(self, at: int, length: int) -> bytes:
        """Return what is in it."""
        return os.pread(self._file.fileno(), length, at)

    def restart(self) -> Sink:
        self.attempts += 1
        if self.size:
            self._file.seek(0)
            self._file.truncate()
        self.digest, self.size = Digest(), 0
        return self._write

    def set_aside(self) -> None:
        """Keep what it is now, should nothing better come."""
        self._file.close()
        self._left.append(self._second)
        self._path.replace(self._second)
        self._aside = self.digest, self.size
        self._file = self._storage.open_temp(self._path)

    def take_back(self) -> bool:
        """Be what was set aside; returns whether there is anything."""
        if self._aside is None:
            return False
        self._second.replace(self._path)
        self.digest, self.size = self._aside
        return True

    def commit(self, path: str) -> None:
        """Publish it as *path*, relative to the stream's folder."""
        self._storage.commit(self._path, path)
        self._left.remove(self._path)

    def _write(self, piece: bytes | memoryview) -> None:
        self.digest.update(piece)
        self.size += len(piece)
        while len(piece) > (written := self._file.write(piece)):  # a disk that is full says so at the next turn
            piece = piece[written:]


class _Lengths:
    """Holds media against EXTINF: a segment may be listed while it is still written, and served as far as it is, packet by packet.

    What does not grow any more is all that there is, and the source says what is not so: where that is usual, nobody waits for it.
    """

    LEAST_SHARE, LESS_SURE_SHARE, LESS_SURE_S = 0.5, 0.75, 1.0
    """Short is less than the first part of EXTINF, or less than the second where so much is missing: some sources round EXTINF up."""
    GROWN_SHARE = 0.9
    """Short is less than this of what was short before."""
    STILL_S = 1.5
    USUAL = 3

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wrong = 0

    def meter(self, expected_s: float) -> Callable[[float | None, str], str]:
        """Return what, told the length and the digest of what an attempt at one segment brought, says what is missing."""
        seen: dict[str, float] = {}

        def missing(found_s: float | None, digest: str) -> str:
            if found_s is None:
                return ""
            missing_s = expected_s - found_s
            least = self.LESS_SURE_SHARE if missing_s > self.LESS_SURE_S else self.LEAST_SHARE
            if found_s >= (self.GROWN_SHARE if seen else least) * expected_s:
                self._wrong = 0
                return ""
            now_s = self._clock.monotonic_s()
            if now_s - seen.setdefault(digest, now_s) >= self.STILL_S:
                self._wrong += 1
                return ""
            return "" if self._wrong >= self.USUAL else f"{found_s:.1f} s of media, where EXTINF says {expected_s:.1f}"

        return missing


def _container(head: bytes) -> Container:
    try:
        return recognised(head)
    except MediaError:
        return Container.UNKNOWN


def text_page(head: bytes) -> str:
    """Return what shows that this is no media; empty where it may be."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] not in (b"<", b"{", b"#") or _container(head) is not Container.UNKNOWN:
        return ""
    return f"a text page, not media: it begins {text[:24]!r}"


def _suffix(head: bytes, uri: str) -> str:
    """Return the published name's suffix: by content, else what the source calls it if players know that."""
    if known := _SUFFIX.get(_container(head)):
        return known
    theirs = PurePosixPath(urlsplit(uri).path).suffix.lower().removeprefix(".")
    return theirs if theirs in _SAFE_SUFFIXES else "ts"
