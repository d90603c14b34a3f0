"""Edit lists (ISO/IEC 14496-12 8.6.6): when each track's own time is shown. The same for a rung as for the source that it is made of.

Laws:
- Rungs are made on the media's own time, edits ignored, and players apply a rung's edit lists just as they apply the source's: pictures and
  sound stay as far apart as they are there, and a player that switches finds them in place.
- An init section is the source's word: what can't be read of its edits raises MediaError, and no list is longer than edits can be many.
"""

from __future__ import annotations

from dataclasses import dataclass

from hlsrelay.media.boxes import Box, Fields, Walk, after_dates, signed
from hlsrelay.media.info import MediaError, MediaInfo

_MOST_EDITS = 64  # of a track: encoders write one or two
_EMPTY = -1  # the media time of an edit that shows nothing


@dataclass(frozen=True, slots=True)
class _Edit:
    """*duration* counts in the movie's time scale, *media_time* in the track's; *rate* is both its words as they are."""

    duration: int
    media_time: int
    rate: int


@dataclass(frozen=True, slots=True)
class _Track:
    id: int
    handler: bytes
    timescale: int
    head: Box  # its `tkhd`
    edits: tuple[_Edit, ...]


def with_edits(rung: bytes, source: bytes, info: MediaInfo) -> bytes:
    """Return *rung*, the init section of what was made of *source*'s segment *info*, with the source's edit lists. Raises MediaError.

    Sound is the segment's, in its order; there may be less of it. The movie's time scale becomes the source's, so that no duration is
    rounded: in a movie of fragments nothing else counts in it.
    """
    walk = Walk()
    movie = _movie(walk, source)
    tracks = _tracks(walk, source, movie) if movie else []
    if movie is None or not any(track.edits for track in tracks):
        return rung
    sounds = [next((track for track in tracks if track.id == audio.id), None) for audio in info.sounds]
    left = {b"vide": [next((track for track in tracks if track.handler == b"vide"), None)], b"soun": sounds}
    scale = _movie_scale(walk, source, movie)
    boxes = walk.boxes(rung, 0, len(rung))
    return b"".join(_edited(walk, rung, box, scale, left) if box.kind == b"moov" else rung[box.begin : box.end] for box in boxes)


def _edited(walk: Walk, rung: bytes, moov: Box, scale: int, left: dict[bytes, list[_Track | None]]) -> bytes:
    """Return a rung's `moov` with the edits of the tracks that are *left*, by handler and in order."""
    parts = []
    for box in walk.boxes(rung, moov.body, moov.end):
        part = rung[box.begin : box.end]
        if box.kind == b"mvhd":
            at = after_dates(rung, box).at
            part = rung[box.begin : at] + scale.to_bytes(4) + rung[at + 4 : box.end]
        elif box.kind == b"trak" and (track := _track(walk, rung, box)) and left.get(track.handler):
            its = left[track.handler].pop(0)
            if its and its.edits:
                edts = _edts(its, track.timescale)
                part = _box(b"trak", rung[box.body : track.head.end] + edts + rung[track.head.end : box.end])
        parts.append(part)
    return _box(b"moov", b"".join(parts))


def _movie(walk: Walk, data: bytes) -> Box | None:
    return next((box for box in walk.boxes(data, 0, len(data)) if box.kind == b"moov"), None)


def _movie_scale(walk: Walk, data: bytes, moov: Box) -> int:
    mvhd = walk.path(data, moov, b"mvhd")
    scale = after_dates(data, mvhd).take(4) if mvhd else 0
    if not scale:
        raise MediaError("an MP4 with edits and no time scale")
    return scale


def _tracks(walk: Walk, data: bytes, moov: Box) -> list[_Track]:
    found = [_track(walk, data, box) for box in walk.boxes(data, moov.body, moov.end) if box.kind == b"trak"]
    return [track for track in found if track]


def _track(walk: Walk, data: bytes, trak: Box) -> _Track | None:
    tkhd, elst = walk.path(data, trak, b"tkhd"), walk.path(data, trak, b"edts", b"elst")
    mdhd, hdlr = walk.path(data, trak, b"mdia", b"mdhd"), walk.path(data, trak, b"mdia", b"hdlr")
    if tkhd is None or mdhd is None or hdlr is None:
        return None
    number, timescale = (after_dates(data, box).take(4) for box in (tkhd, mdhd))
    if not timescale:
        raise MediaError("an MP4 track without a time scale")
    return _Track(number, data[hdlr.body + 8 : hdlr.body + 12], timescale, tkhd, _edits(data, elst) if elst else ())


def _edits(data: bytes, elst: Box) -> tuple[_Edit, ...]:
    fields = Fields(data, elst.body, elst.end)
    size = 8 if fields.take(4) >> 24 else 4
    count = fields.take(4)
    if count > _MOST_EDITS:
        raise MediaError("an MP4 track of too many edits")
    return tuple(_Edit(fields.take(size), signed(fields.take(size), 8 * size), fields.take(4)) for _ in range(count))


def _edts(track: _Track, timescale: int) -> bytes:
    """Return the edit list of *track* for one whose time counts in *timescale*."""
    times = [_rescaled(edit.media_time, track.timescale, timescale) for edit in track.edits]
    if not all(-1 << 63 <= time < 1 << 63 for time in times):
        raise MediaError("an MP4 track whose edits are beyond all time")
    wide = any(edit.duration >> 32 for edit in track.edits) or not all(-1 << 31 <= time < 1 << 31 for time in times)
    size = 8 if wide else 4
    rows = b"".join(
        edit.duration.to_bytes(size) + time.to_bytes(size, signed=True) + edit.rate.to_bytes(4)
        for edit, time in zip(track.edits, times, strict=True)
    )
    return _box(b"edts", _box(b"elst", (wide << 24).to_bytes(4) + len(times).to_bytes(4) + rows))


def _rescaled(time: int, scale: int, to: int) -> int:
    return time if time == _EMPTY else (2 * time * to + scale) // (2 * scale)


def _box(kind: bytes, body: bytes) -> bytes:
    return (len(body) + 8).to_bytes(4) + kind + body
