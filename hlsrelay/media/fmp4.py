"""Fragmented MP4 (ISO/IEC 14496-12): what tracks the init section declares, and when the fragments' samples are shown."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from hlsrelay.media import h264
from hlsrelay.media.bits import Bits
from hlsrelay.media.boxes import Box, Fields, Walk, after_dates, signed
from hlsrelay.media.info import PTS_MODULUS, AudioInfo, Container, MediaError, MediaInfo, VideoInfo, frame_rate_of, in_presentation_order

_ANNOUNCING = frozenset(b"styp sidx ssix emsg prft".split())

_MOST_NALS = 64
_MOST_TRACKS = 16
_OBJECT_TYPES = {0x40: "mp4a.40.2", 0x69: "mp4a.40.34", 0x6B: "mp4a.40.34", 0xA5: "ac-3", 0xA6: "ec-3"}  # ISO/IEC 14496-1 table 5
_NON_SYNC = 0x10000  # sample_is_non_sync_sample (8.8.3.1)


@dataclass(slots=True)
class _Track:
    id: int
    handler: bytes
    timescale: int
    codecs: str | None = None
    codec: str = ""
    width: int = 0
    height: int = 0
    sar: tuple[int, int] | None = (1, 1)
    interlaced: bool = False
    nal_length: int = 4
    duration: int = 0
    size: int = 0
    flags: int = 0


@dataclass(slots=True)
class _Samples:
    times: list[int] = field(default_factory=list)  # of presentation, in the track's time scale
    first_flags: int = 0
    first_bytes: tuple[int, int] = (0, 0)
    begin: int = 0  # decode time of the first
    end: int = 0  # decode time after the last
    random_access: bool = False  # one of them is a sync sample
    absolute: bool = False  # found by their place in the whole file


@dataclass(frozen=True, slots=True)
class Fragment:
    """A movie fragment: its first byte, boxes that announce it included; how long after the first one it is decoded; whether an IDR."""

    begin: int
    after_s: float
    idr: bool


def probe_fmp4(data: bytes, init: bytes | None = None) -> MediaInfo:
    """Return what the fragment *data* with its *init* section holds. Raises MediaError."""
    tracks, samples = _tracks_and_samples(data, init)
    video = next((track for track in tracks.values() if track.handler == b"vide" and track.id in samples), None)
    sounds = [track for track in tracks.values() if track.handler == b"soun" and track.id in samples]
    audio = [_audio(track, samples[track.id].times) for track in sounds]
    return MediaInfo(
        Container.FMP4,
        video=_video(data, video, samples[video.id]) if video else None,
        audio=audio[0] if audio else None,
        more_audio=tuple(audio[1:]),
    )


def sound_begins_90k(data: bytes, init: bytes) -> int:
    """Return when the first sound of a fragment begins on its own clock, which has more than 33 bits. Raises MediaError."""
    tracks, samples = _tracks_and_samples(data, init)
    for track in tracks.values():
        if track.handler == b"soun" and track.id in samples:
            return round(samples[track.id].times[0] * 90_000 / track.timescale)
    raise MediaError("an MP4 fragment without sound")


def _tracks_and_samples(data: bytes, init: bytes | None) -> tuple[dict[int, _Track], dict[int, _Samples]]:
    walk = Walk()
    tracks: dict[int, _Track] = {}
    for source in (init or b"", data):
        for box in walk.boxes(source, 0, len(source)):
            if box.kind == b"moov":
                tracks |= _moov(walk, source, box)
    samples: dict[int, _Samples] = {}
    for box in walk.boxes(data, 0, len(data)):
        if box.kind == b"moof":
            _moof(walk, data, box, tracks, samples)
    return tracks, samples


def _audio(track: _Track, times: list[int]) -> AudioInfo:
    first_90k, last_90k = (_to_90k(time, track) for time in (times[0], times[-1]))
    return AudioInfo(track.codecs, first_90k, id=track.id, hertz=track.timescale, last_pts_90k=last_90k)


def fragments(data: bytes, init: bytes) -> list[Fragment]:
    """Return the fragments of *data* with samples of the first video track, or where there is none of the first other one, in order.

    Raises MediaError, also when *data* can't be cut: it has a `moov` of its own, or finds samples by their place in the whole file.
    """
    walk = Walk()
    tracks: dict[int, _Track] = {}
    for box in walk.boxes(init, 0, len(init)):
        if box.kind == b"moov":
            tracks |= _moov(walk, init, box)
    found: list[tuple[int, dict[int, _Samples]]] = []
    latest: dict[int, _Samples] = {}
    begin: int | None = None  # of the boxes that announce the next fragment
    for box in walk.boxes(data, 0, len(data)):
        if box.kind == b"moov":
            raise MediaError("an MP4 segment that brings its own init section")
        if box.kind in _ANNOUNCING:
            begin = box.begin if begin is None else begin
            continue
        if box.kind == b"moof":
            samples = {number: _Samples(end=one.end) for number, one in latest.items()}  # no tfdt: it goes on where the last one ended
            _moof(walk, data, box, tracks, samples)
            if any(one.absolute for one in samples.values()):
                raise MediaError("an MP4 fragment that finds its samples by their place in the file")
            latest |= samples
            if len(latest) > _MOST_TRACKS:
                raise MediaError("an MP4 segment of too many tracks")
            found.append((box.begin if begin is None else begin, samples))
        begin = None
    present = {number for _, samples in found for number, one in samples.items() if one.times}
    track = min((track for track in tracks.values() if track.id in present), key=lambda track: track.handler != b"vide", default=None)
    if track is None:
        return []
    own = [(begin, samples[track.id]) for begin, samples in found if track.id in samples and samples[track.id].times]
    first = own[0][1].begin
    video = track.handler == b"vide"
    return [Fragment(at, (one.begin - first) / track.timescale, not video or _idr(data, track, one)) for at, one in own]


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What a track fragment's header says for samples that don't say it themselves; *base* is where their data offsets count from."""

    duration: int
    size: int
    flags: int
    base: int


def _moov(walk: Walk, data: bytes, moov: Box) -> dict[int, _Track]:
    tracks: dict[int, _Track] = {}
    for box in walk.boxes(data, moov.body, moov.end):
        if box.kind == b"trak":
            track = _trak(walk, data, box)
            if track is not None:
                tracks.setdefault(track.id, track)
    mvex = walk.path(data, moov, b"mvex")
    for box in walk.boxes(data, mvex.body, mvex.end) if mvex else ():
        if box.kind == b"trex":
            fields = Fields(data, box.body + 4, box.end)
            known = tracks.get(fields.take(4))
            fields.take(4)
            if known is not None:
                known.duration, known.size, known.flags = fields.take(4), fields.take(4), fields.take(4)
    return tracks


def _trak(walk: Walk, data: bytes, trak: Box) -> _Track | None:
    tkhd = walk.path(data, trak, b"tkhd")
    mdhd = walk.path(data, trak, b"mdia", b"mdhd")
    hdlr = walk.path(data, trak, b"mdia", b"hdlr")
    if tkhd is None or mdhd is None or hdlr is None:
        return None
    number, timescale = (after_dates(data, box).take(4) for box in (tkhd, mdhd))
    if not timescale:
        raise MediaError("an MP4 track without a time scale")
    track = _Track(number, data[hdlr.body + 8 : hdlr.body + 12], timescale)
    stsd = walk.path(data, trak, b"mdia", b"minf", b"stbl", b"stsd")
    entry = next(walk.boxes(data, stsd.body + 8, stsd.end), None) if stsd else None
    if entry is not None and track.handler == b"vide":
        _visual_entry(walk, data, entry, track)
        if _turned(data, tkhd):
            track.width, track.height = track.height, track.width
            track.sar = track.sar and (track.sar[1], track.sar[0])
    elif entry is not None and track.handler == b"soun":
        _sound_entry(walk, data, entry, track)
    return track


def _turned(data: bytes, tkhd: Box) -> bool:
    """Return whether the display matrix (8.3.2) lays pictures on their side."""
    at = after_dates(data, tkhd).at + (32 if data[tkhd.body] else 28)
    a, b, c, d = (any(data[at + place : at + place + 4]) for place in (0, 4, 12, 16))
    return at + 20 <= tkhd.end and b and c and not (a or d)


def _inside(entry: Box, skip: int) -> Box:
    """Return the boxes of the sample entry *entry* after its *skip* bytes of fields, as one box."""
    return Box(entry.kind, entry.begin, min(entry.body + skip, entry.end), entry.end)


def _visual_entry(walk: Walk, data: bytes, entry: Box, track: _Track) -> None:
    fields = Fields(data, entry.body + 24, entry.end)
    track.width, track.height = fields.take(2), fields.take(2)
    inner = _inside(entry, 78)
    avcc, hvcc, av1c = (walk.path(data, inner, kind) for kind in (b"avcC", b"hvcC", b"av1C"))
    if avcc is not None:
        track.codec = h264.H264
        fields = Fields(data, avcc.body + 1, avcc.end)
        track.codecs = f"avc1.{fields.take(3):06x}"
        track.nal_length = (fields.take(1) & 3) + 1
        if fields.take(1) & 31:
            length = fields.take(2)
            picture = h264.parse_sps(data[fields.at : min(fields.at + length, avcc.end)])
            track.width, track.height, track.sar = picture.width, picture.height, picture.sar
            track.interlaced = picture.interlaced
    elif hvcc is not None:
        track.codec, track.sar = h264.HEVC, None
        fields = Fields(data, hvcc.body + 1, hvcc.end)
        bits = Bits(fields.take(12).to_bytes(12))
        kind = "hev1" if entry.kind == b"hev1" else "hvc1"
        track.codecs = h264.hevc_codecs(kind, bits)
        fields.at = hvcc.body + 21
        track.nal_length = (fields.take(1) & 3) + 1
    elif av1c is not None:
        track.sar = None
        fields = Fields(data, av1c.body + 1, av1c.end)
        track.codecs = _av1_codecs(fields.take(1), fields.take(1))


def _av1_codecs(sequence: int, depth: int) -> str:
    """Return the codec string of an AV1CodecConfigurationRecord's second and third byte (AV1 in ISOBMFF 2.3.3 and 5), short form."""
    bits = 8 if not depth & 0x40 else 12 if depth & 0x20 else 10  # high_bitdepth, twelve_bit
    return f"av01.{sequence >> 5}.{sequence & 31:02}{'H' if depth & 0x80 else 'M'}.{bits:02}"


def _sound_entry(walk: Walk, data: bytes, entry: Box, track: _Track) -> None:
    inner = _inside(entry, 28)
    if entry.kind in (b"ac-3", b"ec-3"):
        track.codecs = entry.kind.decode()
    elif walk.path(data, inner, b"dac3"):
        track.codecs = "ac-3"
    elif walk.path(data, inner, b"dec3"):
        track.codecs = "ec-3"
    else:
        esds = walk.path(data, inner, b"esds")
        track.codecs = _esds_codecs(data[esds.body + 4 : esds.end]) if esds else None


def _esds_codecs(descriptors: bytes) -> str | None:
    """Return the codec string of an ES descriptor (ISO/IEC 14496-1 7.2.6.5): object type, and for AAC the audio object type."""
    fields = Fields(descriptors, 0, len(descriptors))
    object_type = None
    while fields.at + 2 <= fields.end:
        tag = fields.take(1)
        while fields.take(1) & 0x80:  # the length: whoever nests properly needs no more than its end
            pass
        if tag == 0x03:
            fields.take(2)
            flags = fields.take(1)
            fields.take(2 if flags & 0x80 else 0)
            fields.take(fields.take(1) if flags & 0x40 else 0)
            fields.take(2 if flags & 0x20 else 0)
        elif tag == 0x04:
            object_type = fields.take(1)
            fields.take(12)
        elif tag == 0x05 and object_type == 0x40:
            bits = Bits(descriptors[fields.at :])
            audio_type = bits.read(5)
            return f"mp4a.40.{audio_type if audio_type != 31 else 32 + bits.read(6)}"
        else:
            break
    return _OBJECT_TYPES.get(object_type) if object_type is not None else None


def _moof(walk: Walk, data: bytes, moof: Box, tracks: dict[int, _Track], samples: dict[int, _Samples]) -> None:
    for traf in walk.boxes(data, moof.body, moof.end):
        if traf.kind != b"traf":
            continue
        tfhd = walk.path(data, traf, b"tfhd")
        if tfhd is None:
            raise MediaError("an MP4 fragment without its header")
        fields = Fields(data, tfhd.body, tfhd.end)
        flags, number = fields.take(4), fields.take(4)
        track = tracks.get(number)
        if track is None:
            continue
        base = fields.take(8) if flags & 0x01 else moof.begin
        fields.take(4 if flags & 0x02 else 0)
        duration = fields.take(4) if flags & 0x08 else track.duration
        size = fields.take(4) if flags & 0x10 else track.size
        default_flags = fields.take(4) if flags & 0x20 else track.flags
        known = samples.get(number) or _Samples()
        known.absolute = known.absolute or bool(flags & 0x01)
        tfdt = walk.path(data, traf, b"tfdt")
        if tfdt is not None:
            fields = Fields(data, tfdt.body, tfdt.end)
            wide = fields.take(4) >> 24
            known.end = signed(fields.take(8), 64) if wide else fields.take(4)
        for box in walk.boxes(data, traf.body, traf.end):
            if box.kind == b"trun":
                _trun(walk, data, box, known, _Defaults(duration, size, default_flags, base))
        if known.times:
            samples[number] = known


def _trun(walk: Walk, data: bytes, trun: Box, samples: _Samples, defaults: _Defaults) -> None:
    fields = Fields(data, trun.body, trun.end)
    head, count = fields.take(4), fields.take(4)
    flags = head & 0xFFFFFF
    walk.samples_left -= count
    if walk.samples_left < 0:
        raise MediaError("an MP4 fragment of too many samples")
    offset = signed(fields.take(4), 32) if flags & 0x001 else 0
    first_flags = fields.take(4) if flags & 0x004 else None
    names = [name for bit, name in ((0x100, "duration"), (0x200, "size"), (0x400, "flags"), (0x800, "shift")) if flags & bit]
    form = struct.Struct(">" + "".join("i" if name == "shift" and head >> 24 else "I" for name in names))
    if fields.at + form.size * count > trun.end:
        raise MediaError("an MP4 fragment's sample table is cut")
    rows: Iterator[tuple[int, ...]] = iter([()] * count) if not names else form.iter_unpack(data[fields.at : fields.at + form.size * count])
    time = samples.end
    for index, row in enumerate(rows):
        sample = dict(zip(names, row, strict=True))
        told = first_flags if index == 0 and first_flags is not None else sample.get("flags", defaults.flags)
        samples.random_access = samples.random_access or not told & _NON_SYNC
        if not samples.times:
            samples.begin = time
            samples.first_flags = told
            begin = defaults.base + offset
            samples.first_bytes = (begin, begin + sample.get("size", defaults.size))
        samples.times.append(time + sample.get("shift", 0))
        time += sample.get("duration", defaults.duration)
    samples.end = time


def _to_90k(time: int, track: _Track) -> int:
    return (time * 90_000 + track.timescale // 2) // track.timescale % PTS_MODULUS


def _idr(data: bytes, track: _Track, samples: _Samples) -> bool:
    idr = not samples.first_flags & _NON_SYNC
    if track.codec:
        # The flag also marks recovery points that are no IDR: believe the picture's own header.
        nals = _sample_nals(data, *samples.first_bytes, track.nal_length)
        told = h264.head_of_nals(track.codec, nals).idr
        idr = idr and told is not False
    return idr


def _video(data: bytes, track: _Track, samples: _Samples) -> VideoInfo:
    pts = in_presentation_order([_to_90k(time, track) for time in samples.times])
    return VideoInfo(
        codecs=track.codecs,
        width=track.width,
        height=track.height,
        frame_count=len(pts),
        first_pts_90k=pts[0],
        last_pts_90k=pts[-1],
        frame_rate=frame_rate_of(pts),
        starts_with_idr=_idr(data, track, samples),
        pts=pts,
        sar=track.sar,
        timescale=track.timescale,
        interlaced=track.interlaced,
        random_access=samples.random_access,
    )


def _sample_nals(data: bytes, begin: int, end: int, length_size: int) -> Iterator[bytes]:
    at = begin
    for _ in range(_MOST_NALS):
        if at < 0 or at + length_size >= min(end, len(data)):
            return
        size = int.from_bytes(data[at : at + length_size])
        at += length_size
        yield data[at : at + min(size, h264.LONGEST_HEADER)]
        at += size
