"""A relay's web server without a relay: `python -m tests.acceptance.page_server <data> [page_dir]` serves <data>/live from disk.

Prints its URL, then serves until it is told to stop. Every folder in <data>/live is a running stream; <data>/streams.json,
where it exists, says what the page shows instead. Each <data>/processes/*.json is what a node tells of its children.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from hlsrelay.edge import Fetched
from hlsrelay.statuses import NodeStatus, StreamStatus, read
from hlsrelay.web import create_app, serve
from hlsrelay.web.app import PAGE_DIR


class DiskSite:
    """A site whose streams are the folders that are there."""

    def __init__(self, data: Path) -> None:
        self.live_dir = data / "live"
        self._told = data / "streams.json"
        self._processes = data / "processes"

    def playlist(self, path: str) -> bytes | None:
        return None

    def waits(self, path: str) -> bool:
        return False

    async def started(self, path: str) -> str:
        return ""

    def elsewhere(self, path: str) -> bool:
        return False

    async def fetched(self, path: str) -> Fetched:
        raise AssertionError(path)

    def is_stored(self, path: str) -> bool:
        return False

    async def brought(self, path: str) -> None:
        raise AssertionError(path)

    def handed_on(self, stream_id: str) -> bytes | None:
        return None

    async def streams(self) -> list[StreamStatus]:
        if self._told.exists():
            return [StreamStatus(**fields) for fields in json.loads(self._told.read_bytes())]
        found = [folder.name for folder in sorted(self.live_dir.iterdir()) if (folder / "index.m3u8").exists()]
        return [StreamStatus(id=name, desired="run", state="running", playing_url=f"/live/{name}/index.m3u8") for name in found]

    async def nodes(self) -> list[NodeStatus]:
        return [status for one in self._processes.glob("*.json") if (status := read(one.read_text()))]

    def ready(self) -> bool:
        return True

    def hears_redis(self) -> bool:
        return True

    def metrics(self) -> bytes:
        return b""


async def run(data: Path, page_dir: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve(create_app(DiskSite(data), page_dir=page_dir), "127.0.0.1:0") as url:
        print(url, flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else PAGE_DIR))
