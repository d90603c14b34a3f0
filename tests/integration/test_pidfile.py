"""One daemon per pid file, with real processes: who holds it is the kernel's word, not what stands in the file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

from hlsrelay.errors import HlsRelayError, ResourceBusy
from hlsrelay.pidfile import held, quit_daemon

DAEMON = """
import signal, sys
from pathlib import Path
from hlsrelay.pidfile import held
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else lambda *_: sys.exit(0))
with held(Path(sys.argv[1])):
    print("held", flush=True)
    while True:
        signal.pause()
"""


@contextmanager
def daemon(path: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds *path*, until it is told to go or the block ends."""
    with subprocess.Popen([sys.executable, "-c", DAEMON, str(path), *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_one_is_refused_and_hears_who_runs_and_how_to_end_it(tmp_path: Path) -> None:
    path = tmp_path / "hlsrelay.pid"
    with daemon(path) as first:
        assert path.read_text() == f"{first.pid}\n"
        with pytest.raises(ResourceBusy, match=f"process {first.pid} holds .*: hlsrelay quit --pid-file {path} ends it"), held(path):
            pytest.fail("two hold it")
        assert path.read_text() == f"{first.pid}\n"


def test_quit_waits_until_it_is_gone_and_the_file_with_it(tmp_path: Path) -> None:
    path = tmp_path / "hlsrelay.pid"
    with daemon(path) as process:
        reaping = Timer(0, process.wait)  # a zombie counts as gone; its parent is to have it all the same
        reaping.start()
        assert quit_daemon(path, 10) == process.pid
        reaping.join()
        assert process.returncode == 0
    assert not path.exists()
    assert quit_daemon(path, 10) is None


def test_what_a_killed_process_left_is_no_process_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "hlsrelay.pid"
    with daemon(path) as process:
        process.kill()
        process.wait()
    path.write_text(f"{os.getpid()}\n")  # its pid is another's by now, and that one stays alive
    assert quit_daemon(path, 10) is None
    with held(path):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


def test_one_that_does_not_leave_in_time_is_told_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "hlsrelay.pid"
    said: list[str] = []
    with daemon(path, "stubborn") as process:
        with pytest.raises(HlsRelayError, match=f"process {process.pid} is still there after 0.2 s"):
            quit_daemon(path, 0.2, said.append)
        assert process.poll() is None
        assert said[-1].startswith(f"process {process.pid} is leaving")


def test_a_child_that_outlives_it_does_not_hold_its_file(tmp_path: Path) -> None:
    path = tmp_path / "hlsrelay.pid"
    with held(path):
        child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], close_fds=False)
    try:
        with held(path):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_file_that_was_taken_away_and_made_anew_between_opening_and_locking_is_not_mistaken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hlsrelay.pid"
    opened = os.open

    def slowly(*arguments: object, **options: object) -> int:
        descriptor = opened(*arguments, **options)  # type: ignore[arg-type]
        monkeypatch.setattr(os, "open", opened)
        path.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", slowly)
    with held(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_folder_that_is_not_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    told = "can't be written: No such file or directory; give one that can with --pid-file"
    with pytest.raises(ResourceBusy, match=told), held(tmp_path / "none" / "x.pid"):
        pytest.fail("it can't be there")
