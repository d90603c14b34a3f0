"""The record of a stream's progress: written before anything is shown, so that whoever comes next goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.parse import parse
from hlsrelay.hls.window import Progress, carried
from hlsrelay.model import SOURCE, Snapshot
from hlsrelay.storage import LEDGER, MULTIVARIANT, LocalStorage

_PROGRESS = TypeAdapter(Progress)
_CARRIED = TypeAdapter(dict[str, Progress])
FORMAT = 1


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
        self._path = LEDGER if track == SOURCE else f"{LEDGER.removesuffix('.json')}-{track}.json"

    def resume(self) -> Progress | None:
        """See Ledger. A record that can't be read (another format, a torn disk) counts as none: its file is kept aside."""
        body = self._storage.read(self._path)
        if body is None:
            return None
        try:
            progress = _PROGRESS.validate_json(body)
        except ValidationError:
            progress = None
        if progress is None or progress.format != FORMAT:
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
        self._storage.write(self._path, _PROGRESS.dump_json(progress))


def packed(tracks: Mapping[str, Progress]) -> str:
    """Return, as text, what a successor on another machine needs of all tracks (window.carried)."""
    return _CARRIED.dump_json({name: carried(progress) for name, progress in tracks.items()}).decode()


def unpacked(text: str, storage: LocalStorage) -> bool:
    """Record what a predecessor's `packed` says of tracks of which our folder knows less; returns whether there was any.

    What our playlists of these list is of before: nothing of it is listed any more. A text that can't be read counts as none.
    """
    try:
        tracks = _CARRIED.validate_json(text) if text else {}
    except ValidationError:
        return False
    taken = False
    for name, progress in tracks.items():
        ledger = LocalLedger(storage, name)
        ours = ledger.resume()
        if progress.format == FORMAT and (ours is None or ours.position.last_number < progress.position.last_number):
            storage.remove([MULTIVARIANT, *(f"{one.name}/index.m3u8" for one in (ours.renditions if ours else ()))])
            ledger.record(progress)
            taken = True
    return taken
