"""Where published files live. Local: `<data>/live/<stream>/<rendition>/<number>.ts`, every change one rename.

Readers see whole files only: bytes go to `.tmp/` first. Files whose names begin with a dot are ours and never served.

Law: a file that a job still reads is never removed. An encoder opens the second of two files late, and who removes does not know of it:
so who reads says so (`reading`), and what is to be removed meanwhile goes when the last reader is done.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from hlsrelay.errors import ResourceBusy
from hlsrelay.fields import checked_id
from hlsrelay.model import SOURCE

LEDGER = ".ledger.json"
MULTIVARIANT = "index.m3u8"
"""The playlist of all that a stream publishes."""
PLAYLIST = ".m3u8"
TYPES = {
    PLAYLIST: "application/vnd.apple.mpegurl",  # RFC 8216 4
    ".ts": "video/mp2t",
    ".m4s": "video/iso.segment",
    ".mp4": "video/mp4",
    ".aac": "audio/aac",
    ".mp3": "audio/mpeg",
    ".ac3": "audio/ac3",
    ".ec3": "audio/eac3",
    ".vtt": "text/vtt",
    ".key": "application/octet-stream",
}
"""What players may ask for, by suffix, and its Content-Type: everything else (records, files being written) is the relay's own."""
PLAYLIST_CACHE = "max-age=1"
FILE_CACHE = "public, max-age=3600"
"""Cache-Control: a file never changes under its name."""
_LEDGERS = ".ledger-"
_LOCK = ".lock"
_TEMP = ".tmp"


def live_dir(data: Path) -> Path:
    """Return the folder that holds one folder per stream, made if it wasn't there. Raises ResourceBusy."""
    folder = data / "live"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable")
    except OSError as error:
        raise ResourceBusy(f"data directory {data} can't be used: {error.strerror}; set HLSRELAY_DATA to one that can") from None
    return folder


def write_all(file: int, piece: bytes | memoryview) -> None:
    """Write all of *piece* to a descriptor. Raises OSError."""
    left = piece
    while len(left) > (written := os.write(file, left)):  # a disk that is full says so at the next turn
        left = left[written:]


def lock_holder(folder: Path) -> str:
    """Return the pid, as it wrote it, of who took a stream's folder last; empty where nobody did."""
    try:
        return (folder / _LOCK).read_text(errors="replace").strip()
    except OSError:
        return ""


class Absent(Protocol):
    """Files that are listed, and not in the folder yet: they are where an owner before us serves them."""

    def has(self, path: str) -> bool:
        """Say whether a file is one of them."""

    async def bring(self, path: str) -> None:
        """Have that file in the folder, if that can be: fetched once, however many ask."""

    def forget(self, path: str) -> None:
        """Nobody may ask for it any more."""


class LocalStorage:
    """One stream's folder, in the hands of one process: a context manager that holds its lock. Raises ConfigError for a bad id."""

    def __init__(self, live: Path, stream_id: str) -> None:
        self.folder = live / checked_id(stream_id)
        self._root = f"{self.folder}/"
        """Before a path, as the system takes it: a segment passes here a dozen times, and its Paths cost more than the calls."""
        self.stream_id = stream_id
        self.playlists: dict[str, bytes] = {}
        """What was published last, by path relative to the stream's folder: the web server answers from here."""
        self.absent: Absent | None = None
        self.lost_until: datetime | None = None
        """Up to when what is listed begins that can't be had any more."""
        self.held: dict[str, int] = {}
        """Tracks whose playlists are not shown before they have caught up, and to which number at least: players may know more already."""
        self.due: set[str] = set()
        """Playlists that players know from the owner before us, and that are about to be here."""
        self._lock: int | None = None
        self._read: Counter[Path] = Counter()
        self._unwanted: set[Path] = set()

    def __enter__(self) -> Self:
        """Take the stream's folder. Raises ResourceBusy where another process has it or it can't be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ResourceBusy(f"{self.folder} can't be written: {error.strerror}; set HLSRELAY_DATA to a folder that can") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            holder = lock_holder(self.folder) or "unknown"
            raise ResourceBusy(
                f"stream '{self.stream_id}' is being relayed into {self.folder} already, by process {holder}: stop that one first"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor
        shutil.rmtree(self.folder / _TEMP, ignore_errors=True)
        (self.folder / _TEMP).mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self.folder / _TEMP, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def taken(self) -> None:
        """Take the stream over where it is published: what is there was published by whoever had it before, and is gone on from.

        Raises StorageAway, and may be called again then; Superseded where somebody with a later claim has it. At once here: it is the
        folder that is locked.
        """

    async def settled(self) -> None:
        """Wait until all that was published so far is there for every node and player, and shown. Raises StorageAway, Superseded.

        What is not there yet stays noted: the next call tries again. At once here.
        """

    @property
    def unsettled(self) -> bool:
        """Whether `settled` has something to do, now or later: to remove files, if nothing else."""
        return False

    def named(self, stem: str, suffix: str) -> str:
        """Return the name of a file of our making: nobody else, before or after, gives the same name to something else."""
        return f"{stem}.{suffix}"

    def is_stored(self, path: str) -> bool:
        """Say whether a file of the stream's is where it is published, be it in the folder or not."""
        return self.absent is not None and self.absent.has(path)

    async def brought(self, path: str) -> None:
        """Have a stored file in the folder too, if that can be."""
        if self.absent is not None and self.absent.has(path):
            await self.absent.bring(path)

    def temp(self, name: str) -> Path:
        """Return where a file may grow before it is published; *name* must be one of our own making."""
        return Path(self.temp_name(name))

    def temp_name(self, name: str) -> str:
        """Return `temp` as the system takes it."""
        return f"{self._root}{_TEMP}/{name}"

    def open_temp(self, path: str) -> int:
        """Open a file under `temp`, empty, to be written and looked into; returns its descriptor, which is the caller's."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def commit(self, temp: Path | str, path: str) -> None:
        """Publish the whole file *temp* as *path*, relative to the stream's folder."""
        try:
            os.replace(temp, self._root + path)
        except FileNotFoundError:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temp, self._root + path)

    def publish(self, playlist: str, text: str) -> None:
        """Replace the playlist at *playlist*, relative to the stream's folder; nothing happens where it says the same already."""
        body = text.encode()
        if self.playlists.get(playlist) == body:
            return
        self.write(playlist, body)
        self.playlists[playlist] = body

    def write(self, path: str, body: bytes) -> None:
        """Replace the file at *path* in one step."""
        temp = self.temp_name(path.replace("/", "-"))
        file = self.open_temp(temp)
        try:
            write_all(file, body)
        finally:
            os.close(file)
        self.commit(temp, path)

    def keep(self, files: Mapping[str, bytes]) -> None:
        """Have these small files, relative to the stream's folder; those that are there stay as they are."""
        for path, body in files.items():
            if not (self.folder / path).exists():
                self.write(path, body)

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None where there is none."""
        try:
            return (self.folder / path).read_bytes()
        except FileNotFoundError:
            return None

    def ledgers(self) -> list[str]:
        """Return the tracks that have a record here."""
        named = [path.name.removeprefix(_LEDGERS).removesuffix(".json") for path in self.folder.glob(f"{_LEDGERS}*.json")]
        return [SOURCE] * (self.folder / LEDGER).exists() + sorted(named)

    def published(self) -> list[str]:
        """Return the playlists that are here, the multivariant one first."""
        found = [*self.folder.glob("*.m3u8"), *self.folder.glob("[!.]*/*.m3u8")]
        return [path.relative_to(self.folder).as_posix() for path in found]

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files and playlists; one that is gone already is fine."""
        for path in paths:
            if self._read:
                self.discard(self.folder / path)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(self._root + path)
            self.playlists.pop(path, None)
            if self.absent is not None:
                self.absent.forget(path)

    @contextmanager
    def reading(self, *paths: Path | None) -> Generator[None, None, None]:
        """Keep files where they are while the block runs: what is removed meanwhile goes at its end."""
        held = [path for path in paths if path is not None]
        self._read.update(held)
        try:
            yield
        finally:
            self._read.subtract(held)
            self._read += Counter()  # forget what nobody reads any more
            for path in self._unwanted - self._read.keys():
                self._unwanted.remove(path)
                path.unlink(missing_ok=True)

    def discard(self, path: Path) -> None:
        """Remove a file of this stream's once nobody reads it; one that is gone already is fine."""
        if path in self._read:
            self._unwanted.add(path)
        else:
            path.unlink(missing_ok=True)

    def sweep(self, known: set[str]) -> int:
        """Remove segments that *known* does not name: what a crash left between two steps. Returns how many."""
        swept = 0
        for path in self.folder.glob("*/*"):
            name = path.relative_to(self.folder).as_posix()
            if not name.startswith(".") and path.suffix != ".m3u8" and name not in known and path.is_file():
                self.discard(path)
                swept += 1
        return swept
