"""The record of a stream's progress: written before anything is shown, so that whoever comes next goes on from it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.parse import parse
from hlsrelay.hls.window import FEWEST_ENTRIES, Listing, Progress, carried, joined, listing
from hlsrelay.model import SOURCE, Seen, Snapshot
from hlsrelay.storage import LEDGER, MULTIVARIANT, LocalStorage
from hlsrelay.values import replace

_PROGRESS = TypeAdapter(Progress)
_CARRIED = TypeAdapter(dict[str, Progress])
_SEEN = TypeAdapter(Seen)
_NO_RECENT = b'"recent":[]'
"""A position's, which is what a record begins with: no text holds quotes that are not escaped."""
FORMAT = 1


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
        self._recent = _Recent()

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
        position = progress.position
        body = _PROGRESS.dump_json(replace(progress, position=replace(position, recent=())))
        self._storage.write(self._path, body.replace(_NO_RECENT, b'"recent":[%s]' % self._recent.written(position.recent), 1))


class _Recent:
    """The segments that a position remembers, as JSON: of some sixty all but the last few are those of the record before.

    They are most of a record, and to write them anew each time was most of what it cost.
    """

    CHANGES = 4
    """So many at the end may have become others: their digests are known later than they are."""

    def __init__(self) -> None:
        self._seen: tuple[Seen, ...] = ()
        self._text = b""
        self._ends: list[int] = []

    def written(self, seen: tuple[Seen, ...]) -> bytes:
        """Return *seen*, comma between."""
        left, kept = self._same(seen)
        begin = self._ends[left - 1] + 1 if left else 0
        text = self._text[begin : self._ends[left + kept - 1]] if kept else b""
        ends = [end - begin for end in self._ends[left : left + kept]]
        for one in seen[kept:]:
            text += (b"," if text else b"") + _SEEN.dump_json(one)
            ends.append(len(text))
        self._seen, self._text, self._ends = seen, text, ends
        return text

    def _same(self, seen: tuple[Seen, ...]) -> tuple[int, int]:
        """Return how many have left since the last time, and how many that stay are the same."""
        before = self._seen
        left = next((index for index, one in enumerate(before) if seen and one is seen[0]), len(before))
        kept = min(len(before) - left, len(seen)) - self.CHANGES
        return (left, kept) if kept > 0 and before[left : left + kept] == seen[:kept] else (0, 0)


def _path(track: str) -> str:
    return LEDGER if track == SOURCE else f"{LEDGER.removesuffix('.json')}-{track}.json"


def _read(body: bytes | None) -> Progress | None:
    """Return what a record says; None for one that can't be read."""
    try:
        progress = _PROGRESS.validate_json(body or b"")
    except ValidationError:
        return None
    return progress if progress.format == FORMAT else None


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


_HANDED = TypeAdapter(Handed)


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
