"""The window of entries that our playlists list, and what may leave it when. Pure.

Laws (hls-rules.md names them):
  A4  the first entry's number is the MEDIA-SEQUENCE: entries are consecutive, so it rises by one per entry that leaves.
  A5  DISCONTINUITY-SEQUENCE rises by one per DISCONTINUITY that leaves.
  A6  an entry leaves only while three target durations and six entries stay.
  A7  what left stays fetchable for its own duration plus that of the longest playlist that listed it.
All renditions share one window: the same numbers, the same discontinuities; one that has no file under a number has a GAP there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile

from hlsrelay.hls.parse import attributes
from hlsrelay.model import SOURCE, Entry, Kind, MediaFile, Position, Rendition, Traits

FEWEST_ENTRIES = 6
"""Apple's HLS Authoring Specification 8.11."""
FEWEST_TARGET_DURATIONS = 3
"""RFC 8216 6.2.2."""


@dataclass(frozen=True, slots=True)
class Retired:
    """Files, relative to the stream's folder, that no playlist lists any more, and until when they must stay."""

    paths: tuple[str, ...]
    until: datetime


@dataclass(frozen=True, slots=True)
class Progress:
    """All that has been published of a stream: what the ledger records, and a successor resumes from."""

    position: Position
    target_duration_s: int
    track: str = SOURCE
    kind: Kind = Kind.VARIANT
    entries: tuple[Entry, ...] = ()
    discontinuity_sequence: int = 0
    renditions: tuple[Rendition, ...] = ()
    retired: tuple[Retired, ...] = ()
    ended: bool = False
    i_frames_only: bool = False
    dateranges: tuple[str, ...] = ()
    """EXT-X-DATERANGE lines that stood before entries that left, and reach over some that stay (A13)."""
    format: int = 1

    @property
    def discontinuities(self) -> int:
        """The discontinuity sequence number of the newest entry: renditions of one presentation agree on it (RFC 8216 6.2.4)."""
        return self.discontinuity_sequence + sum(entry.discontinuity for entry in self.entries)


def slide(progress: Progress, entry: Entry, position: Position, window_s: float, now: datetime) -> Progress:
    """Return *progress* with *entry* at its end, and what is older than *window_s* off its head."""
    if progress.entries and entry.number != progress.entries[-1].number + 1:
        raise AssertionError(f"entry {entry.number} after {progress.entries[-1].number}")
    if progress.ended and progress.entries:
        entry = replace(entry, discontinuity=True)  # the source said ENDLIST and came back
    entry, entries, renditions = _settled(progress, entry)
    grown = replace(
        progress,
        position=position.upto(entry.number, entry.program_date_time + timedelta(seconds=entry.duration_s)),
        target_duration_s=max(progress.target_duration_s, round_half_up(entry.duration_s)),
        entries=(*entries, entry),
        renditions=tuple(_measured(one, (*entries, entry), progress.target_duration_s) for one in renditions),
        ended=False,
    )
    return _trimmed(grown, window_s, now)


def followed(progress: Progress, main: Progress, window_s: float, now: datetime) -> Progress:
    """Return *progress*, of a track that the source no longer has, with the newest entry of *main* under its next number.

    Players that chose the track once never ask what else there is: they go on with the main variant's segments, or with a GAP where
    the track was something else.
    """
    newest = main.entries[-1]
    file = newest.files.get(main.track) if progress.kind is Kind.VARIANT else None
    stand_in = (
        {progress.track: MediaFile(f"../{main.track}/{file.uri}", file.size_bytes, _beside(main.track, file.init_uri))} if file else {}
    )
    number = progress.entries[-1].number + 1 if progress.entries else progress.position.last_number + 1
    changed = progress.position.source != ""
    entry = replace(newest, number=number, files=stand_in, rungs=(), discontinuity=newest.discontinuity or changed)
    position = replace(progress.position, source="", last_number=number, generation=main.position.generation)
    return slide(progress, entry, position, window_s, now)


def _beside(track: str, uri: str | None) -> str | None:
    return f"../{track}/{uri}" if uri else None


def expired(progress: Progress, now: datetime) -> tuple[Progress, tuple[str, ...]]:
    """Return *progress* without the files that nobody may ask for any more (A7), and these files."""
    again = {path for entry in progress.entries for path in _paths(entry)} if any(one.until <= now for one in progress.retired) else set()
    gone = tuple(path for one in progress.retired if one.until <= now for path in one.paths if path not in again)
    return replace(progress, retired=tuple(one for one in progress.retired if one.until > now)), gone


def known_paths(progress: Progress) -> set[str]:
    """Return every file, relative to the stream's folder, that is listed or must still be fetchable."""
    listed = {path for entry in progress.entries for path in _paths(entry)}
    return listed.union(path for one in progress.retired for path in one.paths)


def round_half_up(duration_s: float) -> int:
    """Return EXTINF as TARGETDURATION compares it: rounded to the nearest integer (RFC 8216 4.3.3.1)."""
    return int(duration_s + 0.5)


def _trimmed(progress: Progress, window_s: float, now: datetime) -> Progress:
    longest_s = sum(entry.duration_s for entry in progress.entries)
    least_s = max(window_s, FEWEST_TARGET_DURATIONS * progress.target_duration_s)
    leaving = 0
    stays_s = longest_s
    for entry in progress.entries[:-FEWEST_ENTRIES]:
        if stays_s - entry.duration_s < least_s:
            break
        stays_s -= entry.duration_s
        leaving += 1
    if not leaving:
        return progress
    left, stay = progress.entries[:leaving], progress.entries[leaving:]
    still_used = {path for entry in stay for path in _paths(entry)}
    retired = tuple(
        Retired(
            tuple(path for path in _paths(entry) if path not in still_used),  # an init section outlives its first entry
            now + timedelta(seconds=entry.duration_s + longest_s),
        )
        for entry in left
    )
    return replace(
        progress,
        entries=stay,
        dateranges=_in_force((*progress.dateranges, *(tag for entry in left for tag in entry.tags)), stay),
        discontinuity_sequence=progress.discontinuity_sequence + sum(entry.discontinuity for entry in left),
        retired=(*progress.retired, *retired),
    )


def _in_force(tags: Iterable[str], stay: tuple[Entry, ...]) -> tuple[str, ...]:
    """Return the DATERANGEs among *tags* that reach over an entry that stays, the newest of each ID (RFC 8216 4.3.2.7)."""
    said_again = {_daterange_id(tag) for entry in stay for tag in entry.tags}
    newest = {_daterange_id(tag): tag for tag in tags if _daterange_id(tag)}
    begins = stay[0].program_date_time
    return tuple(tag for name, tag in newest.items() if name not in said_again and _daterange_end(tag, begins) > begins)


def _daterange_id(tag: str) -> str:
    return attributes(tag).get("ID", "") if tag.startswith("#EXT-X-DATERANGE:") else ""


def _daterange_end(tag: str, now: datetime) -> datetime:
    """Return when a DATERANGE ends: as it says, or later than *now* while it says nothing, for a day at most."""
    got = {name: value.strip('"') for name, value in attributes(tag).items()}
    try:
        if "END-DATE" in got:
            return _aware(datetime.fromisoformat(got["END-DATE"]))
        start = _aware(datetime.fromisoformat(got.get("START-DATE", "")))
        length_s = got.get("DURATION") or got.get("PLANNED-DURATION")
        return start + (timedelta(seconds=float(length_s)) if length_s else timedelta(days=1))
    except (ValueError, OverflowError):
        return now  # nobody can tell what it maps to


def _aware(when: datetime) -> datetime:
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _paths(entry: Entry) -> tuple[str, ...]:
    """The files of an entry, relative to the stream's folder. One that stands in for another (`../`) counts where it is at home."""
    own = [(name, file) for name, file in entry.files.items() if not _stands_in(file)]
    paths = [f"{name}/{uri}" for name, file in own for uri in (file.uri, file.init_uri, *file.key_uris) if uri]
    return tuple(dict.fromkeys(paths))


def _settled(progress: Progress, entry: Entry) -> tuple[Entry, tuple[Entry, ...], tuple[Rendition, ...]]:
    """Make room for renditions that come with *entry*, and let those that went be played on.

    A player that follows a rendition never asks for the multivariant playlist again, so a rung that leaves the ladder goes on as
    another name for the nearest one that stays. A new rung lists that one's files for the time before it came, because renditions
    must not begin more than a target duration apart (RFC 8216 6.2.4). Encodings differ across the change: a DISCONTINUITY for all.
    """
    if not entry.files:
        return entry, progress.entries, progress.renditions
    made = (progress.track, *entry.rungs)
    before = {one.name: one for one in progress.renditions}
    come = [name for name in made if name not in before]
    gone = [one.name for one in progress.renditions if one.name not in made]
    if progress.renditions and (come or any(one.listed != (one.name in made) for one in progress.renditions)):
        entry = replace(entry, discontinuity=True)
    traits = {name: file.traits for name, file in entry.files.items()}
    renditions = tuple(replace(one, listed=one.name in made) for one in progress.renditions) + tuple(
        Rendition(name, traits.get(name) or Traits()) for name in come
    )
    heights = {one.name: one.traits.height or 0 for one in renditions}
    entry = replace(entry, files={**entry.files, **_stand_ins(entry, gone, heights)})
    entries = progress.entries
    if come:
        entries = tuple(replace(old, files={**old.files, **_stand_ins(old, come, heights)}) for old in entries)
    return entry, entries, renditions


def _stand_ins(entry: Entry, names: Iterable[str], heights: dict[str, int]) -> dict[str, MediaFile]:
    """For each name, the entry's own file that is nearest below it in height, or the lowest there is."""
    own = [(name, file) for name, file in entry.files.items() if not _stands_in(file)]
    if not own:
        return {}
    stand_ins = {}
    for name in names:
        below = [one for one in own if heights.get(one[0], 0) <= heights.get(name, 0)]
        home, file = max(below, key=lambda one: heights.get(one[0], 0)) if below else min(own, key=lambda one: heights.get(one[0], 0))
        stand_ins[name] = MediaFile(f"../{home}/{file.uri}", file.size_bytes, _beside(home, file.init_uri), traits=file.traits)
    return stand_ins


def _measured(rendition: Rendition, entries: tuple[Entry, ...], target_duration_s: int) -> Rendition:
    """Count the newest entry into the rendition's bitrates, unless another rendition stands in."""
    newest = entries[-1].files.get(rendition.name)
    if newest is None or _stands_in(newest):
        return rendition
    own = tuple(takewhile(lambda entry: not _stands_in(entry.files.get(rendition.name)), reversed(entries)))
    return replace(
        rendition,
        traits=newest.traits or rendition.traits,
        peak_bps=max(rendition.peak_bps, _peak_of_runs(own, rendition.name, target_duration_s)),
        total_bits=rendition.total_bits + newest.size_bytes * 8,
        total_s=rendition.total_s + entries[-1].duration_s,
    )


def as_listed(progress: Progress, rendition: Rendition) -> Rendition:
    """Return *rendition* with the bitrate, the codecs and the size that cover what it lists of another one, as long as it does (A21)."""
    lent = [file for entry in progress.entries if (file := entry.files.get(rendition.name)) and _stands_in(file)]
    if not lent:
        return rendition
    backwards = progress.entries[::-1]
    peaks = (_peak_of_runs(backwards[index:], rendition.name, progress.target_duration_s) for index in range(len(backwards)))
    every = [rendition.traits, *dict.fromkeys(file.traits for file in lent if file.traits)]
    codecs = dict.fromkeys(codec for traits in every if traits.codecs for codec in traits.codecs.split(","))
    largest = max(every, key=lambda traits: traits.height or 0)
    traits = Traits(",".join(codecs) or None, largest.width, largest.height, max(one.frame_rate or 0.0 for one in every) or None)
    return replace(rendition, traits=traits, peak_bps=max(rendition.peak_bps, *peaks))


def _peak_of_runs(backwards: tuple[Entry, ...], name: str, target_duration_s: int) -> int:
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


def _stands_in(file: MediaFile | None) -> bool:
    return file is not None and file.uri.startswith("../")
