"""What ffmpeg is asked for to make a ladder from one segment, and whether what it made counts.

Laws, each the answer to a trap that was reproduced on ffmpeg 5.1 and 9.0:
- A job stands alone: one short-lived ffmpeg decodes one segment once and writes every rung, so nothing can drift and any job can be lost.
- Video of a rung shows at exactly the moments of the source's video; audio is the source's, byte for byte.
- ffmpeg's word is not enough: broken input also ends with exit code 0. A rung counts only after its own time stamps were compared.
- ffmpeg reads one file as MPEG-TS and nothing else, whatever the bytes pretend to be: no playlist in disguise can make it open anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from hlsrelay.media.info import PTS_MODULUS, AudioInfo, Container, MediaError, MediaInfo, VideoInfo
from hlsrelay.media.probe import probe
from hlsrelay.media.ts import last_audio_pts
from hlsrelay.model import Rung

MAXRATE = 1.25
"""Peak over a decoder's buffer, as a multiple of the rung's bitrate."""
BUFSIZE = 1.5
"""Size of that buffer, as seconds of the rung's bitrate."""

_RATES = tuple(Fraction(n) for n in (10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120)) + tuple(
    Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120)
)
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


COPIED = frozenset(("", "aac", "mp3", "ac-3"))
"""Codings of audio that video rungs copy: some players take them in TS, and none stops at them. '' is what nobody told."""
DEFAULT_AUDIO_KBPS = 128
"""Of audio that can't be copied, where the rung does not say."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A file of AAC in ADTS for rungs that don't copy their audio, and when it begins, as ffmpeg counts the source's time."""

    path: Path
    begin_90k: int


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """Make *rungs* (none above the source) of the complete TS file *source*, each into its file of *outputs*, which it may overwrite.

    *previous* is the segment before, whole; with it also segments can be encoded that don't stand alone (see `needs_previous`).
    *first_sample* is its audio's, as `media.grid` counts; *sounds*: audio that is not copied, by its kbit/s.
    """

    stream_id: str
    number: int
    source: Path
    info: MediaInfo
    duration_s: float
    outputs: Mapping[str, Path]
    rungs: tuple[Rung, ...]
    previous: Path | None = None
    first_sample: int | None = None
    sounds: Mapping[int, Sound] = field(default_factory=dict)


def audio_kbps(audio: AudioInfo, rung: Rung) -> int:
    """Return the bitrate at which *rung* has *audio* encoded anew, in kbit/s, 0 where it is copied."""
    return rung.audio_kbps or (0 if audio.coding in COPIED else DEFAULT_AUDIO_KBPS)


def needs_previous(info: MediaInfo) -> bool:
    """Return whether a segment can be decoded whole only after the one before it: it begins inside an open GOP or an audio PES."""
    return (info.video is not None and not info.video.starts_with_idr) or (info.audio is not None and info.audio.straddles)


def command(job: EncodeJob, ffmpeg: Path, last_audio_before_90k: int | None = None) -> list[str]:
    """Return the command that does *job*; rungs that the source has no media for are left out.

    Where the previous segment is read too, its pictures and its sound up to *last_audio_before_90k* are dropped again; without that
    figure, its sound up to the first PTS of this one.
    """
    beyond = impossible(job)
    rungs = [rung for rung in job.rungs if rung.name not in beyond]
    argv = [str(ffmpeg), "-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-y"]
    argv += ["-max_alloc", "400000000", "-filter_complex_threads", "1", "-threads", "2"]
    argv += ["-max_pixels", "8912896"]  # 4K: an 8K bomb is refused before it is decoded
    argv += ["-codec_whitelist", "h264,hevc,mpeg2video,aac,aac_latm,mp3,mp2,ac3,eac3"]
    preroll = _preroll(job)
    # Not enough alone: ffmpeg opened local files through a playlist all the same ...
    argv += ["-protocol_whitelist", "file,pipe,concat" if preroll else "file,pipe"]
    argv += ["-probesize", "10M", "-analyzeduration", "10M", "-copyts"]
    argv += [
        "-f",
        "mpegts",
        "-i",
        f"concat:{preroll}|{job.source}" if preroll else f"file:{job.source}",
    ]  # ... so the demuxer is forced too
    for sound in job.sounds.values():
        argv += ["-itsoffset", f"{sound.begin_90k / 90_000:.6f}", "-f", "aac", "-i", f"file:{sound.path}"]
    video = job.info.video
    scaled = [rung for rung in rungs if rung.height is not None]
    if video is not None and scaled:
        argv += ["-filter_complex", _filters(video, scaled, preroll=preroll is not None)]
    for rung in rungs:
        if video is not None and rung.height is not None:
            argv += ["-map", f"[o{scaled.index(rung)}]"]
        if job.info.audio is None:  # a map would fail the job: a PMT may list audio that never comes
            pass
        elif kbps := audio_kbps(job.info.audio, rung):
            argv += ["-map", f"{1 + list(job.sounds).index(kbps)}:a:0", "-c:a", "copy"]
        else:
            argv += ["-map", "0:a:0", "-c:a", "copy"]
            if preroll is not None:
                argv += ["-bsf:a", _audio_filter(job.info.audio, last_audio_before_90k)]
        if video is not None and rung.height is not None:
            argv += _video_options(video, rung)
        argv += _MUX
        argv += ["-f", "mpegts", f"file:{job.outputs[rung.name]}"]
    return argv


_MUX = [
    "-avoid_negative_ts", "disabled",  # else rungs shift differently near the wrap (12 s!), and sources that begin at 0 by 67 ms
    "-muxpreload", "0",
    "-muxdelay", "0.7",  # 0 would put every AAC frame in a PES of its own
    "-mpegts_copyts", "1",  # else mpegts adds 1.4 s
    "-pat_period", "1",
    "-sdt_period", "10",
    "-mpegts_flags", "+initial_discontinuity",  # continuity counters start anew in each file: this says so
]  # fmt: skip


def _preroll(job: EncodeJob) -> Path | None:
    """Return the segment to decode first, None if there is no need or none to be had."""
    usable = job.previous is not None and "|" not in f"{job.previous}{job.source}"  # which is what concat: separates by
    return job.previous if usable and needs_previous(job.info) else None


def last_audio_before(job: EncodeJob) -> int | None:
    """Return the PTS of the last sound that the segment before has begun; None where it is not read."""
    previous = _preroll(job)
    if previous is None or job.info.audio is None or not job.info.audio.straddles:
        return None
    try:
        return last_audio_pts(previous.read_bytes())
    except (MediaError, OSError):
        return None


def _before(start_90k: int) -> str:
    """Return the ffmpeg expression, 1 or 0, of whether *pts* comes before *start_90k*, also across the wrap."""
    return f"gte(mod(pts-{start_90k}+{2 * PTS_MODULUS},{PTS_MODULUS}),{PTS_MODULUS // 2})"


def _audio_filter(audio: AudioInfo, last_before_90k: int | None) -> str:
    slack_90k = 450  # 5 ms, less than half the shortest frame: time stamps inside a PES are reckoned, and rounded
    start_90k = last_before_90k + slack_90k if last_before_90k is not None else (audio.first_pts_90k or 0) - slack_90k
    return f"noise=drop='{_before(start_90k % PTS_MODULUS)}'"


def _filters(video: VideoInfo, rungs: list[Rung], *, preroll: bool) -> str:
    """Return the filter graph that makes a picture of each rung's size, with square pixels, from the first video track."""
    splits = "".join(f"[s{index}]" for index in range(len(rungs)))
    select = f"select='not({_before(video.first_pts_90k)})'," if preroll else ""
    chains = [f"[0:v:0]{select}split={len(rungs)}{splits}"]
    for index, rung in enumerate(rungs):
        width = width_for(video, rung.height or 0) or f"2*trunc({rung.height}*dar/2+0.5)"
        chains.append(f"[s{index}]scale={width}:{rung.height}:flags=bicubic,setsar=1,format=yuv420p[o{index}]")
    return ";".join(chains)


def _video_options(video: VideoInfo, rung: Rung) -> list[str]:
    rate = frame_rate(video)
    level = level_for(width_for(video, rung.height or 0), rung.height or 0, rate, rung.video_kbps)
    kbps = rung.video_kbps
    return [
        "-fps_mode", "passthrough",  # each picture once, when the source shows it (-vsync is gone in ffmpeg 9)
        "-enc_time_base:v", "1:90000",  # 1/fps would round the time stamps, while the copied audio stays
        "-c:v", "libx264",
        "-preset", "veryfast",
        "-profile:v", "high",
        "-level:v", level,  # pinned, like fps below: SPS and PPS are then the same in every segment
        "-threads:v", "2",
        "-g", "9999",  # one GOP a segment
        "-flags", "+cgop",
        "-b:v", f"{kbps}k",
        "-maxrate", f"{round(kbps * MAXRATE)}k",
        "-bufsize", f"{round(kbps * BUFSIZE)}k",
        # a time base of 1/90000 would write 90,000 fps into the VUI
        "-x264-params", f"stitchable=1:force-cfr=1:open-gop=0:fps={rate.numerator}/{rate.denominator}",
    ]  # fmt: skip


def width_for(video: VideoInfo, height: int) -> int:
    """Return the even width of square pixels that shows *video* in its own shape at *height*; 0 if that is not known."""
    if not video.height or not video.sar:
        return 0
    return max(2, 2 * round(Fraction(height * video.width * video.sar[0], video.height * video.sar[1]) / 2))


def frame_rate(video: VideoInfo) -> Fraction:
    """Return the usual frame rate nearest to the measured one: it stays the same when one segment is a frame short. 30 if unknown."""
    measured = video.frame_rate
    if not measured or not 1 <= measured <= 1000:
        return Fraction(30)
    usual = min(_RATES, key=lambda rate: abs(rate - measured))
    return usual if abs(usual / measured - 1) < 0.04 else Fraction(max(1, round(measured)))


def level_for(width: int, height: int, rate: Fraction, kbps: int) -> str:
    """Return the lowest H.264 level, from 3.0, that holds such pictures."""
    macroblocks = math.ceil((width or height * 16 / 9) / 16) * math.ceil(height / 16)
    for level, per_frame, per_second, most_kbps in _LEVELS:
        if macroblocks <= per_frame and macroblocks * rate <= per_second and kbps * MAXRATE <= most_kbps:
            return level
    return _HIGHEST_LEVEL


def impossible(job: EncodeJob) -> dict[str, str]:
    """Return the rungs that can't be made of this source, with the reason."""
    if job.info.container is not Container.TS:
        return {rung.name: f"the source is {job.info.container}, not TS" for rung in job.rungs}
    reasons = {}
    for rung in job.rungs:
        if rung.height is not None and job.info.video is None:
            reasons[rung.name] = "the source has no video"
        elif rung.height is None and job.info.audio is None:
            reasons[rung.name] = "the source has no audio"
    return reasons


def verified(job: EncodeJob, rung: Rung) -> MediaInfo:
    """Return what was made for *rung*. Raises MediaError if it does not match the source, OSError if it can't be read."""
    info = probe(job.outputs[rung.name].read_bytes())
    if (info.audio is None) != (job.info.audio is None):
        raise MediaError("its audio is missing")
    sound = job.sounds.get(audio_kbps(job.info.audio, rung)) if job.info.audio else None
    if sound and info.audio and ((info.audio.first_pts_90k or 0) - sound.begin_90k + 1) % PTS_MODULUS > 2:
        raise MediaError("its sound begins at another time than it should")
    if rung.height is None:
        return info
    made, source = info.video, job.info.video
    if made is None or source is None:
        raise MediaError("its video is missing")
    if made.frame_count != source.frame_count:
        raise MediaError(f"it has {made.frame_count} pictures instead of {source.frame_count}")
    if {pts % PTS_MODULUS for pts in made.pts} != {pts % PTS_MODULUS for pts in source.pts}:
        raise MediaError("its pictures show at other times than the source's")
    if not made.starts_with_idr:
        raise MediaError("it does not begin with an IDR")
    return info
