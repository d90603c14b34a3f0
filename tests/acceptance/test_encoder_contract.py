"""What every encoder promises, whoever does its jobs: this machine, a pool, or a real Dask cluster of several processes."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hlsrelay.embedded import embedded_ffmpeg_path, ffmpeg_path
from hlsrelay.encoder import Encoder, LocalEncoder
from hlsrelay.errors import EncodeError
from hlsrelay.metrics import Metrics
from hlsrelay.node import encoding
from hlsrelay.offers import Offers
from hlsrelay.parcel import FORM, Answer, done, unpacked
from hlsrelay.pool import PoolEncoder, Ticket
from hlsrelay.processes import Children
from hlsrelay.recipe import EncodeJob, needs_previous
from hlsrelay.settings import load_settings
from tests.acceptance.dask_cluster import WORKERS, Cluster, cluster
from tests.acceptance.test_encoder import KINDS, damaged, job_for, make, read
from tests.needs import NIGHTLY, needs
from tests.waiting import comes_true, until

if TYPE_CHECKING:
    from hlsrelay.dask_pool import DaskPool

pytestmark = [pytest.mark.acceptance, needs("ffmpeg", "ffprobe"), pytest.mark.xdist_group("dask")]

TD_S = 20.0
LONG = "big:720:4000"
SOON_S = 0.5


class OneWorker:
    """pool.Pool: a worker in this process, with children of its own."""

    def __init__(self, folder: Path, children: Children) -> None:
        self.slots, self.taken = 2, 0
        self._folder, self._children = folder, children
        self._offers = Offers(ffmpeg_path(), children, newer=embedded_ffmpeg_path())

    async def done(self, ticket: Ticket) -> Answer:
        """See pool.Pool."""
        return unpacked(await done(FORM, ticket.parcel, self._folder, self._children, self._offers))


@dataclass
class Bench:
    """An encoder, and where its jobs were done."""

    encoder: Encoder
    where: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("dask")) as made:
        yield made


def reached(dask: Cluster) -> AbstractAsyncContextManager[DaskPool]:
    from hlsrelay.dask_pool import DaskPool  # noqa: PLC0415 - takes a second, and others collect this file too

    return DaskPool(dask.address).reached()


@asynccontextmanager
async def bench(kind: str, folder: Path, dask: Cluster) -> AsyncIterator[Bench]:
    children, where = Children(), list[str]()
    try:
        local = LocalEncoder(ffmpeg_path(), children, 2, newer=embedded_ffmpeg_path())
        if kind == "local":
            yield Bench(local)
        elif kind == "pool":
            yield Bench(PoolEncoder(OneWorker(folder, children), local, counted=where.append), where)
        else:
            async with reached(dask) as pool:
                await comes_true(lambda: pool.slots == 2)
                encoder = PoolEncoder(pool, local, counted=where.append)
                yield Bench(encoder, where)
                await encoder.aclose()
        await comes_true(lambda: not children.running())
    finally:
        await children.aclose()


# By day a real cluster has its jobs cancelled, and is killed: what is done well, and here, is tested in test_encoder and test_pool too.

Run = Callable[[Callable[[Bench], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.night), pytest.param("pool", marks=pytest.mark.night), "dask"])
def run(request: pytest.FixtureRequest, tmp_path: Path, dask: Cluster) -> Run:
    """Run a body with an encoder of each kind; where there is a pool, pictures are made there or nowhere."""

    def run(body: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            async with bench(request.param, tmp_path, dask) as made:
                await body(made)
                if request.param != "local":
                    assert set(made.where) <= {"pool", "nowhere"}

        asyncio.run(whole())

    return run


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make(tmp_path_factory.mktemp("source"), KINDS["open GOPs"])


@pytest.fixture
def job(segments: list[Path], tmp_path: Path) -> EncodeJob:
    """A job that needs the segment before it, and has sound to encode anew. On one thread: x264's rate control is exact only then."""
    made = job_for(segments[1], 1, "small:180:300,tiny:120:150:64,audio", previous=segments[0])
    assert needs_previous(made.info)
    outputs = {name: tmp_path / path.name for name, path in made.outputs.items()}
    return replace(made, outputs=outputs, target_duration_s=TD_S, threads=1)


def ffmpegs(folder: Path) -> list[int]:
    """Return the ffmpegs of this machine that have something to do in *folder*."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(str(folder)) in words and b"-progress" in words:
            found.append(int(pid))
    return found


@pytest.mark.night
def test_a_good_job_gives_the_same_bytes_whoever_does_it(run: Run, job: EncodeJob, tmp_path: Path) -> None:
    async def body(made: Bench) -> None:
        encoded = await made.encoder.encode(job)
        assert set(encoded.outputs) == {"small", "tiny", "audio"}
        assert not encoded.failed
        assert {name: read(path) for name, path in job.outputs.items()} == encoded.outputs
        there = {name: path.read_bytes() for name, path in job.outputs.items()}
        children = Children()
        await LocalEncoder(ffmpeg_path(), children, 2, newer=embedded_ffmpeg_path()).encode(job)
        await children.aclose()
        assert there == {name: path.read_bytes() for name, path in job.outputs.items()}

    run(body)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in job.outputs.values())


@pytest.mark.night
def test_a_broken_job_is_an_error_and_leaves_no_file(run: Run, job: EncodeJob, segments: list[Path], tmp_path: Path) -> None:
    source = tmp_path / "broken.ts"
    source.write_bytes(damaged("random", segments[0].read_bytes()))
    broken = replace(job, source=source, previous=None, rungs=job.rungs[:2], info=read(segments[0]))

    async def body(made: Bench) -> None:
        with pytest.raises(EncodeError, match="segment 1 of news") as caught:
            await made.encoder.encode(broken)
        assert caught.value.argv
        assert caught.value.child_exit_code is not None

    run(body)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.ts"]


def test_a_cancelled_job_leaves_neither_file_nor_process(
    run: Run, job: EncodeJob, dask: Cluster, request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.getbasetemp()

    async def body(made: Bench) -> None:
        long = replace(job, rungs=job_for(job.source, 1, LONG).rungs, outputs={"big": tmp_path / "big.ts"})
        task = asyncio.create_task(made.encoder.encode(long))
        await comes_true(lambda: ffmpegs(base) or None, every_s=0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await comes_true(lambda: not ffmpegs(base), every_s=0.02)

    run(body)
    if request.node.callspec.params["run"] == "dask":  # it did not just come to its end
        until(lambda: '"purpose": "encode news 1"' in (text := (dask.folder / "log").read_text()) and '"reason": "cancelled"' in text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.night
def test_whoever_asks_has_his_answer_when_the_job_is_due(
    run: Run, job: EncodeJob, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.getbasetemp()

    async def body(made: Bench) -> None:
        rungs = job_for(job.source, 1, "big:2160:9000").rungs
        long = replace(job, rungs=rungs, outputs={"big": tmp_path / "big.ts"}, target_duration_s=SOON_S)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        encoded = await made.encoder.encode(long)
        assert loop.time() - began_s < 2 * SOON_S + 1
        assert set(encoded.dropped) == {"big"}
        await comes_true(lambda: not ffmpegs(base), every_s=0.02)

    run(body)
    assert list(tmp_path.iterdir()) == []


def test_a_relay_is_there_at_once_though_no_scheduler_is_and_has_one_thread_and_no_words_of_dasks(
    segments: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as nobody:  # bound, and never listened at
        nobody.bind(("127.0.0.1", 0))
        settings = load_settings(encoder=f"dask://127.0.0.1:{nobody.getsockname()[1]}")

        async def main() -> None:
            children, loop, metrics = Children(), asyncio.get_running_loop(), Metrics()
            __import__("hlsrelay.dask_pool")
            began_s = loop.time()
            async with encoding(settings, children, metrics) as (encoder, pool):
                assert encoder is pool
                assert loop.time() - began_s < 0.5
                made = job_for(segments[0], 1, "tiny:120:150")
                encoded = await encoder.encode(replace(made, outputs={"tiny": tmp_path / "tiny.ts"}, target_duration_s=TD_S))
                assert set(encoded.outputs) == {"tiny"}
                assert threading.active_count() == before
                assert 'hlsrelay_ladder_jobs_total{where="local"} 1.0' in metrics.text().decode()
                assert "hlsrelay_pool_slots 0.0" in metrics.text().decode()
            assert children.running() == ()

        before = threading.active_count()
        asyncio.run(main())
    told = capfd.readouterr()
    assert "distributed" not in told.out + told.err
    assert "tornado" not in told.out + told.err


# A pool whose parts are killed: the cluster of this module is gone afterwards ----------------------------------------------------------


def test_a_worker_and_then_the_scheduler_killed_in_the_middle_of_jobs_lose_no_segment(
    segments: list[Path], dask: Cluster, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    base, said = tmp_path_factory.getbasetemp(), list[str]()
    names = iter("abcdefghijklmnop")

    def todo(count: int) -> list[EncodeJob]:
        made = job_for(segments[0], 1, "mid:360:800")
        found = itertools.islice(names, count)
        return [replace(made, stream_id=name, outputs={"mid": tmp_path / f"{name}.ts"}, target_duration_s=TD_S) for name in found]

    async def main() -> None:
        loop, children, where = asyncio.get_running_loop(), Children(), list[str]()
        async with reached(dask) as pool:
            encoder = PoolEncoder(pool, LocalEncoder(ffmpeg_path(), children, 2), counted=where.append)

            async def all_made(*jobs: EncodeJob, one_of: Sequence[str] = ()) -> float:
                """Return the time from when the first *one_of* the cluster that is at *jobs* is killed until they are made."""
                tasks = [asyncio.create_task(encoder.encode(one)) for one in jobs]
                if one_of:
                    await comes_true(lambda: any(ffmpegs(dask.folder / name) for name in WORKERS), every_s=0.01)
                    dask.kill(next((name for name in one_of if ffmpegs(dask.folder / name)), one_of[0]))
                began_s = loop.time()
                for one, encoded in zip(jobs, await asyncio.gather(*tasks), strict=True):
                    assert read(one.outputs["mid"]) == encoded.outputs["mid"]
                return loop.time() - began_s

            await comes_true(lambda: pool.slots == 2)
            if NIGHTLY:
                await all_made(*todo(2))
                said.append(f"nobody killed: {await all_made(*todo(2)):.2f} s")
            said.append(f"a worker killed: {await all_made(*todo(2), one_of=WORKERS):.2f} s from then on")
            assert set(where) == {"pool"}
            await comes_true(lambda: pool.slots == 1)
            where.clear()
            said.append(f"the scheduler killed: {await all_made(*todo(1), one_of=['scheduler']):.2f} s from then on")
            assert pool.slots == 0
            await all_made(*todo(1))
            assert where == ["local"] * 2
            await encoder.aclose()
        await comes_true(lambda: not ffmpegs(base) and not children.running())
        await children.aclose()

    asyncio.run(main())
    made = sorted(path.stem for path in tmp_path.iterdir())
    assert made == list("abcdefgh" if NIGHTLY else "abcd")
    with capsys.disabled():
        print(f"\n{len(made)} jobs, 0 segments lost; {'; '.join(said)}")
