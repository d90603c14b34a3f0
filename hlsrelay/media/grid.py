"""Which frames of re-encoded sound belong to which segment. Pure.

Laws:
- Frames of 1024 samples lie on one grid that counts from where the 33-bit clock stood at 0: frame k sounds from k * 1024 / hertz seconds
  on, whoever encodes it. No frame is placed by where the one before was put, so nothing can drift.
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
    """A segment's part of the grid, frames *begin* to before *end*, at *hertz*; *follows*: the segment before ended at *begin*.

    *source_begin_s* is when the source's sound begins, to the sample.
    """

    hertz: int
    begin: int
    end: int
    follows: bool
    source_begin_s: Fraction

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


def first_sample(audio: AudioInfo, before: tuple[AudioInfo, int] | None = None) -> int:
    """Return which sample of the source a segment's sound begins with, counted from where its clock stood at 0, round after round.

    *before* is the segment before, with this figure. A tick of 90 kHz may be half a sample: with 44.1 kHz time stamps alone would put one
    segment a sample too early and the next one a sample too late. So frames are counted, as long as the time stamps allow it.
    """
    hertz, first = audio.hertz or 48_000, audio.first_pts_90k or 0
    if before is None:
        return round(Fraction(first * hertz, 90_000))
    earlier, sample = before
    stamped = Fraction(near(first, round(Fraction(sample * 90_000, earlier.hertz or 48_000))) * hertz, 90_000)
    if audio.frame_samples and (earlier.frame_samples, earlier.hertz) == (audio.frame_samples, audio.hertz):
        counted = sample + audio.frame_samples * round((stamped - sample) / audio.frame_samples)
        if abs(counted - stamped) < 1:
            return counted
    return round(stamped)


def cut_of(audio: AudioInfo, before: AudioInfo | None, sample: int, longest_s: float) -> Cut:
    """Return the frames of a segment of sound *audio* that comes after one of sound *before*, if that is known and can be read.

    *sample* is its `first_sample`. Raises MediaError where the time stamps are missing, or span more than *longest_s*.
    """
    if audio.first_pts_90k is None or audio.last_pts_90k is None:
        raise MediaError("its sound has no time stamps")
    hertz = audio.hertz if audio.hertz in _KEPT_HERTZ else 48_000
    source_begin_s = Fraction(sample, audio.hertz or 48_000)
    first = near(audio.first_pts_90k, round(source_begin_s * 90_000))
    end = _frame(near(audio.last_pts_90k, first), hertz) - AHEAD
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
    return Cut(hertz, begin, end, follows, source_begin_s)


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
