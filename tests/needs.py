"""What a test needs of this machine: where it is missing, the test is skipped and says why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")
NIGHTLY = os.environ.get("HLSRELAY_NIGHTLY") == "1"
"""Whether a test may take its time: `make nightly`."""


def needs(*programs: str) -> pytest.MarkDecorator:
    """Return the mark that skips a test where one of *programs* isn't on PATH."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not on this machine: {', '.join(missing)}")


def by_day(rows: Sequence[T], each: int, first: int = 0) -> list[T]:
    """Return all *rows* at night, and by day each so many-th of them, from the *first* on: what they share is tested by any of them."""
    return list(rows) if NIGHTLY else list(rows)[first::each]


def in_turn(kinds: Iterable[str], programs: Iterable[str]) -> list[tuple[str, str]]:
    """Return each of *kinds* with a program: with all of them at night, else with the next one each time."""
    programs = list(programs)
    pairs = [(kind, program, (index + turn) % len(programs)) for index, kind in enumerate(kinds) for turn, program in enumerate(programs)]
    return [(kind, program) for kind, program, turn in pairs if NIGHTLY or turn == 0]
