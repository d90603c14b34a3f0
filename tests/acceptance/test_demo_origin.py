"""The built-in live channel, by whichever ffmpeg: what a player, a stopwatch and a kill -9 see of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from hlsrelay import demo_origin, embedded
from hlsrelay.demo_origin import FLASH_BAND_HEIGHT, FRAME_RATE, HEIGHT, LISTED_SEGMENTS, WIDTH
from tests.acceptance.judged import Judging, accept
from tests.needs import NIGHTLY, needs
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("demo_origin")]

BUNDLED = embedded._inside("imageio_ffmpeg", "binaries/ffmpeg-*")
FFMPEGS = [
    pytest.param("ffmpeg", marks=needs("ffmpeg")),
    pytest.param("imageio-ffmpeg", marks=pytest.mark.skipif(BUNDLED is None, reason="imageio-ffmpeg has no ffmpeg for this machine")),
]


@dataclass
class Channel:
    """A process that runs the channel, its files under a temporary directory of the test's."""

    process: subprocess.Popen[str]
    url: str
    temp: Path
    client: httpx.Client
    judging: Judging

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal that ends it; its judge has gone home before."""
        self.judging.end()
        self.process.send_signal(number)

    def playlist(self) -> str:
        return self.client.get(self.url).raise_for_status().text

    def numbers(self) -> list[int]:
        return [int(number) for number in re.findall(r"^(\d+)\.ts$", self.playlist(), re.MULTILINE)]

    def segment(self, number: int) -> httpx.Response:
        return self.client.get(self.url.replace("live.m3u8", f"{number}.ts")).raise_for_status()

    def folders(self) -> list[Path]:
        return sorted(self.temp.glob("hlsrelay-*"))

    def encoder(self) -> int:
        (pid,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(pid)


@contextmanager
def started(ffmpeg: str, temp: Path) -> Iterator[Channel]:
    program = str(BUNDLED if ffmpeg == "imageio-ffmpeg" else shutil.which(ffmpeg))
    argv = [sys.executable, "-m", "tests.acceptance.demo_channel", program]
    environment = {**os.environ, "TMPDIR": str(temp)}
    root = Path(__file__).parents[2]
    with (
        subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=root, env=environment) as process,
        httpx.Client(trust_env=False) as client,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, f"it ended with {process.wait()}"
            judging = Judging(url)
            judging.start()
            try:
                yield Channel(process, url, temp, client, judging)
            finally:
                judging.end()
            accept(judging.verdict)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(15)


@pytest.fixture(scope="module", params=FFMPEGS if NIGHTLY else FFMPEGS[-1:])
def channel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Channel]:
    with started(request.param, tmp_path_factory.mktemp("channel")) as running:
        until(lambda: len(running.numbers()) >= 3)
        yield running


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def ffprobe(path: Path, *arguments: str) -> Any:
    argv = ["ffprobe", "-v", "error", "-of", "json", *arguments, str(path)]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout)


def raw(path: Path, *arguments: str) -> bytes:
    argv = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), *arguments, "-"]
    return subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout


def test_the_playlist_grows_live(channel: Channel) -> None:
    first = channel.numbers()
    assert first == list(range(first[0], first[0] + len(first)))
    began = time.monotonic()
    until(lambda: channel.numbers()[-1] == first[-1] + 1)
    until(lambda: channel.numbers()[-1] == first[-1] + 2)
    assert time.monotonic() - began == pytest.approx(3, abs=1.9), "two segments of 2 s, at real time"
    playlist = channel.playlist()
    assert len(channel.numbers()) <= LISTED_SEGMENTS
    assert "#EXT-X-DISCONTINUITY" not in playlist
    assert set(re.findall(r"#EXTINF:(.*),", playlist)) == {"2.000000"}


def test_playlists_and_segments_have_their_types_and_the_rest_of_the_folder_is_not_served(channel: Channel) -> None:
    playlist = channel.client.get(channel.url)
    assert playlist.headers["content-type"] == "application/vnd.apple.mpegurl"
    assert playlist.headers["cache-control"] == "no-cache"
    segment = channel.segment(channel.numbers()[-1])
    assert segment.headers["content-type"] == "video/mp2t"
    assert segment.headers["cache-control"].startswith("public, max-age=")
    for name in ("lock", "1.ts", "..%2flock", "live.m3u8.tmp"):
        assert channel.client.get(channel.url.replace("live.m3u8", name)).status_code == 404


@needs("ffprobe")
def test_ffprobe_reads_h264_and_aac_in_segments_that_start_with_a_key_frame(channel: Channel, tmp_path: Path) -> None:
    path = tmp_path / "segment.ts"
    path.write_bytes(channel.segment(channel.numbers()[-1]).content)
    video, audio = ffprobe(path, "-show_streams")["streams"]
    assert (video["codec_name"], video["width"], video["height"], video["r_frame_rate"]) == ("h264", WIDTH, HEIGHT, f"{FRAME_RATE}/1")
    assert (audio["codec_name"], audio["sample_rate"], audio["channels"]) == ("aac", "48000", 2)
    keys = [packet["flags"][0] == "K" for packet in ffprobe(path, "-select_streams", "v", "-show_packets")["packets"]]
    assert keys == [True] + [False] * (2 * FRAME_RATE - 1)


@needs("ffprobe", "ffmpeg")
def test_flash_and_beep_start_together_within_a_frame(channel: Channel, tmp_path: Path) -> None:
    path = tmp_path / "segments.ts"
    path.write_bytes(b"".join(channel.segment(number).content for number in channel.numbers()[-2:]))
    first_s = {
        kind: float(ffprobe(path, "-select_streams", kind, "-show_frames", "-show_entries", "frame=pts_time")["frames"][0]["pts_time"])
        for kind in ("v", "a")
    }
    band = raw(path, "-map", "0:v", "-vf", f"crop={WIDTH}:{FLASH_BAND_HEIGHT - 20}:0:10,scale=1:1:flags=area,format=gray", "-f", "rawvideo")
    flashes = [first_s["v"] + frame / FRAME_RATE for frame in range(1, len(band)) if band[frame - 1] < 200 <= band[frame]]
    samples = memoryview(raw(path, "-map", "0:a", "-ac", "1", "-f", "s16le")).cast("h")
    beeps = [
        first_s["a"] + index / 48000
        for index in range(4800, len(samples))
        if abs(samples[index]) > 2000 and max(map(abs, samples[index - 2400 : index])) <= 2000
    ]
    flashes = [flash_s for flash_s in flashes if flash_s > first_s["a"] + 0.2]
    beeps = [beep_s for beep_s in beeps if beep_s > first_s["a"] + 0.2]
    both = min(len(flashes), len(beeps))  # the segments' sound and picture need not end together: one may hold a last one alone
    assert both >= 3
    assert abs(len(flashes) - len(beeps)) <= 1
    assert flashes[:both] == pytest.approx(beeps[:both], abs=1 / FRAME_RATE)
    assert [later - sooner for sooner, later in pairwise(flashes)] == pytest.approx([1.0] * (len(flashes) - 1))


@needs("ffmpeg")
def test_the_clock_in_the_picture_shows_the_time_of_day(channel: Channel, tmp_path: Path) -> None:
    *_, (written, number) = re.findall(r"#EXT-X-PROGRAM-DATE-TIME:(\S+)\n(\d+)\.ts", channel.playlist())
    path = tmp_path / "segment.ts"
    path.write_bytes(channel.segment(int(number)).content)
    picture = raw(path, "-map", "0:v", "-frames:v", "1", "-pix_fmt", "gray", "-f", "rawvideo")
    shown = read_clock(picture)
    moment = datetime.strptime(written, "%Y-%m-%dT%H:%M:%S.%f%z")
    expected_s = moment.hour * 3600 + moment.minute * 60 + moment.second + moment.microsecond / 1e6
    late_s = (expected_s - shown + 3600) % 86400 - 3600
    assert -0.1 < late_s < 2, "whole seconds are shown, and the encoder took a moment to start"


def read_clock(picture: bytes) -> int:
    """Return the second of the day that the seven-segment digits of a gray *picture* show."""
    values = []
    for left in (250, 370, 540, 660, 830, 950):
        lit = {
            name
            for name, (x, y, width, height) in demo_origin._segments(left, 275).items()
            if picture[(y + height // 2) * WIDTH + x + width // 2] > 128
        }
        values.append(next(value for value, segments in enumerate(demo_origin._DIGITS) if set(segments) == lit))
    hours, minutes, seconds = (10 * values[place] + values[place + 1] for place in (0, 2, 4))
    return hours * 3600 + minutes * 60 + seconds


@pytest.mark.parametrize("ffmpeg", FFMPEGS if NIGHTLY else FFMPEGS[:1])
def test_a_killed_encoder_goes_on_behind_a_discontinuity_and_a_killed_channel_leaves_nothing(
    ffmpeg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(ffmpeg, tmp_path) as channel:
        before = channel.numbers()
        os.kill(channel.encoder(), signal.SIGKILL)
        until(lambda: len(channel.numbers()) > len(before))
        after = channel.numbers()
        assert after == list(range(before[0], before[0] + len(after)))
        assert channel.playlist().count("#EXT-X-DISCONTINUITY\n") == 1
        encoder = channel.encoder()
        channel.signal(signal.SIGKILL)
        channel.process.wait(10)
        until(lambda: ended(encoder))
        assert len(channel.folders()) == 1, "nobody was there to remove it"
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert demo_origin.sweep() == 1
        assert channel.folders() == []


def test_ctrl_c_leaves_neither_a_process_nor_a_file_and_a_running_channel_is_never_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started("imageio-ffmpeg" if BUNDLED else "ffmpeg", tmp_path) as channel:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert demo_origin.sweep() == 0
        encoder = channel.encoder()
        channel.signal(signal.SIGINT)
        assert channel.process.wait(10) == 0
        assert ended(encoder)
        assert channel.folders() == []
