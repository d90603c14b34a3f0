"""A relay and a real Redis that does not behave: one that loses all it had, one that is slow to answer."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from hlsrelay.redis_registry import RedisRegistry
from tests.acceptance.live_source import muxing
from tests.acceptance.relay_process import KEY, RedisServer, cuts, redis_server, relaying
from tests.needs import needs
from tests.waiting import turns, until

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "nginx", "redis-server", "redis-cli")]

realtime = pytest.mark.xdist_group("realtime")


def test_who_asks_redis_can_be_cancelled_at_any_step(redis: RedisServer) -> None:
    async def main() -> None:
        registry = RedisRegistry(redis.url)
        try:
            await registry.ping()
            for steps in range(40):
                asking = asyncio.create_task(asks_for_ever(registry))
                await turns(steps)
                asking.cancel()
                _, pending = await asyncio.wait([asking], timeout=5)
                assert not pending, f"cancelled after {steps} steps, it asks on"
        finally:
            await registry.aclose()

    async def asks_for_ever(registry: RedisRegistry) -> None:
        while True:
            await registry.get("nobody")
            await registry.report("nobody", {"state": "running"})

    asyncio.run(main())


@realtime
def test_a_redis_that_comes_back_empty_stops_no_stream_and_has_it_again_within_two_seconds(
    origin: tuple[Path, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = origin
    at = tmp_path_factory.mktemp("r")
    with muxing(folder, segment_s=1, size="320x180"), ExitStack() as stack:
        with redis_server(at) as redis:
            redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", window="30")
            relay = stack.enter_context(relaying(tmp_path / "data", redis))
            until(lambda: len(relay.numbers()) >= 3)
        redis = stack.enter_context(redis_server(at))
        began_s = time.monotonic()
        until(lambda: redis.cli("HGET", KEY, "desired") == "run")
        back_s = time.monotonic() - began_s
        with capsys.disabled():
            print(f"\nan empty Redis has its stream again after {back_s:.2f} s")
        assert back_s < 5.0, "2 s on a machine that has nothing else to do"
        assert redis.cli("HGET", KEY, "source") == f"{url}/live.m3u8"
        assert redis.cli("HGET", KEY, "state") == "running"
        newest = relay.numbers()[-1]
        until(lambda: relay.numbers()[-1] > newest)
        assert "#EXT-X-ENDLIST" not in relay.get("source/index.m3u8").text
        assert cuts(relay) == 0
        assert redis.cli("DEL", KEY) == "1", "and what its operator deletes stays deleted"
        assert relay.process.wait(20) == 0
        assert redis.cli("EXISTS", KEY) == "0"
