"""What a low-latency playlist promises about itself, and its parts (rfc8216bis 4.4.3.7, 4.4.3.8, 4.4.4.9, 6.2.6, B.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest

from hlsrelay.judge.findings import Complaint, error, warning

_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,30})?")
_OFF_S = 0.001
"""Written to the millisecond."""
SHORTEST = 0.85
"""Of a PART-TARGET: a part that is neither independent, nor a gap, nor before one, nor the last of its segment."""


def promised(control: Mapping[str, str], part_inf: Mapping[str, str], target_duration_s: int) -> Iterator[Complaint]:
    """Judge EXT-X-SERVER-CONTROL and EXT-X-PART-INF; both are empty where there is no such tag."""
    part_s = _seconds(part_inf, "PART-TARGET")
    least = (
        ("HOLD-BACK", 3 * target_duration_s, "three target durations"),
        ("CAN-SKIP-UNTIL", 6 * target_duration_s, "six target durations"),
        ("PART-HOLD-BACK", 2 * (part_s or 0.0), "two PART-TARGETs"),
    )
    for name, least_s, meant in least:
        said_s = _seconds(control, name)
        if said_s is not None and said_s < least_s - _OFF_S:
            yield error("A23", f"{name} below {meant}", f"{said_s:g} s of {least_s:g} s")
    if part_s is not None and "PART-HOLD-BACK" not in control:
        yield error("A23", "EXT-X-PART-INF, and no PART-HOLD-BACK")


class Parts:
    """The EXT-X-PARTs of a playlist, by segment; the last of them may have no segment yet."""

    def __init__(self) -> None:
        self._segments: list[list[Mapping[str, str]]] = [[]]

    def add(self, attributes: Mapping[str, str]) -> None:
        """Take a part's attributes."""
        self._segments[-1].append(attributes)

    def end(self) -> None:
        """The segment that the last parts are of is listed."""
        if self._segments[-1]:
            self._segments.append([])

    def judged(self, part_inf: Mapping[str, str], *, hinted: bool, ended: bool) -> Iterator[Complaint]:
        """Judge them, and what a playlist that has parts must have."""
        if hinted and ended:
            yield error("A27", "an EXT-X-PRELOAD-HINT beside ENDLIST")
        if not any(self._segments):
            return
        if not hinted and not ended:
            yield warning("A27", "parts, and no EXT-X-PRELOAD-HINT")
        target_s = _seconds(part_inf, "PART-TARGET")
        if target_s is None:
            yield error("A24", "an EXT-X-PART, and no PART-TARGET")
            return
        for parts in self._segments:
            yield from _lengths(parts, target_s)


def _lengths(parts: list[Mapping[str, str]], target_s: float) -> Iterator[Complaint]:
    for part, after in zip_longest(parts, parts[1:]):
        lasts_s = _seconds(part, "DURATION")
        if lasts_s is None:
            continue
        if lasts_s > target_s + _OFF_S:
            yield error("A24", "a part longer than PART-TARGET", f"{lasts_s:g} s of {target_s:g} s")
        may_be_short = after is None or any(one.get("GAP") == "YES" for one in (part, after)) or part.get("INDEPENDENT") == "YES"
        if not may_be_short and lasts_s < SHORTEST * target_s - _OFF_S:
            yield error("A24", "a part shorter than 85 % of PART-TARGET", f"{lasts_s:g} s of {target_s:g} s")


def _seconds(attributes: Mapping[str, str], name: str) -> float | None:
    text = attributes.get(name, "")
    return float(text) if _NUMBER.fullmatch(text) else None
