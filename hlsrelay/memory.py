"""How much memory is in use, and when that is too much.

Laws:
- What counts is what can't be given back: a cgroup's usage without the pages of files, the machine's without what it calls available.
  A relay writes and serves files all day; with their cache counted it would soon be at its limit for ever.
- The scarcest counts: our cgroup, each one around it that has a limit, and the machine.
- A cgroup's limit is what comes first of memory.high, from which on the kernel slows everything in it, pass-through too, and memory.max.
- It is short from the threshold on, and eases EASES_PERCENT below it: on one line both, it would be news every second.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

EASES_PERCENT = 5.0

_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 says 2^63 less a page for no limit."""
_LONGEST_BYTES = 64 << 10
_TOTAL, _AVAILABLE = (re.compile(rf"(?m)^{name}: +(\d+) kB") for name in ("MemTotal", "MemAvailable"))
_FILES_V1, _FILES_V2 = (re.compile(rf"(?m)^{of}(?:in)?active_file (\d+)$") for of in ("total_", ""))


class Pressure:
    """Whether memory is short. *threshold_percent*: from how much in use on."""

    def __init__(self, threshold_percent: float) -> None:
        self._threshold_percent = threshold_percent
        self.percent: float | None = None
        self.pressed = False

    def note(self, percent: float | None) -> bool:
        """Take a reading; return whether that changed *pressed*. None, not known, is never short."""
        before, self.percent = self.pressed, percent
        limit = self._threshold_percent - (EASES_PERCENT if before else 0.0)
        self.pressed = percent is not None and percent >= limit
        return self.pressed != before


def used_percent(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return how much of the scarcest memory is in use, in percent; None where nothing tells. It reads a few small files."""
    found = [one for one in (_machine(str(proc)), *_cgroups(str(proc), str(cgroups))) if one is not None]
    return max(found, default=None)


def give_back() -> None:
    """Give the system what the C library holds for us and nobody uses; nothing where it can't do that (glibc can)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _machine(proc: str) -> float | None:
    text = _text(f"{proc}/meminfo")
    total, available = _TOTAL.search(text), _AVAILABLE.search(text)
    if not total or not available or not int(total[1]):
        return None
    return 100.0 * (int(total[1]) - int(available[1])) / int(total[1])


def _cgroups(proc: str, root: str) -> list[float | None]:
    """Return what is in use of our cgroup and of those around it (cgroups(7)): a line is id:controllers:path, v2 has no controllers."""
    found = []
    for line in _text(f"{proc}/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, current, files = root, "memory.current", _FILES_V2
            limits = ["memory.high", "memory.max"]
        elif "memory" in controllers.split(","):
            base, current, files = f"{root}/memory", "memory.usage_in_bytes", _FILES_V1
            limits = ["memory.limit_in_bytes"]
        else:
            continue
        names = [name for name in path.split("/") if name]
        # In a container the mount may begin at our own cgroup: then only what is around it is there.
        for depth in range(len(names), -1, -1):
            found.append(_cgroup("/".join((base, *names[:depth])), current, limits, files))
    return found


def _cgroup(folder: str, current: str, limits: list[str], of_files: re.Pattern[str]) -> float | None:
    limit = min((most for name in limits if (most := _number(f"{folder}/{name}")) and most < _UNLIMITED_BYTES), default=None)
    if limit is None or (used := _number(f"{folder}/{current}")) is None:
        return None
    files = sum(map(int, of_files.findall(_text(f"{folder}/memory.stat"))))
    return 100.0 * max(0, used - files) / limit


def _number(path: str) -> int | None:
    """Return the number in a file; None where there is none, such as "max"."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: str) -> str:
    """Return what a file of the kernel's says; empty where there is none. Each second: a Path would cost more than the read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(file, _LONGEST_BYTES).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(file)
