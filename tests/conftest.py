"""What all tests share: Hypothesis never judges by the clock, since these machines are noisy; and temporary files are in memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from tests.needs import NIGHTLY

settings.register_profile("hlsrelay", deadline=None)
settings.load_profile("hlsrelay")

MEMORY = Path("/dev/shm")
ENOUGH_BYTES = 4 << 30
"""A whole run needs half of one GiB; a container may have 64 MiB there."""


def pytest_configure() -> None:
    """Have pytest's temporary folders in memory where there is room: thousands of small files cost a disk a third of the time."""
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ENOUGH_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what is marked `night` to `make nightly`: it takes long, and what it looks at seldom breaks."""
    if NIGHTLY:
        return
    left = [item for item in items if item.get_closest_marker("night")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]
