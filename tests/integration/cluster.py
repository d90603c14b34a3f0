"""Nodes with folders of their own that hand a stream to one another, in virtual time, and a player who loses nothing that was listed."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from hlsrelay.edge import Edge
from hlsrelay.hls.parse import parse
from hlsrelay.link import Claim
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.model import Snapshot
from hlsrelay.processes import Children
from hlsrelay.settings import load_settings
from hlsrelay.site import RelaySite
from hlsrelay.upstream import TransportFactory
from hlsrelay.web import create_app
from hlsrelay.worker import admitted, relay_stream
from tests.integration.on_demand_house import OfOrigins
from tests.integration.relaying import NoEncoder
from tests.integration.test_presentation import NAMES, Show
from tests.origin import Origin
from tests.playlists import URL
from tests.virtual import VirtualClock, elapse, run_virtually

WINDOW_S = 40
FIELDS = {"source": URL, "desired": "run", "window": str(WINDOW_S)}


@dataclass
class Network(httpx.AsyncBaseTransport):
    """Nodes by their host; those that are *down* can't be reached, and each answer of *slow* ones takes so long."""

    nodes: dict[str, httpx.ASGITransport] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    slow: dict[str, float] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        self.asked[f"{host}{request.url.path}"] += 1
        await elapse(self.slow.get(host, 0.002))
        if host in self.down:
            raise httpx.ConnectError("refused")
        return await self.nodes[host].handle_async_request(request)


@dataclass
class Place:
    """A node with a folder of its own, and what it relays."""

    name: str
    node: OfOrigins
    client: httpx.AsyncClient
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    relaying: asyncio.Task[float] | None = None

    @property
    def folder(self) -> Path:
        return self.node.live / "news"

    def files(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.glob("[!.]*/*") if path.suffix != ".m3u8"}


@dataclass
class Cluster:
    """Nodes that hand a stream to one another, and a player of all its playlists who never loses a segment that was listed."""

    registry: MemoryRegistry
    network: Network
    places: dict[str, Place]
    owner: str = ""
    contents: dict[tuple[str, int], bytes] = field(default_factory=dict)
    had: set[tuple[object, ...]] = field(default_factory=set)
    """What was had since a stream changed hands, or a node was gone: it is not asked for each time."""
    lasts: dict[str, int] = field(default_factory=dict)
    firsts: dict[str, int] = field(default_factory=dict)

    async def takes(self, name: str, *, until: str = "running") -> None:
        """Have a node claim the stream that nobody has, or whose owner is as good as dead, and wait for that state."""
        place, registry = self.places[name], self.registry
        found, life = await registry.follow("news")
        assert found is not None
        epoch = await registry.claim("news", name, {"node": name, "wanted": ""}, dead=found.fields.get("session", ""))
        assert epoch > 0
        stream = await admitted(found, place.node)
        place.leaving.clear()
        claim = Claim(found, name, epoch, life)
        place.relaying = asyncio.create_task(relay_stream(stream, place.node, place.leaving, claim))
        self.owner = name
        await self.until(lambda: place.node.storages)
        if until:
            await self.until(lambda: registry.streams["news"].get("state") == until)

    async def lets_go(self) -> None:
        """Have the owner hand the stream on, as at TERM or `move`."""
        place = self.places[self.owner]
        place.leaving.set()
        assert place.relaying is not None
        await place.relaying

    async def is_killed(self) -> None:
        """The owner is no more: it says nothing, and can't be reached."""
        place = self.places[self.owner]
        assert place.relaying is not None
        self.network.down.add(place.name)
        self.registry.report = _lost  # type: ignore[assignment, method-assign]
        place.relaying.cancel()
        await asyncio.gather(place.relaying, return_exceptions=True)
        del self.registry.report

    async def until(self, reached: Callable[[], object], within_s: float = 60.0) -> None:
        async with asyncio.timeout(within_s):
            while not reached():
                await elapse(0.05)

    async def half_moved(self, files: int, slow_s: float) -> int:
        """Fill a window at a, and have it handed to b, who has so many of its files yet. Returns how many entries the window has."""
        await self.takes("a")
        await self.fills()
        whole = len((await self.listed()).segments)
        self.network.slow["a"] = slow_s
        await self.lets_go()
        await self.takes("b", until="")
        await self.until(lambda: len(self.places["b"].files()) >= files)
        return whole

    async def plays(self, seconds: float, at: str = "", *, fewest: int = 0) -> None:
        """Look at all that is listed now and then, at the node *at* or the owner; each list has *fewest* entries at least."""
        until_s = asyncio.get_running_loop().time() + seconds
        while True:
            for name in re.findall(r"(?m)^([^#\n]+)/index\.m3u8$", (await self.got("index.m3u8", at)).decode()):
                listed = await self.listed(name, at)
                assert len(listed.segments) >= fewest, f"{name} lists {len(listed.segments)} entries"
            if asyncio.get_running_loop().time() >= until_s:
                return
            await elapse(4)

    async def fills(self) -> None:
        """Wait until the window is as long as it gets."""
        await elapse(1.2 * WINDOW_S)
        await self.plays(0)

    async def listed(self, name: str = "source", at: str = "") -> Snapshot:
        """Return a playlist; it never goes back, and all that it lists can be had and never changes."""
        text = await self.got(f"{name}/index.m3u8", at)
        snapshot = parse(text, "file:///")
        assert isinstance(snapshot, Snapshot)
        assert snapshot.segments[-1].sequence >= self.lasts.get(name, 0), "the sequence goes back"
        assert snapshot.media_sequence >= self.firsts.get(name, 0)
        self.lasts[name], self.firsts[name] = snapshot.segments[-1].sequence, snapshot.media_sequence
        beside = re.findall(r'URI="([^":]+)"', text.decode())
        for path in beside:
            await self.got(f"{name}/{path}", at)
        for one in snapshot.segments:
            had = (name, one.sequence, self.owner, at, *sorted(self.network.down))
            if not one.gap and (had not in self.had or one in (snapshot.segments[0], snapshot.segments[-1])):
                self.had.add(had)
                body = await self.got(f"{name}/{one.uri.removeprefix('file:///')}", at)
                assert self.contents.setdefault((name, one.sequence), body) == body
        return snapshot

    async def got(self, path: str, at: str = "") -> bytes:
        answer = await self.places[at or self.owner].client.get(f"/live/news/{path}")
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:200]}"
        return answer.content


async def _lost(*_: object) -> bool:
    return True


@asynccontextmanager
async def cluster(at: Path, origin: Origin | Tracks, names: str, fields: dict[str, str], encoder: object) -> AsyncGenerator[Cluster, None]:
    registry, network = MemoryRegistry(), Network()
    await registry.register("news", FIELDS | fields)
    whole = Cluster(registry, network, {})
    for name in names:
        folder = at / name
        folder.mkdir()
        node = OfOrigins(load_settings(), folder, registry, Children(), encoder, clock=VirtualClock())  # type: ignore[arg-type]
        node.origin, node.url = origin, f"http://{name}"  # type: ignore[assignment]
        node.elsewhere = lambda _, name=name: f"http://{whole.owner}" if whole.owner != name else ""  # type: ignore[misc]
        node.edge = Edge(node.elsewhere, asyncio.get_running_loop().time, network)
        serving = httpx.ASGITransport(create_app(RelaySite(node)), raise_app_exceptions=True)
        network.nodes[name] = serving
        whole.places[name] = Place(name, node, httpx.AsyncClient(transport=serving, base_url=f"http://{name}"))
    try:
        yield whole
    finally:
        for place in whole.places.values():
            if place.relaying:
                place.relaying.cancel()
                await asyncio.gather(place.relaying, return_exceptions=True)
            await place.node.edge.aclose()
            await place.client.aclose()


def played(
    at: Path,
    play: Callable[[Cluster], Awaitable[None]],
    origin: Origin | Tracks | None = None,
    names: str = "abc",
    encoder: object | None = None,
    **fields: str,
) -> None:
    async def within() -> None:
        async with cluster(at, origin or Origin(), names, fields, encoder or NoEncoder()) as whole:
            await play(whole)

    run_virtually(within())


class Tracks:
    """A source of several media playlists."""

    def __init__(self) -> None:
        base = URL.rpartition("/")[0]
        self._origins = {track: Origin(name=track, base=f"{base}/{track}") for track in NAMES}

    def transport(self) -> TransportFactory:
        return Show(None, None, None, self._origins).transport()  # type: ignore[arg-type]
