"""What a rung came to: its bitrate, how it keeps to its VBV, and how it looks beside the source (VMAF)."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.content import FRAME_RATE
from hlsrelay.codecs import BUFSIZE, MAXRATE
from hlsrelay.media.probe import probe
from hlsrelay.model import Rung

VBV_START = 0.9
"""How full x264 takes a decoder's buffer to be when a stream begins (its vbv-init)."""
SUBSAMPLE = 3
"""VMAF looks at each third picture."""

Run = Callable[[Sequence[str]], Awaitable[object]]


@dataclass(frozen=True)
class Packets:
    """The video of a rung: the bytes of each picture in decoding order, by segment."""

    segments: tuple[tuple[int, ...], ...]

    @property
    def pictures(self) -> int:
        """How many."""
        return sum(map(len, self.segments))

    @property
    def kbps(self) -> float:
        """Mean over all segments."""
        return sum(map(sum, self.segments)) * 8 * FRAME_RATE / 1000 / self.pictures

    def worst_share(self, rung: Rung) -> float:
        """Return the largest share that a segment takes of what its VBV lets into it; above 1 the cap is broken."""
        return max(
            sum(segment) * 8 / 1000 / (rung.video_kbps * (MAXRATE * len(segment) / FRAME_RATE + VBV_START * BUFSIZE))
            for segment in self.segments
        )

    def buffer_needed(self, rung: Rung) -> float:
        """Return the buffer that plays all segments in a row, fed at the rung's maxrate, as a multiple of its bufsize."""
        missing = most = 0.0  # kbit below full
        for size in (size for segment in self.segments for size in segment):
            missing += size * 8 / 1000
            most = max(most, missing)
            missing = max(0.0, missing - rung.video_kbps * MAXRATE / FRAME_RATE)
        return most / (rung.video_kbps * BUFSIZE)


async def packets_of(run: Run, ffmpeg: Path, files: Sequence[Path]) -> Packets:
    """Return the video packets of *files*, the segments of a rung."""
    found = []
    for file in files:
        listed = file.with_suffix(".packets")
        argv = [str(ffmpeg), "-nostdin", "-loglevel", "error", "-y", "-f", "mpegts", "-i", f"file:{file}"]
        await run([*argv, "-map", "0:v:0", "-c", "copy", "-f", "framecrc", f"file:{listed}"])
        rows = [line.split(",") for line in listed.read_text().splitlines() if not line.startswith("#")]
        found.append(tuple(int(row[4]) for row in rows))  # stream, dts, pts, duration, size, checksum
    return Packets(tuple(found))


async def vmaf(run: Run, ffmpeg: Path, rung: Sequence[Path], source: Sequence[Path], size: tuple[int, int], folder: Path) -> float:
    """Return the mean VMAF of *rung* beside *source*, which is scaled to the rung's *size* as the ladder does it.

    Picture is held against picture by number, so both must have the same ones; a rung that lost one raises ValueError.
    """
    made, shown, log = folder / "made.ts", folder / "shown.ts", folder / "vmaf.json"
    for whole, parts in ((made, rung), (shown, source)):
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    count = f"settb=1/{FRAME_RATE},setpts=N"
    width, height = size
    graph = (
        f"[0:v]{count}[d];[1:v]scale={width}:{height}:flags=bicubic,setsar=1,{count}[r];"
        f"[d][r]libvmaf=n_threads=2:n_subsample={SUBSAMPLE}:log_fmt=json:log_path={log}"
    )
    argv = [str(ffmpeg), "-hide_banner", "-nostdin", "-loglevel", "error", "-f", "mpegts", "-i", f"file:{made}"]
    await run([*argv, "-f", "mpegts", "-i", f"file:{shown}", "-lavfi", graph, "-f", "null", "-"])
    report = json.loads(log.read_text())
    pictures = sum(_pictures(part) for part in source)
    if len(report["frames"]) != math.ceil(pictures / SUBSAMPLE) or pictures != sum(_pictures(part) for part in rung):
        raise ValueError(f"{rung[0].parent}: not the pictures of the source")
    return float(report["pooled_metrics"]["vmaf"]["mean"])


def _pictures(segment: Path) -> int:
    video = probe(segment.read_bytes()).video
    return video.frame_count if video else 0


def read_off(kbps: float, points: Sequence[tuple[float, float]]) -> float:
    """Return the VMAF at *kbps* on the line through the two of *points* (kbit/s, VMAF) nearest to it, linear in log bitrate."""
    (low_kbps, low), (high_kbps, high) = sorted(sorted(points, key=lambda point: abs(math.log(point[0] / kbps)))[:2])
    if math.isclose(low_kbps, high_kbps, rel_tol=1e-3):
        return (low + high) / 2
    return low + (high - low) * math.log(kbps / low_kbps) / math.log(high_kbps / low_kbps)
