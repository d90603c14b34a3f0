"""`hlsrelay probe` as an operator types it, on a source that ffmpeg makes: what it says, and that its last line can be pasted."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.live_source import muxing, nginx
from tests.acceptance.relay_process import ROOT, environment, hlsrelay, redis_server
from tests.needs import needs
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "nginx", "redis-server", "redis-cli")]


def probe(*words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "hlsrelay", "probe", *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.night
def test_a_real_source_is_told_in_words_and_json_and_its_last_line_registers_it(tmp_path: Path) -> None:
    with (
        nginx(tmp_path / "origin", tmp_path / "nginx") as url,
        muxing(tmp_path / "origin" / "tv", segment_s=1) as source,
        redis_server() as redis,
    ):
        until(lambda: len(source.segments()) >= 3)
        code, words, errors = probe(f"{url}/tv/live.m3u8", "--seconds", "2")
        assert (code, errors) == (0, "")
        assert re.search(r"(?m)^  media +ts: avc1\.\w+, mp4a\.40\.2, 1280x720 at 30 fps, \d+ kbit/s", words), words
        assert re.search(r"(?m)^  key frames +every 1 s; 3 of 3 segments begin with one$", words), words
        assert re.search(r"(?m)^watched +2 s", words), words
        code, said, _ = probe(f"{url}/tv/live.m3u8", "--seconds", "0", "--json")
        found = json.loads(said)
        assert (code, found["ladder"], found["tracks"][0]["gop_s"]) == (0, "480p,360p", [1.0, 1.0])
        program, *command = shlex.split(found["command"])
        assert (program, found["command"] in words) == ("hlsrelay", True)
        hlsrelay(*command, env=environment(tmp_path / "data", redis))
        assert redis.cli("HGET", "hlsrelay:stream:tv", "ladder") == "480p,360p"


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("http://127.0.0.1:1/live.m3u8",), 1, "hlsrelay: http://127.0.0.1:1/live.m3u8: "),
        (("http://me:hunter2@127.0.0.1:1/live.m3u8?token=hunter2",), 1, "hlsrelay: http://127.0.0.1:1/live.m3u8?token=…: "),
        (("/a/folder",), 2, "hlsrelay: '/a/folder' can't be used: write an http:// or https:// URL"),
        (("http://127.0.0.1:1/live.m3u8", "--headers", "Referer: x"), 2, "hlsrelay: headers is no JSON: "),
    ],
)
def test_what_can_not_be_probed_is_one_line_and_an_exit_code(words: tuple[str, ...], code: int, line: str) -> None:
    ended, said, errors = probe(*words)
    assert (ended, said) == (code, "")
    assert errors.startswith(line)
    assert len(errors.splitlines()) == 1
    assert "hunter2" not in errors
