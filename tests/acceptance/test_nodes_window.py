"""Nodes with folders of their own hand a stream to one another, and a player far behind the edge notices nothing (`make nemesis`)."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
import pytest

from hlsrelay.hls.parse import parse
from hlsrelay.model import Snapshot
from tests.acceptance.live_source import muxing
from tests.acceptance.nodes import free_port, newest, runs_on, working
from tests.acceptance.relay_process import KEY, environment, hlsrelay, redis_server
from tests.acceptance.witness import witnessed
from tests.needs import needs
from tests.waiting import until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.night,
    needs("ffmpeg", "nginx", "redis-server", "redis-cli"),
    pytest.mark.xdist_group("realtime"),
]

WINDOW_S = 16
BEHIND = 12


class FarBehind:
    """A player BEHIND segments behind the edge: plays one after another, and looks whether the oldest that is listed can be had."""

    EVERY_S = 0.1

    def __init__(self, url: str) -> None:
        self.failures: list[str] = []
        self.lost = 0
        self.played: list[int] = []
        self.lengths: list[int] = []
        self.requests = 0
        self.longest_s = 0.0
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._plays, daemon=True)

    def __enter__(self) -> FarBehind:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _plays(self) -> None:
        with httpx.Client(trust_env=False, timeout=10) as client:
            while not self._over.wait(self.EVERY_S):
                body = self._got(client, "source/index.m3u8")
                if not body:
                    continue
                snapshot = parse(body, "http://x/source/")
                assert isinstance(snapshot, Snapshot)
                self.lengths.append(len(snapshot.segments))
                names = {one.sequence: one.uri.rpartition("/")[2] for one in snapshot.segments}
                self._got(client, f"source/{names[min(names)]}")
                while not self.played or self.played[-1] + BEHIND < max(names):
                    number = self.played[-1] + 1 if self.played else max(min(names), max(names) - BEHIND)
                    if number not in names:
                        self.lost += 1
                    else:
                        self._got(client, f"source/{names[number]}")
                    self.played.append(number)

    def _got(self, client: httpx.Client, path: str) -> bytes:
        began_s = time.monotonic()
        self.requests += 1
        try:
            answer = client.get(f"{self._url}/live/news/{path}")
        except httpx.HTTPError as error:
            self.failures.append(f"{path}: {type(error).__name__} {error}")
            return b""
        self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        if answer.status_code != 200:
            self.failures.append(f"{path}: {answer.status_code}")
        return answer.content if answer.status_code == 200 else b""


def test_a_player_far_behind_loses_nothing_while_the_stream_moves_and_its_former_owners_go(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Viewers are at *c*; *a* and *b* have *news* in turn, and at last *c* does."""
    source, url = origin
    http = f"127.0.0.1:{free_port()}"
    data = {name: tmp_path / name for name in "abc"}
    with (
        redis_server() as redis,
        muxing(source, segment_s=1, size="320x180"),
        working("a", data["a"], redis) as a,
        working("b", data["b"], redis) as b,
        working("c", data["c"], redis, HLSRELAY_HTTP=http) as c,
        witnessed(redis, source, {folder: name for name, folder in data.items()}, (a, b, c)) as seen,
    ):
        redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", window=str(WINDOW_S))
        until(lambda: runs_on(redis, "a", "b", "c"))

        def goes_on(name: str, segments: int) -> None:
            until((data[name] / "live/news/source/index.m3u8").exists)
            before = newest(data[name])
            until(lambda: newest(data[name]) >= before + segments, within_s=60)

        def moves(name: str) -> None:
            hlsrelay("move", "news", name, env=environment(data[name], redis))
            until(lambda: runs_on(redis, name))
            goes_on(name, 4)

        if not runs_on(redis, "a"):
            moves("a")
        goes_on("a", WINDOW_S + 4)
        with FarBehind(f"http://{http}") as player:
            until(lambda: len(player.played) > 3)
            moves("b")
            moves("a")
            moves("b")
            a.process.terminate()
            assert a.process.wait(30) == 0
            goes_on("b", 2)
            b.process.terminate()
            assert b.process.wait(60) == 0
            until(lambda: runs_on(redis, "c"))
            goes_on("c", WINDOW_S)
        with capsys.disabled():
            print(seen.keeps_the_laws("three moves and two nodes that leave, folders of their own"))
            print(
                f"a player {BEHIND} segments behind: {len(player.played)} played, {player.lost} lost, {len(player.failures)} of "
                f"{player.requests} requests failed, the longest took {player.longest_s:.2f} s; the window had "
                f"{min(player.lengths)} to {max(player.lengths)} entries"
            )
        assert (player.failures, player.lost) == ([], 0)
        assert min(player.lengths) >= WINDOW_S
