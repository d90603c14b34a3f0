"""When a child is hung. Pure.

Laws:
- What ffmpeg reports (`-progress`) is progress when a figure of it differs from the last one: that a report came says nothing, since
  ffmpeg 7 and later go on reporting from a thread of their own while the others are stuck.
- CPU time used is progress too: between two reports a decoder may work for long on a starved machine, and an encoder fills its
  look-ahead before the first frame comes out. Who is busy for nothing runs into its CPU limit and its deadline.
- Who can't get a core is starved, not hung: as long as one of its threads could run, nothing is held against it.
- What we did not watch does not count: if we are late, because the machine is, only one period is taken as quiet.
- So a child is hung when for 5 s all its threads waited or were stopped and nothing came of it: blocked on a full pipe, on a dead disk,
  on a lock that nobody frees, or by SIGSTOP.
"""

from __future__ import annotations

from dataclasses import dataclass

HUNG_AFTER_S = 5.0
PERIOD_S = 0.5
BUSY_CPU_S = 0.05
"""Less CPU time than this in HUNG_AFTER_S is what timers of a stuck ffmpeg cost: one hundredth of a core."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What an ffmpeg reported last. *out_time_s* is a time stamp of the media; None where ffmpeg says N/A."""

    frame: int | None = None
    out_time_s: float | None = None
    size_bytes: int | None = None
    speed: float | None = None


def parse(block: dict[str, str]) -> Progress:
    """Return the progress that a block of key=value lines tells; what is missing or no number is None."""
    out_time_us = _number(block.get("out_time_us"))
    frame, size = _number(block.get("frame")), _number(block.get("total_size"))
    return Progress(
        frame=None if frame is None else int(frame),
        out_time_s=None if out_time_us is None else out_time_us / 1_000_000,
        size_bytes=None if size is None else int(size),
        speed=_number(block.get("speed", "").strip().removesuffix("x")),
    )


class Watch:
    """Watches one child: `hung` is asked once a period."""

    def __init__(self, now_s: float) -> None:
        self._seen_s = now_s
        self._quiet_s = 0.0
        self._figures: tuple[int | None, float | None, int | None] | None = None
        self._cpu_s = 0.0

    def hung(self, now_s: float, progress: Progress | None, cpu_s: float, *, runnable: bool) -> bool:
        """Return whether it is hung, by the laws above; *runnable* says whether it runs or would if it could."""
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        figures = (progress.frame, progress.out_time_s, progress.size_bytes) if progress else None
        if figures != self._figures or cpu_s - self._cpu_s >= BUSY_CPU_S:
            self._figures, self._cpu_s, self._quiet_s = figures, cpu_s, 0.0
        elif not runnable:
            self._quiet_s += min(passed_s, PERIOD_S)
        return self._quiet_s >= HUNG_AFTER_S


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < 1e18 else None  # neither infinite nor no number
