"""A player for relays that give nothing unless it is pulled: paced as RFC 8216 6.3.4 says, it takes every segment of many streams.

`python -m bench.player MEDIA-FOLDER OUT --streams FILE` plays what FILE names, a line `stream URL` for each.
A line of OUT for each segment that it has whole: `stream relay-number file seconds identical`: which of the source's files it is
(-1: none), when it was whole in seconds of the wall clock, and 1 where its bytes are the file's.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
import uvloop

from bench.identity import HEAD_BYTES, key_picture, prints_of
from bench.watching import listed

AT_LEAST_S = 0.25
AFTER_ERROR_S = 1.0


class Player:
    """Plays one stream: every segment once, in order."""

    def __init__(self, stream: str, url: str, session: aiohttp.ClientSession, tell: Callable[[str, int, bytes, float], None]) -> None:
        self._stream, self._url, self._session, self._tell = stream, url, session, tell
        self._newest: int | None = None

    async def play(self) -> None:
        """Play for ever; what fails is asked for again at the next load."""
        while True:
            started_s = time.monotonic()
            try:
                wait_s = await self.turn()
            except (aiohttp.ClientError, TimeoutError):
                wait_s = AFTER_ERROR_S
            await asyncio.sleep(max(0.0, started_s + wait_s - time.monotonic()))

    async def turn(self) -> float:
        """Load the playlist and take what is new; returns how long after its start the next load is due."""
        async with self._session.get(self._url) as answer:
            answer.raise_for_status()
            playlist, base = await answer.text(), str(answer.url)
        entries, target_s = listed(playlist)
        if self._newest is None and entries:
            self._newest = entries[max(0, len(entries) - 3)][0] - 1  # players begin three segments from the end
        fresh = [entry for entry in entries if self._newest is not None and entry[0] > self._newest]
        for number, uri in fresh:
            async with self._session.get(urljoin(base, uri)) as answer:
                answer.raise_for_status()
                body = await answer.read()
            self._newest = number
            self._tell(self._stream, number, body, time.time())
        return max(AT_LEAST_S, target_s if fresh else target_s / 2)


async def play(streams: list[tuple[str, str]], media: Path, out: Path) -> None:
    """Play all streams until ended."""
    files = sorted(media.glob("*.ts"), key=lambda path: int(path.stem))
    prints, bodies = prints_of(files), [path.read_bytes() for path in files]
    with out.open("w", buffering=1) as lines:

        def tell(stream: str, number: int, body: bytes, when_s: float) -> None:
            index = prints.get(key_picture(body[:HEAD_BYTES]) or b"", -1)
            lines.write(f"{stream} {number} {index} {when_s:.6f} {int(index >= 0 and body == bodies[index])}\n")

        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout, trust_env=False) as session:
            await asyncio.gather(*(Player(stream, url, session, tell).play() for stream, url in streams))


def main() -> None:
    """Read the command line, and play."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("media", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--streams", type=Path, required=True)
    chosen = options.parse_args()
    streams = [(stream, url) for stream, url in (line.split() for line in chosen.streams.read_text().splitlines())]
    uvloop.run(play(streams, chosen.media, chosen.out))


if __name__ == "__main__":
    main()
