"""What a low-latency playlist promises about itself (rfc8216bis 4.4.3.7, 4.4.3.8)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from hlsrelay.judge.findings import Complaint, error

_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,30})?")
_OFF_S = 0.001
"""Written to the millisecond."""


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


def _seconds(attributes: Mapping[str, str], name: str) -> float | None:
    text = attributes.get(name, "")
    return float(text) if _NUMBER.fullmatch(text) else None
