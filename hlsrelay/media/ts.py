"""MPEG-2 transport streams (ISO/IEC 13818-1), as much of them as a relay wants to know.

Segments are megabytes and this runs in the one thread that serves everybody: packets are found by slicing with a stride, only those that
begin a PES are looked at one by one, and whatever hostile bytes could make long has a bound.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from hlsrelay.media import h264
from hlsrelay.media.adts import adts_codecs, hertz, last_frame, mpeg_audio, samples
from hlsrelay.media.info import PTS_MODULUS, AudioInfo, Container, MediaError, MediaInfo, VideoInfo, frame_rate_of, in_presentation_order
from hlsrelay.media.packets import PACKET, Run, following, looks_like_ts, payload_at, pid_at, runs_in, section_at, starts_in, unit_at
from hlsrelay.remembered import remembered

_VIDEO = {0x01: h264.MPEG2, 0x02: h264.MPEG2, 0x1B: h264.H264, 0xDB: h264.H264, 0x24: h264.HEVC}
_ADTS, _MPEG_AUDIO = "adts", "mpeg"  # their own headers tell which one
_LATM, _DTS, _OPUS = "latm", "dts", "opus"
_AUDIO = {0x03: _MPEG_AUDIO, 0x04: _MPEG_AUDIO, 0x0F: _ADTS, 0xCF: _ADTS, 0x11: _LATM}
_AUDIO |= {0x81: "ac-3", 0xC1: "ac-3", 0x87: "ec-3", 0xC2: "ec-3", 0x8A: _DTS}
_TELL_LENGTHS = frozenset((_ADTS, _MPEG_AUDIO, "ac-3", "ec-3"))  # in each frame's header
_AUDIO_DESCRIPTORS = {0x6A: "ac-3", 0x7A: "ec-3", 0x7B: _DTS}  # DVB: in private PES (ETSI EN 300 468)
_REGISTRATION = 0x05
_CODECS = {_LATM: "mp4a.40.2", _DTS: "dtsc", _OPUS: "Opus"}
_CODING = {"mp4a.40.34": "mp3", "mp4a.40.33": "mp2", "mp4a.40.32": "mp1"}

_MOST_TABLES = 64
_MOST_SOUNDS = 8
_HEAD_BYTES = 64 * 1024  # of the first access unit: parameter sets, SEI, and the beginning of its first slice
_MOST_PES_BYTES = 64 * 1024  # what the length field of an audio PES can say
_MOST_UNITS = 6_000
_MOST_STARTS_BETWEEN = 64  # tables and PES of others, between a PAT and the picture it goes before
_MOST_BYTES_BETWEEN = 256 * PACKET
_PICTURE_HEAD = 1024  # that of most
_LONGEST_PICTURE_HEAD = 4096  # what comes before a picture's first slice: parameter sets, captions
_NEXT_HEADS = 32  # further access units in which a sequence header is looked for
_MOST_ENTERED = 2_000  # access units of which it is asked whether decoding can begin there


@dataclass(frozen=True, slots=True)
class _Track:
    pid: int
    codec: str


_Tracks = tuple[_Track | None, tuple[_Track, ...]]


@dataclass(frozen=True, slots=True)
class Unit:
    """A picture, or a PES of sound, and where a stream that is cut before it begins.

    *tables*: it begins with PAT and PMT, between which and the unit there is nothing of the unit's own track; else with the unit's PES.
    """

    begin: int
    tables: bool
    pts: int
    dts: int
    access: h264.Access


def probe_ts(data: bytes, init: bytes | None = None) -> MediaInfo:
    """Return what the transport stream *data* holds; *init* may carry its tables (RFC 8216 3.2). Raises MediaError."""
    runs = runs_in(data)
    starts = starts_in(data, runs)
    video, tracks = _tracks_of(data, runs, starts, init)
    sounds = [info for track in tracks[:_MOST_SOUNDS] if (info := _audio(data, runs, starts, track))]
    return MediaInfo(
        Container.TS,
        video=_video(data, runs, starts, video) if video else None,
        audio=sounds[0] if sounds else None,
        more_audio=tuple(sounds[1:]),
    )


class Packets:
    """Packets from anywhere in a transport stream, taken apart once for all that is asked of them.

    *tables*: what may carry the stream's tables where these don't (RFC 8216 3.2), be it packets before these. Making one raises
    MediaError, and so does asking for what needs tables that are nowhere.
    """

    def __init__(self, data: bytes, tables: bytes | Packets | None = None) -> None:
        self._data, self._tables = data, tables
        self._runs = runs_in(data)
        self._starts = starts_in(data, self._runs)

    @cached_property
    def _tracks(self) -> _Tracks:
        if isinstance(self._tables, Packets):
            return _program(self._data, self._runs, self._starts) or self._tables._tracks
        return _tracks_of(self._data, self._runs, self._starts, self._tables)

    @cached_property
    def _stamped(self) -> list[tuple[int, int]]:
        """Where what has a PTS begins, and that."""
        return [(at, pts) for at in self._starts if (pts := _pts_at(self._data, at)) is not None]

    def stamps(self) -> list[int]:
        """Return the PTS of whatever begins in them."""
        return [pts for _, pts in self._stamped]

    def picture_stamps(self) -> tuple[int, ...]:
        """Return the PTS of the pictures that begin in them, in presentation order."""
        data, video = self._data, self._tracks[0]
        return in_presentation_order([pts for at, pts in self._stamped if video and pid_at(data, at) == video.pid])

    def coded_as(self) -> tuple[h264.Picture | None, str | None]:
        """Return what the first picture and the first sound say of themselves."""
        data, (video, sounds) = self._data, self._tracks
        picture, codecs = None, None
        if video and (at := self._first(video)) is not None:
            picture = self._head(video.codec, at).picture
        for track in sounds[:1]:
            if (at := self._first(track)) is not None:
                codecs = _audio_codecs(track.codec, _elementary(unit_at(data, self._runs, at, 1024)))
        return picture, codecs

    def _head(self, codec: str, at: int) -> h264.AccessUnitHead:
        """Return what the picture that begins at *at* tells before its first slice, which is mostly near."""
        with suppress(MediaError):  # what it ends in is cut off
            head = h264.read_head(codec, _elementary(unit_at(self._data, self._runs, at, _PICTURE_HEAD)))
            if head.idr is not None:
                return head
        return h264.read_head(codec, _elementary(unit_at(self._data, self._runs, at, _LONGEST_PICTURE_HEAD)))

    def _first(self, track: _Track) -> int | None:
        return next((at for at in self._starts if pid_at(self._data, at) == track.pid), None)


def units(data: bytes, init: bytes | None = None) -> list[Unit]:
    """Return the pictures that begin in the transport stream *data*, or where it has none the PES of sound, in order. Raises MediaError.

    Pictures without a time stamp are left out, and so are scrambled ones; of several in one PES the first stands for all.
    """
    runs = runs_in(data)
    starts = starts_in(data, runs)
    pids = {pid_at(data, at) for at in starts}
    video, sounds = _tracks_of(data, runs, starts, init)
    track = next((track for track in (video, *sounds[:1]) if track and track.pid in pids), None)
    if track is None:
        return []
    own = [index for index, at in enumerate(starts) if pid_at(data, at) == track.pid]
    if len(own) > _MOST_UNITS:
        raise MediaError("a transport stream of too many pictures")
    found: list[Unit] = []
    for index in own:
        at = starts[index]
        head = payload_at(data, at)
        pts = _pes_pts(head)
        access = _access(data, runs, at, track.codec, head) if pts is not None else h264.Access.REST
        if pts is not None and access is not h264.Access.REST:
            tables = _tables_before(data, runs, starts, index, track.pid)
            dts = _stamp(head, 14) if head[7] & 0x40 and len(head) >= 19 else pts  # 2.4.3.7: what has no DTS is decoded when it is shown
            found.append(Unit(at if tables is None else tables, tables is not None, pts, dts, access))
    return found


def first_tables(data: bytes, packets: int) -> bytes:
    """Return the packets of the first PAT and PMT among the first *packets* of *data*, empty if they are not both there."""
    data = data[: packets * PACKET]
    try:
        runs = runs_in(data)
    except MediaError:
        return b""
    pat, pmt_pid = b"", None
    for run in runs:
        for at in range(run.begin, run.begin + run.count * PACKET, PACKET):
            pid, begins = pid_at(data, at), data[at + 1] & 0x40
            if pid == 0 and begins and pmt_pid is None:
                body = section_at(data, runs, at, 0x00)
                programs = [body[i : i + 4] for i in range(0, len(body) - 3, 4)]
                pmt_pid = next((int.from_bytes(entry[2:]) & 0x1FFF for entry in programs if entry[:2] != b"\0\0"), None)
                pat = data[at : at + PACKET]
            elif pid == pmt_pid and begins and section_at(data, runs, at, 0x02):
                rest = [one for one in following(runs, at) if pid_at(data, one) == pid]
                ends = next((index for index, one in enumerate(rest) if data[one + 1] & 0x40), len(rest))
                length = int.from_bytes(payload_at(data, at)[2:4]) & 0xFFF  # one packet holds what 180 bytes of it can
                more = rest[: min(ends, (length + 4) // 184)] if length > 180 else []
                return b"".join((pat, *(data[one : one + PACKET] for one in (at, *more))))
    return b""


def _program(data: bytes, runs: list[Run], starts: list[int]) -> _Tracks | None:
    """Return the first program's first video track and its audio tracks, None if there is no whole PAT and PMT."""
    pmt_pid = None
    tables = 0
    for at in starts:
        pid = pid_at(data, at)
        if pid not in (0, pmt_pid):
            continue
        tables += 1
        if tables > _MOST_TABLES:
            break
        if pid == pmt_pid:
            section = section_at(data, runs, at, 0x02)
            if section:
                return _tracks(section)
        elif pmt_pid is None:
            body = section_at(data, runs, at, 0x00)
            programs = [body[i : i + 4] for i in range(0, len(body) - 3, 4)]
            pmt_pid = next((int.from_bytes(entry[2:]) & 0x1FFF for entry in programs if entry[:2] != b"\0\0"), None)
    return None


def _tracks_of(data: bytes, runs: list[Run], starts: list[int], init: bytes | None) -> _Tracks:
    tracks = _program(data, runs, starts)
    if tracks is None and init and looks_like_ts(init):
        init_runs = runs_in(init)
        tracks = _program(init, init_runs, starts_in(init, init_runs))
    if tracks is None:
        raise MediaError("a transport stream without program tables")
    return tracks


def _tables_before(data: bytes, runs: list[Run], starts: list[int], index: int, pid: int) -> int | None:
    """Return where the PAT and PMT begin that the PES at starts[index] comes after, with nothing of its track in between."""
    at, pmt = starts[index], False
    for before in reversed(starts[max(0, index - _MOST_STARTS_BETWEEN) : index]):
        other = pid_at(data, before)
        if other == pid or at - before > _MOST_BYTES_BETWEEN:
            break
        if other == 0 and pmt and section_at(data, runs, before, 0x00):
            between = range(before, at, PACKET)
            return None if any(pid_at(data, packet) == pid and data[packet + 3] & 0x10 for packet in between) else before
        pmt = pmt or bool(section_at(data, runs, before, 0x02))
    return None


def _access(data: bytes, runs: list[Run], at: int, codec: str, head: bytes) -> h264.Access:
    if codec not in _VIDEO.values():
        return h264.Access.IDR  # any frame of sound can be the first
    access = h264.access(codec, _elementary(head)) or h264.access(codec, _elementary(unit_at(data, runs, at, _LONGEST_PICTURE_HEAD)))
    if access in (None, h264.Access.OTHER):
        # Recovery points are told by SEI, which nobody here reads, and by random_access_indicator (2.4.3.5).
        access = h264.Access.RANDOM if _is_random_access(data, at) else h264.Access.OTHER
    return access


@remembered(256)
def _tracks(section: bytes) -> _Tracks:
    """Return what a PMT names; a stream says the same in each of its segments."""
    video: _Track | None = None
    sounds: list[_Track] = []
    at = 4 + (int.from_bytes(section[2:4]) & 0xFFF)
    while at + 5 <= len(section):
        kind, pid = section[at], int.from_bytes(section[at + 1 : at + 3]) & 0x1FFF
        end = at + 5 + (int.from_bytes(section[at + 3 : at + 5]) & 0xFFF)
        if kind in _VIDEO:
            video = video or _Track(pid, _VIDEO[kind])
        else:
            codec = _AUDIO.get(kind) or (_private_audio(section[at + 5 : end]) if kind == 0x06 else None)
            if codec:
                sounds.append(_Track(pid, codec))
        at = end
    return video, tuple(sounds)


def _private_audio(descriptors: bytes) -> str | None:
    at = 0
    while at + 2 <= len(descriptors):
        if descriptors[at] in _AUDIO_DESCRIPTORS:
            return _AUDIO_DESCRIPTORS[descriptors[at]]
        if descriptors[at] == _REGISTRATION and descriptors[at + 2 : at + 6] == b"Opus":
            return _OPUS
        at += 2 + descriptors[at + 1]
    return None


def _pes_pts(payload: bytes) -> int | None:
    """Return the PTS of the PES header (2.4.3.6) that begins *payload*, None if it has none."""
    if len(payload) < 14 or payload[:3] != b"\0\0\1" or not payload[7] & 0x80 or payload[6] & 0xC0 != 0x80:
        return None
    return _stamp(payload, 9)


def _pts_at(data: bytes, at: int) -> int | None:
    """Return `_pes_pts` of the packet at *at*, without taking it apart: dozens of them are asked for of each segment."""
    control = data[at + 3]
    pes = at + (5 + data[at + 4] if control & 0x20 else 4)
    if control & 0xD0 != 0x10 or data[at + 1] & 0x80 or at + PACKET < pes + 14 or data[pes : pes + 3] != b"\0\0\1":
        return None
    return _stamp(data, pes + 9) if data[pes + 7] & 0x80 and data[pes + 6] & 0xC0 == 0x80 else None


def _stamp(pes: bytes, at: int) -> int:
    return (pes[at] >> 1 & 7) << 30 | pes[at + 1] << 22 | (pes[at + 2] >> 1) << 15 | pes[at + 3] << 7 | pes[at + 4] >> 1


def _elementary(pes: bytes) -> bytes:
    return pes[9 + pes[8] :] if len(pes) > 9 and pes[:3] == b"\0\0\1" else b""


def _video(data: bytes, runs: list[Run], starts: list[int], track: _Track) -> VideoInfo | None:
    units = [at for at in starts if pid_at(data, at) == track.pid]
    stamps = [_pts_at(data, at) for at in units]
    pts = in_presentation_order([value for value in stamps if value is not None])
    if not pts:
        return None
    head = h264.read_head(track.codec, _elementary(unit_at(data, runs, units[0], _HEAD_BYTES)))
    picture = head.picture
    # A segment that is cut between two key pictures has its sequence header wherever the next of them is.
    for at in (*units[1:_NEXT_HEADS], *[at for at in units[_NEXT_HEADS:] if _is_random_access(data, at)][:_NEXT_HEADS]):
        if picture is not None:
            break
        picture = h264.read_head(track.codec, _elementary(unit_at(data, runs, at, 1024))).picture
    picture = picture or h264.Picture(None, 0, 0, None)
    return VideoInfo(
        codecs=picture.codecs,
        width=picture.width,
        height=picture.height,
        frame_count=len(units),
        first_pts_90k=pts[0],
        last_pts_90k=pts[-1],
        frame_rate=frame_rate_of(pts, _from_first_to_last(stamps)),
        starts_with_idr=bool(head.idr),
        pts=pts,
        sar=picture.sar,
        interlaced=picture.interlaced,
        random_access=bool(head.idr) or any(_enters(data, runs, at, track.codec) for at in units[:_MOST_ENTERED]),
    )


def _enters(data: bytes, runs: list[Run], at: int, codec: str) -> bool:
    return _access(data, runs, at, codec, payload_at(data, at)) in (h264.Access.IDR, h264.Access.RANDOM)


def _is_random_access(data: bytes, at: int) -> bool:
    """Return whether the packet at *at* has its random_access_indicator set (2.4.3.5)."""
    return bool(data[at + 3] & 0x20 and data[at + 4] and data[at + 5] & 0x40)


def _from_first_to_last(stamps: list[int | None]) -> int:
    """Return how many pictures there are from the first that has a time stamp to the last: not each one needs to (2.7.4)."""
    stamped = [index for index, value in enumerate(stamps) if value is not None]
    return stamped[-1] - stamped[0] + 1


def _audio(data: bytes, runs: list[Run], starts: list[int], track: _Track) -> AudioInfo | None:
    for at in starts:
        if pid_at(data, at) == track.pid:
            pts = _pes_pts(payload_at(data, at))
            if pts is not None:
                frame = _elementary(unit_at(data, runs, at, 1024))
                codecs = _audio_codecs(track.codec, frame)
                last_pts, cut = _last_audio(data, runs, starts, track)
                return AudioInfo(
                    codecs,
                    pts,
                    straddles=_straddles(data, runs, track.pid, at),
                    id=track.pid,
                    coding={_ADTS: "aac", _MPEG_AUDIO: _CODING.get(codecs or "", "")}.get(track.codec, track.codec),
                    hertz=hertz(frame),
                    frame_samples=samples(frame),
                    last_pts_90k=last_pts,
                    cut=cut,
                )
    return None


def _last_audio(data: bytes, runs: list[Run], starts: list[int], audio: _Track) -> tuple[int | None, bool]:
    """Return the PTS of the last frame that begins in *data*, None if that can't be told, and whether the end of that frame is not there.

    Of codecs whose frames don't tell their length the PTS is that of the last PES, as if it were whole.
    """
    own = [at for at in starts if pid_at(data, at) == audio.pid]
    last = next((index for index in reversed(range(len(own))) if _pes_pts(payload_at(data, own[index])) is not None), None)
    if last is None:
        return None, False
    pts = _pes_pts(payload_at(data, own[last])) or 0
    if audio.codec not in _TELL_LENGTHS:
        return pts, False
    found = bytearray()
    room = _MOST_PES_BYTES
    for at in own[last:]:  # a PES may go on without a time stamp (2.7.4)
        unit = unit_at(data, runs, at, room)
        found += _elementary(unit)
        room -= len(unit)
        if room <= 0:
            break
    since_90k, cut = last_frame(bytes(found))
    return (pts + round(since_90k)) % PTS_MODULUS, cut and room > 0


def _straddles(data: bytes, runs: list[Run], pid: int, first_start: int) -> bool:
    """Return whether packets of *pid* with payload come before its first PES start: their PES began a segment earlier."""
    low, high = pid & 0xFF, pid >> 8
    for run in runs:
        for at in range(run.begin, min(run.begin + run.count * PACKET, first_start), PACKET):
            if data[at + 2] == low and data[at + 1] & 0x1F == high and data[at + 3] & 0x10:
                return True
    return False


def _audio_codecs(codec: str, frame: bytes) -> str | None:
    if codec == _ADTS:
        return adts_codecs(frame)
    if codec == _MPEG_AUDIO:
        known = mpeg_audio(frame)
        return known[0] if known else None
    return _CODECS.get(codec, codec)
