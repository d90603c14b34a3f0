"""What a node tells others of its children and its memory, and how that is written down. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """A child process as operators see it. *parent* names the hlsrelay process that started it (orphans.incarnation).

    *cpu_s* and *rss_bytes* are None where the system doesn't tell; *frame*, *out_time_s* (of the media's time stamps) and *speed* (1.0:
    real time) where the child doesn't. *orphan*: the process that started it is dead.
    """

    node: str
    pid: int
    parent: str
    purpose: str
    argv: tuple[str, ...]
    age_s: float | None
    cpu_s: float | None
    rss_bytes: int | None
    frame: int | None = None
    out_time_s: float | None = None
    speed: float | None = None
    orphan: bool = False


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One hlsrelay process: its memory, None where that isn't known, and its children."""

    node: str
    parent: str
    memory_percent: float | None = None
    pressed: bool = False
    children: tuple[ChildStatus, ...] = ()


def written(status: NodeStatus) -> str:
    """Return the text that `read` takes back."""
    return json.dumps(asdict(status), separators=(",", ":"))


def read(text: str) -> NodeStatus | None:
    """Return what a node wrote; None for what none did. Fields that a later version adds are left out."""
    try:
        found = json.loads(text)
        children = tuple(_known(ChildStatus, {**one, "argv": tuple(one["argv"])}) for one in found["children"])
        status: NodeStatus = _known(NodeStatus, {**found, "children": children})
    except (ValueError, TypeError, KeyError):
        return None
    return status


def shown(nodes: Iterable[NodeStatus]) -> dict[str, object]:
    """Return what /api/processes and `hlsrelay ps --json` say."""
    nodes = sorted(nodes, key=lambda one: (one.node, one.parent))
    return {
        "nodes": [{"node": one.node, "memory_percent": one.memory_percent, "pressed": one.pressed} for one in nodes],
        "processes": [asdict(child) for one in nodes for child in one.children],
    }


def _known(kind: Any, values: dict[str, Any]) -> Any:
    names = {one.name for one in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})
