"""A node that dies, one that is replaced: nothing is repeated or missing. What else befalls nodes is tested at night."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.live_source import muxing
from tests.acceptance.nodes import Audience, free_port, is_whole, listed, newest, runs_on, working
from tests.acceptance.relay_process import KEY, redis_server
from tests.acceptance.witness import witnessed
from tests.needs import needs
from tests.published import Law
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "nginx", "redis-server", "redis-cli"), pytest.mark.xdist_group("realtime")]


def test_a_new_process_beside_the_old_one_on_the_same_port_takes_over_and_no_player_notices(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = origin
    data, port, streams = tmp_path / "data", free_port(), ("s0", "s1", "s2")
    http = f"127.0.0.1:{port}"
    with (
        redis_server() as redis,
        muxing(folder, segment_s=2, size="320x180"),
        working("old", data, redis, HLSRELAY_HTTP=http) as old,
        ExitStack() as stack,
        witnessed(redis, folder, {data: None}, (old,), streams, target_duration_s=2) as seen,
    ):
        for stream in streams:
            redis.hset(f"hlsrelay:stream:{stream}", source=f"{url}/live.m3u8", desired="run", window="120")
        until(lambda: all(runs_on(redis, "old", stream=stream) for stream in streams))
        with Audience(f"http://{http}", streams) as audience:
            until(lambda: newest(data, "s2") >= 3)
            seen.workers.append(stack.enter_context(working("new", data, redis, HLSRELAY_HTTP=http)))
            old.process.terminate()
            until(lambda: all(runs_on(redis, "new", stream=stream) for stream in streams))
            assert old.process.wait(20) == 0
            last = newest(data, "s2")
            until(lambda: newest(data, "s2") > last)
        with capsys.disabled():
            print(seen.keeps_the_laws("replaced on its port"))
            print(f"{sum(map(len, audience.first_s.values()))} segments that players saw: longest interval", end=" ")
            print(f"{audience.longest_interval_s():.2f} s of segments of 2 s; {audience.resets} connections reset")
    assert audience.failures == []
    assert audience.resets == 0
    assert audience.cuts == 0
    assert audience.missing() == 0
    assert all(is_whole(data, stream) for stream in streams)


@pytest.mark.night
def test_a_node_with_a_folder_of_its_own_goes_on_with_the_numbers_of_one_that_is_killed(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = origin
    folders = {tmp_path / name: name for name in ("one", "other")}
    http = f"127.0.0.1:{free_port()}"
    with redis_server() as redis, muxing(folder, segment_s=1, size="320x180", first=70) as source, ExitStack() as stack:
        one = stack.enter_context(working("one", tmp_path / "one", redis))
        redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", window="60")
        until(lambda: runs_on(redis, "one"))
        other = stack.enter_context(working("other", tmp_path / "other", redis, HLSRELAY_HTTP=http))
        seen = stack.enter_context(witnessed(redis, folder, folders, (one, other)))
        with Audience(f"http://{http}", ["news"]) as audience:
            until(lambda: max(audience.first_s["news"], default=0) >= 74)
            last = newest(tmp_path / "one")
            one.process.send_signal(signal.SIGKILL)
            until((tmp_path / "other/live/news/source/index.m3u8").exists)
            until(lambda: newest(tmp_path / "other") > last + 3)
        with capsys.disabled():
            print(seen.keeps_the_laws("killed, and another folder's goes on", Law.LONG))
        assert audience.missing() == 0
        assert audience.cuts == 0
        assert is_whole(tmp_path / "other")
        for segment in listed(tmp_path / "other").segments:
            name = segment.uri.rpartition("/")[2]
            assert (tmp_path / "other/live/news/source" / name).read_bytes() == (source.folder / name).read_bytes(), "the source's number"
