"""A node that dies: its stream is taken over, and nothing is repeated or missing. What else befalls nodes is tested at night."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.acceptance.live_source import muxing
from tests.acceptance.nodes import LEASE_S, is_whole, listed, newest, owner, runs_on, working
from tests.acceptance.relay_process import KEY, redis_server
from tests.needs import needs
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "nginx", "redis-server", "redis-cli"), pytest.mark.xdist_group("realtime")]


def test_a_stream_of_a_node_that_is_killed_is_taken_over_and_nothing_is_repeated_or_missing(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = origin
    data = tmp_path / "data"
    with (
        redis_server() as redis,
        muxing(folder, segment_s=1, size="320x180"),
        working("a", data, redis) as a,
        working("b", data, redis) as b,
    ):
        redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", window="60")
        first = until(lambda: runs_on(redis, "a", "b"))
        dies, stays = (a, b) if first == "a" else (b, a)
        before = until(lambda: newest(data) if len(listed(data).segments) >= 4 else None)
        epoch = int(redis.cli("HGET", KEY, "epoch"))
        began_s = time.monotonic()
        dies.process.send_signal(signal.SIGKILL)
        until(lambda: owner(redis)[0] == stays.name)
        taken_s = time.monotonic() - began_s
        until(lambda: newest(data) > before + 3)
        with capsys.disabled():
            print(f"\ntaken over {taken_s:.2f} s after kill -9; the lease lasts {LEASE_S:g} s")
        assert taken_s < LEASE_S + 5.0, "0.5 s on a machine that has nothing else to do"
        assert int(redis.cli("HGET", KEY, "epoch")) > epoch
        assert is_whole(data)
