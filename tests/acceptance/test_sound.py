"""Audio that is encoded anew, made by real ffmpegs of two generations: counted sample by sample, and laid over the source's."""

from __future__ import annotations

import array
import asyncio
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import imageio_ffmpeg
import pytest

from hlsrelay.encoder import Encoded, LocalEncoder
from hlsrelay.ladder import parse_ladder
from hlsrelay.media.grid import first_sample
from hlsrelay.media.probe import PTS_MODULUS, AudioInfo, probe
from hlsrelay.processes import Children
from hlsrelay.recipe import EncodeJob
from tests.acceptance.media_checks import ffprobe, ran, words_of_a_player, written
from tests.needs import by_day, in_turn, needs

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe")]

WRAP_S = PTS_MODULUS / 90_000
LOUD = 9_830
"""The largest sample of the sources: a tone that rises from 200 Hz, so that no two moments of it look alike."""


@dataclass(frozen=True)
class Kind:
    """A kind of source: what ffmpeg is told to make it."""

    codec: str
    hertz: int = 48_000
    layout: str = "stereo"
    offset_s: float = 0.0
    video: bool = False
    latm: bool = False


KINDS = {
    "AC-3 5.1": (Kind("ac3", layout="5.1"), "ac-3", "audio:128"),
    "LATM": (Kind("aac", latm=True), "latm", "audio"),
    "MP2 beside 29.97 fps over the wrap": (Kind("mp2", video=True, offset_s=WRAP_S - 2.4), "mp2", "small:120:200,tiny:90:100:96"),
}


def ffmpegs() -> dict[str, Path]:
    found = {"on PATH": Path(shutil.which("ffmpeg") or "ffmpeg")}
    with suppress(RuntimeError):  # no binary for this machine
        found["imageio's"] = Path(imageio_ffmpeg.get_ffmpeg_exe())
    return found


@pytest.fixture(params=by_day(list(ffmpegs()), 2))
def ffmpeg(request: pytest.FixtureRequest) -> Path:
    return ffmpegs()[request.param]


def make(folder: Path, kind: Kind, count: int) -> list[Path]:
    """Make *count* segments of half a second as an HLS source would serve them."""
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[kind.layout]
    tone = "|".join(["0.3*sin(2*PI*(200*t+20*t*t))"] * channels)
    argv = ["-f", "lavfi", "-i", f"aevalsrc={tone}:s={kind.hertz}:d={count / 2 + 0.1}:c={kind.layout}"]
    if kind.video:
        argv += ["-f", "lavfi", "-i", f"testsrc2=size=160x120:rate=30000/1001:duration={count / 2 + 0.1}"]
        argv += ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-g", "15", "-pix_fmt", "yuv420p"]
    argv += ["-c:a", kind.codec, "-b:a", "256k", "-output_ts_offset", f"{kind.offset_s:.3f}"]
    if kind.latm:
        argv += ["-segment_format_options", "mpegts_flags=+latm", "-f", "segment", "-segment_time", "0.5", str(folder / "%03d.ts")]
    else:
        argv += ["-f", "hls", "-hls_time", "0.5", "-hls_list_size", "0", "-hls_segment_filename", str(folder / "%03d.ts")]
        argv += [str(folder / "source.m3u8")]
    ran("ffmpeg", "-v", "error", "-nostdin", *argv)
    return sorted(folder.glob("*.ts"))[:count]


def sound_of(segment: Path) -> AudioInfo:
    audio = probe(segment.read_bytes()).audio
    assert audio is not None
    return audio


def jobs_for(segments: list[Path], ladder: str) -> list[EncodeJob]:
    rungs = parse_ladder(ladder)
    infos = [probe(segment.read_bytes()) for segment in segments]
    placed: list[tuple[AudioInfo, int]] = []
    for audio in (info.audio for info in infos):
        assert audio is not None
        placed.append((audio, first_sample(audio, placed[-1] if placed else None)))
    return [
        EncodeJob(
            stream_id="news",
            number=number,
            source=segment,
            info=infos[number],
            duration_s=0.5,
            outputs={rung.name: segment.with_name(f"{rung.name}-{number:03d}.ts") for rung in rungs},
            rungs=rungs,
            previous=segments[number - 1] if number else None,
            first_sample=placed[number][1],
        )
        for number, segment in enumerate(segments)
    ]


def encode(ffmpeg: Path, jobs: Iterable[EncodeJob]) -> None:
    async def main() -> None:
        children = Children()
        try:
            encoder = LocalEncoder(ffmpeg, children, slots=2)
            for encoded in await asyncio.gather(*(encoder.encode(job) for job in jobs)):
                assert encoded.failed == {}
        finally:
            await children.aclose()

    asyncio.run(main())


def joined(files: Iterable[Path], into: Path) -> Path:
    into.write_bytes(b"".join(file.read_bytes() for file in files))
    return into


def audio_pts(path: Path) -> list[int]:
    found = ffprobe(path, "-f", "mpegts", "-select_streams", "a:0", "-show_entries", "packet=pts")
    return [int(packet["pts"]) % PTS_MODULUS for packet in found["packets"]]


def decoded(path: Path) -> array.array[int]:
    """Return the samples of the left channel of at most two, every one that the decoder gives."""
    done = ran(
        "ffmpeg", "-v", "error", "-nostdin", "-copyts", "-f", "mpegts", "-i", str(path), "-map", "0:a:0", "-ac", "2", "-f", "s16le", "-"
    )
    samples = array.array("h")
    samples.frombytes(done.stdout)
    return samples[::2]


def steps(pts: list[int]) -> list[int]:
    return [(after - before) % PTS_MODULUS for before, after in pairwise(pts)]


def signed(ticks: int) -> int:
    return (ticks + PTS_MODULUS // 2) % PTS_MODULUS - PTS_MODULUS // 2


def without_a_seam(segments: list[Path], files: list[Path], hertz: int, within: int = 1024) -> None:
    """Claim that *files*, played one after the other, are of frames of 1024 samples and sound, sample for sample, as *segments* do.

    They may end *within* so many samples of each other: a frame of the source, or its last PES where nobody reads the frames in it.
    """
    source, made = joined(segments, segments[0].with_name("source.all")), joined(files, files[0].with_name("made.all"))
    pts, source_pts = audio_pts(made), audio_pts(source)
    assert all(abs(step - 1024 * 90_000 / hertz) < 1.5 for step in steps(pts))  # whole ticks on either side
    assert signed(pts[-1] - pts[0]) == pytest.approx((len(pts) - 1) * 1024 * 90_000 / hertz, abs=1)
    samples, wanted = decoded(made), decoded(source)
    assert len(samples) == len(pts) * 1024
    assert abs(len(samples) - len(wanted)) <= within
    late = round(signed(source_pts[0] - pts[0]) * hertz / 90_000)
    assert 0 < late < 5 * 1024  # of silence: there is no segment before the first one
    apart = [abs(one - other) for one, other in zip(wanted, samples[late:], strict=False)]
    apart[:4096] = [0] * 4096  # in which decoders, and this silence, begin
    seams = [round(signed((sound_of(file).first_pts_90k or 0) - source_pts[0]) * hertz / 90_000) for file in files[1:]]
    zones = [(max(0, seam - 1100), seam + 1100) for seam in seams]
    at_seams = max(max(apart[begin:end]) for begin, end in zones)
    for begin, end in zones:
        apart[begin:end] = [0] * len(apart[begin:end])
    assert max(apart) < LOUD / 30
    assert at_seams < 1.5 * max(apart) + 10


@pytest.mark.parametrize(("kind", "program"), in_turn(["aac"], list(ffmpegs())[::-1]))
def test_thirty_segments_at_a_bitrate_of_their_own_have_the_samples_of_the_source_and_no_seam(
    kind: str, program: str, tmp_path: Path
) -> None:
    ffmpeg = ffmpegs()[program]
    segments = make(tmp_path, Kind(kind, hertz=44_100, layout="mono", offset_s=WRAP_S - 8), 30)
    jobs = jobs_for(segments, "audio:96")
    assert len(jobs) == 30
    assert signed(audio_pts(segments[0])[0]) < 0 < audio_pts(segments[-1])[0] < PTS_MODULUS // 2
    encode(ffmpeg, jobs)
    without_a_seam(segments, [job.outputs["audio"] for job in jobs], 44_100)
    assert not list(tmp_path.glob("sound-*"))


@pytest.mark.parametrize(("name", "program"), in_turn(KINDS, ffmpegs()))
def test_what_players_do_not_take_sounds_the_same_in_every_rung(name: str, program: str, tmp_path: Path) -> None:
    ffmpeg = ffmpegs()[program]
    kind, coding, ladder = KINDS[name]
    segments = make(tmp_path, kind, 3)
    jobs = jobs_for(segments, ladder)
    assert {job.info.audio.coding for job in jobs if job.info.audio} == {coding}
    encode(ffmpeg, jobs)
    for rung in jobs[0].rungs:
        files = [job.outputs[rung.name] for job in jobs]
        assert all(sound_of(file).codecs == "mp4a.40.2" for file in files)
        without_a_seam(segments, files, kind.hertz, within=4 * 1024 if kind.latm else 1536)
    if kind.video:
        mixed = [job.outputs["small" if job.number % 2 else "tiny"] for job in jobs]
        assert words_of_a_player(written(tmp_path / "mixed.m3u8", [(file, 0.5) for file in mixed]), video=True) == ""


def test_where_the_segment_before_is_lost_time_goes_on(ffmpeg: Path, tmp_path: Path) -> None:
    """As after a restart: what the segment before would have lent is silence."""
    segments = make(tmp_path, Kind("aac"), 3)
    jobs = jobs_for(segments, "audio:96")
    jobs[2] = replace(jobs[2], previous=None)
    encode(ffmpeg, jobs)
    made = joined((job.outputs["audio"] for job in jobs), tmp_path / "made.all")
    assert set(steps(audio_pts(made))) == {1920}


def test_sound_that_the_source_lost_is_silence_and_what_follows_is_where_it_was(ffmpeg: Path, tmp_path: Path) -> None:
    segments = make(tmp_path, Kind("ac3"), 4)
    whole = joined(segments, tmp_path / "whole.all")
    data = segments[2].read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    starts = [index for index, packet in enumerate(packets) if packet[1:3] == b"\x41\x00"]
    segments[2].write_bytes(b"".join(packets[: starts[5]] + packets[starts[7] :]))
    jobs = jobs_for(segments, "audio:96")
    encode(ffmpeg, jobs)
    made = joined((job.outputs["audio"] for job in jobs), tmp_path / "made.all")
    pts, lost = audio_pts(made), audio_pts(segments[2])
    assert set(steps(pts)) == {1920}
    [(hole, resumes)] = [(before + 2880, after) for before, after in pairwise(lost) if after - before > 2880]
    samples, wanted, late = decoded(made), decoded(whole), round((audio_pts(whole)[0] - pts[0]) * 8 / 15)
    apart = [abs(one - other) for one, other in zip(wanted, samples[late:], strict=False)]
    at, until = (round((pts - audio_pts(whole)[0]) * 8 / 15) for pts in (hole, resumes))
    assert max(apart[4096 : at - 2048]) < LOUD / 30
    assert max(map(abs, samples[late + at + 2048 : late + until - 2048])) < 100
    assert max(apart[until + 2048 :]) < LOUD / 30


@pytest.mark.parametrize("codec", ["aac", "ac3"])
def test_sound_whose_pes_goes_over_the_cut_has_no_seam_either(codec: str, ffmpeg: Path, tmp_path: Path) -> None:
    segments = make(tmp_path, Kind(codec), 3)
    whole = joined(segments, tmp_path / "whole.all")
    for before, after in pairwise(segments):
        packets = [before.read_bytes()[at : at + 188] for at in range(0, before.stat().st_size, 188)]
        after.write_bytes(after.read_bytes()[: 3 * 188] + b"".join(packets[-2:]) + after.read_bytes()[3 * 188 :])
        before.write_bytes(b"".join(packets[:-2]))
    jobs = jobs_for(segments, "audio:128")
    assert [job.info.audio.straddles for job in jobs if job.info.audio] == [False, True, True]
    encode(ffmpeg, jobs)
    made = joined((job.outputs["audio"] for job in jobs), tmp_path / "made.all")
    assert set(steps(audio_pts(made))) == {1920}
    late = round((audio_pts(whole)[0] - audio_pts(made)[0]) * 8 / 15)
    apart = [abs(one - other) for one, other in zip(decoded(whole), decoded(made)[late:], strict=False)]
    assert max(apart[4096:]) < LOUD / 30


def test_sound_that_can_not_be_made_costs_the_rungs_that_want_it_only(ffmpeg: Path, tmp_path: Path) -> None:
    [segment] = make(tmp_path, Kind("aac", video=True), 1)
    [job] = jobs_for([segment], "small:120:200,audio:96")
    assert job.info.audio is not None
    late = replace(job.info.audio, last_pts_90k=(job.info.audio.first_pts_90k or 0) + 3_600 * 90_000)

    async def main() -> Encoded:
        children = Children()
        try:
            return await LocalEncoder(ffmpeg, children, slots=1).encode(replace(job, info=replace(job.info, audio=late)))
        finally:
            await children.aclose()

    encoded = asyncio.run(main())
    assert set(encoded.outputs) == {"small"}
    assert encoded.failed == {"audio": "its sound: the time stamps of its sound jump"}
    assert job.outputs["small"].exists()
    assert not job.outputs["audio"].exists()
