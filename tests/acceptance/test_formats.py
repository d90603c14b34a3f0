"""Exactness of the ladder over kinds of source, containers and codecs: pictures and sound come when the source's do, whatever it is.

Each kind is made small and short, and goes to one of two generations of ffmpeg in turn; pairs of properties, not all of them together.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hlsrelay.ladder import parse_ladder
from hlsrelay.media.fragment import parted, without_negative_offsets
from hlsrelay.media.probe import PTS_MODULUS, Container, probe
from hlsrelay.model import Codec
from hlsrelay.offers import Offers
from hlsrelay.processes import Children
from hlsrelay.recipe import EncodeJob, container_of, needs_previous
from tests.acceptance.media_checks import frame_digests
from tests.acceptance.test_encoder import CHECKING, encode, ffmpegs, output
from tests.needs import by_day, in_turn, needs

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe")]

WRAP_S = PTS_MODULUS / 90_000
DAY_S = 86_400.0
AAC = ("-c:a", "aac", "-b:a", "48k")
B_FRAMES = ("-bf", "2")
OPEN_GOP = ("-bf", "2", "-x264-params", "open-gop=1:scenecut=0:b-adapt=0")
NO_B_FRAMES = ("-bf", "0")
INTERLACED = ("-flags", "+ilme+ildct", "-x264-params", "tff=1")


@dataclass(frozen=True)
class Kind:
    """A kind of source, cut each second, and the ladder that is made of it."""

    rate: str = "25"
    size: str = "160x90"
    video: tuple[str, ...] = B_FRAMES
    audio: tuple[tuple[str, ...], ...] = (AAC,)
    hertz: int = 48_000
    offset_s: float = 10.0
    fmp4: tuple[str, ...] | None = None
    """Words to ffmpeg's MP4 muxer; None: the source is TS."""
    edit_lists: bool = False
    """Made by ffmpeg's HLS muxer as it does by default: edit lists put pictures and sound where they belong."""
    off_grid: bool = False
    """Cut where no key frame is."""
    ladder: str = "small:90:100,tiny:64:60"
    seconds: int = 2


KINDS = {
    "24 fps, AC-3": Kind(rate="24", audio=(("-c:a", "ac3", "-b:a", "96k"),)),
    "25 fps, MP3, audio rung": Kind(audio=(("-c:a", "libmp3lame", "-b:a", "64k"),), ladder="small:90:100,audio"),
    "50 fps off the key-frame grid": Kind(rate="50", video=NO_B_FRAMES, off_grid=True),
    "60 fps without B-frames from time 0": Kind(rate="60", video=NO_B_FRAMES, offset_s=0.0),
    "59.94 fps after 25 hours": Kind(rate="60000/1001", offset_s=90_000.0),
    "two audio tracks": Kind(audio=(AAC, ("-c:a", "ac3", "-b:a", "96k"))),
    "two audio tracks off the key-frame grid": Kind(video=NO_B_FRAMES, audio=(AAC, AAC), off_grid=True, hertz=44_100),
    "interlaced": Kind(video=INTERLACED, size="160x96"),
    "fMP4, 24 fps": Kind(rate="24", fmp4=()),
    "fMP4, 29.97 fps, 44.1 kHz": Kind(rate="30000/1001", hertz=44_100, fmp4=()),
    "fMP4, 60 fps, offsets below 0": Kind(rate="60", fmp4=("negative_cts_offsets",), ladder="small:90:100,audio"),
    "fMP4, open GOPs, offsets below 0": Kind(rate="30", video=OPEN_GOP, fmp4=("negative_cts_offsets",)),
    "fMP4, 30 fps off the key-frame grid, two audio tracks": Kind(rate="30", video=NO_B_FRAMES, audio=(AAC, AAC), off_grid=True, fmp4=()),
    "fMP4, no audio, from time 0": Kind(audio=(), offset_s=0.0, fmp4=()),
    "fMP4, AC-3 over the time of a wrap": Kind(audio=(("-c:a", "ac3", "-b:a", "96k"),), offset_s=WRAP_S - 1.5, fmp4=(), seconds=3),
    "HEVC and H.264 of TS over the wrap": Kind(offset_s=WRAP_S - 1.5, ladder="small:90:100,tiny:64:60:hevc", seconds=3),
    "HEVC of fMP4": Kind(rate="30000/1001", fmp4=(), ladder="small:90:100:hevc,tiny:64:60:hevc"),
    "HEVC and AV1 of TS with AC-3 from time 0": Kind(
        rate="30", audio=(("-c:a", "ac3", "-b:a", "96k"),), offset_s=0.0, ladder="small:90:100:hevc,tiny:64:60:av1"
    ),
    "AV1 of fMP4": Kind(fmp4=(), ladder="small:90:100:av1,tiny:64:60:av1"),
}


@dataclass(frozen=True)
class Source:
    """Segments as a source would serve them, and their init section."""

    segments: list[Path]
    init: Path | None = None


def make(folder: Path, kind: Kind) -> Source:
    argv = [
        "ffmpeg",
        "-v",
        "error",
        "-nostdin",
        "-y",
        "-f",
        "lavfi",
        "-i",
        f"testsrc2=size={kind.size}:rate={kind.rate}:duration={kind.seconds}",
    ]
    for index, _ in enumerate(kind.audio):
        argv += ["-f", "lavfi", "-i", f"sine=frequency={440 * (index + 1)}:sample_rate={kind.hertz}:duration={kind.seconds}"]
    for index in range(len(kind.audio) + 1):
        argv += ["-map", str(index)]
    argv += ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-force_key_frames", "expr:gte(t,n_forced*1)", *kind.video]
    for index, words in enumerate(kind.audio):
        argv += [f"{word}:{index}" if word.startswith("-") else word for word in words]
    argv += ["-output_ts_offset", f"{kind.offset_s:.3f}"]
    if kind.fmp4 is None:
        return Source(_cut_ts(folder, kind, argv))
    if kind.edit_lists:
        how = ["-f", "hls", "-hls_time", "1", "-hls_list_size", "0", "-hls_segment_type", "fmp4", "-hls_fmp4_init_filename", "init.mp4"]
        output(*argv, *how, "-hls_segment_filename", str(folder / "source%d.m4s"), str(folder / "live.m3u8"))
        return Source(sorted(folder.glob("source*.m4s")), folder / "init.mp4")
    flags = "+".join(["", "empty_moov", "default_base_moof", "frag_discont", *kind.fmp4, *([] if kind.off_grid else ["frag_keyframe"])])
    whole = folder / "whole.mp4"
    how = ["-movflags", f"{flags}+delay_moov", "-use_editlist", "0", "-avoid_negative_ts", "disabled"]
    output(*argv, *how, *(["-frag_duration", "1200000"] if kind.off_grid else []), "-f", "mp4", str(whole))
    return _cut_fmp4(folder, whole.read_bytes())


def _cut_ts(folder: Path, kind: Kind, argv: list[str]) -> list[Path]:
    every_s = 1.2 if kind.off_grid else 1.0
    times = ",".join(f"{kind.offset_s + every_s * count - 0.005:.3f}" for count in range(1, kind.seconds))
    how = ["-f", "segment", "-segment_times", times, "-segment_format", "mpegts", "-break_non_keyframes", str(int(kind.off_grid))]
    output(*argv, "-muxdelay", "0", *how, str(folder / "source%d.ts"))
    return sorted(folder.glob("source*.ts"))


def _cut_fmp4(folder: Path, whole: bytes) -> Source:
    boxes: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(whole):
        size = int.from_bytes(whole[at : at + 4])
        boxes.append((whole[at + 4 : at + 8], whole[at : at + size]))
        at += size
    init = folder / "init.mp4"
    segments: list[Path] = []
    init.write_bytes(b"".join(body for kind, body in boxes if kind in (b"ftyp", b"moov")))
    for kind, body in boxes:
        if kind == b"moof":
            segments.append(folder / f"source{len(segments)}.m4s")
        if kind in (b"moof", b"mdat"):
            with segments[-1].open("ab") as file:
                file.write(body)
    return Source(segments, init)


def jobs_for(source: Source, ladder: str, folder: Path) -> list[EncodeJob]:
    rungs = parse_ladder(ladder)
    head = source.init.read_bytes() if source.init else None
    jobs: list[EncodeJob] = []
    for number, path in enumerate(source.segments):
        data = path.read_bytes()
        info = probe(data, head)
        for_encoder = folder / f"for-encoder-{number}"
        for_encoder.write_bytes(without_negative_offsets(data) if head else data)
        outputs = {rung.name: folder / f"{rung.name}-{number}.{container_of(rung, info.container)}" for rung in rungs}
        previous = jobs[-1].source if jobs else None
        jobs.append(EncodeJob("news", number, for_encoder, info, 1.0, outputs, rungs, previous, source.init))
    return jobs


Packets = dict[str, list[list[tuple[float, str]]]]
"""Per kind of track, and track: when each packet is due, in seconds, and the digest of its bytes."""


def packets(path: Path, init: Path | None = None) -> Packets:
    """Return what ffprobe sees in a TS, an MP4, or a media segment behind its init section."""
    if init:
        (path.parent / "probed.mp4").write_bytes(init.read_bytes() + path.read_bytes())
        path = path.parent / "probed.mp4"
    form = ["-f", "mpegts"] if path.read_bytes()[:1] == b"\x47" else ["-f", "mp4", "-ignore_editlist", "1"]
    words = [
        "-show_data_hash",
        "md5",
        "-show_entries",
        "stream=index,codec_type,time_base:packet=stream_index,pts,data_hash",
        "-of",
        "json",
    ]
    told = json.loads(output("ffprobe", "-v", "fatal", *form, *words, str(path)))
    found: Packets = {"video": [], "audio": []}
    for stream in told["streams"]:
        above, below = map(int, stream["time_base"].split("/"))
        own = [packet for packet in told["packets"] if packet["stream_index"] == stream["index"]]
        found[stream["codec_type"]].append([(int(packet["pts"]) * above / below, packet["data_hash"]) for packet in own])
    return found


def digests(track: list[tuple[float, str]]) -> list[str]:
    return [digest.removeprefix("MD5:") for _, digest in track]


def without_headers(path: Path, index: int) -> list[str]:
    """Return the digests of an audio track's packets as MP4 has them: AAC without ADTS headers, which its init section makes up for."""
    form = ["-f", "mpegts", "-i", str(path), "-map", f"0:a:{index}", "-c", "copy"]
    aac = "aac" in output("ffprobe", "-v", "fatal", "-select_streams", f"a:{index}", "-show_entries", "stream=codec_name", str(path))
    return frame_digests(output(CHECKING, "-v", "fatal", *form, *(["-bsf:a", "aac_adtstoasc"] if aac else []), "-f", "framemd5", "-"))


def words_of_a_decoder(ffmpeg: Path, form: str, body: bytes, folder: Path) -> str:
    """Return what ffmpeg has to say about all that it decodes of *body*; nothing is best."""
    path = folder / "decoded"
    path.write_bytes(body)
    argv = [str(ffmpeg), "-hide_banner", "-nostdin", "-nostats", "-v", "warning", "-copyts", "-f", form, "-i", str(path), "-map", "0"]
    return output(*argv, "-fps_mode", "passthrough", "-enc_time_base:v", "1:90000", "-f", "null", "-")


def same_moments(made: list[tuple[float, str]], source: list[tuple[float, str]], within_s: float) -> None:
    """Assert that packets are due together, in whatever order they are packed."""
    assert len(made) == len(source)
    origin_s = source[0][0]
    ours, theirs = (sorted((time_s - origin_s + WRAP_S / 2) % WRAP_S for time_s, _ in track) for track in (made, source))
    assert max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) < within_s


@pytest.mark.parametrize(("name", "program"), in_turn(by_day(list(KINDS), 2), ffmpegs()))
def test_pictures_and_sound_of_every_rung_come_when_the_source_s_do(name: str, program: str, tmp_path: Path) -> None:
    kind, ffmpeg = KINDS[name], ffmpegs()[program]
    source = make(tmp_path, kind)
    jobs = jobs_for(source, kind.ladder, tmp_path)
    assert len(jobs) >= 2
    if kind.off_grid or kind.video == OPEN_GOP:
        assert all(needs_previous(job.info) for job in jobs[1:])
    assert all(len(job.info.sounds) == len(kind.audio) for job in jobs)
    results = encode(ffmpeg, *jobs)
    inits: dict[str, set[bytes]] = {}
    for job, result in zip(jobs, results, strict=True):
        assert set(result.outputs) == set(job.outputs), result.failed
        given = packets(job.source, source.init)
        for rung in job.rungs:
            made = packets(job.outputs[rung.name])
            assert len(made["video"]) == (rung.height is not None)
            if rung.height is not None:
                same_moments(made["video"][0], given["video"][0], within_s=1e-6)
            bare = job.init is None and container_of(rung, job.info.container) is Container.FMP4
            sound = [without_headers(job.source, index) if bare else digests(track) for index, track in enumerate(given["audio"])]
            assert [digests(track) for track in made["audio"]] == sound
            for ours, theirs in zip(made["audio"], given["audio"], strict=True):
                same_moments(ours, theirs, within_s=2.5e-5)  # a tick: MP4 counts sound in samples, TS in 1/90000 s
            if container_of(rung, job.info.container) is Container.FMP4:
                init, media = parted(job.outputs[rung.name].read_bytes())
                inits.setdefault(rung.name, set()).add(init)
                assert probe(media, init) == result.outputs[rung.name]
                assert words_of_a_decoder(ffmpeg, "mp4", init + media, tmp_path) == ""
            codecs = (result.outputs[rung.name].video or result.outputs[rung.name].audio).codecs  # type: ignore[union-attr]
            if rung.height:
                assert (codecs or "").startswith({Codec.H264: "avc1.", Codec.HEVC: "hvc1.", Codec.AV1: "av01."}[rung.codec])
    assert all(len(heads) == 1 for heads in inits.values()), "one init section for the whole stream"
    plays_through(ffmpeg, jobs, inits, tmp_path)


def plays_through(ffmpeg: Path, jobs: list[EncodeJob], inits: dict[str, set[bytes]], folder: Path) -> None:
    """Assert that the rungs decode one segment after the other, and TS from one rung to the next as well."""
    scaled = [rung for rung in jobs[0].rungs if rung.height is not None]
    for rung in scaled:
        if rung.name in inits:
            [init] = inits[rung.name]
            whole = init + b"".join(parted(job.outputs[rung.name].read_bytes())[1] for job in jobs)
            assert words_of_a_decoder(ffmpeg, "mp4", whole, folder) == ""
    names = [rung.name for rung in scaled if rung.name not in inits]
    if names:
        switching = b"".join(job.outputs[names[number % len(names)]].read_bytes() for number, job in enumerate(jobs))
        assert words_of_a_decoder(ffmpeg, "mpegts", switching, folder) == ""


def grays(path: Path) -> list[int]:
    """Return the first picture as a player shows it, the brightness of 9 by 16 points."""
    words = ["-frames:v", "1", "-vf", "scale=9:16:flags=area,format=gray", "-f", "rawvideo", str(path.with_suffix(".gray"))]
    output(CHECKING, "-v", "error", "-nostdin", "-y", "-f", "mp4", "-i", str(path), *words)
    return list(path.with_suffix(".gray").read_bytes())


@pytest.mark.parametrize("program", ffmpegs())
@pytest.mark.parametrize("matrix", [(0, 1, 0, -1, 0), (0, -1, 0, 1, 0), (0, 1, 0, 1, 0)])
def test_pictures_that_lie_on_their_side_keep_their_shape_and_are_shown_upright(
    matrix: tuple[int, ...], program: str, tmp_path: Path
) -> None:
    source = make(tmp_path, Kind(size="320x180", audio=(), fmp4=()))
    assert source.init
    head = bytearray(source.init.read_bytes())
    at = head.index(b"tkhd") + 44
    head[at : at + 20] = b"".join((value << 16).to_bytes(4, signed=True) for value in matrix)
    source.init.write_bytes(head)
    [job, *_] = jobs_for(source, "small:160:200", tmp_path)
    [result] = encode(ffmpegs()[program], job)
    made, given = tmp_path / "made.mp4", tmp_path / "given.mp4"
    made.write_bytes(b"".join(parted(job.outputs["small"].read_bytes())))
    given.write_bytes(source.init.read_bytes() + job.source.read_bytes())
    for info, size in ((job.info, (180, 320)), (result.outputs["small"], (90, 160))):
        assert info.video
        assert (info.video.width, info.video.height) == size
    assert sum(abs(one - other) for one, other in zip(grays(made), grays(given), strict=True)) < 4 * 9 * 16


def offered(ffmpeg: Path, codec: Codec, *preferred: str) -> tuple[str | None, list[str]]:
    """Return the name of the encoder that is chosen, and the events that are logged."""

    async def main() -> str | None:
        children = Children()
        try:
            offers = Offers(ffmpeg, children, preferred)
            first, again = await asyncio.gather(offers.encoders([codec]), offers.encoders([codec]))
            assert first == again
            return first[codec].name if first else None
        finally:
            await children.aclose()

    with capture_logs() as logs:
        name = asyncio.run(main())
    return name, [
        f"{line['event']} {line.get('instead_of', '')}{line.get('tried', '')}" for line in logs if line["event"].startswith("encoder.")
    ]


@pytest.mark.parametrize("program", ffmpegs())
def test_hardware_that_ffmpeg_lists_and_this_machine_has_not_falls_back_with_one_line_in_the_log(program: str) -> None:
    name, said = offered(ffmpegs()[program], Codec.H264, "h264_vaapi", "h264_nvenc")
    if name in ("h264_vaapi", "h264_nvenc"):
        pytest.skip("this machine has the hardware")
    assert name == "libx264"
    [line] = said
    assert line.startswith("encoder.fell_back h264_vaapi: ")
    assert "h264_nvenc: " in line
    assert offered(ffmpegs()[program], Codec.HEVC) == ("libx265", [])
    assert offered(ffmpegs()[program], Codec.AV1, "libaom-av1") == ("libaom-av1", [])


@pytest.mark.parametrize(("first", "newer", "chosen"), [(59, 61, "newer"), (59, 60, "first"), (59, None, "first"), (61, 63, "first")])
def test_an_ffmpeg_before_7_gives_way_to_a_newer_one(tmp_path: Path, first: int, newer: int | None, chosen: str) -> None:
    for name, version in (("first", first), ("newer", newer or 0)):
        (tmp_path / name).write_text(
            f'#!/bin/sh\necho "  libavcodec     {version}. 37.100 / {version}. 37.100" >&2\necho " V....D libx264  H.264"\n'
        )
        (tmp_path / name).chmod(0o755)

    async def main() -> Offers:
        children = Children()
        try:
            offers = Offers(tmp_path / "first", children, newer=tmp_path / "newer" if newer else None)
            assert (await offers.encoders([Codec.H264]))[Codec.H264].name == "libx264"
            return offers
        finally:
            await children.aclose()

    offers = asyncio.run(main())
    assert offers.ffmpeg.name == chosen
    assert offers.side_by_side is (chosen == "newer" or first >= 61)


def test_where_nothing_encodes_a_codec_its_rung_fails_and_says_what_to_install(tmp_path: Path) -> None:
    poor = tmp_path / "ffmpeg"
    real = ffmpegs()["on PATH"]
    poor.write_text(f'#!/bin/sh\nfor word; do [ "$word" = -encoders ] && echo " V....D libx264  H.264" && exit; done\nexec {real} "$@"\n')
    poor.chmod(0o755)
    kind = Kind(ladder="small:90:100,tiny:64:60:av1")
    [job, *_] = jobs_for(make(tmp_path, kind), kind.ladder, tmp_path)
    with capture_logs() as logs:
        [result] = encode(poor, job)
    assert set(result.outputs) == {"small"}
    assert result.failed == {"tiny": "nothing here encodes av1: install an ffmpeg that has libsvtav1 or libaom-av1"}
    assert not job.outputs["tiny"].exists()
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["encoder.none"]
