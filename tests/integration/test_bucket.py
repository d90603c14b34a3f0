"""Where streams are published, a folder or a bucket: one contract, and the laws of the bucket at each of its states."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import obstore
import pytest

from hlsrelay.bucket import BucketStorage
from hlsrelay.errors import ConfigError, StorageAway
from hlsrelay.objects import NEW, Headers, Raced, S3Objects, keeps_conditions, open_objects
from hlsrelay.settings import load_settings
from hlsrelay.storage import MULTIVARIANT
from tests.integration.bucket_place import FILE, PLAYLIST, Place, Play, grown, memory, playlist, without_epoch
from tests.memory_objects import MemoryObjects
from tests.s3_server import BUCKET

pytestmark = pytest.mark.xdist_group("bucket")  # one server for all of a module


# The contract -----------------------------------------------------------------------------------------------------------------------------


def test_what_is_published_is_there_and_shown_once_it_is_settled(anywhere: Play) -> None:
    async def test(place: Place) -> None:
        async with place.owned(7) as storage:
            name = grown(storage, 1)
            storage.publish(PLAYLIST, playlist(name))
            storage.publish(MULTIVARIANT, "#EXTM3U\nsource/index.m3u8\n")
            await storage.settled()
            assert not storage.unsettled
            assert await place.seen(f"source/{name}") == b"segment 1"
            for path, text in ((PLAYLIST, playlist(name)), (MULTIVARIANT, "#EXTM3U\nsource/index.m3u8\n")):
                assert without_epoch(await place.seen(path)) == text
                assert storage.playlists[path] == await place.seen(path) == storage.read(path)
            assert storage.published() == [MULTIVARIANT, PLAYLIST]

    anywhere(test)


def test_a_playlist_is_replaced_and_removed(anywhere: Play) -> None:
    async def test(place: Place) -> None:
        async with place.owned(7) as storage:
            names = [grown(storage, number) for number in (1, 2)]
            for text in (playlist(names[0]), playlist(*names), playlist(names[1], first=2)):
                storage.publish(PLAYLIST, text)
                await storage.settled()
                assert without_epoch(await place.seen(PLAYLIST)) == text
            storage.remove([PLAYLIST, "source/index-that-never-was.m3u8"])
            await storage.settled()
            assert await place.seen(PLAYLIST) is None
            assert PLAYLIST not in storage.playlists
            assert storage.read(PLAYLIST) is None
            assert storage.published() == []

    anywhere(test)


def test_what_no_playlist_lists_goes_when_its_time_has_come(anywhere: Play) -> None:
    async def test(place: Place) -> None:
        async with place.owned(7) as storage:
            names = [grown(storage, number) for number in (1, 2)]
            storage.publish(PLAYLIST, playlist(*names))
            await storage.settled()
            storage.publish(PLAYLIST, playlist(names[1], first=2))
            await storage.settled()
            place.now_s += 12.0
            storage.remove([f"source/{names[0]}", "source/never-was.ts"])
            await storage.settled()
            assert await place.seen(f"source/{names[0]}") is None
            assert storage.read(f"source/{names[0]}") is None
            assert await place.seen(f"source/{names[1]}") == b"segment 2"
            assert not storage.unsettled

    anywhere(test)


def test_the_next_owner_has_what_was_recorded_and_what_is_published(anywhere: Play) -> None:
    async def test(place: Place) -> None:
        async with place.owned(7, "one") as storage:
            name = grown(storage, 1)
            storage.write(".ledger.json", b'{"position": 1.5}')
            storage.write(".ledger-audio.json", b'{"position": 2}')
            storage.publish(PLAYLIST, playlist(name))
            await storage.settled()
            storage.remove([".ledger-audio.json"])
            storage.write(".ledger-text.json", b'{"position": "\xc3\xa4"}')
            await storage.settled()
        async with place.owned(8, "another") as storage:
            assert storage.ledgers() == ["source", "text"]
            assert storage.read(".ledger.json") == b'{"position": 1.5}'
            assert without_epoch(storage.read(PLAYLIST)) == playlist(name)
            assert storage.published() == [PLAYLIST]
            if not storage.read(f"source/{name}"):
                assert storage.is_stored(f"source/{name}")
                await asyncio.gather(*(storage.brought(f"source/{name}") for _ in range(5)))
            assert storage.read(f"source/{name}") == b"segment 1"

    anywhere(test)


def test_the_sweep_takes_what_nobody_knows_and_leaves_what_is_listed(anywhere: Play) -> None:
    async def test(place: Place) -> None:
        async with place.owned(7) as storage:
            names = [grown(storage, number) for number in (1, 2, 3)]
            storage.publish(PLAYLIST, playlist(*names[:2]))
            await storage.settled()
            storage.publish(PLAYLIST, playlist(names[1], first=2))
            await storage.settled()
        async with place.owned(8) as storage:
            storage.sweep({f"source/{names[1]}"})
            place.now_s += 100.0
            await storage.settled()
            assert [await place.seen(f"source/{name}") for name in names] == [None, b"segment 2", None]
            assert [storage.read(f"source/{name}") for name in names] == [None, b"segment 2", None]

    anywhere(test)


def test_a_record_of_a_long_window_is_stored_in_a_fraction_of_its_size(in_memory: Play) -> None:
    async def test(place: Place) -> None:
        ledger = b'{"entries": [%s]}' % b", ".join(b'{"number": %d, "files": {"source": "%d.ts"}}' % (one, one) for one in range(4_000))
        async with place.owned(7) as storage:
            storage.write(".ledger.json", ledger)
            await storage.settled()
            assert len(memory(place).held["state/news.json"][0]) < len(ledger) / 4
        async with place.owned(8, "another") as storage:
            assert json.loads(storage.read(".ledger.json") or b"") == json.loads(ledger)

    in_memory(test)


# The store --------------------------------------------------------------------------------------------------------------------------------


def test_a_put_on_condition_is_refused_where_something_else_is_there(bucket: Play) -> None:
    async def test(place: Place) -> None:
        objects = place.objects
        assert objects is not None
        tag = await objects.put("state/a", b"1", FILE, tag=NEW)
        for wrong in (NEW, '"0"'):
            with pytest.raises(Raced):
                await objects.put("state/a", b"2", FILE, tag=wrong)
        with pytest.raises(Raced):
            await objects.put("state/not-there", b"2", FILE, tag=tag)
        second = await objects.put("state/a", b"2", FILE, tag=tag)
        assert second != tag
        found = await objects.get("state/a")
        assert found is not None
        assert (found.body, found.tag) == (b"2", second)
        assert await objects.list("state/") == {"state/a": 1}
        assert await objects.list("stat/") == {}
        assert await keeps_conditions(objects, "state/a", b"2", FILE)
        await objects.delete(["state/a", "state/not-there"])
        assert await objects.get("state/a") is None

    bucket(test)


def test_objects_have_the_headers_that_players_and_caches_need(tmp_path: Path, s3: str) -> None:
    async def run() -> None:
        objects = open_objects(f"s3://{BUCKET}/heads")
        assert isinstance(objects, S3Objects)
        with BucketStorage(tmp_path, "heads", objects, 7, lambda: 0.0) as storage:
            await storage.taken()
            name = grown(storage, 1)
            storage.publish(PLAYLIST, playlist(name))
            await storage.settled()
        heads = [(await obstore.get_async(objects.store, f"live/heads/source/{path}")).attributes for path in ("index.m3u8", name)]
        assert [(one["Content-Type"], one["Cache-Control"]) for one in heads] == [
            ("application/vnd.apple.mpegurl", "max-age=1"),
            ("video/mp2t", "public, max-age=3600, immutable"),
        ]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "says"), [("nothing-there", "404 Not Found, NoSuchBucket"), (BUCKET, "error sending request")], ids=["no bucket", "no server"]
)
def test_a_bucket_that_cannot_be_had_says_why_and_always_the_same(s3: str, name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == BUCKET:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")

    async def run() -> None:
        objects = open_objects(f"s3://{name}/prefix")
        told = set()
        for key, tag in (("a", NEW), ("a", None), ("b", '"0"')):
            with pytest.raises(StorageAway) as caught:
                await objects.put(key, b"", FILE, tag=tag)
            told.add(str(caught.value))
        assert told == {f"s3://{name}/prefix: HTTP error: {says}" if name == BUCKET else f"s3://{name}/prefix: {says}"}

    asyncio.run(run())


def test_a_server_that_overlooks_conditions_is_refused(tmp_path: Path) -> None:
    class Careless(MemoryObjects):
        async def put(self, key: str, body: bytes | Path, headers: Headers, *, tag: str | None = None) -> str:
            return await super().put(key, body, headers)

    async def run() -> None:
        with BucketStorage(tmp_path, "news", Careless(), 7, lambda: 0.0) as storage, pytest.raises(ConfigError, match="overlooks"):
            await storage.taken()

    asyncio.run(run())


# Settings ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["s3://", "s3://no", "s3://bucket//x", "s3://Bucket/x", "https://bucket", "s3://bucket/../x", "bucket"])
def test_what_is_no_bucket_is_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(ConfigError, match=r"HLSRELAY_STORAGE: .*write local, or s3://bucket/prefix"):
        load_settings(storage=url)


@pytest.mark.parametrize("url", ["local", "s3://bucket", "s3://my.bucket-1/live/tv_1"])
def test_what_is_a_bucket_is_taken(url: str) -> None:
    assert load_settings(storage=url).storage == load_settings(storage=f"{url}/" if url != "local" else url).storage == url


def test_without_the_extra_an_operator_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("obstore", "obstore.store", "obstore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'hlsrelay\[s3\]'"):
        open_objects("s3://bucket/prefix")
