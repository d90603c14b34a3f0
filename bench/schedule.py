"""When the bench's source publishes what: a grid on the wall clock, and the playlists on it. Pure.

Each stream has a phase of its own, spread over one segment's duration, so that streams don't come in one burst. Segments are made once
and used again (`file_of`); where they begin again the playlist says DISCONTINUITY, as it must.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

OLDEST_NUMBER = 1000
"""Where the source's media sequence stands when it begins: not 0, so that a relay that counts by itself shows."""


def file_of(number: int, files: int) -> int:
    """Return which of *files* files segment *number* is made of."""
    return (number - OLDEST_NUMBER) % files


@dataclass(frozen=True, slots=True)
class Grid:
    """What a source of *streams* streams publishes from *epoch_s* on; *jitter_s* is how far from the grid it may be, either way."""

    epoch_s: float
    streams: int
    segment_s: float
    listed: int
    files: int
    jitter_s: float = 0.0

    @property
    def first(self) -> int:
        """The first number that is published on the grid; those before it are listed from the beginning."""
        return OLDEST_NUMBER + self.listed

    def due_s(self, stream: int, number: int) -> float:
        """Return when segment *number* of *stream* is published, in seconds of the wall clock."""
        phase_s = self.segment_s * stream / self.streams
        off_s = random.Random(f"{stream} {number}").uniform(-self.jitter_s, self.jitter_s) if self.jitter_s else 0.0
        return self.epoch_s + phase_s + (number - self.first) * self.segment_s + off_s

    def playlist(self, newest: int) -> str:
        """Return a stream's playlist whose newest segment is *newest*."""
        first = newest - self.listed + 1
        lines = [
            "#EXTM3U",
            "#EXT-X-VERSION:3",
            f"#EXT-X-TARGETDURATION:{round(self.segment_s)}",
            f"#EXT-X-MEDIA-SEQUENCE:{first}",
            f"#EXT-X-DISCONTINUITY-SEQUENCE:{max(0, (first - 1 - OLDEST_NUMBER) // self.files)}",
        ]
        for number in range(first, newest + 1):
            file = file_of(number, self.files)
            if file == 0 and number > OLDEST_NUMBER:
                lines.append("#EXT-X-DISCONTINUITY")
            lines += [f"#EXTINF:{self.segment_s:.5f},", f"{number}-{file}.ts"]
        return "\n".join([*lines, ""])


def stream_name(stream: int) -> str:
    """Return what a stream is called, in the origin's URLs and as a relay's folder."""
    return f"s{stream:03d}"
