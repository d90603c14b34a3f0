"""The relay as one real process between parts that others wrote: ffmpeg's HLS muxer behind nginx, Redis, ffprobe, hls.js in Chromium."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import m3u8
import pytest

from hlsrelay.registry import RedisRegistry
from tests.acceptance.judged import NOTHING, judged
from tests.acceptance.live_source import WrittenPlaylist, muxing, nginx
from tests.acceptance.media_checks import (
    digests,
    ffprobe,
    frame_digests,
    gaps,
    is_consecutive_part,
    picture_digests,
    ran,
    sha256,
    written,
)
from tests.acceptance.relay_process import (
    KEY,
    WHOLE_RUN_S,
    RedisServer,
    RelayProcess,
    alive,
    environment,
    hlsrelay,
    redis_server,
    relaying,
    running,
    tagged,
)
from tests.needs import needs
from tests.waiting import turns, until

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe", "nginx", "redis-server", "redis-cli")]

realtime = pytest.mark.xdist_group("realtime")

CORPUS = Path(__file__).parents[3] / "shared" / "corpus" / "vhs" / "segments"
corpus = pytest.mark.skipif(not CORPUS.exists(), reason=f"no corpus at ../shared/corpus ({CORPUS.name} of videojs/http-streaming)")


@pytest.fixture
def fresh_redis(redis: RedisServer) -> RedisServer:
    redis.cli("DEL", KEY)
    return redis


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL at which nginx serves it."""
    with nginx(tmp_path / "origin", tmp_path / "nginx") as url:
        yield tmp_path / "origin", url


def published(relay: RelayProcess, rendition: str = "source") -> list[tuple[int, str, m3u8.Segment]]:
    """Return number, digest and entry of every segment that a rendition lists; each must be there."""
    media = relay.media(rendition)
    assert media is not None
    return [
        (media.media_sequence + index, sha256(relay.get(f"{rendition}/{segment.uri}").raise_for_status().content), segment)
        for index, segment in enumerate(media.segments)
    ]


def cuts(relay: RelayProcess, rendition: str = "source") -> int:
    """Return how many DISCONTINUITYs a rendition lists."""
    return relay.get(f"{rendition}/index.m3u8").text.count("#EXT-X-DISCONTINUITY\n")


# What a source may be made of -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A segment as the source lists it."""

    file: str
    duration_s: float = 1.0
    init: str = ""
    cut: bool = False


CORPUS_SOURCES = {
    "MPEG-TS": [
        *(Item(f"videoOneSecond{number}.ts") for number in ("", 1, 2, 3, 4)),
        Item("oneSecond.ts", cut=True),
        Item("videoMaxOffset.ts", 0.066733, cut=True),
        Item("id3.ts", 0.166833, cut=True),
        Item("zeroLength.ts", cut=True),
    ],
    "packed AAC": [Item("aacWithId3.aac", 1.002595), Item("aacWithoutId3.aac", 1.002595)] * 3,
    "packed AC-3": [Item("ac3WithId3.ac3", 0.992), Item("ac3WithoutId3.ac3", 0.992)] * 3,
    "fMP4": [
        *[Item("mp4Video.mp4", init="mp4VideoInit.mp4")] * 4,
        *[Item("mp4Muxed.mp4", init="mp4MuxedInit.mp4", cut=True)] * 2,
        *[Item("mp4Audio.mp4", init="mp4AudioInit.mp4", cut=True)] * 2,
    ],
}


@corpus
@pytest.mark.parametrize("kind", CORPUS_SOURCES)
def test_media_of_any_kind_passes_through_byte_for_byte(
    kind: str, origin: tuple[Path, str], fresh_redis: RedisServer, tmp_path: Path
) -> None:
    folder, url = origin
    items = CORPUS_SOURCES[kind]
    source = WrittenPlaylist(folder / "live.m3u8", media_sequence=41)

    def append(index: int) -> None:
        item, suffix = items[index], Path(items[index].file).suffix
        name = f"{index}-{item.file.removesuffix(suffix)}{suffix}"
        (folder / name).write_bytes((CORPUS / item.file).read_bytes())
        if item.init:
            (folder / item.init).write_bytes((CORPUS / item.init).read_bytes())
        tags = ["#EXT-X-DISCONTINUITY"] * item.cut + [f'#EXT-X-MAP:URI="{item.init}"'] * bool(item.init)
        source.append(name, item.duration_s, *tags)

    for index in range(3):
        append(index)
    fresh_redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", window=WHOLE_RUN_S)
    allowed = {"A-extinf": "of fMP4 the corpus has one fragment of each kind, listed again and again"} if kind == "fMP4" else NOTHING
    with relaying(tmp_path / "data", fresh_redis, allowed=allowed) as relay:
        for index in range(3, len(items)):
            until(lambda index=index: relay.numbers()[-1:] == [41 + index - 1])  # type: ignore[misc]
            append(index)
        until(lambda: relay.numbers()[-1:] == [41 + len(items) - 1])
        entries = published(relay)
        assert [number for number, _, _ in entries] == list(range(41, 41 + len(items)))
        assert [digest for _, digest, _ in entries] == digests(CORPUS, [item.file for item in items])
        assert [entry.duration for _, _, entry in entries] == pytest.approx([item.duration_s for item in items], abs=1e-5)
        assert [bool(entry.discontinuity) for _, _, entry in entries] == [item.cut for item in items]
        for item, (_, _, entry) in zip(items, entries, strict=True):
            if item.init:
                init = relay.get(f"source/{entry.init_section.uri}").raise_for_status()
                assert sha256(init.content) == sha256((CORPUS / item.init).read_bytes())
            else:
                assert entry.init_section is None
        assert Path(entries[0][2].uri).suffix == {"fMP4": ".m4s"}.get(kind, Path(items[0].file).suffix)


@corpus
@needs("openssl")
def test_encrypted_segments_still_decrypt_under_numbers_of_ours(origin: tuple[Path, str], fresh_redis: RedisServer, tmp_path: Path) -> None:
    folder, url = origin
    plain, secret = WrittenPlaylist(folder / "plain.m3u8", media_sequence=500), WrittenPlaylist(folder / "secret.m3u8")
    key = (CORPUS / "encryptionKey.key").read_bytes()
    (folder / "key").write_bytes(key)
    for number in range(4):
        (folder / f"plain-{number}.ts").write_bytes((CORPUS / "videoOneSecond.ts").read_bytes())
        plain.append(f"plain-{number}.ts", 1.0)

    def append(number: int) -> None:
        name = folder / f"secret-{number}.ts"
        if number == 0:
            name.write_bytes((CORPUS / "encrypted.ts").read_bytes())
        else:
            clear = CORPUS / f"videoOneSecond{number}.ts"
            ran("openssl", "enc", *cipher(key, f"{number:032x}"), "-in", str(clear), "-out", str(name))
        secret.append(name.name, 1.0, '#EXT-X-KEY:METHOD=AES-128,URI="key"')  # no IV: it is the source's number

    for number in range(3):
        append(number)
    fresh_redis.hset(KEY, source=f"{url}/plain.m3u8", desired="run", window=WHOLE_RUN_S)
    with relaying(tmp_path / "data", fresh_redis) as relay:
        until(lambda: relay.numbers()[-1:] == [503])
        fresh_redis.hset(KEY, source=f"{url}/secret.m3u8")
        until(lambda: relay.numbers()[-1] > 503)
        for number in (3, 4):
            append(number)
        wanted = digests(folder, ["secret-4.ts"])
        until(lambda: [digest for _, digest, _ in published(relay)][-1:] == wanted)
        entries = [(digest, entry) for _, digest, entry in published(relay) if entry.key]
        first = 5 - len(entries)  # another source is joined near where the first one was, by the time gone by
        assert 0 <= first <= 2
        assert [digest for digest, _ in entries] == digests(folder, [f"secret-{number}.ts" for number in range(first, 5)])
        assert all(entry.key.absolute_uri.startswith(relay.url) for _, entry in entries)
        assert [int(entry.key.iv, 16) for _, entry in entries] == list(range(first, 5))
        for number, (_, entry) in enumerate(entries, first):
            (tmp_path / "got").write_bytes(relay.get(f"source/{entry.uri}").content)
            given = relay.client.get(entry.key.absolute_uri).content
            clear = ran("openssl", "enc", "-d", *cipher(given, entry.key.iv.removeprefix("0x")), "-in", str(tmp_path / "got")).stdout
            (tmp_path / f"clear-{number}.ts").write_bytes(clear)
            if number == 0:  # its plain text is not in the corpus, but is TS
                assert set(clear[::188]) == {0x47}
            else:
                assert clear == (CORPUS / f"videoOneSecond{number}.ts").read_bytes()
        fresh_redis.hset(KEY, desired="stop")
        assert relay.process.wait(15) == 0
    # And a player sees what it would have seen of the plain files; the relay began three target durations before the live edge.
    whole = tmp_path / "data" / "live" / "news" / "source" / "index.m3u8"
    plainly = [*(folder / f"plain-{number}.ts" for number in range(1, 4)), *(tmp_path / f"clear-{number}.ts" for number in range(first, 5))]
    assert pictures(whole) == pictures(written(tmp_path / "plain.m3u8", [(path, 1.0) for path in plainly]))


def pictures(playlist: Path) -> list[str]:
    """Return the digest of each picture that a player finds in *playlist*, whose keys come over HTTP."""
    options = ["-allowed_extensions", "ALL", "-protocol_whitelist", "file,crypto,data,http,tcp"]
    packets = ffprobe(playlist, *options, "-select_streams", "v", "-show_data_hash", "md5", "-show_packets")["packets"]
    return [packet["data_hash"] for packet in packets]


def cipher(key: bytes, iv: str) -> list[str]:
    return ["-aes-128-cbc", "-K", key.hex(), "-iv", iv]


# What an operator does --------------------------------------------------------------------------------------------------------------


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


def test_who_asks_redis_can_be_cancelled_at_any_step(redis: RedisServer) -> None:
    async def main() -> None:
        registry = RedisRegistry(redis.url)
        try:
            await registry.ping()
            for steps in range(40):
                asking = asyncio.create_task(asks_for_ever(registry))
                await turns(steps)
                asking.cancel()
                _, pending = await asyncio.wait([asking], timeout=5)
                assert not pending, f"cancelled after {steps} steps, it asks on"
        finally:
            await registry.aclose()

    async def asks_for_ever(registry: RedisRegistry) -> None:
        while True:
            await registry.get("nobody")
            await registry.report("nobody", {"state": "running"})

    asyncio.run(main())


@realtime
def test_a_redis_that_comes_back_empty_stops_no_stream_and_has_it_again_within_two_seconds(
    origin: tuple[Path, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = origin
    at = tmp_path_factory.mktemp("r")
    with muxing(folder, segment_s=1, size="320x180"), ExitStack() as stack:
        with redis_server(at) as redis:
            redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", window="30")
            relay = stack.enter_context(relaying(tmp_path / "data", redis))
            until(lambda: len(relay.numbers()) >= 3)
        redis = stack.enter_context(redis_server(at))
        began_s = time.monotonic()
        until(lambda: redis.cli("HGET", KEY, "desired") == "run")
        back_s = time.monotonic() - began_s
        with capsys.disabled():
            print(f"\nan empty Redis has its stream again after {back_s:.2f} s")
        assert back_s < 5.0, "2 s on a machine that has nothing else to do"
        assert redis.cli("HGET", KEY, "source") == f"{url}/live.m3u8"
        assert redis.cli("HGET", KEY, "state") == "running"
        newest = relay.numbers()[-1]
        until(lambda: relay.numbers()[-1] > newest)
        assert "#EXT-X-ENDLIST" not in relay.get("source/index.m3u8").text
        assert cuts(relay) == 0
        assert redis.cli("DEL", KEY) == "1", "and what its operator deletes stays deleted"
        assert relay.process.wait(20) == 0
        assert redis.cli("EXISTS", KEY) == "0"


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
