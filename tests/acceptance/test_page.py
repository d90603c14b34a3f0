"""The page in a real Chromium, on a live ladder that a real ffmpeg makes and a real process serves."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from hlsrelay.statuses import ChildStatus, NodeStatus, written
from hlsrelay.web.app import HLS_JS, PAGE_DIR
from tests.needs import needs

pytest.importorskip("playwright", reason="the playwright package isn't installed")

from tests.acceptance.browser import viewer, watch
from tests.acceptance.judged import judged

pytestmark = [pytest.mark.acceptance, needs("chromium", "ffmpeg")]

hls_js = pytest.mark.skipif(not (PAGE_DIR / HLS_JS / "dist").exists(), reason="hls.js isn't installed: make install")

ROOT = Path(__file__).parents[2]
FFMPEG = shlex.split(
    "ffmpeg -hide_banner -loglevel error -nostdin -re -f lavfi -i testsrc2=size=640x360:rate=25 -f lavfi -i sine=440:sample_rate=48000 "
    "-filter_complex [0:v]split=2[a][c];[c]scale=320:180[b] -map [a] -map 1:a -map [b] -map 1:a "
    "-c:v libx264 -preset ultrafast -tune zerolatency -g 50 -keyint_min 50 -sc_threshold 0 -b:v:0 800k -b:v:1 250k -c:a aac -b:a 64k "
    "-f hls -hls_time 2 -hls_list_size 10 -hls_flags delete_segments+independent_segments+temp_file -master_pl_name index.m3u8 "
    "-var_stream_map 'v:0,a:0,name:360p v:1,a:1,name:180p' -hls_segment_filename %v/%d.ts %v/index.m3u8"
)


@contextmanager
def running(argv: list[str], **options: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program while the block runs."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, **options) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


FFMPEGS_OWN = {
    "A7": "ffmpeg removes what has just left the list",
    "A21": "ffmpeg states the bitrates that it was told, not those that came out",
}


@contextmanager
def served(data: Path, page_dir: Path = PAGE_DIR, *, unjudged: str = "") -> Iterator[str]:
    """Serve <data>/live in a process of its own; the value is its URL. A judge watches 'news', unless *unjudged* says why not."""
    (data / "live").mkdir(parents=True, exist_ok=True)
    with running([sys.executable, "-m", "tests.acceptance.page_server", str(data), str(page_dir)], cwd=ROOT) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with nullcontext() if unjudged else judged(f"{url}/live/news/index.m3u8", allowed=FFMPEGS_OWN):
            yield url


@dataclass(frozen=True)
class Ladder:
    """A data directory in which the stream 'news' is live, in 360p and 180p, two seconds a segment, and who makes it."""

    data: Path
    source: subprocess.Popen[str]


@pytest.fixture
def ladder(tmp_path: Path) -> Iterator[Ladder]:
    folder = tmp_path / "live" / "news"
    folder.mkdir(parents=True)
    with running(FFMPEG, cwd=folder) as source:
        yield Ladder(tmp_path, source)


def page_without_hls_js(folder: Path) -> Path:
    folder.mkdir()
    for path in PAGE_DIR.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


@pytest.mark.night
@hls_js
def test_a_viewer_of_a_live_ladder_sees_no_stall_and_no_error_across_a_forced_switch(ladder: Ladder, tmp_path: Path) -> None:
    with served(ladder.data) as url:
        seen = watch(url, "news", seconds=9, switch_after_s=3, picture=tmp_path / "page.png")
    assert seen.smooth(), seen
    assert seen.player.startswith("hls.js 1.")
    assert seen.playing
    assert {level.height for level in seen.levels} == {360, 180}
    assert seen.decoded_frames > 180
    assert seen.dropped_frames < seen.decoded_frames / 10
    assert seen.console == ()


@pytest.mark.night
@hls_js
def test_a_chosen_quality_holds_again_after_a_gap_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "live" / "news"
    folder.mkdir(parents=True)
    recorded = [word for word in FFMPEG if word != "-re"]
    subprocess.run([*recorded[:-1], "-t", "26", "-hls_list_size", "0", recorded[-1]], cwd=folder, check=True)
    playlist = folder / "180p" / "index.m3u8"
    playlist.write_text(playlist.read_text().replace("\n5.ts", "\n#EXT-X-GAP\n5.ts"))
    with served(tmp_path, unjudged="a recording, which is all there at once") as url, viewer() as watching:
        watching.open(url, "news")
        watching.played(1)
        lowest = "window.hlsrelayPlayback.report.choices.findIndex((choice) => choice.height === 180)"
        watching.page.evaluate(f"window.hlsrelayPlayback.setLevel({lowest})")
        watching.played(14)
        seen = watching.report()
    assert seen.errors["fragGap"] >= 1
    assert [level.height for level in seen.levels][-3:] == [180, 360, 180]
    assert seen.fatal == ()


@pytest.mark.night
@hls_js
def test_a_source_that_pauses_is_seen_as_a_stall_and_plays_on_afterwards(ladder: Ladder) -> None:
    with served(ladder.data) as url, viewer() as watching:
        watching.open(url, "news")
        watching.played(1)
        ladder.source.send_signal(signal.SIGSTOP)
        watching.until("window.hlsrelayPlayback.report.stalling_s > 1", patience_s=60)
        stalled = watching.report()
        ladder.source.send_signal(signal.SIGCONT)
        watching.played(stalled.played_s + 1)
        resumed = watching.report()
    assert not stalled.smooth()
    assert not stalled.playing
    assert not resumed.smooth()
    assert max(resumed.stalls_s) > 1
    assert resumed.buffer_stalls > 0


@hls_js
def test_the_first_running_stream_plays_by_itself_and_the_page_shows_how(ladder: Ladder) -> None:
    with served(ladder.data) as url, viewer() as watching:
        watching.open(url)
        watching.played(2)
        watching.until("document.getElementById('f-dropped').textContent.includes('of')")
        text = watching.text()
        address = watching.page.input_value("#url")
        choices = watching.page.locator("#quality option").all_inner_texts()
    assert "Plays with hls.js 1." in text
    assert "hls.js licence (Apache-2.0)" in text
    assert address == f"{url}/live/news/index.m3u8"
    assert [choice.split(" ")[0] for choice in choices] == ["Auto", "360p", "180p"]


@pytest.mark.night
def test_a_page_without_hls_js_says_so_and_plays_by_the_browsers_own_hls_or_says_that_there_is_none(ladder: Ladder, tmp_path: Path) -> None:
    with served(ladder.data, page_without_hls_js(tmp_path / "page")) as url, viewer() as watching:
        watching.open(url, "news")
        watching.until("window.hlsrelayPlayback.report.stream === 'news'")
        text = watching.text()
        assert "hls.js isn't installed" in text
        assert "Apache" not in text
        if watching.report().player == "native":
            watching.played(3)  # how smoothly, and at which try, is Chromium's own affair: its player is new
        else:
            assert "This browser can't play HLS by itself" in text


def test_an_installation_without_streams_says_how_to_register_one(tmp_path: Path) -> None:
    with served(tmp_path, unjudged="there is no stream") as url, viewer(width=390) as watching:
        watching.open(url)
        watching.until("!document.getElementById('empty').hidden")
        text = watching.text()
    assert "hlsrelay add news https://" in text
    assert "redis-cli HSET hlsrelay:stream:news source https://" in text


def test_what_went_wrong_with_a_stream_is_on_the_page_as_text_and_never_as_markup(tmp_path: Path) -> None:
    error = "<img src=x onerror=document.title='owned'> ladder: '96 k' is no bitrate"
    (tmp_path / "streams.json").write_text(json.dumps([{"id": "radio", "desired": "run", "state": "failed", "last_error": error}]))
    with served(tmp_path, unjudged="its stream has failed") as url, viewer(dark=True) as watching:
        watching.open(url, "radio")
        watching.until("document.title === 'radio · hlsrelay'")
        text = watching.text()
        wide = watching.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert text.count(error) == 2
    assert "1 failed" in text
    assert wide


def test_child_processes_are_a_table_below_the_streams_where_there_are_any_and_short_memory_is_said(tmp_path: Path) -> None:
    (tmp_path / "streams.json").write_text(json.dumps([{"id": "radio", "desired": "run", "state": "failed"}]))
    told = tmp_path / "processes" / "a.json"
    told.parent.mkdir()
    argv = ("ffmpeg", "-i", "file:<b>1.ts</b>")
    child = ChildStatus("a:1", 4711, "x.1.1", "encode radio 7", argv, 2.5, 1.25, 64 << 20, 50, 7.52, 1.5)
    with served(tmp_path, unjudged="its stream has failed") as url, viewer(dark=True) as watching:
        watching.open(url, "radio")
        watching.until("document.title === 'radio · hlsrelay'")
        assert watching.page.is_hidden("#processes")
        told.with_suffix(".new").write_text(written(NodeStatus("a:1", "x.1.1", 93.5, True, (child,))))
        told.with_suffix(".new").replace(told)
        watching.until("document.getElementById('children').childElementCount === 1")
        cells = watching.page.locator("#children td").all_inner_texts()
        pressed = watching.page.inner_text("#pressed")
        wide = watching.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        told.unlink()
        watching.until("document.getElementById('processes').hidden")
    progress = "frame 50, at 7.52 s, 1.5×"
    assert cells == ["encode radio 7", "a:1", "4711", "2.5 s", "1.25 s", "64 MiB", progress, "ffmpeg -i file:<b>1.ts</b>"]
    assert pressed.startswith("Memory is short on a:1 (93.5 % in use)")
    assert wide


def test_a_stream_that_starts_while_the_page_is_open_begins_to_play(tmp_path: Path, ladder: Ladder) -> None:
    told = tmp_path / "streams.json"
    waiting = {"id": "news", "desired": "run", "state": "claimed"}
    told.write_text(json.dumps([waiting]))
    with served(ladder.data) as url, viewer() as watching:
        watching.open(url, "news")
        watching.until("document.getElementById('notice').textContent.includes('nothing to play yet')")
        new = tmp_path / "streams.new"
        new.write_text(json.dumps([{**waiting, "state": "running", "playing_url": "/live/news/index.m3u8"}]))
        new.replace(told)
        watching.played(1)
        assert watching.report().fatal == ()
