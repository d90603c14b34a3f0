"""Sound and picture of a rung stay as far apart as the source's: measured from a flash and a beep, at minute 1 and a day later."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hlsrelay.media.edits import with_edits
from hlsrelay.media.fragment import parted
from hlsrelay.recipe import EncodeJob
from tests.acceptance.test_encoder import CHECKING, encode, ffmpegs, output
from tests.acceptance.test_formats import DAY_S, Kind, jobs_for, make
from tests.needs import in_turn, needs

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe")]

FRAME_S = 1 / 25
TICKS = {"v": 90_000, "a": 48_000}


def measured(path: Path, kind: str, filters: str) -> list[tuple[float, float]]:
    """Return what *filters* measure: when, on the clock of the file and with its edit lists honoured, and the value."""
    form = ["-f", "mpegts" if path.read_bytes()[:1] == b"\x47" else "mp4"]
    words = ["-v", "fatal", "-nostdin", "-copyts", *form, "-i", str(path), "-map", f"0:{kind}", "-fps_mode", "passthrough"]
    told = output(CHECKING, *words, f"-filter:{kind}", filters, "-f", "null", "-")
    frames = re.findall(r"pts:(\d+) .*\n.*=(\S+)", told)
    return [(int(pts) / TICKS[kind], float(value)) for pts, value in frames]


def flash_and_beep_s(path: Path) -> tuple[float, float]:
    """Return when the first flash is shown and the first beep is heard, to a millisecond."""
    lit = measured(path, "v", f"scale=1:1:flags=area,settb=1/{TICKS['v']},signalstats,metadata=print:key=lavfi.signalstats.YAVG:file=-")
    split = f"asettb=1/{TICKS['a']},asetnsamples=n={TICKS['a'] // 1000},astats=metadata=1:reset=1"
    loud = measured(path, "a", f"{split},ametadata=print:key=lavfi.astats.Overall.Peak_level:file=-")
    assert lit[0][1] < 60
    return next(time_s for time_s, value in lit if value > 150), next(time_s for time_s, value in loud if value > -18)


def flashing(kind: Kind) -> Kind:
    """The kind with a picture and a sound that are silent and dark but for a tenth of each second."""
    lit = "between(mod(t,1),0.399,0.5)"
    dark = f"drawbox=t=fill:color=black:enable='not({lit})',drawbox=t=fill:color=white:enable='{lit}'"
    silent = "asetnsamples=n=48,volume=volume='12*between(mod(t,1),0.4,0.5)':eval=frame,aresample=48000"
    return replace(kind, video=(*kind.video, "-vf", dark), audio=(("-c:a", "aac", "-b:a", "96k", "-filter:a", silent),))


def as_played(job: EncodeJob, folder: Path) -> list[tuple[float, float]]:
    """Return when the first flash and the first beep come in the rung, and in the source."""
    made, given = job.outputs["small"].read_bytes(), job.source.read_bytes()
    if job.init:
        source_head, (head, media) = job.init.read_bytes(), parted(made)
        made, given = with_edits(head, source_head, job.info) + media, source_head + given
    found = []
    for body in (made, given):
        (folder / "played").write_bytes(body)
        found.append(flash_and_beep_s(folder / "played"))
    return found


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
            (flash_s, beep_s), given = as_played(job, folder)
            assert (flash_s, beep_s) == pytest.approx(given, abs=1e-4)
            assert offset_s <= flash_s < offset_s + 5
            apart.append(flash_s - beep_s)
    assert max(map(abs, apart)) < FRAME_S
    assert max(apart) - min(apart) < 0.0011


@pytest.mark.parametrize(("ladder", "program"), in_turn(["small:90:100", "small:90:100:64"], ffmpegs()))
def test_edit_lists_keep_flash_and_beep_together_in_rungs_as_in_the_source(ladder: str, program: str, tmp_path: Path) -> None:
    kind = flashing(Kind(fmp4=(), edit_lists=True, ladder=ladder))
    source = make(tmp_path, kind)
    assert source.init
    assert source.init.read_bytes().count(b"elst") == 2
    jobs = jobs_for(source, kind.ladder, tmp_path)
    encode(ffmpegs()[program], *jobs)
    for job in jobs:
        (flash_s, beep_s), given = as_played(job, tmp_path)
        assert flash_s == pytest.approx(given[0], abs=1e-4)
        assert beep_s == pytest.approx(given[1], abs=0.0011)
        assert abs(flash_s - beep_s) < 0.01
