"""Which encoder is tried when, and what each is told."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from hlsrelay.codecs import ENCODERS, FIRST_CHOICE, Target, VideoEncoder, candidates
from hlsrelay.errors import ConfigError
from hlsrelay.ladder import format_ladder, parse_ladder
from hlsrelay.media.info import Container, MediaInfo
from hlsrelay.model import Codec
from hlsrelay.recipe import Before, EncodeJob, command, container_of, impossible
from hlsrelay.settings import load_settings
from tests.unit.test_encoder import AUDIO, FFMPEG, INFO, VIDEO, job, pairs


def test_software_comes_first_unless_an_operator_prefers_otherwise() -> None:
    assert {codec: encoder.name for codec, encoder in FIRST_CHOICE.items()} == {
        Codec.H264: "libx264",
        Codec.HEVC: "libx265",
        Codec.AV1: "libsvtav1",
    }
    names = [encoder.name for encoder in candidates(Codec.H264, ("hevc_nvenc", "h264_vaapi"))]
    assert names[:3] == ["h264_vaapi", "libx264", "h264_nvenc"]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder.name)
def test_every_encoder_makes_one_gop_of_the_named_bitrate(encoder: VideoEncoder) -> None:
    argv = encoder.options(Target(1280, 720, Fraction(30), 1500))
    assert pairs(argv, "-g") == ["9999"]
    assert pairs(argv, "-b:v") == ["1500k"]
    assert encoder.codec is not Codec.HEVC or pairs(argv, "-tag:v") == ["hvc1"]


def test_an_encoder_that_nobody_knows_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLSRELAY_ENCODERS", "h264_nvenc, libx265")
    assert load_settings().encoders == ("h264_nvenc", "libx265")
    monkeypatch.setenv("HLSRELAY_ENCODERS", "h264_magic")
    with pytest.raises(ConfigError, match=r"HLSRELAY_ENCODERS: .*no encoder h264_magic is known here: name some of libx264"):
        load_settings()


def test_the_ffmpeg_is_a_program_that_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "my-ffmpeg"
    own.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for said, found in (("", None), ("my-ffmpeg", own), (str(own), own)):
        monkeypatch.setenv("HLSRELAY_FFMPEG", said)
        assert load_settings().ffmpeg == found
    monkeypatch.setenv("HLSRELAY_FFMPEG", "/nowhere/ffmpeg")
    with pytest.raises(ConfigError, match=r"HLSRELAY_FFMPEG: .*no such program: write the path of an ffmpeg.*/nowhere/ffmpeg"):
        load_settings()


def test_a_rung_names_its_codec() -> None:
    hd, sd = parse_ladder("hd:720:1500:hevc,sd:480:900:h264")
    assert (hd.codec, sd.codec) == (Codec.HEVC, Codec.H264)
    assert format_ladder((hd, sd)) == "hd:720:1500:hevc,sd:480:900"
    assert parse_ladder(format_ladder((hd, sd))) == (hd, sd)
    with pytest.raises(ConfigError, match="the codec is one of h264, hevc, av1"):
        parse_ladder("hd:720:1500:vp9")


def test_hevc_and_av1_are_always_packed_in_fmp4_and_the_rest_as_the_source_is() -> None:
    hd, sd, tiny, audio = parse_ladder("hd:720:1500:hevc,sd:480:900,tiny:360:300:av1,audio")
    for source in (Container.TS, Container.FMP4):
        assert [container_of(rung, source) for rung in (hd, sd, tiny, audio)] == [Container.FMP4, source, Container.FMP4, source]


def fmp4_job(ladder: str, **changes: object) -> EncodeJob:
    info = MediaInfo(Container.FMP4, replace(VIDEO, timescale=30_000), replace(AUDIO, id=2), (replace(AUDIO, id=3),))
    return replace(job(ladder, info), init=Path("init.mp4"), **changes)  # type: ignore[arg-type]


def test_fmp4_keeps_the_clock_of_its_source() -> None:
    argv = command(fmp4_job("720p,audio"), FFMPEG)
    before_input = argv[: argv.index("-i")]
    assert pairs(before_input, "-f") == ["mp4"]
    assert pairs(argv, "-i") == ["concat:init.mp4|in.ts"]
    assert pairs(argv, "-enc_time_base:v") == ["1:30000"]
    assert pairs(argv, "-video_track_timescale") == ["30000"] * 2
    assert pairs(argv, "-map") == ["[o0]", "0:i:2", "0:i:3", "0:i:2", "0:i:3"]


def test_the_segment_before_gives_pictures_and_never_sound_to_fmp4() -> None:
    begins_off = replace(fmp4_job("720p").info, video=replace(VIDEO, timescale=30_000, starts_with_idr=False))
    argv = command(fmp4_job("720p", info=begins_off, previous=Path("before.m4s")), FFMPEG, Before(pictures=(12_000,)))
    assert pairs(argv, "-i") == ["concat:init.mp4|before.m4s|in.ts", "concat:init.mp4|in.ts"]
    assert pairs(argv, "-map") == ["[o0]", "1:i:2", "1:i:3"]
    [graph] = pairs(argv, "-filter_complex")
    assert "gte(mod(pts*90000/30000+45-9000+17179869184,8589934592),4294967296)" in graph
    assert "lt(mod(pts*90000/30000+1-12000+17179869184,8589934592),2)" in graph


def test_interlaced_pictures_are_made_whole_before_they_are_scaled() -> None:
    [graph] = pairs(command(job("720p,480p", replace(INFO, video=replace(VIDEO, interlaced=True))), FFMPEG), "-filter_complex")
    assert graph.startswith("[0:v:0]bwdif=mode=send_frame:deint=interlaced,split=2")
    assert "bwdif" not in pairs(command(job("720p"), FFMPEG), "-filter_complex")[0]


def test_what_can_t_be_made_says_what_to_do() -> None:
    hevc = job("hd:720:1500:hevc,480p")
    reasons = impossible(hevc, {Codec.H264: FIRST_CHOICE[Codec.H264]})
    assert reasons == {"hd": "nothing here encodes hevc: install an ffmpeg that has libx265"}
    assert "set HLSRELAY_DATA" in impossible(replace(fmp4_job("720p"), source=Path("a|b")))["720p"]
    assert "init section" in impossible(replace(fmp4_job("720p"), init=None))["720p"]
    assert "neither TS nor fMP4" in impossible(replace(hevc, info=MediaInfo(Container.AAC, None, AUDIO)))["480p"]
