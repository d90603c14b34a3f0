"""Files are pulled through the operator's caches before they are listed, in virtual time; a slow, dead or wrong one holds up little."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from hlsrelay import caches
from hlsrelay.caches import MOST_UNDER_WAY, WITHIN_S, Caches, Pulled
from hlsrelay.edge import Edge
from hlsrelay.encoder import Encoded
from hlsrelay.errors import ConfigError
from hlsrelay.fields import stream_of
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.processes import Children
from hlsrelay.recipe import EncodeJob
from hlsrelay.settings import load_settings
from hlsrelay.site import RelaySite
from hlsrelay.storage import LocalStorage
from hlsrelay.web import create_app
from tests.integration import on_demand_house
from tests.integration.on_demand_house import IDLE_S, House, OfOrigins
from tests.integration.relaying import NoEncoder, Watching, later, relayed, scenario
from tests.integration.test_fmp4_ladder import INIT, ONE, content, init_served, ladder_of_fmp4
from tests.integration.test_keys import announcing, encrypted
from tests.origin import Origin, Streaming
from tests.playlists import URL
from tests.virtual import VirtualClock, elapse, run_virtually

BASE = "https://cdn.example/some/live"
NEVER_S = 3600.0


@dataclass
class Cdn:
    """A cache that notes what it is asked for, when, and what players knew of before it had it."""

    storage: LocalStorage | None = None
    takes_s: float = 0.02
    answer: Callable[[str], httpx.Response] = lambda _: httpx.Response(200, content=b"media", headers={"set-cookie": "seen=1"})
    asked: list[tuple[float, str]] = field(default_factory=list)
    too_late: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        base, path = str(request.url)[: len(BASE)], str(request.url)[len(BASE) + 1 :]
        assert base == BASE
        assert "cookie" not in request.headers
        self.asked.append((now_s(), path))
        if self.storage is not None:
            _, rendition, name = path.split("/")
            assert self.storage.read(f"{rendition}/{name}") is not None, f"{path} is not there yet"
            await elapse(self.takes_s)
            if name in (self.storage.read(f"{rendition}/index.m3u8") or b"").decode():
                self.too_late.append(path)
        else:
            await elapse(self.takes_s)
        return self.answer(path)

    def caches(self, *bases: str) -> Caches:
        """Return a way through this cache, which every stream is pulled through if *bases* name it."""
        return Caches(
            bases, now_s, lambda _, __, outcome: self.counts.update([outcome]), lambda _: Streaming(httpx.MockTransport(self.handle))
        )

    def paths(self) -> Counter[str]:
        return Counter(path for _, path in self.asked)


def now_s() -> float:
    return asyncio.get_running_loop().time()


def preloaded(watch: Watching, **more: Any) -> Cdn:
    """Have the stream of *watch* pulled through a cache."""
    cdn = Cdn(watch.storage, **more)
    watch.caches = cdn.caches()
    watch.operator.stream = replace(watch.operator.stream, preload=(BASE,))
    return cdn


def played(folder: Path, play: Callable[[Watching], Awaitable[None]], origin: Origin | None = None) -> Watching:
    async def whole(watch: Watching) -> None:
        try:
            await play(watch)
        finally:
            if watch.caches:
                await watch.caches.aclose()

    return scenario(folder, whole, origin)


def listed(watch: Watching) -> set[str]:
    """Return the paths of all media that any playlist lists now."""
    names = set()
    for rendition in ("source", "small"):
        text = (watch.storage.read(f"{rendition}/index.m3u8") or b"").decode()
        names |= {f"news/{rendition}/{name}" for name in re.findall(r'(?m)^(?:[^#].*$)|(?<=URI=")[^"]+', text)}
    return names


def test_every_file_is_pulled_once_before_it_is_listed_and_the_sources_while_its_rungs_are_made(tmp_path: Path) -> None:
    done_s: dict[int, float] = {}

    async def play(watch: Watching) -> None:
        made = ladder_of_fmp4(watch, lambda _: ONE)
        encode = made.encode

        async def slow(job: EncodeJob) -> Encoded:
            await elapse(1)
            done_s[job.number] = now_s()
            return await encode(job)

        made.encode = slow  # type: ignore[method-assign]
        cdn = preloaded(watch)
        await relayed(watch, 80)
        paths = cdn.paths()
        assert listed(watch) <= paths.keys()
        assert cdn.too_late == [path for path in cdn.too_late if path.endswith(".mp4")]  # an init section again, for caches that forget
        assert {count for path, count in paths.items() if not path.endswith(".mp4")} == {1}
        assert {path.rpartition(".")[2] for path in paths} == {"m4s", "mp4"}
        inits = [path for path in paths if path.endswith(".mp4")]
        assert len(inits) == 2
        assert {paths[path] for path in inits} == {2}
        begun_s = {int(path.rpartition("/")[2].removesuffix(".m4s")): at_s for at_s, path in cdn.asked if re.search(r"source/\d", path)}
        assert all(at_s < done_s.get(number, math.inf) for number, at_s in begun_s.items())  # the last one was being made
        assert cdn.counts.keys() == {Pulled.WARM}

    watch = played(tmp_path, play, announcing(lambda _: ['#EXT-X-MAP:URI="i.mp4"'], init_served, Origin(content=content)))
    assert INIT
    assert {tick.made.cold for tick in watch.ticks if tick.made} == {""}


def test_keys_are_pulled_and_gaps_are_not(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        cdn = preloaded(watch)
        known = watch.origin.fault
        assert known
        watch.origin.fault = lambda request: httpx.Response(404) if "a-112.ts" in str(request.url) else known(request)
        await relayed(watch, 60)
        assert len(watch.gaps()) == 1
        assert {path for path in listed(watch) if not path.startswith("news/source/112.")} <= cdn.paths().keys()
        assert any(path.endswith(".key") for path in cdn.paths())
        assert not [path for path in cdn.paths() if path.startswith(f"news/source/{watch.gaps()[0]}.")]
        assert cdn.too_late == []

    played(tmp_path, play, encrypted(Origin()))


def first_listed_s(folder: Path, monkeypatch: pytest.MonkeyPatch, until_s: float, set_up: Callable[[Watching], object]) -> dict[int, float]:
    """Return when each number was first listed."""
    when: dict[int, float] = {}

    async def play(watch: Watching) -> None:
        publish = watch.storage.publish

        def timed(playlist: str, text: str) -> None:
            publish(playlist, text)
            for number in re.findall(r"(?m)^(\d+)\.ts$", text):
                when.setdefault(int(number), now_s())

        with monkeypatch.context() as patched:
            patched.setattr(watch.storage, "publish", timed)
            set_up(watch)
            await relayed(watch, until_s)

    played(folder, play)
    return when


def delays_s(folder: Path, monkeypatch: pytest.MonkeyPatch, until_s: float, set_up: Callable[[Watching], object]) -> dict[int, float]:
    """Return by how much each number was listed later than without a cache."""
    plain = first_listed_s(folder / "plain", monkeypatch, until_s, lambda _: None)
    held = first_listed_s(folder / "held", monkeypatch, until_s, set_up)
    assert plain.keys() == held.keys()
    return {number: round(held[number] - plain[number], 3) for number in plain}


def test_a_cache_that_hangs_costs_half_a_second_once_and_is_hardly_asked_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Cdn] = []
    delays = delays_s(tmp_path, monkeypatch, 200, lambda watch: seen.append(preloaded(watch, takes_s=NEVER_S)))
    first = min(delays)
    assert max(delays.values()) == WITHIN_S
    assert {number for number, delay in delays.items() if delay} <= {first, first + 1, first + 2}  # those of the first load, at one time
    [cdn] = seen
    assert len(delays) > 45
    assert len(cdn.asked) < 12
    assert cdn.counts[Pulled.SKIPPED] > 35


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), ValueError("a library's own")])
def test_a_cache_that_can_not_be_reached_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refused(_: str) -> httpx.Response:
        raise error

    delays = delays_s(tmp_path, monkeypatch, 40, lambda watch: preloaded(watch, takes_s=0.0, answer=refused))
    assert max(delays.values()) < 0.01


def test_a_cache_that_is_late_each_time_is_warmed_and_soon_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Cdn] = []
    delays = delays_s(tmp_path, monkeypatch, 50, lambda watch: seen.append(preloaded(watch, takes_s=0.8)))
    assert max(delays.values()) == WITHIN_S
    assert [delay for delay in delays.values() if delay] == [WITHIN_S] * caches.LATES
    [cdn] = seen
    assert len(cdn.paths()) == len(cdn.asked) == len(delays)
    assert cdn.counts == {Pulled.LATE: len(delays)}


def test_a_cache_that_comes_back_is_used_again_and_what_was_wrong_is_told_meanwhile(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        cdn = preloaded(watch)
        later(20, lambda: setattr(cdn, "takes_s", NEVER_S))
        later(70, lambda: setattr(cdn, "takes_s", 0.02))
        await relayed(watch, 60)
        assert [tick.made.cold for tick in watch.ticks if tick.made][-1] == f"{BASE} gives no answer, or not whole, within 10 s"
        await relayed(watch, 130)
        before = cdn.counts[Pulled.WARM]
        await relayed(watch, 150)
        assert cdn.counts[Pulled.WARM] >= before + 4
        assert [tick.made.cold for tick in watch.ticks if tick.made][-1] == ""

    played(tmp_path, play)


@pytest.mark.parametrize(
    ("status", "reason", "held_s"),
    [(404, "answers 404", WITHIN_S), (503, "answers 503", 0.001), (301, "redirects (301): write the URL that it leads to", 0.001)],
)
def test_a_cache_that_answers_with_something_else_is_told_of_and_holds_up_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, reason: str, held_s: float
) -> None:
    seen: list[tuple[Watching, Cdn]] = []

    def answer(_: str) -> httpx.Response:
        return httpx.Response(status, headers={"location": "http://169.254.169.254/"})

    delays = delays_s(tmp_path, monkeypatch, 40, lambda watch: seen.append((watch, preloaded(watch, takes_s=0.001, answer=answer))))
    assert max(delays.values()) == held_s
    assert sum(delays.values()) <= 3 * WITHIN_S  # of a missing file those of the first load: it may be there before long
    [(watch, cdn)] = seen
    assert {tick.made.cold for tick in watch.ticks if tick.made} <= {"", f"{BASE} {reason}"}
    assert cdn.counts[Pulled.FAILED] > 0
    assert cdn.counts[Pulled.WARM] == 0
    assert (len(cdn.paths()) == len(delays)) == (status < 500), "who has no such file is asked on, who can't answer is left alone"


def test_a_cache_that_has_not_heard_of_a_stream_yet_is_waited_for_and_no_trouble(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        cdn = preloaded(watch)
        began_s = now_s()
        cdn.answer = lambda _: httpx.Response(200 if now_s() - began_s > 0.3 else 404)
        await relayed(watch, 20)
        assert cdn.counts.keys() == {Pulled.WARM}
        began_s = now_s() + 0.7
        await relayed(watch, 40)
        assert cdn.counts.keys() == {Pulled.WARM, Pulled.LATE}

    assert {tick.made.cold for tick in played(tmp_path, play).ticks if tick.made} == {""}


def test_pulls_that_nobody_waits_for_are_bounded_in_number_and_in_time() -> None:
    async def body() -> None:
        cdn = Cdn(takes_s=NEVER_S)
        through = cdn.caches()
        for number in range(2 * MOST_UNDER_WAY):
            through.pull(BASE, f"news/source/{number}.ts")
        await elapse(0.1)
        assert len(cdn.asked) == MOST_UNDER_WAY
        assert through.pulling("news/source/0.ts")
        await elapse(caches.ENDED_WITHIN_S)
        assert not through.pulling("news/source/0.ts")
        assert cdn.counts == {Pulled.SKIPPED: MOST_UNDER_WAY, Pulled.FAILED: MOST_UNDER_WAY}
        await through.aclose()

    run_virtually(body())


@pytest.mark.parametrize(
    "text",
    [
        "cdn.example/live",
        "ftp://cdn.example/live",
        "https://cdn.example/live?token=secret",
        "https://cdn.example/live/news/index.m3u8",
        "https://",
    ],
)
def test_what_is_no_base_url_is_refused_and_says_what_to_write(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^preload: .*write") as field_error:
        stream_of("news", {"source": URL, "preload": f"https://good.example {text}"})
    assert "secret" not in str(field_error.value)
    monkeypatch.setenv("HLSRELAY_PRELOAD", text)
    with pytest.raises(ConfigError, match=r"HLSRELAY_PRELOAD.*write"):
        load_settings()


def test_a_user_name_and_password_go_to_their_cache_and_are_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real socket."""
    heard: list[bytes] = []
    shown: list[str] = []

    async def body() -> None:
        async def cache(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(cache, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            base = f"http://us%40er:secret@127.0.0.1:{port}/live"
            through = Caches((), now_s, lambda _, base, outcome: shown.append(f"{base} {outcome}"))
            pull = through.pull(base, "news/source/1.ts")
            assert pull
            await pull.task
            await through.aclose()
            assert shown == [f"http://127.0.0.1:{port}/live warm"]

    asyncio.run(body())
    assert heard[0].startswith(b"GET /live/news/source/1.ts HTTP/1.1\r\n")
    assert b"Basic dXNAZXI6c2VjcmV0" in heard[0]
    monkeypatch.setenv("HLSRELAY_PRELOAD", "https://user:secret@cdn.example/live?x=1")
    with pytest.raises(ConfigError) as error:
        load_settings()
    assert "secret" not in str(error.value)


def test_bases_of_the_node_and_of_the_stream_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLSRELAY_PRELOAD", f" https://a.example/live/  {BASE}")
    everywhere = load_settings().preload
    assert everywhere == ("https://a.example/live", BASE)
    asked: Counter[str] = Counter()

    def answer(request: httpx.Request) -> httpx.Response:
        asked[request.url.host] += 1
        return httpx.Response(200)

    async def play(watch: Watching) -> None:
        watch.caches = Caches(everywhere, now_s, lambda *_: None, lambda _: Streaming(httpx.MockTransport(answer)))
        watch.operator.stream = replace(watch.operator.stream, preload=(BASE, "https://b.example"))
        await relayed(watch, 40)
        assert asked.keys() == {"a.example", "cdn.example", "b.example"}
        assert len(set(asked.values())) == 1

    played(tmp_path, play)


# A cache that asks us -------------------------------------------------------------------------------------------------------------------


def through(node: OfOrigins, transport: httpx.AsyncBaseTransport, base: str) -> Caches:
    """Return a node's caches, reached over *transport*."""

    def counted(path: str, shown: str, outcome: Pulled) -> None:
        node.metrics.preloads.labels(path.partition("/")[0], shown, outcome).inc()

    return Caches((base,), node.clock.monotonic_s, counted, lambda _: transport)


def test_an_edge_node_has_each_segment_before_it_is_listed_and_no_pull_keeps_an_on_demand_stream_awake(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        edge = OfOrigins(load_settings(), tmp_path / "edge", MemoryRegistry(), Children(), NoEncoder(), clock=VirtualClock())
        edge.elsewhere = {"news": "http://relay"}.__getitem__
        owner = httpx.ASGITransport(create_app(RelaySite(house.node)))
        edge.edge = Edge(edge.elsewhere, now_s, owner)
        serving = httpx.ASGITransport(create_app(RelaySite(edge)))
        house.node.caches = through(house.node, serving, "http://edge/live")
        async with httpx.AsyncClient(transport=serving, base_url="http://edge") as viewer:
            for _ in range(8):
                text = (await viewer.get("/live/news/source/index.m3u8")).raise_for_status().text
                before = edge.edge.fetches
                for name in re.findall(r"(?m)^\d+\.ts$", text):
                    (await viewer.get(f"/live/news/source/{name}")).raise_for_status()
                assert edge.edge.fetches == before, "a viewer met a cold cache"
                await elapse(4)
        assert before > 8
        await elapse(IDLE_S + 5)
        assert house.registry.streams["news"]["state"] == "idle"
        assert 'outcome="failed"' not in house.node.metrics.text().decode()
        await edge.edge.aclose()
        await house.node.caches.aclose()

    on_demand_house.scenario(tmp_path / "live", play)


def test_what_is_wrong_with_a_cache_is_a_fault_of_the_stream_told_once_and_counted(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        transport = Streaming(httpx.MockTransport(lambda _: httpx.Response(403)))
        house.node.caches = through(house.node, transport, "https://user:secret@cdn.example/live")
        await house.watched(30)
        told = house.registry.streams["news"]["last_error"]
        assert told.partition(" ")[2] == "preload: https://cdn.example/live answers 403"
        await house.watched(30)
        assert house.registry.streams["news"]["last_error"] == told
        figures = house.node.metrics.text().decode()
        assert re.search(r'hlsrelay_preloads_total\{base="https://cdn.example/live",outcome="failed",stream="news"\} \d\d', figures)
        await house.node.caches.aclose()

    on_demand_house.scenario(tmp_path, play)
