"""The node as its web server and its commands show it: joins what Redis says with what is published here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hlsrelay.errors import RegistryUnavailable
from hlsrelay.fields import Registered
from hlsrelay.model import Desired
from hlsrelay.urls import redacted
from hlsrelay.web.site import StreamStatus
from hlsrelay.worker import Node


class RelaySite:
    """The node as its web server sees it (web.Site)."""

    FRESH_S = 1.0

    def __init__(self, node: Node) -> None:
        self._node = node
        self._known: list[Registered] = []
        self._asked_s = float("-inf")

    @property
    def live_dir(self) -> Path:
        """See web.Site."""
        return self._node.live

    def playlist(self, path: str) -> bytes | None:
        """See web.Site."""
        stream_id, _, rest = path.partition("/")
        storage = self._node.storages.get(stream_id)
        return storage.playlists.get(rest) if storage else None

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
        playlist = self._node.live / one.id / "index.m3u8"
        return status_of(one.id, fields, playing_url=f"/live/{one.id}/index.m3u8" if playlist.exists() else "")

    def ready(self) -> bool:
        """See web.Site."""
        return True

    def metrics(self) -> bytes:
        """See web.Site."""
        self._node.metrics.children.set(len(self._node.children.running()))
        return self._node.metrics.text()


def status_of(stream_id: str, fields: Mapping[str, str], playing_url: str = "") -> StreamStatus:
    """Return a stream's hash as pages, API and commands show it."""
    number, lag = fields.get("last_sequence", ""), fields.get("lag", "")
    return StreamStatus(
        id=stream_id,
        desired=fields.get("desired", Desired.RUN),
        state=fields.get("state", "registered"),
        node=fields.get("node", ""),
        since=fields.get("since", ""),
        source=redacted(fields.get("source", "")),
        ladder=fields.get("ladder", ""),
        last_sequence=int(number) if number.isdecimal() else None,
        lag_s=float(lag) if lag.replace(".", "", 1).isdecimal() else None,
        last_error=fields.get("last_error") or fields.get("reason", ""),
        ladder_trouble=fields.get("ladder_trouble", ""),
        playing_url=playing_url,
    )
