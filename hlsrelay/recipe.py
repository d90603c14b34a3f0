"""What ffmpeg is asked for to make a ladder from one segment, and whether what it made counts.

Laws, each the answer to a trap that was reproduced on ffmpeg 5.1 and 9.0:
- A job stands alone: one short-lived ffmpeg decodes one segment once and writes every rung, so nothing can drift and any job can be lost.
- Video of a rung shows at exactly the moments of the source's video; audio is the source's, byte for byte.
- ffmpeg's word is not enough: broken input also ends with exit code 0. A rung counts only after its own time stamps were compared.
- ffmpeg reads local files as what they are to be, TS or fMP4, whatever the bytes pretend: no playlist in disguise makes it open anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from hlsrelay.codecs import FIRST_CHOICE, Target, VideoEncoder, candidates
from hlsrelay.media.info import PTS_MODULUS, AudioInfo, Container, MediaError, MediaInfo, VideoInfo
from hlsrelay.media.probe import probe
from hlsrelay.model import Codec, Rung

_RATES = tuple(Fraction(n) for n in (10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120)) + tuple(
    Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120)
)


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
    """Make *rungs* (none above the source) of the complete file *source*, TS or fMP4, each into its file of *outputs*, to be overwritten.

    *previous* is the segment before, whole; with it also segments can be encoded that don't stand alone (see `needs_previous`), and with
    *earlier*, those before that, also where decoding can't begin in *previous*. *init* is the init section of all, for fMP4. An fMP4 rung's
    output is one whole MP4 (see media.fragment.parted). *target_duration_s* tells how soon it is wanted (see `scheduling`; inf: whenever),
    as does whether it is of those that a stream *begins* with; *threads* how many each decoder and encoder has at most. *first_sample* is
    its audio's, as `media.grid` counts; *sounds*: audio that is not copied, by its kbit/s.
    """

    stream_id: str
    number: int
    source: Path
    info: MediaInfo
    duration_s: float
    outputs: Mapping[str, Path]
    rungs: tuple[Rung, ...]
    previous: Path | None = None
    init: Path | None = None
    target_duration_s: float = math.inf
    begins: bool = False
    threads: int = 2
    first_sample: int | None = None
    sounds: Mapping[int, Sound] = field(default_factory=dict)
    earlier: tuple[Path, ...] = ()


def container_of(rung: Rung, source: Container) -> Container:
    """Return what a rung is packed in: what its source is; HEVC and AV1 always in fMP4, because players take them nowhere else."""
    return source if source is Container.FMP4 or rung.height is None or rung.codec is Codec.H264 else Container.FMP4


def audio_kbps(audio: AudioInfo, rung: Rung) -> int:
    """Return the bitrate at which *rung* has *audio* encoded anew, in kbit/s, 0 where it is copied."""
    return rung.audio_kbps or (0 if audio.coding in COPIED else DEFAULT_AUDIO_KBPS)


def needs_previous(info: MediaInfo) -> bool:
    """Return whether a segment can be decoded whole only after the one before it: it begins inside an open GOP or an audio PES."""
    return (info.video is not None and not info.video.starts_with_idr) or any(audio.straddles for audio in info.sounds)


def command(
    job: EncodeJob,
    ffmpeg: Path,
    before: Before | None = None,
    encoders: Mapping[Codec, VideoEncoder] = FIRST_CHOICE,
    *,
    side_by_side: bool = False,
) -> list[str]:
    """Return the command that does *job*; rungs that can't be made (see `impossible`) are left out.

    *side_by_side*: this ffmpeg runs its encoders so. Then those of smaller rungs have no work to split among threads
    (measured: docs/ladder.md).

    Where the previous segment is read too, its pictures and its sound are dropped again, as *before* tells which; where it does not, up to
    the first PTS of this one.
    """
    beyond = impossible(job, encoders)
    rungs = [rung for rung in job.rungs if rung.name not in beyond]
    before = before or Before()
    video = job.info.video
    scaled = [rung for rung in rungs if rung.height is not None]
    tallest = max((rung.height or 0 for rung in scaled), default=0)
    argv = [str(ffmpeg), "-hide_banner", "-nostdin", "-nostats", "-progress", "pipe:1", "-loglevel", "error", "-y"]
    argv += ["-max_alloc", "400000000", "-filter_complex_threads", "1", "-threads", str(job.threads)]
    argv += dict.fromkeys(word for rung in scaled for word in encoders[rung.codec].device)
    inputs = _inputs(job)
    argv += inputs
    for sound in job.sounds.values():
        argv += ["-itsoffset", f"{sound.begin_90k / 90_000:.6f}", "-f", "aac", "-i", f"file:{sound.path}"]
    if video is not None and scaled:
        argv += ["-filter_complex", _filters(video, scaled, encoders, before if _preroll(job) else None)]
    for rung in rungs:
        if video is not None and rung.height is not None:
            argv += ["-map", f"[o{scaled.index(rung)}]"]
        argv += _audio(job, rung, before, inputs.count("-i"))
        if video is not None and rung.height is not None:
            small = side_by_side and rung.codec is Codec.H264 and 2 * (rung.height or 0) ** 2 < tallest**2
            argv += _video_options(video, rung, encoders[rung.codec], 1 if small else job.threads)
        if container_of(rung, job.info.container) is Container.FMP4:
            argv += [*_FMP4_MUX, *(["-video_track_timescale", str(video.timescale)] if video else []), "-f", "mp4"]
        else:
            argv += [*_TS_MUX, "-f", "mpegts"]
        argv.append(f"file:{job.outputs[rung.name]}")
    return argv


_COPIED = ["-avoid_negative_ts", "disabled"]  # else rungs shift differently near the wrap (12 s!), and sources that begin at 0 by 67 ms
_TS_MUX = [
    *_COPIED,
    "-muxpreload", "0",
    "-muxdelay", "0.7",  # 0 would put every AAC frame in a PES of its own
    "-mpegts_copyts", "1",  # else mpegts adds 1.4 s
    "-pat_period", "1",
    "-sdt_period", "10",
    "-mpegts_flags", "+initial_discontinuity",  # continuity counters start anew in each file: this says so
]  # fmt: skip
_FMP4_MUX = [
    *_COPIED,
    "-use_editlist", "0",  # one would say where this very segment begins, and the init section is all segments'
    "-write_btrt", "0",  # as this would say its bitrate
    "-map_metadata", "-1",
    # One fragment a segment; delay_moov, because what AAC and AC-3 from TS are shows only in their first frames. No offsets below 0:
    # ffmpeg's demuxer shows such pictures late.
    "-movflags", "+empty_moov+delay_moov+default_base_moof+frag_custom+frag_discont+skip_trailer",
]  # fmt: skip


def _inputs(job: EncodeJob) -> list[str]:
    """Return what is read: one forced demuxer, local files. Input 0 has the pictures; the sound is in the last one."""
    preroll = _preroll(job)
    before = (*job.earlier, preroll) if preroll else ()
    reads = ["-max_pixels", "8912896"]  # 4K: an 8K bomb is refused before it is decoded
    reads += ["-codec_whitelist", "h264,hevc,mpeg2video,av1,libdav1d,aac,aac_latm,mp3,mp2,ac3,eac3"]
    # Not enough alone, ffmpeg opened local files through a playlist all the same, so the demuxer is forced too.
    reads += ["-protocol_whitelist", "file,pipe,concat" if preroll or job.init else "file,pipe"]
    reads += ["-probesize", "10M", "-analyzeduration", "10M"]
    if job.init is None:
        return [*reads, "-copyts", "-f", "mpegts", "-i", _concat(*before, job.source) if preroll else f"file:{job.source}"]
    reads += ["-ignore_editlist", "1", "-f", "mp4", "-i"]  # they would move the sound; the rung gets them too (media.edits)
    argv = ["-copyts", *reads, _concat(job.init, *before, job.source)]
    return [*argv, *reads, _concat(job.init, job.source)] if preroll and job.info.sounds else argv


def _concat(*paths: Path) -> str:
    return f"concat:{'|'.join(map(str, paths))}"


def _preroll(job: EncodeJob) -> Path | None:
    """Return the segment to decode first, None if there is no need or none to be had."""
    names = "".join(map(str, (*job.earlier, job.previous, job.source)))
    usable = job.previous is not None and "|" not in names  # which is what concat: separates by
    return job.previous if usable and needs_previous(job.info) else None


@dataclass(frozen=True, slots=True)
class Before:
    """What the segment before has that this one, decoded behind it, must not have again.

    *sounds* is the PTS from which on sound is this one's, by audio track: it has all frames before whole; *pictures* are those shown only
    after this one's first.
    """

    sounds: Mapping[int | None, int] = field(default_factory=dict)
    pictures: tuple[int, ...] = ()


MOST_SHOWN_LATER = 16
"""As many as pictures can be out of order (ITU-T H.264 A.3.1); more, and the time stamps begin anew."""


SLACK_90K = 450
"""5 ms, less than the shortest frame of sound: time stamps inside a PES are reckoned, and rounded."""


def before(job: EncodeJob) -> Before:
    """Look into the segment before, where it is to be read too."""
    previous = _preroll(job)
    if previous is None:
        return Before()
    try:
        ahead = probe(previous.read_bytes(), job.init.read_bytes() if job.init else None)
    except (MediaError, OSError):
        return Before()
    later: list[int] = []
    if ahead.video is not None and job.info.video is not None:
        later = [pts for pts in ahead.video.pts if (pts - job.info.video.first_pts_90k) % PTS_MODULUS < PTS_MODULUS // 2]
    straddling = {audio.id for audio in job.info.sounds if audio.straddles}
    sounds = {
        audio.id: (audio.last_pts_90k + (-SLACK_90K if audio.cut else SLACK_90K)) % PTS_MODULUS
        for audio in ahead.sounds
        if audio.id in straddling and audio.last_pts_90k is not None
    }
    return Before(sounds, tuple(later) if len(later) <= MOST_SHOWN_LATER else ())


def _pts_90k(timescale: int) -> str:
    return "pts" if timescale == 90_000 else f"pts*90000/{timescale}"


def _is_before(start_90k: int, timescale: int = 90_000) -> str:
    """Return the ffmpeg expression, 1 or 0, of whether *pts*, of so many ticks a second, comes before *start_90k*, also across the wrap."""
    slack_90k = "" if timescale == 90_000 else "+45"  # a clock of other ticks is off by a fraction
    return f"gte(mod({_pts_90k(timescale)}{slack_90k}-{start_90k}+{2 * PTS_MODULUS},{PTS_MODULUS}),{PTS_MODULUS // 2})"


def _is_at(pts_90k: int, timescale: int = 90_000, slack_90k: int = 1) -> str:
    return f"lt(mod({_pts_90k(timescale)}+{slack_90k}-{pts_90k}+{2 * PTS_MODULUS},{PTS_MODULUS}),{2 * slack_90k})"


def _audio(job: EncodeJob, rung: Rung, before: Before, sounds_from: int) -> list[str]:
    """Return which audio tracks a rung has, and how; input *sounds_from* is the first that was encoded anew, which is all that it has then.

    All of them, copied: variants present the same content (RFC 8216 6.2.4), so a player that lets viewers choose among tracks finds the
    same ones everywhere, in the same order. Only those that have samples: a PMT may list audio that never comes, and its map fails the job.
    """
    in_fmp4 = container_of(rung, job.info.container) is Container.FMP4
    if job.info.audio and (kbps := audio_kbps(job.info.audio, rung)):
        unpacking = ["-bsf:a:0", "aac_adtstoasc"] if in_fmp4 else []
        return ["-map", f"{sounds_from + list(job.sounds).index(kbps)}:a:0", *unpacking, "-c:a", "copy"]
    argv = []
    separate = _preroll(job) is not None and job.init is not None
    unpacked = job.init is None and in_fmp4
    for index, audio in enumerate(job.info.sounds):
        argv += ["-map", f"{1 if separate else 0}:{'a:0' if audio.id is None else f'i:{audio.id}'}"]
        filters = _audio_filters(audio, before if _preroll(job) is not None and not separate else None)
        if unpacked and (audio.codecs or "").startswith("mp4a.40.") and audio.codecs != "mp4a.40.34":
            filters.append("aac_adtstoasc")  # ffmpeg does that by itself, but not with delay_moov
        argv += [f"-bsf:a:{index}", ",".join(filters)] if filters else []
    return [*argv, "-c:a", "copy"] if argv else []


def _audio_filters(audio: AudioInfo, before: Before | None) -> list[str]:
    """Return the filters that leave what is the segment's own: all frames that end in it, those of *before*, if read, excepted.

    A frame that is cut stays where it is all there is: without it the track would be missing.
    """
    others = []
    if before is not None:
        others.append(_is_before(before.sounds.get(audio.id, ((audio.first_pts_90k or 0) - SLACK_90K) % PTS_MODULUS)))
    alone = before is None and audio.last_pts_90k == audio.first_pts_90k
    if audio.cut and audio.last_pts_90k is not None and not alone:  # by itself no decoder takes it; the next job makes it whole
        others.append(_is_at(audio.last_pts_90k, slack_90k=SLACK_90K))
    return [f"noise=drop='{'+'.join(others)}'"] if others else []


def _filters(video: VideoInfo, rungs: list[Rung], encoders: Mapping[Codec, VideoEncoder], before: Before | None) -> str:
    """Return the filter graph that makes a picture of each rung's size, with square pixels, from the first video track."""
    splits = "".join(f"[s{index}]" for index in range(len(rungs)))
    first = ""
    if before is not None:
        again = [_is_before(video.first_pts_90k, video.timescale), *(_is_at(pts, video.timescale) for pts in before.pictures)]
        first = f"select='not({'+'.join(again)})',"
    if video.interlaced:
        first += "bwdif=mode=send_frame:deint=interlaced,"  # as many pictures as before, and those that are whole stay as they are
    chains = [f"[0:v:0]{first}split={len(rungs)}{splits}"]
    for index, rung in enumerate(rungs):
        width = width_for(video, rung.height or 0) or f"2*trunc({rung.height}*dar/2+0.5)"
        chains.append(f"[s{index}]scale={width}:{rung.height}:flags=bicubic,setsar=1,{encoders[rung.codec].upload}[o{index}]")
    return ";".join(chains)


def _video_options(video: VideoInfo, rung: Rung, encoder: VideoEncoder, threads: int) -> list[str]:
    height = rung.height or 0
    return [
        "-fps_mode", "passthrough",  # each picture once, when the source shows it (-vsync is gone in ffmpeg 9)
        "-enc_time_base:v", f"1:{video.timescale}",  # 1/fps would round the time stamps, while the copied audio stays
        "-c:v", encoder.name,
        *encoder.options(Target(width_for(video, height), height, frame_rate(video), rung.video_kbps, threads)),
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


def impossible(job: EncodeJob, encoders: Mapping[Codec, VideoEncoder] = FIRST_CHOICE) -> dict[str, str]:
    """Return the rungs that can't be made of this source, or with these encoders, with the reason."""
    reason = ""
    if job.info.container not in (Container.TS, Container.FMP4):
        reason = f"the source is {job.info.container}, neither TS nor fMP4"
    elif job.info.container is Container.FMP4 and job.init is None:
        reason = "the source's init section is not to be had"
    elif job.init is not None and "|" in f"{job.init}{job.source}":  # which is what ffmpeg separates files by
        reason = "the data directory has a '|' in its name: set HLSRELAY_DATA to one without"
    if reason:
        return {rung.name: reason for rung in job.rungs}
    reasons = {}
    for rung in job.rungs:
        if rung.height is not None and job.info.video is None:
            reasons[rung.name] = "the source has no video"
        elif rung.height is None and job.info.audio is None:
            reasons[rung.name] = "the source has no audio"
        elif rung.height is not None and rung.codec not in encoders:
            names = " or ".join(encoder.name for encoder in candidates(rung.codec) if not encoder.hardware)
            reasons[rung.name] = f"nothing here encodes {rung.codec}: install an ffmpeg that has {names}"
    return reasons


def verified(job: EncodeJob, rung: Rung) -> MediaInfo:
    """Return what was made for *rung*. Raises MediaError if it does not match the source, OSError if it can't be read."""
    info = probe(job.outputs[rung.name].read_bytes())
    sound = job.sounds.get(audio_kbps(job.info.audio, rung)) if job.info.audio else None
    wanted = 1 if sound else len(job.info.sounds)
    if len(info.sounds) != wanted:
        raise MediaError(f"it has {len(info.sounds)} audio tracks instead of {wanted}")
    if sound and info.audio and ((info.audio.first_pts_90k or 0) - sound.begin_90k + 1) % PTS_MODULUS > 2:
        raise MediaError("its sound begins at another time than it should")
    if rung.height is None:
        return info
    made, source = info.video, job.info.video
    if made is None or source is None:
        raise MediaError("its video is missing")
    if made.frame_count != source.frame_count:
        raise MediaError(f"it has {made.frame_count} pictures instead of {source.frame_count}")
    shown, wanted_90k = ({pts % PTS_MODULUS for pts in video.pts} for video in (made, source))
    # Where not every picture of the source has a time stamp the others show in between, and only those that have one can be compared.
    if not (wanted_90k <= shown if len(source.pts) < source.frame_count else wanted_90k == shown):
        raise MediaError("its pictures show at other times than the source's")
    if not made.starts_with_idr:
        raise MediaError("it does not begin with an IDR")
    return info
