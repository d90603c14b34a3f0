"""A stream changes hands between nodes with folders of their own: its window goes with it, and numbers never go back (virtual time)."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from hlsrelay.backfill import GIVEN_UP_AFTER_S, GUESSED_WITHIN_S, TOLD_WITHIN_S
from hlsrelay.edge import HOP, Edge
from hlsrelay.encoder import Encoded
from hlsrelay.hls.parse import parse
from hlsrelay.link import Claim
from hlsrelay.media.probe import probe
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.model import Snapshot
from hlsrelay.processes import Children
from hlsrelay.recipe import EncodeJob
from hlsrelay.reporter import Reporter
from hlsrelay.settings import load_settings
from hlsrelay.site import RelaySite
from hlsrelay.storage import LocalStorage
from hlsrelay.upstream import TransportFactory
from hlsrelay.web import create_app
from hlsrelay.worker import admitted, relay_stream
from tests.integration.on_demand_house import OfOrigins
from tests.integration.relaying import NoEncoder
from tests.integration.test_fmp4_ladder import ONE, content, init_served
from tests.integration.test_keys import SECRET, announcing
from tests.integration.test_presentation import NAMES, Show
from tests.origin import Origin
from tests.playlists import URL
from tests.virtual import VirtualClock, elapse, run_virtually

WINDOW_S = 40
FIELDS = {"source": URL, "desired": "run", "window": str(WINDOW_S)}


@dataclass
class Network(httpx.AsyncBaseTransport):
    """Nodes by their host; those that are *down* can't be reached, and each answer of *slow* ones takes so long."""

    nodes: dict[str, httpx.ASGITransport] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    slow: dict[str, float] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        self.asked[f"{host}{request.url.path}"] += 1
        await elapse(self.slow.get(host, 0.002))
        if host in self.down:
            raise httpx.ConnectError("refused")
        return await self.nodes[host].handle_async_request(request)


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


@dataclass
class Place:
    """A node with a folder of its own, and what it relays."""

    name: str
    node: OfOrigins
    client: httpx.AsyncClient
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    relaying: asyncio.Task[float] | None = None

    @property
    def folder(self) -> Path:
        return self.node.live / "news"

    def files(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.glob("[!.]*/*") if path.suffix != ".m3u8"}


@dataclass
class Cluster:
    """Nodes that hand a stream to one another, and a player of all its playlists who never loses a segment that was listed."""

    registry: MemoryRegistry
    network: Network
    places: dict[str, Place]
    owner: str = ""
    contents: dict[tuple[str, int], bytes] = field(default_factory=dict)
    had: set[tuple[object, ...]] = field(default_factory=set)
    """What was had since a stream changed hands, or a node was gone: it is not asked for each time."""
    lasts: dict[str, int] = field(default_factory=dict)
    firsts: dict[str, int] = field(default_factory=dict)

    async def takes(self, name: str, *, until: str = "running") -> None:
        """Have a node claim the stream that nobody has, or whose owner is as good as dead, and wait for that state."""
        place, registry = self.places[name], self.registry
        found, life = await registry.follow("news")
        assert found is not None
        epoch = await registry.claim("news", name, {"node": name, "wanted": ""}, dead=found.fields.get("session", ""))
        assert epoch > 0
        stream = await admitted(found, place.node)
        place.leaving.clear()
        claim = Claim(found, name, epoch, life)
        place.relaying = asyncio.create_task(relay_stream(stream, place.node, place.leaving, claim))
        self.owner = name
        await self.until(lambda: place.node.storages)
        if until:
            await self.until(lambda: registry.streams["news"].get("state") == until)

    async def lets_go(self) -> None:
        """Have the owner hand the stream on, as at TERM or `move`."""
        place = self.places[self.owner]
        place.leaving.set()
        assert place.relaying is not None
        await place.relaying

    async def is_killed(self) -> None:
        """The owner is no more: it says nothing, and can't be reached."""
        place = self.places[self.owner]
        assert place.relaying is not None
        self.network.down.add(place.name)
        self.registry.report = _lost  # type: ignore[assignment, method-assign]
        place.relaying.cancel()
        await asyncio.gather(place.relaying, return_exceptions=True)
        del self.registry.report

    async def until(self, reached: Callable[[], object], within_s: float = 60.0) -> None:
        async with asyncio.timeout(within_s):
            while not reached():
                await elapse(0.05)

    async def plays(self, seconds: float, at: str = "", *, fewest: int = 0) -> None:
        """Look at all that is listed now and then, at the node *at* or the owner; each list has *fewest* entries at least."""
        until_s = asyncio.get_running_loop().time() + seconds
        while True:
            for name in re.findall(r"(?m)^([^#\n]+)/index\.m3u8$", (await self.got("index.m3u8", at)).decode()):
                listed = await self.listed(name, at)
                assert len(listed.segments) >= fewest, f"{name} lists {len(listed.segments)} entries"
            if asyncio.get_running_loop().time() >= until_s:
                return
            await elapse(4)

    async def fills(self) -> None:
        """Wait until the window is as long as it gets."""
        await elapse(1.2 * WINDOW_S)
        await self.plays(0)

    async def listed(self, name: str = "source", at: str = "") -> Snapshot:
        """Return a playlist; it never goes back, and all that it lists can be had and never changes."""
        text = await self.got(f"{name}/index.m3u8", at)
        snapshot = parse(text, "file:///")
        assert isinstance(snapshot, Snapshot)
        assert snapshot.segments[-1].sequence >= self.lasts.get(name, 0), "the sequence goes back"
        assert snapshot.media_sequence >= self.firsts.get(name, 0)
        self.lasts[name], self.firsts[name] = snapshot.segments[-1].sequence, snapshot.media_sequence
        beside = re.findall(r'URI="([^":]+)"', text.decode())
        for path in beside:
            await self.got(f"{name}/{path}", at)
        for one in snapshot.segments:
            had = (name, one.sequence, self.owner, at, *sorted(self.network.down))
            if not one.gap and (had not in self.had or one in (snapshot.segments[0], snapshot.segments[-1])):
                self.had.add(had)
                body = await self.got(f"{name}/{one.uri.removeprefix('file:///')}", at)
                assert self.contents.setdefault((name, one.sequence), body) == body
        return snapshot

    async def got(self, path: str, at: str = "") -> bytes:
        answer = await self.places[at or self.owner].client.get(f"/live/news/{path}")
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:200]}"
        return answer.content


async def _lost(*_: object) -> bool:
    return True


@asynccontextmanager
async def cluster(at: Path, origin: Origin | Tracks, names: str, fields: dict[str, str], encoder: object) -> AsyncGenerator[Cluster, None]:
    registry, network = MemoryRegistry(), Network()
    await registry.register("news", FIELDS | fields)
    whole = Cluster(registry, network, {})
    for name in names:
        folder = at / name
        folder.mkdir()
        node = OfOrigins(load_settings(), folder, registry, Children(), encoder, clock=VirtualClock())  # type: ignore[arg-type]
        node.origin, node.url = origin, f"http://{name}"  # type: ignore[assignment]
        node.elsewhere = lambda _, name=name: f"http://{whole.owner}" if whole.owner != name else ""  # type: ignore[misc]
        node.edge = Edge(node.elsewhere, asyncio.get_running_loop().time, network)
        serving = httpx.ASGITransport(create_app(RelaySite(node)), raise_app_exceptions=True)
        network.nodes[name] = serving
        whole.places[name] = Place(name, node, httpx.AsyncClient(transport=serving, base_url=f"http://{name}"))
    try:
        yield whole
    finally:
        for place in whole.places.values():
            if place.relaying:
                place.relaying.cancel()
                await asyncio.gather(place.relaying, return_exceptions=True)
            await place.node.edge.aclose()
            await place.client.aclose()


def played(
    at: Path,
    play: Callable[[Cluster], Awaitable[None]],
    origin: Origin | Tracks | None = None,
    names: str = "abc",
    encoder: object | None = None,
    **fields: str,
) -> None:
    async def within() -> None:
        async with cluster(at, origin or Origin(), names, fields, encoder or NoEncoder()) as whole:
            await play(whole)

    run_virtually(within())


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


class Tracks:
    """A source of several media playlists."""

    def __init__(self) -> None:
        base = URL.rpartition("/")[0]
        self._origins = {track: Origin(name=track, base=f"{base}/{track}") for track in NAMES}

    def transport(self) -> TransportFactory:
        return Show(None, None, None, self._origins).transport()  # type: ignore[arg-type]


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
        await nodes.takes("a")
        await nodes.fills()
        whole = len((await nodes.listed()).segments)
        nodes.network.slow["a"] = 0.2
        await nodes.lets_go()
        await nodes.takes("b", until="")
        await nodes.until(lambda: len(nodes.places["b"].files()) >= 6)
        nodes.network.down.add("a")
        await elapse(GIVEN_UP_AFTER_S + 5)  # meanwhile it may yet come back
        listed = await nodes.listed()
        assert 6 <= len(listed.segments) < whole
        await nodes.fills()
        assert not any(one.discontinuity or one.gap for one in (await nodes.listed()).segments)

    played(tmp_path, play)


def test_an_owner_that_hands_on_what_it_has_not_fetched_yet_tells_where_it_is(tmp_path: Path) -> None:
    async def play(nodes: Cluster) -> None:
        await nodes.takes("a")
        await nodes.fills()
        whole = len((await nodes.listed()).segments)
        nodes.network.slow["a"] = 0.5
        await nodes.lets_go()
        await nodes.takes("b", until="")
        await nodes.until(lambda: len(nodes.places["b"].files()) >= 3)
        await nodes.lets_go()
        assert len(nodes.places["b"].files()) < whole
        await nodes.takes("c")
        await nodes.plays(20, fewest=whole)
        nodes.network.down |= {"a", "b"}
        await nodes.plays(8, fewest=whole)

    played(tmp_path, play)


def test_an_owner_that_is_started_anew_goes_on_fetching_what_it_lists(tmp_path: Path) -> None:
    async def play(nodes: Cluster) -> None:
        await nodes.takes("a")
        await nodes.fills()
        whole = len((await nodes.listed()).segments)
        nodes.network.slow["a"] = 0.5
        await nodes.lets_go()
        await nodes.takes("b", until="")
        await nodes.until(lambda: len(nodes.places["b"].files()) >= 3)
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
