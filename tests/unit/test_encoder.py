"""What ffmpeg is asked for, and why the figures are what they are."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from hlsrelay.attempt import deadline_s
from hlsrelay.codecs import first_pictures, level_for
from hlsrelay.ladder import parse_ladder
from hlsrelay.media.grid import Cut
from hlsrelay.media.info import AudioInfo, Container, MediaInfo, VideoInfo
from hlsrelay.recipe import Before, EncodeJob, Sound, audio_kbps, command, frame_rate, needs_previous, width_for
from hlsrelay.recipe import before as read_before
from hlsrelay.sound import on_ffmpegs_clock, sound_command, sounds
from tests.unit.test_media_probe import FRAME, pes, segment

FFMPEG = Path("ffmpeg")
VIDEO = VideoInfo("avc1.640028", 1920, 1080, 3, 9000, 15000, 30.0, True, (9000, 12000, 15000))
AUDIO = AudioInfo("mp4a.40.2", 8000)
INFO = MediaInfo(Container.TS, VIDEO, AUDIO)


def job(ladder: str = "720p,480p,audio", info: MediaInfo = INFO, previous: Path | None = None) -> EncodeJob:
    rungs = parse_ladder(ladder)
    return EncodeJob("news", 812, Path("in.ts"), info, 6.0, {rung.name: Path(f"{rung.name}.ts") for rung in rungs}, rungs, previous)


def pairs(argv: list[str], option: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == option]


def test_the_input_is_forced_to_be_one_local_transport_stream() -> None:
    argv = command(job(), FFMPEG)
    before_input = argv[: argv.index("-i")]
    assert pairs(before_input, "-f") == ["mpegts"]
    assert pairs(argv, "-protocol_whitelist") == ["file,pipe"]
    assert pairs(argv, "-i") == ["file:in.ts"]


def test_one_decode_makes_every_rung() -> None:
    argv = command(job(), FFMPEG)
    assert pairs(argv, "-filter_complex") == [
        "[0:v:0]split=2[s0][s1];"
        "[s0]scale=1280:720:flags=bicubic,setsar=1,format=yuv420p[o0];"
        "[s1]scale=854:480:flags=bicubic,setsar=1,format=yuv420p[o1]"
    ]
    assert pairs(argv, "-map") == ["[o0]", "0:a:0", "[o1]", "0:a:0", "0:a:0"]
    assert pairs(argv, "-maxrate") == ["3125k", "1500k"]
    assert pairs(argv, "-bufsize") == ["3750k", "1800k"]
    assert [word for word in argv if word.startswith("file:") and word != "file:in.ts"] == ["file:720p.ts", "file:480p.ts", "file:audio.ts"]


def test_small_rungs_have_one_thread_where_encoders_run_side_by_side() -> None:
    todo = job("1080p,big:960:5000,720p,480p,audio")
    assert pairs(command(todo, FFMPEG), "-threads:v") == ["2", "2", "2", "2"]
    assert pairs(command(todo, FFMPEG, side_by_side=True), "-threads:v") == ["2", "2", "1", "1"]
    assert pairs(command(replace(todo, threads=1), FFMPEG, side_by_side=True), "-threads:v") == ["1"] * 4


def test_time_stamps_are_kept_in_every_output() -> None:
    argv = command(job(), FFMPEG)
    assert "-copyts" in argv
    assert pairs(argv, "-avoid_negative_ts") == ["disabled"] * 3
    assert pairs(argv, "-mpegts_copyts") == ["1"] * 3
    assert pairs(argv, "-enc_time_base:v") == ["1:90000"] * 2


def test_what_the_source_has_not_is_not_asked_for() -> None:
    silent = command(job(info=MediaInfo(Container.TS, VIDEO, None)), FFMPEG)
    assert pairs(silent, "-map") == ["[o0]", "[o1]"]
    dark = command(job(info=MediaInfo(Container.TS, None, AUDIO)), FFMPEG)
    assert pairs(dark, "-map") == ["0:a:0"]
    assert "-filter_complex" not in dark


def test_the_segment_before_is_read_only_where_it_is_needed() -> None:
    before = Path("before.ts")
    assert pairs(command(job(previous=before), FFMPEG), "-i") == ["file:in.ts"]
    for info in (replace(INFO, video=replace(VIDEO, starts_with_idr=False)), replace(INFO, audio=replace(AUDIO, straddles=True))):
        assert needs_previous(info)
        assert pairs(command(job(info=info), FFMPEG), "-i") == ["file:in.ts"]
        argv = command(job(info=info, previous=before), FFMPEG)
        assert pairs(argv, "-i") == ["concat:before.ts|in.ts"]
        assert pairs(argv, "-protocol_whitelist") == ["file,pipe,concat"]
        assert "select='not(gte(mod(pts-9000+17179869184,8589934592),4294967296))'" in pairs(argv, "-filter_complex")[0]
        assert pairs(argv, "-bsf:a:0") == ["noise=drop='gte(mod(pts-7550+17179869184,8589934592),4294967296)'"] * 3
    assert pairs(command(job(info=info, previous=before), FFMPEG, Before({None: 7000})), "-bsf:a:0")[0].startswith(
        "noise=drop='gte(mod(pts-7000+"
    )
    assert pairs(command(job(info=info, previous=Path("a|b.ts")), FFMPEG), "-i") == ["file:in.ts"]


def test_a_frame_of_sound_that_goes_on_in_the_segment_after_is_left_to_the_rungs_of_that_one(tmp_path: Path) -> None:
    cut = MediaInfo(Container.TS, VIDEO, replace(AUDIO, last_pts_90k=15_000, cut=True))
    leaves = "lt(mod(pts+450-15000+17179869184,8589934592),900)"
    assert pairs(command(job(info=cut), FFMPEG), "-bsf:a:0") == [f"noise=drop='{leaves}'"] * 3
    both = replace(cut, audio=replace(AUDIO, straddles=True, last_pts_90k=15_000, cut=True))
    again = "gte(mod(pts-7550+17179869184,8589934592),4294967296)"
    assert pairs(command(job(info=both, previous=Path("before.ts")), FFMPEG), "-bsf:a:0") == [f"noise=drop='{again}+{leaves}'"] * 3

    alone = replace(cut, audio=replace(AUDIO, last_pts_90k=AUDIO.first_pts_90k, cut=True))
    assert pairs(command(job(info=alone), FFMPEG), "-bsf:a:0") == []  # without it the rungs would have no sound, and not count

    previous = tmp_path / "before.ts"
    after = replace(both, audio=replace(AUDIO, straddles=True, id=0x101))
    for end, begins in ((b"", 90_000 + 1920 + 450), (FRAME[:9], 90_000 + 2 * 1920 - 450), (FRAME[:2], 90_000 + 2 * 1920 - 450)):
        previous.write_bytes(segment(pes(0x101, 90_000, FRAME * 2 + end)))
        assert read_before(job(info=after, previous=previous)).sounds == {0x101: begins}


@pytest.mark.parametrize(
    ("coding", "kbps"),
    [("aac", 0), ("mp3", 0), ("ac-3", 0), ("", 0), ("ec-3", 128), ("mp2", 128), ("latm", 128), ("opus", 128), ("dts", 128)],
)
def test_audio_is_copied_unless_players_stop_at_it_or_the_rung_has_a_bitrate_of_its_own(coding: str, kbps: int) -> None:
    audio = replace(AUDIO, coding=coding)
    [copying, own] = parse_ladder("hd:720:1000,audio:96")
    assert (audio_kbps(audio, copying), audio_kbps(audio, own)) == (kbps, 96)


def test_each_rung_takes_the_sound_of_its_own_bitrate() -> None:
    todo = job("hd:720:1000,low:360:300:64,audio:64,talk:32")
    assert sounds(todo) == {32: Path("sound-32-hd-812.aac"), 64: Path("sound-64-hd-812.aac")}
    made = replace(todo, sounds={kbps: Sound(path, 7875) for kbps, path in sounds(todo).items()})
    argv = command(made, FFMPEG)
    assert pairs(argv, "-i") == ["file:in.ts", "file:sound-32-hd-812.aac", "file:sound-64-hd-812.aac"]
    assert pairs(argv, "-itsoffset") == ["0.087500"] * 2
    assert pairs(argv, "-map") == ["[o0]", "0:a:0", "[o1]", "2:a:0", "2:a:0", "1:a:0"]
    assert sounds(job()) == {}
    assert sounds(job("audio:96", MediaInfo(Container.TS, VIDEO, None))) == {}


def test_the_sound_of_the_segment_before_is_read_by_one_forced_demuxer_too() -> None:
    cut = Cut(48_000, 100, 200, follows=True, source_begin_s=Fraction(2))
    argv = sound_command(job("audio:96", previous=Path("before.ts")), cut, {96: Path("out.aac")}, FFMPEG)
    assert pairs(argv[: argv.index("-i")], "-f") == ["mpegts"]
    assert pairs(argv, "-i") == ["concat:before.ts|in.ts"]
    assert pairs(argv, "-protocol_whitelist") == ["file,pipe,concat"]
    alone = sound_command(job("audio:96", previous=Path("before.ts")), replace(cut, follows=False), {96: Path("out.aac")}, FFMPEG)
    assert pairs(alone, "-i") == ["file:in.ts"]
    assert pairs(alone, "-protocol_whitelist") == ["file,pipe"]


@pytest.mark.parametrize(
    ("began", "pts", "counted"),
    [
        (90_000, 88_000, 88_000),
        (2**33 - 61 * 90_000, 10, 2**33 + 10),
        (2**33 - 59 * 90_000, 10, 10),
        (2**33 - 59 * 90_000, 2**33 - 90_000, -90_000),
        (5, 2**33 - 5, -5),
    ],
)
def test_time_is_counted_as_ffmpeg_counts_it_on_either_side_of_the_wrap(began: int, pts: int, counted: int) -> None:
    assert on_ffmpegs_clock(pts, MediaInfo(Container.TS, replace(VIDEO, first_pts_90k=began), None)) == counted


@pytest.mark.parametrize(
    ("measured", "usual"),
    [
        (29.97002997, Fraction(30000, 1001)),
        (30.0, Fraction(30)),
        (23.976, Fraction(24000, 1001)),
        (24.98, Fraction(25)),
        (59.5, Fraction(60000, 1001)),
        (5.02, Fraction(5)),
        (None, Fraction(30)),
        (90_000.0, Fraction(30)),
    ],
)
def test_the_frame_rate_is_a_usual_one(measured: float | None, usual: Fraction) -> None:
    assert frame_rate(replace(VIDEO, frame_rate=measured)) == usual


@pytest.mark.parametrize(
    ("size", "sar", "height", "width"),
    [
        ((1920, 1080), (1, 1), 720, 1280),
        ((1920, 1080), (1, 1), 480, 854),
        ((1440, 1080), (4, 3), 720, 1280),
        ((720, 576), (16, 15), 480, 640),
        ((1080, 1920), (1, 1), 720, 404),
        ((16, 4096), (1, 1), 64, 2),
        ((1920, 1080), None, 720, 0),
        ((0, 0), (1, 1), 720, 0),
    ],
)
def test_the_picture_keeps_its_shape(size: tuple[int, int], sar: tuple[int, int] | None, height: int, width: int) -> None:
    assert width_for(replace(VIDEO, width=size[0], height=size[1], sar=sar), height) == width


def test_where_the_shape_is_not_known_ffmpeg_works_it_out() -> None:
    argv = command(job("720p", MediaInfo(Container.TS, replace(VIDEO, sar=None), None)), FFMPEG)
    assert "scale=2*trunc(720*dar/2+0.5):720:" in pairs(argv, "-filter_complex")[0]


@pytest.mark.parametrize(
    ("width", "height", "rate", "kbps", "level"),
    [
        (640, 360, 30, 700, "3.0"),
        (1280, 720, 30, 2500, "3.1"),
        (1280, 720, 60, 2500, "3.2"),
        (1920, 1080, 30, 5000, "4.0"),
        (1920, 1080, 30, 30_000, "4.1"),
        (1920, 1080, 60, 5000, "4.2"),
        (3840, 2160, 60, 5000, "5.2"),
        (0, 720, 30, 2500, "3.1"),
    ],
)
def test_the_level_is_the_lowest_that_holds_the_pictures(width: int, height: int, rate: int, kbps: int, level: str) -> None:
    assert level_for(width, height, Fraction(rate), kbps) == level


@pytest.mark.parametrize(
    ("size", "zones"),
    [
        ((1920, 1080), "0,0,b=1.10/1,15,b=1.00"),
        ((1280, 720), "0,0,b=1.10/1,15,b=1.00"),
        ((640, 360), "0,0,b=2.18/1,15,b=1.49"),
        ((0, 360), "0,0,b=2.18/1,15,b=1.49"),
        ((114, 64), "0,0,b=3.30/1,15,b=2.00"),
    ],
)
def test_the_first_pictures_get_more_of_the_bitrate_the_smaller_they_are(size: tuple[int, int], zones: str) -> None:
    assert first_pictures(*size) == zones


def test_a_job_may_take_five_times_its_segment_and_never_less_than_half_a_minute() -> None:
    assert deadline_s(2.0) == 30
    assert deadline_s(10.0) == 50
