"""The judge beside any acceptance test: `hlsrelay check` as a process of its own, while the block runs.

    with relaying(data, redis) as relay, judged(relay.playlist) as verdict: ...

At the end of the block no rule of live HLS may have been broken, and the judge must have seen something.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.relay_process import ROOT, running, until

FOR_EVER_S = "86400"
SAYS_SO_WITHIN_S = 15.0


@dataclass
class Verdict:
    """What `hlsrelay check --json` said: complete once the block is left."""

    findings: list[dict[str, Any]] = field(default_factory=list)
    loads: int = 0
    segments: int = 0
    removed: int = 0
    text: str = ""

    def of(self, severity: str) -> list[str]:
        """Return the findings of one severity, each as one line."""
        return [
            f"{one['rule']} {one['where'].rpartition('/live/')[2]}: {one['kind']} ({one['detail'] or '-'}), at {one['at_s']:.1f} s"
            for one in self.findings
            if one["severity"] == severity
        ]

    def read(self, words: str) -> None:
        """Take in what the process printed."""
        for line in map(json.loads, words.splitlines()):
            if "verdict" in line:
                self.text, self.loads, self.segments, self.removed = line["verdict"], line["loads"], line["segments"], line["removed"]
            else:
                self.findings.append(line)


@contextmanager
def judged(target: str, *words: str, allowed: tuple[str, ...] = ()) -> Iterator[Verdict]:
    """Run `hlsrelay check` on *target*, a URL or a folder, while the block runs, from when there is a playlist on.

    Afterwards asserts that it found no error but of the rules *allowed*. An exception of the block comes first.
    """
    until(lambda: _is_there(target))
    verdict = Verdict()
    argv = [sys.executable, "-m", "hlsrelay", "check", target, "--seconds", FOR_EVER_S, "--json", *words]
    with tempfile.TemporaryDirectory(prefix="judged-") as name:
        stdout, stderr = Path(name, "stdout"), Path(name, "stderr")
        with running(argv, stderr, stdout=stdout, cwd=ROOT) as process:
            yield verdict
            _told_to_go(process)
        verdict.read(stdout.read_text())
        complaint = stderr.read_text()
    assert verdict.text, f"it said nothing: {complaint}"
    assert verdict.loads, verdict.text
    errors = [error for error in verdict.of("error") if error.partition(" ")[0] not in allowed]
    assert not errors, "\n".join([verdict.text, *errors])


def check(target: str, *words: str) -> tuple[int, Verdict, str]:
    """Run `hlsrelay check --json` to its end; returns its exit code, what it found, and its words on stderr."""
    argv = [sys.executable, "-m", "hlsrelay", "check", target, "--json", *words]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    verdict = Verdict()
    verdict.read(done.stdout)
    return done.returncode, verdict, done.stderr


def _is_there(target: str) -> bool:
    if not target.startswith("http"):
        return any(Path(target).glob("*.m3u8")) or Path(target).is_file()
    try:
        return httpx.get(target, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _told_to_go(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(SAYS_SO_WITHIN_S)
