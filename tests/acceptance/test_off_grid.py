"""Sources that are cut anywhere, not where key frames are: every segment has its rungs, and what it is does not change."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from hlsrelay.downloading import Clip
from hlsrelay.embedded import ffmpeg_path
from hlsrelay.encoder import LocalEncoder
from hlsrelay.media.probe import probe
from hlsrelay.model import SOURCE, Made, MediaFile, Numbered, Position
from hlsrelay.processes import Children
from hlsrelay.storage import LocalStorage
from hlsrelay.transcoding import Transcoding
from tests.acceptance.test_formats import words_of_a_decoder
from tests.needs import needs
from tests.playlists import T0, live, stream

if TYPE_CHECKING:
    from hlsrelay.desk import Desk

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe")]

RATE = 25


def cut_anywhere(folder: Path, gop: int, pictures: int, count: int) -> list[Path]:
    """Return *count* segments of so many *pictures* each, with a key frame each *gop* pictures."""
    times = ",".join(f"{10 + pictures / RATE * number - 0.005:.3f}" for number in range(1, count))
    # fmt: off
    argv = [
        "ffmpeg", "-v", "error", "-nostdin", "-f", "lavfi", "-i", f"testsrc2=size=160x90:rate={RATE}:duration={pictures / RATE * count}",
        "-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=48000:duration={pictures / RATE * count}",
        "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", str(gop), "-keyint_min", str(gop), "-sc_threshold", "0",
        "-c:a", "aac", "-b:a", "48k", "-output_ts_offset", "10", "-muxdelay", "0", "-f", "segment", "-segment_times", times,
        "-segment_format", "mpegts", "-break_non_keyframes", "1", str(folder / "s%d.ts"),
    ]
    # fmt: on
    subprocess.run(argv, check=True, timeout=60)
    return [folder / f"s{number}.ts" for number in range(count)]


def relayed(segments: list[Path], folder: Path, first: int = 0) -> list[Made]:
    """Return what the ladder makes of *segments*, which are numbered from *first* on."""
    listed = live(*range(first, first + len(segments))).snapshot().segments
    wanted, position = stream(ladder="small:90:100,tiny:64:60"), Position("", 1, 0, 0, (), T0, T0)

    async def main() -> list[Made]:
        children, made = Children(), []
        try:
            with LocalStorage(folder, "news") as storage:
                tools = SimpleNamespace(storage=storage, encoder=LocalEncoder(ffmpeg_path(), children, 2))
                desk: Any = SimpleNamespace(tools=tools, track=SimpleNamespace(name=SOURCE), stream=stream(), alone=True, progress=None)
                transcoding = Transcoding(cast("Desk", desk))
                for one, file in zip(listed, segments, strict=True):
                    storage.write(f"{SOURCE}/{one.sequence}.ts", file.read_bytes())
                    clip = Clip(Numbered(one.sequence, one, False, T0, 6, wanted, position), MediaFile(f"{one.sequence}.ts", 1))
                    done = await transcoding(clip)
                    assert isinstance(done, Made)
                    made.append(done)
        finally:
            await children.aclose()
        return made

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("gop", "pictures", "count"),
    [
        (75, 50, 4),  # in every third segment no key frame
        (60, 70, 3),  # the key frame, and so the size of the pictures, late in a segment
        (150, 30, 6),  # in four of five no key frame
    ],
)
def test_every_segment_has_its_rungs_wherever_it_is_cut(gop: int, pictures: int, count: int, tmp_path: Path) -> None:
    segments = cut_anywhere(tmp_path, gop, pictures, count)
    made = relayed(segments, tmp_path / "live")
    assert [dict(one.failed) for one in made] == [{}] * count
    assert [one.entry.rungs for one in made] == [("small", "tiny")] * count
    assert len({one.entry.files[SOURCE].traits for one in made}) == 1, "what the multivariant playlist says of the source stays"
    for rung in ("small", "tiny"):
        files = [(tmp_path / "live" / "news" / rung / f"{number}.ts").read_bytes() for number in range(count)]
        for body, source in zip(files, segments, strict=True):
            ours, theirs = probe(body).video, probe(source.read_bytes()).video
            assert ours is not None
            assert theirs is not None
            assert set(ours.pts) == set(theirs.pts)
            assert ours.starts_with_idr
        assert words_of_a_decoder(ffmpeg_path(), "mpegts", b"".join(files), tmp_path) == ""


def test_what_begins_within_a_gop_that_was_never_had_is_a_gap_and_no_failure_of_the_encoder(tmp_path: Path) -> None:
    segments = cut_anywhere(tmp_path, 150, 30, 6)
    made = relayed(segments[1:], tmp_path / "live", first=1)
    assert all("GOP" in reason for one in made[:4] for reason in one.failed.values())
    assert not made[4].failed
    assert [one.ladder_paused for one in made] == [False] * 5
