"""The ladder side by side with one long-lived ffmpeg: `python -m bench.ladder [--seconds N] [--quality] [--json FILE]`.

Both sides make 720p, 480p and 360p of the same 720p30 segments, in turns (ours, theirs, ours, theirs), and one table gives the medians and
their ratios. Ours is what ships: `LocalEncoder` and `recipe`, their checks included. Theirs is one process with the same preset, bitrates,
VBV and key frames, two threads for each encoder, and the hls muxer. CPU time is user and system of all processes, this one included.
Latency is from a complete segment to rungs that passed their check; it depends on what else the machine does: the load is printed with it.

Bits cost CPU time, and a side that spends more of them looks better. So theirs is made in each pass once more, with the bitrates that ours
measured. `--instructions` counts what the ffmpegs of one pass execute, which no noise of a machine changes. `--quality` adds VMAF, each
rung beside the source scaled to its size; theirs is read off at exactly our bitrate on the line through its two points.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import imageio_ffmpeg

from bench.content import FRAME_RATE, SEGMENT_S, make_source
from bench.instructions import counted, installed
from bench.quality import Packets, packets_of, read_off, vmaf
from hlsrelay.codecs import BUFSIZE, MAXRATE
from hlsrelay.embedded import embedded_ffmpeg_path, ffmpeg_path
from hlsrelay.encoder import LocalEncoder
from hlsrelay.ladder import parse_ladder
from hlsrelay.log import start_logging
from hlsrelay.media.probe import MediaInfo, probe
from hlsrelay.model import Codec, Rung
from hlsrelay.offers import Offers
from hlsrelay.processes import Children, Limits
from hlsrelay.recipe import EncodeJob, before, command, width_for

LADDER = parse_ladder("720p,480p,360p")
SLOTS = 1
"""Jobs at once. Latency is that of a stream whose segments come one by one."""
NICENESS = 10  # as LocalEncoder's jobs
DEADLINE_S = 3600.0
LOOKED_EVERY_S = 0.02
"""A job of the tests' small pictures lasts 0.2 s: it is to be seen."""
PATIENCE_S = 120.0
"""What a job takes its segment to last: its deadline is a multiple of it, and a busy machine is no failure here."""


@dataclass(frozen=True)
class Task:
    """What both sides do: make *ladder* of *segments*, all but the last of which last *segment_s*."""

    segments: tuple[Path, ...]
    ladder: tuple[Rung, ...] = LADDER
    segment_s: int = SEGMENT_S

    def files(self, folder: Path) -> dict[str, tuple[Path, ...]]:
        """Return the rungs' files in *folder*, by name."""
        return {rung.name: tuple(folder / f"{rung.name}-{number}.ts" for number in range(len(self.segments))) for rung in self.ladder}

    def width(self, rung: Rung) -> int:
        """Return the width of the pictures of *rung*."""
        video = _probed(self.segments[0]).video
        assert video is not None
        return width_for(video, rung.height or 0)


@dataclass(frozen=True)
class Pass:
    """One side's way through all segments: the files of each rung by name. *latencies*: by segment, as shares of its duration."""

    cpu_s: float
    peak_rss_mib: float
    files: Mapping[str, tuple[Path, ...]]
    latencies: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of the table: one figure of both sides, None where a side has none."""

    name: str
    ours: float | None
    theirs: float | None

    @property
    def ratio(self) -> float | None:
        """Ours over theirs."""
        return self.ours / self.theirs if self.ours is not None and self.theirs else None


class Meter:
    """CPU seconds of this process and of all that it waited for, and the most memory that the running *children* had at a time."""

    def __init__(self, children: Children) -> None:
        self.peak_rss_mib = 0.0
        self._children = children
        self._before_s = _cpu_s()

    @property
    def cpu_s(self) -> float:
        """Spent since this was made."""
        return _cpu_s() - self._before_s

    async def watch(self) -> None:
        """Look at the memory until cancelled."""
        while True:
            mib = 0.0
            for child in self._children.running():
                with suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                    mib += int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
            self.peak_rss_mib = max(self.peak_rss_mib, mib)
            await asyncio.sleep(LOOKED_EVERY_S)


def _cpu_s() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def _probed(segment: Path) -> MediaInfo:
    return probe(segment.read_bytes())


async def per_segment(ffmpeg: Path, task: Task, folder: Path) -> Pass:
    """Make the ladder as the relay does: a job for each segment. Raises SystemExit if a rung failed its check."""
    folder.mkdir(exist_ok=True)
    children = Children()
    encoder = LocalEncoder(ffmpeg, children, SLOTS)
    await encoder.encode(_job(task, 0, _probed(task.segments[0]), task.files(folder)))  # which encoders there are is asked once in a life
    latencies: list[float] = []

    async def work() -> None:
        for number, source in enumerate(task.segments):
            info = _probed(source)
            assert info.video is not None
            duration_s = info.video.frame_count / FRAME_RATE
            begun = time.perf_counter()
            made = await encoder.encode(_job(task, number, info, files))
            latencies.append((time.perf_counter() - begun) / duration_s)
            if made.failed:
                raise SystemExit(f"segment {number}: {dict(made.failed)}")

    files = task.files(folder)
    meter = await _metered(children, work)
    return Pass(meter.cpu_s, meter.peak_rss_mib, files, tuple(latencies))


def _job(task: Task, number: int, info: MediaInfo, files: Mapping[str, tuple[Path, ...]]) -> EncodeJob:
    outputs = {rung.name: files[rung.name][number] for rung in task.ladder}
    return EncodeJob("bench", number, task.segments[number], info, PATIENCE_S, outputs, task.ladder)


async def long_lived(ffmpeg: Path, task: Task, folder: Path, kbps: Mapping[str, float] | None = None) -> Pass:
    """Make the ladder with one ffmpeg; *kbps* overrides the rungs' bitrates, by name; their VBV stays."""
    folder.mkdir(exist_ok=True)
    whole = folder / "whole.ts"
    whole.write_bytes(b"".join(segment.read_bytes() for segment in task.segments))
    children = Children()
    argv = long_lived_argv(ffmpeg, task, whole, folder, kbps or {})
    meter = await _metered(children, lambda: ran(argv, children))
    return Pass(meter.cpu_s, meter.peak_rss_mib, task.files(folder))


def long_lived_argv(ffmpeg: Path, task: Task, whole: Path, folder: Path, kbps: Mapping[str, float]) -> list[str]:
    """Return the ffmpeg that makes the ladder of *whole* in one go, its key frames where ours are."""
    splits = "".join(f"[s{index}]" for index in range(len(task.ladder)))
    chains = [f"[0:v:0]split={len(task.ladder)}{splits}"]
    for index, rung in enumerate(task.ladder):
        chains.append(f"[s{index}]scale={task.width(rung)}:{rung.height}:flags=bicubic,setsar=1,format=yuv420p[o{index}]")
    argv = [str(ffmpeg), "-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-y"]
    argv += ["-filter_complex_threads", "1", "-threads", "2", "-f", "mpegts", "-i", f"file:{whole}", "-filter_complex", ";".join(chains)]
    for index, rung in enumerate(task.ladder):
        name = str(folder / rung.name)
        # fmt: off
        argv += [
            "-map", f"[o{index}]", "-map", "0:a:0", "-c:a", "copy", "-fps_mode", "passthrough",
            "-c:v", "libx264", "-preset", "veryfast", "-profile:v", "high", "-threads:v", "2",
            # key frames on the grid, and else only where the scene changes: as in a job for one segment
            "-g", "9999", "-force_key_frames", f"expr:gte(t,n_forced*{task.segment_s})", "-forced-idr", "1", "-flags", "+cgop",
            "-b:v", f"{round(kbps.get(rung.name, rung.video_kbps) * 1000)}",
            "-maxrate", f"{round(rung.video_kbps * MAXRATE)}k",
            "-bufsize", f"{round(rung.video_kbps * BUFSIZE)}k",
            "-f", "hls", "-hls_time", str(task.segment_s), "-hls_list_size", "0", "-hls_segment_filename", f"{name}-%d.ts",
            f"{name}.m3u8",
        ]
        # fmt: on
    return argv


async def instructions_rows(ffmpeg: Path, task: Task, folder: Path, kbps: Mapping[str, float]) -> list[Row]:
    """Return how many instructions the ffmpegs of both sides execute, Valgrind's slow way; *kbps*: theirs at our bitrates."""
    valgrind, offers = installed(), Offers(ffmpeg, Children())
    encoders = await offers.encoders([Codec.H264])
    folder.mkdir(exist_ok=True)
    whole = folder / "whole.ts"
    whole.write_bytes(b"".join(segment.read_bytes() for segment in task.segments))

    async def ours() -> int:
        total = 0
        for number, source in enumerate(task.segments):
            job = _job(task, number, _probed(source), task.files(folder))
            argv = command(job, ffmpeg, before(job), encoders, side_by_side=offers.side_by_side)
            total += await counted(ran, valgrind, argv, folder / "ours.cachegrind")
        return total

    async def theirs(name: str, kbps: Mapping[str, float]) -> int:
        into = folder / name
        into.mkdir(exist_ok=True)
        return await counted(ran, valgrind, long_lived_argv(ffmpeg, task, whole, into, kbps), folder / f"{name}.cachegrind")

    mine, named, alike = await asyncio.gather(ours(), theirs("named", {}), theirs("alike", kbps))
    pictures = sum(video.frame_count for video in (_probed(segment).video for segment in task.segments) if video)
    per_minute = 60 * FRAME_RATE / pictures / 1e9
    return [
        Row("G instructions per source-minute", mine * per_minute, named * per_minute),
        Row("G instructions, theirs at ours", mine * per_minute, alike * per_minute),
    ]


async def ran(argv: Sequence[str], children: Children | None = None) -> None:
    """Run *argv* to its end, niced as a job is. Raises SystemExit if it fails."""
    finished = await (children or Children()).run(argv, purpose="bench", deadline_s=DEADLINE_S, limits=Limits(niceness=NICENESS))
    if finished.exit_code != 0:
        raise SystemExit(f"{argv[0]} ended with {finished.exit_code}: {finished.stderr_tail}")


async def _metered(children: Children, work: Callable[[], Awaitable[None]]) -> Meter:
    meter = Meter(children)
    watching = asyncio.create_task(meter.watch())
    try:
        await work()
    finally:
        watching.cancel()
    return meter


def speed_rows(ours: Sequence[Pass], theirs: Sequence[Pass], alike: Sequence[Pass], source_s: float) -> list[Row]:
    """Return what the passes cost, medians; *alike*: theirs at our bitrates; *source_s* is what each of them made, in seconds."""
    return [
        Row("CPU s per source-minute", _cost(ours, source_s), _cost(theirs, source_s)),
        Row("the same, theirs at our bitrates", _cost(ours, source_s), _cost(alike, source_s)),
        Row("peak RSS, MiB", median(each.peak_rss_mib for each in ours), median(each.peak_rss_mib for each in theirs)),
        Row("latency / duration, median", median(_latencies(ours)), None),
        Row("latency / duration, best pass", min(median(each.latencies) for each in ours), None),
        Row("latency / duration, worst", max(_latencies(ours)), None),
    ]


def _cost(passes: Sequence[Pass], source_s: float) -> float:
    return median(each.cpu_s for each in passes) * 60 / source_s


def _latencies(passes: Sequence[Pass]) -> list[float]:
    return [share for each in passes for share in each.latencies]


def rate_rows(rung: Rung, ours: Packets, theirs: Packets) -> list[Row]:
    """Return what became of the bitrate of *rung*."""
    return [
        Row(f"{rung.name} bitrate / named", ours.kbps / rung.video_kbps, theirs.kbps / rung.video_kbps),
        Row(f"{rung.name} worst segment / VBV cap", ours.worst_share(rung), theirs.worst_share(rung)),
        Row(f"{rung.name} buffer needed / bufsize", ours.buffer_needed(rung), theirs.buffer_needed(rung)),
    ]


def table(rows: Sequence[Row]) -> str:
    """Return *rows* as they are printed."""
    lines = [f"{'':34}{'per segment':>12}{'long-lived':>12}{'ratio':>8}"]
    for row in rows:
        cells = [(row.ours, 12), (row.theirs, 12), (row.ratio, 8)]
        lines.append(f"{row.name:34}" + "".join(f"{'-' if value is None else format(value, '.3f'):>{width}}" for value, width in cells))
    return "\n".join(lines)


async def measured(ffmpeg: Path, task: Task, folder: Path, passes: int, *, quality: bool = False, instructions: bool = False) -> list[Row]:
    """Return the rows of a whole run: *passes* of each side in turns with the same *ffmpeg*, their files in *folder*."""
    ours: list[Pass] = []
    theirs: list[Pass] = []
    alike: list[Pass] = []
    made: dict[str, Packets] = {}
    base: dict[str, Packets] = {}
    asked: dict[str, float] = {}
    for _ in range(passes):
        ours.append(await per_segment(ffmpeg, task, folder / "ours"))
        theirs.append(await long_lived(ffmpeg, task, folder / "theirs"))
        if not made:
            made = {rung.name: await packets_of(ran, ffmpeg, ours[-1].files[rung.name]) for rung in task.ladder}
            base = {rung.name: await packets_of(ran, ffmpeg, theirs[-1].files[rung.name]) for rung in task.ladder}
        # theirs misses what it is asked for as it did the first time
        asked = {rung.name: rung.video_kbps * made[rung.name].kbps / base[rung.name].kbps for rung in task.ladder}
        alike.append(await long_lived(ffmpeg, task, folder / "again", asked))
    rows = await instructions_rows(ffmpeg, task, folder / "counted", asked) if instructions else []
    rows += speed_rows(ours, theirs, alike, made[task.ladder[0].name].pictures / FRAME_RATE)
    for rung in task.ladder:
        rows += rate_rows(rung, made[rung.name], base[rung.name])
    if quality:
        rows += [await quality_row(task, rung, made[rung.name].kbps, ours[-1], (theirs[-1], alike[-1]), folder) for rung in task.ladder]
    return rows


async def shipped() -> Path:
    """Return the ffmpeg that the relay uses on this machine."""
    offers = Offers(ffmpeg_path(), Children(), newer=embedded_ffmpeg_path())
    await offers.encoders([Codec.H264])
    return offers.ffmpeg


async def quality_row(task: Task, rung: Rung, kbps: float, ours: Pass, theirs: Sequence[Pass], folder: Path) -> Row:
    """Return the VMAF of *rung*, whose *ours* measures *kbps*, and what the line through *theirs* has there."""
    ffmpeg = Path(imageio_ffmpeg.get_ffmpeg_exe())  # the one that is sure to have libvmaf
    size = (task.width(rung), rung.height or 0)
    points = []
    for each in theirs:
        packets = await packets_of(ran, ffmpeg, each.files[rung.name])
        points.append((packets.kbps, await vmaf(ran, ffmpeg, each.files[rung.name], task.segments, size, folder)))
    mine = await vmaf(ran, ffmpeg, ours.files[rung.name], task.segments, size, folder)
    return Row(f"{rung.name} VMAF at {kbps:.0f} kbit/s", mine, read_off(kbps, points))


def main() -> None:
    """Measure, and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=60, help="how much of the content")
    options.add_argument("--passes", type=int, default=3, help="of each side, in turns")
    options.add_argument("--quality", action="store_true", help="VMAF too: some minutes more")
    options.add_argument("--instructions", action="store_true", help="count what the ffmpegs execute too: half an hour more for 36 s")
    options.add_argument("--clip", type=Path, help="a video file to measure with instead of the made scenes")
    options.add_argument("--ffmpeg", type=Path, help="the ffmpeg of both sides; the relay's own choice unless told")
    options.add_argument("--folder", type=Path, help="keep the segments there, and use those that are there")
    options.add_argument("--json", type=Path, help="write the figures there too")
    chosen = options.parse_args()
    start_logging("auto", logging.WARNING)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as passing:
        folder = chosen.folder or Path(passing)
        drawing = Path(imageio_ffmpeg.get_ffmpeg_exe())
        segments = asyncio.run(make_source(ran, drawing, folder / "source", chosen.seconds, chosen.clip))
        ffmpeg = chosen.ffmpeg or asyncio.run(shipped())
        rows = asyncio.run(
            measured(ffmpeg, Task(tuple(segments)), folder, chosen.passes, quality=chosen.quality, instructions=chosen.instructions)
        )
    load = f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores"
    print(f"{ffmpeg}\n{chosen.clip or 'made scenes'}, {chosen.seconds:g} s, {chosen.passes} passes each, {load}\n{table(rows)}")
    if chosen.json:
        chosen.json.write_text(json.dumps({"load": load, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
