"""The window of entries that our playlists list, and what may leave it when. Pure.

Laws (hls-rules.md names them):
  A4  the first entry's number is the MEDIA-SEQUENCE: entries are consecutive, so it rises by one per entry that leaves.
  A5  DISCONTINUITY-SEQUENCE rises by one per DISCONTINUITY that leaves.
  A6  an entry leaves only while three target durations and six entries stay.
  A20 audio and subtitles whose segments are longer than the main track's list as much as that one instead of six entries.
  A7  what left stays fetchable for its own duration plus that of the longest playlist that listed it.
All renditions share one window: the same numbers, the same discontinuities (what each lists there: renditions).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice, takewhile

from hlsrelay.hls import dateranges
from hlsrelay.hls.renditions import measured, settled, standing_in, stands_in
from hlsrelay.model import SOURCE, Entry, Kind, MediaFile, Position, Rendition
from hlsrelay.values import replace

FEWEST_ENTRIES = 6
"""Apple's HLS Authoring Specification 8.11."""
FEWEST_TARGET_DURATIONS = 3
"""RFC 8216 6.2.2."""


CARRIED = 16
"""So many of the source's last segments a successor without our files recognises its playlists by."""
MOST_FORMER = 3
"""So many owners before are asked for files that the last one had not yet from those before it."""


@dataclass(frozen=True, slots=True)
class Retired:
    """Files, relative to the stream's folder, that no playlist lists any more, and until when they must stay."""

    paths: tuple[str, ...]
    until: datetime


@dataclass(frozen=True)
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
    daterange_ids: tuple[str, ...] = ()
    """Which of their IDs were used for what, lately: none is used again."""
    listed_us: int | None = None
    """How long the entries last together, to the microsecond as EXTINF tells it; None: nobody has counted."""
    attributes: tuple[tuple[str, str], ...] = ()
    """What the track is recognised by when its source is surveyed again."""
    former: tuple[str, ...] = ()
    """Where owners before us serve what is listed and may not be in our folder yet: URLs of their web servers, the last one first."""
    format: int = 1

    @property
    def discontinuities(self) -> int:
        """The discontinuity sequence number of the newest entry: renditions of one presentation agree on it (RFC 8216 6.2.4)."""
        return self.discontinuity_sequence + sum(entry.discontinuity for entry in self.entries)

    @property
    def listed_s(self) -> float:
        """How long the entries last together."""
        return (sum(map(_length_us, self.entries)) if self.listed_us is None else self.listed_us) / 1_000_000


@dataclass(frozen=True, slots=True)
class Listing:
    """What players know of a track: all that the next owner, in a folder of its own, lists on. Nothing in it tells of the source."""

    entries: tuple[Entry, ...]
    discontinuity_sequence: int
    renditions: tuple[Rendition, ...]
    retired: tuple[Retired, ...]
    dateranges: tuple[str, ...]
    daterange_ids: tuple[str, ...]

    @property
    def last_number(self) -> int:
        """The newest number that is listed; -1 where none is."""
        return self.entries[-1].number if self.entries else -1


def slide(progress: Progress, entry: Entry, position: Position, window_s: float, now: datetime) -> Progress:
    """Return *progress* with *entry* at its end, and what is older than *window_s* off its head.

    What it looks at does not grow with the window: a day's has thousands of entries.

    The target duration grows with an entry that nobody could cut to it: players get over that more easily than over a loss.
    """
    if progress.entries and entry.number != progress.entries[-1].number + 1:
        raise AssertionError(f"entry {entry.number} after {progress.entries[-1].number}")
    if progress.ended and progress.entries:
        entry = replace(entry, discontinuity=True)  # the source said ENDLIST and came back
    entry, entries, renditions = settled(progress.track, progress.renditions, progress.entries, entry)
    head, entries, entry, ids = _with_dateranges(progress, entries, entry)
    entries = (*entries, entry)
    before_us = sum(map(_length_us, progress.entries)) if progress.listed_us is None else progress.listed_us
    grown = replace(
        progress,
        listed_us=before_us + _length_us(entry),
        position=position,
        target_duration_s=max(progress.target_duration_s, round_half_up(entry.duration_s)),
        entries=entries,
        dateranges=head,
        daterange_ids=ids,
        renditions=tuple(measured(one, entries, progress.target_duration_s) for one in renditions),
        ended=False,
    )
    return _trimmed(grown, window_s, now)


def _with_dateranges(
    progress: Progress, entries: tuple[Entry, ...], entry: Entry
) -> tuple[tuple[str, ...], tuple[Entry, ...], Entry, tuple[str, ...]]:
    if not dateranges.among(entry.tags):
        return progress.dateranges, entries, entry, progress.daterange_ids
    begins = entries[0].program_date_time if entries else entry.program_date_time
    tags, ids = dateranges.admitted(entry.tags, progress.dateranges, entries, progress.daterange_ids, begins)
    head, (*entries_left, entry) = dateranges.bounded(progress.dateranges, (*entries, replace(entry, tags=tags)))
    return head, tuple(entries_left), entry, ids


def followed(progress: Progress, main: Progress, newest: Entry, window_s: float, now: datetime) -> Progress:
    """Return *progress*, of a track that the source no longer has, with the entry *newest* of *main* under its next number.

    Players that chose the track once never ask what else there is: they go on with the main variant's segments, or with a GAP where
    the track was something else.
    """
    file = newest.files.get(main.track) if progress.kind is Kind.VARIANT else None
    stand_in = {progress.track: standing_in(file, main.track)} if file else {}
    number = progress.entries[-1].number + 1 if progress.entries else progress.position.last_number + 1
    changed = progress.position.source != ""
    entry = replace(newest, number=number, files=stand_in, gaps={}, rungs=(), discontinuity=newest.discontinuity or changed)
    position = replace(progress.position, source="", last_number=number, generation=main.position.generation)
    return slide(progress, entry, position, beside(main.listed_s, newest.duration_s, window_s), now)


def beside(main_s: float, newest_s: float, window_s: float) -> float:
    """Return how much a track lists beside a main one that lists *main_s*, its own newest entry being *newest_s* long.

    They begin within a target duration of each other (RFC 8216 6.2.4). Half an entry is left out, for durations differ a little.
    """
    return max(window_s, main_s - newest_s / 2)


def withdrawn(progress: Progress, generation: int, discontinuities: int, now: datetime) -> Progress:
    """Return *progress* with nothing listed any more: what comes next begins at the live edge, under the numbers after these.

    *generation* and *discontinuities* are those of the track of the presentation that has come furthest: all tracks go on from them, or
    they would disagree for ever (RFC 8216 6.2.4). Files stay as long as if their entries had left the window (A7). The renditions are
    made known anew: nobody plays them.
    """
    longest_s = max((entry.duration_s for entry in progress.entries), default=0.0)
    listed_us = sum(map(_length_us, progress.entries)) if progress.listed_us is None else progress.listed_us
    paths = tuple(dict.fromkeys(path for entry in progress.entries for path in _paths(entry)))
    last = (Retired(paths, now + timedelta(seconds=longest_s, microseconds=listed_us)),) if paths else ()
    before = (replace(one, paths=tuple(path for path in one.paths if path not in paths)) for one in progress.retired)
    return replace(
        progress,
        position=replace(progress.position, generation=generation, withdrawn=True),
        entries=(),
        discontinuity_sequence=discontinuities,
        renditions=(),
        retired=(*before, *last),
        ended=False,
        dateranges=(),
        listed_us=0,
    )


def carried(progress: Progress, served_at: str = "") -> Progress:
    """Return what a successor needs that has none of the files: numbers, times and discontinuities go on, and nothing is listed yet.

    *served_at* is where it can have the files, and the Listing that they belong to: see `joined`.
    """
    position = replace(
        progress.position, recent=progress.position.recent[-CARRIED:], older=(), passed=(), ahead=(), candidate=None, behind=None
    )
    return replace(
        progress,
        position=position,
        entries=(),
        discontinuity_sequence=progress.discontinuities,
        renditions=(),
        retired=(),
        dateranges=(),
        daterange_ids=(),
        listed_us=0,
        former=tuple(dict.fromkeys(filter(None, (served_at, *progress.former))))[:MOST_FORMER],
    )


def listing(progress: Progress) -> Listing:
    """Return what players know of a track."""
    return Listing(
        progress.entries,
        progress.discontinuity_sequence,
        progress.renditions,
        progress.retired,
        progress.dateranges,
        progress.daterange_ids,
    )


def joined(progress: Progress, listed: Listing) -> Progress:
    """Return *progress*, as it was `carried`, with what was *listed* up to there; without entries where that does not lead up to it.

    What was listed after it is relayed again, under the same numbers.
    """
    entries = tuple(entry for entry in listed.entries if entry.number <= progress.position.last_number)
    count = listed.discontinuity_sequence + sum(entry.discontinuity for entry in entries)
    if not entries or entries[-1].number != progress.position.last_number or count != progress.discontinuity_sequence:
        return progress if entries else replace(progress, retired=listed.retired)
    return replace(
        progress,
        entries=entries,
        discontinuity_sequence=listed.discontinuity_sequence,
        renditions=listed.renditions,
        retired=listed.retired,
        dateranges=listed.dateranges,
        daterange_ids=listed.daterange_ids,
        listed_us=None,
    )


def shortened(progress: Progress, until: datetime, now: datetime) -> Progress:
    """Return *progress* without its entries that begin up to *until*: a file of theirs can't be had any more."""
    leaving = sum(1 for _ in takewhile(lambda entry: entry.program_date_time <= until, progress.entries))
    return _without_head(progress, leaving, now)


def expired(progress: Progress, now: datetime) -> tuple[Progress, tuple[str, ...]]:
    """Return *progress* without the files that nobody may ask for any more (A7), and these files."""
    for one in progress.retired:  # each load comes by here
        if one.until <= now:
            break
    else:
        return progress, ()
    again = {path for entry in progress.entries for path in _paths(entry)}
    gone = tuple(path for one in progress.retired if one.until <= now for path in one.paths if path not in again)
    return replace(progress, retired=tuple(one for one in progress.retired if one.until > now)), gone


def taken_up(progress: Progress, now: datetime) -> Progress:
    """Return *progress*, as another process may have recorded it, by our clock: the two may differ by hours.

    What had to stay stays as long as it had when something new came last. Nothing came later than now.
    """
    then = progress.position.advanced_at
    retired = tuple(replace(one, until=now + max(one.until - then, timedelta(0))) for one in progress.retired)
    return replace(progress, retired=retired, position=replace(progress.position, advanced_at=min(then, now)))


def needed(progress: Progress) -> dict[str, tuple[int | None, datetime | None]]:
    """Return every file of `known_paths`: its size in bytes, and when the newest entry begins that lists it; None where that is unknown."""
    found: dict[str, tuple[int | None, datetime | None]] = {path: (None, None) for one in progress.retired for path in one.paths}
    for entry in progress.entries:
        found |= dict.fromkeys(_paths(entry), (None, entry.program_date_time))
        own = ((name, file) for name, file in entry.files.items() if not stands_in(file))
        found |= {f"{name}/{file.uri}": (file.size_bytes, entry.program_date_time) for name, file in own}
    return found


def known_paths(progress: Progress) -> set[str]:
    """Return every file, relative to the stream's folder, that is listed or must still be fetchable."""
    listed = {path for entry in progress.entries for path in _paths(entry)}
    return listed.union(path for one in progress.retired for path in one.paths)


def round_half_up(duration_s: float) -> int:
    """Return EXTINF as TARGETDURATION compares it: rounded to the nearest integer (RFC 8216 4.3.3.1)."""
    return int(duration_s + 0.5)


def _trimmed(progress: Progress, window_s: float, now: datetime) -> Progress:
    stays_us = progress.listed_us or 0
    least_us = round(max(window_s, FEWEST_TARGET_DURATIONS * progress.target_duration_s) * 1_000_000)
    leaving = 0
    fewest = FEWEST_ENTRIES if progress.kind in (Kind.VARIANT, Kind.I_FRAMES) else 1
    for entry in islice(progress.entries, max(0, len(progress.entries) - fewest)):
        if stays_us - _length_us(entry) < least_us:
            break
        stays_us -= _length_us(entry)
        leaving += 1
    return _without_head(progress, leaving, now)


def _without_head(progress: Progress, leaving: int, now: datetime) -> Progress:
    """Return *progress* without its first entries, *leaving* of them; their files stay for a while (A7)."""
    if not leaving:
        return progress
    longest_us = sum(map(_length_us, progress.entries)) if progress.listed_us is None else progress.listed_us
    left, stay = progress.entries[:leaving], progress.entries[leaving:]
    # An init section outlives its first entry. What the next few don't use is used no more: see downloading.
    shares = any(_beside(file) for entry in left for file in entry.files.values())
    still_used = {path for entry in stay[:FEWEST_ENTRIES] for path in _paths(entry)} if shares else ()
    retired = tuple(
        Retired(
            tuple(path for path in _paths(entry) if path not in still_used),
            now + timedelta(seconds=entry.duration_s, microseconds=longest_us),
        )
        for entry in left
    )
    return replace(
        progress,
        entries=stay,
        listed_us=longest_us - sum(map(_length_us, left)),
        dateranges=dateranges.in_force(progress.dateranges, left, stay) if stay else (),
        discontinuity_sequence=progress.discontinuity_sequence + sum(entry.discontinuity for entry in left),
        retired=(*progress.retired, *retired),
    )


def _length_us(entry: Entry) -> int:
    return round(entry.duration_s * 1_000_000)


def _paths(entry: Entry) -> tuple[str, ...]:
    """The files of an entry, relative to the stream's folder. One that stands in for another (`../`) counts where it is at home."""
    paths: dict[str, None] = {}
    for name, file in entry.files.items():
        if not stands_in(file):
            paths[f"{name}/{file.uri}"] = None
            for uri in _beside(file):
                paths[f"{name}/{uri}"] = None
    return tuple(paths)


def _beside(file: MediaFile) -> tuple[str, ...]:
    """What a file is listed with, which others may be listed with too: its init section and its keys."""
    return (file.init_uri, *file.key_uris) if file.init_uri else file.key_uris
