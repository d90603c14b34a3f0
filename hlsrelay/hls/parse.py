"""Read a source's playlist, tolerantly: what players forgive is repaired and named, what is no playlist is refused.

m3u8 assembles the lines; it leaks ValueError, KeyError and TypeError, loses unknown tags, takes HTML for an empty playlist
and keeps one KEY only. So lines are mended before it sees them (`_mended`), the tags that matter are read by `_Reader`, its hook,
and every exception of it becomes a PlaylistError. This is the only module that imports it.
"""

from __future__ import annotations

import math
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urljoin, urlsplit

from m3u8 import parser as m3u8_parser

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.dateranges import MOST_DATERANGES
from hlsrelay.hls.multivariant import NOT_CARRIED, presentation
from hlsrelay.hls.naming import told_apart
from hlsrelay.hls.spelling import respelt
from hlsrelay.hls.variables import CONTROL, attributes, substituted
from hlsrelay.model import ByteRange, InitSection, Key, Part, Presentation, Segment, Snapshot

DIGITS_OF_AN_INTEGER = 20
"""A decimal-integer is below 2^64 (RFC 8216 4.2); longer ones would not fit into file names and IVs."""
DIGITS_OF_A_DOUBLE = 15
"""Players written in JavaScript count no further than 2^53; what only counts on from somewhere had better begin below."""
YEARS = range(1970, 2200)
"""A PROGRAM-DATE-TIME outside of these is none: nobody could count on from it. Packagers without a clock begin with 1970."""
SHORTEST_EXTINF_S = 0.001
LONGEST_TARGET_DURATION_S = 60
"""A longer TARGETDURATION that no segment comes near is a mistake, such as milliseconds: everything would wait for it."""
MOST_KEYS = 8
MOST_ATTRIBUTES = 32
"""Of a key: each segment that it holds for repeats them."""
MOST_LINES, MOST_SEGMENTS = 60_000, 20_000
"""Reading one takes about 40 us, while all other streams wait."""
LONGEST_LINE = 64 << 10
LONGEST_URI = 8 << 10
"""Longer ones no server takes; records of ours repeat them. Keys of DRM systems may hold data in theirs."""
MOST_TAG_CHARACTERS = 32 << 10
"""Tags to carry through, for one segment. What comes after is dropped: every playlist and record of ours repeats them."""
DIGITS_OF_A_SKIP = 9
DIGITS_OF_AN_IV = 32
_HEX = re.compile(r"(0[xX])?0*?([0-9A-Fa-f]{1,32})")
_SECRET_BY_URI = {"AES-128", "AES-256", "SAMPLE-AES"}
LONGEST_EXTINF_S = 3600.0
"""A longer segment is a mistake of the source, not media."""

_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)(?=[\s,]|$)")
"""A number, and nothing behind it that would make it another one, as in 1e9."""
_HERE = "#EXT-X-HLSRELAY-URI-FOLLOWS"
"""A tag of our own, put before each URI line: m3u8 shows its hook the tags only, and keys and maps may come after EXTINF."""


def parse(body: bytes, url: str, variables: Mapping[str, str] | None = None, before: Snapshot | None = None) -> Snapshot | Presentation:
    """Return the playlist that *body*, loaded from *url* (after redirects), holds.

    *variables* are those that the multivariant playlist defines, for EXT-X-DEFINE:IMPORT. *before* is what the playlist said last:
    what a delta update leaves out is taken from there, as far as it goes.
    Raises PlaylistError where it is no playlist, or holds nothing to relay.
    """
    text = body.decode("utf-8-sig", errors="replace")
    if not text.lstrip().startswith("#EXTM3U"):
        raise PlaylistError(f"not an HLS playlist: it begins {text.lstrip()[:24]!r}, not #EXTM3U")
    reader = _Reader(url, before)
    if body.startswith(BOM_UTF8):
        reader.repaired("byte_order_mark")
    if text.count("\n") > MOST_LINES:
        raise PlaylistError(f"the playlist has more than {MOST_LINES} lines")
    lines = [CONTROL.sub("", line).strip() for line in text.split("\n")]
    _check_size(lines)
    lines = list(_newest_dateranges(map(respelt, substituted(lines, url, variables or {})), reader))
    try:
        data = m3u8_parser.parse("\n".join(_mended(lines, reader, whole=text.endswith("\n"))), custom_tags_parser=reader.tag)
        if any(line.startswith("#EXT-X-STREAM-INF") for line in lines):
            return presentation(lines, url)
        return _snapshot(data, reader, url)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise PlaylistError(f"broken HLS playlist: {type(error).__name__}: {str(error)[:200]}") from error


def _check_size(lines: list[str]) -> None:
    """Raise PlaylistError for lines and URIs that no honest source has: what we keep would grow by them."""
    uris = [line for line in lines if line and not line.startswith("#")]
    if len(uris) > MOST_SEGMENTS:
        raise PlaylistError(f"the playlist lists {len(uris)} segments: {MOST_SEGMENTS} at most")
    for kind, found, most in (("URI", uris, LONGEST_URI), ("line", lines, LONGEST_LINE)):
        longest = max(map(len, found), default=0)
        if longest > most:
            raise PlaylistError(f"the playlist has a {kind} of {longest} characters: {most} at most")


def unquoted(value: str | None) -> str | None:
    """Return a quoted string without its quotes."""
    return None if value is None else value.strip('"')


def identity(segment: Segment) -> str:
    """Return what stays the same when a source lists *segment* again: path and byte range, never a token.

    Of the query it keeps what tells the segment from others of its playlist, where nothing else does (hls.naming).
    """
    path = urlsplit(segment.uri).path
    span = f"@{segment.byterange.offset}+{segment.byterange.length}" if segment.byterange else ""
    return path + (f"?{segment.query}" if segment.query else "") + span


@dataclass
class _Reader:
    """The hook that m3u8 calls for each tag: reads the tags that a relay must not lose or misread."""

    url: str
    before: Snapshot | None = None
    repairs: list[str] = field(default_factory=list)
    target_duration_s: int | None = None
    media_sequence: int = 0
    discontinuity_sequence: int = 0
    ended: bool = False
    i_frames_only: bool = False
    keys: dict[str, Key] = field(default_factory=dict)
    init: InitSection | None = None
    skipped: int = 0
    part: Part | None = None
    dateranges: list[str] = field(default_factory=list)

    def repaired(self, name: str) -> None:
        if name not in self.repairs:
            self.repairs.append(name)

    def tag(self, line: str, _lineno: int, data: dict[str, Any], state: dict[str, Any]) -> bool:
        """Return True where the tag is read here, so that m3u8 leaves it alone."""
        name, _, value = line[1:].partition(":")
        match name:
            case "EXT-X-TARGETDURATION":
                number = _NUMBER.match(value)
                self.target_duration_s = math.ceil(float(number[1])) if number else None
            case "EXT-X-MEDIA-SEQUENCE":
                if value.strip().isdecimal() and len(value.strip()) <= DIGITS_OF_AN_INTEGER:
                    self.media_sequence = int(value)
                else:
                    self.repaired("media_sequence_bad")
                if data["segments"]:
                    self.repaired("media_sequence_late")
            case "EXT-X-DISCONTINUITY-SEQUENCE":
                number_of = value.strip()
                self.discontinuity_sequence = int(number_of) if number_of.isdecimal() and len(number_of) <= DIGITS_OF_A_DOUBLE else 0
            case "EXT-X-ENDLIST":
                self.ended = True
            case "EXT-X-I-FRAMES-ONLY":
                self.i_frames_only = True
            case "EXT-X-KEY":
                self._key(line)
            case "EXT-X-MAP":
                self._map(line)
            case "EXTINF" | "EXT-X-BYTERANGE" | "EXT-X-DISCONTINUITY" | "EXT-X-PROGRAM-DATE-TIME" | "EXT-X-GAP":
                self._segment(name, value, state)
            case "EXT-X-PART":
                self._part(line, state)
            case "EXT-X-SKIP":
                self._skip(line)
            case "EXT-X-HLSRELAY-URI-FOLLOWS":
                _segment_of(state)["in_force"] = (tuple(self.keys.values()), self.init)
            case _ if name.startswith("EXT") and name not in NOT_CARRIED:
                self._carried(line, state)
        return True

    def _segment(self, name: str, value: str, state: dict[str, Any]) -> None:
        segment = _segment_of(state)
        match name:
            case "EXTINF":
                duration, _, title = value.partition(",")
                segment["duration"], segment["title"] = float(duration), title.strip()
                state["expect_segment"] = True
            case "EXT-X-BYTERANGE":
                segment["range"] = value.strip().strip('"')
            case "EXT-X-DISCONTINUITY":
                segment["cut"] = True
            case "EXT-X-GAP":
                segment["gap"] = True
            case _:
                try:
                    when = datetime.fromisoformat(value.strip())
                    if when.year not in YEARS:
                        raise ValueError(when.year)
                    segment["pdt"] = when if when.tzinfo else when.replace(tzinfo=UTC)
                except ValueError:
                    self.repaired("program_date_time_bad")

    def _carried(self, line: str, state: dict[str, Any]) -> None:
        segment = _segment_of(state)
        segment["tags_length"] = segment.get("tags_length", 0) + len(line)
        if segment["tags_length"] > MOST_TAG_CHARACTERS:
            self.repaired("tags_too_many")
            return
        segment.setdefault("tags", []).append(line)
        if line.startswith("#EXT-X-DATERANGE:"):
            self.dateranges.append(line)

    def _part(self, line: str, state: dict[str, Any]) -> None:
        """Keep a part for the segment that it is a piece of: the next one listed (rfc8216bis 4.4.4.9). The newest may have none yet."""
        got = attributes(line)
        if "URI" not in got or not (duration := _NUMBER.match(got.get("DURATION", ""))):
            return
        uri = urljoin(self.url, got["URI"].strip('"'))
        before = self.part if self.part and self.part.uri == uri else None
        self.part = Part(
            uri=uri,
            duration_s=float(duration[1]),
            independent=got.get("INDEPENDENT") == "YES",
            byterange=_span(unquoted(got.get("BYTERANGE")), before.byterange if before else None),
            gap=got.get("GAP") == "YES",
        )
        _segment_of(state).setdefault("held_parts", []).append(self.part)

    def _skip(self, line: str) -> None:
        """Read that this is a delta update (rfc8216bis 4.4.5.2), as a cache may answer with: we never ask for one.

        What was in force at the end of what it leaves out is known from before, if at all.
        """
        count = attributes(line).get("SKIPPED-SEGMENTS", "")
        if not count.isdecimal() or len(count) > DIGITS_OF_A_SKIP:
            self.repaired("skip_bad")
            return
        self.repaired("delta_update")
        self.skipped = int(count)
        last = next((one for one in reversed(self.before.segments if self.before else ()) if one.sequence < self.first_sequence), None)
        if last is not None:
            self.init = self.init or last.init
            self.keys = self.keys or {key.keyformat: _without_implied_iv(key, last.sequence) for key in last.keys}

    @property
    def first_sequence(self) -> int:
        """The number of the first segment that is listed and not skipped."""
        return self.media_sequence + self.skipped

    def _key(self, line: str) -> None:
        got = attributes(line)
        method = got.get("METHOD", "NONE")
        if method == "NONE":  # ends every key, of any format
            self.keys = {}
            return
        uri = unquoted(got.get("URI"))
        if method in _SECRET_BY_URI and not uri:
            raise PlaylistError(f"an EXT-X-KEY of METHOD={method} has no URI: nobody could decrypt")
        if "IV" in got:
            got["IV"] = _iv(got["IV"])
        key = Key(
            method=method,
            uri=urljoin(self.url, uri) if uri else None,
            iv=got.get("IV"),
            keyformat=unquoted(got.get("KEYFORMAT")) or "identity",
            attributes=tuple(got.items()),
        )
        self.keys = {**self.keys, key.keyformat: key}
        if len(self.keys) > MOST_KEYS or len(got) > MOST_ATTRIBUTES:
            raise PlaylistError(f"a segment has more than {MOST_KEYS} keys, or a key more than {MOST_ATTRIBUTES} attributes")

    def _map(self, line: str) -> None:
        got = attributes(line)
        uri = unquoted(got.get("URI"))
        if uri:
            if any(_lacks_iv(key) for key in self.keys.values()):
                self.repaired("map_iv_missing")
            keys = tuple(_with_iv(key, 0) for key in self.keys.values())  # one is required (RFC 8216 4.3.2.5); hls.js too takes 0
            self.init = InitSection(urljoin(self.url, uri), _span(unquoted(got.get("BYTERANGE"))), keys)


def _newest_dateranges(lines: Iterable[str], reader: _Reader) -> Iterator[str]:
    """Yield *lines* without the EXT-X-DATERANGEs that are too many: the last ones stay."""
    kept = list(lines)
    excess = sum(line.startswith("#EXT-X-DATERANGE:") for line in kept) - MOST_DATERANGES
    if excess > 0:
        reader.repaired("dateranges_too_many")
    for line in kept:
        if line.startswith("#EXT-X-DATERANGE:") and (excess := excess - 1) >= 0:
            continue
        yield line


def _segment_of(state: dict[str, Any]) -> dict[str, Any]:
    segment: dict[str, Any] = state.setdefault("segment", {})
    return segment


def _mended(lines: list[str], reader: _Reader, *, whole: bool) -> Iterator[str]:
    """Yield the lines with what sources get wrong made right: EXTINF that is bad or missing, a last line cut off."""
    target = next((float(n[1]) for line in lines if line.startswith("#EXT-X-TARGETDURATION:") and (n := _NUMBER.match(line[22:]))), 0.0)
    guess = target if 1 <= target <= LONGEST_TARGET_DURATION_S else 1.0
    multivariant = any(line.startswith("#EXT-X-STREAM-INF") for line in lines)
    awaited = False
    last_suffix: str | None = None
    for index, line in enumerate(lines):
        if line.startswith("#EXTINF"):
            duration, comma, title = line.partition(":")[2].partition(",")
            number = _NUMBER.match(duration)
            if not number or not comma or not SHORTEST_EXTINF_S <= float(number[1]) <= LONGEST_EXTINF_S:
                reader.repaired("extinf_bad")
            length = float(number[1]) if number else 0.0
            if not SHORTEST_EXTINF_S <= length <= LONGEST_EXTINF_S:
                length = guess
            awaited = True
            yield f"#EXTINF:{length!r},{title}"
        elif line and not line.startswith("#"):
            suffix = urlsplit(line).path.rpartition(".")[2]
            cut_off = not whole and index == len(lines) - 1 and last_suffix is not None and suffix != last_suffix
            if cut_off and not multivariant:
                reader.repaired("last_line_cut_off")
                return
            if not awaited and not multivariant:
                reader.repaired("extinf_missing")
                yield f"#EXTINF:{guess!r},"
            awaited, last_suffix = False, suffix
            if not multivariant:
                yield _HERE
            yield line
        else:
            yield line


def _snapshot(data: dict[str, Any], reader: _Reader, url: str) -> Snapshot:
    segments, discontinuity_sequence = _left_out(reader)
    for index, raw in enumerate(segment for segment in data["segments"] if segment.get("uri")):
        segments.append(_segment(raw, reader.first_sequence + index, segments[-1] if segments else None, url))
    if not segments:
        raise PlaylistError("the playlist lists no segment")
    if _ends_twice(segments):
        reader.repaired("duplicate_segment")
        segments.pop()
    segments = list(_counted(told_apart(segments), discontinuity_sequence))
    longest = max(math.floor(segment.duration_s + 0.5) for segment in segments)
    declared = reader.target_duration_s or 0
    if declared > max(LONGEST_TARGET_DURATION_S, 10 * longest):
        declared = 0
    if declared < max(1, longest):
        reader.repaired("target_duration_bad")
    return Snapshot(
        segments=tuple(segments),
        target_duration_s=max(1, declared, longest),
        media_sequence=segments[0].sequence,
        discontinuity_sequence=discontinuity_sequence,
        i_frames_only=reader.i_frames_only,
        ended=reader.ended,
        repairs=tuple(reader.repairs),
        dateranges=tuple(reader.dateranges),
    )


def _ends_twice(segments: list[Segment]) -> bool:
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


def _left_out(reader: _Reader) -> tuple[list[Segment], int]:
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
        when = told - timedelta(seconds=sum(one.duration_s for one in segments[:first]))
    era = discontinuity_sequence
    for segment in segments:
        era += segment.discontinuity
        when = segment.program_date_time or when
        yield replace(segment, time=when, era=era)
        if when is not None:
            when += timedelta(seconds=segment.duration_s)


def _segment(raw: dict[str, Any], sequence: int, previous: Segment | None, url: str) -> Segment:
    uri = urljoin(url, raw["uri"])
    keys, init = raw.get("in_force", ((), None))
    return Segment(
        sequence=sequence,
        uri=uri,
        duration_s=raw["duration"],
        title=raw["title"],
        discontinuity=raw.get("cut", False),
        program_date_time=raw.get("pdt"),
        byterange=_byterange(raw.get("range"), uri, previous),
        init=init,
        keys=tuple(_with_iv(key, sequence) for key in keys),
        gap=raw.get("gap", False),
        tags=tuple(raw.get("tags", ())),
        parts=tuple(raw.get("held_parts", ())),
    )


def _iv(text: str) -> str:
    """Return an IV as the 128 bits that it is: players that make an array of its digits take a shorter one for another, or for none."""
    found = _HEX.fullmatch(text)
    if found is None:
        raise PlaylistError(f"the IV of an EXT-X-KEY is no number of 128 bits: {text[:40]!r}")
    return text if found[1] and len(text) == 2 + DIGITS_OF_AN_IV else f"0x{found[2].zfill(DIGITS_OF_AN_IV)}"


def _lacks_iv(key: Key) -> bool:
    return not key.iv and key.method in ("AES-128", "AES-256", "SAMPLE-AES") and key.keyformat == "identity"


def _with_iv(key: Key, sequence: int) -> Key:
    """No IV means the media sequence number is the IV (RFC 8216 5.2); ours differ from the source's, so write it out."""
    if not _lacks_iv(key):
        return key
    iv = f"0x{sequence:032x}"
    return Key(key.method, key.uri, iv, key.keyformat, (*key.attributes, ("IV", iv)))


def _without_implied_iv(key: Key, sequence: int) -> Key:
    """Undo `_with_iv`."""
    if key.attributes[-1:] != (("IV", f"0x{sequence:032x}"),):
        return key
    return Key(key.method, key.uri, None, key.keyformat, key.attributes[:-1])


def _byterange(text: str | None, uri: str, previous: Segment | None) -> ByteRange | None:
    return _span(text, previous.byterange if previous and previous.uri == uri else None)  # RFC 8216 4.3.2.2


def _span(text: str | None, follows: ByteRange | None = None) -> ByteRange | None:
    """Read `<length>[@<offset>]`; without an offset it *follows*, or begins the resource."""
    length, _, offset = (text or "").partition("@")
    if not length:
        return None
    return ByteRange(int(length), int(offset) if offset else follows.offset + follows.length if follows else 0)
