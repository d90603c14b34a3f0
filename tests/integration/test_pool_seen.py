"""What an operator writes for a pool, and what he sees of it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from hlsrelay import operate
from hlsrelay.errors import ConfigError
from hlsrelay.metrics import Metrics
from hlsrelay.node import encoding
from hlsrelay.processes import Children
from hlsrelay.settings import load_settings
from hlsrelay.statuses import read, written
from hlsrelay.vitals import attended, status_of
from tests.integration.test_pool import House, at
from tests.integration.test_vitals import node_of
from tests.virtual import elapse


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("local", ""),
        ("dask://scheduler:8786", "tcp://scheduler:8786"),
        ("dask+tls://10.0.0.5:8786", "tls://10.0.0.5:8786"),
        ("dask://[fd00::5]:8786", "tcp://[fd00::5]:8786"),
    ],
)
def test_who_makes_ladders_is_this_machine_or_the_workers_of_a_scheduler(
    written: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HLSRELAY_ENCODER", written)
    assert load_settings().scheduler == address


@pytest.mark.parametrize(
    "wrong", ["", "dask", "dask://scheduler", "tcp://scheduler:8786", "dask://a:8786/x", "dask://u:p@a:8786", "celery"]
)
def test_anything_else_is_refused_with_what_to_write(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLSRELAY_ENCODER", wrong)
    with pytest.raises(ConfigError, match=r"HLSRELAY_ENCODER: .*write local, or .*dask://scheduler:8786"):
        load_settings()


def test_without_the_extra_it_is_said_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dask", "distributed"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "hlsrelay.dask_pool", raising=False)

    async def main() -> None:
        async with encoding(load_settings(encoder="dask://scheduler:8786"), Children(), Metrics()):
            raise AssertionError("it can't be there")

    with pytest.raises(ConfigError, match=r"pip install 'hlsrelay\[dask\]'"):
        asyncio.run(main())


def test_ps_shows_what_is_with_the_pool_beside_the_children(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def play(house: House) -> None:
        node, registry = node_of(tmp_path)
        node.pool = house.encoder
        house.pool.hows = ["hangs"]
        async with attended(node, lambda: 50.0):
            task = asyncio.create_task(house.took_s(house.job(812)))
            await elapse(2)
            [told] = await registry.told()
            status = status_of(node)
            assert read(written(status)) == status
            await task
        [one] = [child for child in (read(told) or status).children if child.worker]
        assert (one.node, one.pid, one.purpose, one.worker) == ("a", 0, "encode news 812", "w1")
        assert one.age_s in (1.0, 2.0)
        operate._print_processes([status])

    at(tmp_path, play)
    assert "encode news 812, by w1" in capsys.readouterr().out
