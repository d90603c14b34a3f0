"""Slices of segments that ffmpeg made, as ffmpeg and ffprobe see them: all pictures, all sound, no complaint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hlsrelay.media.split import Slice, split
from tests.acceptance.media_checks import ran
from tests.acceptance.test_encoder import CHECKING
from tests.needs import by_day, needs

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe")]

SECONDS, RATE = 10, 25
PIECES, TARGET_DURATION_S = 3, 4
LONGEST_S = TARGET_DURATION_S + 0.5
TABLES = 3 * 188  # ffmpeg writes SDT, PAT, PMT first
PICTURES = f"-f lavfi -i testsrc2=rate={RATE}:size=160x90:duration={SECONDS}"
SOUND = f"-f lavfi -i sine=sample_rate=48000:duration={SECONDS}"
X264 = "-c:v libx264 -preset veryfast -pix_fmt yuv420p -sc_threshold 0"
X265 = "-c:v libx265 -preset ultrafast -x265-params log-level=none:scenecut=0"
FRAGMENTED = "-movflags empty_moov+default_base_moof+frag_keyframe -f mp4"


@dataclass(frozen=True)
class Kind:
    """What ffmpeg is told, and how many of the slices begin where decoding can begin."""

    options: str
    independent: int = PIECES
    ending: str = "ts"
    video: bool = True


KINDS = {
    "GOP of 2 s": Kind(f"{PICTURES} {SOUND} {X264} -g 50 -bf 2 -c:a aac"),
    "GOP of 2 s, no sound": Kind(f"{PICTURES} {X264} -g 50 -bf 0"),
    "GOP of 10 s": Kind(f"{PICTURES} {SOUND} {X264} -g 250 -bf 0 -c:a aac", independent=1),
    "GOP of 10 s, B pictures in a pyramid": Kind(f"{PICTURES} {SOUND} {X264} -g 250 -bf 7 -x264-params b-pyramid=normal -c:a aac", 1),
    "GOP of 5 s": Kind(f"{PICTURES} {SOUND} {X264} -g 125 -bf 2 -c:a aac", independent=1),
    "open GOP": Kind(f"{PICTURES} {SOUND} {X264} -g 50 -bf 3 -x264-params open-gop=1 -c:a ac3", independent=1),
    "the clock wraps": Kind(f"{PICTURES} {SOUND} {X264} -g 50 -bf 2 -c:a aac -output_ts_offset 95440"),
    "one table per GOP": Kind(f"{PICTURES} {SOUND} {X264} -g 50 -bf 2 -c:a mp3 -pat_period 60 -sdt_period 60"),
    "HEVC": Kind(f"{PICTURES} {SOUND} {X265}:keyint=50:open-gop=0 -c:a aac"),
    "HEVC, open GOP": Kind(f"{PICTURES} {SOUND} {X265}:keyint=50:bframes=3:open-gop=1 -c:a aac", independent=1),
    "HEVC, GOP of 10 s": Kind(f"{PICTURES} {SOUND} {X265}:keyint=250 -c:a aac", independent=1),
    "MPEG-2 video": Kind(f"{PICTURES} {SOUND} -c:v mpeg2video -b:v 2M -g 50 -sc_threshold 1000000000 -flags +cgop -bf 2 -c:a mp2"),
    "sound only": Kind(f"{SOUND} -c:a aac", video=False),
    "fMP4": Kind(f"{PICTURES} {SOUND} {X264} -g 50 -bf 2 -c:a aac {FRAGMENTED}", ending="mp4"),
    "fMP4, a fragment a second": Kind(f"{PICTURES} {SOUND} {X264} -g 250 -bf 2 -c:a aac -frag_duration 1000000 {FRAGMENTED}", 1, "mp4"),
    "fMP4 with an index": Kind(
        f"{PICTURES} {X264} -g 50 -bf 2 -movflags dash+empty_moov+default_base_moof+frag_keyframe -f mp4", ending="mp4"
    ),
    "fMP4, HEVC": Kind(f"{PICTURES} {SOUND} {X265}:keyint=50:open-gop=0 -tag:v hvc1 -c:a aac {FRAGMENTED}", ending="mp4"),
    "fMP4, sound only": Kind(f"{SOUND} -c:a aac -frag_duration 1000000 {FRAGMENTED}", ending="mp4", video=False),
}


def made(folder: Path, kind: Kind) -> tuple[bytes, bytes | None]:
    """Return a segment, and its init section if it has one."""
    whole = folder / f"whole.{kind.ending}"
    ran("ffmpeg", "-v", "error", "-nostdin", *kind.options.split(), str(whole))
    data = whole.read_bytes()
    if kind.ending == "ts":
        return data, None
    begin = min(data.index(word) for word in (b"sidx", b"moof") if word in data) - 4
    return data[begin:], data[:begin]


def played(folder: Path, init: bytes | None, segments: list[tuple[bytes, float]]) -> tuple[list[str], str]:
    """Return the digests of all pictures and sounds that ffmpeg decodes from a playlist of *segments*, and what it says meanwhile."""
    folder.mkdir()
    lines = ["#EXTM3U", "#EXT-X-VERSION:6", f"#EXT-X-TARGETDURATION:{SECONDS}"]
    if init is not None:
        (folder / "init.mp4").write_bytes(init)
        lines.append('#EXT-X-MAP:URI="init.mp4"')
    for number, (body, duration_s) in enumerate(segments):
        name = f"{number}.{'ts' if init is None else 'mp4'}"
        (folder / name).write_bytes(body)
        lines += [f"#EXTINF:{duration_s:.6f},", name]
    (folder / "s.m3u8").write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
    words = ["-f", "hls", "-i", str(folder / "s.m3u8"), "-map", "0", "-fps_mode", "passthrough", "-copyts", "-f", "framemd5", "-"]
    done = ran(CHECKING, "-v", "warning", "-nostdin", *words)
    return [line for line in done.stdout.decode().splitlines() if not line.startswith("#")], done.stderr.decode(errors="replace")


@cache
def packets(path: Path, track: str) -> list[dict[str, Any]]:
    """Return the packets of *track*, such as v:0. ffprobe may complain: what is no beginning is not decodable by itself."""
    words = ["-select_streams", track, "-show_packets", "-show_entries", "packet=pts_time,duration_time,flags", "-of", "json"]
    return list(json.loads(ran("ffprobe", "-v", "quiet", *words, str(path)).stdout)["packets"])


@pytest.mark.parametrize("name", by_day(list(KINDS), 2))
def test_slices_play_as_the_segment_they_are_of(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    packets.cache_clear()  # a folder's name is used again once its test has passed
    data, init = made(tmp_path, kind)
    slices = split(data, init, float(SECONDS), PIECES, LONGEST_S)
    assert slices is not None
    bodies = [data[one.start : one.end] for one in slices]
    assert len(bodies) == PIECES
    assert b"".join(bodies) == data
    assert sum(one.duration_s for one in slices) == pytest.approx(SECONDS)
    assert all(one.duration_s < LONGEST_S for one in slices)
    assert sum(one.independent for one in slices) == kind.independent

    whole, _ = played(tmp_path / "whole", init, [(data, SECONDS)])
    frames, words = played(tmp_path / "sliced", init, [(body, one.duration_s) for body, one in zip(bodies, slices, strict=True)])
    assert frames == whole
    assert len([line for line in frames if line.startswith("0,")]) == (SECONDS * RATE if kind.video else len(frames))
    assert words == ""

    for number, (one, body) in enumerate(zip(slices, bodies, strict=True)):
        path = tmp_path / f"{number}.{kind.ending}"
        path.write_bytes((init if init is not None else b"" if one.independent else data[:TABLES]) + body)
        lasts_as_long_as_it_says(path, one, kind)
        if one.independent:
            begins_by_itself(path, body, kind)


def lasts_as_long_as_it_says(path: Path, one: Slice, kind: Kind) -> None:
    found = packets(path, "v:0" if kind.video else "a:0")
    shown = [float(packet["pts_time"]) for packet in found]
    lasts_s = len(found) / RATE if kind.video else max(shown) - min(shown) + float(found[-1]["duration_time"])
    assert lasts_s == pytest.approx(one.duration_s, abs=0.5)
    assert lasts_s < LONGEST_S + 0.2
    if kind.independent == PIECES:  # no picture of a slice is shown among those of another
        lasts_s = max(shown) - min(shown) + (1 / RATE if kind.video else float(found[-1]["duration_time"]))
        assert lasts_s == pytest.approx(one.duration_s, abs=0.05)


def begins_by_itself(path: Path, body: bytes, kind: Kind) -> None:
    first = packets(path, "v:0" if kind.video else "a:0")[0]
    assert first["flags"].startswith("K")
    if kind.ending == "ts":
        pids = [int.from_bytes(body[at + 1 : at + 3]) & 0x1FFF for at in range(0, TABLES, 188)]
        assert pids[pids.index(0) : pids.index(0) + 2] == [0, 0x1000]
    done = ran(CHECKING, "-v", "warning", "-nostdin", "-i", str(path), "-map", "0:v?", "-fps_mode", "passthrough", "-f", "null", "-")
    assert done.stderr == b"", done.stderr.decode(errors="replace")


def test_the_same_slices_come_from_a_segment_with_an_init_section_of_tables(tmp_path: Path) -> None:
    data, _ = made(tmp_path, KINDS["one table per GOP"])
    assert split(data, data[:TABLES], float(SECONDS), PIECES, LONGEST_S) == split(data, None, float(SECONDS), PIECES, LONGEST_S)
