"""What a rung's video can be coded with: a row for each encoder of ffmpeg, in order of preference. Pure.

Whatever the encoder, a segment is one closed GOP that begins with an IDR, its bitrate is capped over a decoder's buffer, and what goes
into the stream's headers is pinned, because one init section serves all segments. The software encoders' exactness is tested; a hardware
encoder's is checked segment by segment, like everything that was made (recipe.verified).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from hlsrelay.model import Codec

MAXRATE = 1.25
"""Peak over a decoder's buffer, as a multiple of the rung's bitrate."""
BUFSIZE = 1.5
"""Size of that buffer, as seconds of the rung's bitrate."""

_FIRST_BOOST_BELOW = 3_600
"""Macroblocks of a picture, 720p, below which x264's first guess is too coarse (see `first_pictures`)."""
_FIRST_BOOST_PICTURES = 15
"""How long the first picture's size keeps the average too high."""

# ITU-T H.264 table A-1, High profile: level, macroblocks of a frame, macroblocks a second, kbit/s.
_LEVELS = (
    ("3.0", 1_620, 40_500, 12_500),
    ("3.1", 3_600, 108_000, 17_500),
    ("3.2", 5_120, 216_000, 25_000),
    ("4.0", 8_192, 245_760, 25_000),
    ("4.1", 8_192, 245_760, 62_500),
    ("4.2", 8_704, 522_240, 62_500),
    ("5.0", 22_080, 589_824, 168_750),
    ("5.1", 36_864, 983_040, 300_000),
)
_HIGHEST_LEVEL = "5.2"


@dataclass(frozen=True, slots=True)
class Target:
    """What the video is to be: pixels (a *width* of 0 is not known), frames a second, kbit/s; made by so many *threads*."""

    width: int
    height: int
    rate: Fraction
    kbps: int
    threads: int = 2


@dataclass(frozen=True, slots=True)
class VideoEncoder:
    """An encoder by ffmpeg's name for it, and what it is told for a target.

    *device* goes before the inputs, *upload* is what its pictures go through last. *hardware*: that ffmpeg lists it tells nothing about
    this machine, so it has to prove itself.
    """

    name: str
    codec: Codec
    options: Callable[[Target], list[str]]
    upload: str = "format=yuv420p"
    device: tuple[str, ...] = ()
    hardware: bool = False


def level_for(width: int, height: int, rate: Fraction, kbps: int) -> str:
    """Return the lowest H.264 level, from 3.0, that holds such pictures."""
    macroblocks = _macroblocks(width, height)
    for level, per_frame, per_second, most_kbps in _LEVELS:
        if macroblocks <= per_frame and macroblocks * rate <= per_second and kbps * MAXRATE <= most_kbps:
            return level
    return _HIGHEST_LEVEL


def first_pictures(width: int, height: int) -> str:
    """Return x264's `zones` that give the first pictures of such a size their due (measured: docs/ladder.md).

    A job starts x264's rate control anew, with a guess of the quantizer that goes with the square root of the macroblocks over the bitrate.
    That suits 720p; a 360p key picture, though, gets 12 kB where a warm encoder gives it 30 kB, the first second looks 10 VMAF worse, and
    the segment ends 5 % below its bitrate. The boost takes the square root out of the guess; the VBV holds all the same.
    """
    boost = min(3.0, max(1.0, math.sqrt(_FIRST_BOOST_BELOW / _macroblocks(width, height))))
    return f"0,0,b={1.1 * boost:.2f}/1,{_FIRST_BOOST_PICTURES},b={(1 + boost) / 2:.2f}"


def _macroblocks(width: int, height: int) -> int:
    """Return how many a picture has; one of unknown width is taken to be 16:9."""
    return math.ceil((width or height * 16 / 9) / 16) * math.ceil(height / 16)


def _bitrates(target: Target) -> list[str]:
    kbps = target.kbps
    return ["-b:v", f"{kbps}k", "-maxrate", f"{round(kbps * MAXRATE)}k", "-bufsize", f"{round(kbps * BUFSIZE)}k"]


def _one_gop() -> list[str]:
    return ["-g", "9999"]  # the job ends with its segment: an encoder's first picture is an IDR, and no other need be


def _libx264(target: Target) -> list[str]:
    zones = first_pictures(target.width, target.height)
    fps = f"{target.rate.numerator}/{target.rate.denominator}"  # a time base of 1/90000 would write 90,000 fps into the VUI
    return [
        "-preset", "veryfast",
        "-profile:v", "high",
        "-level:v", level_for(target.width, target.height, target.rate, target.kbps),  # pinned, like fps below
        "-threads:v", str(target.threads),
        *_one_gop(),
        "-keyint_min", "9999",  # where the scene changes there is an I picture, not a key frame that other rungs lack
        "-flags", "+cgop",
        *_bitrates(target),
        "-x264-params", f"stitchable=1:force-cfr=1:open-gop=0:fps={fps}:zones={zones}",
    ]  # fmt: skip


def _libx265(target: Target) -> list[str]:
    threads = f"pools={target.threads}:frame-threads={target.threads}"
    fps = f"{target.rate.numerator}/{target.rate.denominator}"
    return [
        "-preset", "veryfast",
        "-tag:v", "hvc1",  # Apple's players want the parameter sets in the init section, and none elsewhere
        "-threads:v", str(target.threads),
        *_one_gop(),
        *_bitrates(target),
        "-x265-params", f"open-gop=0:repeat-headers=0:info=0:log-level=error:{threads}:fps={fps}",
    ]  # fmt: skip


def _libsvtav1(target: Target) -> list[str]:
    # A constant bitrate (rc=2), which it has for pictures in order only: a variable one missed 400 kbit/s by half over four seconds.
    return ["-preset", "9", *_one_gop(), "-b:v", f"{target.kbps}k", "-svtav1-params", f"rc=2:pred-struct=1:scd=0:lp={target.threads}"]


def _libaom(target: Target) -> list[str]:
    return [
        "-usage",
        "realtime",
        "-cpu-used",
        "8",
        "-row-mt",
        "1",
        "-lag-in-frames",
        "0",
        "-threads:v",
        str(target.threads),
        *_one_gop(),
        *_bitrates(target),
    ]


def _hardware(*words: str) -> Callable[[Target], list[str]]:
    return lambda target: [*words, *_one_gop(), *_bitrates(target)]


_VAAPI = ("-vaapi_device", "/dev/dri/renderD128")
_NV12 = "format=nv12"
_HVC1 = ("-tag:v", "hvc1")

ENCODERS: tuple[VideoEncoder, ...] = (
    VideoEncoder("libx264", Codec.H264, _libx264),
    VideoEncoder("h264_nvenc", Codec.H264, _hardware("-preset", "p4", "-rc", "vbr", "-profile:v", "high"), hardware=True),
    VideoEncoder("h264_qsv", Codec.H264, _hardware("-profile:v", "high"), _NV12, hardware=True),
    VideoEncoder("h264_vaapi", Codec.H264, _hardware("-rc_mode", "VBR", "-profile:v", "high"), f"{_NV12},hwupload", _VAAPI, hardware=True),
    VideoEncoder("h264_videotoolbox", Codec.H264, _hardware("-profile:v", "high"), _NV12, hardware=True),
    VideoEncoder("libx265", Codec.HEVC, _libx265),
    VideoEncoder("hevc_nvenc", Codec.HEVC, _hardware("-preset", "p4", "-rc", "vbr", *_HVC1), hardware=True),
    VideoEncoder("hevc_qsv", Codec.HEVC, _hardware(*_HVC1), _NV12, hardware=True),
    VideoEncoder("hevc_vaapi", Codec.HEVC, _hardware("-rc_mode", "VBR", *_HVC1), f"{_NV12},hwupload", _VAAPI, hardware=True),
    VideoEncoder("hevc_videotoolbox", Codec.HEVC, _hardware(*_HVC1), _NV12, hardware=True),
    VideoEncoder("libsvtav1", Codec.AV1, _libsvtav1),
    VideoEncoder("libaom-av1", Codec.AV1, _libaom),
    VideoEncoder("av1_nvenc", Codec.AV1, _hardware("-preset", "p4", "-rc", "vbr"), hardware=True),
    VideoEncoder("av1_qsv", Codec.AV1, _hardware(), _NV12, hardware=True),
    VideoEncoder("av1_vaapi", Codec.AV1, _hardware("-rc_mode", "VBR"), f"{_NV12},hwupload", _VAAPI, hardware=True),
)
BY_NAME: Mapping[str, VideoEncoder] = {encoder.name: encoder for encoder in ENCODERS}
FIRST_CHOICE: Mapping[Codec, VideoEncoder] = {encoder.codec: encoder for encoder in reversed(ENCODERS)}


def candidates(codec: Codec, preferred: tuple[str, ...] = ()) -> list[VideoEncoder]:
    """Return the encoders of *codec*: those that an operator *preferred* first, in his order, then in the table's."""
    wanted = [BY_NAME[name] for name in preferred]
    return [encoder for encoder in dict.fromkeys((*wanted, *ENCODERS)) if encoder.codec is codec]
