"""Live sources that this project has no part in: ffmpeg's own HLS muxer, or a playlist that a test writes, behind a real nginx."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.acceptance.relay_process import running
from tests.waiting import until

NGINX = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
    types {{ application/vnd.apple.mpegurl m3u8; video/mp2t ts; audio/aac aac; audio/ac3 ac3; video/mp4 mp4 m4s; }}
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port};
        root "{root}";
        add_header Cache-Control no-cache;
    }}
}}
"""
PORTS_TRIED = 5


@contextmanager
def nginx(root: Path, folder: Path) -> Iterator[str]:
    """Serve *root* by nginx, in the foreground and as our user, while the block runs; its own files go to *folder*. Gives its URL."""
    for path in (root, folder, folder / "temp"):
        path.mkdir(parents=True, exist_ok=True)
    for attempt in range(PORTS_TRIED):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (folder / "nginx.conf").write_text(NGINX.format(port=port, root=root))
        argv = ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
        url = f"http://127.0.0.1:{port}"
        with running(argv, folder / "nginx.log") as process:
            until(functools.partial(_answers_or_ended, process, url))
            if process.poll() is None:
                yield url
                return
        assert attempt < PORTS_TRIED - 1, (folder / "nginx.log").read_text()  # else somebody took the port meanwhile


def _answers_or_ended(process: subprocess.Popen[bytes], url: str) -> bool:
    with suppress(httpx.TransportError):
        return process.poll() is not None or httpx.get(url, trust_env=False).status_code in (403, 404)
    return False


@dataclass(frozen=True)
class Muxer:
    """A running ffmpeg that publishes a live stream into *folder*. It keeps every segment it ever made: the test's copies."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def playlist(self) -> Path:
        """The playlist that it rewrites."""
        return self.folder / "live.m3u8"

    def segments(self) -> list[Path]:
        """Return the finished segments, oldest first: those that were ever listed."""
        made = sorted(self.folder.glob("*.ts"), key=lambda path: int(path.stem))
        listed = [line for line in self.playlist.read_text().splitlines() if line.endswith(".ts")] if self.playlist.exists() else []
        return [path for path in made if listed and int(path.stem) <= int(Path(listed[-1]).stem)]


@contextmanager
def muxing(
    folder: Path, *, segment_s: int = 2, size: str = "1280x720", rate: int = 30, hertz: int = 440, first: int = 0, listed: int = 8
) -> Iterator[Muxer]:
    """Run ffmpeg's HLS muxer in real time: a test picture with B-frames and a tone, *listed* segments from number *first* on."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = str(segment_s * rate)
    argv = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-re"]
    argv += ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}", "-re", "-f", "lavfi", "-i", f"sine={hertz}:sample_rate=48000"]
    argv += ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-b:v", "2500k", "-maxrate", "2500k", "-bufsize", "2500k"]
    argv += ["-g", frames, "-keyint_min", frames, "-sc_threshold", "0", "-pix_fmt", "yuv420p", "-c:a", "aac", "-b:a", "96k"]
    argv += [
        "-f",
        "hls",
        "-hls_time",
        str(segment_s),
        "-hls_list_size",
        str(listed),
        "-hls_flags",
        "temp_file",
        "-start_number",
        str(first),
    ]
    argv += ["-hls_segment_filename", "%d.ts", "live.m3u8"]
    with running(argv, folder / "ffmpeg.log", cwd=folder) as process:
        muxer = Muxer(folder, process)
        until(lambda: muxer.playlist.exists() or None)
        yield muxer


@dataclass
class WrittenPlaylist:
    """A live playlist that the test moves on, a segment at a time; every change is one rename."""

    path: Path
    target_duration_s: int = 1
    listed: int = 6
    media_sequence: int = 0
    _segments: deque[str] = field(default_factory=deque)

    def append(self, uri: str, duration_s: float, *tags: str) -> None:
        """List one more segment, *tags* before it; the oldest may leave."""
        self._segments.append("\n".join([*tags, f"#EXTINF:{duration_s:.5f},", uri]))
        if len(self._segments) > self.listed:
            self._segments.popleft()
            self.media_sequence += 1
        head = ["#EXTM3U", "#EXT-X-VERSION:6", f"#EXT-X-TARGETDURATION:{self.target_duration_s}"]
        text = "\n".join([*head, f"#EXT-X-MEDIA-SEQUENCE:{self.media_sequence}", *self._segments, ""])
        temp = self.path.with_suffix(".temp")
        temp.write_text(text)
        os.replace(temp, self.path)
