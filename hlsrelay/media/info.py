"""What a segment is, as read from its bytes. Units are in the names; 90k counts the 90 kHz clock of MPEG, taken mod 2^33."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

PTS_MODULUS = 1 << 33
"""MPEG time stamps are 33 bits of a 90 kHz clock: they begin anew every 26.5 hours (ISO/IEC 13818-1 2.4.3.7)."""


class MediaError(ValueError):
    """These bytes are no media that can be read."""


class Container(StrEnum):
    """How a segment is packed (RFC 8216 3.1 to 3.5)."""

    TS = "ts"
    FMP4 = "fmp4"
    AAC = "aac"
    MP3 = "mp3"
    AC3 = "ac3"
    VTT = "vtt"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The first video track. *pts* is in presentation order, each value mod 2^33; *frame_count* also counts frames without one.

    *width* and *height* are what is shown (cropped, upright), 0 where the bytes don't tell; *sar* is the shape of a pixel, None if unknown.
    *codecs* is None for a codec that has no RFC 6381 string here. *starts_with_idr*: the first access unit, in file order, is an IDR.
    *timescale*: the container counts time in so many ticks a second. *interlaced*: the pictures may be. *random_access*: decoding can begin
    somewhere in it, at its first picture or at a later one.
    """

    codecs: str | None
    width: int
    height: int
    frame_count: int
    first_pts_90k: int
    last_pts_90k: int
    frame_rate: float | None
    starts_with_idr: bool
    pts: tuple[int, ...]
    sar: tuple[int, int] | None = (1, 1)
    timescale: int = 90_000
    interlaced: bool = False
    random_access: bool = True


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """An audio track. *codecs* is None for a codec that has no RFC 6381 string here.

    *straddles*: the segment begins in the middle of an audio PES, the head of which is in the segment before. *id*: its PID or track ID;
    None: there is but one. *coding* is aac, latm (AAC that is not in ADTS), mp3, mp2, mp1, ac-3, ec-3, dts or opus, empty where nobody
    told. *last_pts_90k* is that of the last frame that begins in the segment, or of the last PES where frames are not told apart; *cut*:
    the end of that frame is not in the segment. *frame_samples* are those of a frame.
    """

    codecs: str | None
    first_pts_90k: int | None
    straddles: bool = False
    id: int | None = None
    coding: str = ""
    hertz: int | None = None
    last_pts_90k: int | None = None
    frame_samples: int | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """One segment: the first video track, the first audio track, and further audio tracks, as many as have samples here."""

    container: Container
    video: VideoInfo | None = None
    audio: AudioInfo | None = None
    more_audio: tuple[AudioInfo, ...] = ()

    @property
    def sounds(self) -> tuple[AudioInfo, ...]:
        """All audio tracks, in the order in which the container declares them."""
        return (self.audio, *self.more_audio) if self.audio else ()


def in_presentation_order(pts: Sequence[int]) -> tuple[int, ...]:
    """Return *pts*, values mod 2^33 less than 13 hours apart, in the order they are shown, also across the wrap."""
    if not pts:
        return ()
    origin = pts[0] - PTS_MODULUS // 2
    return tuple(sorted(pts, key=lambda value: (value - origin) % PTS_MODULUS))


def frame_rate_of(pts: tuple[int, ...], frames: int | None = None) -> float | None:
    """Return frames per second over *pts* in presentation order; None when fewer than two moments are known.

    *frames* is how many there are from the first of these moments to the last, where some have none. Not the VUI's figure: encoders write
    all kinds of things there.
    """
    span = (pts[-1] - pts[0]) % PTS_MODULUS if pts else 0
    return ((frames or len(pts)) - 1) * 90_000 / span if span else None
