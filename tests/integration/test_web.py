"""The web server: what players, caches, browsers and operators get from it, and what hostile requests don't."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from hlsrelay.edge import Fetched
from hlsrelay.errors import RegistryUnavailable
from hlsrelay.statuses import ChildStatus, NodeStatus, StreamStatus
from hlsrelay.web import create_app
from hlsrelay.web.answers import Texts
from hlsrelay.web.files import CHUNK_BYTES
from tests.integration.memory_site import LONG, PLAYLIST, SEGMENT, MemorySite, descriptors


@pytest.fixture
def site(tmp_path: Path) -> MemorySite:
    return MemorySite(tmp_path)


def test_the_api_tells_of_processes_and_of_memory(site: MemorySite) -> None:
    child = ChildStatus("a:1", 17, "x", "encode news 1", ("ffmpeg",), 1.0, 0.5, 1 << 20, 7, 0.28, 1.5)
    site.nodes_known = [NodeStatus("a:1", "x", 93.5, True, (child,))]
    answer = ask(site, "/api/processes")
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert told["nodes"] == [{"node": "a:1", "memory_percent": 93.5, "pressed": True}]
    assert [(one["pid"], one["purpose"], one["argv"], one["frame"]) for one in told["processes"]] == [(17, "encode news 1", ["ffmpeg"], 7)]


def ask(site: MemorySite, path: str, method: str = "GET", page_dir: Path | None = None, **headers: str) -> httpx.Response:
    """Return the answer to one request; header names are written with '_'. Nothing is accepted or decoded unless asked for."""

    async def once() -> httpx.Response:
        app = create_app(site) if page_dir is None else create_app(site, page_dir=page_dir)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://relay") as client:
            client.headers["accept-encoding"] = "identity"
            return await client.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return asyncio.run(once())


# ---------------------------------------------------------------- playlists


def test_a_playlist_comes_from_memory_with_its_type_and_may_be_kept_for_a_second(site: MemorySite) -> None:
    answer = ask(site, "/live/news/720p/index.m3u8")
    assert (answer.status_code, answer.content) == (200, PLAYLIST)
    assert answer.headers["content-type"] == "application/vnd.apple.mpegurl"
    assert answer.headers["cache-control"] == "max-age=1"
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_playlist_that_is_not_in_memory_comes_from_disk(site: MemorySite) -> None:
    (site.live_dir / "news" / "index.m3u8").write_bytes(b"#EXTM3U\n# from disk\n")
    assert ask(site, "/live/news/index.m3u8").content == b"#EXTM3U\n# from disk\n"


def test_a_playlist_is_zipped_for_who_accepts_that_and_has_another_etag_then(site: MemorySite) -> None:
    plain, zipped = ask(site, "/live/news/720p/index.m3u8"), ask(site, "/live/news/720p/index.m3u8", accept_encoding="br, gzip")
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert zipped.content == PLAYLIST
    assert int(zipped.headers["content-length"]) == len(gzip.compress(PLAYLIST, 6, mtime=0))
    assert plain.headers["etag"] != zipped.headers["etag"]


def test_a_playlist_that_the_client_holds_is_not_sent_again_until_it_changes(site: MemorySite) -> None:
    path = "/live/news/720p/index.m3u8"
    etag = ask(site, path).headers["etag"]
    assert not etag.startswith("W/")
    again = ask(site, path, if_none_match=etag)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    site.published["news/720p/index.m3u8"] = PLAYLIST + b"#EXTINF:6.0,\n813.ts\n"
    assert ask(site, path, if_none_match=etag).status_code == 200


def test_a_published_body_is_zipped_once_however_many_ask() -> None:
    texts, scope = Texts(), {"type": "http", "method": "GET", "headers": [(b"accept-encoding", b"gzip")]}
    first, second = texts.answer(scope, "a", PLAYLIST), texts.answer(scope, "a", PLAYLIST)
    assert first.body is second.body


def test_remembered_texts_stay_within_their_bound() -> None:
    texts, scope = Texts(kept_bytes=1000), {"type": "http", "method": "GET", "headers": []}
    for number in range(500):
        texts.answer(scope, f"stream-{number}", b"%0100d" % number)
        texts.answer(scope, "stream-0", b"%0100d" % number)
    assert len(texts) <= 10


# ---------------------------------------------------------------- segments


def test_a_segment_is_sent_byte_for_byte_with_type_length_and_a_long_cache_time(site: MemorySite) -> None:
    for name, body in (("812.ts", SEGMENT), ("813.ts", LONG)):
        answer = ask(site, f"/live/news/720p/{name}")
        assert (answer.status_code, answer.content) == (200, body)
        assert answer.headers["content-type"] == "video/mp2t"
        assert answer.headers["content-length"] == str(len(body))
        assert answer.headers["cache-control"] == "public, max-age=3600"
        assert answer.headers["accept-ranges"] == "bytes"
        assert "content-encoding" not in ask(site, f"/live/news/720p/{name}", accept_encoding="gzip").headers


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("init.mp4", "video/mp4"),
        ("1.m4s", "video/iso.segment"),
        ("1.aac", "audio/aac"),
        ("1.mp3", "audio/mpeg"),
        ("1.ac3", "audio/ac3"),
        ("1.ec3", "audio/eac3"),
        ("1.vtt", "text/vtt"),
    ],
)
def test_each_kind_of_file_has_its_type(site: MemorySite, name: str, kind: str) -> None:
    (site.live_dir / "news" / name).write_bytes(b"x")
    assert ask(site, f"/live/news/{name}").headers["content-type"] == kind


def test_an_empty_segment_is_an_empty_answer(site: MemorySite) -> None:
    (site.live_dir / "news" / "1.ts").touch()
    answer = ask(site, "/live/news/1.ts")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")


def test_a_segments_etag_does_not_depend_on_the_inode(site: MemorySite) -> None:
    path = site.live_dir / "news" / "720p" / "812.ts"
    before, facts = ask(site, "/live/news/720p/812.ts").headers["etag"], path.stat()
    path.rename(path.with_name("kept.ts"))
    path.write_bytes(SEGMENT)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert ask(site, "/live/news/720p/812.ts").headers["etag"] == before
    assert ask(site, "/live/news/720p/812.ts", if_none_match=before).status_code == 304


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [("bytes=0-0", 0, 1), ("bytes=100-", 100, None), ("bytes=-5", -5, None), (f"bytes=7-{CHUNK_BYTES + 9}", 7, CHUNK_BYTES + 10)],
)
def test_a_range_is_answered_with_those_bytes(site: MemorySite, text: str, start: int, stop: int | None) -> None:
    answer = ask(site, "/live/news/720p/813.ts", range=text)
    assert (answer.status_code, answer.content) == (206, LONG[start:stop])
    first = start % len(LONG)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(LONG)}"
    assert answer.headers["content-length"] == str(len(answer.content))


def test_a_range_past_the_end_is_refused_with_the_size_and_not_cached(site: MemorySite) -> None:
    answer = ask(site, "/live/news/720p/812.ts", range=f"bytes={len(SEGMENT)}-")
    assert (answer.status_code, answer.headers["content-range"], answer.content) == (416, f"bytes */{len(SEGMENT)}", b"")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("text", ["bytes=5-2", "bytes=x", "lines=1-2", "bytes=0-1,4-5", "bytes=-", "="])
def test_a_malformed_range_is_ignored(site: MemorySite, text: str) -> None:
    answer = ask(site, "/live/news/720p/812.ts", range=text)
    assert (answer.status_code, answer.content) == (200, SEGMENT)


def test_if_range_gives_the_part_only_while_the_file_is_the_same(site: MemorySite) -> None:
    etag = ask(site, "/live/news/720p/812.ts").headers["etag"]
    assert ask(site, "/live/news/720p/812.ts", range="bytes=0-9", if_range=etag).status_code == 206
    for other in ('"other"', f"W/{etag}", "Sat, 21 Nov 2026 00:00:00 GMT"):
        assert ask(site, "/live/news/720p/812.ts", range="bytes=0-9", if_range=other).content == SEGMENT


def test_head_says_what_get_would_and_sends_no_body(site: MemorySite) -> None:
    for path in ("/live/news/720p/812.ts", "/live/news/720p/813.ts", "/live/news/720p/index.m3u8", "/", "/api/streams", "/healthz"):
        got, head = ask(site, path), ask(site, path, "HEAD")
        assert (head.status_code, head.content) == (200, b"")
        assert {**head.headers} == {**got.headers}
    assert ask(site, "/live/news/720p/812.ts", "HEAD", range="bytes=0-3").headers["content-length"] == str(len(SEGMENT))


# ---------------------------------------------------------------- other people's pages


def test_a_page_of_another_origin_may_read_everything_below_live(site: MemorySite) -> None:
    for path in ("/live/news/720p/812.ts", "/live/news/720p/index.m3u8", "/live/news/nothing.ts", "/live/%2e%2e"):
        assert ask(site, path, origin="https://example.com").headers["access-control-allow-origin"] == "*"
    assert "Content-Range" in ask(site, "/live/news/720p/812.ts").headers["access-control-expose-headers"]
    preflight = ask(site, "/live/news/720p/812.ts", "OPTIONS", origin="https://example.com", access_control_request_headers="range")
    assert preflight.status_code == 204
    assert "Range" in preflight.headers["access-control-allow-headers"]


def test_nothing_can_be_written(site: MemorySite) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        for path in ("/live/news/720p/812.ts", "/api/streams", "/"):
            assert ask(site, path, method).status_code == 405


# ---------------------------------------------------------------- what isn't there


@pytest.mark.parametrize(
    "path",
    [
        "/live/",
        "/live/news",
        "/live/news/",
        "/live/news/720p/",
        "/live/news/720p",
        "/live/news/720p/999.ts",
        "/live/unknown/index.m3u8",
        "/live/news/720p/812.ts/",
        "/live/news/720p/812.ts/1.ts",
        "/live/news//720p/812.ts",
        "/live/%2e%2e/secret.ts",
        "/live/news/%2e%2e/%2e%2e/secret.ts",
        "/live/..%2fsecret.ts",
        "/live/%2fetc/passwd.ts",
        "/live/news/.hidden.ts",
        "/live/.hidden/1.ts",
        "/live/news/1.ts.tmp",
        "/live/news/epoch.json",
        "/live/news/1.ts%00.vtt",
        "/live/news/1%0a.ts",
        "/live/news/é.ts",
        "/live/news/folder.ts",
        "/live/news/link.ts",
        "/live/news/fifo.ts",
        "/live/news/fifo.m3u8",
        "/live/news/" + "a" * 300 + ".ts",
        "/live/" + "a/" * 2000 + "1.ts",
        "/live",
        "/nothing",
        "/assets/package.json",
        "/assets/..%2fweb%2fapp.py",
        "/healthz/",
    ],
)
def test_what_is_not_published_is_a_short_404_that_nobody_keeps(site: MemorySite, path: str) -> None:
    news = site.live_dir / "news"
    for name in (".hidden.ts", "1.ts.tmp", "epoch.json"):
        (news / name).write_bytes(b"secret")
    (site.live_dir.parent / "secret.ts").write_bytes(b"secret")
    (site.live_dir / ".hidden").mkdir()
    (site.live_dir / ".hidden" / "1.ts").write_bytes(b"secret")
    (news / "folder.ts").mkdir()
    (news / "link.ts").symlink_to(site.live_dir.parent / "secret.ts")
    os.mkfifo(news / "fifo.ts")
    os.mkfifo(news / "fifo.m3u8")
    before = descriptors()
    answer = ask(site, path)
    assert answer.status_code == 404
    assert len(answer.content) < 60
    assert answer.headers["cache-control"] == "no-store"
    assert descriptors() == before


def test_a_relay_out_of_descriptors_says_come_back_rather_than_not_found(site: MemorySite, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(24, "Too many open files")

    app = create_app(site)

    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://relay") as client:
            monkeypatch.setattr("hlsrelay.web.files.os.open", full)
            try:
                return await client.get("/live/news/720p/812.ts")
            finally:
                monkeypatch.undo()

    assert asyncio.run(once()).status_code == 503


def test_a_fault_of_ours_is_one_line_for_the_client_and_no_traceback(site: MemorySite) -> None:
    site.fault = RuntimeError("secret detail")
    answer = ask(site, "/api/streams")
    assert answer.status_code == 500
    assert b"secret" not in answer.content
    site.fault = RegistryUnavailable("Redis doesn't answer at redis://host:6379/0")
    answer = ask(site, "/api/streams")
    assert (answer.status_code, answer.text) == (503, "Redis doesn't answer at redis://host:6379/0\n")


# ---------------------------------------------------------------- page, API, health


def test_the_api_lists_every_stream_by_name_with_all_its_fields(site: MemorySite) -> None:
    site.known = [
        StreamStatus(id="sports", desired="stop", state="stopped"),
        StreamStatus(id="news", desired="run", state="running", lag_s=1.5),
    ]
    answer = ask(site, "/api/streams")
    assert [stream["id"] for stream in answer.json()["streams"]] == ["news", "sports"]
    assert set(answer.json()["streams"][0]) == set(StreamStatus.__slots__)
    assert answer.headers["cache-control"] == "no-store"


def test_health_readiness_and_metrics_answer_in_the_ways_their_readers_expect(site: MemorySite) -> None:
    assert ask(site, "/healthz").json()["status"] == "ok"
    assert ask(site, "/readyz").status_code == 200
    site.is_ready = False
    assert ask(site, "/readyz").status_code == 503
    assert (ask(site, "/healthz").status_code, ask(site, "/healthz").json()["ready"]) == (200, False)
    metrics = ask(site, "/metrics")
    assert (metrics.content, metrics.headers["content-type"]) == (b"hlsrelay_up 1\n", "text/plain; version=0.0.4; charset=utf-8")


def test_the_page_runs_no_script_but_its_own(site: MemorySite) -> None:
    page = ask(site, "/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "<script>" not in page.text
    assert "style=" not in page.text
    for asset in ("page.js", "page.css", "icon.svg"):
        assert f"/assets/{asset}" in page.text
        assert ask(site, f"/assets/{asset}").status_code == 200


def test_hls_js_is_served_with_its_licence_where_npm_put_it(site: MemorySite, tmp_path: Path) -> None:
    module = tmp_path / "page" / "node_modules" / "hls.js"
    (module / "dist").mkdir(parents=True)
    (module / "LICENSE").write_text("Apache License, Version 2.0")
    (module / "dist" / "hls.light.min.js").write_text("light")
    assert ask(site, "/assets/hls.js", page_dir=tmp_path / "page").text == "light"
    (module / "dist" / "hls.min.js").write_text("whole")
    assert ask(site, "/assets/hls.js", page_dir=tmp_path / "page").text == "whole"
    assert "Apache" in ask(site, "/assets/hls.js.LICENSE.txt", page_dir=tmp_path / "page").text


def test_without_npm_the_page_gets_an_empty_script_that_says_why(site: MemorySite, tmp_path: Path) -> None:
    answer = ask(site, "/assets/hls.js", page_dir=tmp_path)
    assert answer.status_code == 200
    assert answer.text.startswith("// hls.js isn't installed here")
    assert answer.headers["cache-control"] == "no-store"
    assert ask(site, "/assets/hls.js.LICENSE.txt", page_dir=tmp_path).status_code == 404


def test_the_pages_lock_file_pins_hls_js_exactly_and_names_no_registry() -> None:
    folder = Path(__file__).parents[2] / "hlsrelay" / "web_page"
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]["hls.js"]
    lock = json.loads((folder / "package-lock.json").read_text())
    assert lock["packages"]["node_modules/hls.js"]["version"] == wanted
    assert lock["packages"]["node_modules/hls.js"]["license"] == "Apache-2.0"
    assert "resolved" not in (folder / "package-lock.json").read_text()


# ---------------------------------------------------------------- a client that goes away


def test_a_client_that_goes_away_between_two_chunks_leaves_no_descriptor(site: MemorySite) -> None:
    before = descriptors()

    async def leave() -> None:
        sent = 0

        async def send(message: Any) -> None:
            nonlocal sent
            sent += 1
            if sent == 3:
                raise OSError("the client is gone")

        scope = {"type": "http", "method": "GET", "headers": [], "path": "/live/news/720p/813.ts", "query_string": b"", "root_path": ""}
        with pytest.raises(OSError, match="gone"):
            await create_app(site)(scope, nothing, send)

    asyncio.run(leave())
    assert descriptors() == before


async def nothing() -> Any:
    return {"type": "http.request"}


def test_a_response_that_is_cancelled_leaves_no_descriptor(site: MemorySite) -> None:
    before = descriptors()

    async def cancel() -> None:
        stuck = asyncio.Event()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                stuck.set()
                await asyncio.Event().wait()

        scope = {"type": "http", "method": "GET", "headers": [], "path": "/live/news/720p/813.ts", "query_string": b"", "root_path": ""}
        task = asyncio.ensure_future(create_app(site)(scope, nothing, send))
        await stuck.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancel())
    assert descriptors() == before


def test_a_stream_that_another_node_relays_is_answered_with_what_that_has_in_parts_too(site: MemorySite) -> None:
    site.owners = {
        "far/source/index.m3u8": Fetched(200, PLAYLIST),
        "far/source/1.ts": Fetched(200, b"0123456789", '"theirs"'),
        "far/source/2.ts": Fetched(404),
        "far/source/3.ts": Fetched(502),
    }
    listing = ask(site, "/live/far/source/index.m3u8")
    assert (listing.content, listing.headers["content-type"]) == (PLAYLIST, "application/vnd.apple.mpegurl")
    whole = ask(site, "/live/far/source/1.ts")
    assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, b"0123456789", '"theirs"')
    part = ask(site, "/live/far/source/1.ts", range="bytes=2-4")
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    assert ask(site, "/live/far/source/1.ts", if_none_match='"theirs"').status_code == 304
    assert ask(site, "/live/far/source/2.ts").status_code == 404
    assert ask(site, "/live/far/source/3.ts").status_code == 503
    assert ask(site, "/live/far/source/1.ts", x_hlsrelay_hop="1").status_code == 404, "a node's own request is not passed on"
