"""What the verbs of the command line do. Each is one coroutine; errors of ours come out as they are, for cli to print."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import sys
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
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

from hlsrelay import checking, demo_origin, statuses
from hlsrelay.errors import ConfigError, HlsRelayError, RegistryUnavailable, ResourceBusy, UnknownStream
from hlsrelay.fields import OPERATOR_FIELDS, Registered, checked_id, shown, stream_of
from hlsrelay.judge import RULES, Finding, Severity
from hlsrelay.log import start_logging
from hlsrelay.memory import Pressure
from hlsrelay.notify import READY, notifying
from hlsrelay.orphans import sweep
from hlsrelay.portrait import as_data, as_words
from hlsrelay.probing import probe_source
from hlsrelay.processes import Children, Stdout
from hlsrelay.registry import Registry, fetched
from hlsrelay.settings import Settings, load_settings
from hlsrelay.site import RelaySite, status_of
from hlsrelay.statuses import ChildStatus, NodeStatus
from hlsrelay.storage import LocalStorage, live_dir
from hlsrelay.urls import redacted
from hlsrelay.vitals import attended, found_here, read_all
from hlsrelay.web import StreamStatus, create_app, serve
from hlsrelay.worker import Node, admitted, local_encoder, open_registry, relay_stream

DEMO = "demo"
DEMO_LADDER = "480p,360p"
LOOPBACK = "127.0.0.0/8,::1/128"
FILES_FREE_WITHIN_S = 20.0
"""A relay that is stopped first finishes what its encoder has begun."""
LAST_LOOK_TARGET_DURATIONS = 1.5
LONGEST_LAST_LOOK_S = 15.0


def run_until_done(work: Coroutine[Any, Any, None]) -> None:
    """Run a verb; one that stays logs its events, the others what goes wrong."""
    start_logging("auto", logging.WARNING)
    uvloop.run(work)


async def run(stream_id: str, settings: Settings) -> None:
    """Relay a registered stream, and serve it, until its operator stops it or this process is told to go."""
    start_logging(settings.log)
    checked_id(stream_id)
    leaving = _on_signals()
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(_node(settings))
        await _relay(await fetched(node.registry, stream_id), node, leaving)


async def demo(source: str, ladder: str, settings: Settings) -> None:
    """Relay *source*, or a built-in channel, as stream `demo` until this process is told to go."""
    start_logging(settings.log)
    leaving = _on_signals()
    loopback = load_settings(allow_networks=LOOPBACK).allow_networks
    settings = settings.model_copy(update={"allow_networks": (*settings.allow_networks, *loopback)})
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(_node(settings))
        ladder = ladder or ("" if source else DEMO_LADDER)
        source = source or await _built_in_channel(stack, node.children, leaving)
        if not source:
            return
        fields = {"source": source, "desired": "run"} | ({"ladder": ladder} if ladder else {})
        stream_of(DEMO, fields)
        if not await node.registry.register(DEMO, fields):
            await node.registry.change(DEMO, fields, tuple(name for name in OPERATOR_FIELDS if name not in fields))
        await _relay(await fetched(node.registry, DEMO), node, leaving)


async def channel(http: str, settings: Settings) -> None:
    """Publish the built-in channel until this process is told to go."""
    start_logging(settings.log)
    leaving = _on_signals()
    children = Children()
    serving = asyncio.create_task(demo_origin.serve_channel(http, lambda url: print(url, flush=True), children=children))
    gone = asyncio.create_task(leaving.wait())
    try:
        await asyncio.wait((serving, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        serving.cancel()
        result = await asyncio.gather(serving, return_exceptions=True)
        await children.aclose()
    if isinstance(result[0], Exception):
        raise result[0]


async def register(stream_id: str, fields: Mapping[str, str], as_json: bool) -> None:
    """Register a new stream."""
    fields = {name: value for name, value in fields.items() if value}
    stream_of(checked_id(stream_id), fields)
    async with _registry() as registry:
        if not await registry.register(stream_id, fields):
            hint = f"hlsrelay set {stream_id} source={fields['source']}"
            raise ConfigError(f"stream '{stream_id}' is registered already: to change it, {hint}")
        await _told(registry, stream_id, "registered", as_json)


async def change(stream_id: str, changes: list[str], as_json: bool) -> None:
    """Set and unset fields of a stream, all or none."""
    pairs = dict(_pair(one) for one in changes)
    for name in pairs:
        if name not in OPERATOR_FIELDS:
            raise ConfigError(f"'{name}' is no field of a stream's: the fields are {', '.join(OPERATOR_FIELDS)}")
    async with _registry() as registry:
        registered = await fetched(registry, stream_id)
        wanted = {name: value for name, value in {**registered.fields, **pairs}.items() if value and name in OPERATOR_FIELDS}
        stream_of(stream_id, wanted)
        unset = tuple(name for name, value in pairs.items() if not value)
        await registry.change(stream_id, {name: value for name, value in pairs.items() if value}, unset)
        await _told(registry, stream_id, "changed", as_json)


async def desire(stream_id: str, desired: str, as_json: bool) -> None:
    """Set what is wanted of a stream."""
    async with _registry() as registry:
        await fetched(registry, stream_id)
        await registry.change(stream_id, {"desired": desired})
        await _told(registry, stream_id, f"desired is {desired}", as_json)


async def remove(stream_id: str, files: bool, data: Path | None, as_json: bool) -> None:
    """Forget a stream, and its files if asked to."""
    settings = load_settings(data=data)
    folder = settings.data / "live" / checked_id(stream_id) if files else None
    async with _registry(settings) as registry:
        await fetched(registry, stream_id)
        await registry.delete(stream_id)
    if folder:
        await _remove_files(folder)
    typer.echo(json.dumps({"id": stream_id, "removed": True}) if as_json else f"{stream_id}: removed")


async def list_all(as_json: bool) -> None:
    """Print every stream at a glance."""
    async with _registry() as registry:
        streams = [status_of(one.id, one.fields) for one in await registry.all()]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in streams], indent=2))
    elif streams:
        _print_table(streams)
    else:
        typer.echo("No stream is registered. Register one: hlsrelay add news https://example.com/live/index.m3u8")


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


async def check(target: str, seconds: float, media: bool, as_json: bool) -> None:
    """Watch a playlist and print what the judge finds as it comes, then a verdict. Exits with 1 where a rule is broken."""

    def tell(finding: Finding) -> None:
        if as_json:
            typer.echo(json.dumps({**asdict(finding), "where": redacted(finding.where), "rule_text": RULES[finding.rule]}))
        elif finding.severity is not Severity.NOTE:
            where = redacted(finding.where).rpartition("://")[2]
            typer.echo(f"{finding.severity:7} {finding.rule:8} {where}: {finding.text}")
        sys.stdout.flush()

    report = await checking.check(target, seconds, media=media, tell=tell, leaving=_on_signals())
    if as_json:
        counts = {"errors": len(report.errors), "warnings": len(report.warnings), "playlists": report.playlists}
        counts |= {"loads": report.loads, "segments": report.segments, "removed": report.removed}
        found = [{"rule": one.rule, "severity": one.severity, "kind": one.kind, "count": one.count} for one in report.findings]
        typer.echo(json.dumps({"verdict": report.verdict, **counts, "findings": found}))
    else:
        for rule in dict.fromkeys(one.rule for one in report.findings if one.severity is not Severity.NOTE):
            times = sum(one.count for one in report.findings if one.rule == rule and one.severity is not Severity.NOTE)
            typer.echo(f"{rule:8} {times:4} x  {RULES[rule]}")
        typer.echo(report.verdict)
    if report.errors:
        raise typer.Exit(1)


async def probe(source: str, headers: str, proxy: str, seconds: float, as_json: bool) -> None:
    """Say what a source is and which ladder suits it."""
    fields = {"source": source, "headers": headers, "proxy": proxy}
    stream = stream_of("probe", {name: value for name, value in fields.items() if value})
    on_terminal = sys.stderr.isatty()

    def say(text: str) -> None:
        if on_terminal:
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()

    try:
        found = await probe_source(stream, seconds, say=say, leaving=_on_signals())
    finally:
        say("")
    if as_json:
        typer.echo(json.dumps(as_data(found), indent=2, ensure_ascii=False))
    else:
        for line in as_words(found):
            typer.echo(line)


async def _relay(registered: Registered, node: Node, leaving: asyncio.Event) -> None:
    stream = await admitted(registered, node)
    serving = node.settings.http != "none"
    async with AsyncExitStack() as stack:
        tell = await stack.enter_async_context(notifying(leaving))
        if serving:
            url = await stack.enter_async_context(serve(create_app(RelaySite(node)), node.settings.http))
            typer.echo(f"Watch     {url}/#{stream.id}\nPlaylist  {url}/live/{stream.id}/index.m3u8")
            sys.stdout.flush()
        tell(f"{READY}\nSTATUS=stream {stream.id}")
        node.told = lambda state: tell(f"STATUS=stream {stream.id}: {state}")
        target_duration_s = await relay_stream(stream, node, leaving)
        if serving:  # players look once a target duration: the last look must find ENDLIST, not a closed port
            with suppress(TimeoutError):
                async with asyncio.timeout(min(LAST_LOOK_TARGET_DURATIONS * target_duration_s, LONGEST_LAST_LOOK_S)):
                    await leaving.wait()


async def _built_in_channel(stack: AsyncExitStack, children: Children, leaving: asyncio.Event) -> str:
    """Start the channel as a process of its own and return its URL; empty where we were told to go meanwhile."""
    typer.echo("Starting a built-in live channel (give your own with SOURCE=https://…)")
    sys.stdout.flush()
    argv = [sys.executable, "-m", "hlsrelay", "demo-origin"]
    child = await stack.enter_async_context(children.spawn(argv, purpose="demo-origin", stdout=Stdout.LINES, inherit_stderr=True))

    async def first_line() -> str:
        async for line in child.lines():
            return line.strip()
        raise HlsRelayError("the built-in channel did not start: the lines above say why")

    reading = asyncio.create_task(first_line())
    gone = asyncio.create_task(leaving.wait())
    await asyncio.wait((reading, gone), return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not reading.done():
        reading.cancel()
        return ""
    url = reading.result()
    typer.echo(f"Source    {url}")
    return url


@asynccontextmanager
async def _node(settings: Settings) -> AsyncGenerator[Node, None]:
    live = live_dir(settings.data)
    sweep()
    children = Children()
    try:
        async with open_registry(settings, children) as (registry, redis):
            pressure = Pressure(settings.memory_pressure)
            node = Node(settings, live, registry, children, local_encoder(settings, children), redis=redis, pressure=pressure)
            async with attended(node):
                yield node
    finally:
        await children.aclose()


@asynccontextmanager
async def _registry(settings: Settings | None = None) -> AsyncGenerator[Registry, None]:
    """Give a command the registry; an embedded Redis that nobody runs is started for as long as the command takes."""
    children = Children()
    try:
        async with open_registry(settings or load_settings(), children) as (registry, _):
            yield registry
    finally:
        await children.aclose()


def _on_signals() -> asyncio.Event:
    """Return an event that the first TERM or INT sets; a second one ends the process as if nobody listened."""
    leaving = asyncio.Event()
    loop = asyncio.get_running_loop()

    def leave() -> None:
        leaving.set()
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(one)

    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, leave)
    return leaving


async def _told(registry: Registry, stream_id: str, what: str, as_json: bool) -> None:
    registered = await registry.get(stream_id)
    if registered is None:
        raise UnknownStream(f"stream '{stream_id}' was removed meanwhile")
    if as_json:
        _print_stream(registered, as_json)
    else:
        typer.echo(f"{stream_id}: {what}")


def _print_stream(registered: Registered, as_json: bool) -> None:
    fields = {"id": registered.id, **shown(registered.fields)}
    if as_json:
        typer.echo(json.dumps(fields, indent=2))
        return
    for name, value in fields.items():
        typer.echo(f"{name:14} {value}")


def _print_table(streams: list[StreamStatus]) -> None:
    columns = ("id", "desired", "state", "node", "since", "last_sequence", "lag_s", "ladder", "last_error")
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
            str(one.pid),
            one.purpose,
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
