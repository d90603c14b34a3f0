"""EXT-X-DATERANGE over the life of a live playlist (RFC 8216 4.3.2.7, 6.2.1; rfc8216bis 4.4.5.1). Pure.

Laws:
  1. A tag stays while its range maps to a listed segment: it moves to the playlist's head when the segment it stood before leaves.
  2. An ID is one range for ever: a tag of the same ID and START-DATE adds attributes to it and changes none; one of another START-DATE,
     as of an encoder that counts anew, gets another ID, made of both.
  3. What the playlist says already is not said again: sources repeat their tags anywhere, and the source's window may be longer.
  4. No more than MOST_DATERANGES are listed; the newest are. That alone may break law 1.

A range without an end is taken to last for a day, or ten minutes longer than planned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from hlsrelay.hls.variables import attributes
from hlsrelay.model import Entry, Numbered, Snapshot
from hlsrelay.values import replace

MOST_DATERANGES = 100
"""Listed of one playlist, and read of one."""
MOST_REMEMBERED = 4 * MOST_DATERANGES
"""IDs that were used, kept so as not to use them again: more than a source can list."""
_TAG = "#EXT-X-DATERANGE:"
_OPEN_S = 86400.0
_OVERRUN_S = 600.0
_ENDS = ("END-DATE", "DURATION", "END-ON-NEXT")
_FOREVER = datetime.max.replace(tzinfo=UTC)

Attributes = dict[str, str]


def carried(fresh: Sequence[Numbered], snapshot: Snapshot | None) -> tuple[Numbered, ...]:
    """Return *fresh* with every DATERANGE of the playlist among its tags: those that stand elsewhere go before the first.

    A source may write or augment them anywhere, also before a segment that was relayed long ago.
    """
    if not fresh or snapshot is None or not snapshot.dateranges:
        return tuple(fresh)
    in_place = {tag for one in fresh for tag in one.segment.tags}
    elsewhere = tuple(dict.fromkeys(tag for tag in snapshot.dateranges if tag not in in_place))
    segment = fresh[0].segment
    return (replace(fresh[0], segment=replace(segment, tags=(*elsewhere, *segment.tags))), *fresh[1:])


def among(tags: Iterable[str]) -> bool:
    """Return whether one of *tags* is a DATERANGE."""
    return any(tag.startswith(_TAG) for tag in tags)


def admitted(
    tags: Sequence[str], head: Sequence[str], entries: Sequence[Entry], used: Sequence[str], begins: datetime
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return *tags* as they may be listed after *head* and *entries*, and the IDs *used* by then.

    What maps to nothing from *begins* on, says nothing new, or has no ID or no date, is left out.
    """
    if not among(tags):
        return tuple(tags), tuple(used)
    lines = dict.fromkeys(_lines(head, entries))
    known = _merged(lines)
    everything = _merged((*lines, *tags))
    marks = {mark.partition(" ")[2]: mark for mark in used}
    marks = {name: _mark(name, start) for name, got in known.items() if (start := _date(got.get("START-DATE")))} | marks
    kept: list[str] = []
    for tag in tags:
        if not tag.startswith(_TAG):
            kept.append(tag)
            continue
        got = attributes(tag)
        start = _date(got.get("START-DATE"))
        if tag in lines or start is None or not got.get("ID", "").strip('"'):
            continue
        name = got["ID"]
        if marks.get(name, _mark(name, start)) != _mark(name, start):
            name = f'"{name.strip(chr(34))}@{start.isoformat()}"'
        got = {**got, "ID": name}
        if name in known:
            new = _addition(got, known[name])
            if not new:
                continue
            got = {"ID": name, "START-DATE": known[name]["START-DATE"], **new}
        elif name in marks or not _maps(got, everything.values(), begins):
            continue
        known[name] = {**known.get(name, {}), **got}
        marks[name] = _mark(name, start)
        kept.append(_written(got, tag))
    return tuple(kept), tuple(marks.values())[-MOST_REMEMBERED:]


def bounded(head: Sequence[str], entries: tuple[Entry, ...]) -> tuple[tuple[str, ...], tuple[Entry, ...]]:
    """Return both without the oldest DATERANGEs where they are too many."""
    excess = len(head) + sum(tag.startswith(_TAG) for entry in entries for tag in entry.tags) - MOST_DATERANGES
    if excess <= 0:
        return tuple(head), entries
    left = max(0, excess - len(head))
    shortened = []
    for entry in entries:
        tags = list(entry.tags)
        for tag in entry.tags:
            if left and tag.startswith(_TAG):
                tags.remove(tag)
                left -= 1
        shortened.append(entry if len(tags) == len(entry.tags) else replace(entry, tags=tuple(tags)))
    return tuple(head[excess:]), tuple(shortened)


def in_force(head: Sequence[str], left: Iterable[Entry], stay: Sequence[Entry]) -> tuple[str, ...]:
    """Return the DATERANGEs of *head* and of the entries that *left* which reach over an entry that stays, one line for each ID.

    One that has ended stays too while a tag that adds to it is listed: alone that would say less of the range than was said before.
    """
    gone = (*head, *(tag for entry in left for tag in entry.tags if tag.startswith(_TAG)))
    if not gone:
        return ()
    added_to = _merged(_lines((), stay))
    everything = _merged((*gone, *_lines((), stay)))
    begins = stay[0].program_date_time
    originals = {attributes(tag).get("ID", ""): tag for tag in gone}
    return tuple(
        _written(got, originals[name])
        for name, got in _merged(gone).items()
        if name in added_to or _maps(everything[name], everything.values(), begins)
    )


def _lines(head: Sequence[str], entries: Iterable[Entry]) -> tuple[str, ...]:
    return (*head, *(tag for entry in entries for tag in entry.tags if tag.startswith(_TAG)))


def _merged(tags: Iterable[str]) -> dict[str, Attributes]:
    """The attributes of each ID, as the tags together say; what was said first counts."""
    merged: dict[str, Attributes] = {}
    for tag in tags:
        if tag.startswith(_TAG):
            got = attributes(tag)
            known = merged.setdefault(got.get("ID", ""), {})
            known.update({name: value for name, value in got.items() if name not in known})
    return merged


def _addition(got: Attributes, known: Attributes) -> Attributes:
    """What *got* adds to the range *known*, whose end is said once only."""
    ended = any(name in known for name in _ENDS)
    return {name: value for name, value in got.items() if name not in known and not (ended and name in _ENDS)}


def _mark(name: str, start: datetime) -> str:
    return f"{start.isoformat()} {name}"


def _written(got: Attributes, original: str) -> str:
    """The tag, as its source wrote it where that says the same."""
    return original if attributes(original) == got else _TAG + ",".join(f"{name}={value}" for name, value in got.items())


def _maps(got: Attributes, everything: Iterable[Attributes], begins: datetime) -> bool:
    end = _end(got, everything, begins)
    return end > begins or _date(got.get("START-DATE")) == end == begins


def _end(got: Attributes, everything: Iterable[Attributes], now: datetime) -> datetime:
    """Return when a range ends; *now* where nobody can tell what it maps to."""
    start = _date(got.get("START-DATE"))
    if start is None:
        return now
    if (end := _date(got.get("END-DATE"))) is not None:
        return end
    if got.get("END-ON-NEXT") == "YES":
        starts = (_date(other.get("START-DATE")) for other in everything if other.get("CLASS") == got.get("CLASS"))
        return min((one for one in starts if one is not None and one > start), default=_FOREVER)
    try:
        if "DURATION" in got:
            return start + timedelta(seconds=float(got["DURATION"]))
        return start + timedelta(seconds=float(got["PLANNED-DURATION"]) + _OVERRUN_S if "PLANNED-DURATION" in got else _OPEN_S)
    except (ValueError, OverflowError):
        return now


def _date(text: str | None) -> datetime | None:
    try:
        when = datetime.fromisoformat((text or "").strip('"'))
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
