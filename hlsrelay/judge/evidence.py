"""What the media themselves say against the playlist: one segment, and two in a row."""

from __future__ import annotations

from collections.abc import Iterator

from hlsrelay.judge.findings import Complaint, error, warning
from hlsrelay.judge.listed import Listed
from hlsrelay.judge.tape import Known
from hlsrelay.media.info import PTS_MODULUS, Container, MediaInfo

TS_PACKET = 188
JUMP_S = 0.5
"""Pictures of two segments in a row that are further apart than this, and than three frames, are not one sequence of time stamps."""
EXTINF_OFF_S = 0.1
SOUND_OFF_S = 0.5
"""Sound is packed in chunks of up to a quarter of a second: where one begins says no more."""
_GUESSED_RATE = 25.0


def alone(segment: Listed, size: int | None, info: MediaInfo) -> Iterator[Complaint]:
    """Judge one whole segment."""
    here = f"segment {segment.sequence}"
    bare = segment.resource.span is None and not segment.keys  # encrypted, it is padded
    if info.container is Container.TS and size is not None and bare and size % TS_PACKET:
        yield error("A8", "a listed segment is not complete", f"{here}: {size} bytes are no whole MPEG-TS packets")
    if info.container is Container.FMP4 and segment.init is None:
        yield error("A16", "an fMP4 segment without EXT-X-MAP", here)


def between(before: Known, after: Known) -> Iterator[Complaint]:
    """Judge two segments that follow each other without a DISCONTINUITY, both probed."""
    a, b = before.info, after.info
    if a is None or b is None or Container.UNKNOWN in (a.container, b.container):
        return
    here = f"between segment {before.listed.sequence} and {after.listed.sequence}"
    if a.container is not b.container:
        yield error("A10", "the file format changes without a DISCONTINUITY", f"{here}: {b.container} after {a.container}")
        return
    if _tracks(a) != _tracks(b):
        yield error("A10", "tracks come or go without a DISCONTINUITY", f"{here}: {_tracks(b)} after {_tracks(a)}")
        return
    for old, new in zip(_codecs(a), _codecs(b), strict=True):
        if old and new and old.partition(".")[0] != new.partition(".")[0]:
            yield error("A10", "the codec changes without a DISCONTINUITY", f"{here}: {new} after {old}")
        elif old and new and old != new:
            yield warning("A10", "profile or level change without a DISCONTINUITY", f"{here}: {new} after {old}")
    if a.video and b.video and (a.video.width, a.video.height) != (b.video.width, b.video.height):
        detail = f"{here}: {b.video.width}x{b.video.height} after {a.video.width}x{a.video.height}"
        yield warning("A10", "the size of the picture changes without a DISCONTINUITY", detail)
    yield from _timeline(before.listed, a, b, here)


def _timeline(listed: Listed, a: MediaInfo, b: MediaInfo, here: str) -> Iterator[Complaint]:
    """EXTINF is the time from the first picture of one segment to that of the next, where the time stamps go on."""
    if a.video and b.video:
        frame_s = 1 / (a.video.frame_rate or b.video.frame_rate or _GUESSED_RATE)
        step_s = seconds(b.video.first_pts_90k - a.video.last_pts_90k)
        if not -JUMP_S <= step_s <= max(JUMP_S, 3 * frame_s):
            yield error("A10", "time stamps jump without a DISCONTINUITY", f"{here}: by {step_s:+.3f} s")
            return
        real_s = seconds(b.video.first_pts_90k - a.video.first_pts_90k)
        allowed_s = max(EXTINF_OFF_S, 2 * frame_s)
    elif a.audio and b.audio and a.audio.first_pts_90k is not None and b.audio.first_pts_90k is not None:
        real_s = seconds(b.audio.first_pts_90k - a.audio.first_pts_90k)
        allowed_s = SOUND_OFF_S
        if abs(real_s - listed.duration_s) > max(1.0, listed.duration_s / 2):
            yield error("A10", "time stamps jump without a DISCONTINUITY", f"{here}: by {real_s - listed.duration_s:+.3f} s")
            return
    else:
        return
    if abs(real_s - listed.duration_s) > allowed_s:
        detail = f"segment {listed.sequence} lasts {real_s:.3f} s, EXTINF says {listed.duration_s:g}"
        yield error("A-extinf", "EXTINF is not the segment's duration", detail)


def seconds(ticks_90k: int) -> float:
    """Return a difference of two time stamps in seconds, the wrap of the 33-bit clock undone."""
    ticks_90k %= PTS_MODULUS
    return (ticks_90k - PTS_MODULUS if ticks_90k > PTS_MODULUS // 2 else ticks_90k) / 90_000


def _tracks(info: MediaInfo) -> str:
    return " and ".join(name for name, track in (("video", info.video), ("audio", info.audio)) if track) or "neither video nor audio"


def _codecs(info: MediaInfo) -> tuple[str | None, str | None]:
    return (info.video.codecs if info.video else None, info.audio.codecs if info.audio else None)
