"""One media playlist's life: what may change between two versions of it, and when. RFC 8216 6.2.1 and 6.2.2."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from urllib.parse import urlsplit

from hlsrelay.judge.findings import Complaint, error, warning
from hlsrelay.judge.listed import Listed, MediaPlaylist, Resource, unquoted
from hlsrelay.media.info import MediaInfo

FEWEST_TARGET_DURATIONS = 3
FEWEST_SEGMENTS = 6
LATE_TARGET_DURATIONS = 1.5
PDT_DOUBT_S = 0.25
"""PDT and EXTINF may differ by a frame and some rounding; half a target duration is an error."""

_TEXTS = 512
_KEPT_AFTER_REMOVAL = 64
_DATERANGES = 4096
_DATE_ROUNDING_S = 0.1
_FMP4 = (".m4s", ".cmfv", ".cmfa")


@dataclass(slots=True)
class Known:
    """A segment that is or was listed: since when, in the longest of which playlists; and what its media was found to be."""

    listed: Listed
    first_s: float
    longest_s: float = 0.0
    gone_after_s: float | None = None
    size: int | None = None
    info: MediaInfo | None = None

    @property
    def due_s(self) -> float | None:
        """Until when it must stay fetchable: its removal is known to be later than the last load that listed it."""
        return None if self.gone_after_s is None else self.gone_after_s + self.listed.duration_s + self.longest_s


@dataclass
class Tape:
    """What has been seen of one media playlist. `load` folds one more load of it into this."""

    newest: MediaPlaylist | None = None
    known: dict[int, Known] = field(default_factory=dict)
    loaded_s: float = 0.0
    fresh: tuple[Listed, ...] = ()
    left: tuple[Known, ...] = ()
    """What the last load brought, and what it took away."""
    _body: bytes = b""
    _progressed_s: float = 0.0
    _texts: deque[bytes] = field(default_factory=lambda: deque(maxlen=_TEXTS))
    _dateranges: dict[str, dict[str, str]] = field(default_factory=dict)
    _range_began: dict[str, str | None] = field(default_factory=dict)

    def is_news(self, body: bytes) -> bool:
        """Return whether *body* differs from what was loaded last."""
        return body != self._body

    def unchanged(self, at_s: float) -> Iterator[Complaint]:
        """Take note that the playlist was loaded and says the same."""
        self.fresh, self.left = (), ()
        if self.newest is None:
            return
        self.loaded_s = at_s
        waited_s, target_s = at_s - self._progressed_s, self.newest.target_duration_s
        goes_on = target_s and not self.newest.ended and self.newest.playlist_type != "VOD"
        if goes_on and waited_s > LATE_TARGET_DURATIONS * target_s:
            detail = f"none for {waited_s:.1f} s, the target duration is {target_s} s"
            yield warning("A-timing", "no new segment within 1.5 target durations", detail)

    def load(self, playlist: MediaPlaylist, body: bytes, at_s: float) -> Iterator[Complaint]:
        """Fold a version of the playlist that differs from the last one."""
        old = self.newest
        mark = hashlib.blake2b(body, digest_size=12).digest()
        if mark in self._texts:
            self.fresh, self.left = (), ()
            if old is not None and old.ended and not playlist.ended:
                yield error("A9", "EXT-X-ENDLIST is taken back")
            else:
                yield error("A3", "an older version of the playlist came back", f"it lists {_span(playlist)}")
            return
        if old is None:
            yield from self._anew(playlist, at_s)
        elif not playlist.segments and old.segments:
            self.fresh, self.left = (), ()
            yield error("A3", "all segments are gone from the playlist", f"it listed {_span(old)}")
            return
        elif old.media_sequence <= playlist.media_sequence and playlist.last < old.last:
            self.fresh, self.left = (), ()
            yield error("A3", "segments were taken back from the end", f"{playlist.last + 1} to {old.last}")
            return
        else:
            yield from _promises(old, playlist)
            yield from self._edits(old, playlist, at_s)
        yield from self._dates(playlist)
        self._texts.append(mark)
        self._body = body
        if old is None or playlist.last != old.last:
            self._progressed_s = at_s
        self.newest, self.loaded_s = playlist, at_s
        duration_s = playlist.duration_s
        for segment in playlist.segments:
            known = self.known[segment.sequence]
            known.longest_s = max(known.longest_s, duration_s)

    def _anew(self, playlist: MediaPlaylist, at_s: float) -> Iterator[Complaint]:
        """Begin at *playlist*: nothing of before can be compared with it."""
        self.left = tuple(one for one in self.known.values() if one.gone_after_s is None)
        for one in self.left:
            one.gone_after_s = self.loaded_s
        first_s = -math.inf if playlist.ended else at_s  # what has ended was so before it was looked at
        self.known = {segment.sequence: Known(segment, first_s) for segment in playlist.segments}
        self.fresh = playlist.segments
        yield from self._arrivals(playlist, playlist.media_sequence)

    def _edits(self, old: MediaPlaylist, new: MediaPlaylist, at_s: float) -> Iterator[Complaint]:
        if new.media_sequence < old.media_sequence:
            yield error("A4", "EXT-X-MEDIA-SEQUENCE falls", f"{new.media_sequence} after {old.media_sequence}")
            yield from self._anew(new, at_s)
            return
        if new.media_sequence > old.last + 1 and old.segments:
            yield from self._jump(old, new, at_s)
            yield from self._anew(new, at_s)
            return
        shared = [(old.segments[one.sequence - old.media_sequence], one) for one in new.segments if one.sequence <= old.last]
        if renumbered := _renumbered(old, shared):
            yield renumbered
            yield from self._anew(new, at_s)
            return
        yield from _changes(shared, new.media_sequence > old.media_sequence)
        leaving = new.media_sequence - old.media_sequence
        if leaving and not new.ended:
            yield from _window(new)
        if leaving and new.playlist_type:
            yield error("A9", f"a segment leaves a playlist of type {new.playlist_type}", f"{old.media_sequence}")
        self._removed(new)
        for _, segment in shared:
            self.known[segment.sequence].listed = segment
        self.fresh = tuple(one for one in new.segments if one.sequence > old.last)
        self.known |= {segment.sequence: Known(segment, at_s) for segment in self.fresh}
        yield from self._arrivals(new, old.last + 1)

    def _jump(self, old: MediaPlaylist, new: MediaPlaylist, at_s: float) -> Iterator[Complaint]:
        missing = new.media_sequence - old.last - 1
        elapsed_s = at_s - self.loaded_s
        detail = f"{missing} numbers after {old.last} were never listed, {elapsed_s:.1f} s after the last load"
        too_far = missing * old.target_duration_s / 2 > elapsed_s + FEWEST_TARGET_DURATIONS * old.target_duration_s
        if too_far or elapsed_s < old.target_duration_s:
            yield error("A4", "EXT-X-MEDIA-SEQUENCE jumps", detail)
        else:
            yield warning("A4", "EXT-X-MEDIA-SEQUENCE jumps, or the window slides faster than it is read", detail)
        if new.discontinuity_sequence < old.discontinuity_sequence:
            yield error("A5", "EXT-X-DISCONTINUITY-SEQUENCE falls", f"{new.discontinuity_sequence} after {old.discontinuity_sequence}")

    def _removed(self, new: MediaPlaylist) -> None:
        self.left = tuple(
            one for sequence, one in self.known.items() if one.gone_after_s is None and not new.media_sequence <= sequence <= new.last
        )
        for one in self.left:
            one.gone_after_s = self.loaded_s
        oldest = new.media_sequence - len(new.segments) - _KEPT_AFTER_REMOVAL
        for sequence in [sequence for sequence in self.known if sequence < oldest]:
            del self.known[sequence]

    def _arrivals(self, playlist: MediaPlaylist, first: int) -> Iterator[Complaint]:
        """Judge the segments from number *first* on, which were not listed before."""
        target_s = playlist.target_duration_s
        for segment in playlist.segments:
            if segment.sequence < first:
                continue
            detail = f"segment {segment.sequence} lasts {segment.duration_s:g} s, the target duration is {target_s} s"
            if target_s and segment.duration_s > target_s + 0.5:
                yield error("A2", "EXTINF above EXT-X-TARGETDURATION", detail)
            elif target_s and segment.duration_s == target_s + 0.5:
                yield warning("A2", "EXTINF that rounds above EXT-X-TARGETDURATION, depending on who rounds", detail)
            if segment.init is None and not segment.gap and urlsplit(segment.resource.uri).path.endswith(_FMP4):
                yield error("A16", "an fMP4 segment without EXT-X-MAP", f"segment {segment.sequence}")
        yield from _clock(playlist, first)

    def _dates(self, playlist: MediaPlaylist) -> Iterator[Complaint]:
        """DATERANGEs: one ID is one range, and none goes while what it maps to is listed."""
        now: dict[str, dict[str, str]] = {}
        for one in playlist.dateranges:
            name = unquoted(one.get("ID", ""))
            merged = now.setdefault(name, {})
            for key, value in one.items():
                if merged.setdefault(key, value) != value:
                    yield error("A13", "two DATERANGEs of one ID that disagree", f"{name}: {key}")
        every = (*self._dateranges.values(), *now.values())
        for name, one in now.items():
            yield from _end_of(name, one)
            if (began := self._range_began.setdefault(name, one.get("START-DATE"))) != one.get("START-DATE"):
                yield error("A13", "the ID of a DATERANGE is used again", f"{name}: {one.get('START-DATE')} after {began}")
                self._range_began[name] = one.get("START-DATE")
        for name, before in self._dateranges.items():
            if name not in now and _maps(before, every, playlist):
                yield error("A13", "a DATERANGE went while it maps to a listed segment", name)
            elif name in now and (lost := [key for key in before if key not in now[name]]):
                yield error("A13", "a DATERANGE lost what it said", f"{name}: {', '.join(lost)}")
        while len(self._range_began) > _DATERANGES:
            del self._range_began[next(iter(self._range_began))]
        self._dateranges = now


def _span(playlist: MediaPlaylist) -> str:
    return f"{playlist.media_sequence} to {playlist.last}" if playlist.segments else "nothing"


def _promises(old: MediaPlaylist, new: MediaPlaylist) -> Iterator[Complaint]:
    """What a playlist says of its own future."""
    if 0 not in (new.target_duration_s, old.target_duration_s) and new.target_duration_s != old.target_duration_s:
        yield error("A2", "EXT-X-TARGETDURATION changes", f"{new.target_duration_s} after {old.target_duration_s}")
    if changed := old.whole ^ new.whole:
        yield error("A3", "a tag of the playlist as a whole comes, goes or changes", ", ".join(sorted(changed)))
    if new.playlist_type != old.playlist_type:
        yield error("A9", "EXT-X-PLAYLIST-TYPE changes", f"{new.playlist_type or 'none'} after {old.playlist_type or 'none'}")
    if old.ended and not new.ended:
        yield error("A9", "EXT-X-ENDLIST is taken back")
    elif old.ended:
        yield error("A9", "the playlist changes after EXT-X-ENDLIST")
    elif old.playlist_type == "VOD":
        yield error("A9", "a playlist of type VOD changes")


def _renumbered(old: MediaPlaylist, shared: list[tuple[Listed, Listed]]) -> Complaint | None:
    """Tell whether known segments are there under other numbers: MEDIA-SEQUENCE was not raised by one per removed segment."""
    if all(before.resource == after.resource for before, after in shared):
        return None
    numbers: dict[Resource, int] = {}
    for segment in old.segments:
        if segment.resource in numbers:
            return None  # one resource in many places says nothing
        numbers[segment.resource] = segment.sequence
    shifts = {after.sequence - numbers[after.resource] for _, after in shared if after.resource in numbers}
    if len(shifts) != 1 or shifts == {0}:
        return None
    (shift,) = shifts
    return error("A4", "segments change their number: EXT-X-MEDIA-SEQUENCE does not rise by one per removed segment", f"by {shift:+}")


def _changes(shared: list[tuple[Listed, Listed]], slid: bool) -> Iterator[Complaint]:
    """What differs of segments that two versions list. *slid*: the head of the second is not that of the first."""
    cut_changed = False
    for index, (before, after) in enumerate(shared):
        here = f"segment {after.sequence}"
        new_head = slid and index == 0
        if before.resource != after.resource or before.written != after.written:
            yield error("A3", "the URI or byte range of a listed segment changes", f"{here}: {_name(after)} after {_name(before)}")
        if before.duration_s != after.duration_s:
            yield error("A3", "the EXTINF of a listed segment changes", f"{here}: {after.duration_s:g} after {before.duration_s:g}")
        if before.others != after.others and not new_head:  # at the head some say again what is in force
            detail = f"{here}: {', '.join(sorted(set(before.others) ^ set(after.others)))[:80]}"
            yield error("A3", "a title or another tag of a listed segment comes, goes or changes", detail)
        if before.gap != after.gap:
            yield error("A3", "the GAP of a listed segment comes or goes", here)
        tag_left = new_head and before.discontinuity and before.era == after.era  # it was removed, and counted
        if before.discontinuity != after.discontinuity and not tag_left:
            cut_changed = True
            yield error("A3", "the DISCONTINUITY of a listed segment comes or goes", here)
        elif before.era != after.era and not cut_changed:
            cut_changed = True
            detail = f"{here} has discontinuity sequence number {after.era} after {before.era}"
            yield error("A5", "EXT-X-DISCONTINUITY-SEQUENCE does not rise by one per removed DISCONTINUITY", detail)
        if before.when_s is not None and after.when_s is not None and abs(after.when_s - before.when_s) > 0.0015:
            detail = f"{here}: by {after.when_s - before.when_s:+.3f} s"
            yield error("A12", "the PROGRAM-DATE-TIME of a listed segment changes", detail)
        if after.gap:
            continue  # nobody fetches it: what would be in force does not matter
        if before.keys - after.keys and not after.keys - before.keys:
            yield error("A14", "the KEY of a listed segment is lost", here)
        elif before.keys != after.keys:
            yield error("A3", "the KEY of a listed segment changes", here)
        if before.init and after.init is None:
            yield error("A16", "the MAP of a listed segment is lost", here)
        elif before.init != after.init:
            yield error("A3", "the MAP of a listed segment changes", here)
        elif before.init_keys != after.init_keys:
            yield error("A14", "the KEY of a listed segment's MAP comes, goes or changes", here)


def _name(segment: Listed) -> str:
    return segment.written.partition("?")[0][-60:]


def _window(new: MediaPlaylist) -> Iterator[Complaint]:
    least_s = FEWEST_TARGET_DURATIONS * new.target_duration_s
    if new.duration_s < least_s - 0.0005 * len(new.segments):  # EXTINFs are rounded
        yield error("A6", "a segment leaves, and less than three target durations stay", f"{new.duration_s:.3f} s of {least_s} s")
    if len(new.segments) < FEWEST_SEGMENTS:
        yield warning("A6", "a live playlist of less than six segments", str(len(new.segments)))


def _clock(playlist: MediaPlaylist, first: int) -> Iterator[Complaint]:
    """PROGRAM-DATE-TIME goes with EXTINF between discontinuities."""
    segments = playlist.segments
    if not segments:
        return
    if all(segment.when_s is None for segment in segments):
        if not playlist.ended and not playlist.playlist_type:
            yield warning("A12", "a live playlist without PROGRAM-DATE-TIME")
        return
    anchor_s: float | None = None
    for before, segment in pairwise((None, *segments)):
        assert segment is not None
        anchor_s = None if before is None or segment.discontinuity or anchor_s is None else anchor_s + before.duration_s
        is_new = segment.sequence >= first
        if segment.when_s is None:
            if segment.discontinuity and is_new:
                yield warning("A12", "no PROGRAM-DATE-TIME after a DISCONTINUITY", f"segment {segment.sequence}")
            continue
        off_s = 0.0 if anchor_s is None else segment.when_s - anchor_s
        detail = f"segment {segment.sequence} is {off_s:+.3f} s off"
        if is_new and abs(off_s) > max(1, playlist.target_duration_s) / 2:
            yield error("A12", "PROGRAM-DATE-TIME jumps without a DISCONTINUITY", detail)
        elif is_new and abs(off_s) > PDT_DOUBT_S:
            yield warning("A12", "PROGRAM-DATE-TIME does not go with EXTINF", detail)
        anchor_s = segment.when_s


def _end_of(name: str, one: dict[str, str]) -> Iterator[Complaint]:
    """What a DATERANGE says of its end (RFC 8216 4.3.2.7)."""
    if "END-ON-NEXT" in one and (one["END-ON-NEXT"] != "YES" or "CLASS" not in one or {"DURATION", "END-DATE"} & one.keys()):
        yield error("A13", "a DATERANGE with END-ON-NEXT that is not YES, has no CLASS, or has an end", name)
    begin_s, end_s = _date_s(one, "START-DATE"), _date_s(one, "END-DATE")
    if (begin_s is None and "START-DATE" in one) or (end_s is None and "END-DATE" in one):
        yield error("A13", "a date of a DATERANGE is no ISO 8601 date and time", name)
    elif begin_s is not None and end_s is not None:
        if end_s < begin_s:
            yield error("A13", "a DATERANGE ends before it begins", name)
        elif abs(end_s - begin_s - float(one.get("DURATION", end_s - begin_s))) > _DATE_ROUNDING_S:
            yield error("A13", "END-DATE and DURATION of a DATERANGE disagree", name)


def _maps(attributes: dict[str, str], every: Iterable[dict[str, str]], playlist: MediaPlaylist) -> bool:
    """Return whether a DATERANGE begins before the end of *playlist* and ends after its beginning. One without an end is not told of."""
    first = next(((index, one.when_s) for index, one in enumerate(playlist.segments) if one.when_s is not None), None)
    begin_s = _date_s(attributes, "START-DATE")
    if first is None or begin_s is None:
        return False
    head_s = (first[1] or 0.0) - sum(one.duration_s for one in playlist.segments[: first[0]])
    end_s = max(_date_s(attributes, "END-DATE") or begin_s, begin_s + float(attributes.get("DURATION", "0")))
    if attributes.get("END-ON-NEXT") == "YES":
        starts = (_date_s(other, "START-DATE") for other in every if other.get("CLASS") == attributes.get("CLASS"))
        end_s = min((start_s for start_s in starts if start_s is not None and start_s > begin_s), default=float("inf"))
    return end_s > head_s and begin_s < head_s + playlist.duration_s


def _date_s(attributes: dict[str, str], name: str) -> float | None:
    try:
        return datetime.fromisoformat(unquoted(attributes[name])).timestamp()
    except (KeyError, ValueError, OverflowError):
        return None
