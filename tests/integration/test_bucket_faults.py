"""Storage in a bucket, when an owner is taken over in the midst of it, and when requests fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hlsrelay.bucket import BucketStorage, forgotten
from hlsrelay.errors import StorageAway, Superseded
from hlsrelay.objects import Headers
from hlsrelay.storage import MULTIVARIANT, LocalStorage
from tests.integration.bucket_place import PLAYLIST, Place, Play, grown, memory, playlist, within, without_epoch
from tests.memory_objects import Watched

pytestmark = pytest.mark.xdist_group("bucket")  # one server for all of a module


async def begun(owner: LocalStorage) -> str:
    """Publish a first segment, and return its name."""
    first = grown(owner, 1)
    owner.write(".ledger.json", b'{"at": 1}')
    owner.publish(PLAYLIST, playlist(first))
    await owner.settled()
    return first


# Fencing ----------------------------------------------------------------------------------------------------------------------------------


def test_an_owner_that_was_taken_over_writes_nothing_more(bucket: Play) -> None:
    async def test(place: Place) -> None:
        async with place.owned(7, "old") as old:
            first = await begun(old)
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
            first = await begun(old)
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
