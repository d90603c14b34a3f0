"""A real Chromium that watches a relay's page and says what a viewer would have seen.

    report = watch(url, "news", seconds=15, switch_after_s=5)
    assert report.smooth()

The browser is the system's; nothing is ever downloaded. Calls block: from a running event loop, use asyncio.to_thread.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

STALL_S = 0.5
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
)
REPORT = "window.hlsrelayPlayback.report"


@dataclass(frozen=True)
class Level:
    """A quality that came on screen at *at_s* of the stream's time."""

    at_s: float
    name: str
    height: int
    bitrate: int


@dataclass(frozen=True)
class Playback:
    """What one viewer saw. Stalls are as long as the picture stood, by the page's own sampling of the position."""

    player: str
    played_s: float
    startup_s: float
    current_time_s: float
    playing: bool
    latency_s: float | None
    stalls_s: tuple[float, ...]
    buffer_stalls: int
    jumps_s: tuple[float, ...]
    fatal: tuple[str, ...]
    errors: dict[str, int]
    levels: tuple[Level, ...]
    height: int
    switched_at_s: float | None
    decoded_frames: int
    dropped_frames: int
    console: tuple[str, ...]

    def smooth(self) -> bool:
        """Say whether nobody would complain: no fatal error, no stall longer than STALL_S, no jump."""
        return not self.fatal and not self.jumps_s and all(stall_s <= STALL_S for stall_s in self.stalls_s)


class Viewer:
    """One open page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.switched_at_s: float | None = None
        self._console: list[str] = []
        page.on("console", lambda message: self._console.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self._console.append(str(error)))

    def open(self, url: str, stream: str = "") -> None:
        """Open the relay's page; *stream* plays, or the first that runs."""
        self.page.goto(f"{url}/#{stream}" if stream else url)

    def played(self, seconds: float, *, patience_s: float = 30) -> None:
        """Return once *seconds* were played since the stream was opened. Raises TimeoutError when that takes *patience_s* longer."""
        self.until(f"{REPORT}.played_s >= {seconds}", patience_s=seconds + patience_s)

    def switch(self, *, patience_s: float = 30) -> None:
        """Force another quality than the one on screen, and return once it is there."""
        report = self._report()
        now = report["levels"][-1]["index"]
        index = next(index for index in range(len(report["choices"])) if index != now)
        self.switched_at_s = float(report["current_time_s"])
        self.page.evaluate(f"window.hlsrelayPlayback.setLevel({index})")
        height = report["choices"][index]["height"]
        self.until(f"{REPORT}.levels.at(-1).index === {index} && {REPORT}.height === {height}", patience_s=patience_s)

    def until(self, expression: str, *, patience_s: float = 30) -> None:
        """Return once *expression* is true on the page. Raises TimeoutError with what was seen instead."""
        deadline_s = time.monotonic() + patience_s
        while not self.page.evaluate(expression):  # not wait_for_function: that one evals, which the page's policy forbids
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"not within {patience_s} s: {expression}; {self.report()}")
            self.page.wait_for_timeout(100)

    def report(self) -> Playback:
        """Return what was seen up to now; a stall that goes on is among the stalls."""
        seen = self._report()
        stalls = [float(stall["duration_s"]) for stall in seen["stalls"]] + ([float(seen["stalling_s"])] if seen["stalling_s"] else [])
        return Playback(
            player=seen["player"],
            played_s=seen["played_s"],
            startup_s=seen["startup_s"] or 0.0,
            current_time_s=seen["current_time_s"],
            playing=seen["playing"],
            latency_s=seen["latency_s"],
            stalls_s=tuple(stalls),
            buffer_stalls=seen["buffer_stalls"],
            jumps_s=tuple(float(jump["by_s"]) for jump in seen["jumps"]),
            fatal=tuple(seen["fatal"]),
            errors=seen["errors"],
            levels=tuple(Level(level["at_s"], level["name"], level["height"], level["bitrate"]) for level in seen["levels"]),
            height=seen["height"],
            switched_at_s=self.switched_at_s,
            decoded_frames=seen["decoded_frames"],
            dropped_frames=seen["dropped_frames"],
            console=tuple(self._console),
        )

    def _report(self) -> dict[str, Any]:
        report: dict[str, Any] = self.page.evaluate(REPORT)
        return report

    def text(self) -> str:
        """Return what a reader of the page sees."""
        return self.page.inner_text("body")

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Keep a picture of the page."""
        self.page.screenshot(path=path, full_page=whole)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run the system's Chromium while the block runs."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "no Chromium on PATH: mark the test with needs('chromium')"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def viewer(*, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Viewer]:
    """Open one page of one browser."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        yield Viewer(page)


def watch(url: str, stream: str = "", *, seconds: float, switch_after_s: float | None = None, picture: Path | None = None) -> Playback:
    """Watch *stream* on the relay's page at *url* for *seconds* of playing, with a forced switch of quality on the way if asked for."""
    with viewer() as watching:
        watching.open(url, stream)
        if switch_after_s is not None:
            watching.played(switch_after_s)
            watching.switch()
        watching.played(seconds)
        if picture is not None:
            watching.screenshot(picture)
        return watching.report()


def screenshot(
    url: str, path: Path, stream: str = "", *, played_s: float = 2, width: int = 1280, height: int = 900, dark: bool = False
) -> None:
    """Keep a picture of the relay's page at *url* once *played_s* of *stream* were played; 0: as soon as the streams are shown."""
    with viewer(width=width, height=height, dark=dark) as watching:
        watching.open(url, stream)
        if played_s:
            watching.played(played_s)
        watching.until("!document.getElementById('main').hidden || !document.getElementById('empty').hidden")
        watching.screenshot(path)
