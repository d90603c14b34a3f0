"""Jobs of the ladder that others do, in virtual time: whatever becomes of a pool, it costs time and no segment, and never pass-through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hlsrelay.encoder import Encoded, LocalEncoder
from hlsrelay.errors import EncodeError
from hlsrelay.ladder import parse_ladder
from hlsrelay.media.probe import probe
from hlsrelay.parcel import packed
from hlsrelay.pool import LATE, PoolEncoder
from hlsrelay.recipe import EncodeJob
from hlsrelay.scheduling import ALLOWANCE, LONGEST_ALLOWANCE
from tests.fake_ffmpeg import FakeFfmpeg
from tests.fake_pool import FakePool
from tests.integration.test_overload import content
from tests.virtual import VirtualClock, elapse, run_virtually
from tests.waiting import turns

TD_S = 6.0
DUE_S = ALLOWANCE * TD_S
LADDER = "480p,360p"


@dataclass
class House:
    """A relay's encoder, its own slots, and its pool."""

    folder: Path
    pool: FakePool
    here: FakeFfmpeg
    local: LocalEncoder
    encoder: PoolEncoder
    where: list[str] = field(default_factory=list)

    def job(self, number: int = 1, ladder: str = LADDER, stream: str = "news", **more: Any) -> EncodeJob:
        """Return a job as the relay would ask for it; its segment is there."""
        source = self.folder / f"{stream}-{number}.ts"
        source.write_bytes(content(f"x-{number}.ts"))
        rungs = parse_ladder(ladder)
        outputs = {rung.name: self.folder / f"{rung.name}@{stream}@{number}.ts" for rung in rungs}
        job = EncodeJob(stream, number, source, probe(source.read_bytes()), 4.0, outputs, rungs, target_duration_s=TD_S)
        return replace(job, **more)

    async def took_s(self, job: EncodeJob) -> tuple[Encoded, float]:
        """Have a job done; return what came of it, and how long it took. Its good files are there, and no others."""
        began_s = now_s()
        encoded = await self.encoder.encode(job)
        took_s = now_s() - began_s
        assert {name for name, path in job.outputs.items() if path.exists()} == set(encoded.outputs)
        for name in encoded.outputs:
            assert job.outputs[name].read_bytes() == job.source.read_bytes()
        return encoded, took_s

    async def learn(self) -> None:
        """Have a job done here, so that it is known how long it takes."""
        await self.local.encode(self.job(0))
        self.here.began.clear()

    def left(self) -> list[str]:
        """Return what lies about that nobody has asked for."""
        return [path.name for path in self.folder.iterdir() if path.name.startswith(("here", "job-", "sound-"))]


def now_s() -> float:
    return asyncio.get_running_loop().time()


def at(folder: Path, play: Callable[[House], Coroutine[Any, Any, None]], slots: int = 4) -> House:
    """Let *play* happen to a house; afterwards nothing runs anywhere."""

    async def run() -> House:
        pool, here = FakePool(folder, slots), FakeFfmpeg()
        local = LocalEncoder(Path("ffmpeg"), here.children(), 2, VirtualClock(), chance=lambda: 0.5)
        where: list[str] = []
        house = House(folder, pool, here, local, PoolEncoder(pool, local, VirtualClock(), lambda: 0.5, where.append), where)
        await play(house)
        await house.encoder.aclose()
        await turns(5)
        assert (here.running, pool.ffmpeg.running, house.encoder.jobs) == (0, 0, 0)
        assert house.left() == []
        return house

    return run_virtually(run())


def test_a_job_is_done_by_the_pool_alone_and_what_is_sent_is_no_more_than_it_reads(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        before, job = house.job(1), house.job(2)
        encoded, _ = await house.took_s(replace(job, previous=before.source))
        assert set(encoded.outputs) == {"480p", "360p"}
        assert len(house.pool.asked[0][1].parcel) < 1.5 * job.source.stat().st_size

    house = at(tmp_path, play)
    assert house.where == ["pool"]
    assert house.here.began == []


def test_rungs_without_video_never_leave_this_machine(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        encoded, _ = await house.took_s(house.job(ladder="480p,audio"))
        assert set(encoded.outputs) == {"480p", "audio"}
        encoded, _ = await house.took_s(house.job(2, ladder="audio"))
        assert set(encoded.outputs) == {"audio"}

    house = at(tmp_path, play)
    assert len(house.pool.asked) == 1
    assert len(house.here.began) == 2


def test_a_job_not_back_by_half_its_time_is_sent_a_second_time_and_the_first_answer_wins(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.learn()
        house.pool.hows = ["hangs"]
        encoded, took_s = await house.took_s(house.job())
        assert set(encoded.outputs) == {"480p", "360p"}
        assert DUE_S / 2 < took_s < DUE_S / 2 + 1.5

    house = at(tmp_path, play)
    (first_s, first), (second_s, second) = house.pool.asked
    assert second_s - first_s == pytest.approx(DUE_S / 2)
    assert second.beside is first
    assert first in house.pool.stopped
    assert house.where == ["second"]
    assert house.here.began == []


def test_it_is_not_sent_a_second_time_while_the_pool_is_full(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.pool.hows = ["hangs"]
        house.pool.taken = 3
        encoded, _ = await house.took_s(house.job())
        assert set(encoded.outputs) == {"480p", "360p"}

    house = at(tmp_path, play)
    assert len(house.pool.asked) == 1
    assert house.where == ["local"]


@pytest.mark.parametrize("known", [True, False], ids=["known how long that takes", "not known"])
def test_what_nobody_gives_back_is_made_here_when_there_is_just_the_time(known: bool, tmp_path: Path) -> None:
    async def play(house: House) -> None:
        if known:
            await house.learn()
        began_s = now_s()
        house.pool.hows = ["hangs", "hangs"]
        encoded, took_s = await house.took_s(house.job())
        assert set(encoded.outputs) == {"480p", "360p"}
        waited_s = house.here.began[0][0] - began_s
        assert DUE_S / 2 < waited_s < took_s <= DUE_S if known else waited_s == pytest.approx(DUE_S / 2)

    house = at(tmp_path, play)
    assert house.where == ["local"]
    assert len(house.pool.stopped) == 2


def test_an_answer_that_comes_while_it_is_being_made_here_is_taken_and_ours_is_stopped(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        await house.learn()
        house.pool.taken = 3  # so there is no second one
        house.pool.ffmpeg.parallel = 0.4  # so it takes almost all its time
        encoded, took_s = await house.took_s(house.job())
        assert set(encoded.outputs) == {"480p", "360p"}
        assert house.here.began
        assert took_s < DUE_S

    assert at(tmp_path, play).where == ["pool"]


def test_where_neither_has_the_time_the_rungs_are_left_out_when_the_segment_is_due_and_no_later(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.here.parallel = 0.05
        house.pool.hows = ["hangs", "hangs"]
        encoded, took_s = await house.took_s(house.job())
        assert encoded.outputs == {}
        assert set(encoded.dropped.values()) == {LATE}
        assert took_s == pytest.approx(DUE_S, abs=0.01)

    assert at(tmp_path, play).where == ["nowhere"]


@pytest.mark.parametrize("hows", [[0.5], ["refuses"]])
def test_a_worker_that_is_lost_or_can_not_do_it_costs_only_time(hows: list[str | float], tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.pool.hows = [*hows]
        encoded, took_s = await house.took_s(house.job())
        assert set(encoded.outputs) == {"480p", "360p"}
        assert took_s < 0.5 + 1.5
        house.pool.hows = [*hows, *hows]
        encoded, took_s = await house.took_s(house.job(2))
        assert set(encoded.outputs) == {"480p", "360p"}
        assert took_s < DUE_S

    with capture_logs() as lines:
        house = at(tmp_path, play)
    assert house.where == ["second", "local"]
    assert [line["event"] for line in lines if line["event"].startswith("pool.")] == ["pool.refused"]
    assert not [line for line in lines if line["event"].startswith("ladder.")], "it says nothing of the stream"


def test_a_worker_of_another_version_is_refused_in_words_and_its_jobs_are_done_here(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.pool.form = "0.0.9/abc"
        encoded, _ = await house.took_s(house.job())
        assert set(encoded.outputs) == {"480p", "360p"}

    with capture_logs() as lines:
        house = at(tmp_path, play)
    assert house.where == ["local"]
    [refused] = [line for line in lines if line["event"] == "pool.refused"]
    assert "the relay is of version 0.0.9/abc" in refused["reason"]
    assert "give both the same" in refused["reason"]


def test_a_pool_that_is_lost_with_jobs_under_way_loses_no_segment_and_nothing_is_asked_of_it_until_it_is_back(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.pool.hows = ["hangs", "hangs"]
        tasks = [asyncio.create_task(house.took_s(house.job(number))) for number in (1, 2)]
        await elapse(0.3)
        house.pool.lose()
        for encoded, took_s in await asyncio.gather(*tasks):
            assert set(encoded.outputs) == {"480p", "360p"}
            assert took_s < DUE_S
        await house.took_s(house.job(3))
        assert len(house.pool.asked) == 2

    assert at(tmp_path, play).where == ["local"] * 3


def test_more_than_twice_its_slots_is_not_asked_of_the_pool_whoever_asks(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.pool.taken = 1
        jobs = [house.job(1, stream=f"s{index}") for index in range(4)]
        assert all(len(encoded.outputs) == 2 for encoded, _ in await asyncio.gather(*map(house.took_s, jobs)))

    house = at(tmp_path, play, slots=2)
    assert len(house.pool.asked) == 3
    assert sorted(house.where) == ["local", "pool", "pool", "pool"]


def test_the_newest_segment_has_the_highest_priority_and_a_second_one_that_of_the_first(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.pool.hows = ["hangs", "does it", "does it"]
        old = asyncio.create_task(house.took_s(house.job(1, stream="a")))
        await elapse(0.5)
        await house.took_s(house.job(1, stream="b"))
        await old

    house = at(tmp_path, play)
    first, newer, second = (ticket.priority for _, ticket in house.pool.asked)
    assert newer > first == second


def test_a_job_that_fails_there_is_tried_once_more_here_on_one_thread(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.pool.ffmpeg.failing = {"news"}
        encoded, _ = await house.took_s(house.job())
        assert set(encoded.outputs) == {"480p", "360p"}
        assert encoded.failed == {}

    house = at(tmp_path, play)
    assert [threads for _, _, threads in house.here.began] == [1]
    assert len(house.pool.asked) == 1


def test_a_stream_whose_jobs_fail_in_both_places_is_left_alone_for_a_while(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.pool.ffmpeg.failing = house.here.failing = {"news"}
        for number in range(3):
            with pytest.raises(EncodeError, match="no such luck"):
                await house.took_s(house.job(number))
        asked = len(house.pool.asked)
        encoded, _ = await house.took_s(house.job(4))
        assert encoded.paused
        assert len(house.pool.asked) == asked == 3
        house.pool.ffmpeg.failing = set()
        await elapse(15)
        encoded, _ = await house.took_s(house.job(5))
        assert not encoded.paused
        assert set(encoded.outputs) == {"480p", "360p"}

    with capture_logs() as lines:
        at(tmp_path, play)
    assert [line["event"] for line in lines if line["event"].startswith("ladder.")] == ["ladder.paused", "ladder.resumed"]


@pytest.mark.parametrize("after_s", [0.2, DUE_S / 2 + 0.2, DUE_S - 0.2], ids=["the first", "the second", "ours"])
def test_a_stream_that_stops_takes_all_its_jobs_with_it(after_s: float, tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.pool.hows = ["hangs", "hangs"]
        house.here.parallel = 0.5
        job = house.job()
        task = asyncio.create_task(house.encoder.encode(job))
        await elapse(after_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not any(path.exists() for path in job.outputs.values())
        assert house.here.running == 0
        await turns(2)
        assert len(house.pool.stopped) == len(house.pool.asked)

    at(tmp_path, play)


def test_a_ladder_that_takes_longer_than_its_time_by_itself_has_longer_and_keeps_up(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.here.parallel = 0.01
        house.pool.ffmpeg.parallel = 0.25  # 1.6 CPU seconds take 6.4
        took, good = [], []
        for number in range(8):
            encoded, took_s = await house.took_s(house.job(number))
            took.append(took_s)
            good.append(len(encoded.outputs) == 2)
        assert not good[0]
        assert all(good[2:])
        assert max(took) <= LONGEST_ALLOWANCE * TD_S
        house.pool.taken = 4
        _, took_s = await house.took_s(house.job(9))
        assert took_s <= DUE_S + 0.01, "overload ends it"

    at(tmp_path, play)


def test_operators_see_what_is_with_the_pool_and_for_how_long(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.pool.hows = ["hangs", "hangs"]
        task = asyncio.create_task(house.took_s(house.job()))
        await elapse(DUE_S / 2 + 0.5)
        first, second = house.encoder.away("a")
        assert (first.node, first.pid, first.purpose, first.worker) == ("a", 0, "encode news 1", "w1")
        assert first.age_s == pytest.approx(DUE_S / 2 + 0.5, abs=0.1)
        assert (second.purpose, second.worker) == ("encode news 1, again", "w2")
        await task

    at(tmp_path, play)


def test_a_segment_that_can_not_be_read_is_nobodys_job(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        job = house.job()
        job.source.unlink()
        with pytest.raises(OSError, match="No such file"):
            packed(job, 1.0)
        house.here.failing = {"news"}
        with pytest.raises(EncodeError):
            await house.encoder.encode(job)

    assert at(tmp_path, play).pool.asked == []
