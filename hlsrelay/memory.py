"""How much memory is in use, and when that is too much.

Laws:
- What counts is what can't be given back: a cgroup's usage without the pages of files, the machine's without what it calls available.
  A relay writes and serves files all day; with their cache counted it would soon be at its limit for ever.
- The scarcest counts: our cgroup, each one around it that has a limit, and the machine.
- A cgroup's limit is what comes first of memory.high, from which on the kernel slows everything in it, pass-through too, and memory.max.
- It is short from the threshold on, and eases EASES_PERCENT below it: on one line both, it would be news every second.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

EASES_PERCENT = 5.0

_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 says 2^63 less a page for no limit."""


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
    found = [one for one in (_machine(proc), *_cgroups(proc, cgroups)) if one is not None]
    return max(found, default=None)


def _machine(proc: Path) -> float | None:
    total, available = (_number(proc / "meminfo", rf"(?m)^{name}: +(\d+) kB") for name in ("MemTotal", "MemAvailable"))
    return None if not total or available is None else 100.0 * (total - available) / total


def _cgroups(proc: Path, root: Path) -> list[float | None]:
    """Return what is in use of our cgroup and of those around it (cgroups(7)): a line is id:controllers:path, v2 has no controllers."""
    found = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, current, files = root, "memory.current", ("active_file", "inactive_file")
            limits = ["memory.high", "memory.max"]
        elif "memory" in controllers.split(","):
            base, current, files = root / "memory", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")
            limits = ["memory.limit_in_bytes"]
        else:
            continue
        folder = base / path.strip("/")  # in a container the mount may begin at our own cgroup: then only what is around it is there
        while folder.is_relative_to(base):
            found.append(_cgroup(folder, current, limits, files))
            folder = folder.parent
    return found


def _cgroup(folder: Path, current: str, limits: list[str], of_files: tuple[str, ...]) -> float | None:
    used = _number(folder / current)
    limit = min((most for name in limits if (most := _number(folder / name)) and most < _UNLIMITED_BYTES), default=None)
    if used is None or limit is None:
        return None
    files = sum(_number(folder / "memory.stat", rf"(?m)^{name} (\d+)$") or 0 for name in of_files)
    return 100.0 * max(0, used - files) / limit


def _number(path: Path, pattern: str = r"(\d+)\s*$") -> int | None:
    """Return the number in a file; None where there is none, such as "max"."""
    with suppress(OSError):
        if match := re.search(pattern, path.read_text()):
            return int(match[1])
    return None
