"""Which frames of re-encoded sound belong to which segment. Pure.

Laws:
- Frames of 1024 samples lie on one grid that counts from where the 33-bit clock stood at 0: frame k sounds from k * 1024 / hertz seconds
  on, whoever encodes it. Nothing is handed from one segment to the next, so nothing can drift.
- A segment has the frames from where the one before ended to where it ends itself, and its end is read from its own bytes: the last frame
  of the source that begins in it. Who makes the next segment reads the same bytes, and comes to the same frame.
- A frame of AAC is coded with the one after it (its window is two frames long), and the encoder looks half a frame further. Frames end so
  many frames early: what a segment and the ones before hold is then all that its frames need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from hlsrelay.media.info import PTS_MODULUS, AudioInfo, MediaError

SAMPLES = 1024
"""Samples of a frame of AAC-LC (ISO/IEC 14496-3)."""
AHEAD = 2
"""Frames that must follow a frame before it can be encoded."""
FEWEST = 2
"""Frames of a segment: ffmpeg gives a file of a single one no time stamp."""
PREROLL = 24
"""Frames encoded ahead of those that are kept, half a second: by then it makes no difference where the encoder began."""
_KEPT_HERTZ = (32_000, 44_100, 48_000)
_LARGEST_STEP_90K = 90_000
"""A larger step between two segments is a jump of the time stamps: the one before then says nothing of this one."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A segment's part of the grid, frames *begin* to before *end*, at *hertz*; *follows*: the segment before ended at *begin*."""

    hertz: int
    begin: int
    end: int
    follows: bool

    @property
    def encoded_from(self) -> int:
        """The first frame that the encoder is given."""
        return self.begin - PREROLL

    @property
    def samples(self) -> int:
        """How many samples the encoder is given."""
        return (self.end + AHEAD - self.encoded_from) * SAMPLES

    def begins_90k(self, frame: int) -> int:
        """Return when *frame* begins to sound, in ticks of the 90 kHz clock that goes on counting after 2^33."""
        return round(Fraction(frame * SAMPLES * 90_000, self.hertz))


def cut_of(audio: AudioInfo, before: AudioInfo | None, clock_turns: int, longest_s: float) -> Cut:
    """Return the frames of a segment of sound *audio* that comes after one of sound *before*, if that is known and can be read.

    *clock_turns* counts how often the 33-bit clock began anew on the way to this segment's first PTS: 2^33 ticks are no whole number of
    frames. Raises MediaError where the time stamps are missing, or span more than *longest_s*.
    """
    if audio.first_pts_90k is None or audio.last_pts_90k is None:
        raise MediaError("its sound has no time stamps")
    hertz = audio.hertz if audio.hertz in _KEPT_HERTZ else 48_000
    first = audio.first_pts_90k + clock_turns * PTS_MODULUS
    last = near(audio.last_pts_90k, first)
    end = _frame(last, hertz) - AHEAD
    begin = max(0, _frame(first, hertz) - AHEAD - 1)  # as if a frame, or what is as long, came before
    follows = False
    if before is not None and before.last_pts_90k is not None:
        ended = near(before.last_pts_90k, first)
        follows = abs(first - ended) <= _LARGEST_STEP_90K
        begin = _frame(ended, hertz) - AHEAD if follows else begin
    if end - begin < FEWEST:
        raise MediaError("its sound is too short")
    if (end - begin) * SAMPLES > longest_s * hertz:
        raise MediaError("the time stamps of its sound jump")
    return Cut(hertz, begin, end, follows)


def turned(before_90k: int, pts_90k: int) -> bool:
    """Return whether the 33-bit clock began anew between two PTS that follow each other; a step back is no turn."""
    return before_90k - pts_90k > PTS_MODULUS // 2


def near(pts_90k: int, other_90k: int) -> int:
    """Return *pts_90k*, known mod 2^33, as the value that is nearest to *other_90k*."""
    half = PTS_MODULUS // 2
    return other_90k + (pts_90k - other_90k + half) % PTS_MODULUS - half


def kept(encoded: list[bytes], cut: Cut) -> list[bytes]:
    """Return the frames of *cut* out of what an encoder made of its samples, of which the first is what comes before them.

    Raises MediaError where some are missing.
    """
    skipped = cut.begin - cut.encoded_from + 1  # an encoder begins with a frame of silence that fades into the first one
    frames = encoded[skipped : skipped + cut.end - cut.begin]
    if len(frames) < cut.end - cut.begin:
        raise MediaError(f"its sound has {len(frames)} frames instead of {cut.end - cut.begin}")
    return frames


def _frame(ticks_90k: int, hertz: int) -> int:
    """Return the frame of the grid that sounds at *ticks_90k*."""
    return math.floor(Fraction(ticks_90k * hertz, 90_000 * SAMPLES))
