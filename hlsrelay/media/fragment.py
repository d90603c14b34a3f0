"""The fragments of an MP4 as ffmpeg must have them, and as HLS must: the same samples, shown at the same moments.

Laws:
- What is shown when stays: a sample's moment is its decode time plus its composition offset, and only their shares change.
- ffmpeg's demuxer delays a track by its most negative composition offset, so it gets a source without any, and nobody gets one of ours.
- An init section says only what is true of the whole stream: the same encoder's is the same for every segment, and has one name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hlsrelay.media.boxes import Fields, Walk, after_dates, signed
from hlsrelay.media.info import PTS_MODULUS, MediaError

_BEFORE_FRAGMENTS = (b"ftyp", b"moov")
_OF_SEGMENTS = (b"styp", b"sidx", b"emsg", b"prft", b"moof", b"mdat")


@dataclass(slots=True)
class _Run:
    """A track fragment: where its decode time and its composition offsets are, and what they say.

    *shown* is when its first picture is to be seen; *next* when the next sample is to be decoded.
    """

    track: int
    at: int = -1
    size: int = 0
    time: int = 0
    offsets: list[tuple[int, int]] = field(default_factory=list)  # where, how many ticks
    versions: list[int] = field(default_factory=list)  # where the `trun`s' versions are
    shown: int | None = None
    next: int = 0
    duration: int = 0


def parted(whole: bytes) -> tuple[bytes, bytes]:
    """Return the init section and the media segment of an MP4 that ffmpeg wrote into one file. Raises MediaError.

    Decode times become what players can read, which is not negative: what lies before 0, because MPEG's clock has begun anew, comes a
    turn of that clock later; and where only pictures are decoded before 0 that are shown after it, their offsets make up for it.
    """
    walk = Walk()
    boxes = list(walk.boxes(whole, 0, len(whole)))
    init = bytearray().join(whole[box.begin : box.end] for box in boxes if box.kind in _BEFORE_FRAGMENTS)
    if not any(box.kind == b"moov" for box in boxes) or not any(box.kind == b"moof" for box in boxes):
        raise MediaError("it is no fragmented MP4")
    scales = _settle_init(walk, init)
    media = bytearray().join(whole[box.begin : box.end] for box in boxes if box.kind in _OF_SEGMENTS)
    runs = [run for run in _runs(walk, media) if run.at >= 0]
    # A decode time alone may be mended by offsets; what is to be shown or heard before 0 may not.
    if any(run.shown is not None and run.shown < 0 for run in runs):
        for run in runs:
            run.time += PTS_MODULUS * scales.get(run.track, 90_000) // 90_000
    for track in {run.track for run in runs}:
        own = [run for run in runs if run.track == track]
        _shift(media, own, max(0, -min(run.time for run in own)))
    return bytes(init), bytes(media)


def without_negative_offsets(data: bytes) -> bytes:
    """Return the media segment *data* with composition offsets from 0 up, everything shown when it was. Raises MediaError."""
    runs = [run for run in _runs(Walk(), data) if run.at >= 0]
    tracks = {run.track for run in runs}
    lowest = {track: min((ticks for run in runs if run.track == track for _, ticks in run.offsets), default=0) for track in tracks}
    if all(ticks >= 0 for ticks in lowest.values()):
        return data
    patched = bytearray(data)
    for track, ticks in lowest.items():
        # A run without offsets has them all 0: its time is when it is shown, and stays.
        _shift(patched, [run for run in runs if run.track == track and run.offsets], ticks)
    return bytes(patched)


def _shift(data: bytearray, runs: list[_Run], ticks: int) -> None:
    """Write the *runs* with decode times *ticks* later, and offsets so much smaller."""
    for run in runs:
        data[run.at : run.at + run.size] = ((run.time + ticks) % (1 << 8 * run.size)).to_bytes(run.size)
        for at, offset in run.offsets if ticks else ():
            data[at : at + 4] = ((offset - ticks) % (1 << 32)).to_bytes(4)
        for at in run.versions if ticks else ():
            data[at] = 1  # offsets with a sign (ISO/IEC 14496-12 8.8.8)


def _runs(walk: Walk, data: bytes | bytearray) -> list[_Run]:
    """Return the track fragments of *data*."""
    runs: list[_Run] = []
    body = bytes(data)
    for moof in walk.boxes(body, 0, len(body)):
        for traf in walk.boxes(body, moof.body, moof.end) if moof.kind == b"moof" else ():
            if traf.kind != b"traf":
                continue
            run = _Run(0)
            for box in walk.boxes(body, traf.body, traf.end):
                fields = Fields(body, box.body, box.end)
                if box.kind == b"tfhd":
                    flags, run.track = fields.take(4), fields.take(4)
                    fields.take((8 if flags & 0x01 else 0) + (4 if flags & 0x02 else 0))
                    run.duration = fields.take(4) if flags & 0x08 else 0
                elif box.kind == b"tfdt":
                    run.size = 8 if fields.take(4) >> 24 else 4
                    run.at = fields.at
                    run.time = run.next = signed(fields.take(8), 64) if run.size == 8 else fields.take(4)
                elif box.kind == b"trun":
                    _samples(walk, fields, box.body, run)
            runs.append(run)
    return runs


def _samples(walk: Walk, fields: Fields, version_at: int, run: _Run) -> None:
    head, count = fields.take(4), fields.take(4)
    walk.samples_left -= count
    if walk.samples_left < 0:
        raise MediaError("an MP4 fragment of too many samples")
    fields.take(4 if head & 0x001 else 0)
    fields.take(4 if head & 0x004 else 0)
    if head & 0x800:
        run.versions.append(version_at)
    for _ in range(count):
        duration = fields.take(4) if head & 0x100 else run.duration
        fields.take((4 if head & 0x200 else 0) + (4 if head & 0x400 else 0))
        ticks = 0
        if head & 0x800:
            ticks = fields.take(4)
            ticks = signed(ticks, 32) if head >> 24 else ticks
            run.offsets.append((fields.at - 4, ticks))
        run.shown = run.next + ticks if run.shown is None else min(run.shown, run.next + ticks)
        run.next += duration


def _settle_init(walk: Walk, init: bytearray) -> dict[int, int]:
    """Make *init* say nothing of this very segment; return the tracks' time scales."""
    body = bytes(init)
    scales: dict[int, int] = {}
    for moov in walk.boxes(body, 0, len(body)):
        for trak in walk.boxes(body, moov.body, moov.end) if moov.kind == b"moov" else ():
            tkhd, mdhd = walk.path(body, trak, b"tkhd"), walk.path(body, trak, b"mdia", b"mdhd")
            stsd = walk.path(body, trak, b"mdia", b"minf", b"stbl", b"stsd")
            if trak.kind != b"trak" or tkhd is None or mdhd is None or stsd is None:
                continue
            number, scale = (after_dates(body, box).take(4) for box in (tkhd, mdhd))
            scales[number] = scale
            for entry in walk.boxes(body, stsd.body + 8, stsd.end):
                found = body.find(b"esds", entry.body, entry.end)
                if found >= 0:
                    _forget_bitrates(init, found + 8, entry.end)  # behind its version and flags
    return scales


def _forget_bitrates(init: bytearray, at: int, end: int) -> None:
    """Zero what the DecoderConfigDescriptor (ISO/IEC 14496-1 7.2.6.6) of the `esds` whose descriptors begin at *at* says of bitrates."""
    fields = Fields(bytes(init), at, end)
    while fields.at < end:
        tag = fields.take(1)
        while fields.take(1) & 0x80:
            pass
        if tag == 0x03:
            fields.take(2)
            if fields.take(1):  # ffmpeg writes no stream that this one depends on
                return
        elif tag == 0x04:
            fields.take(5)
            init[fields.at : fields.at + 8] = bytes(8)
            return
        else:
            return
