"""What a measurement comes to: samples of one run each, the rows that are printed, and the arithmetic between them.

Laws:
- A ratio is taken between runs of one round, which ran one after the other; what is reported is the median of the rounds' ratios.
- What was not measured is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

BASELINE = "ffmpeg"
"""The peer that all others are held against."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A segment as a relay gave it: the stream, the source's number, when the source published it and when the relay had it listed and
    whole (seconds of the wall clock), the relay's own number, and whether its bytes are the source's (None: not looked at)."""

    stream: str
    number: int
    published_s: float
    arrived_s: float
    relay_number: int
    identical: bool | None = None

    @property
    def latency_s(self) -> float:
        """What the relay added."""
        return self.arrived_s - self.published_s


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one peer. *cpu_s* is user and system time of all its processes in *window_s* seconds, *pss_bytes* their memory at the end;
    *requests* and *playlist_requests* are what the origin was asked in that window."""

    peer: str
    streams: int
    round: int
    window_s: float
    segment_s: float
    cpu_s: float
    pss_bytes: int
    arrivals: tuple[Arrival, ...]
    requests: int
    playlist_requests: int
    note: str = ""
    loop_lag_p99_s: float | None = None
    """So late, at most, the loop of a peer that has one and tells was in 99 looks of 100."""

    @property
    def cpu_s_per_stream_minute(self) -> float:
        """CPU seconds for a minute of one stream."""
        return self.cpu_s / self.streams / self.window_s * 60

    @property
    def pss_mib_per_stream(self) -> float:
        """Memory of all processes, what they share counted once, over the number of streams."""
        return self.pss_bytes / self.streams / 2**20

    @property
    def published(self) -> float:
        """How many segments the source published meanwhile."""
        return self.streams * self.window_s / self.segment_s


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table, and an object of the JSON: medians over the rounds. None: not measured."""

    peer: str
    streams: int
    cpu_s_per_stream_minute: float | None = None
    pss_mib_per_stream: float | None = None
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    identical: float | None = None
    sequence_kept: bool | None = None
    requests_per_segment: float | None = None
    loop_lag_p99_s: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A row with what stands beside it for people: the CPU against the baseline's, how many rounds, and remarks."""

    row: Row
    cpu_ratio: float | None = None
    rounds: int = 0
    notes: tuple[str, ...] = ()


def percentile(values: Iterable[float], percent: float) -> float | None:
    """Return the least value that *percent* of *values* do not exceed (nearest rank); None where there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def most_in(counts: Mapping[float, float], percent: float) -> float | None:
    """Return the least upper bound that *percent* of what was counted does not exceed; *counts* tells how many are up to each."""
    total = max(counts.values(), default=0.0)
    return min((most for most, count in counts.items() if count >= percent / 100 * total), default=None) if total else None


def sequence_kept(arrivals: Iterable[Arrival]) -> bool | None:
    """Return whether the relay's numbers are the source's; None where nothing arrived."""
    found = [one.number == one.relay_number for one in arrivals]
    return all(found) if found else None


def lost(arrivals: Iterable[Arrival]) -> int:
    """Return how many numbers are missing between the first and the last arrival of each stream."""
    numbers: dict[str, set[int]] = {}
    for one in arrivals:
        numbers.setdefault(one.stream, set()).add(one.number)
    return sum(max(have) - min(have) + 1 - len(have) for have in numbers.values())


def row_of(samples: Sequence[Sample]) -> Row:
    """Return the row of one peer at one number of streams. What is a promise (identical, sequence) is the worst of the rounds."""
    first = samples[0]
    shares = [share for sample in samples if (share := _identical(sample.arrivals)) is not None]
    kept = [one for sample in samples if (one := sequence_kept(sample.arrivals)) is not None]
    return Row(
        first.peer,
        first.streams,
        cpu_s_per_stream_minute=_rounded(_median(sample.cpu_s_per_stream_minute for sample in samples), 4),
        pss_mib_per_stream=_rounded(_median(sample.pss_mib_per_stream for sample in samples), 2),
        latency_p50_s=_rounded(_median(_latency(sample, 50) for sample in samples), 3),
        latency_p95_s=_rounded(_median(_latency(sample, 95) for sample in samples), 3),
        identical=_rounded(min(shares), 4) if shares else None,
        sequence_kept=all(kept) if kept else None,
        requests_per_segment=_rounded(_median(sample.requests / sample.published for sample in samples), 2),
        loop_lag_p99_s=_rounded(_median(sample.loop_lag_p99_s for sample in samples), 4),
    )


def cpu_ratio(samples: Sequence[Sample], baseline: Sequence[Sample]) -> float | None:
    """Return the median over the rounds of what the CPU cost against the baseline's in the same round; None without such a round."""
    costs = {sample.round: sample.cpu_s_per_stream_minute for sample in baseline}
    return _median(sample.cpu_s_per_stream_minute / costs[sample.round] for sample in samples if costs.get(sample.round))


def lines_of(samples: Iterable[Sample], refused: Mapping[tuple[str, int], str], order: Sequence[str]) -> list[Line]:
    """Return the table, by number of streams and then in the *order* of peers. *refused* says why one was not measured."""
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.peer, sample.streams), []).append(sample)
    lines = []
    for key in sorted({*groups, *refused}, key=lambda key: (key[1], order.index(key[0]))):
        group, reasons = groups.get(key, []), [refused[key]] if key in refused else []
        if not group:
            lines.append(Line(Row(*key), notes=tuple(reasons)))
            continue
        playlists = _median(sample.playlist_requests / sample.published for sample in group)
        missing = sum(lost(sample.arrivals) for sample in group)
        notes = [f"{playlists:.2f} requests per segment are for playlists"]
        notes += [f"{missing} segments lost"] if missing else []
        lag_s = row_of(group).loop_lag_p99_s
        notes += [f"99 of 100 times its loop was late by {1000 * lag_s:.0f} ms or less"] if lag_s is not None else []
        notes += dict.fromkeys(sample.note for sample in group if sample.note)
        ratio = cpu_ratio(group, groups.get((BASELINE, key[1]), ()))
        lines.append(Line(row_of(group), _rounded(ratio, 3), len(group), (*notes, *reasons)))
    return lines


def rows_as_json(lines: Iterable[Line]) -> list[dict[str, object]]:
    """Return the rows as JSON has them."""
    return [asdict(line.row) for line in lines]


def _identical(arrivals: Iterable[Arrival]) -> float | None:
    looked_at = [one.identical for one in arrivals if one.identical is not None]
    return sum(looked_at) / len(looked_at) if looked_at else None


def _latency(sample: Sample, percent: float) -> float | None:
    return percentile((one.latency_s for one in sample.arrivals), percent)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
