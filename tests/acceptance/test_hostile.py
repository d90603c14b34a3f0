"""Hostile sources on real sockets, read by a process of its own whose memory the kernel measures."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.playlists import live

pytestmark = pytest.mark.acceptance

MOST_GROWN_KIB = 10 << 10
BOMB_BYTES = 200 << 20
HUGE_BYTES = 100 << 20


def bomb(head: bytes) -> bytes:
    """Return 200 MB, compressed by gzip to a thousandth."""
    squeeze = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    parts = [squeeze.compress(head), *(squeeze.compress(b"\n" * (1 << 20)) for _ in range(BOMB_BYTES >> 20)), squeeze.flush()]
    return b"".join(parts)


class Origin(BaseHTTPRequestHandler):
    """Good things, and others."""

    protocol_version = "HTTP/1.1"
    bombs: dict[str, bytes] = {}  # noqa: RUF012

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Serve until whoever asks has had enough."""
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Answer."""
        name = self.path.partition("?")[0].strip("/")
        if name in self.bombs:
            self._head({"Content-Encoding": "gzip", "Content-Length": str(len(self.bombs[name]))})
            self.wfile.write(self.bombs[name])
        elif name.startswith("huge"):
            self._head({"Content-Length": str(HUGE_BYTES)} if name != "huge-chunked.m3u8" else {"Connection": "close"})
            self.wfile.write(b"#EXTM3U\n")
            for _ in range(HUGE_BYTES >> 16):
                self.wfile.write(b"#EXTINF:4,\nsegment.ts\n" * 3000)
        elif name == "moved.m3u8":
            body = self.bombs["bomb.m3u8"]
            self.send_response(302)
            for field, value in {"Location": "/bomb.m3u8", "Content-Encoding": "gzip", "Content-Length": str(len(body))}.items():
                self.send_header(field, value)
            self.end_headers()
            self.wfile.write(body)
        else:
            body = live(1, 2, 3).text().encode() if name.endswith(".m3u8") else b"\x47" * 188 * 1000
            self._head({"Content-Length": str(len(body))})
            self.wfile.write(body)

    def _head(self, headers: dict[str, str]) -> None:
        self.send_response(200)
        for field, value in headers.items():
            self.send_header(field, value)
        self.end_headers()


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """Give the base URL of an origin on real sockets."""
    Origin.bombs = {"bomb.m3u8": bomb(b"#EXTM3U\n"), "bomb.ts": bomb(b"\x47")}
    with ThreadingHTTPServer(("127.0.0.1", 0), Origin) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
    Origin.bombs = {}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is measured by Linux's /proc")
@pytest.mark.parametrize(
    ("kind", "path", "error"),
    [
        ("playlist", "bomb.m3u8?token=hunter2", "PlaylistError: the playlist is larger than 4096 KiB"),
        ("segment", "bomb.ts?token=hunter2", "larger than 64 MiB"),
        ("playlist", "huge.m3u8", "PlaylistError: the playlist is larger than 4096 KiB"),
        ("playlist", "huge-chunked.m3u8", "PlaylistError: the playlist is larger than 4096 KiB"),
        ("segment", "huge.ts", "larger than 64 MiB"),
        ("playlist", "moved.m3u8", "PlaylistError: the playlist is larger than 4096 KiB"),
    ],
)
def test_bombs_and_floods_are_refused_by_name_for_less_than_10_mb(origin: str, kind: str, path: str, error: str) -> None:
    argv = [sys.executable, "-m", "tests.acceptance.hostile_reader", kind, origin, path]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert error in found["error"]
    assert found["grown_kib"] < MOST_GROWN_KIB, found
    assert found["good_after"] == 3
    assert "hunter2" not in found["error"] + done.stderr
    print(f"{path}: {found['grown_kib']} KiB")
