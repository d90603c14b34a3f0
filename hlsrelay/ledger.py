"""The record of a stream's progress: written before anything is shown, so that whoever comes next goes on from it."""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.parse import parse
from hlsrelay.hls.window import FEWEST_ENTRIES, Listing, Progress, Retired, carried, joined, listing
from hlsrelay.model import SOURCE, Entry, Seen, Snapshot
from hlsrelay.storage import LEDGER, MULTIVARIANT, LocalStorage
from hlsrelay.values import replace

_NOT_KEPT = ConfigDict(cache_strings="none")
"""pydantic keeps 16,384 strings that it has read, for ever: URIs of segments that are long gone."""
_PROGRESS = TypeAdapter(Progress)
_READ: TypeAdapter[Progress | None] = TypeAdapter(Progress | None, config=_NOT_KEPT)  # a dataclass alone can't be given one
_CARRIED = TypeAdapter(dict[str, Progress], config=_NOT_KEPT)
_SEEN, _ENTRY, _RETIRED = TypeAdapter(Seen), TypeAdapter(Entry), TypeAdapter(Retired)
FORMAT = 1

RECENT_CHANGES = 4
"""So many of the last that a position remembers may have become others: their digests are known later than they are."""

SMALL_BYTES = 1 << 18
"""What is larger than this of init sections and keys is fetched as segments are."""


class Ledger(Protocol):
    """What the relay needs of a ledger."""

    def resume(self) -> Progress | None:
        """Return the progress recorded last, by us or a predecessor; None for a stream that was never relayed."""

    def record(self, progress: Progress) -> None:
        """Record *progress*, whole or not at all."""

    def first_free_number(self) -> int | None:
        """Return the number after the last one ever published, where the record is lost but a playlist is still there."""


class LocalLedger:
    """A file per track beside the playlists, replaced in one step."""

    def __init__(self, storage: LocalStorage, track: str = SOURCE) -> None:
        self._storage = storage
        self._track = track
        self._path = _path(track)
        self._lists = {b"recent": _Items(_SEEN, RECENT_CHANGES), b"entries": _Items(_ENTRY), b"retired": _Items(_RETIRED)}
        """In the order in which a record has them."""

    def resume(self) -> Progress | None:
        """See Ledger. A record that can't be read (another format, a torn disk) counts as none: its file is kept aside."""
        body = self._storage.read(self._path)
        if body is None:
            return None
        if (progress := _read(body)) is None:
            self._storage.write(self._path + ".unreadable", body)
            return None
        return progress

    def first_free_number(self) -> int | None:
        """See Ledger."""
        body = self._storage.read(f"{self._track}/index.m3u8")
        if body is None:
            return None
        try:
            published = parse(body, "file:///")
        except PlaylistError:
            return None
        return published.segments[-1].sequence + 1 if isinstance(published, Snapshot) else None

    def forget(self) -> None:
        """Remove the record: whoever comes next begins anew."""
        self._storage.remove([self._path])

    def record(self, progress: Progress) -> None:
        """See Ledger."""
        lists = (progress.position.recent, progress.entries, progress.retired)
        bare = replace(progress, position=replace(progress.position, recent=()), entries=(), retired=())
        body = _PROGRESS.serializer.to_json(bare)  # past what pydantic does first in Python
        for (name, written), items in zip(self._lists.items(), lists, strict=True):
            body = body.replace(b'"%s":[]' % name, b'"%s":[%s]' % (name, written(items)), 1)  # no text holds quotes that are not escaped
        self._storage.write(self._path, body)


class _Items:
    """The items of a list as JSON: all but the last few are those of the record before, and are written on from there.

    They are most of a record, and to write them anew each time was most of what it cost.
    """

    def __init__(self, item: TypeAdapter[Any], changes: int = 0) -> None:
        self._to_json, self._changes = item.serializer.to_json, changes
        """*changes*: so many at the end may have become others."""
        self._items: tuple[Any, ...] = ()
        self._text = b""
        self._began = 0
        self._ends = deque[int]()
        """Where each ends; *_text* begins at *_began*."""

    def __call__(self, items: tuple[Any, ...]) -> bytes:
        """Return *items*, comma between."""
        left, kept = self._same(items)
        begin = self._ends[left - 1] + 1 if left else self._began
        texts = [self._text[begin - self._began : self._ends[left + kept - 1] - self._began]] if kept else []
        for _ in range(left):
            self._ends.popleft()
        while len(self._ends) > kept:
            self._ends.pop()
        self._items, self._began = (), begin  # as long as not all of them are there
        for one in items[kept:]:
            texts.append(self._to_json(one))
            self._ends.append((self._ends[-1] + 1 if self._ends else begin) + len(texts[-1]))
        self._items, self._text = items, b",".join(texts)
        return self._text

    def _same(self, items: tuple[Any, ...]) -> tuple[int, int]:
        """Return how many have left since the last time, and how many that stay are the same."""
        before = self._items
        left = next((index for index, one in enumerate(before) if items and one is items[0]), len(before))
        both = min(len(before) - left, len(items))
        kept = next((index for index in range(max(0, both - self._changes), both) if before[left + index] is not items[index]), both)
        return (left, kept) if kept > 0 and before[left : left + kept] == items[:kept] else (0, 0)


def _path(track: str) -> str:
    return LEDGER if track == SOURCE else f"{LEDGER.removesuffix('.json')}-{track}.json"


def _read(body: bytes | None) -> Progress | None:
    """Return what a record says; None for one that can't be read."""
    try:
        progress = _READ.validate_json(body or b"")
    except ValidationError:
        return None
    return progress if progress and progress.format == FORMAT else None


def packed(tracks: Mapping[str, Progress], served_at: str = "") -> str:
    """Return, as text, what a successor on another machine needs of all tracks (window.carried). *served_at*: where it gets the files."""
    return _CARRIED.dump_json({name: carried(progress, served_at) for name, progress in tracks.items()}).decode()


def news(text: str, storage: LocalStorage) -> dict[str, Progress]:
    """Return what a predecessor's `packed` says of tracks of which our folder knows less. A text that can't be read counts as none."""
    try:
        tracks = _CARRIED.validate_json(text) if text else {}
    except ValidationError:
        return {}
    found = {}
    for name, progress in tracks.items():
        ours = LocalLedger(storage, name).resume()
        if progress.format == FORMAT and (ours is None or ours.position.last_number < progress.position.last_number):
            found[name] = progress
    return found


def unpacked(text: str, storage: LocalStorage, handed: Handed | None = None) -> frozenset[str]:
    """Record what a predecessor's `packed` says of tracks of which our folder knows less, and return these.

    They list what is *handed* on, which is fetched (backfill). What our playlists of these list, and the rest of it, is of before: nothing
    of it is listed any more.
    """
    tracks = news(text, storage)
    for name, progress in tracks.items():
        ledger = LocalLedger(storage, name)
        ours = ledger.resume()
        storage.remove([MULTIVARIANT, *(f"{one.name}/index.m3u8" for one in (ours.renditions if ours else ()))])
        ledger.record(joined(progress, handed.tracks[name]) if handed and name in handed.tracks else progress)
    return frozenset(tracks)


@dataclass(frozen=True, slots=True)
class Handed:
    """What players know of a stream, for its next owner. *multivariant* is its playlist; *beside*: the init sections and keys of late."""

    tracks: Mapping[str, Listing]
    multivariant: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)
    """By path relative to the stream's folder; base64."""

    def files(self) -> dict[str, bytes]:
        """Return what is *beside*; what can't be read is left out."""
        found = {}
        for path, text in self.beside.items():
            with suppress(binascii.Error, ValueError):
                found[path] = base64.b64decode(text, validate=True)
        return found


_HANDED: TypeAdapter[Handed | None] = TypeAdapter(Handed | None, config=_NOT_KEPT)


def handed_on(storage: LocalStorage) -> bytes | None:
    """Return, for `handed` to read, what is recorded of a stream here, but nothing that tells of its source; None where nothing is."""
    found = {name: progress for name in storage.ledgers() if (progress := _read(storage.read(_path(name))))}
    if not found:
        return None
    beside: dict[str, str] = {}
    for progress in found.values():
        for entry in progress.entries[-FEWEST_ENTRIES:]:
            for name, file in entry.files.items():
                for path in (f"{name}/{uri}" for uri in (file.init_uri, *file.key_uris) if uri and not uri.startswith("../")):
                    if path not in beside and (body := storage.read(path)) is not None and len(body) <= SMALL_BYTES:
                        beside[path] = base64.b64encode(body).decode()
    multivariant = (storage.read(MULTIVARIANT) or b"").decode(errors="replace")
    return _HANDED.dump_json(Handed({name: listing(progress) for name, progress in found.items()}, multivariant, beside))


def handed(body: bytes) -> Handed | None:
    """Return what a node has told with `handed_on`; None where that can't be read."""
    try:
        return _HANDED.validate_json(body)
    except ValidationError:
        return None
