"""What the verbs do that operators steer streams with: they talk to Redis and end. They import little, so that they answer at once."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tenacity
import typer
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlsrelay import statuses, steering
from hlsrelay.bucket import forgotten
from hlsrelay.clock import Clock
from hlsrelay.declared import Difference, declared, safe
from hlsrelay.errors import ConfigError, RegistryUnavailable, ResourceBusy
from hlsrelay.fields import OPERATOR_FIELDS, RELAY_FIELDS, Registered, checked_id, shown
from hlsrelay.log import start_logging
from hlsrelay.objects import Objects, open_objects
from hlsrelay.orphans import found_here
from hlsrelay.processes import Children
from hlsrelay.redis_registry import open_registry
from hlsrelay.registry import LEASE_S, Registry, fetched
from hlsrelay.settings import LOCAL, Settings, load_settings
from hlsrelay.statuses import ChildStatus, NodeStatus, StreamStatus, read_all, stream_status
from hlsrelay.storage import LocalStorage

FILES_FREE_WITHIN_S = 20.0
"""A relay that is stopped first finishes what its encoder has begun."""
ENDED_WITHIN_S = 2.0
"""A relay on another node notices so soon that its stream is gone."""


def run_until_done(work: Coroutine[Any, Any, None]) -> None:
    """Run a verb; one that stays logs its events, the others what goes wrong."""
    start_logging("auto", logging.WARNING)
    uvloop.run(work)


async def register(stream_id: str, fields: Mapping[str, str], as_json: bool) -> None:
    """Register a new stream."""
    steering.checked(stream_id, fields)  # before a Redis is asked, or started, for it
    async with _registry() as registry:
        _told(await steering.register(registry, stream_id, fields), "registered", as_json)


async def change(stream_id: str, changes: list[str], as_json: bool) -> None:
    """Set and unset fields of a stream, all or none."""
    pairs = dict(_pair(one) for one in changes)
    async with _registry() as registry:
        _told(await steering.change(registry, stream_id, pairs), "changed", as_json)


async def apply(path: str, *, prune: bool, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Make what is registered what a file says: shows the difference first, and asks where a person is there."""
    wanted = declared(_text_of(path))
    async with _registry() as registry:
        found = await steering.differs(registry, wanted, prune=prune)
        if not as_json:
            for line in _differences(found):
                typer.echo(line)
        ask = not (yes or dry_run or as_json) and bool(found) and path != "-" and sys.stdin.isatty()
        applies = bool(found) and not dry_run and (not ask or typer.confirm("Apply this?"))
        if applies:
            await steering.apply(registry, found)
        if as_json:
            typer.echo(json.dumps({**found.told(), "applied": applies}, indent=2))
        elif not found:
            typer.echo("Nothing to change.")
        else:
            typer.echo("Applied." if applies else "Nothing was changed.")


def _text_of(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error.strerror if isinstance(error, OSError) else 'it is no UTF-8'}") from None


def _differences(found: Difference) -> list[str]:
    lines = [
        f"+ {stream_id}: {', '.join(f'{name}={value}' for name, value in shown(fields).items())}"
        for stream_id, fields in found.added.items()
    ]
    for stream_id, changes in found.changed.items():
        for name, pair in changes.items():
            old, new = safe(name, pair)
            lines.append(f"~ {stream_id}: {name} {old or '(unset)'} -> {new or '(unset)'}")
    return [*lines, *(f"- {stream_id}" for stream_id in found.removed)]


async def desire(stream_id: str, desired: str, as_json: bool) -> None:
    """Set what is wanted of a stream."""
    async with _registry() as registry:
        _told(await steering.desire(registry, stream_id, desired), f"desired is {desired}", as_json)


async def remove(stream_id: str, files: bool, data: Path | None, as_json: bool) -> None:
    """Forget a stream, and its files if asked to."""
    settings = load_settings(data=data)
    folder = settings.data / "live" / checked_id(stream_id) if files else None
    async with _registry(settings) as registry:
        await steering.remove(registry, stream_id)
    if folder:
        await _remove_files(folder)
        if settings.storage != LOCAL:
            await _remove_objects(open_objects(settings.storage), stream_id)
    typer.echo(json.dumps({"id": stream_id, "removed": True}) if as_json else f"{stream_id}: removed")


async def list_all(as_json: bool) -> None:
    """Print every stream at a glance."""
    async with _registry() as registry:
        streams = [stream_status(one.id, one.fields) for one in await registry.all()]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in streams], indent=2))
    elif streams:
        _print_table(streams)
    else:
        typer.echo("No stream is registered. Register one: hlsrelay add news https://example.com/live/index.m3u8")


async def list_nodes(as_json: bool) -> None:
    """Print every session: who takes part, and with how much."""
    async with _registry() as registry:
        sessions = await registry.sessions()
    if as_json:
        typer.echo(json.dumps([steering.told(one) for one in sessions], indent=2))
    elif not sessions:
        typer.echo("No node takes part. Start one: hlsrelay worker")
    else:
        table = Table("node", "state", "streams", "load", "capacity", "session", box=box.SIMPLE_HEAD)
        for one in sessions:
            state = one.fields.get("state", "") if one.lives else f"silent for {LEASE_S - one.left_s:.0f} s"
            words = (one.fields.get(name, "") for name in ("streams", "load", "capacity"))
            table.add_row(one.fields.get("name", ""), state, *words, one.id)
        Console(width=None if sys.stdout.isatty() else 200).print(table)


async def drain(name: str, undo: bool, as_json: bool) -> None:
    """Have a node hand on what it relays, and take on nothing until that is undone; prints how much it still has."""
    async with _registry() as registry:
        session = await steering.drain(registry, name, undo=undo)
        if as_json:
            typer.echo(json.dumps({"node": name, "drains": not undo}))
        else:
            typer.echo(
                f"{name}: takes on streams again" if undo else f"{name}: hands on its streams ({session.fields.get('streams', '0')})"
            )


async def move(stream_id: str, name: str, as_json: bool) -> None:
    """Have a node take a stream over from the one that relays it, and wait until it has."""
    async with _registry() as registry:
        _told(await steering.move(registry, stream_id, name), f"relayed by {name}", as_json)


async def list_processes(as_json: bool) -> None:
    """Print every child of every hlsrelay process: as their nodes tell, and those of this machine that nobody tells of.

    Where Redis does not answer, those of this machine come first and RegistryUnavailable after.
    """
    nodes: list[NodeStatus] = []
    unavailable: RegistryUnavailable | None = None
    try:
        async with _registry() as registry:
            nodes = read_all(await registry.told())
    except RegistryUnavailable as error:
        unavailable = error
    here = found_here(nodes)
    if as_json:
        typer.echo(json.dumps(statuses.shown([*nodes, here] if here.children else nodes), indent=2))
    else:
        _print_processes([*nodes, here])
    if unavailable:
        raise unavailable


async def show(stream_id: str, as_json: bool) -> None:
    """Print one stream's fields."""
    async with _registry() as registry:
        _print_stream(await fetched(registry, stream_id), as_json)


@asynccontextmanager
async def _registry(settings: Settings | None = None) -> AsyncGenerator[Registry, None]:
    """Give a command the registry; an embedded Redis that nobody runs is started for as long as the command takes."""
    children = Children()
    try:
        async with open_registry(settings or load_settings(), children) as (registry, _):
            yield registry
    finally:
        await children.aclose()


def _told(registered: Registered, what: str, as_json: bool) -> None:
    if as_json:
        _print_stream(registered, as_json)
    else:
        typer.echo(f"{registered.id}: {what}")


def _print_stream(registered: Registered, as_json: bool) -> None:
    fields = {"id": registered.id, **shown(registered.fields)}
    if as_json:
        typer.echo(json.dumps(fields, indent=2))
        return
    for name in ("id", *OPERATOR_FIELDS, *RELAY_FIELDS, *(fields.keys() - {"id"} - OPERATOR_FIELDS.keys() - RELAY_FIELDS.keys())):
        if fields.get(name):
            typer.echo(f"{name:14} {fields[name]}")


def _print_table(streams: list[StreamStatus]) -> None:
    columns = ("id", "desired", "state", "node", "epoch", "since", "last_sequence", "lag_s", "ladder", "last_error")
    table = Table(*(name.replace("_", " ") for name in columns), box=box.SIMPLE_HEAD)
    for one in streams:
        table.add_row(*("" if getattr(one, name) is None else str(getattr(one, name)) for name in columns))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _print_processes(nodes: list[NodeStatus]) -> None:
    for node in nodes:
        if node.pressed:
            typer.echo(f"Memory is short on {node.node} ({node.memory_percent} % in use): no ladder job starts")
    children = [child for node in nodes for child in node.children]
    if not children:
        typer.echo("No child process runs.")
        return
    table = Table("node", "pid", "purpose", "age", "CPU", "memory", "progress", "command", box=box.SIMPLE_HEAD)
    for one in sorted(children, key=lambda one: (not one.orphan, one.node, one.pid)):
        table.add_row(
            "orphan" if one.orphan else one.node,
            str(one.pid or ""),
            f"{one.purpose}, by {one.worker}" if one.worker else one.purpose,
            "" if one.age_s is None else f"{one.age_s:.1f} s",
            "" if one.cpu_s is None else f"{one.cpu_s:.2f} s",
            "" if one.rss_bytes is None else f"{one.rss_bytes / 2**20:.0f} MiB",
            _progress(one),
            Text(" ".join(one.argv)),
        )
    Console(width=None if sys.stdout.isatty() else 400).print(table)
    for one in children:
        if one.orphan:
            typer.echo(f"Process {one.pid} ({one.purpose}) is an orphan: who started it is dead. The next hlsrelay run ends it.")


def _progress(child: ChildStatus) -> str:
    told = [] if child.frame is None else [f"frame {child.frame}"]
    told += [] if child.out_time_s is None else [f"at {child.out_time_s:.2f} s"]
    return ", ".join(told + ([] if child.speed is None else [f"{child.speed:g}x"]))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"'{text}' sets nothing: write FIELD=VALUE, such as ladder=720p,480p")
    return name.strip(), value.strip()


async def _remove_files(folder: Path) -> None:
    """Remove a stream's folder once its relay, which has just lost its stream, lets go of it."""
    if not folder.exists():
        return
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(ResourceBusy),
        wait=tenacity.wait_fixed(0.1),
        stop=tenacity.stop_after_delay(FILES_FREE_WITHIN_S),
        reraise=True,
    )
    async for attempt in retrying:
        with attempt, LocalStorage(folder.parent, folder.name):
            shutil.rmtree(folder)


async def _remove_objects(objects: Objects, stream_id: str) -> None:
    """Remove a stream from the bucket, and what its relay, which has just lost it, was about to store."""
    epoch = round(Clock().utc_now().timestamp() * 1000)
    await forgotten(objects, stream_id, epoch)
    await asyncio.sleep(ENDED_WITHIN_S)
    await forgotten(objects, stream_id, epoch)
