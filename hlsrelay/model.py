"""The values that flow through the relay, from the source's playlist to ours. All frozen; units are in the names.

Segment   what the source lists, as listed              (hls.parse makes it)
Numbered  a Segment with our number                     (hls.advance makes it)
Entry     what our playlists list under that number     (stages make it; hls.window keeps it, hls.render prints it)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

Sink = Callable[[bytes | memoryview], object]
"""What a download's bytes go to, piece by piece. A piece is its caller's own: who wants it for longer makes a copy."""
Restart = Callable[[], Sink]
"""Called before each attempt at a download; gives what that attempt's bytes go to."""

SOURCE = "source"
"""Name of the pass-through rendition, and of its folder."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a resource (RFC 8216 4.3.2.2): *length* bytes from *offset*."""

    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class Key:
    """EXT-X-KEY as the source wrote it, its URI made absolute. *attributes* keeps order and quotes."""

    method: str
    uri: str | None
    iv: str | None
    keyformat: str
    attributes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class InitSection:
    """EXT-X-MAP: the resource, absolute URI, that players must read before the segment.

    *keys* are those that stood before it: they may be others than the segment's (RFC 8216 4.3.2.4).
    """

    uri: str
    byterange: ByteRange | None = None
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """EXT-X-PART of a low-latency source."""

    uri: str
    duration_s: float
    independent: bool = False
    byterange: ByteRange | None = None
    gap: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """A media segment as the source lists it. URIs are absolute; *tags* are lines to carry through, in place."""

    sequence: int
    uri: str
    duration_s: float
    title: str = ""
    discontinuity: bool = False
    program_date_time: datetime | None = None
    byterange: ByteRange | None = None
    init: InitSection | None = None
    keys: tuple[Key, ...] = ()
    gap: bool = False
    tags: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    time: datetime | None = None
    """Its PROGRAM-DATE-TIME, written or counted from one that is (RFC 8216 4.3.2.6); None where the playlist has none."""
    era: int = 0
    """Its discontinuity sequence number at the source, its own DISCONTINUITY counted (RFC 8216 6.2.1)."""
    query: str = ""
    """What of its URI's query tells it from other segments of its playlist, where path and byte range do not."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A piece of a segment that is longer than the target duration: its bytes *start* to *end* of the file *path*, behind *head*."""

    path: str
    start: int
    end: int
    duration_s: float
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One load of a source's media playlist. Never empty: a playlist without a segment is a failed load.

    *discontinuity_sequence* is that of the first segment, its own DISCONTINUITY not counted (RFC 8216 6.2.2). *dateranges* are all
    EXT-X-DATERANGE lines: they belong to the playlist, whichever segment they stand before (rfc8216bis 4.4.5).
    """

    segments: Sequence[Segment]
    target_duration_s: int
    media_sequence: int
    discontinuity_sequence: int = 0
    i_frames_only: bool = False
    ended: bool = False
    repairs: tuple[str, ...] = ()
    dateranges: tuple[str, ...] = ()


class Kind(StrEnum):
    """What a media playlist of a presentation is for (RFC 8216 4.3.4)."""

    VARIANT = "variant"
    AUDIO = "audio"
    VIDEO = "video"
    SUBTITLES = "subtitles"
    I_FRAMES = "i-frames"


@dataclass(frozen=True, slots=True)
class Track:
    """One media playlist of the source's presentation, under our name for it, which is its folder too.

    *uris* are absolute; all but the first are redundant copies to fail over to. *attributes* is the source's attribute list, quotes
    kept, of EXT-X-STREAM-INF, EXT-X-MEDIA or EXT-X-I-FRAME-STREAM-INF; empty where the source is a media playlist itself.
    """

    name: str
    kind: Kind
    uris: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...] = ()

    def attribute(self, name: str) -> str:
        """Return an attribute without quotes; empty where there is none."""
        return dict(self.attributes).get(name, "").strip('"')

    @property
    def bandwidth_bps(self) -> int:
        """BANDWIDTH as the source declares it."""
        text = self.attribute("BANDWIDTH")
        return int(text) if text.isdecimal() else 0

    @property
    def height(self) -> int | None:
        """Lines of RESOLUTION as the source declares it."""
        text = self.attribute("RESOLUTION").rpartition("x")[2]
        return int(text) if text.isdecimal() else None


@dataclass(frozen=True, slots=True)
class Presentation:
    """A source as a whole. *lines* are tags of its multivariant playlist that go through as they are."""

    tracks: tuple[Track, ...]
    lines: tuple[str, ...] = ()


class Codec(StrEnum):
    """What a rung's video is coded with."""

    H264 = "h264"
    HEVC = "hevc"
    AV1 = "av1"


@dataclass(frozen=True, slots=True)
class Rung:
    """One bitrate to make: video of *height* lines at *video_kbps*, or audio alone where height is None; its audio, 0: the source's own."""

    name: str
    height: int | None
    video_kbps: int
    codec: Codec = Codec.H264
    audio_kbps: int = 0


class Desired(StrEnum):
    """What the operator wants of a stream."""

    RUN = "run"
    STOP = "stop"


class KeyPolicy(StrEnum):
    """Where players get decryption keys."""

    PROXY = "proxy"
    ORIGIN = "origin"


@dataclass(frozen=True, slots=True)
class Polling:
    """When a source's playlists are asked for: *polite* is no sooner than RFC 8216 6.3.4 has it; *closest_s* lie between two requests."""

    polite: bool = False
    closest_s: float = 0.1


EAGER = Polling()


@dataclass(frozen=True, slots=True)
class Stream:
    """What an operator wrote about one stream, checked."""

    id: str
    source: str
    desired: Desired = Desired.RUN
    ladder: tuple[Rung, ...] = ()
    window_s: float = 60.0
    variants: str = "all"
    keys: KeyPolicy = KeyPolicy.PROXY
    headers: tuple[tuple[str, str], ...] = ()
    proxy: str = ""
    backups: tuple[str, ...] = ()
    stall_s: float | None = None
    hold_s: float | None = None
    on_demand: bool = False
    idle_timeout_s: float = 60.0
    polling: Polling = EAGER
    preload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """A source's segment that has a number of ours, and what it is recognised by when the source lists it again.

    *digest* is that of its content, empty until it is downloaded. *program_date_time* is None where the source told none; *written* is
    the one that stood at this very segment.
    """

    sequence: int
    identity: str
    program_date_time: datetime | None = None
    number: int = 0
    digest: str = ""
    written: datetime | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """Playlists that do not fit our numbering and go on from one another: seen since when, moved on when, their newest segments.

    *known*: they list only what we have relayed, as a stale edge does, or a restarted encoder that uses its names again. *resembles*: they
    do not fit, but their names are some of ours. *shift*: what their numbers differ by from ours of the same content, where that is known.
    *listed* is all that they list, as far as it is kept; *first* and *length* are of the window that was listed first.
    """

    since: datetime
    moved_at: datetime
    newest: tuple[Seen, ...]
    known: bool = False
    resembles: bool = False
    shift: int | None = None
    listed: tuple[Seen, ...] = ()
    first: int = 0
    length: int = 0


@dataclass(frozen=True)
class Position:
    """Where numbering stands: all that a successor needs to give the next segment the right number.

    *listed* is how many segments the source listed when it last listed ours, at *listed_at*; *older* is what *recent* was in earlier
    generations.
    *dated*: the times are the source's PROGRAM-DATE-TIMEs, not ours; that never changes between two DISCONTINUITYs.
    *given_up* counts the GAPs at the end that the source may yet bring: it was silent, and the other tracks went on. *era* and *init* are
    of the last segment: its discontinuity sequence number at the source, its init section. *jumped_number*: where the times last jumped.
    *past_sequence*: the first of the source's numbers of this generation that went by, relayed or not; *passed* is what the source
    listed and we did not relay, before a live edge or while its playlist was in doubt: no digest tells what it holds. *ahead* is
    what the source listed after the last segment at the same time: a successor that has to go on from here knows it. *withdrawn*: nothing
    is listed any more, and what comes next begins at the live edge. *renames*: the source has listed what we have under another name.
    *mistaken_at*: when something else was last listed under a number of ours, as its name or its digest told. *behind*: another origin
    that was last found to be behind, and where it was.
    """

    source: str
    generation: int
    offset: int
    last_number: int
    recent: tuple[Seen, ...]
    advanced_at: datetime
    next_program_date_time: datetime
    ladder: tuple[Rung, ...] = ()
    listed: int = 0
    candidate: Candidate | None = None
    older: tuple[Seen, ...] = ()
    dated: bool = False
    segment_s: float = 0.0
    given_up: int = 0
    era: int = 0
    init: str = ""
    jumped_number: int = -(10**6)
    listed_at: datetime | None = None
    past_sequence: int = 0
    passed: tuple[Seen, ...] = ()
    ahead: tuple[Seen, ...] = ()
    withdrawn: bool = False
    renames: bool = False
    mistaken_at: datetime | None = None
    behind: Candidate | None = None

    @property
    def last_sequence(self) -> int:
        """The source's number that our last one stands for."""
        return self.last_number - self.offset

    @property
    def seen_sequence(self) -> int:
        """The source's number of the newest segment that it listed and we numbered."""
        return self.last_sequence - self.given_up


@dataclass(frozen=True)
class Numbered:
    """A source's segment under our number; *position* is where numbering stands once that is published.

    *slice* is the piece of the segment that it is; *more*: others follow, and players see all of them at once.
    """

    number: int
    segment: Segment
    discontinuity: bool
    program_date_time: datetime
    target_duration_s: int
    stream: Stream
    position: Position
    discontinuity_sequence: int = 0
    i_frames_only: bool = False
    slice: Slice | None = None
    more: bool = False

    @property
    def duration_s(self) -> float:
        """How long it lasts: the segment, or the slice of it."""
        return self.slice.duration_s if self.slice else self.segment.duration_s


@dataclass(frozen=True, slots=True)
class Traits:
    """What the multivariant playlist says of a rendition, read from its media."""

    codecs: str | None = None
    width: int | None = None
    height: int | None = None
    frame_rate: float | None = None


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A published file. *uri* is relative to the folder of the rendition that lists it.

    *init_keys* are those of the init section; None: those of the segment.
    """

    uri: str
    size_bytes: int
    init_uri: str | None = None
    key_uris: tuple[str, ...] = ()
    traits: Traits | None = None
    init_keys: tuple[Key, ...] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One number of our playlists. *rungs* are the ladder's names in force; a rendition that *files* does not name has a GAP.

    *gaps* tells the URI that the GAP is listed under: nobody fetches it, but what is listed never changes.
    """

    number: int
    duration_s: float
    discontinuity: bool
    program_date_time: datetime
    files: Mapping[str, MediaFile]
    rungs: tuple[str, ...] = ()
    title: str = ""
    tags: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    gaps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """An entry ready to be published, what it was made from, why there is no media, which rungs failed why, which were *dropped* why.

    Dropped is what was left out under overload. *ladder_paused*: the rungs failed so often that they are not tried for a while. *inits* are
    the init sections that it lists and that were made here, by path relative to the stream's folder. *cold*: what is wrong with the caches
    that it was pulled through.
    """

    entry: Entry
    numbered: Numbered
    lost: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    ladder_paused: bool = False
    inits: Mapping[str, bytes] = field(default_factory=dict)
    received_bytes: int = 0
    repairs: tuple[str, ...] = ()
    cold: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One load of the source is dealt with, down to its last segment; *ended*: the source said so and meant it."""

    stream: Stream
    error: str = ""
    repairs: tuple[str, ...] = ()
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Rendition:
    """One rendition of the published presentation, its bitrates measured. One that is *listed* no more still has viewers."""

    name: str
    traits: Traits
    listed: bool = True
    peak_bps: int = 0
    total_bits: int = 0
    total_s: float = 0.0
