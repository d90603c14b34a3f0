"""What operators do to streams and nodes, whether by the command line or the HTTP API. Every change is checked before it is made.

All raise ConfigError where what is asked for can't work, UnknownStream, ResourceBusy and RegistryUnavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from hlsrelay.declared import Difference, difference
from hlsrelay.errors import ConfigError, ResourceBusy
from hlsrelay.fields import OPERATOR_FIELDS, Registered, checked_id, stream_of
from hlsrelay.ladder import weight_of
from hlsrelay.registry import Registry, Session, fetched
from hlsrelay.session import takes_on

ASKED_EVERY_S = 0.25
MOVED_WITHIN_S = 30.0
SETTLED = ("running", "stalled", "idle", "ended")
"""States of a stream that its node has had something of."""


def checked(stream_id: str, fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a stream that may be registered; empty ones count as unset."""
    fields = {name: value for name, value in fields.items() if value}
    _known(fields)
    stream_of(checked_id(stream_id), fields)
    return fields


async def register(registry: Registry, stream_id: str, fields: Mapping[str, str]) -> Registered:
    """Register a new stream."""
    fields = checked(stream_id, fields)
    if not await registry.register(stream_id, fields):
        hint = f"hlsrelay set {stream_id} source={fields['source']}"
        raise ConfigError(f"stream '{stream_id}' is registered already: to change it, {hint}")
    return await fetched(registry, stream_id)


async def change(registry: Registry, stream_id: str, changes: Mapping[str, str]) -> Registered:
    """Set fields of a stream, and unset those that are empty, all or none."""
    _known(changes)
    registered = await fetched(registry, stream_id)
    wanted = {name: value for name, value in {**registered.fields, **changes}.items() if value and name in OPERATOR_FIELDS}
    stream_of(stream_id, wanted)
    unset = tuple(name for name, value in changes.items() if not value)
    await registry.change(stream_id, {name: value for name, value in changes.items() if value}, unset)
    return await fetched(registry, stream_id)


async def desire(registry: Registry, stream_id: str, desired: str) -> Registered:
    """Set what is wanted of a stream, whatever its other fields say: one that makes no sense can be stopped too."""
    await fetched(registry, stream_id)
    await registry.change(stream_id, {"desired": desired})
    return await fetched(registry, stream_id)


async def remove(registry: Registry, stream_id: str) -> None:
    """Forget a stream; one that runs ends."""
    await fetched(registry, stream_id)
    await registry.delete(stream_id)


async def differs(registry: Registry, wanted: Mapping[str, Mapping[str, str]], *, prune: bool) -> Difference:
    """Return what has to change for what is *wanted* (declared.declared)."""
    return difference(wanted, await registry.all(), prune=prune)


async def apply(registry: Registry, found: Difference) -> None:
    """Make a difference none."""
    for stream_id, fields in found.added.items():
        if not await registry.register(stream_id, fields):
            raise ConfigError(f"stream '{stream_id}' was registered by somebody else meanwhile: apply again")
    for stream_id, changes in found.changed.items():
        unset = tuple(name for name, (_, new) in changes.items() if new is None)
        await registry.change(stream_id, {name: new for name, (_, new) in changes.items() if new is not None}, unset)
    for stream_id in found.removed:
        await registry.delete(stream_id)


async def drain(registry: Registry, node: str, *, undo: bool = False) -> Session:
    """Have a node hand on what it relays, and take on nothing until that is undone; returns its session as it was."""
    session = await _session(registry, node)
    if session.fields.get("state") == "alone":
        raise ConfigError(f"node {node} is an `hlsrelay run`: it relays one stream, until it is told to go; only a worker drains")
    await registry.tell_session(session.id, {"wish": "" if undo else "drain"})
    return session


async def move(registry: Registry, stream_id: str, node: str) -> Registered:
    """Have a node take a stream over from the one that relays it, and wait until it has, MOVED_WITHIN_S at most.

    One that ran is to run there; of one that did not, as its source gives nothing, more can't be waited for than that it is tried there.
    """
    registered = await fetched(registry, stream_id)
    there = SETTLED if registered.fields.get("state") in SETTLED else (*SETTLED, "starting")
    session = await _session(registry, node)
    if registered.fields.get("desired") == "stop":
        raise ConfigError(f"stream '{stream_id}' is set to stop: hlsrelay start {stream_id} first")
    if not takes_on(session):
        raise ConfigError(f"node {node} takes on no streams: it is {session.fields.get('state', 'about to start')}")
    weight = weight_of(stream_of(stream_id, registered.fields).ladder)
    load, capacity = (int(session.fields.get(field, "0")) for field in ("load", "capacity"))
    if load and load + weight > capacity:
        raise ResourceBusy(f"node {node} has no room for '{stream_id}': it has taken on {load} of {capacity}, and this takes {weight}")
    if registered.fields.get("session") != session.id:
        await registry.report(stream_id, {"wanted": session.id})
    for _ in range(round(MOVED_WITHIN_S / ASKED_EVERY_S)):
        registered = await fetched(registry, stream_id)
        if registered.fields.get("session") == session.id and registered.fields.get("state") in there:
            return registered
        await asyncio.sleep(ASKED_EVERY_S)
    await registry.report(stream_id, {"wanted": ""})
    raise ResourceBusy(f"'{stream_id}' was not taken over by {node} within {MOVED_WITHIN_S:.0f} s: hlsrelay show {stream_id}")


def told(session: Session) -> dict[str, object]:
    """Return a session as commands and the API tell it in JSON."""
    counts = {name: int(text) for name in ("streams", "load", "capacity") if (text := session.fields.get(name, "")).isdecimal()}
    return {"session": session.id, "lives": session.lives, "lease_s": round(session.left_s, 3), **session.fields, **counts}


async def _session(registry: Registry, node: str) -> Session:
    """Return the living session of a node. Raises ConfigError that names those there are."""
    living = [one for one in await registry.sessions() if one.lives]
    found = [one for one in living if node in (one.fields.get("name"), one.id)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(one.fields.get("name", one.id) for one in living)) or "none"
    raise ConfigError(f"{'several nodes are' if found else 'no node is'} called '{node}': those that live are {names}")


def _known(fields: Mapping[str, str]) -> None:
    for name in fields:
        if name not in OPERATOR_FIELDS:
            raise ConfigError(f"'{name}' is no field of a stream's: the fields are {', '.join(OPERATOR_FIELDS)}")
