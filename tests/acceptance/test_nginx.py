"""deploy/nginx.conf, run by a real nginx."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.acceptance.live_source import muxing
from tests.acceptance.live_source import nginx as origin
from tests.acceptance.relay_process import KEY, redis_server, relaying, running
from tests.needs import needs
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, needs("nginx")]

CONFIG = Path(__file__).parents[2] / "deploy" / "nginx.conf"
EDGE = CONFIG.with_name("nginx-edge.conf")
PLAYLIST = "#EXTM3U\n" + "#EXTINF:2.0,\n1.ts\n" * 50


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Serve a folder with the file as it is, but for the folder, the port and where nginx keeps its own things."""
    folder = tmp_path_factory.mktemp("nginx")
    stream = folder / "live" / "news" / "source"
    stream.mkdir(parents=True)
    (stream / "index.m3u8").write_text(PLAYLIST)
    (stream / "1.ts").write_bytes(bytes(range(188)))
    (stream / ".lock").write_text("")
    (stream.parent / ".tmp").mkdir()
    (stream.parent / ".tmp" / "2.ts").write_bytes(b"half")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = CONFIG.read_text().replace("listen 8081;", f"listen 127.0.0.1:{port};").replace("root /var/lib/hlsrelay;", f"root {folder};")
    assert str(port) in text
    assert str(folder) in text
    argv = configured(text, folder)
    with (
        subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}/live/news/", trust_env=False) as client,
    ):
        try:
            until(lambda: is_up(port) or process.poll() is not None, 10)
            assert process.poll() is None, (folder / "error.log").read_text()
            yield client
        finally:
            process.terminate()
            process.wait(10)


def configured(text: str, folder: Path) -> list[str]:
    """Write a configuration that keeps its own things in *folder*; returns what runs it. Fails where nginx finds fault with it."""
    kept = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = folder / "nginx.conf"
    user = "user root;\n" if os.getuid() == 0 else ""  # else its workers could not enter a folder of ours
    config.write_text(f"{user}daemon off;\npid {folder}/pid;\n" + text.replace("http {\n", "http {\n" + kept))
    argv = [str(shutil.which("nginx")), "-c", str(config), "-p", str(folder), "-e", str(folder / "error.log")]
    tested = subprocess.run([*argv, "-t"], check=False, capture_output=True, text=True, timeout=30)
    assert "test is successful" in tested.stderr, tested.stderr
    assert "[warn]" not in tested.stderr
    return argv


def edge(folder: Path, port: int, *workers: str) -> list[str]:
    """Return what runs deploy/nginx-edge.conf at *port* in front of *workers*."""
    text = EDGE.read_text().replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("/var/cache/nginx/live", f"{folder}/cache")
    for name, worker in zip(("worker-a:8080", "worker-b:8080"), workers, strict=True):
        assert name in text
        text = text.replace(name, worker)
    return configured(text, folder)


def is_up(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_playlist_is_short_lived_compressed_and_open_to_every_page(nginx: httpx.Client) -> None:
    answer = nginx.get("source/index.m3u8")
    assert answer.text == PLAYLIST
    assert answer.headers["content-type"] == "application/vnd.apple.mpegurl"
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["cache-control"] == "max-age=1"
    assert answer.headers["access-control-allow-origin"] == "*"


def test_a_segment_is_long_lived_whole_or_in_ranges(nginx: httpx.Client) -> None:
    answer = nginx.get("source/1.ts")
    assert answer.content == bytes(range(188))
    assert answer.headers["content-type"] == "video/mp2t"
    assert answer.headers["cache-control"] == "public, max-age=3600"
    assert "content-encoding" not in answer.headers
    part = nginx.get("source/1.ts", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))


def test_what_is_not_published_is_not_served_and_not_remembered(nginx: httpx.Client) -> None:
    for path in ("source/.lock", ".tmp/2.ts", "source/", "source/2.txt", "../../nginx.conf"):
        assert nginx.get(path).status_code == 404, path
    missing = nginx.get("source/2.ts")
    assert (missing.status_code, missing.headers["cache-control"]) == (404, "no-store")
    assert missing.headers["access-control-allow-origin"] == "*", "else the page can't see that it was a 404"


def test_a_preflight_is_answered_and_nothing_can_be_written(nginx: httpx.Client) -> None:
    assert nginx.request("OPTIONS", "source/1.ts").status_code == 204
    assert nginx.put("source/1.ts", content=b"x").status_code in (403, 405)


def test_the_edge_asks_another_worker_where_one_is_gone_keeps_segments_and_shows_nothing_but_streams(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    class Worker(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            self.send_response(200)
            self.send_header("Cache-Control", "max-age=1" if self.path.endswith(".m3u8") else "public, max-age=3600")
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"data")

        def log_message(self, *_: object) -> None:
            pass

    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port, gone = one.getsockname()[1], other.getsockname()[1]
    with ThreadingHTTPServer(("127.0.0.1", 0), Worker) as worker:
        threading.Thread(target=worker.serve_forever, daemon=True).start()
        argv = edge(tmp_path, port, f"127.0.0.1:{gone}", f"127.0.0.1:{worker.server_port}")
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            try:
                until(lambda: is_up(port))
                for number in range(20):
                    assert client.get(f"/live/news/source/{number % 2}.ts").content == b"data"
                    assert client.get("/live/news/source/index.m3u8").status_code == 200
                assert {asked[f"/live/news/source/{number}.ts"] for number in range(2)} == {1}
                assert asked["/live/news/source/index.m3u8"] <= 10
                assert client.get("/api/nodes").status_code == 404
                assert client.post("/live/news/source/index.m3u8").status_code in (403, 405)
            finally:
                process.terminate()
                process.wait(10)
                worker.shutdown()


@pytest.mark.night
@needs("ffmpeg", "redis-server", "redis-cli")
def test_the_first_viewer_of_each_segment_finds_it_in_the_edge_that_it_was_preloaded_through(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port, worker = one.getsockname()[1], f"127.0.0.1:{other.getsockname()[1]}"
    (tmp_path / "edge").mkdir()
    with (
        redis_server() as redis,
        origin(tmp_path / "origin", tmp_path / "nginx") as url,
        muxing(tmp_path / "origin", size="320x180", segment_s=1),
        running(edge(tmp_path / "edge", port, worker, worker), tmp_path / "edge.log"),
        httpx.Client(base_url=f"http://127.0.0.1:{port}/live/news/", trust_env=False) as viewer,
    ):
        redis.hset(KEY, source=f"{url}/live.m3u8", preload=f"http://127.0.0.1:{port}/live")
        until(lambda: is_up(port))
        with relaying(tmp_path / "data", redis, HLSRELAY_HTTP=worker, unjudged="it is about the edge") as relay:
            seen: dict[str, str] = {}

            def played() -> bool:
                for line in viewer.get("source/index.m3u8").text.splitlines():
                    if line.endswith(".ts") and line not in seen:
                        seen[line] = viewer.get(f"source/{line}").raise_for_status().headers["x-cache-status"]
                return len(seen) >= 8

            until(played, 30)
            figures = relay.client.get(f"{relay.url}/metrics").text
    assert set(seen.values()) == {"HIT"}, seen
    assert re.search(r'hlsrelay_preloads_total\{.*outcome="warm",stream="news"\} ([89]|\d\d)', figures)
    assert 'outcome="failed"' not in figures
