"""A real `hlsrelay` process, as an operator starts it, and a real Redis server to steer it by.

    with redis_server() as redis, relaying(data, redis) as relay: ...

What it runs is `python -m hlsrelay run <stream>` in a session of its own; its words are kept in files, so that no pipe ever fills.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import m3u8

from tests.acceptance.judged import NOTHING, Judging, accept
from tests.acceptance.media_checks import sha256
from tests.waiting import until

ROOT = Path(__file__).parents[2]
TAG = b"HLSRELAY_CHILD="
GONE_WITHIN_S = 15.0
KEY = "hlsrelay:stream:news"
WHOLE_RUN_S = "600"
"""A window that nothing leaves while a test runs: what was published is what is listed."""


@dataclass(frozen=True)
class RedisServer:
    """A Redis server that this project did not start, and the operator's `redis-cli` beside it."""

    socket: Path

    @property
    def url(self) -> str:
        """What HLSRELAY_REDIS_URL is set to."""
        return f"unix://{self.socket}"

    def cli(self, *words: str) -> str:
        """Type a command into redis-cli."""
        argv = ["redis-cli", "-e", "-s", str(self.socket), *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    def dump(self) -> bytes:
        """Return all that it has now, as it would be saved."""
        self.cli("SAVE")
        return Path(self.cli("CONFIG", "GET", "dir").split("\n")[1], "dump.rdb").read_bytes()

    def hset(self, key: str, **fields: str) -> None:
        """Type HSET key field value ..."""
        self.cli("HSET", key, *(word for pair in fields.items() for word in pair))


@contextmanager
def redis_server(at: Path | None = None, dump: bytes = b"") -> Iterator[RedisServer]:
    """Run a Redis server of the system's on a unix socket while the block runs; *at*: a folder that another had.

    It is empty, or as *dump* has it (`RedisServer.dump`).
    """
    with tempfile.TemporaryDirectory(prefix="relay-test-") as name:  # a socket's path is short
        folder = at or Path(name)
        if dump:
            Path(name, "dump.rdb").write_bytes(dump)
        argv = ["redis-server", "--port", "0", "--unixsocket", f"{folder}/s", "--dir", name, "--save", "", "--appendonly", "no"]
        with running(argv, folder / "log"):
            server = RedisServer(folder / "s")
            until(lambda: server.socket.exists() or None)
            until(lambda: server.cli("PING") == "PONG")
            yield server


@contextmanager
def running(
    argv: list[str], log: Path, *, stdout: Path | None = None, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, its words in files, in a session of its own, while the block runs; it is killed where it does not go by itself."""
    with log.open("ab") as words, (stdout or log).open("ab") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=words, cwd=cwd, env=env, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        try:
            process.wait(GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class RelayProcess:
    """A running `hlsrelay run`."""

    process: subprocess.Popen[bytes]
    stream: str
    url: str
    playlist: str
    data: Path
    folder: Path
    client: httpx.Client = field(repr=False)
    judging: Judging | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def get(self, path: str) -> httpx.Response:
        """Return the whole answer for *path*, below the stream's folder. A 404 is an answer."""
        return self.client.get(f"{self.playlist.rpartition('/')[0]}/{path}")

    def media(self, rendition: str = "source") -> m3u8.M3U8 | None:
        """Return a rendition's playlist as m3u8 reads it; None where there is none yet."""
        return listed(self.get(f"{rendition}/index.m3u8"))

    def numbers(self, rendition: str = "source") -> list[int]:
        """Return the media sequence numbers that a rendition lists."""
        media = self.media(rendition)
        return [media.media_sequence + index for index in range(len(media.segments))] if media else []

    def log(self) -> list[dict[str, Any]]:
        """Return what it has logged."""
        return [json.loads(line) for line in (self.folder / "stderr").read_text().splitlines() if line.startswith("{")]

    def children(self) -> set[int]:
        """Return the processes it has running: children and what carries its tag. (redis-server writes its title over the tag.)"""
        return tagged(self.pid) | {int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()}

    def adjourn(self) -> None:
        """Let its judge come to its end: what goes away now is meant to."""
        if self.judging is not None:
            self.judging.end()

    def stop(self) -> int:
        """Tell it to go, as a service manager does; returns its exit code."""
        self.adjourn()
        self.process.terminate()
        return self.process.wait(GONE_WITHIN_S)

    def kill(self) -> None:
        """kill -9."""
        self.adjourn()
        self.process.kill()
        self.process.wait(GONE_WITHIN_S)


def listed(answer: httpx.Response) -> m3u8.M3U8 | None:
    """Return the playlist in *answer*; None for a 404."""
    if answer.status_code == 404:
        return None
    return m3u8.loads(answer.raise_for_status().text, uri=str(answer.url))


def published(relay: RelayProcess, rendition: str = "source") -> list[tuple[int, str, m3u8.Segment]]:
    """Return number, digest and entry of every segment that a rendition lists; each must be there."""
    media = relay.media(rendition)
    assert media is not None
    return [
        (media.media_sequence + index, sha256(relay.get(f"{rendition}/{segment.uri}").raise_for_status().content), segment)
        for index, segment in enumerate(media.segments)
    ]


def cuts(relay: RelayProcess, rendition: str = "source") -> int:
    """Return how many DISCONTINUITYs a rendition lists."""
    return relay.get(f"{rendition}/index.m3u8").text.count("#EXT-X-DISCONTINUITY\n")


def alive(pids: set[int]) -> set[int]:
    """Return those of *pids* that are processes still; a zombie is none."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.add(pid)
    return found


def tagged(relay_pid: int) -> set[int]:
    """Return the processes that carry the tag of a relay's process, dead or alive. A zombie has no environment."""
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError):
            variables = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            tags = [variable.removeprefix(TAG).split(b".") for variable in variables if variable.startswith(TAG)]
            if any(len(tag) == 3 and tag[1] == str(relay_pid).encode() for tag in tags):
                found.add(int(entry))
    return found


def environment(data: Path, redis: RedisServer | None, **settings: str) -> dict[str, str]:
    """Return the environment of a relay of the tests'; without *redis* it brings its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HLSRELAY_")}
    ours = {"HLSRELAY_DATA": str(data), "HLSRELAY_HTTP": "127.0.0.1:0", "HLSRELAY_ALLOW_NETWORKS": "127.0.0.0/8", "HLSRELAY_LOG": "json"}
    return inherited | ours | ({"HLSRELAY_REDIS_URL": redis.url} if redis else {}) | settings


def hlsrelay(*words: str, env: Mapping[str, str]) -> str:
    """Run a verb of the command line to its end."""
    argv = [sys.executable, "-m", "hlsrelay", *words]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@contextmanager
def relaying(
    data: Path,
    redis: RedisServer | None = None,
    *,
    stream: str = "news",
    allowed: Mapping[str, str] = NOTHING,
    unjudged: str = "",
    words: Sequence[str] = (),
    **settings: str,
) -> Iterator[RelayProcess]:
    """Run `hlsrelay run` for a registered stream while the block runs; it is told to go at the end, and has to by itself.

    A judge watches all that it publishes: no rule of live HLS may be broken but those *allowed* (rule to reason), unless *unjudged* says
    why there is nothing to judge.
    """
    data.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="words-", dir=data))
    argv = [sys.executable, "-m", "hlsrelay", "run", stream, *words]
    env = environment(data, redis, **settings)
    with (
        running(argv, folder / "stderr", stdout=folder / "stdout", cwd=ROOT, env=env) as process,
        httpx.Client(trust_env=False) as client,
    ):

        def told() -> tuple[str, str] | None:
            assert process.poll() is None, f"it ended with {process.returncode}: {(folder / 'stderr').read_text()}"
            words = dict(re.findall(r"^(Watch|Playlist) +(\S+)\n", (folder / "stdout").read_text(), re.MULTILINE))
            return (words["Watch"].partition("/#")[0], words["Playlist"]) if len(words) == 2 else None

        url, playlist = until(told)
        relay = RelayProcess(process, stream, url, playlist, data, folder, client, None if unjudged else Judging(playlist))
        if relay.judging is not None:
            relay.judging.start()
        try:
            yield relay
        finally:
            relay.adjourn()
        if process.poll() is None:
            assert relay.stop() == 0, (folder / "stderr").read_text()
        if relay.judging is not None:
            accept(relay.judging.verdict, allowed)
