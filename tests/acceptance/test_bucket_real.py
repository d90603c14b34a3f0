"""Workers with folders of their own and one bucket, of a real server: a node that is killed, and a server that stands still."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import httpx
import obstore
import pytest
from obstore.store import S3Store

from hlsrelay.hls.parse import parse
from hlsrelay.model import Snapshot
from tests.acceptance.live_source import muxing
from tests.acceptance.nodes import free_port, owner, runs_on, working
from tests.acceptance.relay_process import KEY, ROOT, environment, redis_server, running
from tests.needs import needs
from tests.s3_server import BUCKET, variables
from tests.waiting import until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.night,
    needs("ffmpeg", "nginx", "redis-server", "redis-cli"),
    pytest.mark.xdist_group("realtime"),
]


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    folder.mkdir()
    with running([sys.executable, "-m", "tests.s3_server"], folder / "stderr", stdout=folder / "stdout", cwd=ROOT) as process:
        yield until(lambda: (folder / "stdout").read_text().strip() or None), process


class Player:
    """Reads the bucket again and again: each playlist, and each segment that is new in it."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bodies: dict[int, bytes] = {}
        self.first_s: dict[int, float] = {}
        self.failures: list[str] = []
        self.last: Snapshot | None = None
        self.shortest = 0

    def __enter__(self) -> Player:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            try:
                self._look()
            except Exception as error:
                self.failures.append(f"{type(error).__name__} {error}"[:300])

    def _look(self) -> None:
        body = bytes(obstore.get(self._store, "live/news/source/index.m3u8").bytes())
        found = parse(body, "file:///")
        assert isinstance(found, Snapshot)
        numbers = [one.sequence for one in found.segments]
        if self.last:
            before = [one.sequence for one in self.last.segments]
            assert numbers[0] >= before[0], f"it fell from {before} to {numbers}"
            assert numbers[-1] >= before[-1], f"it fell from {before} to {numbers}"
            self.shortest = min(self.shortest or 999, len(set(before) & set(numbers)) - len(before))
        for one in found.segments:
            assert not one.gap, f"{one.sequence} is a GAP"
            assert not one.discontinuity, f"{one.sequence} is a DISCONTINUITY"
            if one.sequence not in self.bodies:
                name = one.uri.rpartition("/")[2]
                self.bodies[one.sequence] = bytes(obstore.get(self._store, f"live/news/source/{name}").bytes())
                self.first_s[one.sequence] = time.monotonic()
        assert not found.ended
        self.last = found

    def missing(self) -> list[int]:
        return sorted(set(range(min(self.bodies), max(self.bodies) + 1)) - set(self.bodies))

    def repeated(self) -> int:
        return len(self.bodies) - len(set(self.bodies.values()))

    def newest(self) -> int:
        return max(self.bodies)


def test_a_bucket_goes_on_when_its_owner_is_killed_and_when_its_server_stands_still(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = origin
    with redis_server() as redis, serving(tmp_path / "s3") as (s3, server), muxing(folder, segment_s=1, size="320x180"):
        shared = {"HLSRELAY_STORAGE": f"s3://{BUCKET}/tv", **variables(s3)}
        with patch.dict(os.environ, variables(s3)):
            store = S3Store(BUCKET, prefix="tv", client_options={"allow_http": True, "timeout": "60s"}, retry_config={"max_retries": 0})
        port = {name: free_port() for name in ("a", "b")}
        with (
            working("a", tmp_path / "a", redis, HLSRELAY_HTTP=f"127.0.0.1:{port['a']}", **shared) as a,
            working("b", tmp_path / "b", redis, HLSRELAY_HTTP=f"127.0.0.1:{port['b']}", **shared) as b,
        ):
            redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", window="20")
            first = until(lambda: runs_on(redis, "a", "b"))
            dies, stays = (a, b) if first == "a" else (b, a)
            until(lambda: any("index" in one["path"] for page in obstore.list(store, "live/news/source") for one in page))
            with Player(store) as player:
                until(lambda: len(player.bodies) >= 12)
                assert player.last is not None
                window, began_s, before = player.last, time.monotonic(), player.newest()
                dies.process.send_signal(signal.SIGKILL)
                until(lambda: owner(redis)[0] == stays.name)
                until(lambda: player.newest() > before + 2)
                assert player.last is not None
                kept = {one.sequence for one in window.segments} & {one.sequence for one in player.last.segments}
                went_on_s = min(player.first_s[number] for number in player.bodies if number > before) - began_s
                name = player.last.segments[0].uri.rpartition("/")[2]
                assert not (tmp_path / stays.name / "live/news/source" / name).exists()
                with httpx.Client(trust_env=False) as client:
                    answer = client.get(f"http://127.0.0.1:{port[stays.name]}/live/news/source/{name}")
                assert answer.content == player.bodies[player.last.segments[0].sequence]
                until(lambda: player.newest() > before + 10)
                stood = player.newest()
                server.send_signal(signal.SIGSTOP)
                made = max(int(one.stem) for one in folder.glob("*.ts"))
                until((folder / f"{made + 12}.ts").exists)  # of a second each: so long it stands still
                server.send_signal(signal.SIGCONT)
                until(lambda: player.newest() > stood + 16)
            with capsys.disabled():
                print(
                    f"\nkill -9: the bucket went on after {went_on_s:.1f} s, with {len(kept)} of {len(window.segments)} segments;"
                    f" and its server stood still for 12 s: {player.repeated()} repeated, {len(player.missing())} missing"
                    f" of {len(player.bodies)}"
                )
            assert player.failures == []
            assert player.repeated() == 0
            assert player.missing() == []
            assert len(kept) >= len(window.segments) - 14
            assert "publish.failed" in stays.words.read_text()
            assert re.search(r"publish\.recovered", stays.words.read_text())
            argv = [sys.executable, "-m", "hlsrelay", "rm", "news", "--files"]
            env = environment(tmp_path / stays.name, redis, **shared)
            subprocess.run(argv, check=True, cwd=ROOT, env=env, timeout=60)
            assert [one for page in obstore.list(store) for one in page] == []
            assert not (tmp_path / stays.name / "live/news").exists()
