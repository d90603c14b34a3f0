"""Instructions that a program executes, counted by Valgrind: what else runs on the machine, and its clock, change none of them.

They stand for CPU time where cores are no scale for a few percent. Not in them: what the kernel does for the program, and how long an
instruction waits for memory. Valgrind shows programs a processor without AVX-512, whatever there is.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

Run = Callable[[Sequence[str]], Awaitable[object]]


def installed() -> Path:
    """Return where Valgrind is. Raises SystemExit that says how to come by it."""
    found = shutil.which("valgrind")
    if found is None:
        raise SystemExit("instructions are counted by Valgrind: install the package valgrind, or leave --instructions out")
    return Path(found)


async def counted(run: Run, valgrind: Path, argv: Sequence[str], told: Path) -> int:
    """Return how many instructions *argv*, run to its end by *run*, executes; Valgrind writes them to *told*."""
    await run([str(valgrind), "-q", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={told}", *argv])
    return summary(told.read_text())


def summary(told: str) -> int:
    """Return the instructions of all functions together, as cachegrind's file ends with them. Raises ValueError where it doesn't."""
    found = re.search(r"^events: Ir\n(?:.*\n)*summary: (\d+)\s*\Z", told, re.MULTILINE)
    if found is None:
        raise ValueError("not what cachegrind writes without --cache-sim")
    return int(found[1])
