"""`hlsrelay bench` for real: its own origin, ffmpeg and hlsrelay against it, one stream of short segments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from bench.figures import Row
from tests.needs import needs

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "nginx")]

ROOT = Path(__file__).parents[2]


def argv(folder: Path, *more: str) -> list[str]:
    words = ["--streams", "1", "--peers", "ffmpeg,hlsrelay", "--rounds", "1", "--segment-seconds", "1", "--seconds", "3"]
    return [sys.executable, "-m", "hlsrelay", "bench", *words, "--cache", str(folder / "cache"), "--data", str(folder / "data"), *more]


def in_use(folder: Path) -> list[str]:
    """Return the command lines of processes that name *folder*."""
    lines = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            lines += [words] if str(folder) in words else []
    return lines


@pytest.mark.night
def test_one_stream_is_measured_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    out = tmp_path / "rows.json"
    large = ["--large-pages"] if os.geteuid() == 0 else []
    words = argv(tmp_path, "--json", str(out), "--svg", str(tmp_path / "drawing.svg"), *large)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["peer"]: row for row in json.loads(out.read_text())}
    assert list(rows) == ["ffmpeg", "hlsrelay"], done.stdout
    for row in rows.values():
        assert list(row) == [field.name for field in fields(Row)]
        assert row["streams"] == 1
        assert 0 < row["cpu_s_per_stream_minute"] < 120, done.stdout
        assert 1 < row["pss_mib_per_stream"] < 1000, done.stdout
        assert 0 <= row["latency_p50_s"] <= row["latency_p95_s"] < 60, done.stdout
        assert row["requests_per_segment"] > 0, done.stdout
    assert rows["hlsrelay"]["identical"] == 1.0, done.stdout
    assert rows["hlsrelay"]["sequence_kept"] is True, done.stdout
    assert rows["ffmpeg"]["identical"] == 0.0, done.stdout  # it remuxes
    assert "hlsrelay" in done.stdout
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert "<svg" in (tmp_path / "drawing.svg").read_text()
    assert list((tmp_path / "data").iterdir()) == []
    assert in_use(tmp_path) == []


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with subprocess.Popen(argv(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "0 of 1 up" in line:
                break
        assert in_use(tmp_path / "data")
        process.send_signal(signal.SIGINT)
        words = process.stderr.read()
    assert process.returncode == 130, words
    assert "Traceback" not in words
    assert list((tmp_path / "data").iterdir()) == []
    assert in_use(tmp_path / "data") == []
