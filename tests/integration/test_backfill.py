"""A stream changes hands between nodes with folders of their own: its window goes with it, and numbers never go back (virtual time)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from hlsrelay.backfill import GIVEN_UP_AFTER_S, GUESSED_WITHIN_S, TOLD_WITHIN_S
from hlsrelay.edge import HOP
from hlsrelay.encoder import Encoded
from hlsrelay.hls.parse import parse
from hlsrelay.media.probe import probe
from hlsrelay.model import Snapshot
from hlsrelay.recipe import EncodeJob
from hlsrelay.reporter import Reporter
from hlsrelay.storage import LocalStorage
from tests.integration.cluster import WINDOW_S, Cluster, Tracks, played
from tests.integration.test_fmp4_ladder import ONE, content, init_served
from tests.integration.test_keys import SECRET, announcing
from tests.integration.test_presentation import NAMES
from tests.origin import Origin
from tests.virtual import elapse


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[int]]]:
    """The newest numbers of each media playlist as nodes show it, one after another: they never go back."""
    seen: dict[str, list[int]] = {}
    publish = LocalStorage.publish

    def published(storage: LocalStorage, playlist: str, text: str) -> None:
        publish(storage, playlist, text)
        if isinstance(found := parse(text.encode(), "file:///"), Snapshot):
            numbers = seen.setdefault(playlist, [])
            numbers.append(found.segments[-1].sequence)

    monkeypatch.setattr(LocalStorage, "publish", published)
    yield seen
    assert seen == {playlist: sorted(numbers) for playlist, numbers in seen.items()}


class Copying:
    """An encoder whose rungs are the source's segments again."""

    async def encode(self, job: EncodeJob) -> Encoded:
        whole = ONE + job.source.read_bytes() + b"\0\0\0\x0cmfraxxxx"
        for output in job.outputs.values():
            output.write_bytes(whole)
        return Encoded({name: probe(whole) for name in job.outputs}, {})

    def shed(self) -> bool:
        return False


def fmp4() -> Origin:
    """A source with an init section and a key, of segments that rungs can be made of."""
    return announcing(
        lambda _: ['#EXT-X-MAP:URI="i.mp4"'],
        init_served,
        Origin(content=content),
    )


def with_keys() -> Origin:
    return announcing(
        lambda number: [f'#EXT-X-KEY:METHOD=SAMPLE-AES,URI="k{number // 5}",KEYFORMAT="identity"'],
        lambda name: httpx.Response(200, content=SECRET[:15] + name[-1:].encode()) if name.startswith("k") else None,
    )


SOURCES: dict[str, tuple[Callable[[], Origin], dict[str, str]]] = {
    "plain": (Origin, {}),
    "keys": (with_keys, {}),
    "fMP4 and a ladder": (fmp4, {"ladder": "small:64:60"}),
}


@pytest.mark.parametrize("source", [*(pytest.param(name, marks=pytest.mark.night) for name in ("plain", "keys")), "fMP4 and a ladder"])
def test_the_window_goes_with_the_stream_and_outlives_the_node_that_had_it(tmp_path: Path, source: str) -> None:
    """Three nodes in turn; each that let go serves on for three target durations, and is gone then. Viewers are at the third."""
    make, fields = SOURCES[source]

    async def play(nodes: Cluster) -> None:
        await nodes.takes("a")
        await nodes.fills()
        whole = len((await nodes.listed()).segments)
        assert whole >= WINDOW_S / 4
        for name in "ba":
            before = nodes.owner
            await nodes.lets_go()
            await nodes.takes(name)
            await nodes.plays(12, "c", fewest=whole)
            nodes.network.down.add(before)
            await nodes.plays(20, "c", fewest=whole)
            nodes.network.down.clear()
        text = (await nodes.got("source/index.m3u8")).decode()
        assert "GAP" not in text
        assert text.count("#EXT-X-MAP") == (source == "fMP4 and a ladder"), "the same for all of them"
        assert source == "fMP4 and a ladder" or "#EXT-X-DISCONTINUITY\n" not in text, "its media has some of its own"

    played(tmp_path, play, make(), encoder=Copying(), **fields)


@pytest.mark.parametrize("in_order", [True, False], ids=["handed over", "taken over"])
def test_each_track_keeps_its_window_and_none_is_shown_before_it_has_caught_up(tmp_path: Path, in_order: bool) -> None:
    async def play(nodes: Cluster) -> None:
        await nodes.takes("a")
        await nodes.fills()
        whole = len((await nodes.listed()).segments)
        if in_order:
            await nodes.lets_go()
        else:
            carried, epoch = await nodes.registry.carried("news"), int(nodes.registry.streams["news"]["epoch"])
            await elapse(5)
            await nodes.plays(0)
            await nodes.is_killed()
            await nodes.registry.report("news", {}, epoch, position=carried)
            nodes.network.down.clear()
        await nodes.takes("b", until="")
        asking = [nodes.places["c"].client.get(f"/live/news/{name}/index.m3u8") for name in NAMES.values()]
        assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}, "who asks meanwhile waits"
        await nodes.plays(8, "c", fewest=whole)
        nodes.network.down.add("a")
        await nodes.plays(12, "c", fewest=whole)
        snapshots = [await nodes.listed(name) for name in NAMES.values()]
        assert {name for name, _ in nodes.contents} == set(NAMES.values())
        assert len({(one.media_sequence, one.segments[-1].sequence, one.discontinuity_sequence) for one in snapshots}) == 1
        assert not any(segment.discontinuity or segment.gap for one in snapshots for segment in one.segments)

    played(tmp_path, play, Tracks())


def test_what_is_listed_is_answered_before_it_is_here_and_fetched_once(tmp_path: Path) -> None:
    async def play(nodes: Cluster) -> None:
        await nodes.takes("a")
        await nodes.fills()
        before = await nodes.listed()
        nodes.network.slow["a"] = 0.3
        await nodes.lets_go()
        await nodes.takes("b", until="")
        assert (await nodes.listed()).media_sequence <= before.media_sequence + 1
        oldest = (await nodes.listed()).segments[0].uri.rpartition("/")[2]
        await nodes.plays(20)
        assert nodes.network.asked[f"a/live/news/source/{oldest}"] == 1
        assert all(count == 1 for path, count in nodes.network.asked.items() if path.startswith("a/live/news/source/"))
        assert nodes.places["b"].node.storages["news"].absent is None

    played(tmp_path, play)


def test_an_owner_that_goes_before_all_is_fetched_takes_the_oldest_with_it_and_nothing_is_listed_that_is_not_there(tmp_path: Path) -> None:
    async def play(nodes: Cluster) -> None:
        whole = await nodes.half_moved(6, 0.2)
        nodes.network.down.add("a")
        await elapse(GIVEN_UP_AFTER_S + 5)  # meanwhile it may yet come back
        listed = await nodes.listed()
        assert 6 <= len(listed.segments) < whole
        await nodes.fills()
        assert not any(one.discontinuity or one.gap for one in (await nodes.listed()).segments)

    played(tmp_path, play)


def test_an_owner_that_hands_on_what_it_has_not_fetched_yet_tells_where_it_is(tmp_path: Path) -> None:
    async def play(nodes: Cluster) -> None:
        whole = await nodes.half_moved(3, 0.5)
        await nodes.lets_go()
        assert len(nodes.places["b"].files()) < whole
        await nodes.takes("c")
        await nodes.plays(20, fewest=whole)
        nodes.network.down |= {"a", "b"}
        await nodes.plays(8, fewest=whole)

    played(tmp_path, play)


def test_an_owner_that_is_started_anew_goes_on_fetching_what_it_lists(tmp_path: Path) -> None:
    async def play(nodes: Cluster) -> None:
        whole = await nodes.half_moved(3, 0.5)
        await nodes.is_killed()
        nodes.network.down.clear()
        assert len(nodes.places["b"].files()) < whole
        await nodes.takes("b")
        await nodes.plays(20, fewest=whole)

    played(tmp_path, play)


@pytest.mark.parametrize("hears", [True, False], ids=["it can be asked", "it can't be asked"])
@pytest.mark.parametrize("unsaid", [1, pytest.param(3, marks=pytest.mark.night)])
def test_the_next_owner_shows_nothing_that_ends_before_what_players_saw_of_one_that_could_not_tell(
    tmp_path: Path, shown: dict[str, list[int]], unsaid: int, hears: bool
) -> None:
    """Cut off from Redis alone, it goes on until its lease is over: what it listed last is not in Redis."""

    async def play(nodes: Cluster) -> None:
        await nodes.takes("a")
        await nodes.fills()
        carried = await nodes.registry.carried("news")
        epoch = int(nodes.registry.streams["news"]["epoch"])
        since = (await nodes.listed()).segments[-1].sequence
        while (await nodes.listed()).segments[-1].sequence < since + unsaid:
            await elapse(0.5)
        await nodes.is_killed()
        await nodes.registry.report("news", {}, epoch, position=carried)
        if hears:
            nodes.network.down.clear()
        await nodes.takes("b", until="")
        await nodes.plays(20)
        assert max(shown["source/index.m3u8"]) > since + unsaid
        assert sorted(number for _, number in nodes.contents) == list(range(min(n for _, n in nodes.contents), nodes.lasts["source"] + 1))

    played(tmp_path, play)


@pytest.mark.parametrize(("in_order", "within_s"), [(True, TOLD_WITHIN_S), (False, GUESSED_WITHIN_S)])
def test_an_owner_that_hangs_holds_its_successor_up_for_a_moment(tmp_path: Path, in_order: bool, within_s: float) -> None:
    async def play(nodes: Cluster) -> None:
        await nodes.takes("a")
        await nodes.fills()
        await (nodes.lets_go() if in_order else nodes.is_killed())
        nodes.network.down.clear()
        nodes.network.slow["a"] = 100
        since_s = asyncio.get_running_loop().time()
        await nodes.takes("b", until="")
        await nodes.until((nodes.places["b"].folder / ".ledger.json").exists)
        assert asyncio.get_running_loop().time() - since_s < within_s + 0.1
        await nodes.plays(20)

    played(tmp_path, play)


def test_what_a_node_tells_its_successor_is_for_nodes_and_says_nothing_of_the_source(tmp_path: Path) -> None:
    async def play(nodes: Cluster) -> None:
        await nodes.takes("a")
        await nodes.fills()
        client = nodes.places["a"].client
        assert (await client.get("/window/news")).status_code == 404
        told = await client.get("/window/news", headers={HOP: "1"})
        assert told.status_code == 200
        assert "example" not in told.text
        assert "a-1" not in told.text, "a name of the source's"
        for name in ("nothing", ".tmp", "-"):
            assert (await client.get(f"/window/{name}", headers={HOP: "1"})).status_code == 404

    played(tmp_path, play)


def test_a_node_that_gets_a_stream_back_shows_nothing_that_its_folder_had_before(tmp_path: Path) -> None:
    async def play(nodes: Cluster) -> None:
        await nodes.takes("a")
        await nodes.fills()
        await nodes.lets_go()
        await nodes.takes("b")
        await nodes.plays(20, "c")
        await nodes.lets_go()
        nodes.network.slow["b"] = 0.5
        await nodes.takes("a", until="")
        await nodes.plays(12, "c")

    played(tmp_path, play)


def test_what_was_published_and_not_told_of_yet_is_told_before_a_stream_is_let_go_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay is stopped between the one and the other."""

    async def play(nodes: Cluster) -> None:
        await nodes.takes("a")
        await nodes.fills()
        monkeypatch.setattr(Reporter, "tick", lambda *_: None)
        await elapse(5)
        listed = await nodes.listed()
        await nodes.lets_go()
        nodes.network.down.add("a")
        monkeypatch.undo()
        await nodes.takes("b")
        assert (await nodes.listed()).media_sequence == listed.segments[-1].sequence + 1

    played(tmp_path, play)
