"""Children of hlsrelay known by the tag in their environment: whose they are, and which of them nobody has any more.

A tag names an incarnation: PID namespace, PID and start time of the hlsrelay process that started the child. A child is an orphan when
that process is dead. Names of programs say nothing: somebody else's ffmpeg is none of ours.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import structlog

from hlsrelay import proc
from hlsrelay.statuses import ChildStatus, NodeStatus

TAG = "HLSRELAY_CHILD"
"""Environment variable that names the incarnation a child belongs to."""
PURPOSE = "HLSRELAY_PURPOSE"
"""Environment variable that says what a child is for."""

_SWEEP_PATIENCE_S = 2.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tagged:
    """A child of an hlsrelay process on this machine; *orphan*: that process is dead."""

    pid: int
    incarnation: str
    purpose: str
    orphan: bool


def incarnation() -> str:
    """Return what names this process for ever: PID namespace, PID, and start time (a PID alone is used again)."""
    return f"{pid_namespace()}.{os.getpid()}.{proc.started(os.getpid()) or 0}"


def tags(purpose: str) -> dict[str, str]:
    """Return the variables that a child of ours gets."""
    return {TAG: incarnation(), PURPOSE: purpose}


def tagged(pids: Sequence[int] | None = None) -> tuple[Tagged, ...]:
    """Return the children of hlsrelay processes among *pids*, by default all processes of this machine that we may look at.

    Those in other PID namespaces (containers) and of other users are not seen; nor is one that overwrites its environment, as
    redis-server does, nor our own process. For commands and start-up: it reads all of /proc, and blocks.
    """
    if pids is None:
        pids = ()
        with suppress(OSError):
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    found = []
    for pid in pids:
        if pid == os.getpid():
            continue
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # gone, or somebody else's
            continue
        variables = dict(word.partition("=")[::2] for word in words)
        namespace, _, rest = variables.get(TAG, "").partition(".")
        parent, _, since = rest.partition(".")
        if namespace == pid_namespace() and parent.isdigit() and since.isdigit():
            found.append(Tagged(pid, variables[TAG], variables.get(PURPOSE, ""), orphan=proc.started(int(parent)) != int(since)))
    return tuple(found)


def sweep() -> tuple[int, ...]:
    """Kill the children that a dead incarnation of hlsrelay left, and return their PIDs.

    For start-up: it waits up to two seconds for them to be gone, and blocks.
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
    return [one.pid for one in tagged(pids) if one.orphan]


@cache
def pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid").removeprefix("pid:[").removesuffix("]")
    except OSError:
        return "0"


def found_here(known: Iterable[NodeStatus]) -> NodeStatus:
    """Return the children on this machine that no node tells of: orphans, and those of commands. It reads all of /proc."""
    told = {(child.pid, child.parent) for node in known for child in node.children}
    found = []
    for one in tagged():
        used = proc.usage(one.pid)
        if used is None or (one.pid, one.incarnation) in told:
            continue
        parent = one.incarnation.split(".")[1]
        node = f"process {parent}, dead" if one.orphan else f"process {parent} here"
        age_s = proc.age_s(one.pid)
        argv, rounded = proc.argv(one.pid), None if age_s is None else round(age_s, 1)
        cpu_s = round(used.cpu_s, 2)
        found.append(ChildStatus(node, one.pid, one.incarnation, one.purpose, argv, rounded, cpu_s, used.rss_bytes, orphan=one.orphan))
    return NodeStatus("", "", children=tuple(found))
