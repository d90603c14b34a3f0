"""A pool as an operator types it, with certificates, and a real relay: whatever of it is killed or stands still, no segment is missing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hlsrelay.clock import Clock
from hlsrelay.embedded import embedded_ffmpeg_path, ffmpeg_path
from hlsrelay.encoder import LocalEncoder
from hlsrelay.errors import PoolLost
from hlsrelay.parcel import packed
from hlsrelay.pool import PoolEncoder, Ticket
from hlsrelay.processes import Children
from tests.acceptance.dask_cluster import WORKERS, Cluster, cluster
from tests.acceptance.live_source import muxing, nginx
from tests.acceptance.relay_process import KEY, WHOLE_RUN_S, RedisServer, RelayProcess, environment, hlsrelay, relaying
from tests.acceptance.test_encoder import Kind, job_for, make
from tests.acceptance.test_encoder_contract import ffmpegs, reached
from tests.needs import needs
from tests.waiting import comes_true, until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.night,
    pytest.mark.xdist_group("dask"),
    needs("ffmpeg", "ffprobe", "nginx", "redis-server", "redis-cli"),
]

RUNGS = ("mid", "small")
LADDER = "mid:120:300,small:90:150"
"""Little to do: all the machines of this pool are this one."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Make a certificate, its own authority, that all show each other; return Dask's settings for it."""
    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pool")])
    now = Clock().utc_now()
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
    signed = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(signed.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    prefix = "DASK_DISTRIBUTED__COMM__"
    found = {f"{prefix}REQUIRE_ENCRYPTION": "true", f"{prefix}TLS__CA_FILE": str(folder / "cert.pem")}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        found |= {f"{prefix}TLS__{role}__CERT": str(folder / "cert.pem"), f"{prefix}TLS__{role}__KEY": str(folder / "key.pem")}
    return found


@pytest.fixture
def pool(certificate: dict[str, str], tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path / "pool", typed=True, settings=certificate) as made:
        yield made


@pytest.fixture
def shown(certificate: dict[str, str]) -> Iterator[None]:
    """Have this process show the certificate, and so every relay that it starts."""
    from dask import config  # noqa: PLC0415 - takes its time

    with pytest.MonkeyPatch.context() as patched:
        for name, value in certificate.items():
            patched.setenv(name, value)
        config.refresh()
        yield
    config.refresh()


def made_where(relay: RelayProcess) -> dict[str, float]:
    """Return how many jobs had their pictures made where."""
    text = relay.client.get(f"{relay.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("hlsrelay_ladder_jobs_total{")]
    return {line.partition('where="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


def gaps(relay: RelayProcess, rung: str) -> list[int]:
    """Return the numbers that *rung* lists as a GAP."""
    media = relay.media(rung)
    assert media is not None
    return [media.media_sequence + index for index, one in enumerate(media.segments) if one.gap_tag]


def done(relay: RelayProcess, *where: str) -> float:
    """Return how many jobs were done there."""
    made = made_where(relay)
    return sum(made.get(one, 0) for one in where)


def grows(relay: RelayProcess, *where: str, by: int = 2) -> None:
    """Return once so many more jobs were done there."""
    before = done(relay, *where)
    until(lambda: done(relay, *where) >= before + by, 60)


def stopped_at_work(pool: Cluster) -> str | None:
    """Have a worker stand still whose ffmpeg runs, and goes on; return its name."""
    for name in WORKERS:
        if ffmpegs(pool.folder / name):
            os.kill(pool.pids[name], signal.SIGSTOP)
            if ffmpegs(pool.folder / name):
                return name
            os.kill(pool.pids[name], signal.SIGCONT)
    return None


@pytest.mark.usefixtures("shown")
def test_a_relay_lacks_no_segment_whatever_of_its_pool_is_killed_or_stands_still(
    pool: Cluster, fresh_redis: RedisServer, tmp_path: Path
) -> None:
    assert pool.encoder.startswith("dask+tls://")
    with nginx(tmp_path / "origin", tmp_path / "nginx") as url, muxing(tmp_path / "origin", size="320x180", rate=15, segment_s=8):
        fresh_redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", ladder=LADDER, window=WHOLE_RUN_S)
        with relaying(tmp_path / "data", fresh_redis, HLSRELAY_ENCODER=pool.encoder, HLSRELAY_NODE="here") as relay:
            grows(relay, "pool")
            env = environment(tmp_path / "data", fresh_redis)

            def seen() -> list[str]:
                told = json.loads(hlsrelay("ps", "--json", env=env))
                return [one["worker"] for one in told["processes"] if one["worker"] and one["purpose"].startswith("encode news ")]

            since = relay.numbers()[-1]  # before that workers were cold
            busy, before = until(lambda: stopped_at_work(pool), 60, every_s=0.02), done(relay, "second", "local")
            assert until(lambda: seen() or None)[0] in ("w1", "w2", "the pool")  # where nothing stands still, a job may take 0.2 s
            until(lambda: done(relay, "second", "local") > before, 60)
            pool.kill(busy)
            grows(relay, "pool")
            os.kill(pool.pids["scheduler"], signal.SIGSTOP)
            grows(relay, "local")
            pool.kill("scheduler")
            grows(relay, "local")
            numbers = relay.numbers()
            events = [line["event"] for line in relay.log()]
            assert events.count("pool.reached") == 1
            assert "pool.away" in events
            until(lambda: all(relay.numbers(name)[-1:] >= numbers[-1:] for name in RUNGS))
            lost = [one for name in RUNGS for one in gaps(relay, name) if one > since]
            print(f"\n{numbers[-1] - since} segments of {len(RUNGS)} rungs, {len(lost)} lost; made {made_where(relay)}")
            assert lost == []
    until(lambda: not ffmpegs(tmp_path / "pool"))


@pytest.mark.usefixtures("shown")
def test_what_a_pool_costs_a_job(pool: Cluster, tmp_path: Path) -> None:
    segment = make(tmp_path, Kind(size="1280x720"))[1]

    async def main() -> tuple[dict[str, float], int]:
        loop, children = asyncio.get_running_loop(), Children()
        local = LocalEncoder(ffmpeg_path(), children, 1, newer=embedded_ffmpeg_path())
        async with reached(pool) as there:
            await comes_true(lambda: there.slots == 2)
            encoder, job = PoolEncoder(there, local), replace(job_for(segment, 1, "tiny:120:150"), target_duration_s=60.0)
            took: dict[str, list[float]] = {"there": [], "here": [], "for the way alone": []}
            parcel = packed(job, 60.0)
            for _ in range(7):
                for name, one in (("there", encoder), ("here", local)):
                    began_s = loop.time()
                    await one.encode(job)
                    took[name].append(loop.time() - began_s)
                began_s = loop.time()
                refused = Ticket("nothing", b"", 0.0, began_s)  # what no worker can read: the way there and back alone
                refused.parcel = parcel[:-1]
                with pytest.raises(PoolLost, match="pickle"):
                    await there.done(refused)
                took["for the way alone"].append(loop.time() - began_s)
        await children.aclose()
        return {name: statistics.median(times[1:]) for name, times in took.items()}, len(parcel)

    figures, size = asyncio.run(main())
    told = ", ".join(f"{1000 * took_s:.0f} ms {where}" for where, took_s in figures.items())
    print(f"\na job of {size / 1e6:.1f} MB: {told}")
    assert figures["there"] < figures["here"] + 1.0
