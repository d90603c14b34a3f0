"""Read a source's playlist, tolerantly: what players forgive is repaired and named, what is no playlist is refused.

m3u8 takes HTML for an empty playlist, and what its hook (hls.reader) does not read may make it raise: every exception of it becomes a
PlaylistError. Reading one segment takes about 40 us: long playlists are read aside, and what they repeat is not read again (hls.following).
"""

from __future__ import annotations

import math
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.dateranges import MOST_DATERANGES
from hlsrelay.hls.multivariant import presentation
from hlsrelay.hls.naming import told_apart
from hlsrelay.hls.reader import LONGEST_EXTINF_S, LONGEST_TARGET_DURATION_S, MOST_TAG_CHARACTERS, Reader, guess_s, span, with_iv
from hlsrelay.hls.spelling import respelt
from hlsrelay.hls.variables import CONTROL, substituted
from hlsrelay.model import ByteRange, Presentation, Segment, Snapshot
from hlsrelay.remembered import remembered
from hlsrelay.values import replace

__all__ = ["LONGEST_EXTINF_S", "LONGEST_TARGET_DURATION_S", "MOST_TAG_CHARACTERS", "identity", "parse"]

MOST_LINES, MOST_SEGMENTS = 60_000, 20_000
LONGEST_LINE = 64 << 10
_PLAIN = re.compile(r"https?://[A-Za-z0-9.:-]+(/[!-\"$->@-~]*)")
"""URIs that hold no user info, query or fragment, nor what urlsplit would take out."""
LONGEST_URI = 8 << 10
"""Longer ones no server takes; records of ours repeat them. Keys of DRM systems may hold data in theirs."""


def parse(body: bytes, url: str, variables: Mapping[str, str] | None = None, before: Snapshot | None = None) -> Snapshot | Presentation:
    """Return the playlist that *body*, loaded from *url* (after redirects), holds.

    *variables* are those that the multivariant playlist defines, for EXT-X-DEFINE:IMPORT. *before* is what the playlist said last:
    what a delta update leaves out is taken from there, as far as it goes.
    Raises PlaylistError where it is no playlist, or holds nothing to relay.
    """
    return read(body, Reader(url, before), variables or {})[0]


def read(body: bytes, reader: Reader, variables: Mapping[str, str]) -> tuple[Snapshot | Presentation, list[dict[str, Any]]]:
    """Do what `parse` promises, and return too what a media playlist's segments were read from, to go on from by `following`."""
    text = body.decode("utf-8-sig", errors="replace")
    if not text.lstrip().startswith("#EXTM3U"):
        raise PlaylistError(f"not an HLS playlist: it begins {text.lstrip()[:24]!r}, not #EXTM3U")
    if body.startswith(BOM_UTF8):
        reader.repaired("byte_order_mark")
    if text.count("\n") > MOST_LINES:
        raise PlaylistError(f"the playlist has more than {MOST_LINES} lines")
    lines = list(substituted(cleaned(text), reader.url, variables))
    lines = list(_newest_dateranges(map(respelt, lines), reader))
    try:
        reader.guess_s = guess_s(lines)
        reader.multivariant = any(line.startswith("#EXT-X-STREAM-INF") for line in lines)
        listed = reader.listed(lines, whole=text.endswith("\n"))
        if reader.multivariant:
            return presentation(lines, reader.url), []
        return _snapshot(listed, reader), listed
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise PlaylistError(f"broken HLS playlist: {type(error).__name__}: {str(error)[:200]}") from error


def cleaned(text: str) -> list[str]:
    """Return the lines of *text* without what no line may hold. Raises PlaylistError where that is more than any honest source has."""
    lines = [line.strip() for line in (text if CONTROL.search(text) is None else CONTROL.sub("", text)).split("\n")]
    _check_size(lines)
    return lines


def _check_size(lines: list[str]) -> None:
    """Raise PlaylistError for lines and URIs that no honest source has: what we keep would grow by them."""
    if len(lines) <= MOST_SEGMENTS and max(map(len, lines)) <= LONGEST_URI:
        return
    uris = [line for line in lines if line and not line.startswith("#")]
    if len(uris) > MOST_SEGMENTS:
        raise PlaylistError(f"the playlist lists {len(uris)} segments: {MOST_SEGMENTS} at most")
    for kind, found, most in (("URI", uris, LONGEST_URI), ("line", lines, LONGEST_LINE)):
        longest = max(map(len, found), default=0)
        if longest > most:
            raise PlaylistError(f"the playlist has a {kind} of {longest} characters: {most} at most")


def identity(segment: Segment) -> str:
    """Return what stays the same when a source lists *segment* again: path and byte range, never a token.

    Of the query it keeps what tells the segment from others of its playlist, where nothing else does (hls.naming).
    """
    path = _path(segment.uri)
    if segment.byterange is None and not segment.query:  # as of most
        return path
    at = f"@{segment.byterange.offset}+{segment.byterange.length}" if segment.byterange else ""
    return path + (f"?{segment.query}" if segment.query else "") + at


@remembered(4096)
def _path(uri: str) -> str:
    """Return the path of a URI; asked for a dozen times of each segment."""
    plain = _PLAIN.fullmatch(uri)
    return plain[1] if plain else urlsplit(uri).path


def _newest_dateranges(lines: Iterable[str], reader: Reader) -> Iterator[str]:
    """Yield *lines* without the EXT-X-DATERANGEs that are too many: the last ones stay."""
    kept = list(lines)
    excess = sum(line.startswith("#EXT-X-DATERANGE:") for line in kept) - MOST_DATERANGES
    if excess > 0:
        reader.repaired("dateranges_too_many")
        reader.once = True
    for line in kept:
        if line.startswith("#EXT-X-DATERANGE:") and (excess := excess - 1) >= 0:
            continue
        yield line


def _snapshot(listed: list[dict[str, Any]], reader: Reader) -> Snapshot:
    segments, discontinuity_sequence = _left_out(reader)
    segments += built(listed, reader, segments[-1] if segments else None)
    if not segments:
        raise PlaylistError("the playlist lists no segment")
    if ends_twice(segments):
        reader.repaired("duplicate_segment")
        reader.once = True
        segments.pop()
    segments = list(_counted(told_apart(segments), discontinuity_sequence))
    longest = max(rounded(segment.duration_s) for segment in segments)
    return finished(tuple(segments), longest, discontinuity_sequence, reader)


def built(listed: Iterable[dict[str, Any]], reader: Reader, previous: Segment | None) -> list[Segment]:
    """Return the segments that *listed* tells of, the first one after *previous*; what the whole playlist implies is yet to be said."""
    done: list[Segment] = []
    first = previous.sequence + 1 if previous else reader.first_sequence
    for index, raw in enumerate(listed):
        previous = _segment(raw, first + index, previous, reader.absolute(raw["uri"]))
        done.append(previous)
    return done


def rounded(duration_s: float) -> int:
    """Return a length as TARGETDURATION counts it (RFC 8216 4.3.3.1)."""
    return math.floor(duration_s + 0.5)


def finished(
    segments: Sequence[Segment], longest_s: int, discontinuity_sequence: int, reader: Reader, repairs: Iterable[str] = ()
) -> Snapshot:
    """Return the snapshot that *reader* has read, of *segments* whose longest one, rounded, has *longest_s*; *repairs* beside its own."""
    declared = reader.target_duration_s or 0
    if declared > max(LONGEST_TARGET_DURATION_S, 10 * longest_s):
        declared = 0
    if declared < max(1, longest_s):
        reader.block = 0  # the head's: the next load says it again, or not
        reader.repaired("target_duration_bad")
    found = [name for _, name in reader.repairs]
    return Snapshot(
        segments=segments,
        target_duration_s=max(1, declared, longest_s),
        media_sequence=segments[0].sequence,
        discontinuity_sequence=discontinuity_sequence,
        i_frames_only=reader.i_frames_only,
        ended=reader.ended,
        repairs=tuple(dict.fromkeys((*found, *repairs))),
        dateranges=tuple(line for _, line in reader.dateranges),
    )


def ends_twice(segments: Sequence[Segment]) -> bool:
    """Return whether the newest segment is listed twice, and is no slate or empty subtitle that is shown again and again."""
    if len(segments) < 2 or segments[-1].discontinuity:
        return False
    last, before = segments[-1], segments[-2]
    dated_apart = None not in (last.program_date_time, before.program_date_time) and last.program_date_time != before.program_date_time
    return (
        (last.uri, last.byterange, last.init) == (before.uri, before.byterange, before.init)
        and [(key.method, key.uri) for key in last.keys] == [(key.method, key.uri) for key in before.keys]
        and not dated_apart
        and sum(one.uri == last.uri and one.byterange == last.byterange for one in segments) == 2
    )


def _left_out(reader: Reader) -> tuple[list[Segment], int]:
    """Return the segments that a delta update left out and we know, up to the first it lists, and the first one's era before it."""
    before, sequence = reader.before, reader.discontinuity_sequence
    known = [one for one in before.segments if reader.media_sequence <= one.sequence < reader.first_sequence] if before else []
    if not known or known[-1].sequence != reader.first_sequence - 1:
        return [], sequence
    known[0] = replace(known[0], program_date_time=known[0].time)
    return known, known[0].era - known[0].discontinuity


def _counted(segments: list[Segment], discontinuity_sequence: int) -> Iterator[Segment]:
    """Yield *segments* with the times and the discontinuity sequence numbers that the written ones imply."""
    first = next((index for index, one in enumerate(segments) if one.program_date_time), None)
    when = None
    if first is not None and (told := segments[first].program_date_time):
        when = counted_back(told, segments[:first])
    return told_times(segments, when, discontinuity_sequence)


def counted_back(told: datetime, before: Sequence[Segment]) -> datetime:
    """Return when *before* begins, of which the next segment begins at *told*."""
    return told - timedelta(seconds=sum(one.duration_s for one in before))


def told_times(segments: Iterable[Segment], when: datetime | None, era: int) -> Iterator[Segment]:
    """Yield *segments* with their times, the first one's is *when*, and their discontinuity sequence numbers after *era*."""
    for segment in segments:
        era += segment.discontinuity
        when = segment.program_date_time or when
        yield replace(segment, time=when, era=era)
        if when is not None:
            when += timedelta(seconds=segment.duration_s)


def _segment(raw: dict[str, Any], sequence: int, previous: Segment | None, uri: str) -> Segment:
    keys, init, _ = raw.get("in_force", ((), None, None))
    return Segment(
        sequence=sequence,
        uri=uri,
        duration_s=raw["duration"],
        title=raw["title"],
        discontinuity=raw.get("cut", False),
        program_date_time=raw.get("pdt"),
        byterange=_byterange(raw.get("range"), uri, previous),
        init=init,
        keys=tuple(with_iv(key, sequence) for key in keys),
        gap=raw.get("gap", False),
        tags=tuple(raw.get("tags", ())),
        parts=tuple(raw.get("held_parts", ())),
    )


def _byterange(text: str | None, uri: str, previous: Segment | None) -> ByteRange | None:
    return span(text, previous.byterange if previous and previous.uri == uri else None)  # RFC 8216 4.3.2.2
