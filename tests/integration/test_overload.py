"""Ladders on a machine that is too small for them, in virtual time: pass-through is never late, and what is left out comes back.

Everything is real but the source, the time and ffmpeg: relays, scheduler, encoder, storage, playlists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from hlsrelay.desk import Tools
from hlsrelay.encoder import SHED_S, LocalEncoder
from hlsrelay.hls.parse import parse
from hlsrelay.ladder import parse_ladder
from hlsrelay.model import Desired, Made, Snapshot
from hlsrelay.relay import relay
from hlsrelay.scheduling import AT_ONCE
from hlsrelay.storage import LocalStorage
from hlsrelay.upstream import Upstream
from tests.fake_ffmpeg import FakeFfmpeg
from tests.integration.relaying import Operator
from tests.origin import Origin
from tests.playlists import stream
from tests.unit.test_media_probe import picture, sound
from tests.unit.test_media_probe import segment as ts_segment
from tests.virtual import VirtualClock, elapse, run_virtually

TD_S = 4.0
ON_TIME_S = TD_S + 0.01
LADDER = "720p,480p,360p"


@cache
def content(path: str) -> bytes:
    """Return a segment of 4 s at 25 fps, with some sound."""
    begin_90k = int(path.rpartition("-")[2].removesuffix(".ts")) * 360_000
    return ts_segment(sound(begin_90k), *[picture(begin_90k + frame * 3600, idr=frame == 0) for frame in range(100)])


@dataclass
class Shown:
    """A stream, what was made of it and when it was published, and each playlist that its rungs showed."""

    operator: Operator
    storage: LocalStorage
    when: dict[int, float] = field(default_factory=dict)
    made: dict[int, Made] = field(default_factory=dict)
    listed: dict[tuple[str, int], str] = field(default_factory=dict)

    def look(self, made: Made) -> None:
        """Take what was published, and read every rung's playlist as a player would: what it lists is there, and stays what it was."""
        number = made.entry.number
        self.when[number], self.made[number] = asyncio.get_running_loop().time(), made
        for name in ("source", *made.entry.rungs) if number % 3 == 0 else ():  # parsing is what takes the test's time
            playlist = parse(self.storage.read(f"{name}/index.m3u8") or b"", "file:///")
            assert isinstance(playlist, Snapshot)
            assert playlist.segments[-1].sequence >= number, f"{name} is behind"
            for one in playlist.segments:
                uri = one.uri.rpartition("/")[2]
                said = "GAP" if one.gap else uri
                assert self.listed.setdefault((name, one.sequence), said) == said
                assert one.gap or self.storage.read(f"{name}/{uri}") is not None, f"{name}/{uri} is a 404"
                assert one.gap or one.uri.endswith(f"{one.sequence}.ts") or "../" in one.uri, "an older segment's file"

    def share(self, rung: str, since_s: float = 0.0) -> float:
        """Return the part of the segments since then that have the rung."""
        found = [rung in made.entry.files for number, made in self.made.items() if self.when[number] >= since_s]
        return sum(found) / len(found)

    def stop(self) -> None:
        """Let the operator stop it."""
        self.operator.stream = replace(self.operator.stream, desired=Desired.STOP)


@dataclass
class Node:
    """Streams beside each other with one encoder; the stream `bare` has no ladder."""

    ffmpeg: FakeFfmpeg
    encoder: LocalEncoder
    streams: dict[str, Shown]
    left: list[str] = field(default_factory=list)
    """Temporary files that were there when all relays were gone."""

    def delays_s(self, name: str, since: int = AT_ONCE) -> list[float]:
        """Return by how much later each segment was published than without ladder, but for so many first ones: they came at once."""
        bare, found = self.streams["bare"].when, self.streams[name].when
        return [found[number] - bare[number] for number in sorted(found)[since:] if number in bare]


def node(
    live: Path,
    count: int,
    until_s: float,
    play: Callable[[Node], Coroutine[Any, Any, None]] | None = None,
    *,
    slots: int = 2,
    ffmpeg: FakeFfmpeg | None = None,
    ladder: str = LADDER,
) -> Node:
    """Relay so many streams with a ladder, and one without, while *play* happens."""

    async def run() -> Node:
        fake = ffmpeg or FakeFfmpeg()
        encoder = LocalEncoder(Path("ffmpeg"), fake.children(), slots, VirtualClock(), chance=lambda: 0.5)
        here = Node(fake, encoder, {})
        origins = {name: Origin(content=content) for name in ("bare", *(f"s{index}" for index in range(count)))}
        async with AsyncExitStack() as stack:
            relays = []
            for name, origin in origins.items():
                storage = stack.enter_context(LocalStorage(live, name))
                wanted = replace(stream(), id=name, ladder=parse_ladder("" if name == "bare" else ladder))
                shown = here.streams[name] = Shown(Operator(wanted), storage)
                upstream = await stack.enter_async_context(Upstream(transport=origin.transport()))
                tools = Tools(upstream, storage, encoder, shown.operator, VirtualClock())
                relays.append(asyncio.create_task(follow(tools, shown)))
            playing = asyncio.create_task(play(here)) if play else None
            await asyncio.wait(relays, timeout=until_s)
            for task in (*relays, *([playing] if playing else [])):
                if task.done():
                    task.result()
                task.cancel()
            await asyncio.gather(*relays, return_exceptions=True)
            here.left = [path.name for shown in here.streams.values() for path in shown.storage.temp("").iterdir()]
        return here

    async def follow(tools: Tools, shown: Shown) -> None:
        async with aclosing(relay(tools)) as ticks:
            async for tick in ticks:
                if tick.made and not tick.error:
                    shown.look(tick.made)

    return run_virtually(run())


def laddered(node: Node) -> list[Shown]:
    return [shown for name, shown in node.streams.items() if name != "bare"]


def test_a_ladder_that_keeps_up_is_whole_and_published_when_it_is_ready(tmp_path: Path) -> None:
    here = node(tmp_path, 1, 60)
    assert all(here.streams["s0"].share(rung, since_s=10) == 1 for rung in ("720p", "480p", "360p"))
    assert max(here.delays_s("s0")[4:]) < 0.55 * TD_S


def test_overload_delays_pass_through_by_less_than_a_target_duration_and_leaves_the_costliest_rung_out(tmp_path: Path) -> None:
    async def play(here: Node) -> None:
        await elapse(80)
        here.streams["s2"].stop()
        here.streams["s3"].stop()

    here = node(tmp_path, 4, 160, play, ladder=f"{LADDER},audio")
    for name, shown in here.streams.items():
        assert max(here.delays_s(name, since=0)) <= ON_TIME_S, "from the first segment on"
        assert name == "bare" or shown.share("audio") == 1
        numbers = sorted(shown.made)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "each segment is published, and in order"
    for shown in laddered(here):
        dropped = [made.dropped for number, made in shown.made.items() if 20 <= shown.when[number] < 80]
        assert all("720p" in one for one in dropped)
        assert sum("360p" in one for one in dropped) <= 1, "the cheapest stays"
        assert not any(made.failed for made in shown.made.values())
    for name in ("s0", "s1"):
        assert here.streams[name].share("720p", since_s=125) == 1, "it comes back by itself"
    assert here.ffmpeg.most_running <= 2 + 2, "two slots, and as many for sound"


def test_cpu_that_is_taken_away_makes_gaps_not_delays_and_the_ladder_comes_back(tmp_path: Path) -> None:
    async def play(here: Node) -> None:
        await elapse(30)
        here.ffmpeg.cores = 0.02
        await elapse(30)
        here.ffmpeg.cores = 2.0

    here = node(tmp_path, 1, 160, play)
    shown = here.streams["s0"]
    assert max(here.delays_s("s0")) <= ON_TIME_S
    stalled = [made for number, made in shown.made.items() if 40 <= shown.when[number] < 60]
    assert [set(made.entry.files) for made in stalled] == [{"source"}] * len(stalled)
    assert shown.share("720p", since_s=130) == 1


def test_a_rung_slower_than_real_time_keeps_up_where_slots_allow_and_holds_its_stream_back_by_a_constant_time(tmp_path: Path) -> None:
    here = node(tmp_path, 1, 120, slots=4, ffmpeg=FakeFfmpeg(cores=8, parallel=0.6))
    assert all(here.streams["s0"].share(rung, since_s=60) == 1 for rung in ("720p", "480p", "360p"))
    late_s = here.delays_s("s0")[-10:]
    assert TD_S < min(late_s) <= max(late_s) < 2 * TD_S
    assert max(late_s) - min(late_s) < 0.2


def test_a_job_that_fails_is_tried_once_more_on_one_thread(tmp_path: Path) -> None:
    fake = FakeFfmpeg()
    fake.failing = {"s0 2"}
    here = node(tmp_path, 1, 30, ffmpeg=fake, ladder="360p")
    assert here.streams["s0"].share("360p") == 1
    assert not any(made.failed for made in here.streams["s0"].made.values())
    assert [threads for _, _, threads in fake.began[:2]] in ([2, 1], [2, 2])
    assert sum(threads == 1 for _, _, threads in fake.began) == sum(threads == 2 for _, _, threads in fake.began)


def test_a_ladder_that_fails_again_and_again_is_paused_tried_less_and_less_and_taken_up_when_it_works(tmp_path: Path) -> None:
    async def play(here: Node) -> None:
        await elapse(70)
        here.ffmpeg.failing.clear()

    fake = FakeFfmpeg()
    fake.failing = {"s0"}
    with capture_logs() as lines:
        here = node(tmp_path, 2, 130, play, ffmpeg=fake, ladder="360p")
    shown = here.streams["s0"]
    jobs = [began_s for began_s, name, threads in fake.began if name == "s0" and threads == 2 and began_s < 70]
    assert len(jobs) <= 3 + 3 + 2, "three failures, then a trial after 10, 20 and 40 s"
    paused = [made for made in shown.made.values() if made.ladder_paused]
    assert len(paused) > 8
    assert "the ladder is paused" in paused[0].failed["360p"]
    assert max(here.delays_s("s0")) <= ON_TIME_S
    assert shown.share("360p", since_s=115) == here.streams["s1"].share("360p") == 1
    events = [line["event"] for line in lines if line["event"].startswith("ladder.")]
    assert events == [*["ladder.paused"] * (len(events) - 1), "ladder.resumed"]
    assert 3 <= len(events) <= 5


def test_memory_pressure_sheds_ladder_jobs_and_never_pass_through(tmp_path: Path) -> None:
    shed: list[bool] = []

    async def play(here: Node) -> None:
        await elapse(40.5)
        shed.extend(here.encoder.shed() for _ in range(3))

    here = node(tmp_path, 2, 80, play)
    assert shed == [True, True, False]
    for name in ("s0", "s1"):
        shown = here.streams[name]
        during = [made for number, made in shown.made.items() if 40.5 <= shown.when[number] < 40.5 + SHED_S]
        assert during
        assert all(set(made.entry.files) == {"source"} for made in during)
        assert shown.share("360p", since_s=50) == 1
        assert max(here.delays_s(name)) <= ON_TIME_S


def test_nothing_stays_behind_of_jobs_that_were_given_up(tmp_path: Path) -> None:
    async def play(here: Node) -> None:
        await elapse(20)
        here.ffmpeg.cores = 0.3

    here = node(tmp_path, 2, 60, play)
    assert here.ffmpeg.running == 0
    assert here.left == []
    assert all(any(made.dropped for made in shown.made.values()) for shown in laddered(here))
