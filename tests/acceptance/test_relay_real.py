"""The relay as one real process between parts that others wrote, and what an operator does to it: kill, change, stop, leave alone."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import m3u8
import pytest

from tests.acceptance.judged import judged
from tests.acceptance.live_source import muxing
from tests.acceptance.media_checks import digests, frame_digests, gaps, is_consecutive_part, picture_digests
from tests.acceptance.relay_process import (
    KEY,
    WHOLE_RUN_S,
    RedisServer,
    RelayProcess,
    alive,
    cuts,
    environment,
    hlsrelay,
    published,
    relaying,
    running,
    tagged,
)
from tests.needs import needs
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe", "nginx", "redis-server", "redis-cli")]

realtime = pytest.mark.xdist_group("realtime")


def test_a_killed_relay_leaves_no_process_and_the_next_one_goes_on_without_gap_or_repeat(
    origin: tuple[Path, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, url = origin
    data = tmp_path_factory.mktemp("d")
    with muxing(folder, segment_s=1, size="640x360", first=7, listed=20) as source, ExitStack() as stack:
        words = ["add", "news", f"{url}/live.m3u8", "--ladder", "small:180:300", "--window", WHOLE_RUN_S]
        hlsrelay(*words, env=environment(data, None))
        until(lambda: len(source.segments()) >= 2)
        stack.enter_context(judged(data / "live" / "news"))  # over both of them, as for a viewer
        with relaying(data) as first:
            until(lambda: len(first.numbers("small")) >= 4)
            # Redis is one child; in the middle of an encode there is another.
            until(lambda: len(first.children()) >= 2, every_s=0.005)
            doomed = first.children()
            before = first.get("source/index.m3u8").text
            first.kill()
            until(lambda: not alive(doomed | tagged(first.pid)), within_s=1.0, every_s=0.01)
        last = int(re.findall(r"^(\d+)\.ts$", before, re.MULTILINE)[-1])
        with relaying(data, HLSRELAY_HTTP=first.url.removeprefix("http://")) as second:
            until(lambda: second.numbers("small")[-1:] >= [last + 5])
            assert second.get("source/index.m3u8").text.startswith(before), "a player sees nothing but more segments"
            for rendition in ("source", "small"):
                text = second.get(f"{rendition}/index.m3u8").text
                missing = gaps(text)
                assert not missing or rendition == "small"  # of which a busy machine may not make all
                numbers = [int(name) for name in re.findall(r"^(\d+)\.ts$", text, re.MULTILINE)]
                assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
                assert "#EXT-X-DISCONTINUITY\n" not in text
                for number in set(numbers) - set(missing):
                    second.get(f"{rendition}/{number}.ts").raise_for_status()
            relayed = [digest for _, digest, _ in published(second)]
            assert is_consecutive_part(relayed, digests(folder, [path.name for path in source.segments()]))
            assert len(set(relayed)) == len(relayed)
            children = second.children()
            assert second.stop() == 0
            assert not alive(children | tagged(second.pid))


@pytest.mark.night
@realtime
def test_another_source_and_another_ladder_come_within_two_target_durations_and_cut_no_player(
    origin: tuple[Path, str], fresh_redis: RedisServer, tmp_path: Path
) -> None:
    folder, url = origin
    limit_s = 2 * 2.0
    with ExitStack() as stack:
        old = stack.enter_context(muxing(folder / "old", size="640x360", first=100))
        new = stack.enter_context(muxing(folder / "new", size="640x360", hertz=880, first=3))
        until(lambda: len(new.segments()) >= 3)
        fresh_redis.hset(KEY, source=f"{url}/old/live.m3u8", desired="run", window=WHOLE_RUN_S)
        relay = stack.enter_context(relaying(tmp_path / "data", fresh_redis))
        until(lambda: len(relay.numbers()) >= 3)
        player = stack.enter_context(reading(f"{relay.playlist.rpartition('/')[0]}/source/index.m3u8", tmp_path / "shown"))

        changed_s = change(fresh_redis, lambda: cuts(relay) == 1, source=f"{url}/new/live.m3u8")
        assert changed_s <= limit_s
        assert set(variants(relay)) == {"source"}

        changed_s = change(fresh_redis, lambda: set(variants(relay)) == {"source", "small", "audio"}, ladder="small:180:300,audio")
        assert changed_s <= limit_s
        until(lambda: len(relay.numbers("small")) - first_of_own(relay, "small") >= 2)
        viewer_of_small = relay.get("small/index.m3u8").text

        changed_s = change(fresh_redis, lambda: set(variants(relay)) == {"source", "audio"}, ladder="audio")
        assert changed_s <= limit_s
        newest = until(lambda: relay.numbers()[-1])
        until(lambda: relay.numbers()[-1:] >= [newest + 1])
        assert relay.get("small/index.m3u8").text.startswith(viewer_of_small), "who watches a rung that went watches on"
        assert relay.numbers("small") == relay.numbers()

        entries = published(relay)
        numbers = [number for number, _, _ in entries]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert {rendition: cuts(relay, rendition) for rendition in ("source", "small", "audio")} == {"source": 3, "small": 3, "audio": 3}
        at = next(index for index, (_, _, entry) in enumerate(entries) if entry.discontinuity)
        relayed = [digest for _, digest, _ in entries]
        assert is_consecutive_part(relayed[:at], digests(old.folder, [path.name for path in old.segments()]))
        assert is_consecutive_part(relayed[at:], digests(new.folder, [path.name for path in new.segments()]))

        ours = relay.data / "live" / "news" / "source"
        listed = [digest for _, _, entry in entries for digest in picture_digests(ours / entry.uri)]
        until(lambda: len(shown(tmp_path / "shown")) >= len(listed) - 60 or player.poll() is not None)
        assert player.poll() is None, "the player reads on"
        player.send_signal(signal.SIGINT)
        player.wait(10)
        seen = shown(tmp_path / "shown")
        assert len(seen) > len(listed) - 120
        assert seen[: len(listed)] == listed[: len(seen)], "every picture of every segment, once, in order"


def change(redis: RedisServer, claim: Callable[[], bool], **fields: str) -> float:
    """Write *fields* as an operator does; returns how many seconds it took until *claim* was true."""
    began_s = time.monotonic()
    redis.hset(KEY, **fields)
    until(claim)
    took_s = time.monotonic() - began_s
    print(f"{', '.join(fields)}: in force after {took_s:.1f} s")
    return took_s


def variants(relay: RelayProcess) -> dict[str, Any]:
    """Return what the multivariant playlist says of each rendition."""
    playlist = m3u8.loads(relay.get("index.m3u8").raise_for_status().text)
    return {one.uri.partition("/")[0]: one.stream_info for one in playlist.playlists}


def first_of_own(relay: RelayProcess, rendition: str) -> int:
    """Return how many entries a rendition lists that stand for the time before it came."""
    media = relay.media(rendition)
    assert media is not None
    return sum(segment.uri.startswith("../") for segment in media.segments)


def reading(url: str, words: Path) -> Any:
    """Let ffmpeg read a live playlist from its first segment on, a line in *words* for each packet of video."""
    argv = ["ffmpeg", "-v", "error", "-nostdin", "-live_start_index", "0", "-i", url, "-map", "0:v:0", "-c", "copy"]
    return running([*argv, "-flush_packets", "1", "-f", "framemd5", str(words)], words.with_suffix(".log"))


def shown(words: Path) -> list[str]:
    """Return the digests of the packets that a player has read."""
    return frame_digests(words.read_text()) if words.exists() else []


def test_a_stopped_stream_ends_in_every_rendition_and_so_does_its_process(
    origin: tuple[Path, str], fresh_redis: RedisServer, tmp_path: Path
) -> None:
    folder, url = origin
    with muxing(folder, segment_s=1, size="640x360"):
        fresh_redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", ladder="small:180:300,audio")
        with relaying(tmp_path / "data", fresh_redis) as relay:
            until(lambda: len(relay.numbers("small")) >= 3)
            assert fresh_redis.cli("HGET", KEY, "state") == "running"
            children = relay.children()
            fresh_redis.hset(KEY, desired="stop")
            assert relay.process.wait(15) == 0
            assert not alive(children | tagged(relay.pid))
            ended = {path.parent.name: path.read_text() for path in (tmp_path / "data" / "live" / "news").glob("*/index.m3u8")}
            assert set(ended) == {"source", "small", "audio"}
            for text in ended.values():
                assert text.endswith(".ts\n#EXT-X-ENDLIST\n")
            assert len({len(m3u8.loads(text).segments) for text in ended.values()}) == 1
            assert fresh_redis.cli("HGET", KEY, "state") == "stopped"
            assert fresh_redis.cli("HGET", KEY, "node") == ""
            assert [event["event"] for event in relay.log()][-1] == "stream.stopped"


@pytest.mark.night
@realtime
def test_a_relay_that_nobody_watches_costs_next_to_nothing(
    origin: tuple[Path, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = origin
    data = tmp_path_factory.mktemp("d")
    with muxing(folder, segment_s=4, size="640x360") as source:
        hlsrelay("add", "news", f"{url}/live.m3u8", env=environment(data, None))
        until(lambda: len(source.segments()) >= 1)
        with (
            relaying(data, unjudged="judged on disk: nobody is to ask it for anything") as relay,
            judged(data / "live" / "news"),
        ):
            listing = data / "live" / "news" / "source" / "index.m3u8"  # not over HTTP: nobody asks the relay for anything

            def count() -> int:
                return len(m3u8.loads(listing.read_text()).segments) if listing.exists() else 0

            first = until(count)
            until(lambda: count() > first)
            began_s, began_cpu_s, first = time.monotonic(), cpu_s(relay), count()
            until(lambda: count() >= first + 3, 60, every_s=0.25)
            share = (cpu_s(relay) - began_cpu_s) / (time.monotonic() - began_s)
            with capsys.disabled():
                print(f"\nidle relay with its Redis: {share:.2%} of a core over {time.monotonic() - began_s:.0f} s")
            assert share < 0.05


def cpu_s(relay: RelayProcess) -> float:
    """Return the processor time that a relay and its children have used, those gone included."""
    total = 0
    for pid in {relay.pid, *relay.children()}:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(ticks) for ticks in fields[11:15])
    return total / os.sysconf("SC_CLK_TCK")
