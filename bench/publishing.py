"""The bench's live source, as a process of its own: rewrites playlists on the grid, and writes down when each segment was published.

`python -m bench.publishing FOLDER LOG …` prints `ready` once each stream has a playlist, and goes on until it is ended. A line of the
log is `stream number seconds`, seconds of the wall clock just after the new playlist was in place.
"""

from __future__ import annotations

import argparse
import heapq
import os
import time
from pathlib import Path

from bench.schedule import Grid, stream_name


def put(path: Path, text: str) -> None:
    """Replace a playlist in one step."""
    temp = path.with_suffix(".new")
    temp.write_text(text)
    os.replace(temp, path)


def publish(grid: Grid, folder: Path, log: Path) -> None:
    """Publish for ever. What is listed at the beginning counts as published then."""
    playlists = [folder / stream_name(stream) / "index.m3u8" for stream in range(grid.streams)]
    for path in playlists:
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, grid.playlist(grid.first - 1))
    with log.open("w", buffering=1) as lines:
        print("ready", flush=True)
        coming = [(grid.due_s(stream, grid.first), stream, grid.first) for stream in range(grid.streams)]
        heapq.heapify(coming)
        while True:
            due_s, stream, number = coming[0]
            if (wait_s := due_s - time.time()) > 0:
                time.sleep(wait_s)
            put(playlists[stream], grid.playlist(number))
            lines.write(f"{stream_name(stream)} {number} {time.time():.6f}\n")
            heapq.heapreplace(coming, (grid.due_s(stream, number + 1), stream, number + 1))


def main() -> None:
    """Read the command line, and publish."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("log", type=Path)
    options.add_argument("--streams", type=int, required=True)
    options.add_argument("--segment-seconds", type=float, required=True)
    options.add_argument("--listed", type=int, required=True)
    options.add_argument("--files", type=int, required=True)
    options.add_argument("--jitter", type=float, default=0.0)
    chosen = options.parse_args()
    grid = Grid(time.time() + 0.2, chosen.streams, chosen.segment_seconds, chosen.listed, chosen.files, chosen.jitter)
    publish(grid, chosen.folder, chosen.log)


if __name__ == "__main__":
    main()
