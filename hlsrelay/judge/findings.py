"""What a judge says: which rule, how bad, where. A finding that repeats is counted, not repeated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

RULES = {
    "A1": "text: UTF-8, no BOM, no control characters, tags well formed, the right type [RFC 8216 4, 4.1]",
    "A2": "target duration: constant, and no segment above it [RFC 8216 4.3.3.1, 6.2.1]",
    "A3": "edits: append, remove from the head, end; atomic for a reader [RFC 8216 6.2.1]",
    "A4": "media sequence: up by one per removed segment, never down [RFC 8216 6.2.2]",
    "A5": "discontinuity sequence: up by one per removed DISCONTINUITY [RFC 8216 6.2.2]",
    "A6": "window: three target durations stay, six segments are listed [RFC 8216 6.2.2]",
    "A7": "a removed segment stays fetchable for its duration and the longest playlist's [RFC 8216 6.2.2]",
    "A8": "what is listed is complete and fetchable at once [RFC 8216 6.2.1]",
    "A9": "PLAYLIST-TYPE and ENDLIST: promises about the future are kept [RFC 8216 4.3.3.4, 4.3.3.5, 6.2.1]",
    "A10": "DISCONTINUITY where format, tracks, time stamps or encoding change [RFC 8216 4.3.2.3]",
    "A11": "missing media is a GAP, never a 404 [rfc8216bis 6.2.1]",
    "A12": "PROGRAM-DATE-TIME: there, and never ambiguous [RFC 8216 4.3.2.6]",
    "A13": "DATERANGE: stays while it maps to a listed segment, its ID is its own [RFC 8216 4.3.2.7, 6.2.1]",
    "A14": "KEY: in force for every segment that it encrypts [RFC 8216 4.3.2.4, 6.2.3]",
    "A15": "IV: explicit where the media sequence number can't be it [RFC 8216 4.3.2.5, 5.2]",
    "A16": "MAP: in force for every segment that needs it [RFC 8216 3.3, 4.3.2.5]",
    "A17": "BYTERANGE without offset only after its predecessor [RFC 8216 4.3.2.2]",
    "A18": "VERSION: the lowest that the tags need [RFC 8216 7]",
    "A20": "variants agree: target duration, discontinuities, time stamps, PDT, window [RFC 8216 6.2.4]",
    "A21": "STREAM-INF: bitrates, CODECS, RESOLUTION, FRAME-RATE as measured [RFC 8216 4.3.4.2]",
    "A22": "delivery: gzip for playlists, no redirects for media",
    "A23": "low latency: HOLD-BACK, PART-HOLD-BACK and CAN-SKIP-UNTIL are not too small [rfc8216bis 4.4.3.8]",
    "A24": "parts: as long as PART-TARGET says [rfc8216bis 4.4.4.9]",
    "A27": "parts come with a PRELOAD-HINT; nothing is hinted at after ENDLIST [rfc8216bis 6.2.6, B.1]",
    "A-extinf": "EXTINF is the segment's real duration [RFC 8216 4.3.2.1]",
    "A-timing": "a live playlist has a new segment within 1.5 target durations [RFC 8216 6.2.1]",
}
"""What can be judged from outside. A19 (unknown tags pass through) can't: the source is not seen. A25 and A26 are answers to requests
that a player makes with _HLS_ parameters; a judge makes none."""


class Severity(StrEnum):
    """How bad: an error breaks a rule; a warning is advice not followed or a doubt; a note is neither."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something wrong, not yet placed in time and space. *kind* has no figures in it: equal kinds are one finding."""

    rule: str
    severity: Severity
    kind: str
    detail: str = ""


def error(rule: str, kind: str, detail: str = "") -> Complaint:
    """Return a broken rule."""
    return Complaint(rule, Severity.ERROR, kind, detail)


def warning(rule: str, kind: str, detail: str = "") -> Complaint:
    """Return advice that is not followed, or a doubt."""
    return Complaint(rule, Severity.WARNING, kind, detail)


def note(rule: str, kind: str, detail: str = "") -> Complaint:
    """Return what is worth knowing and breaks nothing."""
    return Complaint(rule, Severity.NOTE, kind, detail)


@dataclass(frozen=True, slots=True)
class Finding:
    """A complaint about the playlist or resource *where*, first at *at_s*, seen *count* times; *detail* is the first one's."""

    rule: str
    severity: Severity
    where: str
    kind: str
    detail: str
    at_s: float
    count: int = 1

    @property
    def text(self) -> str:
        """What is wrong, with the figures of the first time."""
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class Docket:
    """All findings so far, in the order of their first appearance."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str, str], Finding] = {}
        self._news: list[Finding] = []

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every finding, once."""
        return tuple(self._found.values())

    def add(self, where: str, complaint: Complaint, at_s: float) -> None:
        """File *complaint*."""
        key = (complaint.rule, complaint.severity, where, complaint.kind)
        known = self._found.get(key)
        if known is not None:
            self._found[key] = replace(known, count=known.count + 1)
            return
        self._found[key] = Finding(complaint.rule, complaint.severity, where, complaint.kind, complaint.detail, at_s)
        self._news.append(self._found[key])

    def news(self) -> tuple[Finding, ...]:
        """Return the findings that were not there when this was called last."""
        news, self._news = tuple(self._news), []
        return news
