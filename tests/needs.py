"""What a test needs of this machine: where it is missing, the test is skipped and says why."""

from __future__ import annotations

import os
import shutil

import pytest

NIGHTLY = os.environ.get("HLSRELAY_NIGHTLY") == "1"
"""Whether a test may take its time: `make nightly`."""


def needs(*programs: str) -> pytest.MarkDecorator:
    """Return the mark that skips a test where one of *programs* isn't on PATH."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not on this machine: {', '.join(missing)}")
