"""Read a source's playlist, tolerantly: what players forgive is repaired and named, what is no playlist is refused.

m3u8 assembles the lines; it leaks ValueError, KeyError and TypeError, loses unknown tags, takes HTML for an empty playlist
and keeps one KEY only. So lines are mended before it sees them (`_mended`), the tags that matter are read by `_Reader`, its hook,
and every exception of it becomes a PlaylistError. This is the only module that imports it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urljoin, urlsplit

from m3u8 import parser as m3u8_parser

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.tracks import assembled
from hlsrelay.model import ByteRange, InitSection, Key, Kind, Part, Presentation, Segment, Snapshot

DIGITS_OF_AN_INTEGER = 20
"""A decimal-integer is below 2^64 (RFC 8216 4.2); longer ones would not fit into file names and IVs."""
YEARS = range(1990, 2200)
"""A PROGRAM-DATE-TIME outside of these is none: nobody could count on from it."""
SHORTEST_EXTINF_S = 0.001
LONGEST_TARGET_DURATION_S = 60
"""A longer TARGETDURATION that no segment comes near is a mistake, such as milliseconds: everything would wait for it."""
MOST_KEYS = 8
MOST_TRACKS = 100
MOST_SUBSTITUTED_CHARACTERS = 4 << 20
LONGEST_EXTINF_S = 3600.0
"""A longer segment is a mistake of the source, not media."""

_ATTRIBUTE = re.compile(r'([A-Z0-9-]+)=("[^"]*"|[^",]*)')
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]")
_VARIABLE = re.compile(r"\{\$([A-Za-z0-9_-]+)\}")
_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)")
_HERE = "#EXT-X-HLSRELAY-URI-FOLLOWS"
"""A tag of our own, put before each URI line: m3u8 shows its hook the tags only, and keys and maps may come after EXTINF."""

# Tags of the playlist's head, and low-latency tags: ours differ, so the source's are not carried through.
_NOT_CARRIED = {
    "EXTM3U", "EXT-X-VERSION", "EXT-X-TARGETDURATION", "EXT-X-MEDIA-SEQUENCE", "EXT-X-DISCONTINUITY-SEQUENCE", "EXT-X-ENDLIST",
    "EXT-X-PLAYLIST-TYPE", "EXT-X-I-FRAMES-ONLY", "EXT-X-INDEPENDENT-SEGMENTS", "EXT-X-START", "EXT-X-DEFINE", "EXT-X-ALLOW-CACHE",
    "EXT-X-SERVER-CONTROL", "EXT-X-PART-INF", "EXT-X-PART", "EXT-X-SKIP", "EXT-X-PRELOAD-HINT", "EXT-X-RENDITION-REPORT",
    "EXT-X-CONTENT-STEERING", "EXT-X-I-FRAME-STREAM-INF", "EXT-X-MEDIA", "EXT-X-SESSION-DATA", "EXT-X-SESSION-KEY",
    "EXTINF", "EXT-X-BYTERANGE", "EXT-X-DISCONTINUITY", "EXT-X-KEY", "EXT-X-MAP", "EXT-X-PROGRAM-DATE-TIME", "EXT-X-GAP",
}  # fmt: skip


def parse(body: bytes, url: str, variables: Mapping[str, str] | None = None) -> Snapshot | Presentation:
    """Return the playlist that *body*, loaded from *url* (after redirects), holds.

    *variables* are those that the multivariant playlist defines, for EXT-X-DEFINE:IMPORT.
    Raises PlaylistError where it is no playlist, or holds nothing to relay.
    """
    text = body.decode("utf-8-sig", errors="replace")
    if not text.lstrip().startswith("#EXTM3U"):
        raise PlaylistError(f"not an HLS playlist: it begins {text.lstrip()[:24]!r}, not #EXTM3U")
    reader = _Reader(url)
    lines = [_CONTROL.sub("", line).strip() for line in text.split("\n")]
    lines = list(_substituted(lines, url, variables or {}))
    try:
        data = m3u8_parser.parse("\n".join(_mended(lines, reader, whole=text.endswith("\n"))), custom_tags_parser=reader.tag)
        if any(line.startswith("#EXT-X-STREAM-INF") for line in lines):
            return _presentation(lines, url)
        return _snapshot(data, reader, url)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise PlaylistError(f"broken HLS playlist: {type(error).__name__}: {error}") from error


def attributes(line: str) -> dict[str, str]:
    """Return a tag's attribute list (RFC 8216 4.2), quotes kept; what is no attribute is passed over."""
    return dict(_ATTRIBUTE.findall(line.partition(":")[2]))


def unquoted(value: str | None) -> str | None:
    """Return a quoted string without its quotes."""
    return None if value is None else value.strip('"')


def identity(segment: Segment) -> str:
    """Return what stays the same when a source lists *segment* again: path and byte range, never the query (tokens rotate)."""
    parts = urlsplit(segment.uri)
    span = f"@{segment.byterange.offset}+{segment.byterange.length}" if segment.byterange else ""
    return parts.path + span


@dataclass
class _Reader:
    """The hook that m3u8 calls for each tag: reads the tags that a relay must not lose or misread."""

    url: str
    repairs: list[str] = field(default_factory=list)
    target_duration_s: int | None = None
    media_sequence: int = 0
    discontinuity_sequence: int = 0
    ended: bool = False
    i_frames_only: bool = False
    keys: dict[str, Key] = field(default_factory=dict)
    init: InitSection | None = None

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
                self.discontinuity_sequence = int(value) if value.strip().isdecimal() else 0
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
            case "EXT-X-HLSRELAY-URI-FOLLOWS":
                _segment_of(state)["in_force"] = (tuple(self.keys.values()), self.init)
            case _ if name.startswith("EXT") and name not in _NOT_CARRIED:
                _segment_of(state).setdefault("tags", []).append(line)
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

    def _part(self, line: str, state: dict[str, Any]) -> None:
        got = attributes(line)
        if "URI" in got and (duration := _NUMBER.match(got.get("DURATION", ""))):
            part = Part(
                uri=urljoin(self.url, got["URI"].strip('"')),
                duration_s=float(duration[1]),
                independent=got.get("INDEPENDENT") == "YES",
                gap=got.get("GAP") == "YES",
            )
            _segment_of(state).setdefault("held_parts", []).append(part)

    def _key(self, line: str) -> None:
        got = attributes(line)
        method = got.get("METHOD", "NONE")
        if method == "NONE":  # ends every key, of any format
            self.keys = {}
            return
        uri = unquoted(got.get("URI"))
        key = Key(
            method=method,
            uri=urljoin(self.url, uri) if uri else None,
            iv=got.get("IV"),
            keyformat=unquoted(got.get("KEYFORMAT")) or "identity",
            attributes=tuple(got.items()),
        )
        self.keys = {**self.keys, key.keyformat: key}
        if len(self.keys) > MOST_KEYS:
            raise PlaylistError(f"a segment has more than {MOST_KEYS} keys")

    def _map(self, line: str) -> None:
        got = attributes(line)
        uri = unquoted(got.get("URI"))
        if uri:
            length, _, offset = (unquoted(got.get("BYTERANGE")) or "").partition("@")
            span = ByteRange(int(length), int(offset or 0)) if length else None
            self.init = InitSection(urljoin(self.url, uri), span)


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
    listed = [segment for segment in data["segments"] if segment.get("uri")]
    if not listed:
        raise PlaylistError("the playlist lists no segment")
    segments: list[Segment] = []
    for raw in listed:
        segments.append(_segment(raw, reader.media_sequence + len(segments), segments[-1] if segments else None, url))
    if len(segments) > 1:
        last, before = segments[-1], segments[-2]
        if (last.uri, last.byterange) == (before.uri, before.byterange) and not last.discontinuity:  # a looped slate has one
            reader.repaired("duplicate_segment")
            segments.pop()
    longest = max(math.floor(segment.duration_s + 0.5) for segment in segments)
    declared = reader.target_duration_s or 0
    if declared > max(LONGEST_TARGET_DURATION_S, 10 * longest):
        declared = 0
    if declared < max(1, longest):
        reader.repaired("target_duration_bad")
    return Snapshot(
        segments=tuple(segments),
        target_duration_s=max(1, declared, longest),
        media_sequence=reader.media_sequence,
        discontinuity_sequence=reader.discontinuity_sequence,
        i_frames_only=reader.i_frames_only,
        ended=reader.ended,
        repairs=tuple(reader.repairs),
    )


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


def _with_iv(key: Key, sequence: int) -> Key:
    """No IV means the media sequence number is the IV (RFC 8216 5.2); ours differ from the source's, so write it out."""
    if key.iv or key.method not in ("AES-128", "AES-256", "SAMPLE-AES") or key.keyformat != "identity":
        return key
    iv = f"0x{sequence:032x}"
    return Key(key.method, key.uri, iv, key.keyformat, (*key.attributes, ("IV", iv)))


def _byterange(text: str | None, uri: str, previous: Segment | None) -> ByteRange | None:
    if not text:
        return None
    length, _, offset = text.partition("@")
    if offset:
        return ByteRange(int(length), int(offset))
    follows = previous.byterange if previous and previous.uri == uri else None  # RFC 8216 4.3.2.2
    return ByteRange(int(length), follows.offset + follows.length if follows else 0)


_KINDS = {"AUDIO": Kind.AUDIO, "VIDEO": Kind.VIDEO, "SUBTITLES": Kind.SUBTITLES}
_GOES_THROUGH = ("#EXT-X-SESSION-DATA:", "#EXT-X-SESSION-KEY:", "#EXT-X-INDEPENDENT-SEGMENTS", "#EXT-X-START:")
"""EXT-X-CONTENT-STEERING is not among them: it would point players past us."""


def _presentation(lines: list[str], url: str) -> Presentation:
    """Read a multivariant playlist: m3u8 keeps neither the order nor the spelling of attributes, and both go through."""
    found: list[tuple[Kind, str, tuple[tuple[str, str], ...]]] = []
    through: list[str] = []
    waiting: tuple[tuple[str, str], ...] | None = None
    for line in lines:
        got = tuple((name, value) for name, value in _ATTRIBUTE.findall(line.partition(":")[2]))
        uri = dict(got).get("URI", "").strip('"')
        rest = tuple(pair for pair in got if pair[0] != "URI")
        if line.startswith("#EXT-X-STREAM-INF"):
            waiting = got
        elif line and not line.startswith("#"):
            if waiting is not None:
                found.append((Kind.VARIANT, urljoin(url, line), waiting))
            waiting = None
        elif line.startswith("#EXT-X-I-FRAME-STREAM-INF:") and uri:
            found.append((Kind.I_FRAMES, urljoin(url, uri), rest))
        elif line.startswith("#EXT-X-MEDIA:"):
            kind = _KINDS.get(dict(got).get("TYPE", ""))
            if uri and kind:
                found.append((kind, urljoin(url, uri), rest))
            else:  # closed captions, or media that is inside the variants
                through.append(line)
        elif line.startswith(_GOES_THROUGH):
            through.append(line.replace(f'"{uri}"', f'"{urljoin(url, uri)}"') if uri else line)
    presentation = assembled(found, tuple(through))
    if not presentation.tracks:
        raise PlaylistError("the multivariant playlist names no variant")
    if len(presentation.tracks) > MOST_TRACKS:
        raise PlaylistError(f"the multivariant playlist names {len(presentation.tracks)} media playlists: {MOST_TRACKS} at most")
    return presentation


def _substituted(lines: list[str], url: str, imported: Mapping[str, str]) -> Iterator[str]:
    """Replace the variables of EXT-X-DEFINE (rfc8216bis 4.3): players of ours see none of them."""
    if not any(line.startswith("#EXT-X-DEFINE:") for line in lines):
        yield from lines
        return
    variables: dict[str, str] = {}
    query = _query(url)
    left = MOST_SUBSTITUTED_CHARACTERS
    for line in lines:
        if line.startswith("#EXT-X-DEFINE:"):
            got = {name: value.strip('"') for name, value in attributes(line).items()}
            if "NAME" in got:
                variables[got["NAME"]] = got.get("VALUE", "")
            for source, values in (("IMPORT", imported), ("QUERYPARAM", query)):
                if (name := got.get(source)) is not None:
                    if name not in values:
                        raise PlaylistError(f"EXT-X-DEFINE names a variable that isn't there: {name!r}")
                    variables[name] = values[name]
            yield line
        else:
            written = _VARIABLE.sub(lambda found: variables.get(found[1], found[0]), line)
            left -= len(written)
            if left < 0:
                raise PlaylistError("the variables of EXT-X-DEFINE make the playlist too large")
            yield written


def _query(url: str) -> dict[str, str]:
    """Return the parameters of a URL's query, without what would end a line or a quoted string of ours."""
    pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    return {name: re.sub('[\x00-\x1f\x7f"]', "", value) for name, value in pairs}


def variables_of(body: bytes, url: str) -> dict[str, str]:
    """Return the variables that a multivariant playlist defines, for its media playlists to import."""
    query = _query(url)
    found = [attributes(line) for line in body.decode("utf-8-sig", "replace").split("\n") if line.startswith("#EXT-X-DEFINE:")]
    named = {got["NAME"].strip('"'): got.get("VALUE", "").strip('"') for got in found if "NAME" in got}
    return named | {name: query[name] for got in found if (name := got.get("QUERYPARAM", "").strip('"')) in query}
