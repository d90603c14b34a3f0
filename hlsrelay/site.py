"""The node as its web server and its commands show it: joins what Redis says with what is published here."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from hlsrelay import vitals
from hlsrelay.demand import START_WITHIN_S
from hlsrelay.edge import LOOKED_EVERY_S, Fetched
from hlsrelay.errors import ConfigError, RegistryUnavailable
from hlsrelay.fields import Registered
from hlsrelay.ledger import handed_on
from hlsrelay.node import Node
from hlsrelay.statuses import NodeStatus, StreamStatus, read_all, stream_status
from hlsrelay.storage import MULTIVARIANT, LocalStorage


class RelaySite:
    """The node as its web server sees it (web.Site)."""

    FRESH_S = 1.0

    def __init__(self, node: Node) -> None:
        self._node = node
        self._known: list[Registered] = []
        self._asked_s = float("-inf")
        self._nodes: list[NodeStatus] = []
        self._asked_nodes_s = float("-inf")

    @property
    def live_dir(self) -> Path:
        """See web.Site."""
        return self._node.live

    def playlist(self, path: str) -> bytes | None:
        """See web.Site."""
        stream_id, _, rest = path.partition("/")
        storage = self._node.storages.get(stream_id)
        return storage.playlists.get(rest) if storage else None

    def waits(self, path: str) -> bool:
        """See web.Site."""
        if self._node.caches.pulling(path):  # a cache asks for us: else a stream that is on_demand would be its own viewer
            return False
        stream_id, playlist = path.partition("/")[0], path.endswith(".m3u8")
        demand = self._node.demands.get(stream_id)
        return demand is not None and (demand.asked(playlist=playlist) or self._begins(path))

    async def started(self, path: str) -> str:
        """See web.Site."""
        stream_id = path.partition("/")[0]
        demand = self._node.demands.get(stream_id)
        reason = await demand.started() if demand and demand.asked(playlist=path.endswith(".m3u8")) else ""
        until_s = self._node.clock.monotonic_s() + START_WITHIN_S
        while not reason and self._begins(path):
            if self._node.clock.monotonic_s() >= until_s:
                reason = "nothing of it is published yet"
            await asyncio.sleep(LOOKED_EVERY_S)
        return f"stream '{stream_id}' can't be watched just now: {reason}" if reason else ""

    def elsewhere(self, path: str) -> bool:
        """See web.Site."""
        stream_id = path.partition("/")[0]
        return stream_id not in self._node.storages and self._node.edge.has(stream_id)

    async def fetched(self, path: str) -> Fetched:
        """See web.Site."""
        return await self._node.edge.get(path)

    def is_stored(self, path: str) -> bool:
        """See web.Site."""
        stream_id, _, rest = path.partition("/")
        storage = self._node.storages.get(stream_id)
        return storage is not None and storage.is_stored(rest)

    async def brought(self, path: str) -> None:
        """See web.Site."""
        stream_id, _, rest = path.partition("/")
        if storage := self._node.storages.get(stream_id):
            await storage.brought(rest)

    def handed_on(self, stream_id: str) -> bytes | None:
        """See web.Site."""
        try:
            return handed_on(self._node.storages.get(stream_id) or LocalStorage(self._node.live, stream_id))
        except (ConfigError, OSError):
            return None

    def _begins(self, path: str) -> bool:
        """Return whether a stream has come here without its files, and its playlist is not published yet: players need not hear of that."""
        stream_id, _, playlist = path.partition("/")
        if stream_id in self._node.coming:
            return True
        storage = self._node.storages.get(stream_id)
        if storage is None or playlist in storage.playlists or not playlist.endswith(".m3u8"):
            return False
        return playlist in storage.due or (not storage.playlists and not (storage.folder / MULTIVARIANT).exists())

    async def streams(self) -> list[StreamStatus]:
        """See web.Site: Redis is asked once a second at most, and not waited for longer than that."""
        now_s = self._node.clock.monotonic_s()
        if now_s - self._asked_s >= self.FRESH_S:
            self._asked_s = now_s
            with suppress(RegistryUnavailable, TimeoutError):
                async with asyncio.timeout(self.FRESH_S):
                    self._known = await self._node.registry.all()
        return [self._status(one) for one in self._known]

    def _status(self, one: Registered) -> StreamStatus:
        fields = one.fields
        demand = self._node.demands.get(one.id)
        plays = (demand and demand.starts) or self._node.edge.has(one.id) or (self._node.live / one.id / MULTIVARIANT).exists()
        return stream_status(one.id, fields, playing_url=f"/live/{one.id}/{MULTIVARIANT}" if plays else "")

    async def nodes(self) -> list[NodeStatus]:
        """See web.Site: ours as it is now, the others' as Redis told within the last second."""
        now_s = self._node.clock.monotonic_s()
        if now_s - self._asked_nodes_s >= self.FRESH_S:
            self._asked_nodes_s = now_s
            with suppress(RegistryUnavailable, TimeoutError):
                async with asyncio.timeout(self.FRESH_S):
                    self._nodes = read_all(await self._node.registry.told())
        ours = vitals.status_of(self._node)
        return [ours, *(one for one in self._nodes if one.parent != ours.parent)]

    def ready(self) -> bool:
        """See web.Site."""
        return not self._node.draining

    def hears_redis(self) -> bool:
        """See web.Site."""
        return self._node.hears_redis()

    def metrics(self) -> bytes:
        """See web.Site."""
        self._node.metrics.children.set(len(self._node.children.running()))
        return self._node.metrics.text()
