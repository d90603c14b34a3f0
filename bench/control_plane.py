"""What it costs to know who relays what: `python -m bench.control_plane notice [--streams 1000]`, `… nodes [--nodes 100 --streams 10000]`.

notice: a real `hlsrelay worker` has so many streams (on_demand, so that they wait for viewers); with nothing but HSET one after another is
stopped and started. Tells after what time the worker had done so, as Redis shows it.

nodes: so many nodes, in a few processes, share so many streams in one Redis: the real sessions, rosters, claims and links of hlsrelay over
relays that do nothing but report, and keep their position, each segment. Tells what Redis is asked for and what that costs it while all is
well, what it costs a node, and, after one node has died, when all that it had was claimed again. With `--whole 10` no more than ten of
them are whole nodes, in the last process; the others only load Redis as these do (load_nodes), which a machine of few cores has room for.

Ends by itself; figures go to stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import redis.asyncio
import uvloop

from bench.load_nodes import Load, load_nodes
from hlsrelay import claims
from hlsrelay.embedded import EmbeddedRedis
from hlsrelay.link import Claim, Link
from hlsrelay.log import start_logging
from hlsrelay.node import Node, local_encoder
from hlsrelay.processes import Children
from hlsrelay.redis_keys import Keys
from hlsrelay.redis_registry import RedisRegistry
from hlsrelay.registry import LEASE_S
from hlsrelay.settings import load_settings

SEGMENT_S = 4.0
REGISTERED_AT_ONCE = 200
ROOM = 1.25
"""What all nodes have room for, of what there is."""
POSITION_BYTES = 1500
"""What ledger.packed says of a stream of one track."""
SOURCE = "http://127.0.0.1:9/none.m3u8"
KEYS = Keys()


@asynccontextmanager
async def redis_at(folder: Path, children: Children) -> AsyncGenerator[tuple[str, Any], None]:
    """Run a Redis while the block runs; gives its URL, and a client."""
    embedded = EmbeddedRedis(folder, children)
    url = await embedded.ensure()
    client = redis.asyncio.Redis.from_url(url, decode_responses=True, protocol=2)
    try:
        yield url, client
    finally:
        await client.aclose()
        await embedded.aclose()


async def registered(client: Any, numbers: Iterable[int], **fields: str) -> None:
    """Register streams s<number>."""
    pipeline = client.pipeline(transaction=False)
    for number in numbers:
        pipeline.hset(KEYS.stream(f"s{number}"), mapping={"source": SOURCE, "desired": "run", **fields})
    await pipeline.execute()


COUNT = """
-- ARGV what the keys of streams begin with, how many streams, a field, a value (empty: any but the empty one): how many have it
local found = 0
for i = 0, ARGV[2] - 1 do
    local told = redis.call('HGET', ARGV[1] .. i, ARGV[3])
    if told and told ~= '' and (ARGV[4] == '' or told == ARGV[4]) then found = found + 1 end
end
return found
"""


async def sessions_of(client: Any, count: int) -> int:
    """Return how many streams somebody has."""
    return int(await client.eval(COUNT, 0, KEYS.stream("s"), count, "session", ""))


async def noticed(streams: int, changes: int) -> None:
    """See after what time a worker does what was written with HSET."""
    children = Children()
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(children.aclose)
            url, client = await stack.enter_async_context(redis_at(Path(folder), children))
            await registered(client, range(streams), on_demand="yes")
            env = {
                "HLSRELAY_REDIS_URL": url,
                "HLSRELAY_HTTP": "127.0.0.1:0",
                "HLSRELAY_CAPACITY": str(2 * streams),
                "HLSRELAY_DATA": folder,
            }
            argv = [sys.executable, "-m", "hlsrelay", "worker"]
            began_s = time.monotonic()
            await stack.enter_async_context(children.spawn(argv, purpose="worker", env=env))
            while await sessions_of(client, streams) < streams:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            print(f"{streams} streams were claimed {time.monotonic() - began_s:.1f} s after the worker was started")
            await asyncio.sleep(3)
            times: dict[str, list[float]] = {"stopped": [], "started": []}
            for _ in range(changes):
                key = KEYS.stream(f"s{random.randrange(streams)}")
                for name, desired, field, done in (("stopped", "stop", "state", "stopped"), ("started", "run", "state", "idle")):
                    began_s = time.monotonic()
                    await client.hset(key, "desired", desired)
                    while await client.hget(key, field) != done:  # noqa: ASYNC110
                        await asyncio.sleep(0.002)
                    times[name].append(time.monotonic() - began_s)
                    await asyncio.sleep(random.uniform(0, 0.2))
            for name, found in times.items():
                print(f"{name} after HSET, {streams} streams, {changes} times: {told(found)}")


def told(seconds: Sequence[float]) -> str:
    """Return quantiles as text."""
    found = sorted(seconds)
    return f"p50 {statistics.median(found):.3f} s, p99 {found[int(0.99 * (len(found) - 1))]:.3f} s, longest {found[-1]:.3f} s"


async def _reporting(claim: Claim, node: Node, leaving: asyncio.Event) -> float:
    """Be to Redis what a relay is, one of one track with segments of 4 s (handover.relayed)."""
    link = Link(node.registry, claim.registered.id, None, claim, node.roster)
    link.report(state="starting", node=node.name, reason="", wanted="", since="2026-01-01T00:00:00Z")

    async def follow() -> None:
        async for _ in link.changes():
            pass

    async def report() -> None:
        await asyncio.sleep(random.uniform(0, SEGMENT_S))
        link.report(state="running", attempt="", retry_at="", since="2026-01-01T00:00:00Z")
        number = 0
        while True:
            number += 1
            link.report(last_sequence=str(number), lag="0.10")
            link.carry(lambda: "x" * POSITION_BYTES)
            await asyncio.sleep(SEGMENT_S)

    works = [asyncio.create_task(work) for work in (follow(), report(), link.wanted.wait(), leaving.wait())]
    try:
        await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
    return SEGMENT_S


async def some_nodes(first: int, count: int, capacity: int, url: str, folder: Path) -> None:
    """Be nodes until stdin ends. A line on stdin has the last of them die: its tasks end, and nothing is said to Redis."""
    setattr(claims, "relayed", _reporting)  # noqa: B010
    start_logging("json")
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    children = Children()
    works: list[asyncio.Task[None]] = []

    async def one(number: int) -> None:
        settings = load_settings(http="none", node=f"node{number}", capacity=capacity)
        registry = RedisRegistry(url)
        node = Node(settings, folder / str(number), registry, children, local_encoder(settings, children), url=f"http://node{number}")
        leaving = asyncio.Event()
        had = claims.Claims(node, leaving)
        had.member.id = f"{had.member.id}.{number}"
        setattr(registry, "leave", _silent)  # noqa: B010
        async with had.taking_part():
            await had.kept()

    for number in range(first, first + count):
        works.append(asyncio.create_task(one(number)))
        await asyncio.sleep(0.05)
    await _asked_for_figures(lines, works)


async def only_load(first: int, count: int, nodes: int, capacity: int, streams: int, url: str) -> None:
    """Be nodes that only load Redis until stdin ends."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    works = [asyncio.create_task(load_nodes(first, count, nodes, Load(capacity, streams, SOURCE, POSITION_BYTES), url))]
    works[0].add_done_callback(lambda _: os._exit(1))  # its traceback says why
    await _asked_for_figures(lines, works)


async def _asked_for_figures(lines: asyncio.StreamReader, works: list[asyncio.Task[None]]) -> None:
    while line := await lines.readline():
        if line.strip() == b"die":
            works.pop().cancel()
        else:
            used = resource.getrusage(resource.RUSAGE_SELF)
            print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime}), flush=True)
    os._exit(0)


async def _silent(_: str) -> None:
    return


async def cost(nodes: int, streams: int, processes: int, seconds: float, whole: int) -> None:
    """Measure many nodes over one Redis."""
    children = Children()
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(children.aclose)
            url, client = await stack.enter_async_context(redis_at(Path(folder), children))
            capacity, loading = math.ceil(ROOM * streams / nodes), nodes - whole
            kinds = ["only-load"] * (processes - 1) + ["some-nodes"] if loading else ["some-nodes"] * processes
            of_kind = {"only-load": loading // max(1, processes - 1), "some-nodes": whole if loading else nodes // processes}
            running: list[Any] = []
            began_s, first = time.monotonic(), 0
            for index, kind in enumerate(kinds):
                argv = [sys.executable, "-m", "bench.control_plane", kind, str(first), str(of_kind[kind]), str(capacity), url, folder]
                first += of_kind[kind]
                with (Path(folder) / f"log{index}").open("wb") as log:
                    running.append(
                        await asyncio.create_subprocess_exec(
                            *argv, str(nodes), str(streams), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log
                        )
                    )
            try:
                while await client.zcard(KEYS.nodes()) < nodes:  # noqa: ASYNC110
                    await asyncio.sleep(0.5)
                took_s = time.monotonic() - began_s
                print(f"{nodes} nodes, {loading} of which only load Redis: all take part {took_s:.0f} s after the first was started")
                began_s = time.monotonic()
                left = [number for number in range(streams) if number % nodes >= loading]
                for start in range(0, len(left), REGISTERED_AT_ONCE):  # as operators do, and so that two cores can be many nodes
                    await registered(client, left[start : start + REGISTERED_AT_ONCE])
                    while (have := await sessions_of(client, streams) - streams + len(left)) < start:  # noqa: ASYNC110
                        await asyncio.sleep(0.2)
                    print(f"\r  {time.monotonic() - began_s:.0f} s: {have} of {len(left)} are claimed", end="", file=sys.stderr)
                while await sessions_of(client, streams) < streams:  # noqa: ASYNC110
                    await asyncio.sleep(0.5)
                took_s = time.monotonic() - began_s
                print(f"{len(left)} streams, registered {REGISTERED_AT_ONCE} at a time: all claimed after {took_s:.0f} s")
                await asyncio.sleep(15)
                await _steady(client, running, streams, nodes, whole, seconds)
                await _one_dies(client, running, streams, nodes)
            finally:
                for process in running:
                    if process.stdin:
                        process.stdin.close()
                await asyncio.gather(*(process.wait() for process in running))


async def _steady(client: Any, running: Sequence[Any], streams: int, nodes: int, whole: int, seconds: float) -> None:
    before, spent_s, began_s = await client.info("all"), await _cpu_s(running), time.monotonic()
    await asyncio.sleep(seconds)
    after, took_s = await client.info("all"), time.monotonic() - began_s
    cpu_s = [after_s - before_s for after_s, before_s in zip(await _cpu_s(running), spent_s, strict=True)]
    redis_s = sum(after[f"used_cpu_{kind}"] - before[f"used_cpu_{kind}"] for kind in ("user", "sys"))
    asked = after["total_commands_processed"] - before["total_commands_processed"]
    sent, got = ((after[name] - before[name]) / took_s / 1e6 for name in ("total_net_output_bytes", "total_net_input_bytes"))
    print(f"while all is well, over {took_s:.0f} s: {asked / took_s:.0f} commands/s, Redis {100 * redis_s / took_s:.1f} % of a core,")
    print(
        f"  {got:.2f} MB/s to Redis, {sent:.2f} MB/s from it, {after['used_memory'] / 2**20:.0f} MiB, {after['connected_clients']} clients;"
    )
    whole_s = cpu_s[-1] if whole < nodes else sum(cpu_s)
    print(f"  a whole node {100 * whole_s / took_s / whole:.2f} % of a core")
    if whole < nodes:
        print(f"  {nodes - whole} nodes that only load Redis {100 * sum(cpu_s[:-1]) / took_s:.0f} %, all together")
    kinds = {
        name.removeprefix("cmdstat_"): (told["calls"] - before.get(name, {"calls": 0})["calls"]) / took_s
        for name, told in after.items()
        if name.startswith("cmdstat_")
    }
    most = sorted(kinds.items(), key=lambda one: -one[1])[:8]
    reported = kinds.get("expire", 0)  # once with the figures of each segment
    print(f"  {reported:.0f} segments/s were reported, of {streams / SEGMENT_S:.0f}: what is less, the nodes had no time for")
    print("  most often: " + ", ".join(f"{name} {often:.0f}/s" for name, often in most))


async def _cpu_s(running: Sequence[Any]) -> list[float]:
    spent_s = []
    for process in running:
        process.stdin.write(b"cpu\n")
        spent_s.append(json.loads(await process.stdout.readline())["cpu_s"])
    return spent_s


async def _one_dies(client: Any, running: Sequence[Any], streams: int, nodes: int) -> None:
    lost = f"node{nodes - 1}"

    async def of_it() -> int:
        return int(await client.eval(COUNT, 0, KEYS.stream("s"), streams, "node", lost))

    its = await of_it()
    began_s = time.monotonic()
    running[-1].stdin.write(b"die\n")
    while left := await of_it():
        await asyncio.sleep(0.1)
        if time.monotonic() - began_s > 60:
            print(f"{left} of its streams were not claimed within 60 s")
            return
    print(f"one node died: its {its} streams were others' after {time.monotonic() - began_s:.1f} s (a lease is {LEASE_S:.0f} s)")


def main() -> None:
    """Read the command line, and measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = options.add_subparsers(dest="verb", required=True)
    notice = verbs.add_parser("notice")
    notice.add_argument("--streams", type=int, default=1000)
    notice.add_argument("--changes", type=int, default=200)
    many = verbs.add_parser("nodes")
    many.add_argument("--nodes", type=int, default=100)
    many.add_argument("--streams", type=int, default=10_000)
    many.add_argument("--processes", type=int, default=2)
    many.add_argument("--seconds", type=float, default=30.0)
    many.add_argument("--whole", type=int, default=0)
    for verb in ("some-nodes", "only-load"):
        some = verbs.add_parser(verb)
        for name, kind in (
            ("first", int),
            ("count", int),
            ("capacity", int),
            ("url", str),
            ("folder", Path),
            ("nodes", int),
            ("streams", int),
        ):
            some.add_argument(name, type=kind)
    chosen = options.parse_args()
    if chosen.verb == "notice":
        uvloop.run(noticed(chosen.streams, chosen.changes))
    elif chosen.verb == "nodes":
        uvloop.run(cost(chosen.nodes, chosen.streams, chosen.processes, chosen.seconds, chosen.whole or chosen.nodes))
    elif chosen.verb == "only-load":
        uvloop.run(only_load(chosen.first, chosen.count, chosen.nodes, chosen.capacity, chosen.streams, chosen.url))
    else:
        uvloop.run(some_nodes(chosen.first, chosen.count, chosen.capacity, chosen.url, chosen.folder))


if __name__ == "__main__":
    main()
