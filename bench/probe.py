"""What processes cost, read from the kernel (Linux): CPU to the nanosecond, memory with what is shared counted once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(roots: Iterable[int]) -> set[int]:
    """Return *roots* and all that they started, as far as it runs."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                parent = int(_stat(int(entry))[1])
                children.setdefault(parent, []).append(int(entry))
    found: set[int] = set()
    coming = [pid for pid in roots if os.path.exists(f"/proc/{pid}")]
    while coming:
        pid = coming.pop()
        if pid not in found:
            found.add(pid)
            coming += children.get(pid, [])
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """Return the user and system time that *pids* have used so far, their threads' and that of children they have reaped."""
    total_s = 0.0
    for pid in pids:
        with suppress(OSError):
            # The clock of another process (clock_getcpuclockid(3)): /proc counts in ticks of 10 ms, coarse for one stream.
            total_s += time.clock_gettime(~pid << 3 | 2)
            fields = _stat(pid)
            total_s += (int(fields[13]) + int(fields[14])) / _TICKS  # cutime, cstime
    return total_s


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the memory of *pids*: what several share counts as a part for each (smaps_rollup)."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def available_bytes() -> int:
    """Return how much memory can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def busy_s() -> float:
    """Return the CPU seconds that this machine's processors have been busy with anything, since it booted."""
    user, nice, system, _, _, irq, softirq = (int(word) for word in Path("/proc/stat").read_text().split(None, 8)[1:8])
    return (user + nice + system + irq + softirq) / _TICKS


def _stat(pid: int) -> list[str]:
    """Return the fields of proc(5)'s stat from the third (state) on: the name before them may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
