"""A real relay in the middle of encoding: seen by `hlsrelay ps` and the API, ended in every way, and nothing is left of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bench.origin import free_port
from bench.orphans import children, encoding, made, served
from hlsrelay.embedded import ffmpeg_path
from hlsrelay.errors import MissingProgram
from tests.acceptance.relay_process import ROOT, environment, hlsrelay, running
from tests.waiting import until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="children are found by Linux's /proc"),
]

LADDER = "a:480:1200,b:360:700,c:240:400"
ENDED_WITHIN_S = 5.0
SEGMENTS = 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of a live playlist whose ladder takes seconds."""
    folder = tmp_path_factory.mktemp("source")
    try:
        made(folder, ffmpeg_path(), segments=SEGMENTS)  # what is looked at takes seconds too: one is to be at work still
    except MissingProgram as error:
        pytest.skip(str(error))
    playlist = folder / "live.m3u8"  # with time enough for the ladder of each segment
    playlist.write_text(re.sub(r"(?<=#EXT-X-TARGETDURATION:)\d+", "60", playlist.read_text()))
    with served(folder) as url:
        yield f"{url}/live.m3u8"


@dataclass(frozen=True)
class Encoding:
    """A relay that has an ffmpeg encode just now."""

    process: subprocess.Popen[bytes]
    env: dict[str, str]
    data: Path
    url: str
    children: dict[int, str]

    @property
    def folder(self) -> Path:
        """The stream's."""
        return self.data / "live" / "news"


@contextmanager
def relay_encoding(data: Path, source: str) -> Iterator[Encoding]:
    env = environment(data, None, HLSRELAY_TRANSCODE_SLOTS="1", HLSRELAY_NODE="here", HLSRELAY_HTTP=f"127.0.0.1:{free_port()}")
    hlsrelay("add", "news", source, "--ladder", LADDER, env=env)
    words = data / "words"
    with running([sys.executable, "-m", "hlsrelay", "run", "news"], data / "log", stdout=words, cwd=ROOT, env=env) as process:
        until(lambda: encoding(process.pid) or process.poll() is not None, 60)
        assert process.poll() is None, (data / "log").read_text()
        url = words.read_text().split()[1].partition("/#")[0]
        yield Encoding(process, env, data, url, children(process.pid))


def ended(relay: Encoding) -> int:
    """Return the exit code of a relay that has been told to go; none of its children is left then, and no file under way."""
    code = relay.process.wait(30)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in relay.children), ENDED_WITHIN_S)
    assert children(relay.process.pid) == {}
    assert not list(relay.folder.glob(".tmp/*"))
    return code


def test_ps_and_the_api_show_what_runs_and_a_relay_told_to_go_takes_all_with_it(source: str, tmp_path: Path) -> None:
    with relay_encoding(tmp_path, source) as relay:

        def seen() -> dict[str, object] | None:
            told = json.loads(hlsrelay("ps", "--json", env=relay.env))
            found = [one for one in told["processes"] if one["node"] == "here" and one["purpose"].startswith("encode news ")]
            return found[0] if found and found[0]["frame"] else None

        child = until(seen, 60)
        assert isinstance(child["argv"], list)
        assert child["argv"][-1].startswith("file:")
        assert float(str(child["age_s"])) > 0
        assert float(str(child["cpu_s"])) > 0
        assert int(str(child["rss_bytes"])) > 1 << 20
        answer = httpx.get(f"{relay.url}/api/processes", trust_env=False).raise_for_status().json()
        purposes = [one["purpose"].split()[0] for one in answer["processes"] if one["node"] == "here"]
        assert "redis" in purposes
        assert [node["pressed"] for node in answer["nodes"] if node["node"] == "here"] == [False]
        until(lambda: encoding(relay.process.pid), 60)
        table = hlsrelay("ps", env=relay.env)
        assert "here" in table
        assert "redis" in table
        relay.process.send_signal(signal.SIGTERM)
        assert ended(relay) == 0
        log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
        assert "port.not_taken" not in {one["event"] for one in log}, "nobody else has it to give"
        ends = [one for one in log if one["event"] == "child.ended"]
        assert {one["reason"] for one in ends} <= {"cancelled", "no longer wanted", "overload", "shutdown"}
        assert "redis" in {one["purpose"] for one in ends}


def test_ctrl_c_ends_a_relay_that_encodes_and_leaves_nothing(source: str, tmp_path: Path) -> None:
    with relay_encoding(tmp_path, source) as relay:
        relay.process.send_signal(signal.SIGINT)
        assert ended(relay) == 0


@pytest.mark.night
def test_a_stream_is_removed_with_its_files_while_it_is_encoded(source: str, tmp_path: Path) -> None:
    with relay_encoding(tmp_path, source) as relay:
        hlsrelay("rm", "news", "--files", env=relay.env)
        assert not relay.folder.exists()
        relay.process.send_signal(signal.SIGTERM)  # it stays for players' last look
        assert ended(relay) == 0


@pytest.mark.night
def test_a_stream_is_stopped_while_it_is_encoded_and_what_was_begun_is_published(source: str, tmp_path: Path) -> None:
    with relay_encoding(tmp_path, source) as relay:
        hlsrelay("stop", "news", env=relay.env)
        playlists = [relay.folder / name / "index.m3u8" for name in ("source", *"abc")]
        until(lambda: all(one.exists() and "#EXT-X-ENDLIST" in one.read_text() for one in playlists), 120)
        for one in playlists:
            lines = one.read_text().splitlines()
            assert len([line for line in lines if line.endswith(".ts")]) == SEGMENTS
            for number in range(SEGMENTS):  # on a machine this busy a rung may come too late: then it is a GAP, and not a missing file
                tags = lines[: lines.index(f"{number}.ts")][-3:]
                assert "#EXT-X-GAP" in tags or (one.parent / f"{number}.ts").stat().st_size
        relay.process.send_signal(signal.SIGTERM)
        assert ended(relay) == 0


def test_a_killed_relay_leaves_no_orphan_and_jobs_in_a_row_leave_nothing_that_grows() -> None:
    argv = [sys.executable, "-m", "bench.orphans", "--kills", "3", "--jobs", "200"]
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout
    assert "200 jobs" in done.stdout
