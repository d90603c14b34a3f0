"""What the web server asks of the relay: the seam between the two."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hlsrelay.edge import Fetched
from hlsrelay.statuses import NodeStatus, StreamStatus


class Site(Protocol):
    """The relay as its web server sees it. Nothing here may block: it is called between two chunks of somebody's segment."""

    @property
    def live_dir(self) -> Path:
        """The folder whose files are served below /live."""

    def playlist(self, path: str) -> bytes | None:
        """Return a playlist as last published ('news/720p/index.m3u8'); None: not ours, look on disk. The same object until it changes."""

    def waits(self, path: str) -> bool:
        """Note that a player asks for *path*, playlist or segment; returns whether `started` is to be waited for first."""

    async def started(self, path: str) -> str:
        """Wait until a stream that is relayed on demand has something to show; returns why it has not, empty if it has."""

    def elsewhere(self, path: str) -> bool:
        """Say whether *path* is of a stream that another node relays, into a folder that is not ours."""

    async def fetched(self, path: str) -> Fetched:
        """Return what that node has at *path*: fetched once, however many ask."""

    def is_stored(self, path: str) -> bool:
        """Say whether a file that is not in the folder can be had from where our streams are published."""

    async def brought(self, path: str) -> None:
        """Have that file in the folder: fetched once, however many ask."""

    def handed_on(self, stream_id: str) -> bytes | None:
        """Return what our folder says of a stream to another node, its next owner (ledger.handed_on); None where it says nothing."""

    async def streams(self) -> list[StreamStatus]:
        """Return every registered stream, soon: what is known now, rather than waiting for Redis."""

    async def nodes(self) -> list[NodeStatus]:
        """Return every hlsrelay process that has told of itself lately, with its children; ours first."""

    def ready(self) -> bool:
        """Say whether a load balancer should send viewers here (false while draining)."""

    def hears_redis(self) -> bool:
        """Say whether Redis answers: other nodes ask that whom it does not answer (session)."""

    def metrics(self) -> bytes:
        """Return the figures in Prometheus' text format."""
