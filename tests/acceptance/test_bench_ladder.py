"""The bench of the ladder, run through on two small segments by real ffmpegs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import imageio_ffmpeg
import pytest

from bench.ladder import Task, measured, ran
from bench.quality import vmaf
from hlsrelay.embedded import ffmpeg_path
from hlsrelay.ladder import parse_ladder
from hlsrelay.media.probe import probe
from tests.acceptance.media_checks import ffprobe
from tests.needs import needs

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe")]

LADDER = parse_ladder("large:180:300,small:90:100")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Two segments of two seconds, with sound, and a cut in the first where x264 would like a key frame."""
    # fmt: off
    argv = [
        str(ffmpeg_path()), "-nostdin", "-loglevel", "error",
        "-f", "lavfi", "-i", "testsrc2=s=320x180:r=30:d=1.5", "-f", "lavfi", "-i", "mandelbrot=s=320x180:r=30",
        "-f", "lavfi", "-i", "anoisesrc=r=48000:d=4", "-filter_complex", "[0][1]concat,setsar=1,format=yuv420p[v]",
        "-map", "[v]", "-map", "2:a", "-t", "4", "-c:v", "libx264", "-preset", "ultrafast", "-g", "60", "-c:a", "aac",
        "-f", "segment", "-segment_time", "2", "-segment_format", "mpegts", str(tmp_path / "source-%d.ts"),
    ]
    # fmt: on
    asyncio.run(ran(argv))
    return Task(tuple(sorted(tmp_path.glob("source-*.ts"))), LADDER, segment_s=2)


@pytest.mark.night
def test_both_sides_are_measured_on_the_same_pictures(task: Task, tmp_path: Path) -> None:
    rows = {row.name: row for row in asyncio.run(measured(ffmpeg_path(), task, tmp_path, 1, quality=True))}
    assert all(row.ours is not None and row.ours > 0 for row in rows.values())
    assert all(row.theirs for name, row in rows.items() if not name.startswith("latency"))
    assert [name for name in rows if "VMAF" in name and name.startswith(("large", "small"))] != []
    for rung in LADDER:
        for side in ("ours", "theirs"):
            for number, source in enumerate(task.segments):
                made, shown = probe((tmp_path / side / f"{rung.name}-{number}.ts").read_bytes()).video, probe(source.read_bytes()).video
                assert made is not None
                assert shown is not None
                assert made.starts_with_idr
                assert made.frame_count == shown.frame_count
        for file in sorted((tmp_path / "ours").glob(f"{rung.name}-*.ts")):
            packets = ffprobe(file, "-select_streams", "v:0", "-show_entries", "packet=flags")["packets"]
            assert [number for number, packet in enumerate(packets) if "K" in packet["flags"]] == [0]


def test_vmaf_is_not_taken_of_a_rung_that_lost_a_segment(task: Task, tmp_path: Path) -> None:
    ffmpeg = Path(imageio_ffmpeg.get_ffmpeg_exe())
    with pytest.raises(ValueError, match="not the pictures of the source"):
        asyncio.run(vmaf(ran, ffmpeg, task.segments[:1], task.segments, (320, 180), tmp_path))
    assert asyncio.run(vmaf(ran, ffmpeg, task.segments, task.segments, (320, 180), tmp_path)) > 95
