"""Segments made to hurt, through the whole relay and straight into both ffmpegs: a GAP at worst, bounded, and nothing else is touched."""

from __future__ import annotations

import asyncio
import random
import re
import shlex
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hlsrelay.clock import Clock, Nudges
from hlsrelay.desk import Tools
from hlsrelay.encoder import LocalEncoder
from hlsrelay.errors import EncodeError, SegmentLost
from hlsrelay.media.probe import MediaError, MediaInfo, probe
from hlsrelay.model import SOURCE, ByteRange, Kind, Made, Presentation, Restart, Snapshot, Stream, Track
from hlsrelay.processes import Children
from hlsrelay.relay import relay
from hlsrelay.storage import LocalStorage
from tests.acceptance import test_encoder
from tests.acceptance.test_encoder import Kind as Media
from tests.acceptance.test_encoder import job_for, make, output
from tests.integration.relaying import Operator
from tests.needs import needs
from tests.playlists import URL, Listed, Playlist, stream

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe")]

ffmpeg = test_encoder.ffmpeg

LADDER = "small:180:300,tiny:120:150"
RUNGS = {"small", "tiny"}
MOST_RESIDENT_MIB = 1024
MOST_JOB_S = 60.0
"""Deadlines are to be met here whatever else the machine does; a job's own is 30 s."""
PACKET = 188
EIGHT_K = "color=black:size=7680x4320:rate=5:duration=0.4"
REFUSED = ("zero bytes", "random", "a playlist", "a concat script", "no PMT")
"""Nothing of the ladder can come of these."""


class Bait(BaseHTTPRequestHandler):
    """Nobody may ever ask for this."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        """Note who bites."""
        self.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def bait() -> Iterator[str]:
    """Give the URL of a server that notes who asks it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Bait) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory, bait: str) -> dict[str, bytes]:
    """Give segments by name, bad ones between good ones."""
    folder = tmp_path_factory.mktemp("media")
    secret = folder / "secret.ts"
    for name in ("small", "large", "huge"):
        (folder / name).mkdir()
    good, later, secret_media = (path.read_bytes() for path in make(folder / "small", Media(audio_hertz=None))[:3])
    secret.write_bytes(secret_media)
    other = make(folder / "large", Media(size="640x480", audio_hertz=None, offset_s=2.0))[0].read_bytes()
    huge = str(folder / "huge" / "huge.ts")
    encode = ["-c:v", "libx264", "-preset", "ultrafast", "-f", "mpegts"]
    output("ffmpeg", "-v", "error", "-nostdin", "-f", "lavfi", "-i", EIGHT_K, *encode, huge)
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{bait}/segment.ts\n#EXTINF:2,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode()
    script = f"ffconcat version 1.0\nfile '{secret}'\nfile '{bait}/concat'\n".encode()
    return {
        "good": good,
        "truncated": later[: len(later) // 2],
        "cut between packets": later[: len(later) // 2 // PACKET * PACKET],
        "zero bytes": b"",
        "random": random.Random(7).randbytes(len(good)),
        "random packets": b"".join(b"\x47" + random.Random(n).randbytes(PACKET - 1) for n in range(400)),
        "no PMT": b"".join(one for one in packets(good) if one[1:3] != b"\x50\x00"),  # ffmpeg's PMT is on PID 0x1000
        "another size in the middle": good + other,
        "8K": Path(huge).read_bytes(),
        "a playlist": text,
        "a concat script": script,
        "a playlist behind good packets": good[: 20 * PACKET] + text.ljust(40 * PACKET, b"\n"),
        "good at the end": later,
    }


def packets(body: bytes) -> list[bytes]:
    """Return the packets of an MPEG-TS file."""
    return [body[at : at + PACKET] for at in range(0, len(body), PACKET)]


class Shelf:
    """A source (desk.Source) that lists the first of *media*, then all of it, and gives each at once."""

    def __init__(self, media: dict[str, bytes]) -> None:
        self.media = list(media.values())
        self.listed = 1

    async def survey(self, stream: Stream, known: Iterable[Track] = ()) -> Presentation:
        return Presentation((Track(SOURCE, Kind.VARIANT, (URL,)),))

    async def load(self, name: str) -> Snapshot:
        listed, self.listed = self.listed, len(self.media)
        segments = tuple(Listed(number, duration="2.0") for number in range(listed))
        return Playlist(segments, target_duration="60").snapshot()  # time enough for all of them

    async def fetch(
        self,
        uri: str,
        byterange: ByteRange | None,
        restart: Restart,
        deadline_s: float,
        *,
        whole: Callable[[], str] = str,
        most_bytes: int = 0,
    ) -> int:
        body = self.media[int(Path(uri).stem)]
        restart()(body)
        if missing := whole():
            raise SegmentLost(missing)
        return len(body)


def test_hostile_segments_are_gaps_at_worst_and_the_stream_goes_on(
    media: dict[str, bytes],
    ffmpeg: Path,
    tmp_path: Path,
) -> None:
    made: dict[str, Made] = {}

    async def main() -> None:
        children = Children()
        try:
            with LocalStorage(tmp_path / "live", "news") as storage:
                wishes = Operator(stream(ladder=LADDER, window_s=600))
                tools = Tools(Shelf(media), storage, LocalEncoder(ffmpeg, children, 2), wishes, Clock(), Nudges())
                async with aclosing(relay(tools)) as ticks:
                    async for tick in ticks:
                        if tick.made:
                            made[list(media)[tick.made.numbered.segment.sequence]] = tick.made
                            if len(made) == len(media):
                                break
            assert children.running() == ()
        finally:
            await children.aclose()

    with capture_logs() as lines:
        asyncio.run(main())
    ends = [line for line in lines if line["event"] == "child.ended"]
    assert len(ends) >= 3
    assert {line["reason"] for line in ends} == {"done"}
    assert max(line["peak_rss_mib"] for line in ends) < MOST_RESIDENT_MIB
    assert max(line["wall_s"] for line in ends) < MOST_JOB_S
    for name, one in made.items():
        files = one.entry.files
        assert set(files) - {SOURCE} | set(one.failed) | set(one.dropped) >= RUNGS or one.lost, f"{name}: neither a rung nor a word"
        if name.startswith("good"):
            assert set(files) | set(one.dropped) == {SOURCE, *RUNGS}, f"{name}: {one.failed or one.lost}"
            assert "tiny" in files, "all come at once: the larger rung may be left out, the smallest never is"
        if name in REFUSED or name == "8K":
            assert not set(files) & RUNGS, name
        for rendition, file in files.items():
            published = (tmp_path / "live" / "news" / rendition / file.uri).read_bytes()
            assert published == media[name] if rendition == SOURCE else probe(published).video
    assert Bait.asked == []
    assert sorted(path.name for path in (tmp_path / "live").iterdir()) == ["news"]


OPENED = re.compile(r'(?:openat\(AT_FDCWD, |open\(|creat\()"([^"]+)", ([A-Z_|]+)[^)]*\) = \d')
SYSTEM = ("/usr/", "/lib", "/etc/", "/proc/", "/sys/", "/dev/null", "/dev/random", "/dev/urandom")


@needs("strace")
@pytest.mark.parametrize("name", ["a playlist", "a concat script", "a playlist behind good packets", "random packets", "8K"])
def test_ffmpeg_opens_its_segments_and_its_outputs_and_nothing_else(
    name: str,
    media: dict[str, bytes],
    bait: str,
    ffmpeg: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "stream"
    folder.mkdir()
    before, segment, log, traced = folder / "0.ts", folder / "1.ts", tmp_path / "log", tmp_path / "traced"
    before.write_bytes(media["good"])
    segment.write_bytes(media[name])
    calls = "trace=open,openat,creat,socket,connect,execve,unlink,unlinkat,rename,mkdir"
    words = [str(shutil.which("strace")), "-f", "-qq", "-e", calls, "-o", str(log), str(ffmpeg)]
    traced.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    traced.chmod(traced.stat().st_mode | stat.S_IXUSR)
    info = asked_for(media["good"], media[name])
    job = job_for(segment, 1, LADDER, previous=before, info=info)

    async def main() -> None:
        children = Children()
        try:
            with suppress(EncodeError):
                await LocalEncoder(traced, children, 1).encode(job)
        finally:
            await children.aclose()

    asyncio.run(main())
    said = log.read_text()
    assert "execve" in said, said
    inputs, outputs = {str(before), str(segment)}, {str(path) for path in job.outputs.values()}
    opened = {path: flags for path, flags in OPENED.findall(said) if not path.startswith(SYSTEM) and path != str(ffmpeg)}
    assert str(segment) in opened, said
    assert {path for path, flags in opened.items() if "O_RDONLY" in flags} <= inputs
    assert set(opened) - inputs <= outputs
    assert not re.search(r"socket\(AF_INET|connect\(|unlink|rename|mkdir", said), said
    assert said.count("execve(") == 1, "it starts no other program"
    assert Bait.asked == []
    assert {str(path) for path in folder.iterdir()} <= inputs | outputs


def asked_for(good: bytes, hostile: bytes) -> MediaInfo:
    """Return what the job believes: what the segment says of itself, or, where it says nothing, what a good one does."""
    try:
        found = probe(hostile)
    except MediaError:
        return probe(good)
    return found if found.video else probe(good)
