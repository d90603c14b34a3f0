"""Audio frames that carry their own header: AAC in ADTS, MPEG audio, AC-3, E-AC-3; and the ID3 tags before packed audio (RFC 8216 3.4)."""

from __future__ import annotations

from hlsrelay.media.info import PTS_MODULUS, MediaError

_TIMESTAMP_OWNER = b"com.apple.streaming.transportStreamTimestamp\0"
_BITRATE_KBPS = {  # ISO/IEC 11172-3 2.4.2.3 and 13818-3: by (MPEG-1?, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES = (44_100, 48_000, 32_000)
_HALVINGS = {3: 0, 2: 1, 0: 2}  # MPEG-1, MPEG-2, MPEG-2.5
_ADTS_HERTZ = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)
_AC3_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)  # ETSI TS 102 366 4.4.1.4
_AC3_BLOCK_SAMPLES = 256
_EAC3_BLOCKS = (1, 2, 3, 6)  # by numblkscod (ETSI TS 102 366 annex E)
_EAC3_DEPENDENT = 1
_HEADER_BYTES = 7  # tell a frame's length and samples, whichever kind it is
_MOST_FRAMES = 2_000  # of a PES: more than half a minute of sound
_MOST_TAGS = 16


def adts_codecs(frame: bytes) -> str | None:
    """Return mp4a.40.N for the ADTS header at the start of *frame*, None if there is none there."""
    if len(frame) < 7 or frame[0] != 0xFF or frame[1] & 0xF6 != 0xF0 or frame[2] >> 2 & 15 > 12:
        return None
    return f"mp4a.40.{(frame[2] >> 6) + 1}"


def adts_length(frame: bytes) -> int:
    """Return the length in bytes of the ADTS frame that begins *frame*."""
    return int.from_bytes(frame[3:6]) >> 5 & 0x1FFF


def adts_frames(data: bytes) -> list[bytes]:
    """Return the ADTS frames that *data* is made of, header and all, up to where something else begins or a frame is cut."""
    frames = []
    at = 0
    while adts_codecs(data[at : at + 7]) and 7 <= (length := adts_length(data[at : at + 7])) <= len(data) - at:
        frames.append(data[at : at + length])
        at += length
    return frames


def hertz(frame: bytes) -> int | None:
    """Return the sample rate that the header of AAC in ADTS, MPEG audio or AC-3 at the start of *frame* tells; None if it tells none."""
    if adts_codecs(frame):
        return _ADTS_HERTZ[frame[2] >> 2 & 15]
    if mpeg_audio(frame):
        return _SAMPLE_RATES[frame[2] >> 2 & 3] >> _HALVINGS[frame[1] >> 3 & 3]
    if ac3_codecs(frame) and frame[4] >> 6 != 3:
        return (48_000, 44_100, 32_000)[frame[4] >> 6]
    return None


def mpeg_audio(frame: bytes) -> tuple[str, int] | None:
    """Return codec string and length in bytes of the MPEG audio frame (mp3, mp2) that begins *frame*, None if there is none."""
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return None
    version, layer, rate, sampling = frame[1] >> 3 & 3, 4 - (frame[1] >> 1 & 3), frame[2] >> 4, frame[2] >> 2 & 3
    if version == 1 or layer == 4 or rate in (0, 15) or sampling == 3:
        return None
    bps = _BITRATE_KBPS[version == 3, layer][rate] * 1000
    hertz = _SAMPLE_RATES[sampling] >> _HALVINGS[version]
    padding = frame[2] >> 1 & 1
    if layer == 1:
        return "mp4a.40.32", (12 * bps // hertz + padding) * 4
    samples_by_8 = 72 if layer == 3 and version != 3 else 144
    return ("mp4a.40.34" if layer == 3 else "mp4a.40.33"), samples_by_8 * bps // hertz + padding


def samples(frame: bytes) -> int | None:
    """Return how many samples the frame of AAC in ADTS, MPEG audio or AC-3 that begins *frame* has; None for what is none of these."""
    if adts_codecs(frame):
        return 1024 * ((frame[6] & 3) + 1)
    if mpeg_audio(frame):
        layer, version = 4 - (frame[1] >> 1 & 3), frame[1] >> 3 & 3
        return {1: 384, 2: 1152, 3: 1152 if version == 3 else 576}[layer]
    return 1536 if ac3_codecs(frame) == "ac-3" else None


def length_and_90k(frame: bytes) -> tuple[int, float] | None:
    """Return the length, in bytes and in ticks of the 90 kHz clock, of the frame of AAC in ADTS, MPEG audio, AC-3 or E-AC-3 at the start.

    A dependent substream of E-AC-3 belongs to the frame before it: it takes no time of its own. None for what is none of these.
    """
    rate = hertz(frame)
    if adts_codecs(frame):
        length, count = adts_length(frame), samples(frame)
    elif known := mpeg_audio(frame):
        length, count = known[1], samples(frame)
    else:
        length, count = _ac3_length_and_samples(frame)
    return (length, count * 90_000 / rate) if rate and count is not None and length >= _HEADER_BYTES else None


def last_frame(frames: bytes) -> tuple[float, bool]:
    """Return how much later than the first one the last of *frames* begins, in ticks of the 90 kHz clock, and whether its end is not there.

    They are counted up to where something else begins. A dependent substream is part of the frame that it belongs to.
    """
    at, begins_90k, next_90k = 0, 0.0, 0.0
    for _ in range(_MOST_FRAMES):
        known = length_and_90k(frames[at : at + _HEADER_BYTES])
        if known is None:
            break
        length, ticks = known
        if ticks:
            begins_90k, next_90k = next_90k, next_90k + ticks
        at += length
    if at > len(frames):
        return begins_90k, True
    if 0 < len(frames) - at < _HEADER_BYTES or not frames:  # of the next one not even the header is there
        return next_90k, True
    return begins_90k, False


def _ac3_length_and_samples(frame: bytes) -> tuple[int, int]:
    codecs = ac3_codecs(frame)
    if codecs == "ac-3":
        kbps = _AC3_KBPS[(frame[4] & 63) >> 1]
        # In words of 16 bits; at 44.1 kHz every other frame is one longer, to come to the bitrate on average.
        words = (2 * kbps, kbps * 320 // 147 + (frame[4] & 1), 3 * kbps)[frame[4] >> 6]
        return 2 * words, 6 * _AC3_BLOCK_SAMPLES
    if codecs == "ec-3":
        words = (int.from_bytes(frame[2:4]) & 0x7FF) + 1
        blocks = 0 if frame[2] >> 6 == _EAC3_DEPENDENT else _EAC3_BLOCKS[frame[4] >> 4 & 3]
        return 2 * words, blocks * _AC3_BLOCK_SAMPLES
    return 0, 0


def ac3_codecs(frame: bytes) -> str | None:
    """Return ac-3 or ec-3 for the frame (ETSI TS 102 366) at the start of *frame*, None if there is none there."""
    if len(frame) < 6 or frame[:2] != b"\x0b\x77":
        return None
    bsid = frame[5] >> 3
    if bsid <= 10:
        return "ac-3" if frame[4] >> 6 != 3 and frame[4] & 63 < 38 else None
    return "ec-3" if bsid <= 16 else None


def skip_id3(data: bytes) -> tuple[int, int | None]:
    """Return where the bytes after the ID3 tags of *data* begin, and the time stamp (90 kHz) that they carry. Raises MediaError."""
    at = 0
    pts = None
    for _ in range(_MOST_TAGS):
        if data[at : at + 3] != b"ID3":
            break
        if len(data) < at + 10:
            raise MediaError("an ID3 tag ends too early")
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        end = at + 10 + size
        owner = data.find(_TIMESTAMP_OWNER, at, end)
        begin = owner + len(_TIMESTAMP_OWNER)
        stamp = data[begin : begin + 8] if owner >= 0 and pts is None else b""
        if len(stamp) == 8:
            pts = int.from_bytes(stamp) % PTS_MODULUS
        at = end
    return at, pts
