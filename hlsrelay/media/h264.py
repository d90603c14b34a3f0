"""Pictures as their own headers describe them: H.264 (ITU-T H.264), HEVC (ITU-T H.265), and MPEG-2 video (ISO/IEC 13818-2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from hlsrelay.media.bits import Bits
from hlsrelay.media.info import MediaError
from hlsrelay.remembered import remembered
from hlsrelay.values import replace

H264 = "h264"
HEVC = "hevc"
MPEG2 = "mpeg2"

LONGEST_HEADER = 4096
"""Bytes of a parameter set that are looked at: real ones have some 30."""

_START_CODE = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)
_FIRST_SLICES = {
    # Type, and after it the bit that the first slice of a picture begins with: first_mb_in_slice 0, first_slice_segment_in_pic_flag.
    H264: re.compile(rb"\x00\x00\x01([\x01\x02\x05\x21\x22\x25\x41\x42\x45\x61\x62\x65])(.)", re.DOTALL),
    HEVC: re.compile(rb"\x00\x00\x01([\x00-\x3f]).(.)", re.DOTALL),
    MPEG2: re.compile(rb"\x00\x00\x01(\x00).(.)", re.DOTALL),
}
_SEQUENCE_HEADERS = {
    H264: re.compile(rb"\x00\x00\x01[\x07\x27\x47\x67]"),
    HEVC: re.compile(rb"\x00\x00\x01\x42"),
    MPEG2: re.compile(rb"\x00\x00\x01\xb3"),
}
_HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
# Table E-1: sample aspect ratios by aspect_ratio_idc; 255 writes its own.
_SAR = [(1, 1), (1, 1), (12, 11), (10, 11), (16, 11), (40, 33), (24, 11), (20, 11), (32, 11), (80, 33), (18, 11)]
_SAR += [(15, 11), (64, 33), (160, 99), (4, 3), (3, 2), (2, 1)]


@dataclass(frozen=True, slots=True)
class Picture:
    """What a sequence header says: RFC 6381 codec, size as shown, shape of a pixel (None: not known), whether it may be interlaced."""

    codecs: str | None
    width: int
    height: int
    sar: tuple[int, int] | None = (1, 1)
    interlaced: bool = False


@dataclass(frozen=True, slots=True)
class AccessUnitHead:
    """What the beginning of an access unit tells: its sequence header if it carries one; *idr* is None before the first slice."""

    picture: Picture | None
    idr: bool | None


class Access(Enum):
    """What decoding can do where a picture begins."""

    IDR = "begin"
    RANDOM = "begin, and lose the pictures that are shown before it and come after it"
    OTHER = "go on"
    REST = "nothing: these are further slices of a picture"


def access(codec: str, elementary: bytes) -> Access | None:
    """Return what *elementary*, the first bytes of a PES in Annex B form, begins with; None if no slice is among them."""
    slices = _FIRST_SLICES[codec].search(elementary)
    if slices is None:
        return None
    head, flags = slices[1][0], slices[2][0]
    sequence = _SEQUENCE_HEADERS[codec].search(elementary, 0, slices.start()) is not None
    if codec == MPEG2:
        if not sequence or flags >> 3 & 7 != 1:
            return Access.OTHER
        group = elementary.find(b"\0\0\1\xb8", 0, slices.start())
        return Access.IDR if group >= 0 and elementary[group + 7] & 0x40 else Access.RANDOM
    if not flags & 0x80:
        return Access.REST
    kind = head & 0x1F if codec == H264 else head >> 1
    if kind in ((5,) if codec == H264 else (19, 20)):
        return Access.IDR
    return Access.RANDOM if sequence or (codec == HEVC and 16 <= kind <= 23) else Access.OTHER


def read_head(codec: str, elementary: bytes) -> AccessUnitHead:
    """Return what *elementary*, the first bytes of an access unit in Annex B form, tells. Raises MediaError."""
    if codec == MPEG2:
        return _mpeg2_head(elementary)
    return head_of_nals(codec, _annex_b(elementary))


def head_of_nals(codec: str, nals: Iterator[bytes]) -> AccessUnitHead:
    """Return what *nals*, without start codes and lengths, tell up to the first slice."""
    picture = None
    for nal in nals:
        if not nal:
            continue
        if codec == H264:
            kind = nal[0] & 0x1F
            if kind == 7:
                picture = picture or parse_sps(nal)
            elif 1 <= kind <= 5:
                return AccessUnitHead(picture, kind == 5)
        else:
            kind = nal[0] >> 1 & 0x3F
            if kind == 33:
                picture = picture or parse_hevc_sps(nal)
            elif kind < 32:
                return AccessUnitHead(picture, kind in (19, 20))
    return AccessUnitHead(picture, None)


def _annex_b(elementary: bytes) -> Iterator[bytes]:
    # A NAL longer than LONGEST_HEADER is cut: nobody here reads further than its first bytes.
    for match in _START_CODE.finditer(elementary):
        begin = match.start(1)
        end = elementary.find(b"\x00\x00\x01", begin, begin + LONGEST_HEADER)
        yield elementary[begin : end if end >= 0 else begin + LONGEST_HEADER]


@remembered(256)  # a stream says the same in each of its segments
def parse_sps(nal: bytes) -> Picture:
    """Return what the sequence parameter set *nal* (7.3.2.1.1) says. Raises MediaError."""
    if len(nal) < 4:
        raise MediaError("a sequence parameter set ends too early")
    bits = Bits(_unescaped(nal[1:LONGEST_HEADER]))
    profile, constraints, level = bits.read(8), bits.read(8), bits.read(8)
    bits.ue()  # seq_parameter_set_id
    chroma = 1
    separate_planes = False
    if profile in _HIGH_PROFILES:
        chroma = bits.ue()
        if chroma == 3:
            separate_planes = bool(bits.read(1))
        bits.ue()  # bit_depth_luma_minus8
        bits.ue()  # bit_depth_chroma_minus8
        bits.skip(1)  # qpprime_y_zero_transform_bypass_flag
        if bits.read(1):
            for index in range(8 if chroma != 3 else 12):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    bits.ue()  # log2_max_frame_num_minus4
    _skip_picture_order(bits)
    bits.ue()  # max_num_ref_frames
    bits.skip(1)  # gaps_in_frame_num_value_allowed_flag
    width_mbs, height_units = bits.ue() + 1, bits.ue() + 1
    frame_mbs_only = bits.read(1)
    if not frame_mbs_only:
        bits.skip(1)  # mb_adaptive_frame_field_flag
    bits.skip(1)  # direct_8x8_inference_flag
    left = right = top = bottom = 0
    if bits.read(1):
        left, right, top, bottom = bits.ue(), bits.ue(), bits.ue(), bits.ue()
    # 7-19 to 7-22: cropping counts in chroma samples, and in field lines for what may be interlaced.
    gray = chroma == 0 or separate_planes
    unit_x = 2 if chroma in (1, 2) and not gray else 1
    unit_y = (2 if chroma == 1 and not gray else 1) * (2 - frame_mbs_only)
    width = width_mbs * 16 - (left + right) * unit_x
    height = height_units * 16 * (2 - frame_mbs_only) - (top + bottom) * unit_y
    _check_size(width, height)
    return Picture(f"avc1.{profile:02x}{constraints:02x}{level:02x}", width, height, _vui_sar(bits), interlaced=not frame_mbs_only)


@remembered(256)  # a stream says the same in each of its segments
def parse_hevc_sps(nal: bytes) -> Picture:
    """Return what the HEVC sequence parameter set *nal* (H.265 7.3.2.2) says, but for the shape of its pixels. Raises MediaError."""
    bits = Bits(_unescaped(nal[2:LONGEST_HEADER]))
    bits.skip(4)  # sps_video_parameter_set_id
    sub_layers = bits.read(3)
    bits.skip(1)  # sps_temporal_id_nesting_flag
    codecs = hevc_codecs("hvc1", bits)
    present = [(bits.read(1), bits.read(1)) for _ in range(sub_layers)]
    if sub_layers:
        bits.skip(2 * (8 - sub_layers))
    for has_profile, has_level in present:
        bits.skip(88 * has_profile + 8 * has_level)
    bits.ue()  # sps_seq_parameter_set_id
    chroma = bits.ue()
    if chroma == 3:
        bits.skip(1)  # separate_colour_plane_flag
    width, height = bits.ue(), bits.ue()
    if bits.read(1):
        left, right, top, bottom = bits.ue(), bits.ue(), bits.ue(), bits.ue()
        width -= (left + right) * (2 if chroma in (1, 2) else 1)
        height -= (top + bottom) * (2 if chroma == 1 else 1)
    _check_size(width, height)
    return Picture(codecs, width, height, None)


def hevc_codecs(kind: str, bits: Bits) -> str:
    """Read general_profile_space to general_level_idc; return the codec string of ISO/IEC 14496-15 Annex E, such as hvc1.1.6.L93.B0."""
    space, tier, profile = bits.read(2), bits.read(1), bits.read(5)
    compatibility, constraints, level = bits.read(32), bits.read(48).to_bytes(6), bits.read(8)
    mirrored = int(f"{compatibility:032b}"[::-1], 2)
    words = [kind, f"{('', 'A', 'B', 'C')[space]}{profile}", f"{mirrored:X}", f"{'LH'[tier]}{level}"]
    return ".".join(words + [f"{byte:X}" for byte in constraints.rstrip(b"\0")])


def _mpeg2_head(elementary: bytes) -> AccessUnitHead:
    picture = None
    closed = False
    for match in _START_CODE.finditer(elementary):
        kind, at = elementary[match.start(1)], match.end()
        if kind == 0xB3 and at + 4 <= len(elementary):
            width, height = int.from_bytes(elementary[at : at + 3]) >> 12, int.from_bytes(elementary[at + 1 : at + 3]) & 0xFFF
            _check_size(width, height)
            # Table 6-3: the shape of the screen, not of a pixel.
            wide, tall = {2: (4, 3), 3: (16, 9), 4: (221, 100)}.get(elementary[at + 3] >> 4, (width, height))
            picture = Picture(None, width, height, (wide * height, tall * width) if wide * height != tall * width else (1, 1))
        elif kind == 0xB5 and elementary[at : at + 1] and elementary[at] >> 4 == 1 and picture is not None:  # sequence_extension
            picture = replace(picture, interlaced=not (elementary[at + 1 : at + 2] or b"\x08")[0] & 0x08)
        elif kind == 0xB8 and at + 4 <= len(elementary):
            closed = bool(elementary[at + 3] & 0x40)
        elif kind == 0 and at + 2 <= len(elementary):
            intra = elementary[at + 1] >> 3 & 7 == 1
            return AccessUnitHead(picture, intra and closed)
    return AccessUnitHead(picture, None)


def _unescaped(nal: bytes) -> bytes:
    return nal.replace(b"\x00\x00\x03", b"\x00\x00")


def _check_size(width: int, height: int) -> None:
    if not (0 < width <= 16384 and 0 < height <= 16384):
        raise MediaError(f"a picture of {width} x {height} can't be")


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _skip_picture_order(bits: Bits) -> None:
    kind = bits.ue()
    if kind == 0:
        bits.ue()  # log2_max_pic_order_cnt_lsb_minus4
    elif kind == 1:
        bits.skip(1)  # delta_pic_order_always_zero_flag
        bits.se()
        bits.se()
        for _ in range(min(bits.ue(), 256)):
            bits.se()


def _vui_sar(bits: Bits) -> tuple[int, int]:
    if not bits.read(1) or not bits.read(1):
        return (1, 1)
    idc = bits.read(8)
    if idc == 255:
        wide, tall = bits.read(16), bits.read(16)
        return (wide, tall) if wide and tall else (1, 1)
    return _SAR[idc] if idc < len(_SAR) else (1, 1)
