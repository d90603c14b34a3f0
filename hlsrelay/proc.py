"""What Linux tells of a process (proc(5)); elsewhere nothing is known, and whoever asks gets None."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used so far, all its threads together; *rss_bytes* is what it holds in memory now."""

    cpu_s: float
    rss_bytes: int


def usage(pid: int) -> Usage | None:
    """Return what *pid* uses; None where it is gone, or this can't be known."""
    fields = _stat(pid)
    return Usage((int(fields[11]) + int(fields[12])) / _ticks(), int(fields[21]) * _page_bytes()) if fields else None


def runnable(pid: int) -> bool:
    """Return whether a thread of *pid* runs or would run if it were given a core: what is starved is, what waits or is stopped isn't."""
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                if _fields(Path(f"/proc/{pid}/task/{thread}/stat"))[0] == b"R":
                    return True
    return False


def is_stopped(pid: int) -> bool:
    """Return whether *pid* stands still: by SIGSTOP, or under a debugger."""
    fields = _stat(pid)
    return fields is not None and fields[0] in (b"T", b"t")


def started(pid: int) -> int | None:
    """Return when process *pid* started, in ticks since boot; None if there is none, or only its zombie."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in (b"Z", b"X") else int(fields[19])


def age_s(pid: int) -> float | None:
    """Return for how long *pid* has been there."""
    since = started(pid)
    with suppress(OSError):
        if since is not None:
            return float(Path("/proc/uptime").read_text().split()[0]) - since / _ticks()
    return None


def argv(pid: int) -> tuple[str, ...]:
    """Return the words of *pid*'s command line; none where it is gone."""
    with suppress(OSError):
        return tuple(word.decode(errors="replace") for word in Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0"))
    return ()


def _stat(pid: int) -> list[bytes] | None:
    try:
        return _fields(Path(f"/proc/{pid}/stat"))
    except OSError:
        return None


def _fields(path: Path) -> list[bytes]:
    # The program's name, in parentheses, may hold anything, also blanks and parentheses.
    return path.read_bytes().rpartition(b")")[2].split()


@cache
def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")


@cache
def _page_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE")
