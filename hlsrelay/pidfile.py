"""One daemon per pid file: locked while it runs, so that a second one is refused, and the one that runs can be told to go and awaited.

The lock is fcntl's: the kernel lets go of it however the process ends, no child inherits it, and it tells who holds it, so that a number
left in the file by a dead process means nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hlsrelay.errors import HlsRelayError, ResourceBusy

_FLOCK = "hhqqi4x"
"""Linux's struct flock on 64 bits: type, whence, start, length, pid."""
SAID_EVERY_S = 5.0


@contextmanager
def held(path: Path | None) -> Iterator[None]:
    """Hold *path*, with our pid in it, while the block runs; None holds nothing. Raises ResourceBusy, which says who holds it."""
    if path is None:
        yield
        return
    descriptor = _taken(path)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            if _is_still(path, descriptor):
                path.unlink()  # while it is locked: who waits for it finds that it is no longer there, and makes a new one
        os.close(descriptor)


def _taken(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ResourceBusy(f"pid file {path} can't be written: {error.strerror}; give one that can with --pid-file") from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                return descriptor
            os.close(descriptor)
        except OSError as error:
            pid = _holder(descriptor)
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise ResourceBusy(f"pid file {path} can't be locked: {error.strerror}; give one on another file system") from None
            raise ResourceBusy(
                f"process {pid or 'of another container'} holds {path} and runs: hlsrelay quit --pid-file {path} ends it"
            ) from None


def _is_still(path: Path, descriptor: int) -> bool:
    ours = os.fstat(descriptor)
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _holder(descriptor: int) -> int | None:
    """Return the pid of who holds the lock, 0 for one whose pid means nothing here, None where nobody does."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else max(pid, 0)


def quit_daemon(path: Path, patience_s: float, say: Callable[[str], None] = lambda _: None) -> int | None:
    """End who holds *path* (SIGTERM: it leaves in order), and return its pid once it is gone; None where nobody held it.

    *say* hears every few seconds for how long it is waited for. Raises ResourceBusy where it may not be told, HlsRelayError where it is
    still there after *patience_s* seconds (inf: waits on).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResourceBusy(f"pid file {path} can't be opened: {error.strerror}; run this as the user that runs hlsrelay") from None
    try:
        pid = _holder(descriptor)
        if pid is None:
            return None
        if pid == 0:
            raise ResourceBusy(f"{path} is held by a process of another container: run hlsrelay quit in there")
        with suppress(ProcessLookupError), _handle(pid) as process:
            if _holder(descriptor) == pid:  # else it went, and its pid may be another's by now
                signal.pidfd_send_signal(process, signal.SIGTERM)
                _await(process, pid, patience_s, say)
        return pid
    except PermissionError:
        raise ResourceBusy(f"process {pid}, which holds {path}, is another user's: run this as that user") from None
    finally:
        os.close(descriptor)


@contextmanager
def _handle(pid: int) -> Iterator[int]:
    process = os.pidfd_open(pid)
    try:
        yield process
    finally:
        os.close(process)


def _await(process: int, pid: int, patience_s: float, say: Callable[[str], None]) -> None:
    waited_s = 0.0
    while waited_s < patience_s:
        step_s = min(SAID_EVERY_S, patience_s - waited_s)
        if select.select([process], [], [], step_s)[0]:
            return
        waited_s += step_s
        say(f"process {pid} is leaving: {waited_s:g} s")
    raise HlsRelayError(f"process {pid} is still there after {patience_s:g} s: wait on with the same command, or kill -KILL {pid}")
