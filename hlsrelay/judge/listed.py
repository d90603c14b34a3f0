"""Playlists as a judge sees them: what a text says, with nothing forgiven and nothing mended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Attributes = Mapping[str, str]
"""An attribute list (RFC 8216 4.2), values as written, with their quotes."""


@dataclass(frozen=True, slots=True)
class Span:
    """A sub-range of a resource, in bytes."""

    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class Resource:
    """What is fetched: an absolute URI, or a part of it."""

    uri: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A media segment as a playlist lists it. *era* is its discontinuity sequence number, *when_s* its date in Unix time,
    *keys* and *init* are those in force, *init_keys* those that were when the MAP was written (RFC 8216 4.3.2.4); the attributes of a key
    are as written, but for its URI, which is absolute and without quotes. *others* are its title and tags that nothing here reads.
    *written* is its URI before variables are put in."""

    sequence: int
    written: str
    resource: Resource
    duration_s: float
    discontinuity: bool = False
    era: int = 0
    when_s: float | None = None
    gap: bool = False
    keys: frozenset[tuple[tuple[str, str], ...]] = frozenset()
    init: Resource | None = None
    init_keys: frozenset[tuple[tuple[str, str], ...]] = frozenset()
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MediaPlaylist:
    """A media playlist as written. *target_duration_s* is 0 where it is not known; *whole* are the tags that hold for all of it."""

    target_duration_s: int
    media_sequence: int
    discontinuity_sequence: int
    segments: tuple[Listed, ...]
    playlist_type: str = ""
    ended: bool = False
    dateranges: tuple[Attributes, ...] = ()
    whole: frozenset[str] = frozenset()

    @property
    def duration_s(self) -> float:
        """The sum of all EXTINF."""
        return sum(segment.duration_s for segment in self.segments)

    @property
    def last(self) -> int:
        """The number of the newest segment; one less than the first's where none is listed."""
        return self.media_sequence + len(self.segments) - 1


@dataclass(frozen=True, slots=True)
class Variant:
    """A media playlist that a multivariant one names, by absolute URI; *inf* is its STREAM-INF.

    None for an EXT-X-MEDIA rendition: *type* and *group* are its own.
    """

    uri: str
    inf: Attributes | None
    type: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Multivariant:
    """A multivariant playlist as written; *variables* are those that its media playlists may import."""

    variants: tuple[Variant, ...]
    variables: tuple[tuple[str, str], ...] = ()


def unquoted(value: str) -> str:
    """Return an attribute's value without its quotes."""
    return value.strip('"')
