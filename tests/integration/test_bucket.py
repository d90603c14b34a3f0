"""Where streams are published, a folder or a bucket: one contract, and the laws of the bucket at each of its states."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import obstore
import pytest

from hlsrelay.bucket import BucketStorage, forgotten
from hlsrelay.errors import ConfigError, StorageAway, Superseded
from hlsrelay.objects import NEW, Headers, Objects, Raced, S3Objects, keeps_conditions, open_objects
from hlsrelay.settings import load_settings
from hlsrelay.storage import MULTIVARIANT, LocalStorage
from tests.memory_objects import MemoryObjects, Watched
from tests.s3_server import BUCKET, s3_server

pytestmark = pytest.mark.xdist_group("bucket")  # one server for all
PLAYLIST = "source/index.m3u8"
FILE = Headers("video/mp2t", "public, max-age=3600, immutable")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


def within(objects: Objects | None) -> Objects:
    """Return the store that is watched."""
    assert isinstance(objects, Watched)
    return objects.watched


def memory(place: Place) -> MemoryObjects:
    """Return the store, which can be made to fail."""
    inner = within(place.objects)
    assert isinstance(inner, MemoryObjects)
    return inner


@dataclass
class Place:
    """Where a stream is published, whoever owns it."""

    folder: Path
    objects: Objects | None
    now_s: float = 1000.0
    owners: list[LocalStorage] = field(default_factory=list)

    @asynccontextmanager
    async def owned(self, epoch: int, machine: str = "machine") -> AsyncGenerator[LocalStorage, None]:
        """Be the owner of a later claim; without a bucket all machines have one folder."""
        live = self.folder / (machine if self.objects else "shared")
        storage = BucketStorage(live, "news", self.objects, epoch, lambda: self.now_s) if self.objects else LocalStorage(live, "news")
        with storage:
            await storage.taken()
            yield storage

    async def seen(self, path: str) -> bytes | None:
        """Return what a player sees."""
        if self.objects:
            if isinstance(inner := within(self.objects), MemoryObjects):  # whatever befalls others
                return inner.held[f"live/news/{path}"][0] if f"live/news/{path}" in inner.held else None
            found = await self.objects.get(f"live/news/{path}")
            return found.body if found else None
        try:
            return (self.folder / "shared" / "news" / path).read_bytes()
        except FileNotFoundError:
            return None


Play = Callable[[Callable[[Place], Awaitable[None]]], None]


def player(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Play:
    """Return what plays a test against a kind of place."""

    def play(test: Callable[[Place], Awaitable[None]]) -> None:
        async def run() -> None:
            place = Place(tmp_path, None)
            if kind == "s3":
                request.getfixturevalue("s3")
                inner: Objects = open_objects(f"s3://{BUCKET}/{re.sub(r'[^a-z0-9]', '-', request.node.name.lower())}")
            else:
                inner = MemoryObjects()
            if kind != "local":
                place.objects = Watched(inner, lambda: place.now_s)
            await test(place)

        asyncio.run(run())

    return play


@pytest.fixture(params=["local", "memory", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    return player(request.param, tmp_path, request)


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    return player(request.param, tmp_path, request)


@pytest.fixture
def in_memory(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    return player("memory", tmp_path, request)


def grown(storage: LocalStorage, number: int, body: bytes = b"") -> str:
    """Have a segment, and return its name."""
    name = storage.named(str(number), "ts")
    temp = storage.temp(name)
    temp.write_bytes(body or b"segment %d" % number)
    storage.commit(temp, f"source/{name}")
    return name


def playlist(*names: str, first: int = 1) -> str:
    listed = "".join(f"#EXTINF:4.000,\n{name}\n" for name in names)
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{first}\n{listed}"


def without_epoch(body: bytes | None) -> str | None:
    return None if body is None else re.sub(r"(?m)^#hlsrelay-epoch:\d+\n", "", body.decode())


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


# Fencing ----------------------------------------------------------------------------------------------------------------------------------


def test_an_owner_that_was_taken_over_writes_nothing_more(bucket: Play) -> None:
    async def test(place: Place) -> None:
        async with place.owned(7, "old") as old:
            first = grown(old, 1)
            old.write(".ledger.json", b'{"at": 1}')
            old.publish(PLAYLIST, playlist(first))
            await old.settled()
            async with place.owned(8, "new") as new:
                before = await place.seen(PLAYLIST)
                stale = grown(old, 2)
                old.write(".ledger.json", b'{"at": 2}')
                old.publish(PLAYLIST, playlist(first, stale))
                old.publish("audio/index.m3u8", playlist())
                with pytest.raises(Superseded):
                    await old.settled()
                assert await place.seen(PLAYLIST) == before
                assert await place.seen("audio/index.m3u8") is None
                assert stale.encode() not in old.playlists[PLAYLIST]
                second = grown(new, 2, b"another second")
                assert second != stale
                new.write(".ledger.json", b'{"at": 2}')
                new.publish(PLAYLIST, playlist(first, second))
                await new.settled()
                old.publish(PLAYLIST, playlist(first))
                with pytest.raises(Superseded):
                    await old.settled()
                old.remove([PLAYLIST])
                with pytest.raises(Superseded):
                    await old.settled()
                assert without_epoch(await place.seen(PLAYLIST)) == playlist(first, second)
                assert await place.seen(f"source/{second}") == b"another second"

    bucket(test)


@pytest.mark.parametrize("what", ["a new playlist", "a removal"])
def test_a_playlist_neither_appears_nor_goes_at_the_hands_of_an_owner_that_was_taken_over(in_memory: Play, what: str) -> None:
    async def test(place: Place) -> None:
        async with place.owned(7, "old") as old:
            old.publish(PLAYLIST, playlist(grown(old, 1)))
            await old.settled()
            async with place.owned(8, "new"):
                if what == "a removal":
                    old.remove([PLAYLIST])
                else:
                    old.publish("audio/index.m3u8", playlist())
                with pytest.raises(Superseded):
                    await old.settled()
                assert await place.seen(PLAYLIST)
                assert await place.seen("audio/index.m3u8") is None

    in_memory(test)


@pytest.mark.parametrize("lost", ["live/news/source/index.m3u8", "state/news.json"])
def test_a_later_owner_is_known_by_the_record_and_by_each_playlist(in_memory: Play, lost: str) -> None:
    async def test(place: Place) -> None:
        async with place.owned(8) as storage:
            storage.publish(PLAYLIST, playlist(grown(storage, 1)))
            await storage.settled()
        del memory(place).held[lost]
        with pytest.raises(Superseded):
            async with place.owned(7, "late"):
                pass

    in_memory(test)


@pytest.mark.parametrize("at", range(1, 9))
def test_whoever_is_taken_over_in_the_middle_of_publishing_leaves_what_the_next_goes_on_from(in_memory: Play, at: int) -> None:
    """The new owner comes before the old one's request number *at*, and writes before or after it."""

    async def test(place: Place) -> None:
        async with place.owned(7, "old") as old:
            first = grown(old, 1)
            old.write(".ledger.json", b'{"at": 1}')
            old.publish(PLAYLIST, playlist(first))
            await old.settled()
            began = asyncio.Event()
            goes_on = asyncio.Event()

            class Slow(Watched):
                count = 0

                async def put(self, key: str, body: bytes | Path, headers: Headers, *, tag: str | None = None) -> str:
                    Slow.count += 1
                    if Slow.count == at:
                        began.set()
                        await goes_on.wait()
                    return await super().put(key, body, headers, tag=tag)

            assert isinstance(old, BucketStorage)
            old._objects = Slow(memory(place), lambda: place.now_s)
            old.write(".ledger.json", b'{"at": 2}')
            old.publish(PLAYLIST, playlist(first, grown(old, 2)))
            old.publish("480p/index.m3u8", playlist(f"../source/{first}"))
            old.publish(MULTIVARIANT, "#EXTM3U\n")
            settling = asyncio.ensure_future(old.settled())
            await asyncio.wait((settling, asyncio.ensure_future(began.wait())), return_when=asyncio.FIRST_COMPLETED)
            async with place.owned(8, "new") as new:
                goes_on.set()
                done = await asyncio.gather(settling, return_exceptions=True)
                recorded = new.read(".ledger.json")
                assert recorded in (b'{"at": 1}', b'{"at": 2}')
                listed = without_epoch(await place.seen(PLAYLIST)) or ""
                assert recorded == b'{"at": 2}' or "2-7.ts" not in listed, "it is listed, and the next owner does not know"
                assert done[0] is None or (Slow.count >= at and isinstance(done[0], Superseded))
                new.write(".ledger.json", b'{"at": 3}')
                text = playlist(first, grown(new, 2))
                for path in (PLAYLIST, "480p/index.m3u8"):
                    new.publish(path, text.replace("\n1-7", "\n../source/1-7") if path != PLAYLIST else text)
                grown_there = new.temp("rung")
                grown_there.write_bytes(b"rung")
                new.commit(grown_there, f"480p/{new.named('2', 'ts')}")
                await new.settled()
                assert without_epoch(await place.seen(PLAYLIST)) == text

    in_memory(test)


def test_who_comes_with_an_earlier_claim_is_refused_and_changes_nothing(bucket: Play) -> None:
    async def test(place: Place) -> None:
        async with place.owned(8) as storage:
            storage.publish(PLAYLIST, playlist(grown(storage, 1)))
            await storage.settled()
        before = await place.seen(PLAYLIST)
        with pytest.raises(Superseded, match="its claim 8, ours 7"):
            async with place.owned(7, "late"):
                pass
        assert await place.seen(PLAYLIST) == before

    bucket(test)


def test_the_next_owner_has_keys_and_init_sections_at_once_to_name_what_it_lists_alike(in_memory: Play) -> None:
    async def test(place: Place) -> None:
        async with place.owned(7, "one") as storage:
            beside = [storage.named("init-1", "mp4"), storage.named("key-1-0", "key")]
            for name in beside:
                storage.write(f"source/{name}", name.encode())
            tags = f'#EXT-X-MAP:URI="{beside[0]}"\n#EXT-X-KEY:METHOD=AES-128,URI="{beside[1]}"\n'
            storage.publish(PLAYLIST, playlist(grown(storage, 1)).replace("#EXTINF", f"{tags}#EXTINF"))
            await storage.settled()
        async with place.owned(8, "another") as storage:
            assert [storage.read(f"source/{name}") for name in beside] == [name.encode() for name in beside]

    in_memory(test)


def test_what_is_made_again_under_a_name_that_was_to_go_stays_as_it_is_made(in_memory: Play) -> None:
    async def test(place: Place) -> None:
        async with place.owned(7) as storage:
            names = [grown(storage, number) for number in (1, 2)]
            storage.publish(PLAYLIST, playlist(*names))
            await storage.settled()
            storage.publish(PLAYLIST, playlist(names[0]))
            await storage.settled()
            storage.remove([f"source/{names[1]}"])
            place.now_s += 100.0
            assert grown(storage, 2, b"made again") == names[1]
            await storage.settled()
            storage.publish(PLAYLIST, playlist(*names))
            await storage.settled()
            assert await place.seen(f"source/{names[1]}") == b"made again"
            assert storage.read(f"source/{names[1]}") == b"made again"

    in_memory(test)


@pytest.mark.parametrize("when", ["before it went", "after it went"])
def test_an_init_section_that_is_needed_again_is_there_again(anywhere: Play, when: str) -> None:
    async def test(place: Place) -> None:
        init = {"source/init-0123456789abcdef.mp4": b"init"}
        async with place.owned(7) as storage:
            storage.keep(init)
            name = grown(storage, 1)
            with_init = playlist(name).replace("#EXTINF", '#EXT-X-MAP:URI="init-0123456789abcdef.mp4"\n#EXTINF')
            for text in (with_init, playlist(name)):
                storage.publish(PLAYLIST, text)
                await storage.settled()
            storage.remove(init)
            if when == "after it went":
                place.now_s += 100.0
                await storage.settled()
            storage.keep(init)
            place.now_s += 100.0
            await storage.settled()
            storage.publish(PLAYLIST, with_init)
            await storage.settled()
            assert await place.seen(next(iter(init))) == b"init"

    anywhere(test)


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


# Faults -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["refused", "unheard"])
def test_each_request_may_fail_and_the_next_attempt_makes_it_good(in_memory: Play, fate: str) -> None:
    async def test(place: Place) -> None:
        objects = place.objects
        assert isinstance(objects, Watched)
        attempts = 0
        done = set[tuple[str, str]]()

        def once(operation: str, key: str) -> str:
            if (operation, key) in done:
                return ""
            done.add((operation, key))
            return fate if operation != "get" else "refused"

        async def insisted(work: Callable[[], Awaitable[None]]) -> None:
            nonlocal attempts
            for _ in range(30):
                try:
                    return await work()
                except StorageAway:
                    attempts += 1
            raise AssertionError("it never came good")

        memory(place).fault = once
        storage = BucketStorage(place.folder, "news", objects, 7, lambda: place.now_s)
        with storage:
            await insisted(storage.taken)
            names: list[str] = []
            for number in range(1, 6):
                done.clear()
                names = [*names, grown(storage, number)][-3:]
                storage.write(".ledger.json", b'{"at": %d}' % number)
                storage.publish(PLAYLIST, playlist(*names, first=max(1, number - 2)))
                storage.publish(MULTIVARIANT, f"#EXTM3U\n#{number}\n")
                if number > 3:
                    place.now_s += 30.0
                    storage.remove([f"source/{storage.named(str(number - 3), 'ts')}"])
                await insisted(storage.settled)
                assert without_epoch(await place.seen(PLAYLIST)) == playlist(*names, first=max(1, number - 2))
            place.now_s += 30.0
            for _ in range(2):  # what could not be removed holds nothing up
                await insisted(storage.settled)
            assert not storage.unsettled
            assert sorted(key for key in memory(place).held if key.endswith(".ts")) == [f"live/news/source/{name}" for name in names]
        assert attempts > 15
        assert objects.looks > 30

    in_memory(test)


def test_nothing_is_shown_here_that_the_bucket_does_not_have(in_memory: Play) -> None:
    async def test(place: Place) -> None:
        assert place.objects
        async with place.owned(7) as storage:
            first = grown(storage, 1)
            storage.publish(PLAYLIST, playlist(first))
            await storage.settled()
            memory(place).fault = lambda operation, key: "refused" if key.endswith(".m3u8") else ""
            storage.publish(PLAYLIST, playlist(first, grown(storage, 2)))
            with pytest.raises(StorageAway):
                await storage.settled()
            assert without_epoch(storage.playlists[PLAYLIST]) == without_epoch(storage.read(PLAYLIST)) == playlist(first)
        memory(place).fault = lambda _, __: "refused"
        with BucketStorage(place.folder / "machine", "news", place.objects, 8, lambda: place.now_s) as storage:
            with pytest.raises(StorageAway):
                await storage.taken()
            assert storage.read(PLAYLIST) is None, "what it was before nobody knows to be so still"

    in_memory(test)


def test_a_file_stays_as_long_after_an_outage_as_its_last_listing_wants(in_memory: Play) -> None:
    async def test(place: Place) -> None:
        assert place.objects
        async with place.owned(7) as storage:
            names = [grown(storage, number) for number in (1, 2, 3)]
            storage.publish(PLAYLIST, playlist(*names))
            await storage.settled()
            memory(place).fault = lambda _, __: "refused"
            storage.publish(PLAYLIST, playlist(*names[1:], first=2))
            place.now_s += 600.0
            storage.remove([f"source/{names[0]}"])
            with pytest.raises(StorageAway):
                await storage.settled()
            memory(place).fault = lambda _, __: ""
            await storage.settled()
            assert await place.seen(f"source/{names[0]}"), "somebody may have read the playlist a moment ago"
            place.now_s += 15.9
            await storage.settled()
            assert await place.seen(f"source/{names[0]}")
            place.now_s += 0.2
            await storage.settled()
            assert await place.seen(f"source/{names[0]}") is None

    in_memory(test)


def test_a_stream_that_is_removed_leaves_nothing_and_who_relays_it_still_is_refused(bucket: Play) -> None:
    async def test(place: Place) -> None:
        async with place.owned(7) as storage:
            storage.publish(PLAYLIST, playlist(grown(storage, 1)))
            storage.write(".ledger.json", b"{}")
            await storage.settled()
            place.now_s += 100.0
            objects = within(place.objects)
            await forgotten(objects, "news", 9)
            assert await objects.list("live/news/") == {}
            assert await objects.get("state/news.json") is None
            storage.publish(PLAYLIST, playlist())
            storage.write(".ledger.json", b"{}")
            with pytest.raises(Superseded, match="was removed"):
                await storage.settled()
            assert await objects.list("live/news/") == {}

    bucket(test)
