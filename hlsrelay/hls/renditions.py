"""What each rendition of a track lists under a number, as they come and go, and the bitrates that this makes. Pure.

All renditions share one window: one that has no file of its own under a number has another's, or a GAP.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import takewhile

from hlsrelay.model import Entry, MediaFile, Rendition, Traits
from hlsrelay.values import replace


def standing_in(file: MediaFile, home: str) -> MediaFile:
    """Return the file as a rendition beside its own lists it."""
    return replace(file, uri=f"../{home}/{file.uri}", init_uri=f"../{home}/{file.init_uri}" if file.init_uri else None, key_uris=())


def settled(
    track: str, renditions: tuple[Rendition, ...], entries: tuple[Entry, ...], entry: Entry
) -> tuple[Entry, tuple[Entry, ...], tuple[Rendition, ...]]:
    """Return *entry*, what is listed before it, and the *track*'s renditions: with room for those that come with it, and those that went.

    A player that follows a rendition never asks for the multivariant playlist again, so a rung that leaves the ladder goes on as
    another name for the nearest one that stays. A new rung lists that one's files for the time before it came, because renditions
    must not begin more than a target duration apart (RFC 8216 6.2.4). Encodings differ across the change: a DISCONTINUITY for all.
    """
    if not entry.files:
        return _with_gaps(entry, entries[-1:], renditions), entries, renditions
    made = (track, *entry.rungs)
    before = {one.name: one for one in renditions}
    come = [name for name in made if name not in before]
    gone = [one.name for one in renditions if one.name not in made]
    if renditions and (come or any(one.listed != (one.name in made) for one in renditions)):
        entry = replace(entry, discontinuity=True)
    traits = {name: file.traits for name, file in entry.files.items()}
    renditions = tuple(replace(one, listed=one.name in made) for one in renditions) + tuple(
        Rendition(name, traits.get(name) or Traits()) for name in come
    )
    heights = {one.name: one.traits.height or 0 for one in renditions}
    entry = replace(entry, files={**entry.files, **_stand_ins(entry, gone, heights)})
    if come:
        new = tuple(one for one in renditions if one.name in come)
        listing = (replace(old, files={**old.files, **_stand_ins(old, come, heights)}) for old in entries)
        entries = tuple(_with_gaps(old, (entry,), new) for old in listing)
    return _with_gaps(entry, entries[-1:], renditions), entries, renditions


def _with_gaps(entry: Entry, beside: Sequence[Entry], renditions: Iterable[Rendition]) -> Entry:
    """Return *entry* with a URI for each GAP. It keeps the suffix of what is listed *beside* it, because ffmpeg refuses odd ones."""
    gaps = {}
    for name in (one.name for one in renditions if one.name not in entry.files):
        uris = (file.uri if (file := other.files.get(name)) else other.gaps.get(name, "") for other in beside)
        gaps[name] = f"{entry.number}.{next(filter(None, uris), '.ts').rpartition('.')[2]}"
    return replace(entry, gaps={**entry.gaps, **gaps}) if gaps else entry


def _stand_ins(entry: Entry, names: Iterable[str], heights: dict[str, int]) -> dict[str, MediaFile]:
    """For each name, the entry's own file that is nearest below it in height, or the lowest there is."""
    own = [(name, file) for name, file in entry.files.items() if not stands_in(file)]
    if not own:
        return {}
    stand_ins = {}
    for name in names:
        below = [one for one in own if heights.get(one[0], 0) <= heights.get(name, 0)]
        home, file = max(below, key=lambda one: heights.get(one[0], 0)) if below else min(own, key=lambda one: heights.get(one[0], 0))
        stand_ins[name] = standing_in(file, home)
    return stand_ins


def measured(rendition: Rendition, entries: tuple[Entry, ...], target_duration_s: int) -> Rendition:
    """Count the newest entry into the rendition's bitrates, unless another rendition stands in."""
    newest = entries[-1].files.get(rendition.name)
    if newest is None or stands_in(newest):
        return rendition
    own = takewhile(lambda entry: not stands_in(entry.files.get(rendition.name)), reversed(entries))
    return replace(
        rendition,
        traits=newest.traits if newest.traits and newest.traits != Traits() else rendition.traits,  # what can't be read tells nothing
        peak_bps=max(rendition.peak_bps, _peak_of_runs(own, rendition.name, target_duration_s)),
        total_bits=rendition.total_bits + newest.size_bytes * 8,
        total_s=rendition.total_s + entries[-1].duration_s,
    )


def as_listed(rendition: Rendition, entries: tuple[Entry, ...], target_duration_s: int) -> Rendition:
    """Return *rendition* with the codecs of all that it lists of *entries*, a bitrate and a size that cover what is another one's (A21)."""
    files = [file for entry in entries if (file := entry.files.get(rendition.name))]
    every = dict.fromkeys((rendition.traits, *(file.traits for file in files if file.traits)))
    codecs = dict.fromkeys(codec for traits in every if traits.codecs for codec in traits.codecs.split(","))
    rendition = replace(rendition, traits=replace(rendition.traits, codecs=",".join(codecs) or None))
    if not any(map(stands_in, files)):
        return rendition
    runs = ((entries[index] for index in range(last, -1, -1)) for last in range(len(entries)))
    peaks = (_peak_of_runs(run, rendition.name, target_duration_s) for run in runs)
    sizes = [rendition.traits, *dict.fromkeys(file.traits for file in files if file.traits and stands_in(file))]
    largest = max(sizes, key=lambda traits: traits.height or 0)
    fastest = max(one.frame_rate or 0.0 for one in sizes) or None
    traits = replace(rendition.traits, width=largest.width, height=largest.height, frame_rate=fastest)
    return replace(rendition, traits=traits, peak_bps=max(rendition.peak_bps, *peaks))


def _peak_of_runs(backwards: Iterable[Entry], name: str, target_duration_s: int) -> int:
    """Return the highest bitrate of the runs that begin *backwards* and last 0.5 to 1.5 target durations (RFC 8216 4.3.4.2)."""
    peak_bps, bits, length_s = 0, 0, 0.0
    for entry in backwards:
        file = entry.files.get(name)
        if file is None or length_s + entry.duration_s > 1.5 * target_duration_s:
            break
        bits += file.size_bytes * 8
        length_s += entry.duration_s
        if length_s >= 0.5 * target_duration_s:
            peak_bps = max(peak_bps, math.ceil(bits / length_s))
    return peak_bps


def stands_in(file: MediaFile | None) -> bool:
    """Return whether a file is another rendition's, listed beside its own place."""
    return file is not None and file.uri.startswith("../")
