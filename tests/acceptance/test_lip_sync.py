"""Sound and picture of a rung stay as far apart as the source's: measured from a flash and a beep, at minute 1 and a day later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hlsrelay.media.fragment import parted
from tests.acceptance.test_encoder import encode, ffmpegs, output
from tests.acceptance.test_formats import DAY_S, Kind, jobs_for, make, packets
from tests.needs import needs

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe")]

FRAME_S = 1 / 25
HERTZ = 48_000


def raw(folder: Path, *argv: str) -> bytes:
    target = folder / "raw"
    output("ffmpeg", "-v", "fatal", "-nostdin", "-y", "-copyts", *argv, str(target))
    return target.read_bytes()


def flash_and_beep_s(path: Path, folder: Path) -> tuple[float, float]:
    """Return when the first flash is shown and the first beep is heard, on the clock of the file."""
    told = packets(path)
    shown = sorted(time_s for time_s, _ in told["video"][0])
    form = ["-f", "mpegts"] if path.read_bytes()[:1] == b"\x47" else ["-f", "mp4", "-ignore_editlist", "1"]
    picture = ["-map", "0:v", "-fps_mode", "passthrough", "-vf", "scale=1:1:flags=area,format=gray", "-f", "rawvideo"]
    lit = raw(folder, *form, "-i", str(path), *picture)
    assert len(lit) == len(shown)
    sound = raw(folder, *form, "-i", str(path), "-map", "0:a", "-ac", "1", "-f", "s16le")
    samples = memoryview(sound).cast("h")
    assert min(lit) < 60
    flash = next(index for index, value in enumerate(lit) if value > 150)
    beep = next(index for index, value in enumerate(samples) if abs(value) > 4000)
    return shown[flash], told["audio"][0][0][0] + beep / HERTZ


def flashing(kind: Kind) -> Kind:
    """The kind with a picture and a sound that are silent and dark but for a tenth of each second."""
    lit = "between(mod(t,1),0.399,0.5)"
    dark = f"drawbox=t=fill:color=black:enable='not({lit})',drawbox=t=fill:color=white:enable='{lit}'"
    silent = "asetnsamples=n=48,volume=volume='12*between(mod(t,1),0.4,0.5)':eval=frame,aresample=48000"
    return replace(kind, video=(*kind.video, "-vf", dark), audio=(("-c:a", "aac", "-b:a", "96k", "-filter:a", silent),))


@pytest.mark.parametrize(("container", "program"), list(zip(["TS", "fMP4"], list(ffmpegs()) * 2, strict=False)))
def test_flash_and_beep_are_as_far_apart_after_a_day_as_at_minute_one(container: str, program: str, tmp_path: Path) -> None:
    apart: list[float] = []
    for offset_s in (60.0, DAY_S):
        folder = tmp_path / f"{offset_s:.0f}"
        folder.mkdir()
        kind = flashing(Kind(offset_s=offset_s, fmp4=None if container == "TS" else (), ladder="small:90:100"))
        source = make(folder, kind)
        jobs = jobs_for(source, kind.ladder, folder)
        encode(ffmpegs()[program], *jobs)
        for job in (jobs[0], jobs[-1]):
            made, given = folder / "made", folder / "given"
            whole = job.outputs["small"].read_bytes()
            made.write_bytes(whole if job.init is None else b"".join(parted(whole)))
            given.write_bytes((job.init.read_bytes() if job.init else b"") + job.source.read_bytes())
            flash_s, beep_s = flash_and_beep_s(made, folder)
            source_flash_s, source_beep_s = flash_and_beep_s(given, folder)
            assert flash_s == pytest.approx(source_flash_s, abs=1e-4)
            assert beep_s == pytest.approx(source_beep_s, abs=1e-4)
            assert offset_s <= flash_s < offset_s + 5
            apart.append(flash_s - beep_s)
    assert max(map(abs, apart)) < FRAME_S
    assert max(apart) - min(apart) < 0.001
