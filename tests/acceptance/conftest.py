"""What the acceptance tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.live_source import nginx
from tests.acceptance.relay_process import KEY, RedisServer, redis_server


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def fresh_redis(redis: RedisServer) -> RedisServer:
    redis.cli("DEL", KEY)
    return redis


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL at which nginx serves it."""
    with nginx(tmp_path / "origin", tmp_path / "nginx") as url:
        yield tmp_path / "origin", url
