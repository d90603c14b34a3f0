"""The audio that rungs can't copy: encoded anew, segment by segment, and yet without a seam.

Laws:
- Each job encodes the end of the previous segment and the whole of its own, and keeps the frames that are its own by `media.grid`: what
  an encoder does in its first frames is never heard, and the frames of all segments follow each other by exactly 1024 samples.
- The encoder is given exactly the samples that the grid says, counted on the source's own clock: where the source has none there is
  silence, where it has too many they are dropped, so picture and sound stay together for ever.
- A plain encode of each segment adds a frame at every boundary; a player that counts samples is then 13 seconds late after an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from hlsrelay.media.adts import adts_frames
from hlsrelay.media.fmp4 import sound_begins_90k
from hlsrelay.media.grid import SAMPLES, Cut, cut_of, first_sample, kept, near
from hlsrelay.media.info import PTS_MODULUS, AudioInfo, MediaError, MediaInfo
from hlsrelay.media.probe import probe
from hlsrelay.recipe import EncodeJob, Sound, audio_kbps, impossible, needs_previous
from hlsrelay.values import replace

LONGEST_SPAN = 2
"""Sound whose time stamps span more than so many durations of its segment is not encoded: it would be hours of silence."""
HOLE_S = 0.010
"""A hole, or an overlap, as long as this is filled with silence, or cut out; less is an encoder's rounding."""
_DECODERS = "h264,hevc,mpeg2video,aac,aac_latm,mp3,mp3float,mp2,mp2float,mp1,mp1float,ac3,eac3,dca,opus,libopus"
_CLOCK_S = Fraction(PTS_MODULUS, 90_000)
_DEMUXER_LOOKS_BACK_90K = 60 * 90_000


def sounds(job: EncodeJob) -> dict[int, Path]:
    """Return where the audio goes that rungs of *job* don't copy, by its bitrate in kbit/s; empty where all copy it."""
    beyond = impossible(job)
    audio = job.info.audio
    rungs = [rung for rung in job.rungs if rung.name not in beyond]
    wanted = sorted({audio_kbps(audio, rung) for rung in rungs} - {0}) if audio else []
    return {kbps: job.outputs[rungs[0].name].with_name(f"sound-{kbps}-{rungs[0].name}-{job.number}.aac") for kbps in wanted}


def sound_cut(job: EncodeJob, before: MediaInfo | None) -> Cut:
    """Return what *job*'s sound is cut to, after a segment of which *before* is known. Raises MediaError."""
    audio = job.info.audio
    if audio is None:
        raise MediaError("the source has no audio")
    known = before.audio if before and "|" not in f"{job.previous}{job.source}" else None  # which is what concat: separates by
    sample = first_sample(audio) if job.first_sample is None else job.first_sample
    return cut_of(audio, known, sample, LONGEST_SPAN * job.duration_s + 2)


def probed_previous(job: EncodeJob) -> MediaInfo | None:
    """Return what the segment before *job*'s is, None where there is none that can be read."""
    try:
        return probe(job.previous.read_bytes(), job.init.read_bytes() if job.init else None) if job.previous else None
    except (MediaError, OSError):
        return None


def sound_command(job: EncodeJob, cut: Cut, files: Mapping[int, Path], ffmpeg: Path) -> list[str]:
    """Return the command that encodes the samples of *cut* into each of *files*, AAC in ADTS; `kept` finds the frames in there."""
    argv = [str(ffmpeg), "-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-y"]
    argv += ["-max_alloc", "400000000", "-filter_complex_threads", "1", "-threads", "1"]
    read = [str(path) for path in (job.init, job.previous if cut.follows else None, job.source) if path]
    argv += ["-codec_whitelist", _DECODERS, "-protocol_whitelist", "file,pipe,concat" if len(read) > 1 else "file,pipe"]
    argv += ["-probesize", "10M", "-analyzeduration", "10M", "-copyts", "-vn"]
    argv += ["-ignore_editlist", "1", "-f", "mp4"] if job.init else ["-f", "mpegts"]
    argv += ["-i", f"concat:{'|'.join(read)}" if len(read) > 1 else f"file:{job.source}"]
    argv += ["-filter_complex", _filters(cut, job.info.audio, len(files))]
    for index, (kbps, path) in enumerate(files.items()):
        argv += ["-map", f"[o{index}]", "-c:a", "aac", "-profile:a", "aac_low", "-b:a", f"{kbps}k", "-f", "adts", f"file:{path}"]
    return argv


def _filters(cut: Cut, audio: AudioInfo | None, outputs: int) -> str:
    """Return the filter graph that gives each output exactly the samples of *cut*, at most two channels of them."""
    begin_s = float(cut.source_begin_s % _CLOCK_S)
    # Seconds since the segment's first frame, whichever way ffmpeg took the 33-bit clock to have gone round ...
    since = f"mod(PTS*TB-{begin_s:.9f}+{float(_CLOCK_S) * 1.5:.9f},{float(_CLOCK_S):.9f})-{float(_CLOCK_S) / 2:.9f}"
    if audio and audio.frame_samples and audio.hertz:  # ... in whole frames, which are exact, where time stamps are rounded
        frame_s = f"({audio.frame_samples}/{audio.hertz})"
        since = f"round(({since})/{frame_s})*{frame_s}"
    names = "".join(f"[o{index}]" for index in range(outputs))
    skipped_s = float(cut.source_begin_s - Fraction(cut.encoded_from * SAMPLES, cut.hertz))
    return (
        f"[0:a:0]asetpts='round(({skipped_s:.9f}+{since})/TB)',"
        # min_comp decides over the first samples only: what comes before 0 is dropped, what is missing is silence.
        f"aresample={cut.hertz}:async=1:min_comp=0.00001:min_hard_comp={HOLE_S}:first_pts=0:rematrix_maxval=1,"
        "aformat=sample_fmts=fltp:channel_layouts=stereo|mono,"
        f"apad=whole_len={cut.samples},atrim=end_sample={cut.samples},asplit={outputs}{names}"
    )


def with_sounds(job: EncodeJob, cut: Cut, files: Mapping[int, Path], before: MediaInfo | None) -> EncodeJob:
    """Return *job* with *files*, which `sound_command` made, cut to what is the segment's own. Raises MediaError, OSError."""
    for path in files.values():
        path.write_bytes(b"".join(kept(adts_frames(path.read_bytes()), cut)))
    begin_90k = cut.begins_90k(cut.begin)
    if job.init:  # whose clock has no 33 bits
        begin_90k = near(begin_90k, sound_begins_90k(job.source.read_bytes(), job.init.read_bytes()))
    else:
        begin_90k = on_ffmpegs_clock(begin_90k, before if before and needs_previous(job.info) else job.info)
    return replace(job, sounds={kbps: Sound(path, begin_90k) for kbps, path in files.items()})


def on_ffmpegs_clock(pts_90k: int, first: MediaInfo) -> int:
    """Return *pts_90k* as ffmpeg counts it while it reads MPEG-TS that begins with *first*.

    Its demuxer lets the clock go on from the first time stamp; in the last minute before 2^33 it counts up to 0 instead. Two inputs of one
    command must agree about that: their packets are put in one order.
    """
    began = min(near(track.first_pts_90k, pts_90k) for track in (first.video, first.audio) if track and track.first_pts_90k is not None)
    began %= PTS_MODULUS
    pts_90k = near(pts_90k, began)
    return pts_90k - PTS_MODULUS if began >= PTS_MODULUS - _DEMUXER_LOOKS_BACK_90K else pts_90k
