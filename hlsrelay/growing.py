"""A segment as it comes: the file that it grows in, begun anew with each attempt."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from hlsrelay.cutting import Digest
from hlsrelay.media.ends import Glimpse
from hlsrelay.model import Sink
from hlsrelay.storage import LocalStorage


class Growing:
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

    def __enter__(self) -> Growing:
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
        """Begin anew, empty; returns what the bytes of the next attempt go to."""
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
