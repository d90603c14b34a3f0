"""What it costs to serve, beside nginx on the same files: `python -m bench.serving [--rounds 5]`.

A relay of hlsrelay's (bench.node, one stream of the bench's own origin) and an nginx over the folder that it publishes are asked for
the same things in turn by one client, over kept connections: a 2 MB segment, a playlist. CPU is that of the server's processes alone,
less what the relay takes when nobody asks; the ratio of each round counts. Then what stalled clients cost in memory: they ask for a
segment and read no more than its first bytes. Then viewers of one light stream on one core: each loads the playlist and a segment once
a target duration, over a connection of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import probe
from bench.__main__ import FOLDER, SHARED_MEMORY, default_cache
from bench.origin import ROOT, free_port, listening, media, program, serving
from bench.schedule import stream_name
from hlsrelay.log import start_logging
from hlsrelay.processes import Children

SEGMENT_S = 4.0
SEGMENTS, PLAYLISTS = 150, 3000
"""Asked for in each round."""
LIGHT_BYTES = 60_000
"""A segment of a stream of 120 kbit/s, that of the viewers: on one machine all bytes are copied by the cores that serve them."""
STALLED_AFTER_BYTES = 1000
SETTLED_S = 2.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs: its processes, and where below it the stream's files are."""

    name: str
    port: int
    root: str
    pids: Sequence[int]


def nginx_config(folder: Path, port: int, live: Path) -> str:
    """Return what deploy/nginx.conf comes to for one folder."""
    return f"""
daemon off; pid {folder}/pid; worker_processes 1; {"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 8192; }}
worker_rlimit_nofile 16384;
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_timeout 75s; keepalive_requests 1000000; open_file_cache off;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    types {{ application/vnd.apple.mpegurl m3u8; video/mp2t ts; }}
    server {{ listen 127.0.0.1:{port} backlog=4096; location /live/ {{ alias {live}/; }} }}
}}
"""


@asynccontextmanager
async def both(cache: Path, data: Path) -> AsyncGenerator[tuple[Server, Server, Path], None]:
    """Run a relay and an nginx over what it publishes; gives them, and the folder of the stream."""
    children = Children()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(children.aclose)
        files = await media(cache, SEGMENT_S, 40, children)
        origin = await stack.enter_async_context(serving(data / "origin", files, children, streams=1, segment_s=SEGMENT_S, listed=6))
        port, nginx_port = free_port(), free_port()
        env = {
            "HLSRELAY_DATA": str(data / "data"),
            "HLSRELAY_HTTP": f"127.0.0.1:{port}",
            "HLSRELAY_ALLOW_NETWORKS": "127.0.0.0/8",
            "HLSRELAY_LOG": "json",
        }
        url = origin.playlist(0).replace(stream_name(0), "{}", 1)
        argv = [sys.executable, "-m", "bench.node", "1", url, "--window", "120"]
        relay = await stack.enter_async_context(children.spawn(argv, purpose="hlsrelay", cwd=ROOT, env=env))
        live = data / "data" / "live"
        config = data / "nginx.conf"
        config.write_text(nginx_config(data, nginx_port, live))
        argv = [program("nginx"), "-c", str(config), "-p", str(data), "-e", str(data / "error")]
        nginx = await stack.enter_async_context(children.spawn(argv, purpose="nginx"))
        await listening(nginx_port, nginx)
        folder = live / stream_name(0) / "source"
        async with asyncio.timeout(60):
            while not (folder / "index.m3u8").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        root = f"/live/{stream_name(0)}/source"
        yield (
            Server("hlsrelay", port, root, [relay.pid]),
            Server("nginx", nginx_port, root, sorted(probe.tree([nginx.pid]))),
            folder,
        )


def newest(folder: Path) -> str:
    """Return the segment that stays listed longest from now on."""
    return [line for line in (folder / "index.m3u8").read_text().splitlines() if line and not line.startswith("#")][-1]


def get(connection: socket.socket, path: str, into: memoryview) -> int:
    """Ask for *path* over a kept connection and return how long the answer's body was. Raises ConnectionError for all but 200."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    got = 0
    while (end := bytes(into[:got]).find(b"\r\n\r\n")) < 0:
        got += (more := connection.recv_into(into[got:]))
        if not more:
            raise ConnectionError("cut off in the head")
    head = bytes(into[:end]).lower()
    if not head.startswith(b"http/1.1 200"):
        raise ConnectionError(head.partition(b"\r\n")[0].decode())
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    left = length - (got - end - 4)
    while left:
        more = connection.recv_into(into[: min(left, len(into))])
        if not more:
            raise ConnectionError("cut off in the body")
        left -= more
    return length


def asked(server: Server, name: str, times: int) -> tuple[float, int]:
    """Ask for a file again and again; returns the CPU seconds of the server, and its size."""
    buffer = memoryview(bytearray(1 << 20))
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        path = f"{server.root}/{name}"
        get(connection, path, buffer)
        before_s = probe.cpu_s(server.pids)
        size = [get(connection, path, buffer) for _ in range(times)][-1]
        return probe.cpu_s(server.pids) - before_s, size


async def per_request(servers: Sequence[Server], folder: Path, rounds: int) -> None:
    """Print what a segment and a playlist cost each, and the ratio."""
    relay = servers[0]
    before_s, began_s = probe.cpu_s(relay.pids), time.monotonic()
    await asyncio.sleep(2 * SEGMENT_S)
    idle = (probe.cpu_s(relay.pids) - before_s) / (time.monotonic() - began_s)
    print(f"the relay takes {idle:.4f} of a core when nobody asks")
    for what, times in (("segment", SEGMENTS), ("playlist", PLAYLISTS)):
        found: dict[str, list[float]] = {one.name: [] for one in servers}
        size = 0
        for _ in range(rounds):
            for server in servers:
                name = newest(folder) if what == "segment" else "index.m3u8"
                began_s = time.monotonic()
                used_s, size = await asyncio.to_thread(asked, server, name, times)
                used_s -= idle * (time.monotonic() - began_s) if server is relay else 0.0
                found[server.name].append(used_s / times * 1e6)
        ratio = median(ours / theirs for ours, theirs in zip(found[relay.name], found["nginx"], strict=True))
        told = ", ".join(f"{name} {median(times_us):.0f} us" for name, times_us in found.items())
        print(f"{what} of {size:,} bytes: {told} of CPU a request; {ratio:.2f} x nginx (median of {rounds} rounds)")


async def stalled(server: Server, folder: Path, count: int) -> None:
    """Print what clients cost that ask for a segment and stop reading."""
    before = probe.pss_bytes(server.pids)
    path = f"{server.root}/{newest(folder)}"
    clients = []
    try:
        for _ in range(count):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.setblocking(False)
            clients.append(one)
            await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", server.port))
            await asyncio.get_running_loop().sock_sendall(one, f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        for one in clients:
            await asyncio.get_running_loop().sock_recv(one, STALLED_AFTER_BYTES)
        await asyncio.sleep(SETTLED_S)
        more = (probe.pss_bytes(server.pids) - before) / 2**20
        print(f"{count} clients stalled in the middle of a segment: {server.name} takes {more:.1f} MiB more")
    finally:
        for one in clients:
            one.close()


@dataclass(slots=True)
class Watched:
    """What viewers saw."""

    playlists: int = 0
    segments: int = 0
    octets: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    slowest_s: float = 0.0


async def watch(server: Server, name: str, until_s: float, seen: Watched, phase_s: float) -> None:
    """Be a viewer: a playlist and a segment each target duration over one connection."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(phase_s)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        while loop.time() < until_s:
            began_s = loop.time()
            for path in (f"{server.root}/index.m3u8", name):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
                asked_s = loop.time()
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
                seen.slowest_s = max(seen.slowest_s, loop.time() - asked_s)
                if not head.startswith(b"HTTP/1.1 200"):
                    raise ConnectionError(head.partition(b"\r\n")[0].decode())
                seen.octets += len(body)
                if path == name:
                    seen.segments += 1
                else:
                    seen.playlists += 1
            await asyncio.sleep(max(0.0, SEGMENT_S - (loop.time() - began_s)))
    except (OSError, EOFError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        seen.failed[reason] = seen.failed.get(reason, 0) + 1
    finally:
        writer.close()


async def real_player(server: Server, seconds: float) -> str:
    """Return what a player says of the stream, and how many pictures it showed."""
    source = f"http://127.0.0.1:{server.port}{server.root}/index.m3u8"
    argv = [program("ffmpeg"), "-hide_banner", "-nostdin", "-loglevel", "warning", "-stats", "-re", "-i", source]
    argv += ["-t", f"{seconds:g}", "-c", "copy", "-map", "0:v", "-f", "null", "-"]
    children = Children()
    try:
        done = await children.run(argv, purpose="player", deadline_s=seconds + 60)
    finally:
        await children.aclose()
    *warnings, last = re.split(r"[\r\n]+", done.stderr_tail.strip())
    frames = re.search(r"frame=\s*(\d+)", last)
    said = sum(not one.startswith("frame=") for one in warnings)
    return f"{frames[1] if frames else 0} pictures of {seconds * 25:.0f}, {said} warnings"


async def viewers(server: Server, folder: Path, count: int, seconds: float) -> None:
    """Print how many viewers at once were served on one core, which the relay is bound to meanwhile."""
    light = folder / "light.ts"
    light.write_bytes(os.urandom(LIGHT_BYTES))
    allowed = {pid: os.sched_getaffinity(pid) for pid in server.pids}
    for pid, cores in allowed.items():
        os.sched_setaffinity(pid, {min(cores)})
    try:
        seen, loop = Watched(), asyncio.get_running_loop()
        until_s = loop.time() + SEGMENT_S + seconds
        before_s, began_s = probe.cpu_s(server.pids), time.monotonic()
        player = asyncio.create_task(real_player(server, seconds))
        works = (watch(server, f"{server.root}/light.ts", until_s, seen, SEGMENT_S * index / count) for index in range(count))
        await asyncio.gather(*works)
        took_s = time.monotonic() - began_s
        said = await player
        used = (probe.cpu_s(server.pids) - before_s) / took_s
        failed = sum(seen.failed.values())
        print(
            f"{count} viewers of one stream for {took_s:.0f} s, {server.name} on one core: {seen.playlists} playlists and "
            f"{seen.segments} segments, {seen.octets * 8 / took_s / 1e6:.0f} Mbit/s, {failed} failed {seen.failed or ''}; "
            f"slowest answer {seen.slowest_s:.2f} s; {used:.0%} of the core. An ffmpeg that plays the stream itself among them: {said}"
        )
    finally:
        light.unlink()
        for pid, cores in allowed.items():
            os.sched_setaffinity(pid, cores)


async def bench(rounds: int, clients: int, count: int, seconds: float) -> None:
    """Measure all."""
    parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    data = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-", dir=parent))
    try:
        async with both(default_cache(), data) as (relay, nginx, folder):
            await asyncio.sleep(2 * SEGMENT_S)
            await per_request((relay, nginx), folder, rounds)
            for server in (relay, nginx):
                await stalled(server, folder, clients)
            await viewers(relay, folder, count, seconds)
    finally:
        shutil.rmtree(data, ignore_errors=True)


def main() -> None:
    """Read the command line, and measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="how often each is asked, in turn (%(default)s)")
    options.add_argument("--stalled", type=int, default=1000, help="clients that stall (%(default)s)")
    options.add_argument("--viewers", type=int, default=2000, help="viewers at once (%(default)s)")
    options.add_argument("--seconds", type=float, default=20.0, help="how long they watch (%(default)s)")
    chosen = options.parse_args()
    start_logging("text")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(bench(chosen.rounds, chosen.stalled, chosen.viewers, chosen.seconds))


if __name__ == "__main__":
    main()
