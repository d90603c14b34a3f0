"""A node that relays one stream while somebody watches it, and its players, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from hlsrelay.fields import Registered
from hlsrelay.hls.parse import parse
from hlsrelay.hls.window import Progress
from hlsrelay.ledger import LocalLedger
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.model import Snapshot
from hlsrelay.node import Node
from hlsrelay.objects import Objects
from hlsrelay.processes import Children
from hlsrelay.settings import load_settings
from hlsrelay.site import RelaySite
from hlsrelay.storage import LocalStorage
from hlsrelay.upstream import Upstream
from hlsrelay.web import create_app
from hlsrelay.worker import admitted, relay_stream
from tests.integration.relaying import NoEncoder
from tests.origin import Origin
from tests.playlists import URL
from tests.virtual import VirtualClock, elapse, run_virtually

IDLE_S = 20
FIELDS = {"source": URL, "desired": "run", "window": "30", "on_demand": "yes", "idle_timeout": str(IDLE_S)}


@dataclass
class House:
    """A node that relays one stream, its registry, and its web server; players ask it in virtual time."""

    node: OfOrigins
    registry: MemoryRegistry
    client: httpx.AsyncClient
    leaving: asyncio.Event = field(default_factory=asyncio.Event)

    async def get(self, path: str = "index.m3u8", stream: str = "news") -> httpx.Response:
        return await self.client.get(f"/live/{stream}/{path}")

    async def media(self, track: str = "source") -> Snapshot:
        answer = (await self.get(f"{track}/index.m3u8")).raise_for_status()
        playlist = parse(answer.content, "file:///")
        assert isinstance(playlist, Snapshot)
        return playlist

    async def watched(self, seconds: float, every_s: float = 4.0) -> Snapshot:
        """Play for so long: a playlist every now and then. Returns the last."""
        until_s = now_s() + seconds
        while True:
            last = await self.media()
            if now_s() >= until_s:
                return last
            await elapse(every_s)

    async def state(self, wanted: str, within_s: float = 60.0) -> None:
        """Wait until the relay reports *wanted*."""
        async with asyncio.timeout(within_s):
            while self.registry.streams["news"].get("state") != wanted:  # the registry tells nobody that it changed
                await elapse(0.1)

    def playlists(self) -> list[str]:
        return sorted(path.name for path in self.folder.rglob("*.m3u8"))

    @property
    def folder(self) -> Path:
        return self.node.live / "news"

    def segments(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("source/*.ts"))


def now_s() -> float:
    return asyncio.get_running_loop().time()


class OfOrigins(Node):
    """A node whose sources are a test's."""

    origin: Origin
    refused = ""

    def connect(self) -> Upstream:
        return Upstream(transport=self.origin.transport())

    def refusal(self) -> str:
        return self.refused


def scenario(
    folder: Path,
    play: Callable[[House], Awaitable[None]],
    origin: Origin | None = None,
    objects: Objects | None = None,
    **fields: str,
) -> House:
    """Relay a stream in virtual time while *play* goes on; into a bucket, if there are *objects*."""

    async def run() -> House:
        registry = MemoryRegistry()
        await registry.register("news", FIELDS | fields)
        folder.mkdir(exist_ok=True)
        node = OfOrigins(load_settings(), folder, registry, Children(), NoEncoder(), clock=VirtualClock(), objects=objects)
        node.origin = origin or Origin()
        transport = httpx.ASGITransport(create_app(RelaySite(node)), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://relay") as client:
            house = House(node, registry, client)
            stream = await admitted(Registered("news", registry.streams["news"]), node)
            relaying = asyncio.create_task(relay_stream(stream, node, house.leaving))
            playing = asyncio.ensure_future(play(house))
            await asyncio.wait((relaying, playing), return_when=asyncio.FIRST_COMPLETED)
            if relaying.done():
                relaying.result()
            await playing
            house.leaving.set()
            await relaying
        return house

    return run_virtually(run())


def recorded(storage: LocalStorage) -> Progress:
    """Return what a stream's record says."""
    progress = LocalLedger(storage).resume()
    assert progress is not None
    return progress
