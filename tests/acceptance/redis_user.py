"""A process that uses a data directory's Redis: `python -m tests.acceptance.redis_user DATA SERVER`.

Prints one JSON line per `ensure`: at once, then for each line on stdin. Ends well when stdin does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import structlog

from hlsrelay.embedded import EmbeddedRedis
from hlsrelay.processes import Children


async def main(data: Path, server: Path) -> None:
    children = Children()
    redis = EmbeddedRedis(data, children, server=server)
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    try:
        while True:
            url = await redis.ensure()
            pids = [child.pid for child in children.running()]
            print(json.dumps({"url": url, "owned": redis.owned, "pids": pids}), flush=True)
            if not await lines.readline():
                break
    finally:
        transport.close()
        await redis.aclose()
        await children.aclose()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
