"""Sees what relays give: in the folders of those that write files, and in the words of the player that pulls the others.

When a playlist was written the file system knows (st_mtime, exact to a few milliseconds): looking at it four times a second is enough,
and costs the machine next to nothing while it is measured. A relay lists a segment when its file is whole, so that is when it arrived.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from bench.figures import Arrival
from bench.identity import HEAD_BYTES, key_picture, number_of
from bench.origin import publications, whole_lines

LOOK_S = 0.25
MOST_COMPARED_BYTES = 1 << 30

Published = Mapping[str, Mapping[int, float]]
Seen = tuple[str, int, int, float, bool | None, Path | None]
"""stream, the relay's number, the source's file (-1: none), when in seconds of the wall clock, identical, the relay's file."""


def listed(playlist: str) -> tuple[list[tuple[int, str]], float]:
    """Return the numbers and URIs that a media playlist lists, and its target duration in seconds."""
    first = re.search(r"(?m)^#EXT-X-MEDIA-SEQUENCE:(\d+)", playlist)
    target = re.search(r"(?m)^#EXT-X-TARGETDURATION:(\d+)", playlist)
    uris = [line.strip() for line in playlist.splitlines() if line.strip() and not line.startswith("#")]
    return list(enumerate(uris, int(first[1]) if first else 0)), float(target[1]) if target else 1.0


class Folders:
    """Watches the playlists of a relay that writes files, one for each stream."""

    def __init__(self, playlists: Mapping[str, Path], prints: Mapping[bytes, int]) -> None:
        self._playlists, self._prints = playlists, prints
        self._written_ns: dict[str, int] = {}
        self._newest: dict[str, int] = {}
        self.seen: list[Seen] = []

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Take in what is new."""
        for stream, playlist in self._playlists.items():
            try:
                written_ns = playlist.stat().st_mtime_ns
                if written_ns == self._written_ns.get(stream):
                    continue
                entries, _ = listed(playlist.read_text())
            except FileNotFoundError:
                continue
            self._written_ns[stream] = written_ns
            for number, uri in entries:
                if number > self._newest.get(stream, -1):
                    self._newest[stream] = number
                    file = playlist.parent / uri
                    self.seen.append((stream, number, self._file_of(file), written_ns / 1e9, None, file))

    def _file_of(self, file: Path) -> int:
        try:
            with file.open("rb") as opened:
                return self._prints.get(key_picture(opened.read(HEAD_BYTES)) or b"", -1)
        except OSError:
            return -1


def played(path: Path) -> list[Seen]:
    """Return what the player has written down."""
    seen: list[Seen] = []
    for line in whole_lines(path):
        stream, number, index, when_s, identical = line.split()
        seen.append((stream, int(number), int(index), float(when_s), identical == "1", None))
    return seen


def arrivals_of(seen: list[Seen], published: Published, files: list[Path], since_s: float, until_s: float) -> list[Arrival]:
    """Return what arrived between two moments, of that which the source published while it was watched.

    The files of relays that write some are held against the source's, byte for byte, MOST_COMPARED_BYTES in all, the newest first.
    """
    arrivals, left = [], MOST_COMPARED_BYTES
    for stream, relay_number, index, when_s, identical, path in reversed(seen):
        if not since_s <= when_s < until_s or index < 0:
            continue
        number = number_of(index, published.get(stream, {}), when_s, len(files))
        if number is None:
            continue
        arrival = Arrival(stream, number, published[stream][number], when_s, relay_number, identical)
        if path is not None and left > 0:
            with suppress(OSError):  # swept meanwhile
                arrival = replace(arrival, identical=alike(path, files[index]))
                left -= path.stat().st_size
        arrivals.append(arrival)
    return arrivals[::-1]


def alike(one: Path, other: Path) -> bool:
    """Return whether two files have the same bytes."""
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def streams_up(seen: list[Seen], publications_log: Path, count: int, files: int) -> set[str]:
    """Return the streams of which *count* segments have arrived that were published since the source began."""
    published = publications(publications_log)
    found: dict[str, int] = {}
    for stream, _, index, when_s, _, _ in seen:
        if index >= 0 and number_of(index, published.get(stream, {}), when_s, files) is not None:
            found[stream] = found.get(stream, 0) + 1
    return {stream for stream, many in found.items() if many >= count}
