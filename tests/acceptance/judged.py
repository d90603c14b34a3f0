"""The judge beside every acceptance test: what `hlsrelay check` does, in a thread of the test's process, while the block runs.

    with relaying(data, redis) as relay: ...                    # relaying, served and started bring it: no test can forget
    with judged(relay.data / "live" / "news") as verdict: ...   # more of it

At the end of the block no rule of live HLS may have been broken, and the judge must have seen something.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from hlsrelay import checking
from hlsrelay.checking import Report
from hlsrelay.errors import UpstreamError
from hlsrelay.judge import Finding, Severity

ROOT = Path(__file__).parents[2]
FOR_EVER_S = 86400.0
LOOKED_FOR_EVERY_S = 0.05
SAYS_SO_WITHIN_S = 20.0
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass
class Verdict:
    """What a judge said: complete once the block is left."""

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
        """Take in what `hlsrelay check --json` printed."""
        for line in map(json.loads, words.splitlines()):
            if "verdict" in line:
                self.text, self.loads, self.segments, self.removed = line["verdict"], line["loads"], line["segments"], line["removed"]
            else:
                self.findings.append(line)


class Judging(threading.Thread):
    """A judge at work on *target*, a URL or a folder, from when there is a playlist on."""

    def __init__(self, target: str) -> None:
        super().__init__(name=f"judge of {target}", daemon=True)
        self.verdict = Verdict()
        self._target = target
        self._leaving = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = asyncio.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Watch until `end`, or until nothing is live any more."""
        try:
            asyncio.run(self._watch())
        except BaseException as failure:
            self._failure = failure

    def end(self) -> Verdict:
        """Let it say what it found. Called before a test stops what is judged: a closed port proves nothing. Raises what went wrong."""
        self._leaving.set()
        if self._loop is not None and self.is_alive():
            with suppress(RuntimeError):  # it went between the two lines
                self._loop.call_soon_threadsafe(self._told.set)
        self.join(SAYS_SO_WITHIN_S)
        assert not self.is_alive(), f"{self.name} does not come to its end"
        if self._failure is not None:
            raise self._failure
        return self.verdict

    async def _watch(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._leaving.is_set():  # it has its one look all the same
            self._told.set()
        with httpx.Client(trust_env=False) as client:
            while not _is_there(self._target, client):
                if self._leaving.is_set():
                    return
                await self._moment()
        self._heard(await self._checked())

    async def _checked(self) -> Report:
        while True:
            try:
                return await checking.check(self._target, FOR_EVER_S, tell=self._finding, leaving=self._told)
            except UpstreamError:  # it was there a moment ago, and went before it was read
                if self._leaving.is_set():
                    return Report(self._target)
                await self._moment()

    async def _moment(self) -> None:
        """Wait before the next look, or until we are told to leave."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOKED_FOR_EVERY_S):
                await self._told.wait()

    def _finding(self, finding: Finding) -> None:
        self.verdict.findings.append(
            {name: getattr(finding, name) for name in ("rule", "severity", "where", "kind", "detail", "at_s", "count")}
        )

    def _heard(self, report: Report) -> None:
        self.verdict.text, self.verdict.loads = report.verdict, report.loads
        self.verdict.segments, self.verdict.removed = report.segments, report.removed


def accept(verdict: Verdict, allowed: Mapping[str, str] = NOTHING) -> None:
    """Assert that a judge has seen something, and no error but of the rules *allowed*, each with its reason."""
    assert all(allowed.values()), "say why a rule may be broken"
    assert verdict.loads, "the judge saw no playlist"
    errors = [error for error in verdict.of(Severity.ERROR) if error.partition(" ")[0] not in allowed]
    assert not errors, "\n".join([verdict.text, *errors])


@contextmanager
def judged(target: str | Path, *, allowed: Mapping[str, str] = NOTHING) -> Iterator[Verdict]:
    """Let a judge watch *target*, a URL or a folder, while the block runs, from when there is a playlist on.

    Afterwards asserts that it found no error but of the rules *allowed* (rule to reason). An exception of the block comes first.
    """
    judging = Judging(str(target))
    judging.start()
    try:
        yield judging.verdict
    finally:
        verdict = judging.end()
    accept(verdict, allowed)


def check(target: str, *words: str) -> tuple[int, Verdict, str]:
    """Run `hlsrelay check --json` to its end; returns its exit code, what it found, and its words on stderr."""
    argv = [sys.executable, "-m", "hlsrelay", "check", target, "--json", *words]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    verdict = Verdict()
    verdict.read(done.stdout)
    return done.returncode, verdict, done.stderr


def _is_there(target: str, client: httpx.Client) -> bool:
    if not target.startswith("http"):
        return any(Path(target).glob("*.m3u8")) or Path(target).is_file()
    try:
        return client.get(target).status_code == 200
    except httpx.TransportError:
        return False
