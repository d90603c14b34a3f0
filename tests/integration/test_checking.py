"""The watcher in virtual time: what it fetches when, over HTTP and from a folder, and that the judge hears of every fault."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from hlsrelay.checking import Report, check
from hlsrelay.errors import ConfigError, UpstreamError
from hlsrelay.judge import Finding
from tests.unit.test_media_probe import picture, segment, sound
from tests.virtual import EPOCH, VirtualClock, elapse, run_virtually

BASE = "https://live.example/tv/"
TARGET_S = 4
LISTED = 7
STAYS_S = TARGET_S * (LISTED + 1)


def clip(number: int) -> bytes:
    """Four seconds of MPEG-TS: eight pictures, and sound."""
    start = number * TARGET_S * 90_000
    pictures = [picture(start + index * 45_000, idr=index == 0) for index in range(8)]
    return segment(pictures[0], sound(start), *pictures[1:])


@dataclass
class Server:
    """A live server with two variants that keeps every rule, but for what *fault* answers instead."""

    fault: Callable[[str, Server], httpx.Response | None] = lambda path, server: None
    asked: list[tuple[float, str]] = field(default_factory=list)

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def newest(self) -> int:
        return 100 + int(self.now_s() / TARGET_S)

    def playlist(self, newest: int | None = None) -> str:
        newest = newest or self.newest()
        first = newest - LISTED + 1
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{TARGET_S}", f"#EXT-X-MEDIA-SEQUENCE:{first}"]
        for number in range(first, newest + 1):
            when = EPOCH + timedelta(seconds=number * TARGET_S)
            lines += [f"#EXT-X-PROGRAM-DATE-TIME:{when.isoformat()}", f"#EXTINF:{TARGET_S}.0,", f"{number}.ts"]
        return "\n".join([*lines, ""])

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = str(request.url).removeprefix(BASE)
        self.asked.append((self.now_s(), path))
        if (wrong := self.fault(path, self)) is not None:
            return wrong
        if path == "index.m3u8":
            inf = 'BANDWIDTH=9000,AVERAGE-BANDWIDTH=5000,CODECS="avc1.640028,mp4a.40.2",RESOLUTION=1280x720,FRAME-RATE=2.000'
            return playlist_answer(f"#EXTM3U\n#EXT-X-STREAM-INF:{inf}\nhigh/live.m3u8\n#EXT-X-STREAM-INF:{inf}\nlow/live.m3u8\n")
        if path.endswith(".m3u8"):
            return playlist_answer(self.playlist())
        number = int(path.rpartition("/")[2].removesuffix(".ts"))
        gone_s = (number + LISTED - 100) * TARGET_S + STAYS_S
        if number > self.newest() or self.now_s() > gone_s:
            return httpx.Response(404)
        return media_answer(clip(number), request)


def playlist_answer(text: str) -> httpx.Response:
    body = gzip.compress(text.encode())
    headers = {"content-type": "application/vnd.apple.mpegurl", "content-encoding": "gzip", "content-length": str(len(body))}
    return httpx.Response(200, headers=headers, stream=_Raw(body))


def media_answer(body: bytes, request: httpx.Request) -> httpx.Response:
    span = request.headers.get("range")
    if not span:
        return httpx.Response(200, content=body)
    first, last = (int(word) for word in span.removeprefix("bytes=").split("-"))
    part = body[first : last + 1]
    return httpx.Response(206, content=part, headers={"content-range": f"bytes {first}-{first + len(part) - 1}/{len(body)}"})


class _Raw(httpx.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body


class _Passing(httpx.AsyncBaseTransport):
    """Gives the server's answers as a network does: unread, compressed bodies still so."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._server.answer(request)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=answer.stream)


def watched(server: Server, target: str = f"{BASE}index.m3u8", seconds: float = 90.0, **options: bool) -> Report:
    """Watch *server* in virtual time."""

    def transport(*_: object) -> httpx.AsyncBaseTransport:
        return _Passing(server)

    return run_virtually(check(target, seconds, clock=VirtualClock(), transport=transport, **options))  # type: ignore[arg-type]


def rules(report: Report) -> set[str]:
    return {one.rule for one in (*report.errors, *report.warnings)}


def texts(report: Report) -> list[str]:
    return [f"{one.rule} {one.where}: {one.text}" for one in report.findings]


def test_a_good_server_is_watched_in_silence() -> None:
    server = Server()
    report = watched(server)
    assert texts(report) == []
    assert report.playlists == 3
    assert report.segments == 2 * (LISTED + 22)
    assert report.removed > 20
    assert "no rule broken" in report.verdict


def test_each_segment_is_fetched_once_and_a_removed_one_again_shortly_before_it_may_go() -> None:
    server = Server()
    watched(server)
    times = [at_s for at_s, path in server.asked if path == "high/96.ts"]
    assert len(times) == 2
    removed_s = (96 + LISTED - 100) * TARGET_S
    assert removed_s + STAYS_S - 4 < times[1] < removed_s + STAYS_S


def test_playlists_are_loaded_at_a_quarter_of_their_target_duration() -> None:
    server = Server()
    watched(server, seconds=40.0)
    assert sum(path == "high/live.m3u8" for _, path in server.asked) == pytest.approx(41, abs=2)


def test_without_media_only_the_first_bytes_of_segments_are_asked_for() -> None:
    server = Server()
    report = watched(server, media=False)
    assert texts(report) == []
    assert report.segments == 2 * (LISTED + 22)


def missing(path: str, server: Server) -> httpx.Response | None:
    return httpx.Response(404) if path == "high/105.ts" else None


def gone_at_once(path: str, server: Server) -> httpx.Response | None:
    is_old = path.endswith(".ts") and int(path.rpartition("/")[2][:-3]) <= server.newest() - LISTED
    return httpx.Response(404) if is_old else None


def cut_short(path: str, server: Server) -> httpx.Response | None:
    return httpx.Response(200, headers={"content-length": "5000"}, stream=_Raw(b"\x47" * 188)) if path == "low/105.ts" else None


def no_media(path: str, server: Server) -> httpx.Response | None:
    return httpx.Response(200, content=(b"\x47\x1f\xff\x10" + b"\xff" * 184) * 20) if path == "low/105.ts" else None


def another_content(path: str, server: Server) -> httpx.Response | None:
    return httpx.Response(200, content=clip(500)) if path in ("low/105.ts", "high/105.ts") else None


def out_of_step(path: str, server: Server) -> httpx.Response | None:
    if not path.startswith("low/") or not path.endswith(".ts"):
        return None
    start = int(path[4:-3]) * TARGET_S * 90_000 + 40_000
    return httpx.Response(200, content=segment(*(picture(start + 45_000 * index, idr=not index) for index in range(8)), sound(start)))


def stale(path: str, server: Server) -> httpx.Response | None:
    is_turn = path == "high/live.m3u8" and 20 < server.now_s() % 60 < 22
    return playlist_answer(server.playlist(server.newest() - 1)) if is_turn else None


def stalled(path: str, server: Server) -> httpx.Response | None:
    return playlist_answer(server.playlist(105)) if path.endswith("live.m3u8") and server.newest() > 105 else None


def plain_text(path: str, server: Server) -> httpx.Response | None:
    return httpx.Response(200, text=server.playlist()) if path == "high/live.m3u8" else None


def redirects(path: str, server: Server) -> httpx.Response | None:
    return httpx.Response(302, headers={"location": f"{BASE}low/{path[5:]}"}) if path.startswith("high/1") else None


def a_variant_less(path: str, server: Server) -> httpx.Response | None:
    return httpx.Response(404) if path == "low/live.m3u8" else None


def narrow(path: str, server: Server) -> httpx.Response | None:
    inf = 'BANDWIDTH=900,AVERAGE-BANDWIDTH=500,CODECS="avc1.640028,mp4a.40.2",RESOLUTION=1280x720,FRAME-RATE=2.000'
    return playlist_answer(f"#EXTM3U\n#EXT-X-STREAM-INF:{inf}\nhigh/live.m3u8\n") if path == "index.m3u8" else None


@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        (missing, {"A11"}),
        (gone_at_once, {"A7"}),
        (cut_short, {"A8"}),
        (no_media, {"A8"}),
        (another_content, {"A10"}),
        (out_of_step, {"A20"}),
        (stale, {"A3"}),
        (stalled, {"A-timing"}),
        (plain_text, {"A1", "A22"}),
        (redirects, {"A22"}),
        (a_variant_less, {"A8"}),
        (narrow, {"A21"}),
    ],
)
def test_a_fault_of_a_server_is_reported_under_its_rule(fault: Callable[[str, Server], httpx.Response | None], broken: set[str]) -> None:
    report = watched(Server(fault))
    assert rules(report) == broken, texts(report)


def test_a_server_that_gives_no_playlist_at_the_beginning_is_an_error_of_its_own() -> None:
    with pytest.raises(UpstreamError, match="HTTP 503"):
        watched(Server(lambda path, server: httpx.Response(503)))


def test_a_playlist_that_had_ended_before_is_looked_at_once() -> None:
    def ended(path: str, server: Server) -> httpx.Response | None:
        return playlist_answer(server.playlist(100) + "#EXT-X-ENDLIST\n") if path.endswith("live.m3u8") else None

    server = Server(ended)
    report = watched(server)
    assert texts(report) == []
    assert report.watched_s < 1
    assert report.segments == 2 * LISTED


def test_a_stream_that_ends_while_it_is_watched_is_watched_to_its_end_and_no_longer() -> None:
    def ends(path: str, server: Server) -> httpx.Response | None:
        ended = path.endswith("live.m3u8") and server.newest() >= 105
        return playlist_answer(server.playlist(105) + "#EXT-X-ENDLIST\n") if ended else None

    report = watched(Server(ends))
    assert texts(report) == []
    assert 20 + 2 * TARGET_S <= report.watched_s < 20 + 2 * TARGET_S + 3


SECRET = b"0123456789abcdef"


def encrypted(answer: Callable[[str], httpx.Response]) -> Callable[[str, Server], httpx.Response | None]:
    """The good server with all segments encrypted, each under its number; *answer* is what the key's URL gives."""

    def fault(path: str, server: Server) -> httpx.Response | None:
        if path.endswith("live.m3u8"):
            return playlist_answer(server.playlist().replace("#EXT-X-PROGRAM", '#EXT-X-KEY:METHOD=AES-128,URI="key"\n#EXT-X-PROGRAM', 1))
        if path.endswith("key"):
            return answer(path)
        if not path.endswith(".ts") or int(path.rpartition("/")[2][:-3]) > server.newest():
            return None
        number = int(path.rpartition("/")[2][:-3])
        cipher = Cipher(algorithms.AES(SECRET), modes.CBC(number.to_bytes(16))).encryptor()
        padder = PKCS7(128).padder()
        return httpx.Response(200, content=cipher.update(padder.update(clip(number)) + padder.finalize()) + cipher.finalize())

    return fault


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        (lambda path: httpx.Response(200, content=SECRET), set()),
        (lambda path: httpx.Response(404), {"A8"}),
        (lambda path: httpx.Response(200, content=SECRET[::-1]), {"A8"}),
        (lambda path: httpx.Response(200, content=b"<html>"), {"A8"}),
        (lambda path: httpx.Response(403), set()),
    ],
    ids=["the key", "no key", "another key", "no key but a page", "a key for others"],
)
def test_encrypted_segments_are_opened_as_a_player_does(answer: Callable[[str], httpx.Response], broken: set[str]) -> None:
    report = watched(Server(encrypted(answer)), seconds=30.0)
    assert rules(report) == broken, texts(report)


def test_what_encrypted_segments_hold_is_judged_too() -> None:
    good = encrypted(lambda path: httpx.Response(200, content=SECRET))

    def lies(path: str, server: Server) -> httpx.Response | None:
        if path.endswith("live.m3u8"):
            text = server.playlist().replace("EXTINF:4.0", "EXTINF:2.5")
            return playlist_answer(text.replace("#EXT-X-PROGRAM", '#EXT-X-KEY:METHOD=AES-128,URI="key"\n#EXT-X-PROGRAM', 1))
        return good(path, server)

    assert "A-extinf" in rules(watched(Server(lies), seconds=30.0))


def test_findings_are_told_as_they_come_and_the_watch_ends_when_it_is_told_to() -> None:
    server, heard = Server(missing), list[tuple[float, str]]()

    async def run() -> Report:
        leaving = asyncio.Event()

        def tell(finding: Finding) -> None:
            heard.append((server.now_s(), finding.rule))
            leaving.set()

        return await check(
            BASE + "index.m3u8", 900, tell=tell, leaving=leaving, clock=VirtualClock(), transport=lambda *_: _Passing(server)
        )

    report = run_virtually(run())
    assert [rule for _, rule in heard] == ["A11"]
    assert 20 <= heard[0][0] < 22
    assert report.watched_s < 23


# A folder ------------------------------------------------------------------------------------------------------------------------------


def in_a_folder(folder: Path, publish: Callable[[Path, str, Server], object], seconds: float = 60.0) -> Report:
    """Watch a folder that is written in virtual time, a segment each target duration; *publish* writes the playlist."""

    async def run() -> Report:
        server, written = Server(), asyncio.Event()

        async def write() -> None:
            while True:
                newest = server.newest()
                for number in range(newest - LISTED + 1, newest + 1):
                    (folder / f"{number}.ts").write_bytes(clip(number))
                (folder / f"{newest - 2 * LISTED - 2}.ts").unlink(missing_ok=True)
                work = publish(folder / "live.m3u8", server.playlist(), server)
                if asyncio.iscoroutine(work):
                    await work
                written.set()
                await elapse((server.newest() + 1 - 100) * TARGET_S - server.now_s() + 0.001)

        writing = asyncio.create_task(write())
        await written.wait()
        try:
            return await check(str(folder), seconds, clock=VirtualClock())
        finally:
            writing.cancel()

    return run_virtually(run())


def renamed(path: Path, text: str, _: Server) -> None:
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


async def in_place(path: Path, text: str, _: Server) -> None:
    for end in (0, len(text) // 2, len(text)) if path.exists() else (len(text),):
        path.write_text(text[:end])
        await elapse(0.06 if path.stat().st_size else 0.0)


async def unlinked(path: Path, text: str, server: Server) -> None:
    if path.exists():
        path.unlink()
        await elapse(0.06)
    path.write_text(text)


def before_its_segment(path: Path, text: str, server: Server) -> None:
    (path.parent / f"{server.newest()}.ts").unlink()
    renamed(path, text, server)


def test_a_folder_that_is_written_well_is_watched_in_silence(tmp_path: Path) -> None:
    report = in_a_folder(tmp_path, renamed)
    assert texts(report) == []
    assert report.segments == LISTED + 14
    assert report.removed > 5


def test_a_playlist_that_is_written_in_place_is_caught_in_the_act(tmp_path: Path) -> None:
    assert rules(in_a_folder(tmp_path, in_place)) == {"A3"}


def test_a_playlist_that_is_gone_for_a_moment_is_caught_in_the_act(tmp_path: Path) -> None:
    assert rules(in_a_folder(tmp_path, unlinked)) == {"A3"}


def test_a_listed_file_that_is_not_there_is_reported(tmp_path: Path) -> None:
    assert rules(in_a_folder(tmp_path, before_its_segment)) == {"A11"}


def test_what_can_be_no_playlist_is_refused_with_what_to_write(tmp_path: Path) -> None:
    for target, hint in ((str(tmp_path / "nowhere"), "write the URL"), (str(tmp_path), "no playlist")):
        with pytest.raises(ConfigError, match=hint):
            run_virtually(check(target, 1.0, clock=VirtualClock()))
