"""Several nodes: one stands still, Redis stands still, one leaves, one asks for what another has (`make nightly`; see conftest)."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.live_source import muxing
from tests.acceptance.nodes import LEASE_S, is_whole, listed, newest, owner, runs_on, working
from tests.acceptance.relay_process import KEY, ROOT, environment, hlsrelay, redis_server, relaying
from tests.needs import needs
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "nginx", "redis-server", "redis-cli"), pytest.mark.xdist_group("realtime")]


def test_a_node_that_stands_still_loses_its_streams_and_writes_no_more(origin: tuple[Path, str], tmp_path: Path) -> None:
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
        still, stays = (a, b) if first == "a" else (b, a)
        before = until(lambda: newest(data) if len(listed(data).segments) >= 4 else None)
        still.process.send_signal(signal.SIGSTOP)
        until(lambda: runs_on(redis, stays.name))
        assert still.process.wait(20) == -signal.SIGKILL, "what it would write when it goes on is of another time"
        until(lambda: newest(data) > before + 3)
        assert "node.fenced" in stays.words.read_text()
        assert is_whole(data)


def test_while_redis_stands_still_every_relay_goes_on_and_none_changes_hands(origin: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = origin
    data = tmp_path / "data"
    with redis_server() as redis, muxing(folder, segment_s=1, size="320x180"), working("a", data, redis), working("b", data, redis):
        redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", window="60")
        first = until(lambda: runs_on(redis, "a", "b"))
        until(lambda: len(listed(data).segments) >= 4)
        epoch, before = redis.cli("HGET", KEY, "epoch"), newest(data)
        pid = int(re.search(r"process_id:(\d+)", redis.cli("INFO", "server"))[1])  # type: ignore[index]
        subprocess.run(["kill", "-STOP", str(pid)], check=True)
        until(lambda: newest(data) >= before + 2 * LEASE_S, within_s=60)
        subprocess.run(["kill", "-CONT", str(pid)], check=True)
        at = newest(data)
        until(lambda: newest(data) >= at + LEASE_S, within_s=60)
        assert owner(redis) == (first, "running")
        assert redis.cli("HGET", KEY, "epoch") == epoch
        assert is_whole(data)


def test_streams_are_shared_out_and_a_node_that_leaves_hands_on_what_it_had(origin: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = origin
    data = tmp_path / "data"
    with redis_server() as redis, muxing(folder, segment_s=1, size="320x180"), working("a", data, redis) as a, working("b", data, redis):
        names = [f"s{number}" for number in range(6)]
        for name in names:
            redis.hset(f"hlsrelay:stream:{name}", source=f"{url}/live.m3u8", desired="run")
        until(lambda: all(runs_on(redis, "a", "b", stream=name) for name in names))
        share = [runs_on(redis, "a", "b", stream=name) for name in names]
        assert share.count("a") == share.count("b") == 3
        nodes = hlsrelay("nodes", env=environment(data, redis))
        assert re.search(r"a +active +3 +3 ", nodes), nodes
        a.process.terminate()
        assert a.process.wait(20) == 0
        until(lambda: all(runs_on(redis, "b", stream=name) for name in names))
        assert redis.cli("ZCARD", "hlsrelay:nodes") == "1"


def test_a_stream_that_another_node_has_is_not_relayed_twice_and_is_handed_over_where_that_is_asked_for(
    origin: tuple[Path, str], tmp_path: Path
) -> None:
    folder, url = origin
    data = tmp_path / "data"
    with redis_server() as redis, muxing(folder, segment_s=1, size="320x180"), working("a", data, redis, HLSRELAY_CAPACITY="1") as a:
        redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", window="60")
        until(lambda: runs_on(redis, "a"))
        until(lambda: len(listed(data).segments) >= 3)
        argv = [sys.executable, "-m", "hlsrelay", "run", "news"]
        env = environment(tmp_path / "elsewhere", redis)
        refused = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 5
        assert re.search(r"'news' is relayed by a, running since 20\S+Z: .*--take-over", refused.stderr), refused.stderr
        with relaying(data, redis, words=("--take-over",), HLSRELAY_NODE="c", unjudged="its playlists begin with another's"):
            until(lambda: runs_on(redis, "c"))
            before = newest(data)
            until(lambda: newest(data) > before + 2)
            assert is_whole(data)
            assert a.process.poll() is None
        until(lambda: runs_on(redis, "a"), within_s=60)
