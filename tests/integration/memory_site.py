"""A site for the web server's tests: it has what a test puts into it."""

from __future__ import annotations

import os
from pathlib import Path

from hlsrelay.edge import Fetched
from hlsrelay.statuses import NodeStatus, StreamStatus
from hlsrelay.web.files import CHUNK_BYTES

PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6.0,\n812.ts\n"
SEGMENT = bytes(range(256)) * 40
LONG = os.urandom(CHUNK_BYTES * 2 + 77)
SLOW = 16 * 2**20


class MemorySite:
    """A site that has what the test puts into it."""

    def __init__(self, data: Path) -> None:
        self.live_dir = data / "live"
        self.published: dict[str, bytes] = {"news/720p/index.m3u8": PLAYLIST}
        self.known: list[StreamStatus] = []
        self.nodes_known: list[NodeStatus] = []
        self.fault: Exception | None = None
        self.is_ready = True
        self.cold = ""
        self.owners: dict[str, Fetched] = {}
        self.stored: dict[str, bytes] = {}
        folder = self.live_dir / "news" / "720p"
        folder.mkdir(parents=True)
        (folder / "812.ts").write_bytes(SEGMENT)
        (folder / "813.ts").write_bytes(LONG)

    def playlist(self, path: str) -> bytes | None:
        return self.published.get(path)

    def waits(self, path: str) -> bool:
        return path.startswith("cold/")

    async def started(self, path: str) -> str:
        return self.cold

    def elsewhere(self, path: str) -> bool:
        return path in self.owners

    async def fetched(self, path: str) -> Fetched:
        return self.owners[path]

    def is_stored(self, path: str) -> bool:
        return path in self.stored

    async def brought(self, path: str) -> None:
        if body := self.stored.pop(path):
            (self.live_dir / path).write_bytes(body)

    def handed_on(self, stream_id: str) -> bytes | None:
        return None

    async def streams(self) -> list[StreamStatus]:
        if self.fault is not None:
            raise self.fault
        return self.known

    async def nodes(self) -> list[NodeStatus]:
        return self.nodes_known

    def ready(self) -> bool:
        return self.is_ready

    def hears_redis(self) -> bool:
        return True

    def metrics(self) -> bytes:
        return b"hlsrelay_up 1\n"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
