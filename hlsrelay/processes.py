"""The one door to every child process.

Laws:
- A child runs in a session of its own, is killed by the kernel when we die, and carries our incarnation in its environment.
- Its stderr is drained all the time: a full pipe stops ffmpeg for good. The last 4 KiB are kept.
- Whoever starts a child leaves `run` or `spawn` only when the child is gone, cancelled or not: at most 4.5 s after it is told to stop.
- What its process group leaves behind is killed with it, while the group's number can't yet be anybody else's.
- One that reports its progress is stopped when it is hung (`progress` says when that is).
- Every end is one log event, `child.ended`: the reason, how it ended, and what it cost. Below `info` is only what is done and went well.

A grandchild that makes a session of its own escapes all this but `orphans.sweep`. Without setpriv (not Linux) a kill -9 of ours leaves
children running until the next start sweeps them. The event loop must run in the main thread: the kernel's parent-death signal comes
when the *thread* that spawned ends.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

import structlog

from hlsrelay import proc
from hlsrelay.errors import ChildError
from hlsrelay.orphans import incarnation, tags
from hlsrelay.pipes import Lines, Reports, Tail
from hlsrelay.progress import HUNG_AFTER_S, PERIOD_S, Progress, Watch
from hlsrelay.statuses import ChildStatus
from hlsrelay.urls import redacted

DONE, DEADLINE, HUNG, MEMORY, SHUTDOWN = "done", "deadline", "hung", "memory", "shutdown"
CANCELLED, NO_LONGER_WANTED, OVERLOADED = "cancelled", "no longer wanted", "overload"
"""Why a child ended. DONE: by itself."""

TERM_PATIENCE_S = 2.5
KILL_PATIENCE_S = 2.0

_POLL_S = 0.02

log = structlog.get_logger(__name__)


class Stdout(Enum):
    """Where a child's standard output goes."""

    NULL = "null"
    INHERIT = "inherit"
    LINES = "lines"
    """To `Child.lines`. A child that writes faster than they are read waits."""
    PROGRESS = "progress"
    """To `Child.progress`: ffmpeg's `-progress pipe:1`, always read. A child that is hung is stopped."""


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
    """How a child ended. *exit_code* is minus the signal's number if one ended it; *cpu_s* is None where the system doesn't tell.

    *reason* is DONE, or why it was told to stop. *peak_rss_bytes* also counts what we held when it was forked (getrusage(2)).
    """

    argv: tuple[str, ...]
    exit_code: int
    stderr_tail: str
    wall_s: float
    cpu_s: float | None
    reason: str = DONE
    peak_rss_bytes: int | None = None


class Child:
    """A running child. Made by `Children.spawn`; *argv* is what was asked for, without the programs that confine it."""

    def __init__(
        self, popen: subprocess.Popen[bytes], argv: tuple[str, ...], purpose: str, stdout: Stdout, children: Children, started_s: float
    ) -> None:
        self.argv = argv
        self.purpose = purpose
        self.pid = popen.pid
        self._popen = popen
        self._children = children
        self._loop = asyncio.get_running_loop()
        self.started_s = started_s
        self._finished: asyncio.Future[Finished] = self._loop.create_future()
        self._stopping: asyncio.Task[Finished | None] | None = None
        self._reason = DONE
        self._stderr = Tail(self._loop, popen.stderr) if popen.stderr else None
        self._lines = Lines(self._loop, popen.stdout) if popen.stdout and stdout is Stdout.LINES else None
        self._reports = Reports(self._loop, popen.stdout) if popen.stdout and stdout is Stdout.PROGRESS else None
        if self._reports:
            self._watch = Watch(self.started_s)
            self._loop.call_later(PERIOD_S, self._look)
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
        return self._stderr.text if self._stderr else ""

    @property
    def progress(self) -> Progress | None:
        """What it reported last; None before that, and without Stdout.PROGRESS."""
        return self._reports.progress if self._reports else None

    @property
    def finished(self) -> Finished | None:
        """How it ended; None while it runs."""
        return self._finished.result() if self._finished.done() else None

    def lines(self) -> AsyncIterator[str]:
        """Yield what it writes to stdout line by line, without line ends, until it closes it. Only with Stdout.LINES, and only once."""
        if self._lines is None:
            raise ValueError("the child's stdout was not asked for")
        return self._lines.read()

    def status(self, node: str) -> ChildStatus:
        """Return it as operators see it: a child of *node*."""
        used, progress = proc.usage(self.pid), self.progress or Progress()
        return ChildStatus(
            node=node,
            pid=self.pid,
            parent=incarnation(),
            purpose=self.purpose,
            argv=tuple(redacted(word) if "://" in word else word for word in self.argv),
            age_s=round(self._loop.time() - self.started_s, 1),
            cpu_s=round(used.cpu_s, 2) if used else None,
            rss_bytes=used.rss_bytes if used else None,
            frame=progress.frame,
            out_time_s=progress.out_time_s,
            speed=progress.speed,
        )

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
            self._reason = reason
            self._stopping = self._loop.create_task(self._stop(), name=f"stop {self.purpose}")
        cancelled: asyncio.CancelledError | None = None
        while not self._stopping.done():
            try:
                await asyncio.shield(self._stopping)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        return self._stopping.result()

    async def _stop(self) -> Finished | None:
        try:
            if self._lines is not None:
                self._lines.close()  # an ffmpeg that is blocked on a pipe ignores SIGTERM; the others are never full
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # else a stopped one would not hear it
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

    def _look(self) -> None:
        """See whether it is hung; where /proc doesn't tell, that can't be known, and the deadline is what holds."""
        if self._stopping is not None or self._finished.done():
            return
        used = proc.usage(self.pid)
        if used and self._watch.hung(self._loop.time(), self.progress, used.cpu_s, runnable=proc.runnable(self.pid)):
            self._reason = HUNG
            self._stopping = self._loop.create_task(self._stop(), name=f"stop {self.purpose}")
        else:
            self._loop.call_later(PERIOD_S, self._look)

    def _poll(self) -> None:
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self._loop.call_later(_POLL_S, self._poll)
        else:
            self._on_exit()

    def _on_exit(self) -> None:
        self._signal(signal.SIGKILL)  # to what the group left behind, while the zombie still holds the group's number
        cpu_s = peak_rss_bytes = None
        try:
            _, status, usage = os.wait4(self.pid, 0)
            exit_code = os.waitstatus_to_exitcode(status)
            cpu_s = usage.ru_utime + usage.ru_stime
            peak_rss_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        except ChildProcessError:  # somebody ignores SIGCHLD or reaps what is not his
            exit_code = 255
        self._popen.returncode = exit_code
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        for pipe in (self._stderr, self._lines, self._reports):
            if pipe is not None:
                pipe.finish()
        self._children._gone(self)
        finished = Finished(self.argv, exit_code, self.stderr_tail, self._loop.time() - self.started_s, cpu_s, self._reason, peak_rss_bytes)
        self._finished.set_result(finished)
        self._log(finished)  # last: our own stderr may be gone

    def _log(self, finished: Finished) -> None:
        code = finished.exit_code
        tell = log.info if finished.reason in (CANCELLED, NO_LONGER_WANTED, SHUTDOWN) else log.warning
        if finished.reason == DONE and code == 0:
            tell = log.debug
        tell(
            "child.ended",
            purpose=self.purpose,
            pid=self.pid,
            reason=finished.reason,
            **({"signal": signal.Signals(-code).name} if code < 0 else {"exit_code": code}),
            wall_s=round(finished.wall_s, 3),
            cpu_s=None if finished.cpu_s is None else round(finished.cpu_s, 3),
            peak_rss_mib=None if finished.peak_rss_bytes is None else finished.peak_rss_bytes >> 20,
        )


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
        watched: bool = False,
    ) -> Finished:
        """Run *argv* to its end and return how it ended, whatever its exit code; *watched*: it writes `-progress` to stdout.

        Raises ChildError if it can't start, is not done after *deadline_s*, or somebody or something stopped it; it is gone by then.
        """
        stdout = Stdout.PROGRESS if watched else Stdout.NULL
        async with self.spawn(argv, purpose=purpose, limits=limits, env=env, cwd=cwd, stdout=stdout) as child:
            finished: Finished | None
            try:
                async with asyncio.timeout(deadline_s):
                    finished = await child.wait()
            except TimeoutError:
                finished = await child.stop(DEADLINE)
            if finished and finished.reason == DONE:
                return finished
            why = finished.reason if finished else DEADLINE
            told = {DEADLINE: f"not done after {deadline_s:g} s", HUNG: f"no progress for {HUNG_AFTER_S:g} s"}.get(why, f"stopped: {why}")
            exit_code = finished.exit_code if finished else None
            raise ChildError(f"{purpose}: {told}", argv=child.argv, exit_code=exit_code, stderr_tail=child.stderr_tail, ended=why)

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
        child = self._start(
            tuple(argv), purpose, _confined(argv, limits), env=_environment(env, purpose), cwd=cwd, stdout=stdout, stderr=stderr
        )
        try:
            yield child
        except asyncio.CancelledError as error:  # whoever cancels may say why
            await child.stop(next((said for said in error.args if said in (MEMORY, OVERLOADED)), CANCELLED))
            raise
        finally:
            await child.stop(NO_LONGER_WANTED)

    async def aclose(self) -> None:
        """Stop all children at once, and start no more."""
        self._closed = True
        await asyncio.gather(*(child.stop(SHUTDOWN) for child in self.running()))

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
        started_s = asyncio.get_running_loop().time()  # a short one may be done before we are on a processor again
        try:
            popen = subprocess.Popen(
                confined,
                stdin=subprocess.DEVNULL,
                stdout={Stdout.NULL: subprocess.DEVNULL, Stdout.INHERIT: None}.get(stdout, subprocess.PIPE),
                stderr=stderr,
                bufsize=0,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ChildError(f"{purpose}: can't be started: {error}", argv=argv, exit_code=None, stderr_tail="") from error
        child = Child(popen, argv, purpose, stdout, self, started_s)
        self._running[child.pid] = child
        return child

    def _gone(self, child: Child) -> None:
        self._running.pop(child.pid, None)


def _environment(extra: Mapping[str, str] | None, purpose: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HLSRELAY_")}
    return ours | dict(extra or {}) | tags(purpose)


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
