"""Fixtures of several modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.bucket_place import Play, player
from tests.s3_server import s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["local", "memory", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    return player(request.param, tmp_path, request)


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    return player(request.param, tmp_path, request)


@pytest.fixture
def in_memory(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    return player("memory", tmp_path, request)
