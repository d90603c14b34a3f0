"""Several nodes and a Redis that stands still, can't be reached, comes back empty or with an older state (`make nemesis`)."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.acceptance.nodes import LEASE_S, Audience, free_port, newest, owner, runs_on
from tests.acceptance.relay_process import RedisServer, environment, hlsrelay, redis_server
from tests.acceptance.stalling import stalling
from tests.acceptance.witness import Pair, pair
from tests.needs import needs
from tests.waiting import until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.night,
    needs("ffmpeg", "nginx", "redis-server", "redis-cli"),
    pytest.mark.xdist_group("realtime"),
]

FROZEN_S = 20.0


@contextmanager
def frozen(redis: RedisServer) -> Iterator[None]:
    """Have Redis stand still while the block runs."""
    pid = int(re.search(r"process_id:(\d+)", redis.cli("INFO", "server"))[1])  # type: ignore[index]
    subprocess.run(["kill", "-STOP", str(pid)], check=True)
    try:
        yield
    finally:
        subprocess.run(["kill", "-CONT", str(pid)], check=True)


def goes_on(two: Pair, segments: int) -> None:
    """Wait until so many more are published."""
    before = two.newest()
    until(lambda: two.newest() >= before + segments, within_s=60)


def test_while_redis_stands_still_every_relay_goes_on_and_none_changes_hands(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pair(origin, tmp_path) as two:
        epoch, began_s = two.redis.cli("HGET", "hlsrelay:stream:news", "epoch"), time.monotonic()
        with frozen(two.redis):
            until(lambda: time.monotonic() > began_s + FROZEN_S or None, within_s=2 * FROZEN_S)
        goes_on(two, int(2 * LEASE_S))
        assert owner(two.redis) == (two.has.name, "running")
        assert two.redis.cli("HGET", "hlsrelay:stream:news", "epoch") == epoch
        with capsys.disabled():
            print(two.seen.keeps_the_laws(f"Redis stands still for {FROZEN_S:g} s"))


def test_a_node_that_alone_is_cut_off_from_redis_gives_its_stream_up_in_time_and_viewers_see_no_break(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has a folder of its own; viewers come to the other node, which fetches from the first until it has the stream itself."""
    http = f"127.0.0.1:{free_port()}"
    with redis_server() as redis, stalling(redis.socket) as way:
        cut, well = {"HLSRELAY_REDIS_URL": way.url}, {"HLSRELAY_HTTP": http, "HLSRELAY_CAPACITY": "1"}
        with pair(origin, tmp_path, redis=redis, apart=True, a=cut, b=well) as two:
            if two.has.name == "b":
                hlsrelay("move", "news", "a", env=environment(tmp_path / "b", redis))
                until(lambda: runs_on(redis, "a"))
                until(lambda: newest(two.folders["a"]) == two.newest())
            with Audience(f"http://{http}", ["news"]) as audience:
                goes_on(two, 3)
                began_s = time.time()
                way.stall()
                until(lambda: runs_on(redis, "b"))
                goes_on(two, 4)
                last_s = max(one.at_s for one in two.seen.history().writes if one.writer == "a")
                way.flow()
                goes_on(two, 3)
            with capsys.disabled():
                print(two.seen.keeps_the_laws("one node cut off from Redis"))
                print(f"it published until {last_s - began_s:.2f} s after; viewers' longest interval {audience.longest_interval_s():.2f} s")
            assert last_s - began_s < LEASE_S + 1.0
            assert (audience.failures, audience.missing(), audience.cuts) == ([], 0, 0)


@pytest.mark.parametrize("comes_back", ["empty", "older"])
def test_a_redis_that_comes_back_without_what_it_had_stops_no_stream_and_brings_back_none_that_was_deleted(
    origin: tuple[Path, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], comes_back: str
) -> None:
    url, at = f"{origin[1]}/live.m3u8", tmp_path_factory.mktemp("r")

    def add(stream: str) -> None:
        redis.hset(f"hlsrelay:stream:{stream}", source=url, desired="run", window="60")
        until(lambda: runs_on(redis, "a", "b", stream=stream))

    def whole() -> bool:
        return all(runs_on(redis, "a", "b", stream=stream) and redis.cli("HGET", f"hlsrelay:stream:{stream}", "source") for stream in lives)

    with ExitStack() as stack, ExitStack() as first:
        redis = first.enter_context(redis_server(at))
        two = stack.enter_context(pair(origin, tmp_path, redis=redis))
        lives = ["news", "early", "late"]
        add("early")
        add("deleted")
        goes_on(two, 2)
        dump = redis.dump() if comes_back == "older" else b""
        add("late")
        two.seen.streams += ["early", "late"]
        assert redis.cli("DEL", "hlsrelay:stream:deleted") == "1"
        until(lambda: "#EXT-X-ENDLIST" in (two.data / "live/deleted/source/index.m3u8").read_text())
        goes_on(two, 3)
        first.close()
        goes_on(two, 2)
        redis = stack.enter_context(redis_server(at, dump))
        began_s = time.monotonic()
        until(whole)
        whole_s = time.monotonic() - began_s
        until(lambda: redis.cli("EXISTS", "hlsrelay:stream:deleted") == "0")
        deleted_s = time.monotonic() - began_s
        goes_on(two, 6)
        assert whole()
        assert redis.cli("EXISTS", "hlsrelay:stream:deleted") == "0"
        assert "#EXT-X-ENDLIST" in (two.data / "live/deleted/source/index.m3u8").read_text(), "it was not begun again"
        with capsys.disabled():
            print(two.seen.keeps_the_laws(f"Redis comes back, {comes_back}"))
            print(f"the registry is whole after {whole_s:.2f} s; what was deleted is gone after {deleted_s:.2f} s")
        assert max(whole_s, deleted_s) < 5.0, "2 s on a machine that has nothing else to do"
