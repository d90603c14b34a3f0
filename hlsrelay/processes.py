"""The one door to every child process.

Laws:
- A child runs in a session of its own, is killed by the kernel when we die, and carries our incarnation in its environment.
- Its stderr is drained all the time: a full pipe stops ffmpeg for good. The last 4 KiB are kept.
- Whoever starts a child leaves `run` or `spawn` only when the child is gone, cancelled or not: at most 4.5 s after it is told to stop.
- What its process group leaves behind is killed with it, while the group's number can't yet be anybody else's.

A grandchild that makes a session of its own escapes all this but `sweep`. Without setpriv (not Linux) a kill -9 of ours leaves children
running until the next start sweeps them. The event loop must run in the main thread: the kernel's parent-death signal comes when the
*thread* that spawned ends.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import IO

import structlog

from hlsrelay.errors import ChildError

TAG = "HLSRELAY_CHILD"
"""Environment variable that names the incarnation a child belongs to."""

TERM_PATIENCE_S = 2.5
KILL_PATIENCE_S = 2.0
STDERR_TAIL_BYTES = 4096

_CHUNK_BYTES = 64 * 1024
_LAST_READS = 32  # after the exit: what a pipe can hold, and no more if a stranger goes on writing
_MOST_LINE_BYTES = 1024 * 1024
_POLL_S = 0.02
_SWEEP_PATIENCE_S = 2.0

log = structlog.get_logger(__name__)


class Stdout(Enum):
    """Where a child's standard output goes."""

    NULL = "null"
    INHERIT = "inherit"
    LINES = "lines"
    """To `Child.lines`. A child that writes faster than they are read waits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel allows a child; None: as much as us. They hold where prlimit and nice are installed."""

    cpu_s: int | None = None
    address_space_bytes: int | None = None
    file_size_bytes: int | None = None
    open_files: int | None = None
    niceness: int | None = None


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Finished:
    """How a child ended. *exit_code* is minus the signal's number if one ended it; *cpu_s* is None where the system doesn't tell."""

    argv: tuple[str, ...]
    exit_code: int
    stderr_tail: str
    wall_s: float
    cpu_s: float | None


class Child:
    """A running child. Made by `Children.spawn`; *argv* is what was asked for, without the programs that confine it."""

    def __init__(self, popen: subprocess.Popen[bytes], argv: tuple[str, ...], purpose: str, children: Children) -> None:
        self.argv = argv
        self.purpose = purpose
        self.pid = popen.pid
        self._popen = popen
        self._children = children
        self._loop = asyncio.get_running_loop()
        self.started_s = self._loop.time()
        self._finished: asyncio.Future[Finished] = self._loop.create_future()
        self._stopping: asyncio.Task[Finished | None] | None = None
        self._tail = b""
        self._stdout = _Lines(self._loop, popen.stdout) if popen.stdout else None
        if popen.stderr is not None:
            os.set_blocking(popen.stderr.fileno(), False)
            self._loop.add_reader(popen.stderr.fileno(), self._drain, popen.stderr)
        self._pidfd: int | None = None
        with suppress(AttributeError, OSError):  # not Linux, or a sandbox that forbids it: then by polling
            self._pidfd = os.pidfd_open(self.pid)
        if self._pidfd is None:
            self._loop.call_later(_POLL_S, self._poll)
        else:
            self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def stderr_tail(self) -> str:
        """The last 4 KiB it wrote to stderr so far."""
        return self._tail.decode(errors="replace")

    @property
    def finished(self) -> Finished | None:
        """How it ended; None while it runs."""
        return self._finished.result() if self._finished.done() else None

    def lines(self) -> AsyncIterator[str]:
        """Yield what it writes to stdout line by line, without line ends, until it closes it. Only with Stdout.LINES, and only once."""
        if self._stdout is None:
            raise ValueError("the child's stdout was not asked for")
        return self._stdout.read()

    async def wait(self) -> Finished:
        """Return when it has ended. Cancelling this leaves it running."""
        return await asyncio.shield(self._finished)

    async def stop(self, reason: str) -> Finished | None:
        """End it, return how it ended; None if it survived SIGKILL (it is in quarantine then). Cancelling this changes nothing.

        Repeated calls wait for the first one. Takes at most 4.5 s.
        """
        if self._stopping is None:
            if self._finished.done():
                return self._finished.result()
            self._stopping = self._loop.create_task(self._stop(reason), name=f"stop {self.purpose}")
        cancelled: asyncio.CancelledError | None = None
        while not self._stopping.done():
            try:
                await asyncio.shield(self._stopping)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        return self._stopping.result()

    async def _stop(self, reason: str) -> Finished | None:
        try:
            if self._stdout is not None:
                self._stdout.close()  # an ffmpeg that is blocked on a pipe ignores SIGTERM; stderr is never full
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # else a stopped one would not hear it
            log.debug("child.stop", purpose=self.purpose, pid=self.pid, reason=reason)  # after the signals: stderr itself may be gone
            if await self._ended_within(TERM_PATIENCE_S):
                return self._finished.result()
            self._signal(signal.SIGKILL)
            if await self._ended_within(KILL_PATIENCE_S):
                return self._finished.result()
        except asyncio.CancelledError:  # the loop is being closed: nobody will wait any more
            self._signal(signal.SIGKILL)
            raise
        self._children.quarantined += 1
        log.error("child.quarantined", purpose=self.purpose, pid=self.pid, argv=self.argv)
        return None

    async def _ended_within(self, seconds: float) -> bool:
        await asyncio.wait([self._finished], timeout=seconds)
        return self._finished.done()

    def _signal(self, number: signal.Signals) -> None:
        if not self._finished.done():  # so the pid is still its own: it is reaped in the step that finishes
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _drain(self, pipe: IO[bytes]) -> bool:
        """Read once; return whether there may be more now."""
        try:
            chunk = os.read(pipe.fileno(), _CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        if not chunk:
            self._close_stderr()
            return False
        self._tail = (self._tail + chunk)[-STDERR_TAIL_BYTES:]
        return True

    def _close_stderr(self) -> None:
        pipe = self._popen.stderr
        if pipe is not None and not pipe.closed:
            self._loop.remove_reader(pipe.fileno())
            pipe.close()

    def _poll(self) -> None:
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self._loop.call_later(_POLL_S, self._poll)
        else:
            self._on_exit()

    def _on_exit(self) -> None:
        self._signal(signal.SIGKILL)  # to what the group left behind, while the zombie still holds the group's number
        cpu_s = None
        try:
            _, status, usage = os.wait4(self.pid, 0)
            exit_code = os.waitstatus_to_exitcode(status)
            cpu_s = usage.ru_utime + usage.ru_stime
        except ChildProcessError:  # somebody ignores SIGCHLD or reaps what is not his
            exit_code = 255
        self._popen.returncode = exit_code
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        pipe = self._popen.stderr
        for _ in range(_LAST_READS):
            if pipe is None or pipe.closed or not self._drain(pipe):
                break
        self._close_stderr()
        if self._stdout is not None:
            self._stdout.finish()
        self._children._gone(self)
        self._finished.set_result(Finished(self.argv, exit_code, self.stderr_tail, self._loop.time() - self.started_s, cpu_s))


class Children:
    """Everything that this process has running. One for the whole process; `aclose` is the last thing it does."""

    def __init__(self) -> None:
        self.quarantined = 0
        self._running: dict[int, Child] = {}
        self._closed = False

    def running(self) -> tuple[Child, ...]:
        """Return the children that have not ended, oldest first."""
        return tuple(self._running.values())

    async def run(
        self,
        argv: Sequence[str],
        *,
        purpose: str,
        deadline_s: float,
        limits: Limits = UNLIMITED,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Finished:
        """Run *argv* to its end and return how it ended, whatever its exit code.

        Raises ChildError if it can't start or is not done after *deadline_s*; it is gone by then.
        """
        async with self.spawn(argv, purpose=purpose, limits=limits, env=env, cwd=cwd) as child:
            try:
                async with asyncio.timeout(deadline_s):
                    return await child.wait()
            except TimeoutError:
                finished = await child.stop("deadline")
                exit_code = finished.exit_code if finished else None
                reason = f"{purpose}: not done after {deadline_s:g} s"
                raise ChildError(reason, argv=child.argv, exit_code=exit_code, stderr_tail=child.stderr_tail) from None

    @asynccontextmanager
    async def spawn(
        self,
        argv: Sequence[str],
        *,
        purpose: str,
        limits: Limits = UNLIMITED,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: Stdout = Stdout.NULL,
        inherit_stderr: bool = False,
    ) -> AsyncIterator[Child]:
        """Start *argv*; it is stopped when the block is left. Raises ChildError if it can't start.

        It gets our environment without HLSRELAY_* (they may hold passwords), and *env* on top. stdin is /dev/null.
        """
        stderr = None if inherit_stderr else subprocess.PIPE
        child = self._start(tuple(argv), purpose, _confined(argv, limits), env=_environment(env), cwd=cwd, stdout=stdout, stderr=stderr)
        try:
            yield child
        finally:
            await child.stop("no longer wanted")

    async def aclose(self) -> None:
        """Stop all children at once, and start no more."""
        self._closed = True
        await asyncio.gather(*(child.stop("shutdown") for child in self.running()))

    def _start(
        self,
        argv: tuple[str, ...],
        purpose: str,
        confined: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None,
        stdout: Stdout,
        stderr: int | None,
    ) -> Child:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("children are started from the main thread only: theirs is killed when the thread that started them ends")
        if self._closed:
            raise ChildError(f"{purpose}: not started, we are shutting down", argv=argv, exit_code=None, stderr_tail="")
        if shutil.which(argv[0]) is None:  # the confining programs would only say it in their own words
            raise ChildError(f"{purpose}: no program {argv[0]}", argv=argv, exit_code=None, stderr_tail="")
        try:
            popen = subprocess.Popen(
                confined,
                stdin=subprocess.DEVNULL,
                stdout={Stdout.NULL: subprocess.DEVNULL, Stdout.INHERIT: None, Stdout.LINES: subprocess.PIPE}[stdout],
                stderr=stderr,
                bufsize=0,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ChildError(f"{purpose}: can't be started: {error}", argv=argv, exit_code=None, stderr_tail="") from error
        child = Child(popen, argv, purpose, self)
        self._running[child.pid] = child
        return child

    def _gone(self, child: Child) -> None:
        self._running.pop(child.pid, None)


class _Lines:
    """A child's stdout, line by line; reads no further than a line and a bit ahead."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pipe: IO[bytes]) -> None:
        self._loop = loop
        self._pipe = pipe
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._news = asyncio.Event()
        os.set_blocking(pipe.fileno(), False)
        loop.add_reader(pipe.fileno(), self._on_readable)

    async def read(self) -> AsyncIterator[str]:
        while True:
            while self._lines:
                yield self._lines.popleft().decode(errors="replace")
            if self._pipe.closed:
                return
            self._news.clear()
            self._loop.add_reader(self._pipe.fileno(), self._on_readable)
            await self._news.wait()

    def finish(self) -> None:
        """Take what is left after the child's end."""
        for _ in range(_LAST_READS):
            if self._pipe.closed or not self._take():
                break
        self.close()

    def close(self) -> None:
        if not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()
            if self._rest:
                self._lines.append(self._rest)
                self._rest = b""
            self._news.set()

    def _on_readable(self) -> None:
        self._take()
        if self._lines and not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())  # until somebody has read them

    def _take(self) -> bool:
        try:
            chunk = os.read(self._pipe.fileno(), _CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            return False
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[:_MOST_LINE_BYTES]
        self._lines += lines
        if lines:
            self._news.set()
        return True


def incarnation() -> str:
    """Return what names this process for ever: PID namespace, PID, and start time (a PID alone is used again)."""
    started = _started(os.getpid())
    return f"{_namespace()}.{os.getpid()}.{started or 0}"


def sweep() -> tuple[int, ...]:
    """Kill the children that a dead incarnation of hlsrelay left, and return their PIDs.

    They are known by the tag in their environment, never by name. Children of a living one, in other PID namespaces (containers) and of
    other users are left alone. For start-up: it waits up to two seconds for them to be gone, and blocks.
    """
    swept: dict[int, int] = {}
    try:
        for pid in _orphans():
            with suppress(OSError, AttributeError):
                swept[os.pidfd_open(pid)] = pid
        for pidfd, pid in list(swept.items()):
            if pid in _orphans((pid,)):  # the PID may have changed hands since; the descriptor holds it now
                with suppress(OSError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            else:
                del swept[pidfd]
                os.close(pidfd)
        waiting = set(swept)
        while waiting:
            ended, _, _ = select.select(waiting, (), (), _SWEEP_PATIENCE_S)
            if not ended:
                break
            waiting -= set(ended)
    finally:
        for pidfd in swept:
            os.close(pidfd)
    if swept:
        log.warning("child.swept", pids=sorted(swept.values()))
    return tuple(sorted(swept.values()))


def _orphans(pids: Sequence[int] | None = None) -> list[int]:
    if pids is None:
        with suppress(OSError):
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    prefix = f"{TAG}={_namespace()}.".encode()
    orphans = []
    for pid in pids or ():
        if pid == os.getpid():
            continue
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # gone, or somebody else's
            continue
        tag = next((variable for variable in variables if variable.startswith(prefix)), None)
        if tag is None:
            continue
        parent, _, started = tag[len(prefix) :].decode(errors="replace").partition(".")
        if parent.isdigit() and started.isdigit() and _started(int(parent)) != int(started):
            orphans.append(pid)
    return orphans


def _started(pid: int) -> int | None:
    """Return when process *pid* started, in ticks since boot; None if there is none, or only its zombie."""
    try:
        # The program's name, in parentheses, may hold anything, also blanks and parentheses (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


@cache
def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid").removeprefix("pid:[").removesuffix("]")
    except OSError:
        return "0"


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HLSRELAY_")}
    return ours | dict(extra or {}) | {TAG: incarnation()}


def _confined(argv: Sequence[str], limits: Limits) -> list[str]:
    """Return *argv* behind the programs that confine it; each replaces itself by the next, so the PID stays."""
    words: list[str] = []
    if setpriv := _program("setpriv"):
        words += [setpriv, "--pdeathsig", "KILL", "--"]
    wanted = [
        f"--{name}={value}"
        for name, value in (
            ("cpu", f"{limits.cpu_s}:{limits.cpu_s + 5}" if limits.cpu_s is not None else None),
            ("as", limits.address_space_bytes),
            ("fsize", limits.file_size_bytes),
            ("nofile", limits.open_files),
        )
        if value is not None
    ]
    if wanted and (prlimit := _program("prlimit")):
        words += [prlimit, *wanted, "--core=0", "--"]
    if limits.niceness is not None and (nice := _program("nice")):
        words += [nice, "-n", str(limits.niceness), "--"]
    return [*words, *argv]


@cache
def _program(name: str) -> str | None:
    """Return where *name* is, None with one warning if it is missing or BusyBox's, which knows fewer options."""
    path = shutil.which(name)
    if path is None or (name == "setpriv" and os.path.basename(os.path.realpath(path)) == "busybox"):
        log.warning("child.unconfined", missing=name)
        return None
    return path
