"""Several nodes: one stands still, Redis stands still, one leaves, one asks for what another has (`make nightly`, `make nemesis`)."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.acceptance.browser import viewer
from tests.acceptance.live_source import muxing
from tests.acceptance.nodes import LEASE_S, Audience, free_port, is_whole, listed, newest, owner, runs_on, working
from tests.acceptance.relay_process import KEY, ROOT, environment, hlsrelay, redis_server, relaying, running
from tests.acceptance.witness import pair, witnessed
from tests.hammer import Hammer
from tests.needs import needs
from tests.published import Law
from tests.waiting import until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.night,
    needs("ffmpeg", "nginx", "redis-server", "redis-cli"),
    pytest.mark.xdist_group("realtime"),
]


@pytest.mark.parametrize("apart", [False, True], ids=["one folder", "two folders"])
def test_a_stream_of_a_node_that_is_killed_is_taken_over_and_nothing_is_repeated_or_missing(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], apart: bool
) -> None:
    with pair(origin, tmp_path, apart=apart) as two:
        before, began_s = two.newest(), time.monotonic()
        two.has.process.send_signal(signal.SIGKILL)
        until(lambda: owner(two.redis)[0] == two.other.name)
        taken_s = time.monotonic() - began_s
        until(lambda: two.newest() > before + 3)
        with capsys.disabled():
            print(two.seen.keeps_the_laws("kill -9", Law.LONG))
            print(f"taken over {taken_s:.2f} s after; the lease lasts {LEASE_S:g} s")
        assert taken_s < LEASE_S + 5.0, "0.5 s on a machine that has nothing else to do"
        assert len({one.epoch for one in two.seen.claims}) == 2


def test_a_node_serves_what_another_one_relays_into_a_folder_of_its_own(origin: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = origin
    with redis_server() as redis, muxing(folder, segment_s=1, size="320x180"), working("far", tmp_path / "far", redis):
        redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", window="60")
        until(lambda: runs_on(redis, "far"))
        http = f"127.0.0.1:{free_port()}"
        with (
            working("near", tmp_path / "near", redis, HLSRELAY_HTTP=http),
            httpx.Client(trust_env=False, base_url=f"http://{http}") as client,
        ):
            master = until(lambda: found if (found := client.get("/live/news/index.m3u8")).status_code == 200 else None)
            assert b"source/index.m3u8" in master.content
            with Audience(f"http://{http}", ["news"]) as audience:
                until(lambda: max(audience.first_s["news"], default=0) > 4)
            assert audience.failures == []
            name = f"/live/news/source/{listed(tmp_path / 'far').segments[-1].uri.rpartition('/')[2]}"
            assert client.get(name).content == (tmp_path / f"far{name}").read_bytes()
            assert client.get("/live/nothing/index.m3u8").status_code == 404
            assert not (tmp_path / "near/live/news").exists()


@pytest.mark.parametrize("apart", [False, True], ids=["one folder", "folders of their own"])
def test_of_four_nodes_two_are_killed_at_once_and_the_others_take_over_all_that_they_had(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], apart: bool
) -> None:
    source, url = origin
    names, streams = ("a", "b", "c", "d"), [f"s{number}" for number in range(8)]
    data = {name: tmp_path / (name if apart else "data") for name in names}
    with redis_server() as redis, muxing(source, segment_s=1, size="320x180"), ExitStack() as stack:
        nodes = {name: stack.enter_context(working(name, data[name], redis)) for name in names}
        folders = {folder: name if apart else None for name, folder in data.items()}
        seen = stack.enter_context(witnessed(redis, source, folders, list(nodes.values()), streams))
        for stream in streams:
            redis.hset(f"hlsrelay:stream:{stream}", source=f"{url}/live.m3u8", desired="run", window="60")
        until(lambda: all(runs_on(redis, *names, stream=stream) for stream in streams))
        until(lambda: min(len(seen.wrote(stream)) for stream in streams) >= 4)
        owners = {stream: owner(redis, stream)[0] for stream in streams}
        theirs = [stream for stream in streams if owners[stream] in ("a", "b")]
        assert sorted(set(owners.values())) == list(names)
        killed_s = time.time()
        for name in ("a", "b"):
            nodes[name].process.send_signal(signal.SIGKILL)
        until(lambda: all(runs_on(redis, "c", "d", stream=stream) for stream in streams))
        taken_s = [max(one.at_s for one in seen.claims if one.stream == stream) - killed_s for stream in theirs]
        last = {stream: max(one.last for one in seen.wrote(stream)) for stream in streams}
        until(lambda: all(max(one.last for one in seen.wrote(stream)) > last[stream] + 3 for stream in streams))
        with capsys.disabled():
            print(seen.keeps_the_laws("two of four nodes killed at once", Law.LONG))
            print(f"{len(theirs)} streams taken over {min(taken_s):.2f} to {max(taken_s):.2f} s after; the lease lasts {LEASE_S:g} s")
        assert max(taken_s) < LEASE_S + 2.0, "0.5 s on a machine that has nothing else to do"


@pytest.mark.parametrize("apart", [False, True], ids=["one folder", "two folders"])
def test_a_node_that_stands_still_loses_its_streams_and_writes_no_more(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], apart: bool
) -> None:
    """In a folder that both have it is killed; with one of its own it goes on, and finds that it has lost the stream."""
    with pair(origin, tmp_path, apart=apart) as two:
        before = two.newest()
        two.has.process.send_signal(signal.SIGSTOP)
        until(lambda: runs_on(two.redis, two.other.name))
        until(lambda: two.newest() > before + 3)
        if apart:
            last = newest(two.data)
            two.has.process.send_signal(signal.SIGCONT)
            until(lambda: "stream.superseded" in two.has.words.read_text())
            before = two.newest()
            until(lambda: two.newest() > before + 2)
            assert newest(two.data) == last, "what it would write is of another time"
        else:
            assert two.has.process.wait(20) == -signal.SIGKILL, "what it would write when it goes on is of another time"
            assert "node.fenced" in two.other.words.read_text()
        with capsys.disabled():
            print(two.seen.keeps_the_laws("SIGSTOP for longer than the lease", Law.LONG))


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


@pytest.mark.timeout(600)
def test_ten_processes_follow_one_another_on_one_port_and_no_connection_is_lost(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, url = origin
    data, port = tmp_path / "data", free_port()
    http = f"127.0.0.1:{port}"
    with redis_server() as redis, muxing(source, segment_s=1, size="320x180"), ExitStack() as stack:
        old = stack.enter_context(working("n0", data, redis, HLSRELAY_HTTP=http))
        seen = stack.enter_context(witnessed(redis, source, {data: None}, (old,)))
        redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", window="120")
        until(lambda: runs_on(redis, "n0"))
        with Audience(f"http://{http}", ["news"]) as audience, Hammer(port, (0.0, 0.02)) as hammer:
            for number in range(1, 11):
                new = stack.enter_context(working(f"n{number}", data, redis, HLSRELAY_HTTP=http))
                seen.workers.append(new)
                old.process.terminate()
                assert old.process.wait(60) == 0
                old = new
            last = newest(data)
            until(lambda: newest(data) > last + 1)
        with capsys.disabled():
            print(seen.keeps_the_laws("ten processes replaced on one port", Law.LONG))
            print(f"{hammer.answers} short connections answered, lost: {dict(hammer.failures)}; players' resets {audience.resets}")
        assert hammer.failures == {}
        assert (audience.failures, audience.resets, audience.cuts, audience.missing()) == ([], 0, 0, 0)


@pytest.mark.timeout(900)
@needs("chromium", "node")
def test_four_nodes_with_forty_streams_are_replaced_one_after_another_and_no_player_notices(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = origin
    data, http, streams = tmp_path / "data", f"127.0.0.1:{free_port()}", [f"s{number:02}" for number in range(40)]
    player = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "warning", "-i", f"http://{http}/live/s01/index.m3u8"]
    with redis_server() as redis, muxing(folder, segment_s=4, size="320x180"), ExitStack() as stack:
        nodes = [stack.enter_context(working(f"old{number}", data, redis, HLSRELAY_HTTP=http)) for number in range(4)]
        for stream in streams:
            redis.hset(f"hlsrelay:stream:{stream}", source=f"{url}/live.m3u8", desired="run", window="300")
        olds = [one.name for one in nodes]
        until(lambda: all(runs_on(redis, *olds, stream=stream) for stream in streams), within_s=60)
        until(lambda: newest(data, streams[-1]) >= 4)
        with (
            witnessed(redis, folder, {data: None}, nodes, streams[:8], target_duration_s=4) as seen_outside,
            Audience(f"http://{http}", streams) as audience,
            viewer() as watching,
            running([*player, "-f", "null", "-"], tmp_path / "player.log") as ffmpeg,
        ):
            watching.open(f"http://{http}", "s00")
            watching.played(8)
            shares = []
            for number, old in enumerate(nodes):
                name = f"new{number}"
                seen_outside.workers.append(stack.enter_context(working(name, data, redis, HLSRELAY_HTTP=http)))
                shares.append(sum(runs_on(redis, old.name, stream=stream) is not None for stream in streams))
                old.process.terminate()
                assert old.process.wait(90) == 0
            last = newest(data, streams[-1])
            until(lambda: newest(data, streams[-1]) > last + 1)
            seen = watching.report()
            assert ffmpeg.poll() is None
        with capsys.disabled():
            print(seen_outside.keeps_the_laws("four nodes replaced (8 of their 40 streams)"))
            print(f"replaced: 4 nodes that had {shares} of 40 streams; segments of 4 s that players saw come:")
            print(f"{sum(map(len, audience.first_s.values()))}, {audience.missing()} missing, {len(audience.failures)} failed requests, ")
            print(f"{audience.resets} asked twice;")
            print(f"longest interval {audience.longest_interval_s():.2f} s; hls.js: {seen.played_s:.0f} s played, stalls {seen.stalls_s}")
        assert audience.failures == []
        assert audience.resets == 0
        assert audience.cuts == 0
        assert audience.missing() == 0
        assert (tmp_path / "player.log").read_text() == ""
        assert seen.smooth()
        assert all(is_whole(data, stream) for stream in streams)
