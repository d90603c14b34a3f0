"""`hlsrelay check` as an operator types it, on real output: ffmpeg's own muxer, a bad server, and our own relay."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.acceptance.judged import check, judged
from tests.acceptance.live_source import muxing, nginx
from tests.acceptance.relay_process import ROOT, redis_server, relaying
from tests.needs import needs
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, needs("ffmpeg")]

LATE = {"A-timing"}
"""How well a source and a relay keep their times is this machine's affair: it runs other tests besides."""

realtime = pytest.mark.xdist_group("realtime")


def rules(findings: list[str]) -> set[str]:
    """Return the rules that findings name."""
    return {finding.partition(" ")[0] for finding in findings}


@pytest.mark.night
@realtime
def test_what_ffmpeg_publishes_into_a_folder_breaks_no_rule(tmp_path: Path) -> None:
    with muxing(tmp_path / "origin", segment_s=1, size="320x180") as source, judged(tmp_path / "origin") as verdict:
        until(lambda: len(source.segments()) >= 12, 60)
    assert verdict.of("error") == []
    assert verdict.segments >= 11
    assert verdict.removed >= 1
    assert rules(verdict.of("warning")) - LATE == {"A12"}, "it writes no PROGRAM-DATE-TIME unless it is told to"


@pytest.mark.night
@realtime
@needs("nginx", "redis-server", "redis-cli")
def test_what_the_relay_publishes_breaks_no_rule(tmp_path: Path) -> None:
    with (
        redis_server() as redis,
        nginx(tmp_path / "origin", tmp_path / "nginx") as url,
        muxing(tmp_path / "origin", segment_s=1, size="640x360") as source,
    ):
        until(lambda: len(source.segments()) >= 3)
        redis.hset("hlsrelay:stream:news", source=f"{url}/live.m3u8", desired="run", ladder="small:180:300,audio", window="6")
        with relaying(tmp_path / "data", redis) as relay:
            until(lambda: len(relay.numbers("small")) >= 3)
            with judged(relay.playlist) as verdict, judged(tmp_path / "data" / "live" / "news") as on_disk:
                first = relay.numbers("small")[0]
                until(lambda: relay.numbers("small")[0] >= first + 8, 60)
    assert verdict.segments >= 3 * 8
    assert verdict.removed >= 3
    for one in (verdict, on_disk):
        assert rules(one.of("warning")) - LATE == set()


# A bad server --------------------------------------------------------------------------------------------------------------------------


@contextmanager
def serving(folder: Path, answer: Callable[[str, bytes], tuple[int, str, bytes]]) -> Iterator[str]:
    """Serve *folder*; *answer* makes status, type and body of each file from its name and bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            status, kind, body = answer(self.path.lstrip("/"), path.read_bytes()) if path.is_file() else (404, "text/plain", b"")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def passed_on(name: str, body: bytes) -> tuple[int, str, bytes]:
    return 200, "application/vnd.apple.mpegurl" if name.endswith(".m3u8") else "video/mp2t", body


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stream of ffmpeg's, to serve from: ten segments of a second."""
    folder = tmp_path_factory.mktemp("recorded")
    argv = ["ffmpeg", "-loglevel", "error", "-nostdin", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25:duration=10"]
    argv += ["-f", "lavfi", "-i", "sine=440:sample_rate=48000:duration=10", "-c:v", "libx264", "-preset", "ultrafast", "-g", "25"]
    argv += ["-sc_threshold", "0", "-pix_fmt", "yuv420p", "-c:a", "aac", "-f", "hls", "-hls_time", "1", "-hls_list_size", "0"]
    subprocess.run(
        [*argv, "-hls_flags", "program_date_time", "-hls_segment_filename", "%d.ts", "live.m3u8"], cwd=folder, check=True, timeout=60
    )
    return folder


def test_a_finished_stream_is_judged_at_once_and_breaks_no_rule(recorded: Path) -> None:
    code, verdict, _ = check(str(recorded))
    assert (code, verdict.of("error"), verdict.of("warning")) == (0, [], [])
    assert verdict.segments == 10


FAULTS: dict[str, tuple[Callable[[str, bytes], tuple[int, str, bytes]], str]] = {
    "the type of a web page": (lambda name, body: (200, "text/html", body) if name.endswith("m3u8") else passed_on(name, body), "A1"),
    "a segment that is not there": (lambda name, body: (404, "text/plain", b"") if name == "7.ts" else passed_on(name, body), "A11"),
    "a segment that is cut": (lambda name, body: passed_on(name, body[:-100] if name == "7.ts" else body), "A8"),
    "a target duration of nothing": (lambda name, body: passed_on(name, body.replace(b"DURATION:1\n", b"DURATION:0\n")), "A2"),
    "an EXTINF that lies": (lambda name, body: passed_on(name, body.replace(b"#EXTINF:1.000000", b"#EXTINF:1.300000")), "A-extinf"),
    "segments in the wrong order": (lambda name, body: passed_on(name, body.replace(b"\n7.ts", b"\n6.ts")), "A10"),
    "a VERSION that is too low": (lambda name, body: passed_on(name, re.sub(rb"VERSION:\d", b"VERSION:2", body)), "A18"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_real_server_is_found_under_its_rule(name: str, recorded: Path) -> None:
    answer, rule = FAULTS[name]
    with serving(recorded, answer) as url:
        code, verdict, _ = check(f"{url}/live.m3u8")
    errors = verdict.of("error")
    assert code == 1
    assert rules(errors) - {"A12"} == {rule}, errors


def test_a_playlist_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    code, _, words = check("http://127.0.0.1:1/live.m3u8")
    assert code == 1
    assert len(words.splitlines()) == 1
    assert words.startswith("hlsrelay: http://127.0.0.1:1/live.m3u8")
    code, _, words = check(str(tmp_path))
    assert (code, len(words.splitlines())) == (2, 1)


def test_findings_and_verdict_are_words_for_people_too(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "copy")
    os.remove(tmp_path / "copy" / "5.ts")
    argv = [sys.executable, "-m", "hlsrelay", "check", str(tmp_path / "copy")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    first, *_, last = done.stdout.splitlines()
    assert re.match(r"error +A11 +\S+live\.m3u8: a listed segment is missing, and no GAP: segment 5: HTTP 404", first)
    assert last.startswith("1 rule broken, 0 warnings: 1 playlist loaded 1 time, ")
