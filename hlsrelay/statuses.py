"""Streams, nodes and children at a glance: what `ls`, `ps`, the page and the API show, and how nodes tell each other. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hlsrelay.model import Desired
from hlsrelay.urls import redacted


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """A child process as operators see it. *parent* names the hlsrelay process that started it (orphans.incarnation).

    *cpu_s* and *rss_bytes* are None where the system doesn't tell; *frame*, *out_time_s* (of the media's time stamps) and *speed* (1.0:
    real time) where the child doesn't. *orphan*: the process that started it is dead. *worker*: who has it, where that is no child but
    a job that is with a pool (`pool`); its *pid* is 0.
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
    worker: str = ""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One hlsrelay process: its memory, None where that isn't known, and its children."""

    node: str
    parent: str
    memory_percent: float | None = None
    pressed: bool = False
    children: tuple[ChildStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """One stream at a glance, as the page and /api/streams show it: everybody who reaches the port reads this.

    *source* therefore comes without user name, password and query. *since* is ISO 8601 text, empty where it says nothing.
    *epoch*: which claim of the stream its relay's is.
    *playing_url* is where the multivariant playlist is: a path on this server, or a whole URL on another node; empty: nowhere.
    """

    id: str
    desired: str
    state: str
    node: str = ""
    epoch: int | None = None
    since: str = ""
    source: str = ""
    ladder: str = ""
    last_sequence: int | None = None
    lag_s: float | None = None
    last_error: str = ""
    ladder_trouble: str = ""
    playing_url: str = ""


def stream_status(stream_id: str, fields: Mapping[str, str], playing_url: str = "") -> StreamStatus:
    """Return a stream's hash as pages, API and commands show it."""
    number, lag, epoch = fields.get("last_sequence", ""), fields.get("lag", ""), fields.get("epoch", "")
    return StreamStatus(
        id=stream_id,
        desired=fields.get("desired", Desired.RUN),
        state=fields.get("state", "registered"),
        node=fields.get("node", ""),
        epoch=int(epoch) if epoch.isdecimal() else None,
        since=fields.get("since", ""),
        source=redacted(fields.get("source", "")),
        ladder=fields.get("ladder", ""),
        last_sequence=int(number) if number.isdecimal() else None,
        lag_s=float(lag) if lag.replace(".", "", 1).isdecimal() else None,
        last_error=fields.get("last_error") or fields.get("reason", ""),
        ladder_trouble=fields.get("ladder_trouble", ""),
        playing_url=playing_url,
    )


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


def read_all(texts: Iterable[str]) -> list[NodeStatus]:
    """Return what all nodes have told."""
    return [status for status in map(read, texts) if status is not None]


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
