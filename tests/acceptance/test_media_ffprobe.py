"""probe and ffprobe see the same in segments that ffmpeg makes."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from hlsrelay.media.probe import PTS_MODULUS, Container, probe
from tests.acceptance.test_encoder import output
from tests.needs import needs

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe")]

X264 = "-c:v libx264 -preset ultrafast -bf 2 -g 30 -pix_fmt yuv420p"
KINDS = {
    "odd size, AAC": ("ts", f"{X264} -s 426x240 -c:a aac"),
    "interlaced, cropped": ("ts", f"{X264} -s 352x280 -flags +ildct+ilme -x264-params interlaced=1 -c:a aac"),
    "4:2:2, High 4:2:2": ("ts", "-c:v libx264 -preset ultrafast -pix_fmt yuv422p -s 322x182 -g 30 -c:a mp3"),
    "wide pixels": ("ts", f"{X264} -s 352x288 -vf setsar=16/11 -c:a ac3"),
    "open GOP": ("ts", "-c:v libx264 -preset veryfast -bf 3 -g 30 -x264-params open-gop=1:scenecut=0 -s 320x180 -c:a eac3"),
    "MPEG-2 video": ("ts", "-c:v mpeg2video -s 352x288 -bf 2 -g 15 -c:a mp2"),
    "HEVC": ("ts", "-c:v libx265 -preset ultrafast -x265-params log-level=none -s 322x182 -g 30 -c:a aac"),
    "fMP4": ("fmp4", f"{X264} -s 426x240 -c:a aac"),
    "fMP4 HEVC": ("fmp4", "-c:v libx265 -preset ultrafast -x265-params log-level=none -tag:v hvc1 -s 322x182 -g 30 -c:a ac3"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_probe_agrees_with_ffprobe(kind: str, tmp_path: Path) -> None:
    container, options = KINDS[kind]
    lavfi = "-f lavfi -i testsrc2=rate=30000/1001:duration=3 -f lavfi -i sine=sample_rate=48000:duration=3"
    hls = f"-f hls -hls_time 1 -hls_list_size 0 -hls_segment_type {'mpegts' if container == 'ts' else 'fmp4'}"
    output("ffmpeg", "-v", "error", "-nostdin", *lavfi.split(), *options.split(), *hls.split(), str(tmp_path / "s.m3u8"))
    segments = sorted(tmp_path.glob("s*.ts") if container == "ts" else tmp_path.glob("s*.m4s"))
    init = (tmp_path / "init.mp4").read_bytes() if container == "fmp4" else None
    assert len(segments) >= 2
    for path in segments:
        data = path.read_bytes()
        info = probe(data, init)
        whole = tmp_path / "whole"
        whole.write_bytes((init or b"") + data)
        video, audio = ask(whole, "v:0"), ask(whole, "a:0")
        assert info.container == (Container.TS if container == "ts" else Container.FMP4)
        assert info.video is not None
        assert (info.video.width, info.video.height) == (video["stream"]["width"], video["stream"]["height"])
        if info.video.sar is not None:
            assert Fraction(*info.video.sar) == Fraction(video["stream"].get("sample_aspect_ratio", "1:1").replace(":", "/"))
        if container == "ts":
            assert set(info.video.pts) == {int(packet["pts"]) % PTS_MODULUS for packet in video["packets"] if "pts" in packet}
            assert info.audio is not None
            assert info.audio.first_pts_90k == int(audio["packets"][0]["pts"]) % PTS_MODULUS
        assert info.video.frame_count == len(video["packets"])
        codec = video["stream"]["codec_name"]
        if codec == "h264" and "profile" in video["stream"]:  # ffprobe finds none without an IDR
            profile = {"High": 100, "High 4:2:2": 122, "Main": 77, "Constrained Baseline": 66}[video["stream"]["profile"]]
            assert (info.video.codecs or "").startswith(f"avc1.{profile:02x}")
            assert (info.video.codecs or "").endswith(f"{video['stream']['level']:02x}")
        elif codec == "hevc":
            assert f".L{video['stream']['level']}." in (info.video.codecs or "")
        words = {"aac": "mp4a.40.2", "ac3": "ac-3", "eac3": "ec-3", "mp3": "mp4a.40.34", "mp2": "mp4a.40.33"}
        assert info.audio is not None
        assert info.audio.codecs == words[audio["stream"]["codec_name"]]
        if kind == "open GOP":
            assert info.video.starts_with_idr == (path == segments[0])


def ask(path: Path, track: str) -> dict[str, Any]:
    argv = ["ffprobe", "-v", "quiet", "-select_streams", track, "-show_streams", "-show_entries", "packet=pts", "-of", "json"]
    answer = json.loads(output(*argv, str(path)))
    return {"stream": answer["streams"][0], "packets": answer["packets"]}
