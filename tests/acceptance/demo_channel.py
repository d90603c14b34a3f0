"""A process that runs the built-in channel: `python -m tests.acceptance.demo_channel [FFMPEG]`. Prints its URL; SIGINT ends it."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import structlog

from hlsrelay.demo_origin import serve_channel


async def main(ffmpeg: Path | None) -> None:
    await serve_channel("127.0.0.1:0", lambda url: print(url, flush=True), ffmpeg=ffmpeg)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
