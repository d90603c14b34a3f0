"""A process of its own that reads one hostile URL, and tells what came of it and how much memory that took.

    python -m tests.acceptance.hostile_reader playlist|segment <good base URL> <hostile path>

It reads good things first, so that what it measures is the hostile one alone: the peak of resident memory is set back before it
(proc_pid_clear_refs), and read after it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from ipaddress import ip_network
from pathlib import Path

from hlsrelay import upstream as upstream_module
from hlsrelay.errors import HlsRelayError
from hlsrelay.model import SOURCE, Sink
from hlsrelay.upstream import Upstream
from tests.playlists import stream

DEADLINE_S = 60.0
"""Limits are to be met here and not deadlines, however busy the machine is."""


def resident_kib(name: str) -> int:
    """Return a figure of our own memory: VmRSS now, VmHWM at most."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


async def read(kind: str, base: str, path: str) -> dict[str, object]:
    """Read what is good, then what is not, then what is good again."""
    written = 0

    def restart() -> Sink:
        return write

    def write(chunk: bytes | memoryview) -> None:  # a segment goes to the disk as it comes
        nonlocal written
        written += len(chunk)

    async with Upstream((ip_network("127.0.0.0/8"),)) as upstream:

        async def good() -> int:
            await upstream.survey(stream(f"{base}/good.m3u8"))
            await upstream.fetch(f"{base}/good.ts", None, restart, DEADLINE_S)
            return len((await upstream.load(SOURCE)).segments)

        await good()
        error = ""
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_kib("VmRSS")
        try:
            if kind == "playlist":
                await upstream.survey(stream(f"{base}/{path}"))
            else:
                await upstream.fetch(f"{base}/{path}", None, restart, DEADLINE_S)
        except HlsRelayError as failure:
            error = f"{type(failure).__name__}: {failure}"
        grown_kib = resident_kib("VmHWM") - before
        return {"error": error, "grown_kib": grown_kib, "written": written, "good_after": await good()}


if __name__ == "__main__":
    upstream_module.PLAYLIST_DEADLINE_S = DEADLINE_S
    print(json.dumps(asyncio.run(read(*sys.argv[1:]))))
