"""Four ladders on two cores: `python -m bench.overload [--seconds 90] [--streams 4] [--slots 2]`.

One source, 720p30 made by ffmpeg and then published segment by segment, is relayed as so many streams with the ladder 720p,480p,360p,audio
and as one stream without, all by one node. Halfway half of the streams are stopped. Prints, side by side from one run: by how much later
than without ladder each stream's segments were published (p50, longest), the part of its segments that lacks each rung, before and after
the half; and how many of the files that were listed answered 404 to a player that asks for everything each half second.

Takes a minute longer than told where the machine is busy: the source is made first. Ends by itself, leaves nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from statistics import median

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from hlsrelay.embedded import ffmpeg_path
from hlsrelay.hls.parse import parse
from hlsrelay.ladder import parse_ladder
from hlsrelay.log import start_logging
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.model import Snapshot, Stream
from hlsrelay.node import Node, local_encoder
from hlsrelay.processes import Children
from hlsrelay.settings import load_settings
from hlsrelay.site import RelaySite
from hlsrelay.web import create_app, serve
from hlsrelay.worker import relay_stream

LADDER = "720p,480p,360p,audio"
BARE = "bare"
PERIOD_S = 0.5
LISTED = 6


async def recorded(folder: Path, children: Children, segment_s: int) -> list[Path]:
    """Make the source's segments, 720p30 that moves, each beginning with an IDR; return them in order."""
    length = 10 * segment_s
    argv = [str(ffmpeg_path()), "-hide_banner", "-nostdin", "-loglevel", "error", "-y"]
    argv += ["-f", "lavfi", "-i", f"testsrc2=size=1280x720:rate=30:duration={length}", "-f", "lavfi", "-i", f"sine=duration={length}"]
    argv += ["-vf", "noise=alls=10:allf=t", "-c:v", "libx264", "-preset", "ultrafast", "-b:v", "4M", "-g", str(30 * segment_s)]
    argv += ["-keyint_min", str(30 * segment_s), "-sc_threshold", "0", "-c:a", "aac"]
    argv += ["-f", "segment", "-segment_time", str(segment_s), "-segment_format", "mpegts", str(folder / "%03d.ts")]
    await children.run(argv, purpose="bench source", deadline_s=300)
    return sorted(folder.glob("*.ts"))[:10]


def origin(files: list[Path], segment_s: int, now_s: Callable[[], float]) -> Starlette:
    """Publish the segments as a live source that begins anew, behind a DISCONTINUITY, each time all were shown."""
    began_s = now_s()

    async def answer(request: Request) -> Response:
        name = request.path_params["name"]
        if name.endswith(".ts"):
            return FileResponse(files[int(name.removesuffix(".ts")) % len(files)])
        newest = LISTED + int((now_s() - began_s) / segment_s)
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{segment_s}", f"#EXT-X-MEDIA-SEQUENCE:{newest - LISTED}"]
        lines.append(f"#EXT-X-DISCONTINUITY-SEQUENCE:{(newest - LISTED + len(files) - 1) // len(files)}")
        for number in range(newest - LISTED, newest):
            lines += [*(["#EXT-X-DISCONTINUITY"] if number % len(files) == 0 else []), f"#EXTINF:{segment_s:.3f},", f"{number}.ts"]
        return PlainTextResponse("\n".join([*lines, ""]), media_type="application/vnd.apple.mpegurl")

    return Starlette(routes=[Route("/{name}", answer)])


class Watch:
    """What a player of everything sees of a stream: when each number is listed first, which rungs are GAPs, what is not there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.first_s: dict[int, float] = {}
        self.gap: dict[tuple[str, int], bool] = {}
        self.missing: list[str] = []
        self._seen: object = None

    async def follow(self, client: httpx.AsyncClient) -> None:
        """Ask for all playlists again and again, and for each file that is new in them, until cancelled."""
        asked: set[str] = set()
        while True:
            for rung in ("source", *(LADDER.split(",") if self.name != BARE else ())):
                url = f"/live/{self.name}/{rung}/index.m3u8"
                answer = await client.get(url)
                if answer.status_code != 200:
                    if url in asked:
                        self.missing.append(url)
                    continue
                asked.add(url)
                playlist = parse(answer.content, f"file://{url}")
                for segment in playlist.segments if isinstance(playlist, Snapshot) else ():
                    self.gap[rung, segment.sequence] = segment.gap
                    path = segment.uri.removeprefix("file://")
                    if not segment.gap and path not in asked:
                        asked.add(path)
                        if (await client.head(path)).status_code != 200:
                            self.missing.append(path)
            await asyncio.sleep(PERIOD_S)

    def look(self, node: Node, now_s: float) -> None:
        """Take when each number is published from what the web server would answer now."""
        storage = node.storages.get(self.name)
        body = storage.playlists.get("source/index.m3u8") if storage else None
        if body is not None and body is not self._seen:
            self._seen = body
            playlist = parse(body, "file:///")
            for segment in playlist.segments if isinstance(playlist, Snapshot) else ():
                self.first_s.setdefault(segment.sequence, now_s)


async def timed(watches: dict[str, Watch], node: Node, now_s: Callable[[], float]) -> None:
    """Look at all streams again and again, until cancelled."""
    while True:
        for watch in watches.values():
            watch.look(node, now_s())
        await asyncio.sleep(0.02)


def row(watch: Watch, bare: Watch, target_duration_s: int, since_s: float, until_s: float) -> str:
    """Return a line of figures of a part of the time."""
    numbers = [number for number, at_s in watch.first_s.items() if since_s <= at_s < until_s and number in bare.first_s]
    late = [(watch.first_s[number] - bare.first_s[number]) / target_duration_s for number in numbers]
    if not late:
        return f"{watch.name:>6}  stopped"
    gaps = (sum(watch.gap.get((rung, number), True) for number in numbers) / len(numbers) for rung in LADDER.split(","))
    return f"{watch.name:>6} {len(numbers):>9} {median(late):>9.2f} {max(late):>9.2f}   " + " ".join(f"{gap:>6.0%}" for gap in gaps)


async def measured(options: argparse.Namespace, folder: Path) -> None:
    """Relay, watch, and print."""
    now_s, children, leaving = asyncio.get_running_loop().time, Children(), asyncio.Event()
    segment_s, names = options.segment_s, [f"s{index}" for index in range(options.streams)]
    files = await recorded(folder, children, segment_s)
    registry = MemoryRegistry()
    settings = load_settings(data=folder, allow_networks=(ip_network("127.0.0.0/8"),), transcode_slots=options.slots)
    node = Node(settings, folder / "live", registry, children, local_encoder(settings, children))
    async with serve(origin(files, segment_s, now_s), "127.0.0.1:0") as source, serve(create_app(RelaySite(node)), "127.0.0.1:0") as site:
        streams = [Stream(name, f"{source}/live.m3u8", ladder=() if name == BARE else parse_ladder(LADDER)) for name in (BARE, *names)]
        for one in streams:
            await registry.register(one.id, {"source": one.source, "ladder": "" if one.id == BARE else LADDER})
        relays = [asyncio.create_task(relay_stream(one, node, leaving)) for one in streams]
        watches = {one.id: Watch(one.id) for one in streams}
        async with httpx.AsyncClient(base_url=site, timeout=30) as client:
            watching = [asyncio.create_task(watch.follow(client)) for watch in watches.values()]
            watching.append(asyncio.create_task(timed(watches, node, now_s)))
            began_s = now_s()
            await asyncio.sleep(options.seconds / 2)
            half_s = now_s()
            for name in names[: options.streams // 2]:
                await registry.change(name, {"desired": "stop"})
            await asyncio.sleep(options.seconds / 2)
            for task in watching:
                task.cancel()
            ended = [result for result in await asyncio.gather(*watching, return_exceptions=True) if isinstance(result, Exception)]
        told = {name: registry.streams[name].get("ladder_trouble", "") for name in names}
        leaving.set()
        await asyncio.gather(*relays)
    await children.aclose()
    for error in ended:
        print(f"a player gave up: {error!r}")
    parts = {"all streams": (began_s, half_s), "half of them, as they recover": (half_s, half_s + (now_s() - half_s) / 2)}
    for title, (since_s, until_s) in {**parts, "half of them, later": (parts["half of them, as they recover"][1], now_s())}.items():
        print(
            f"\n{title}\nstream  segments  late p50  late max   GAPs: "
            + " ".join(LADDER.split(","))
            + "     (late: target durations, against no ladder)"
        )
        for name in names:
            print(row(watches[name], watches[BARE], segment_s, since_s, until_s))
    missing = [path for watch in watches.values() for path in watch.missing]
    print(f"\nanswers other than 200 to what was listed: {len(missing)} {missing[:3] or ''}")
    print("told at the end: " + ", ".join(f"{name}: {text or 'whole'}" for name, text in told.items()))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=90)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--segment-s", type=int, default=4)
    options = parser.parse_args()
    start_logging("text", level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measured(options, Path(folder)))


if __name__ == "__main__":
    main()
