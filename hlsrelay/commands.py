"""What the verbs of the command line do. Each is one coroutine; errors of ours come out as they are, for cli to print."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import signal
import sys
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any, TypeVar

import typer

from hlsrelay import checking, demo_origin
from hlsrelay.claims import Claims
from hlsrelay.errors import HlsRelayError, RegistryUnavailable
from hlsrelay.fields import OPERATOR_FIELDS, Registered, checked_id, stream_of
from hlsrelay.handover import has_heir, obtained, offered, relayed, taken_over
from hlsrelay.judge import RULES, Finding, Severity
from hlsrelay.link import Claim
from hlsrelay.log import start_logging
from hlsrelay.memory import Pressure
from hlsrelay.metrics import Metrics
from hlsrelay.node import Node, encoding
from hlsrelay.notify import READY, notifying
from hlsrelay.objects import open_objects
from hlsrelay.orphans import sweep
from hlsrelay.portrait import as_data, as_words
from hlsrelay.probing import probe_source
from hlsrelay.processes import Children, Stdout
from hlsrelay.redis_registry import open_registry
from hlsrelay.registry import fetched
from hlsrelay.roster import Roster
from hlsrelay.session import DRAINING, Member, is_here, session_id
from hlsrelay.settings import LOCAL, Settings, load_settings
from hlsrelay.site import RelaySite
from hlsrelay.storage import live_dir
from hlsrelay.urls import redacted
from hlsrelay.vitals import attended
from hlsrelay.web import advertised, api_routes, create_app, local_token, serve
from hlsrelay.worker import admitted

T = TypeVar("T")

DEMO = "demo"
DEMO_LADDER = "480p,360p"
LOOPBACK = "127.0.0.0/8,::1/128"
FILES_FREE_WITHIN_S = 20.0
"""A relay that is stopped first finishes what its encoder has begun."""
SERVED_ON_TARGET_DURATIONS = 3
LONGEST_SERVED_ON_S = 30.0
COLLECTED_AFTER = 5_000, 200, 20
"""After so many new objects the garbage among them is looked for; so many looks later among all that are older, a generation at a time.

The loop stands still meanwhile: for 14 ms at most while 200 streams start, and with 50,000 objects for 54."""
MOST_OPEN_FILES = 65_536
"""A viewer who stalls holds three, a relayed stream about ten. What is allowed at first, often 1,024, is for programs with select()."""
LAST_LOOK_TARGET_DURATIONS = 1.5
LONGEST_LAST_LOOK_S = 15.0


async def run(stream_id: str, settings: Settings, *, take_over: bool = False) -> None:
    """Relay a registered stream, and serve it, until its operator stops it or this process is told to go."""
    start_logging(settings.log)
    checked_id(stream_id)
    leaving = _on_signals()
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(_node(settings))
        await _relay(await fetched(node.registry, stream_id), node, leaving, take_over=take_over)


async def worker(settings: Settings) -> None:
    """Relay what is registered and nobody else relays, up to this node's capacity, and serve it, until this process is told to go."""
    start_logging(settings.log)
    leaving = _on_signals()
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(_node(settings))
        tell = await stack.enter_async_context(notifying(leaving))
        if node.serves:
            url = await stack.enter_async_context(_served(node))
            typer.echo(f"Watch     {url}/")
            sys.stdout.flush()
        claims = Claims(node, leaving)
        await stack.enter_async_context(claims.taking_part())
        tell(f"{READY}\nSTATUS=node {node.name}")
        await _viewers_left(node, claims.member, await claims.kept())


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


async def _relay(registered: Registered, node: Node, leaving: asyncio.Event, *, take_over: bool = False) -> None:
    stream = await admitted(registered, node)
    async with AsyncExitStack() as stack:
        tell = await stack.enter_async_context(notifying(leaving))

        def tells() -> dict[str, str]:
            return {"name": node.name, "state": DRAINING if node.draining else "alone", "streams": "1", **node.place()}

        member = Member(node.registry, tells, node.metrics.registry_up.set)
        node.hears_redis = lambda: member.hears
        node.lives = member.lives
        await stack.enter_async_context(member.taking_part())
        node.roster = Roster(node.registry, only=registered.id)
        await stack.enter_async_context(node.roster.kept_up())
        url = await stack.enter_async_context(_served(node)) if node.serves else ""  # before another node lets go for us
        claim = await _unless(leaving, (taken_over if take_over else obtained)(node, member, registered))
        if claim is None:
            return
        if url:
            typer.echo(f"Watch     {url}/#{stream.id}\nPlaylist  {url}/live/{stream.id}/index.m3u8")
            sys.stdout.flush()
        tell(f"{READY}\nSTATUS=stream {stream.id}")
        node.told = lambda state: tell(f"STATUS=stream {stream.id}: {state}")
        target_duration_s = await _relayed(claim, node, member, leaving)
        if node.draining:
            await _viewers_left(node, member, {stream.id: target_duration_s})
        elif node.serves:  # players look once a target duration: the last look must find ENDLIST, not a closed port
            with suppress(TimeoutError):
                async with asyncio.timeout(min(LAST_LOOK_TARGET_DURATIONS * target_duration_s, LONGEST_LAST_LOOK_S)):
                    await leaving.wait()


async def _unless(leaving: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what *work* does; None where we are told to leave before it is done."""
    working, gone = asyncio.create_task(work), asyncio.create_task(leaving.wait())
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        gone.cancel()
        working.cancel()
        await asyncio.gather(gone, working, return_exceptions=True)


async def _relayed(claim: Claim, node: Node, member: Member, leaving: asyncio.Event) -> float:
    """Relay a stream until it ends, or we are told to leave and another node has it, or nobody takes it."""
    let_go = asyncio.Event()
    relaying = asyncio.create_task(relayed(claim, node, let_go))
    gone = asyncio.create_task(leaving.wait())
    try:
        await asyncio.wait((relaying, gone), return_when=asyncio.FIRST_COMPLETED)
        if not relaying.done():
            node.draining = True
            await offered(node, member, lambda: () if relaying.done() else (relaying,))
            let_go.set()
        return await relaying
    finally:
        gone.cancel()
        relaying.cancel()
        await asyncio.gather(gone, relaying, return_exceptions=True)


@asynccontextmanager
async def _served(node: Node) -> AsyncGenerator[str, None]:
    """Serve what is relayed: on a port that another hlsrelay of this machine has if it serves the same folder."""
    http, live = node.settings.http, node.live_at
    beside = [
        one.id
        for one in await node.registry.sessions()
        if one.lives and one.id != session_id() and is_here(one.id) and (one.fields.get("http"), one.fields.get("live")) == (http, live)
    ]
    routes = api_routes(node.registry, node.settings.api_token or local_token(node.settings.data))
    try:
        async with serve(create_app(RelaySite(node), api=routes), http, name=session_id(), beside=beside) as url:
            node.url = node.settings.advertise or advertised(url)
            yield url
    finally:
        await node.edge.aclose()


async def _viewers_left(node: Node, member: Member, had: Mapping[str, float]) -> None:
    """Serve on, where others relay now what was relayed here, until players have come to one of them; *had*: target durations by stream."""
    with suppress(RegistryUnavailable):
        if node.serves and (left := [had[stream_id] for stream_id in had if await has_heir(node, member, stream_id)]):
            await asyncio.sleep(min(SERVED_ON_TARGET_DURATIONS * max(left), LONGEST_SERVED_ON_S))


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
    _may_open_many_files()
    _collect_seldom()
    live = live_dir(settings.data)
    objects = None if settings.storage == LOCAL else open_objects(settings.storage)
    sweep()
    children = Children()
    try:
        metrics, pressure = Metrics(), Pressure(settings.memory_pressure)
        async with encoding(settings, children, metrics) as (encoder, pool), open_registry(settings, children) as (registry, redis):
            node = Node(settings, live, registry, children, encoder, metrics, redis=redis, objects=objects, pool=pool, pressure=pressure)
            async with attended(node):
                try:
                    yield node
                finally:
                    await node.caches.aclose()
    finally:
        await children.aclose()


def _may_open_many_files() -> None:
    """Have this process and its children open as many files as the machine allows, MOST_OPEN_FILES at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # a system that allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _collect_seldom() -> None:
    """Look less often for garbage in circles, and never in what is loaded for good: with many streams each look takes long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AFTER)


def _on_signals() -> asyncio.Event:
    """Return an event that the first TERM, QUIT or INT sets; a second one ends the process as if nobody listened."""
    leaving = asyncio.Event()
    loop = asyncio.get_running_loop()

    def leave() -> None:
        leaving.set()
        for one in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
            loop.remove_signal_handler(one)

    for one in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
        loop.add_signal_handler(one, leave)
    return leaving
