"""Who is measured: hlsrelay, and what users would take instead. How each is started, and where it gives what it relays.

All run with their documented defaults, except that segments are as long as the source's and playlists list as many as the source's,
and that ffmpeg removes what it no longer lists, without which no live relay could go on.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.installing import Programs
from bench.origin import ROOT, Origin, free_port, listening, program
from bench.schedule import stream_name
from hlsrelay.processes import Children

MEDIAFLOW_WORKERS = 3
"""What its own start script takes."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a peer is to do: relay the first *streams* streams of *origin*, into *folder*."""

    origin: Origin
    streams: int
    segment_s: float
    listed: int
    folder: Path
    children: Children

    def names(self) -> dict[str, str]:
        """Return the streams, and the URLs of their playlists at the origin."""
        return {stream_name(index): self.origin.playlist(index) for index in range(self.streams)}

    def folders(self) -> dict[str, Path]:
        """Return a folder for each stream, made."""
        found = {name: self.folder / name for name in self.names()}
        for folder in found.values():
            folder.mkdir(parents=True)
        return found


@dataclass(frozen=True, slots=True)
class Given:
    """Where a running peer gives the streams: playlists that it writes, or URLs at which it is pulled."""

    playlists: Mapping[str, Path] = field(default_factory=dict)
    urls: Mapping[str, str] = field(default_factory=dict)
    lag: Path | None = None
    """Where it tells how often its loop was how late (bench.node)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A relay that can be measured. *missing* tells why it can't be had, empty where it can; *often*: in each round, not only in one."""

    name: str
    relaying: Callable[[Task, Programs], AbstractAsyncContextManager[Given]]
    missing: Callable[[Programs], Awaitable[str]]
    often: bool = False
    most_streams: int = 200
    tls: bool = False
    """Whether it can be told to take a certificate that signs itself."""


async def _nothing(_: Programs) -> str:
    return ""


@asynccontextmanager
async def _hlsrelay(task: Task, _: Programs) -> AsyncGenerator[Given, None]:
    data = task.folder / "data"
    url = task.origin.playlist(0).replace(stream_name(0), "{}", 1)
    window_s = max(6.0, task.segment_s * task.listed)
    argv = [sys.executable, "-m", "bench.node", str(task.streams), url, "--window", f"{window_s:g}"]
    argv += ["--lag", str(task.folder / "lag")]
    argv += ["--trust", str(task.origin.certificate)] if task.origin.certificate else []
    env = {
        "HLSRELAY_DATA": str(data),
        "HLSRELAY_HTTP": "127.0.0.1:0",
        "HLSRELAY_ALLOW_NETWORKS": "127.0.0.0/8",
        "HLSRELAY_LOG": "json",
    }
    async with task.children.spawn(argv, purpose="hlsrelay", cwd=ROOT, env=env):
        playlists = {name: data / "live" / name / "source" / "index.m3u8" for name in task.names()}
        yield Given(playlists, lag=task.folder / "lag")


def ffmpeg_argv(source: str, playlist: Path, task: Task) -> list[str]:
    """Return the ffmpeg that relays *source*, a URL or `-`, into *playlist*."""
    # fmt: off
    return [
        program("ffmpeg"), "-hide_banner", "-nostdin", "-loglevel", "error", "-i", source,
        "-c", "copy", "-f", "hls", "-hls_time", f"{task.segment_s:g}", "-hls_list_size", str(task.listed),
        "-hls_flags", "delete_segments", str(playlist),
    ]
    # fmt: on


@asynccontextmanager
async def _ffmpeg(task: Task, _: Programs) -> AsyncGenerator[Given, None]:
    playlists = {name: folder / "index.m3u8" for name, folder in task.folders().items()}
    async with AsyncExitStack() as stack:
        for name, url in task.names().items():
            await stack.enter_async_context(task.children.spawn(ffmpeg_argv(url, playlists[name], task), purpose=f"ffmpeg {name}"))
        yield Given(playlists)


@asynccontextmanager
async def _streamlink(task: Task, programs: Programs) -> AsyncGenerator[Given, None]:
    streamlink, _ = await programs.python("streamlink")
    playlists = {name: folder / "index.m3u8" for name, folder in task.folders().items()}
    async with AsyncExitStack() as stack:
        for name, url in task.names().items():
            pulling = [str(streamlink), "--stdout", f"hls://{url}", "best"]
            writing = ffmpeg_argv("-", playlists[name], task)
            writing.remove("-nostdin")
            argv = ["sh", "-c", f"{shlex.join(pulling)} | {shlex.join(writing)}"]
            await stack.enter_async_context(task.children.spawn(argv, purpose=f"streamlink {name}"))
        yield Given(playlists)


async def _streamlink_missing(programs: Programs) -> str:
    return (await programs.python("streamlink"))[1]


@asynccontextmanager
async def _gstreamer(task: Task, _: Programs) -> AsyncGenerator[Given, None]:
    playlists = {name: folder / "index.m3u8" for name, folder in task.folders().items()}
    async with AsyncExitStack() as stack:
        for name, url in task.names().items():
            # hlssink2, not hlssink: that one cuts where an encoder made it a key picture, and there is no encoder here.
            # fmt: off
            argv = [
                "gst-launch-1.0", "-q", "souphttpsrc", f"location={url}", "!", "hlsdemux", "!", "tsdemux", "name=d",
                "d.", "!", "queue", "!", "h264parse", "!", "out.video", "d.", "!", "queue", "!", "aacparse", "!", "out.audio",
                "hlssink2", "name=out", f"target-duration={round(task.segment_s)}", f"playlist-length={task.listed}",
                f"location={playlists[name].parent / '%05d.ts'}", f"playlist-location={playlists[name]}",
            ]
            # fmt: on
            await stack.enter_async_context(task.children.spawn(argv, purpose=f"gstreamer {name}"))
        yield Given(playlists)


async def _gstreamer_missing(programs: Programs) -> str:
    packages = ("gstreamer1.0-tools", "gstreamer1.0-plugins-base", "gstreamer1.0-plugins-good", "gstreamer1.0-plugins-bad")
    return await programs.debian("gst-launch-1.0", packages)


@asynccontextmanager
async def _nginx(task: Task, _: Programs) -> AsyncGenerator[Given, None]:
    task.folder.mkdir(parents=True)
    port = free_port()
    config = task.folder / "nginx.conf"
    config.write_text(cache_config(task.folder, port, task.origin.url))
    argv = [program("nginx"), "-c", str(config), "-p", str(task.folder), "-e", str(task.folder / "error")]
    async with task.children.spawn(argv, purpose="nginx proxy_cache") as server:
        await listening(port, server)
        yield Given(urls={name: url.replace(task.origin.url, f"http://127.0.0.1:{port}") for name, url in task.names().items()})


def cache_config(folder: Path, port: int, origin: str) -> str:
    """Return the configuration of an nginx that caches segments, and playlists for a second, as its guides show it."""
    return f"""
daemon off; pid {folder}/pid; worker_processes auto; {"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 4096; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_timeout 75s;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    proxy_cache_path {folder}/cache levels=1:2 keys_zone=live:10m inactive=1m use_temp_path=off;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        proxy_cache live; proxy_cache_lock on; proxy_cache_use_stale updating;
        location ~ \\.m3u8$ {{ proxy_pass {origin}; proxy_ignore_headers Cache-Control; proxy_cache_valid 200 1s; }}
        location / {{ proxy_pass {origin}; proxy_cache_valid 200 1m; }}
    }}
}}
"""


@asynccontextmanager
async def _mediaflow(task: Task, programs: Programs) -> AsyncGenerator[Given, None]:
    python = (await programs.python("mediaflow-proxy"))[0].with_name("python")
    task.folder.mkdir(parents=True)
    port = free_port()
    argv = [str(python), "-m", "uvicorn", "mediaflow_proxy.main:app", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--workers", str(MEDIAFLOW_WORKERS)]
    async with task.children.spawn(argv, purpose="mediaflow-proxy", cwd=task.folder) as server:
        await listening(port, server)
        yield Given(urls={name: f"http://127.0.0.1:{port}/proxy/hls/manifest.m3u8?d={url}" for name, url in task.names().items()})


async def _mediaflow_missing(programs: Programs) -> str:
    return (await programs.python("mediaflow-proxy"))[1]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("ffmpeg", _ffmpeg, _nothing, often=True, tls=True),
        Peer("hlsrelay", _hlsrelay, _nothing, often=True, most_streams=500, tls=True),
        Peer("nginx proxy_cache", _nginx, _nothing),
        Peer("streamlink+ffmpeg", _streamlink, _streamlink_missing),
        Peer("gstreamer", _gstreamer, _gstreamer_missing),
        Peer("mediaflow-proxy", _mediaflow, _mediaflow_missing),
    )
}
