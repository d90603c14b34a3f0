"""The ladder, made by real ffmpegs of two generations and checked against the source with ffmpeg and ffprobe themselves."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import imageio_ffmpeg
import pytest

from hlsrelay.encoder import Encoded, LocalEncoder
from hlsrelay.errors import EncodeError
from hlsrelay.ladder import parse_ladder
from hlsrelay.media.probe import PTS_MODULUS, MediaInfo, probe
from hlsrelay.processes import Children
from hlsrelay.recipe import EncodeJob, needs_previous
from tests.needs import by_day, in_turn, needs
from tests.waiting import comes_true

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe")]

LADDER = parse_ladder("small:180:300,tiny:120:150,audio")
WRAP_S = PTS_MODULUS / 90_000
VIDEO = ["-c:v", "libx264", "-preset", "ultrafast", "-tune", "fastdecode", "-bf", "2", "-g", "30", "-pix_fmt", "yuv420p"]

# Key pictures that are no IDR, with pictures before them that need the segment before; parameter sets as a source has them in each segment.
OPEN_GOP = ("-x264-params", "open-gop=1:scenecut=0:b-adapt=0", "-bsf:v", "dump_extra=freq=keyframe")


@dataclass(frozen=True)
class Kind:
    """A kind of source: what ffmpeg is told to make it."""

    rate: str = "30"
    audio_hertz: int | None = 48_000
    audio: str = "aac"
    video: bool = True
    size: str = "320x240"
    offset_s: float = 0.0
    extra: tuple[str, ...] = ()


KINDS = {
    "30 fps with B-frames": Kind(),
    "29.97 fps with 44.1 kHz": Kind(rate="30000/1001", audio_hertz=44_100),
    "over the 33-bit wrap": Kind(offset_s=WRAP_S - 3.3),
    "open GOPs": Kind(extra=OPEN_GOP),
    "open GOPs over the 33-bit wrap": Kind(extra=OPEN_GOP, offset_s=WRAP_S - 3.3),
    "no audio": Kind(audio_hertz=None),
    "no video": Kind(video=False),
    "pixels that are not square": Kind(size="352x288", extra=("-vf", "setsar=16/11")),
}


def ffmpegs() -> dict[str, Path]:
    found = {"on PATH": Path(shutil.which("ffmpeg") or "ffmpeg")}
    with suppress(RuntimeError):  # no binary for this machine
        found["imageio's"] = Path(imageio_ffmpeg.get_ffmpeg_exe())
    return found


CHECKING = str(list(ffmpegs().values())[-1])
"""The ffmpeg that packets are read with: the one that is linked statically starts ten times faster."""


@pytest.fixture(params=by_day(list(ffmpegs()), 2))
def ffmpeg(request: pytest.FixtureRequest) -> Path:
    return ffmpegs()[request.param]


def output(*argv: str) -> str:
    """Return what *argv* writes to stdout and stderr; it must end with 0."""
    out, into = os.pipe()
    pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, into, 1), (os.POSIX_SPAWN_DUP2, into, 2)])
    os.close(into)
    with os.fdopen(out, errors="replace") as pipe:
        text = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, text
    return text


def make(folder: Path, kind: Kind) -> list[Path]:
    """Make three segments of two seconds as an HLS source would serve them."""
    argv = ["ffmpeg", "-v", "error", "-nostdin", "-y"]
    if kind.video:
        argv += ["-f", "lavfi", "-i", f"testsrc2=size={kind.size}:rate={kind.rate}:duration=6"]
    if kind.audio_hertz:
        argv += ["-f", "lavfi", "-i", f"sine=frequency=440:sample_rate={kind.audio_hertz}:duration=6"]
    argv += [
        *kind.extra,
        *(VIDEO if kind.video else []),
        *(["-c:a", kind.audio] if kind.audio_hertz else []),
        "-output_ts_offset",
        f"{kind.offset_s:.3f}",
    ]
    output(*argv, "-f", "hls", "-hls_time", "2", "-hls_list_size", "0", str(folder / "source.m3u8"))
    segments = sorted(folder.glob("source*.ts"))
    assert len(segments) >= 3
    return segments


def job_for(source: Path, number: int, rungs: str | None = None, previous: Path | None = None, info: MediaInfo | None = None) -> EncodeJob:
    ladder = parse_ladder(rungs) if rungs else LADDER
    outputs = {rung.name: source.parent / f"{rung.name}-{number}.ts" for rung in ladder}
    return EncodeJob("news", number, source, info or read(source), 2.0, outputs, ladder, previous)


def read(path: Path) -> MediaInfo:
    return probe(path.read_bytes())


def encode(ffmpeg: Path, *jobs: EncodeJob) -> list[Encoded]:
    async def main() -> list[Encoded]:
        children = Children()
        try:
            encoder = LocalEncoder(ffmpeg, children, slots=2)
            return list(await asyncio.gather(*(encoder.encode(job) for job in jobs)))
        finally:
            await children.aclose()

    return asyncio.run(main())


def video_pts(path: Path) -> frozenset[int]:
    """Return when the pictures of *path* are shown, as ffprobe sees it."""
    return _video_pts(path, path.stat().st_mtime_ns)  # a folder's name is used again once its test has passed


@cache
def _video_pts(path: Path, _: int) -> frozenset[int]:
    argv = ["ffprobe", "-v", "error", "-f", "mpegts", "-select_streams", "v:0", "-show_entries", "packet=pts", "-of", "json"]
    return frozenset(int(packet["pts"]) % PTS_MODULUS for packet in json.loads(output(*argv, str(path)))["packets"])


def audio_md5(path: Path) -> str:
    """Return the digest of all packets of the first audio track of *path*."""
    return _audio_md5(path, path.stat().st_mtime_ns)


@cache
def _audio_md5(path: Path, _: int) -> str:
    return output(CHECKING, "-v", "error", "-nostdin", "-i", str(path), "-map", "0:a:0", "-c", "copy", "-f", "md5", "-")


def words_of_a_player(ffmpeg: Path, info: MediaInfo, files: list[Path]) -> str:
    """Return what ffmpeg has to say about playing *files* one after the other; nothing is best."""
    playlist = files[0].parent / "check.m3u8"
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:3"]
    for file in files:
        lines += ["#EXTINF:2.0,", file.name]
    playlist.write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
    argv = [
        str(ffmpeg),
        "-hide_banner",
        "-nostdin",
        "-nostats",
        "-v",
        "warning",
        "-copyts",
        "-allowed_extensions",
        "ALL",
        "-i",
        str(playlist),
    ]
    if info.video:
        argv += ["-map", "0:v:0", "-fps_mode", "passthrough", "-enc_time_base:v", "1:90000"]
    if info.audio:
        argv += ["-map", "0:a:0"]
    return output(*argv, "-f", "null", "-")


@pytest.mark.parametrize(("kind", "program"), in_turn(by_day(list(KINDS), 2, 1), ffmpegs()))
def test_every_rung_shows_its_pictures_and_plays_its_sound_exactly_when_the_source_does(kind: str, program: str, tmp_path: Path) -> None:
    ffmpeg = ffmpegs()[program]
    segments = make(tmp_path, KINDS[kind])
    if kind == "over the 33-bit wrap":
        assert any(info.video and info.video.first_pts_90k > info.video.last_pts_90k for info in map(read, segments))
    jobs = [job_for(segment, number, previous=segments[number - 1] if number else None) for number, segment in enumerate(segments)]
    if kind.startswith("open"):
        assert [needs_previous(job.info) for job in jobs] == [False, True, True]
    wanted = {rung.name for rung in LADDER if (KINDS[kind].video if rung.height else KINDS[kind].audio_hertz)}
    results = encode(ffmpeg, *jobs)
    for job, result in zip(jobs, results, strict=True):
        assert set(result.outputs) == wanted
        assert set(result.failed) == {rung.name for rung in LADDER} - wanted
        for name in result.failed:
            assert not job.outputs[name].exists()
        for name, info in result.outputs.items():
            made = job.outputs[name]
            assert made.stat().st_size % 188 == 0
            if info.video:
                assert video_pts(made) == video_pts(job.source)
                assert info.video.starts_with_idr
            if info.audio:
                assert audio_md5(made) == audio_md5(job.source)
    for name in wanted - {"audio"}:
        assert words_of_a_player(ffmpeg, jobs[0].info, [job.outputs[name] for job in jobs]) == ""
    if KINDS[kind].video:
        switching = [job.outputs["small" if number % 2 else "tiny"] for number, job in enumerate(jobs)]
        assert words_of_a_player(ffmpeg, jobs[0].info, switching) == ""
        sizes = {
            (info.video.width, info.video.height, info.video.codecs)
            for r in results
            for n, info in r.outputs.items()
            if n == "small" and info.video
        }
        assert len(sizes) == 1  # one init for the whole stream
    if kind == "pixels that are not square":
        assert {width for width, _, _ in sizes} == {320}  # 352 x 288 shown as 16:9


@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_source_need_not_say_of_every_picture_when_it_shows(b_frames: int, ffmpeg: Path, tmp_path: Path) -> None:
    segment = make(tmp_path, Kind(audio_hertz=None, extra=("-x264-params", f"bframes={b_frames}")))[1]
    told = read(segment).video
    body, begun = bytearray(segment.read_bytes()), 0
    for at in range(0, len(body), 188):
        if body[at + 1 : at + 3] == b"\x41\x00":
            pes = at + 4 + (1 + body[at + 4] if body[at + 3] & 0x20 else 0)
            begun += 1
            if begun % 2 == 0:
                body[pes + 7] &= 0x3F  # neither PTS nor DTS ...
                body[pes + 9 : pes + 9 + body[pes + 8]] = b"\xff" * body[pes + 8]  # ... but stuffing
    segment.write_bytes(body)
    job = job_for(segment, 1, "tiny:120:150")
    assert told
    assert job.info.video
    assert len(job.info.video.pts) == len(told.pts) / 2
    assert job.info.video.frame_rate == pytest.approx(30, rel=0.04)
    [result] = encode(ffmpeg, job)
    made = result.outputs["tiny"].video
    assert made
    assert made.pts == told.pts


def audio_packets(path: Path) -> list[tuple[int, str]]:
    """Return PTS and digest of every packet of the first audio track."""
    argv = ["ffprobe", "-v", "error", "-f", "mpegts", "-select_streams", "a:0", "-show_data_hash", "md5"]
    argv += ["-show_entries", "packet=pts,data_hash", "-show_packets", "-of", "json"]
    return [(int(packet["pts"]) % PTS_MODULUS, packet["data_hash"]) for packet in json.loads(output(*argv, str(path)))["packets"]]


@pytest.mark.parametrize(
    "kind",
    [Kind(), Kind(offset_s=WRAP_S - 5.4 + 0.01), Kind(audio="ac3"), Kind(audio="libmp3lame", audio_hertz=24_000)],
    ids=["AAC", "AAC over the 33-bit wrap", "AC-3", "MP3"],
)
def test_sound_that_is_cut_inside_a_pes_is_neither_lost_nor_played_twice(kind: Kind, ffmpeg: Path, tmp_path: Path) -> None:
    before, after = make(tmp_path, kind)[:2]
    # Cut as an encoder does that looks at pictures only: the end of an audio PES comes in the next segment, behind its tables.
    packets = [before.read_bytes()[at : at + 188] for at in range(0, before.stat().st_size, 188)]
    sound = [index for index, packet in enumerate(packets) if packet[1] & 0x1F == 1 and packet[2] == 1]
    late = sound[sound.index([index for index in sound if packets[index][1] & 0x40][-2]) + 7 :]
    moved = b"".join(packets[index] for index in late)
    before.write_bytes(b"".join(packet for index, packet in enumerate(packets) if index not in late))
    after.write_bytes(after.read_bytes()[: 3 * 188] + moved + after.read_bytes()[3 * 188 :])
    whole = tmp_path / "whole.ts"
    whole.write_bytes(before.read_bytes() + after.read_bytes())
    jobs = [job_for(before, 0, "tiny:120:150,audio"), job_for(after, 1, "tiny:120:150,audio", previous=before)]
    assert jobs[0].info.audio
    assert jobs[0].info.audio.cut
    assert needs_previous(jobs[1].info)
    encode(ffmpeg, *jobs)
    for name in ("tiny", "audio"):
        assert audio_packets(jobs[0].outputs[name]) + audio_packets(jobs[1].outputs[name]) == audio_packets(whole)
    assert words_of_a_player(ffmpeg, jobs[0].info, [job.outputs["tiny"] for job in jobs]) == ""


def damaged(kind: str, whole: bytes) -> bytes:
    match kind:
        case "truncated":
            return whole[: len(whole) // 2]
        case "random":
            return random.Random(7).randbytes(len(whole))
        case "a playlist":
            return b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
        case "text behind one good packet":
            return whole[:188] + b"ffconcat version 1.0\nfile /etc/hostname\n" * 50
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["truncated", "random", "a playlist", "text behind one good packet"])
def test_a_damaged_segment_fails_and_leaves_neither_file_nor_process(kind: str, ffmpeg: Path, tmp_path: Path) -> None:
    segment = make(tmp_path, KINDS["30 fps with B-frames"])[1]
    whole = segment.read_bytes()
    info = probe(whole)
    segment.write_bytes(damaged(kind, whole))
    job = job_for(segment, 1, "small:180:300,tiny:120:150", info=info)
    with pytest.raises(EncodeError) as caught:
        encode(ffmpeg, job)
    assert caught.value.argv[0] == str(ffmpeg)
    assert caught.value.child_exit_code is not None
    assert not any(path.exists() for path in job.outputs.values())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_segment_without_its_second_half_still_gives_its_sound(ffmpeg: Path, tmp_path: Path) -> None:
    segment = make(tmp_path, KINDS["30 fps with B-frames"])[1]
    whole = segment.read_bytes()
    info = probe(whole)
    segment.write_bytes(whole[: len(whole) // 2 // 188 * 188])
    job = job_for(segment, 1, info=info)
    [result] = encode(ffmpeg, job)
    assert set(result.outputs) == {"audio"}
    assert set(result.failed) == {"small", "tiny"}
    assert "pictures instead of 60" in result.failed["small"]
    assert [name for name, path in job.outputs.items() if path.exists()] == ["audio"]


def test_a_cancelled_job_leaves_neither_file_nor_process(ffmpeg: Path, tmp_path: Path) -> None:
    segment = make(tmp_path, KINDS["30 fps with B-frames"])[0]
    job = job_for(segment, 1)

    async def main() -> None:
        children = Children()
        task = asyncio.create_task(LocalEncoder(ffmpeg, children, slots=1).encode(job))
        await comes_true(children.running, every_s=0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children.running() == ()

    asyncio.run(main())
    assert not any(path.exists() for path in job.outputs.values())
