"""A stream that is relayed on demand as one real process: a real source, a real ladder, a real player, and nothing left in between."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from hlsrelay.demand import START_WITHIN_S
from hlsrelay.web.app import HLS_JS, PAGE_DIR
from tests.acceptance.judged import judged
from tests.acceptance.live_source import muxing, nginx
from tests.acceptance.relay_process import RelayProcess, redis_server, relaying, tagged
from tests.needs import needs
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "nginx", "redis-server", "redis-cli"), pytest.mark.xdist_group("realtime")]

KEY = "hlsrelay:stream:news"
IDLE_S = 10


def state(relay: RelayProcess) -> str:
    return next(str(one["state"]) for one in relay.client.get(f"{relay.url}/api/streams").json()["streams"])


def started(relay: RelayProcess, path: str) -> bool:
    """Ask for a playlist, and wait for the answer; a machine that is busy with other tests may say 503 first."""
    answer = relay.client.get(f"{relay.playlist.rpartition('/')[0]}/{path}", timeout=START_WITHIN_S + 10)
    assert answer.status_code in (200, 503), answer.text
    return answer.status_code == 200


def discontinuities(relay: RelayProcess) -> int:
    """Return the discontinuity sequence number of the newest segment."""
    media = relay.media()
    assert media is not None
    return (media.discontinuity_sequence or 0) + sum(bool(segment.discontinuity) for segment in media.segments)


def test_the_first_viewer_starts_it_the_last_one_leaves_no_ffmpeg_and_the_next_one_finds_numbers_that_go_on(tmp_path: Path) -> None:
    with (
        redis_server() as redis,
        nginx(tmp_path / "origin", tmp_path / "nginx") as url,
        muxing(tmp_path / "origin", size="640x360", segment_s=1),
    ):
        redis.hset(KEY, source=f"{url}/live.m3u8", ladder="small:180:200", on_demand="yes", idle_timeout=str(IDLE_S))
        with (
            relaying(tmp_path / "data", redis, unjudged="a judge is a viewer: it comes and goes below") as relay,
            nginx(tmp_path / "data" / "live", tmp_path / "beside") as beside,
        ):
            until(lambda: state(relay) == "idle")
            assert tagged(relay.pid) == set()
            assert httpx.get(f"{beside}/news/index.m3u8", trust_env=False).status_code == 404
            until(lambda: started(relay, "index.m3u8"))
            with judged(relay.playlist):
                until(lambda: len(relay.numbers("small")) >= 6, every_s=0.3)
                assert httpx.get(f"{beside}/news/index.m3u8", trust_env=False).status_code == 200
            last, count = relay.numbers()[-1], discontinuities(relay)
            left_s = time.monotonic()
            until(lambda: state(relay) == "idle", IDLE_S + 10)
            assert time.monotonic() - left_s >= IDLE_S - 1
            until(lambda: tagged(relay.pid) == set(), 5)
            assert list((relay.data / "live" / "news" / ".tmp").iterdir()) == []
            until(lambda: started(relay, "small/index.m3u8"))
            again = relay.numbers("small")
            assert last < again[0] < last + 3 * IDLE_S, "the numbers go on after the last one published, and nothing is listed again"
            assert discontinuities(relay) >= count + 1


@pytest.mark.night
@needs("chromium")
@pytest.mark.skipif(not (PAGE_DIR / HLS_JS / "dist").exists(), reason="hls.js isn't installed: make install")
def test_hls_js_starts_a_stream_that_is_idle(tmp_path: Path) -> None:
    browser = pytest.importorskip("tests.acceptance.browser", reason="the playwright package isn't installed")
    with (
        redis_server() as redis,
        nginx(tmp_path / "origin", tmp_path / "nginx") as url,
        muxing(tmp_path / "origin", size="640x360", segment_s=1),
    ):
        redis.hset(KEY, source=f"{url}/live.m3u8", on_demand="yes")
        with relaying(tmp_path / "data", redis, unjudged="a judge would start it before the player does") as relay:
            until(lambda: state(relay) == "idle")
            report = browser.watch(relay.url, "news", seconds=3)
            assert report.player.startswith("hls.js")
            assert report.fatal == ()
            assert state(relay) == "running"
