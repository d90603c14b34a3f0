"""A strict reader of playlists: what the text says, and what is wrong with the text alone. Forgives nothing, but reads on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urljoin

from hlsrelay.judge.define import Variables
from hlsrelay.judge.findings import Complaint, error, note, warning
from hlsrelay.judge.listed import Attributes, Listed, MediaPlaylist, Multivariant, Resource, Span, Variant, unquoted
from hlsrelay.judge.low_latency import Parts, promised

_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_PAIR = re.compile(r'([A-Z0-9-]+)=("[^"]*"|[^",\s]+)(,|$)')
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,30})?),(.*)")
_SPAN = re.compile(r"(\d{1,20})(?:@(\d{1,20}))?")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(Z|[+-]\d\d:?\d\d)?")
_LARGEST = 2**64 - 1
_UNIX = datetime(1970, 1, 1, tzinfo=UTC)

_Form = tuple[str, str]
_QUOTED: _Form = (r'"[^"]*"', "a quoted string")
_INTEGER: _Form = (r"\d{1,20}", "a decimal integer")
_FLOAT: _Form = (r"\d{1,9}(?:\.\d{1,30})?", "a decimal number")
_WORD: _Form = (r'[^",\s]+', "a word without quotes")
_QUOTED_ATTRIBUTES = (
    "URI", "KEYFORMAT", "KEYFORMATVERSIONS", "BYTERANGE", "CODECS", "AUDIO", "VIDEO", "SUBTITLES", "GROUP-ID", "NAME", "LANGUAGE",
    "ASSOC-LANGUAGE", "ID", "CLASS", "START-DATE", "END-DATE", "INSTREAM-ID", "CHARACTERISTICS", "CHANNELS",
    "VALUE", "IMPORT", "QUERYPARAM",
)  # fmt: skip
_FORMS: dict[str, _Form] = {
    **dict.fromkeys(_QUOTED_ATTRIBUTES, _QUOTED),
    **dict.fromkeys(("BANDWIDTH", "AVERAGE-BANDWIDTH"), _INTEGER),
    **dict.fromkeys(("FRAME-RATE", "DURATION", "PLANNED-DURATION", "PART-TARGET"), _FLOAT),
    **dict.fromkeys(("METHOD", "TYPE", "DEFAULT", "AUTOSELECT", "FORCED", "END-ON-NEXT"), _WORD),
    "RESOLUTION": (r"\d{1,6}x\d{1,6}", "a resolution such as 1280x720"),
    "IV": (r"0[xX][0-9A-Fa-f]{1,32}", "0x and at most 32 hexadecimal digits"),
}
_MULTIVARIANT = {"EXT-X-STREAM-INF", "EXT-X-MEDIA", "EXT-X-I-FRAME-STREAM-INF", "EXT-X-SESSION-DATA", "EXT-X-SESSION-KEY"}
_OF_MEDIA = {
    "EXTINF", "EXT-X-BYTERANGE", "EXT-X-DISCONTINUITY", "EXT-X-KEY", "EXT-X-MAP", "EXT-X-PROGRAM-DATE-TIME", "EXT-X-DATERANGE", "EXT-X-GAP",
    "EXT-X-TARGETDURATION", "EXT-X-MEDIA-SEQUENCE", "EXT-X-DISCONTINUITY-SEQUENCE", "EXT-X-ENDLIST", "EXT-X-PLAYLIST-TYPE",
    "EXT-X-I-FRAMES-ONLY", "EXT-X-PART", "EXT-X-PART-INF", "EXT-X-SERVER-CONTROL", "EXT-X-SKIP", "EXT-X-PRELOAD-HINT",
    "EXT-X-RENDITION-REPORT", "EXT-X-BITRATE",
}  # fmt: skip
_LISTS = _MULTIVARIANT | {
    "EXT-X-KEY", "EXT-X-MAP", "EXT-X-DATERANGE", "EXT-X-START", "EXT-X-DEFINE", "EXT-X-PART", "EXT-X-PART-INF", "EXT-X-SERVER-CONTROL",
    "EXT-X-SKIP", "EXT-X-PRELOAD-HINT", "EXT-X-RENDITION-REPORT", "EXT-X-CONTENT-STEERING",
}  # fmt: skip
_ONCE = {
    "EXTM3U", "EXT-X-VERSION", "EXT-X-TARGETDURATION", "EXT-X-MEDIA-SEQUENCE", "EXT-X-DISCONTINUITY-SEQUENCE", "EXT-X-PLAYLIST-TYPE",
    "EXT-X-ENDLIST", "EXT-X-I-FRAMES-ONLY", "EXT-X-INDEPENDENT-SEGMENTS", "EXT-X-START", "EXT-X-PART-INF", "EXT-X-SERVER-CONTROL",
}  # fmt: skip
_OF_THE_WHOLE = {"EXT-X-I-FRAMES-ONLY", "EXT-X-INDEPENDENT-SEGMENTS", "EXT-X-START"}
_KNOWN = _MULTIVARIANT | _OF_MEDIA | _LISTS | _ONCE
_NEEDS = {"EXT-X-BYTERANGE": 4, "EXT-X-I-FRAMES-ONLY": 4, "EXT-X-DEFINE": 8, "EXT-X-SKIP": 9}
_REQUIRED = {
    "EXT-X-KEY": ("A14", ("METHOD",)),
    "EXT-X-MAP": ("A16", ("URI",)),
    "EXT-X-DATERANGE": ("A13", ("ID", "START-DATE")),
    "EXT-X-STREAM-INF": ("A21", ("BANDWIDTH",)),
    "EXT-X-MEDIA": ("A1", ("TYPE", "GROUP-ID", "NAME")),
    "EXT-X-PART": ("A24", ("URI", "DURATION")),
    "EXT-X-PART-INF": ("A24", ("PART-TARGET",)),
    "EXT-X-PRELOAD-HINT": ("A27", ("TYPE", "URI")),
}


@dataclass(frozen=True, slots=True)
class Read:
    """What a text says: None where it is no playlist, or was cut off; and what is wrong with it. *whole*: its last line has an end."""

    playlist: MediaPlaylist | Multivariant | None
    complaints: tuple[Complaint, ...]
    whole: bool = True


def read(body: bytes, base: str, imported: Mapping[str, str] | None = None) -> Read:
    """Read the playlist *body*, whose URIs are relative to *base*; *imported* are variables that EXT-X-DEFINE may import."""
    found: list[Complaint] = []
    if not body:
        return Read(None, (error("A3", "the playlist is empty: a reader saw it before it was written"),))
    text = body.decode("utf-8", errors="replace")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as broken:
        found.append(error("A1", "not UTF-8", str(broken)))
    if text.startswith("\ufeff"):
        found.append(error("A1", "begins with a byte order mark"))
        text = text.removeprefix("\ufeff")
    lines = text.split("\n")
    whole = lines[-1] == ""
    lines = [line.removesuffix("\r") for line in lines]
    for number, line in enumerate(lines, 1):
        if control := _CONTROL.search(line):
            found.append(error("A1", "a control character", f"U+{ord(control[0]):04X} in line {number}"))
            lines[number - 1] = _CONTROL.sub("", line)
    if lines[:1] != ["#EXTM3U"]:
        found.append(error("A1", "the first line is not #EXTM3U", repr("".join(lines[:1])[:40])))
        return Read(None, tuple(found))
    reader = _Reader(base, found, Variables(base, imported or {}, found=found))
    for line in lines:
        reader.line(line)
    return Read(reader.playlist(), tuple(found), whole)


@dataclass
class _Reader:
    base: str
    found: list[Complaint]
    variables: Variables
    tags: set[str] = field(default_factory=set)
    version: int = 1
    needs: int = 1
    needs_why: str = ""
    target_duration_s: int = 0
    media_sequence: int = 0
    discontinuity_sequence: int = 0
    playlist_type: str = ""
    segments: list[Listed] = field(default_factory=list)
    cuts: int = 0
    dateranges: list[Attributes] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    keys: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    init: Resource | None = None
    init_keys: frozenset[tuple[tuple[str, str], ...]] = frozenset()
    parts: Parts = field(default_factory=Parts)
    well_formed: bool = True  # the last attribute list
    whole: set[str] = field(default_factory=set)
    latest: dict[str, Attributes] = field(default_factory=dict)  # attribute lists by tag
    # of the next segment
    others: list[str] = field(default_factory=list)
    duration_s: float | None = None
    discontinuity: bool = False
    when_s: float | None = None
    gap: bool = False
    span: tuple[int, int | None] | None = None
    inf: Attributes | None = None

    def line(self, line: str) -> None:
        if not line:
            return
        if self.inf is not None and line.startswith("#EXT"):
            self.found.append(error("A1", "a STREAM-INF without a URI in the next line"))
            self.inf = None
        if not line.startswith("#"):
            self._uri(line)
        elif line.startswith("#EXT"):
            name, colon, value = line[1:].partition(":")
            self._tag(name, value if colon else "")
            self._other(name, value)

    def playlist(self) -> MediaPlaylist | Multivariant | None:
        """Return what has been read; None where it ends in the middle of a segment."""
        if self.duration_s is not None or self.inf is not None:
            self.found.append(error("A3", "cut off: it ends before the URI of its last entry"))
            return None
        self._check_version()
        many, one = self.tags & _MULTIVARIANT, self.tags & _OF_MEDIA
        if many and one:
            self.found.append(error("A1", "tags of a multivariant and of a media playlist in one", f"{min(many)}, {min(one)}"))
        if self.variants or (many and not one):
            return Multivariant(tuple(self.variants), tuple(self.variables.values.items()))
        if "EXT-X-TARGETDURATION" not in self.tags:
            self.found.append(error("A2", "no EXT-X-TARGETDURATION"))
        control, part_inf = (self.latest.get(name, {}) for name in ("EXT-X-SERVER-CONTROL", "EXT-X-PART-INF"))
        self.found += promised(control, part_inf, self.target_duration_s)
        self.found += self.parts.judged(part_inf, hinted="EXT-X-PRELOAD-HINT" in self.tags, ended="EXT-X-ENDLIST" in self.tags)
        if self.dateranges and all(segment.when_s is None for segment in self.segments):
            self.found.append(error("A13", "a DATERANGE, and no PROGRAM-DATE-TIME to place it by"))
        if self.cuts and "EXT-X-DISCONTINUITY-SEQUENCE" not in self.tags and "EXT-X-ENDLIST" not in self.tags:
            self.found.append(warning("A5", "a DISCONTINUITY, and no EXT-X-DISCONTINUITY-SEQUENCE"))
        return MediaPlaylist(
            self.target_duration_s,
            self.media_sequence,
            self.discontinuity_sequence,
            tuple(self.segments),
            self.playlist_type,
            "EXT-X-ENDLIST" in self.tags,
            tuple(self.dateranges),
            frozenset(self.whole),
        )

    def _tag(self, name: str, value: str) -> None:
        if name in _ONCE and name in self.tags:
            self.found.append(error("A1", f"{name} appears twice"))
        self.tags.add(name)
        self._need(_NEEDS.get(name, 1), name)
        if name in _LISTS and name != "EXT-X-DEFINE":
            value = self.variables.put_into(value)
        attributes = self.latest[name] = self._attributes(name, value) if name in _LISTS else {}
        match name:
            case "EXT-X-VERSION":
                self.version = self._integer(name, value, "A18") or 1
            case "EXT-X-TARGETDURATION":
                self._target_duration(name, value)
            case "EXT-X-MEDIA-SEQUENCE":
                number = self._integer(name, value, "A4") or 0
                self.media_sequence = self.media_sequence if self.segments else number  # one that comes too late numbers nothing
                if self.segments:
                    self.found.append(error("A4", "EXT-X-MEDIA-SEQUENCE after the first segment"))
            case "EXT-X-DISCONTINUITY-SEQUENCE":
                self.discontinuity_sequence = self._integer(name, value, "A5") or 0
                if self.segments or self.cuts:
                    self.found.append(error("A5", "EXT-X-DISCONTINUITY-SEQUENCE after the first segment or DISCONTINUITY"))
            case "EXT-X-PLAYLIST-TYPE":
                self.playlist_type = value
                if value not in ("EVENT", "VOD"):
                    self.found.append(error("A9", "EXT-X-PLAYLIST-TYPE is neither EVENT nor VOD", repr(value)))
            case "EXTINF":
                self._extinf(value)
            case "EXT-X-BYTERANGE":
                self.span = self._span(value)
            case "EXT-X-DISCONTINUITY":
                self.discontinuity, self.cuts = True, self.cuts + 1
            case "EXT-X-GAP":
                self.gap = True
            case "EXT-X-PROGRAM-DATE-TIME":
                self.when_s = self._date(value)
            case "EXT-X-KEY":
                self._key(attributes)
            case "EXT-X-MAP":
                self._map(attributes)
            case "EXT-X-DEFINE":
                self._need(11 if "QUERYPARAM" in attributes else 1, "QUERYPARAM")
                self.variables.define(attributes)
            case "EXT-X-PART":
                self.parts.add(attributes)
            case "EXT-X-DATERANGE":
                self.dateranges.append(attributes)
            case "EXT-X-STREAM-INF":
                self.inf = attributes
            case "EXT-X-MEDIA":
                self._media(attributes)

    def _media(self, attributes: Attributes) -> None:
        if unquoted(attributes.get("INSTREAM-ID", "")).startswith("SERVICE"):
            self._need(7, "INSTREAM-ID SERVICE")
        if "URI" in attributes:
            uri, group = urljoin(self.base, unquoted(attributes["URI"])), unquoted(attributes.get("GROUP-ID", ""))
            self.variants.append(Variant(uri, None, attributes.get("TYPE", ""), group))

    def _other(self, name: str, value: str) -> None:
        if name in _OF_THE_WHOLE:
            self.whole.add(f"{name}:{value}" if value else name)
        elif name not in _KNOWN:
            self.others.append(f"{name}:{value}")

    def _uri(self, line: str) -> None:
        if re.search(r"\s", line):
            self.found.append(error("A1", "white space in a URI line", repr(line[:60])))
        if self.inf is not None:
            self.variants.append(Variant(urljoin(self.base, self.variables.put_into(line)), self.inf))
            self.inf = None
            return
        if self.duration_s is None:
            self.found.append(error("A1", "a URI without EXTINF", repr(line[:60])))
            return
        uri = urljoin(self.base, self.variables.put_into(line))
        span = self._placed(uri)
        sequence = self.media_sequence + len(self.segments)
        era = self.discontinuity_sequence + self.cuts
        self.segments.append(
            Listed(
                sequence,
                line,
                Resource(uri, span),
                self.duration_s,
                self.discontinuity,
                era,
                self.when_s,
                self.gap,
                frozenset(self.keys.values()),
                self.init,
                self.init_keys,
                tuple(self.others),
            )
        )
        self.others.clear()
        self.parts.end()
        self.duration_s, self.discontinuity, self.when_s, self.gap, self.span = None, False, None, False, None

    def _placed(self, uri: str) -> Span | None:
        """Return the byte range of the next segment, its offset worked out."""
        if self.span is None:
            return None
        length, offset = self.span
        if offset is not None:
            return Span(length, offset)
        before = self.segments[-1].resource if self.segments else None
        if before is None or before.uri != uri or before.span is None:
            self.found.append(error("A17", "a BYTERANGE without offset, and its predecessor is not listed", uri.rpartition("/")[2][:60]))
            return Span(length, 0)
        return Span(length, before.span.offset + before.span.length)

    def _target_duration(self, name: str, value: str) -> None:
        self.target_duration_s = self._integer(name, value, "A2") or 0
        if re.fullmatch("0{1,20}", value):
            self.found.append(error("A2", "EXT-X-TARGETDURATION below 1"))

    def _extinf(self, value: str) -> None:
        if self.duration_s is not None:
            self.found.append(error("A1", "an EXTINF without a URI"))
        parts = _DURATION.fullmatch(value)
        if parts is None:
            self.found.append(error("A1", "EXTINF is not <duration>,[<title>]", repr(value[:40])))
            number = re.search(r"\d{1,9}(?:\.\d{1,30})?", value)
            self.duration_s = float(number[0]) if number else 0.0
            return
        self.duration_s = float(parts[1])
        self.others += [f"EXTINF,{parts[2]}"] if parts[2] else []
        if "." in parts[1]:
            self._need(3, "an EXTINF with a fraction")

    def _key(self, attributes: Attributes) -> None:
        method = attributes.get("METHOD", "")
        if method == "NONE":
            if len(attributes) > 1:
                self.found.append(error("A14", "a KEY with METHOD=NONE and more"))
            self.keys.clear()
            return
        if self.well_formed and "URI" not in attributes:
            self.found.append(error("A14", "a KEY without URI"))
        if "IV" in attributes:
            self._need(2, "IV")
        if attributes.keys() & {"KEYFORMAT", "KEYFORMATVERSIONS"}:
            self._need(5, "KEYFORMAT")
        if method.startswith("SAMPLE-AES"):
            self._need(5, method)
        if "URI" in attributes:
            attributes = {**attributes, "URI": urljoin(self.base, unquoted(attributes["URI"]))}
        self.keys[unquoted(attributes.get("KEYFORMAT", "identity"))] = tuple(sorted(attributes.items()))

    def _map(self, attributes: Attributes) -> None:
        self._need(5 if "EXT-X-I-FRAMES-ONLY" in self.tags else 6, "EXT-X-MAP")
        length, offset = self._span(unquoted(attributes["BYTERANGE"])) if "BYTERANGE" in attributes else (None, None)
        span = Span(length, offset or 0) if length is not None else None
        self.init = Resource(urljoin(self.base, unquoted(attributes.get("URI", ""))), span)
        self.init_keys = frozenset(self.keys.values())
        for key in map(dict, self.keys.values()):
            if key.get("METHOD") == "AES-128" and "IV" not in key:
                self.found.append(error("A15", "a MAP encrypted with AES-128, and its KEY has no IV"))

    def _attributes(self, tag: str, value: str) -> Attributes:
        attributes: dict[str, str] = {}
        self.well_formed = False
        at = 0
        while pair := _PAIR.match(value, at):
            name, written, comma = pair.groups()
            self._need(12 if name.startswith("REQ-") else 1, name)
            if name in attributes:
                self.found.append(error("A1", f"{tag} has an attribute twice", name))
            form, meant = _FORMS.get(name, ("", ""))
            if form and not re.fullmatch(form, written):
                rule = "A15" if name == "IV" else "A1"
                self.found.append(error(rule, f"{name} of {tag} is not {meant}", written[:60]))
            else:
                attributes[name] = written
            at = pair.end()
            if not comma:
                break
        if at != len(value) or not value or value.endswith(","):
            self.found.append(error("A1", f"{tag} has no proper attribute list", repr(value[at : at + 40])))
            return attributes
        self.well_formed = True
        rule, required = _REQUIRED.get(tag, ("", ()))
        self.found += [error(rule, f"{tag} without {name}") for name in required if name not in attributes]
        return attributes

    def _integer(self, tag: str, value: str, rule: str) -> int | None:
        if not re.fullmatch(r"\d{1,20}", value, re.ASCII) or int(value) > _LARGEST:
            self.found.append(error(rule, f"{tag} is no decimal integer", repr(value[:40])))
            return None
        return int(value)

    def _span(self, value: str) -> tuple[int, int | None]:
        parts = _SPAN.fullmatch(value)
        if parts is None:
            self.found.append(error("A17", "a byte range that is not <length>[@<offset>]", repr(value[:40])))
            return 0, 0
        return int(parts[1]), int(parts[2]) if parts[2] else None

    def _date(self, value: str) -> float | None:
        parts = _DATE.fullmatch(value)
        try:
            when = datetime.fromisoformat(value if parts is None or parts[1] else value + "Z")
        except ValueError:
            parts = None
        if parts is None:
            self.found.append(error("A12", "PROGRAM-DATE-TIME is no ISO 8601 date and time", repr(value[:40])))
            return None
        if parts[1] is None:
            self.found.append(warning("A12", "PROGRAM-DATE-TIME without a time zone", value))
        return (when - _UNIX).total_seconds()

    def _need(self, version: int, why: str) -> None:
        if version > self.needs:
            self.needs, self.needs_why = version, why

    def _check_version(self) -> None:
        if self.version < self.needs:
            self.found.append(error("A18", "VERSION too low", f"{self.version}, and {self.needs_why} needs {self.needs}"))
        elif self.version > self.needs:
            self.found.append(note("A18", "VERSION higher than its tags need", f"{self.version}, and {self.needs} would do"))
