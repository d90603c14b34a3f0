"""The command line as an operator uses it: real processes, a real Redis, and every error one line with its exit code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.relay_process import RedisServer
from tests.needs import needs

pytestmark = [pytest.mark.acceptance, needs("redis-server", "redis-cli")]

SOURCE = "https://live.example/index.m3u8"
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path, redis: RedisServer) -> Cli:
    """Runs `hlsrelay …` with a data directory of its own, and a Redis that is empty."""
    redis.cli("FLUSHALL")

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HLSRELAY_")}
        ours = {"HLSRELAY_DATA": str(tmp_path / "data"), "HLSRELAY_HTTP": "127.0.0.1:0", "HLSRELAY_REDIS_URL": redis.url}
        surroundings = {**clean, **ours, **env}
        argv = [sys.executable, "-m", "hlsrelay", *words]
        return subprocess.run(argv, env=surroundings, capture_output=True, text=True, timeout=60, check=False)

    return run


def refused(done: subprocess.CompletedProcess[str], code: int, *hints: str) -> None:
    """Assert that a command failed with one line that holds all *hints*."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr
    for hint in hints:
        assert hint in lines[0]


def test_a_stream_lives_through_all_verbs(cli: Cli) -> None:
    assert "No stream is registered" in cli("ls").stdout
    assert cli("add", "news", SOURCE, "--ladder", "720p,480p").returncode == 0
    assert cli("add", "sport", SOURCE + "?token=secret", "--stopped").returncode == 0
    listed = json.loads(cli("ls", "--json").stdout)
    assert [(one["id"], one["desired"], one["state"]) for one in listed] == [("news", "run", "registered"), ("sport", "stop", "registered")]
    assert "secret" not in cli("ls").stdout + cli("show", "sport").stdout
    changed = json.loads(cli("set", "news", "ladder=", "window=30", "--json").stdout)
    assert changed == {"id": "news", "source": SOURCE, "desired": "run", "window": "30"}
    assert cli("stop", "news").stdout == "news: desired is stop\n"
    assert json.loads(cli("show", "news", "--json").stdout)["desired"] == "stop"
    assert json.loads(cli("start", "news", "--json").stdout)["desired"] == "run"
    assert cli("rm", "news").returncode == 0
    assert [one["id"] for one in json.loads(cli("ls", "--json").stdout)] == ["sport"]


def test_a_file_is_applied_after_its_difference_was_shown_and_what_is_not_in_it_stays_or_goes(cli: Cli, tmp_path: Path) -> None:
    cli("add", "old", SOURCE)
    file = tmp_path / "streams.yaml"
    file.write_text(f"streams:\n  news:\n    source: {SOURCE}?token=secret\n    ladder: [480p, 360p]\n")
    shown = cli("apply", "-f", str(file), "--prune", "--dry-run").stdout
    assert "+ news: desired=run, source=" in shown
    assert "- old\n" in shown
    assert "secret" not in shown
    assert cli("apply", "-f", str(file)).stdout.endswith("Applied.\n")
    assert [one["id"] for one in json.loads(cli("ls", "--json").stdout)] == ["news", "old"]
    file.write_text(file.read_text().replace("[480p, 360p]", "480p"))
    told = {"added": [], "changed": {"news": {"ladder": ["480p,360p", "480p"]}}, "removed": ["old"], "applied": True}
    assert json.loads(cli("apply", "-f", str(file), "--prune", "--json").stdout) == told
    file.write_text("streams: {news: {source: nowhere}}")
    refused(cli("apply", "-f", str(file)), 2, "stream 'news'", "http")


@pytest.mark.parametrize(
    ("words", "code", "hints"),
    [
        (("run", "nosuch"), 3, ("no stream 'nosuch'", "hlsrelay add nosuch")),
        (("show", "nosuch"), 3, ("hlsrelay add nosuch",)),
        (("stop", "nosuch"), 3, ("hlsrelay add nosuch",)),
        (("rm", "nosuch"), 3, ("hlsrelay add nosuch",)),
        (("run", "no/such"), 2, ("stream id",)),
        (("move", "nosuch", "a"), 3, ("hlsrelay add nosuch",)),
        (("drain", "nosuch"), 2, ("no node is called 'nosuch'",)),
        (("apply", "-f", "/no/such"), 2, ("/no/such can't be read",)),
        (("add", "news", "ftp://x/y"), 2, ("http:// or https://",)),
        (("add", "news", SOURCE, "--ladder", "721p"), 2, ("721p", "1080p")),
        (("add", "..", SOURCE), 2, ("stream id",)),
    ],
)
def test_what_cannot_work_is_one_line_with_a_documented_exit_code(
    cli: Cli, words: tuple[str, ...], code: int, hints: tuple[str, ...]
) -> None:
    refused(cli(*words), code, *hints)


def test_a_bad_change_changes_nothing(cli: Cli) -> None:
    cli("add", "news", SOURCE)
    refused(cli("set", "news", "window=30", "ladder=9p"), 2, "9p")
    refused(cli("set", "news", "laddr=480p"), 2, "laddr", "ladder")
    refused(cli("set", "news", "ladder"), 2, "FIELD=VALUE")
    assert json.loads(cli("show", "news", "--json").stdout) == {"id": "news", "source": SOURCE, "desired": "run"}


def test_adding_twice_is_refused_with_the_way_to_change_it_by_the_redis_that_comes_along_too(cli: Cli) -> None:
    cli("add", "news", SOURCE, HLSRELAY_REDIS_URL="")
    refused(cli("add", "news", SOURCE, HLSRELAY_REDIS_URL=""), 2, "hlsrelay set news source=")


def test_running_a_stopped_stream_is_refused_with_the_way_to_start_it(cli: Cli) -> None:
    cli("add", "news", SOURCE, "--stopped")
    refused(cli("run", "news"), 2, "hlsrelay start news")


def test_a_redis_that_is_away_is_one_line(cli: Cli) -> None:
    for words in (("ls",), ("run", "news"), ("add", "news", SOURCE)):
        refused(cli(*words, HLSRELAY_REDIS_URL="redis://127.0.0.1:1/0"), 4, "does not answer", "HLSRELAY_REDIS_URL")


def test_a_redis_url_that_is_none_is_one_line(cli: Cli) -> None:
    refused(cli("ls", HLSRELAY_REDIS_URL="localhost"), 2, "HLSRELAY_REDIS_URL")


def test_a_data_directory_that_can_not_be_written_is_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(cli("run", "news", HLSRELAY_DATA=str(tmp_path / "file" / "below")), 5, "HLSRELAY_DATA")


def test_a_port_that_is_taken_is_one_line(cli: Cli) -> None:
    cli("add", "news", SOURCE)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(cli("run", "news", HLSRELAY_HTTP=address), 5, address, "HLSRELAY_HTTP")


def test_settings_that_make_no_sense_are_one_line(cli: Cli) -> None:
    cli("add", "news", SOURCE)
    refused(cli("run", "news", HLSRELAY_HTTP="nowhere"), 2, "HLSRELAY_HTTP")
    refused(cli("run", "news", HLSRELAY_ALLOW_NETWORKS="10.0.0.0/33"), 2, "HLSRELAY_ALLOW_NETWORKS")
    refused(cli("run", "news", HLSRELAY_TRANSCODE_SLOTS="many"), 2, "HLSRELAY_TRANSCODE_SLOTS")


def test_a_bad_field_written_by_hand_is_in_the_hash_as_the_reason_of_the_failure(cli: Cli, redis: RedisServer) -> None:
    redis.hset("hlsrelay:stream:news", source=SOURCE, ladder="480")
    refused(cli("run", "news"), 2, "480", "name:height:kbps")
    shown = json.loads(cli("show", "news", "--json").stdout)
    assert shown["state"] == "failed"
    assert "480" in shown["reason"]


def test_help_names_every_verb_and_the_exit_codes(cli: Cli) -> None:
    help_text = cli("--help").stdout
    for verb in ("run", "add", "set", "ls", "show", "start", "stop", "rm", "demo", "demo-origin"):
        assert f" {verb} " in help_text
    assert "Exit codes" in help_text


def test_help_answers_without_loading_the_relay(cli: Cli) -> None:
    slow = ("aiohttp", "redis", "uvicorn", "m3u8", "pydantic", "rich.markdown")
    code = (
        f"import sys; from hlsrelay.cli import app; app(['--help'], standalone_mode=False); sys.exit(sum(m in sys.modules for m in {slow}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:6]) == (0, "Usage:")
