"""Media of any kind that others made, and their keys, through one real relay: byte for byte, and as a player sees them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.judged import NOTHING
from tests.acceptance.live_source import WrittenPlaylist
from tests.acceptance.media_checks import digests, ffprobe, ran, sha256, written
from tests.acceptance.relay_process import KEY, WHOLE_RUN_S, RedisServer, published, relaying
from tests.needs import by_day, needs
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe", "nginx", "redis-server", "redis-cli")]

CORPUS = Path(__file__).parents[3] / "shared" / "corpus" / "vhs" / "segments"
corpus = pytest.mark.skipif(not CORPUS.exists(), reason=f"no corpus at ../shared/corpus ({CORPUS.name} of videojs/http-streaming)")


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
@pytest.mark.parametrize("kind", by_day(list(CORPUS_SOURCES), 2))
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
