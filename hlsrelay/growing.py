"""A segment as it comes: the file that it grows in, begun anew with each attempt."""

from __future__ import annotations

import os
from contextlib import suppress

from hlsrelay.cutting import Digest
from hlsrelay.media.ends import Glimpse
from hlsrelay.model import Sink
from hlsrelay.storage import LocalStorage, write_all


class Growing:
    """A file that an attempt at a download fills, from its beginning each time; its digest holds its first bytes.

    A context manager: what was not moved away by its end is removed.
    """

    def __init__(self, storage: LocalStorage, name: str) -> None:
        self._storage, self._path = storage, storage.temp_name(name)
        self._file = storage.open_temp(self._path)
        self._aside: tuple[Digest, int] | None = None
        self.digest, self.size = Digest(), 0
        self.attempts = 0
        self.glimpse: Glimpse | None = None
        """What it is, as far as that was seen on the way: who needs it looks again where it is None."""
        self._left = [self._path]
        """What is to be removed at the end."""

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        for path in self._left:
            with suppress(OSError):
                os.unlink(path)

    @property
    def _second(self) -> str:
        return f"{self._path}-aside"

    @property
    def head(self) -> bytes:
        """The first bytes, which tell what it is."""
        return self.digest.head

    def read(self, at: int, length: int) -> bytes:
        """Return what is in it: its first bytes are at hand."""
        if at + length <= len(self.head) or self.size == len(self.head):
            return self.head[at : at + length]
        return os.pread(self._file, length, at)

    def restart(self) -> Sink:
        """Begin anew, empty; returns what the bytes of the next attempt go to."""
        self.attempts += 1
        if self.size:
            os.lseek(self._file, 0, os.SEEK_SET)
            os.ftruncate(self._file, 0)
        self.digest, self.size = Digest(), 0
        return self._write

    def set_aside(self) -> None:
        """Keep what it is now, should nothing better come."""
        self._left.append(self._second)
        os.replace(self._path, self._second)
        self._aside = self.digest, self.size
        file, self._file = self._file, self._storage.open_temp(self._path)
        os.close(file)

    def take_back(self) -> bool:
        """Be what was set aside, which is not read any more; returns whether there is anything."""
        if self._aside is None:
            return False
        os.replace(self._second, self._path)
        self.digest, self.size = self._aside
        return True

    def commit(self, path: str) -> None:
        """Publish it as *path*, relative to the stream's folder."""
        self._storage.commit(self._path, path)
        self._left.remove(self._path)

    def _write(self, piece: bytes | memoryview) -> None:
        self.digest.update(piece)
        self.size += len(piece)
        write_all(self._file, piece)
