"""Cuts a segment that lasts too long into consecutive slices of its bytes, each of which can be published as a segment.

A live playlist's EXT-X-TARGETDURATION never changes (RFC 8216 6.2.1), and sources send segments longer than what they announced. Laws:
- The slices, one after the other, are the source's bytes, all of them; nothing is rewritten.
- There are exactly as many as asked for, where the number is given away, as media sequence numbers, before the media is there.
- A slice begins where a picture begins: with an IDR picture where that is possible, and with PAT and PMT where they stand before it.

So a slice need not be decodable by itself, and of a transport stream it need not hold PAT and PMT (RFC 8216 3.2 wants them). Players that
come from the slice before go on without noticing (ffmpeg 5.1 and 9.0, hls.js 1.7: measured). Who begins with a slice that is not
`independent` gets no picture before the next one that is, and hls.js 1.7 gives up with a fatal error: it is better than a GAP, no more.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hlsrelay.media.boxes import FIRST_BOXES
from hlsrelay.media.fmp4 import fragments
from hlsrelay.media.h264 import Access
from hlsrelay.media.info import PTS_MODULUS, MediaError
from hlsrelay.media.packets import looks_like_ts
from hlsrelay.media.ts import Unit, units

_MOST_STEPS = 200_000
_SAFETY_S = 1e-6  # EXTINF has six digits: what is shorter than the limit by less than that is printed as the limit

_MOST_PIECES = 99
_MOST_TRIES = 6
# One cut where decoding can't begin outweighs all other faults of all cuts, and so on down to how far they are from equal division.
_NOT_RANDOM, _NOT_CLOSED, _NO_TABLES = 1e6, 1e4, 1e2


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes *start* to *end* (exclusive) of a segment, and what EXTINF to publish them with.

    *independent*: a player can begin with it. It begins with an IDR picture, or has sound only; and with PAT and PMT, or needs none.
    """

    start: int
    end: int
    duration_s: float
    independent: bool


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where a slice can begin: byte, seconds from the beginning of the segment, and what speaks against it."""

    begin: int
    at_s: float
    cost: float
    independent: bool


def split(data: bytes, init: bytes | None, duration_s: float, pieces: int, longest_s: float) -> tuple[Slice, ...] | None:
    """Return the segment *data* of *duration_s* (its EXTINF) as exactly *pieces* slices, each shorter than *longest_s*.

    How long they last is measured by the media's own time stamps; the last one gets the rest of *duration_s*. None if it can't be done: not
    a transport stream or fMP4 (with *init*, the bytes of its EXT-X-MAP), encrypted as a whole, broken, or with too few places to cut at.
    """
    return _sliced(_cuts(data, init), len(data), duration_s, pieces, longest_s)


def split_freely(data: bytes, init: bytes | None, duration_s: float, longest_s: float) -> tuple[Slice, ...] | None:
    """Return what `split` does, in as many slices as suit the media.

    Of all numbers near the least possible one it is that which leaves the fewest slices that are not independent, and then the lowest.
    """
    if not 0 < duration_s < _MOST_PIECES * longest_s:
        return None
    cuts = _cuts(data, init)
    least = int(duration_s / longest_s) + 1
    best: tuple[Slice, ...] | None = None
    dependent = len(cuts) + 1
    for pieces in range(least, min(2 * least + 1, least + _MOST_TRIES)):  # where IDR pictures do at all, twice the least is enough of them
        slices = _sliced(cuts, len(data), duration_s, pieces, longest_s)
        if slices and (count := sum(not one.independent for one in slices)) < dependent:
            best, dependent = slices, count
        if slices and all(one.independent for one in slices[1:]):
            break
    return best


def _cuts(data: bytes, init: bytes | None) -> list[_Cut]:
    """Return where *data* can be cut, the first of them being its beginning; none if it can't be read."""
    try:
        if looks_like_ts(data):
            return _ts_cuts(units(data, init), has_tables=bool(init and looks_like_ts(init)))
        if init and data[4:8] in FIRST_BOXES:
            return [_Cut(one.begin, one.after_s, 0 if one.idr else _NOT_RANDOM, one.idr) for one in fragments(data, init)]
    except MediaError:
        pass
    return []


def _sliced(cuts: Sequence[_Cut], size: int, duration_s: float, pieces: int, longest_s: float) -> tuple[Slice, ...] | None:
    if not cuts or not 1 <= pieces <= _MOST_PIECES or not 0 < duration_s < pieces * longest_s or not math.isfinite(longest_s):
        return None
    chosen = _chosen(_rising(cuts[1:], duration_s), duration_s, pieces, longest_s - _SAFETY_S)
    if chosen is None:
        return None
    begins, times = [0, *(cut.begin for cut in chosen), size], [0.0, *(cut.at_s for cut in chosen), duration_s]
    independent = [cuts[0].independent, *(cut.independent for cut in chosen)]
    return tuple(Slice(begins[index], begins[index + 1], times[index + 1] - times[index], independent[index]) for index in range(pieces))


def _ts_cuts(found: Sequence[Unit], *, has_tables: bool) -> list[_Cut]:
    """Return where a transport stream of these units can be cut, the first of them being its beginning."""
    if not found:
        return []
    decoded = _unwrapped([unit.dts for unit in found])
    shown = _unwrapped([unit.pts for unit in found])
    first_shown = min(shown)
    if any(later <= earlier for earlier, later in pairwise(decoded)):
        # Pictures out of order and no DTS: what comes from here on is not shown before the earliest of it.
        decoded = shown.copy()
        for index in reversed(range(len(decoded) - 1)):
            decoded[index] = min(decoded[index], decoded[index + 1])
    cuts = []
    for unit, shown_90k, decoded_90k in zip(found, shown, decoded, strict=True):
        idr, tables = unit.access is Access.IDR, unit.tables or has_tables
        cost = (0 if idr else _NOT_CLOSED if unit.access is Access.RANDOM else _NOT_RANDOM) + (0 if tables else _NO_TABLES)
        # Pictures after an IDR are shown after it. Elsewhere DTS tells better how much there is before: pictures change places around it.
        ticks = shown_90k - first_shown if idr else decoded_90k - decoded[0]
        cuts.append(_Cut(unit.begin, ticks / 90_000, cost, idr and tables))
    return cuts


def _unwrapped(stamps: Sequence[int]) -> list[int]:
    """Return *stamps*, values mod 2^33, as distances from the first one: less than 13 hours, before or after."""
    half = PTS_MODULUS // 2
    return [(stamp - stamps[0] + half) % PTS_MODULUS - half for stamp in stamps]


def _rising(cuts: Sequence[_Cut], duration_s: float) -> list[_Cut]:
    """Return those of *cuts* that lie inside the segment and one after the other; of two that contradict each other the better one."""
    kept: list[_Cut] = []
    for cut in cuts:
        if not 0 < cut.at_s < duration_s:
            continue
        while kept and kept[-1].at_s >= cut.at_s and kept[-1].cost > cut.cost:
            kept.pop()
        if not kept or kept[-1].at_s < cut.at_s:
            kept.append(cut)
    return kept


def _chosen(cuts: Sequence[_Cut], duration_s: float, pieces: int, longest_s: float) -> list[_Cut] | None:
    """Return the *pieces* - 1 of *cuts* that cost least, and of these the nearest to equal division; None if none keep to *longest_s*.

    Dynamic programming: row k holds, for every cut, the least cost of a beginning of the segment in k slices that ends there, and
    which cut of row k - 1 it comes from. Those it can come from are a window that moves along; its minimum is kept with a deque.
    """
    if pieces == 1:
        return [] if duration_s <= longest_s else None
    if len(cuts) < pieces - 1 or len(cuts) * pieces > _MOST_STEPS:
        return None
    costs = [cut.cost + (cut.at_s / duration_s - 1 / pieces) ** 2 if cut.at_s <= longest_s else math.inf for cut in cuts]
    came_from: list[list[int]] = []
    for number in range(2, pieces):
        row, origins = [math.inf] * len(cuts), [-1] * len(cuts)
        window: deque[int] = deque()
        for index, cut in enumerate(cuts):
            while window and cut.at_s - cuts[window[0]].at_s > longest_s:
                window.popleft()
            if window:
                origins[index] = window[0]
                row[index] = costs[window[0]] + cut.cost + (cut.at_s / duration_s - number / pieces) ** 2
            while window and costs[window[-1]] >= costs[index]:
                window.pop()
            if costs[index] < math.inf:
                window.append(index)
        costs = row
        came_from.append(origins)
    ends = [index for index, cut in enumerate(cuts) if costs[index] < math.inf and duration_s - cut.at_s <= longest_s]
    if not ends:
        return None
    at = min(ends, key=lambda index: costs[index])
    chosen = [cuts[at]]
    for origins in reversed(came_from):
        at = origins[at]
        chosen.append(cuts[at])
    return chosen[::-1]
