"""The fault table on real sockets and the real clock: rows side by side, a target duration of one second, and the judge beside each.

By day each third of those rows that answer in another way than a good source, which is what sockets are there for; at night all. All rows
go the same way in virtual time each time (tests/integration/test_faults.py).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hlsrelay.clock import Clock
from hlsrelay.upstream import Upstream
from tests.acceptance.relay_process import RelayProcess, environment, hlsrelay, redis_server, relaying
from tests.fault_origin import FaultOrigin, fault_origin, fault_origin_beside_us
from tests.fault_watch import Watch, reported
from tests.faults import FAULTS
from tests.faulty_source import Fault
from tests.needs import NIGHTLY, by_day, needs
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("realtime")]

ROWS = list(FAULTS) if NIGHTLY else by_day([fault for fault in FAULTS if fault.answer is not Fault.answer], 3)
LOOPBACK = (ip_network("127.0.0.0/8"),)
TARGETS_S = (1.0, 2.0, 4.0)
MOST_LAG_TD = 0.5
"""A run in which this machine left us waiting for longer says nothing about the relay: the next one takes its time."""
NOISE_TD = 2.5
"""Moments are held to the letter in virtual time; here other programs run."""
APART_TD = 0.05
"""Streams begin one after the other: what each costs at its beginning would delay all."""


class TooSlow(Exception):
    """This machine has other things to do."""


async def relayed(fault: Fault, origin: FaultOrigin, live: Path, target_s: float, after_s: float) -> Watch:
    """Run one row."""
    await asyncio.sleep(after_s)
    source = origin.add(fault, target_s)
    watch = Watch(source, live / fault.name)
    async with Upstream(LOOPBACK) as upstream:
        await watch.relay(upstream, Clock(), fault.runs_td)
    return watch


async def not_too_slow(target_s: float) -> None:
    """Raise TooSlow once the loop turns late."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + 0.02
        await asyncio.sleep(0.02)
        if loop.time() - due_s > MOST_LAG_TD * target_s:
            raise TooSlow(f"the loop turned {loop.time() - due_s:.2f} s late")


async def all_relayed(faults: Sequence[Fault], live: Path, target_s: float) -> list[Watch]:
    """Run rows side by side. Raises TooSlow."""
    slow = ""
    async with fault_origin() as origin:
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(not_too_slow(target_s))
                rows = [
                    group.create_task(relayed(fault, origin, live, target_s, index * APART_TD * target_s))
                    for index, fault in enumerate(faults)
                ]
                await asyncio.wait(rows)
                watching.cancel()
        except* TooSlow as group_of:
            slow = str(group_of.exceptions[0])  # what is raised in here comes out as a group
        if slow:
            raise TooSlow(slow)
        return [row.result() for row in rows]


def measured(live: Path) -> list[Watch]:
    """Run all rows as fast as this machine can without being late itself.

    What comes too late on a machine that has other things to do comes in time once there is more of it: those rows run again, slower.
    A broken rule is no matter of time, and stays.
    """
    left, done = list(ROWS), list[Watch]()
    for target_s in TARGETS_S:
        try:
            with TemporaryDirectory(dir=live) as name:
                watches = asyncio.run(all_relayed(left, Path(name), target_s))
        except TooSlow as slow:
            print(f"with a target duration of {target_s:g} s {slow}")
            continue
        again = [watch for watch in watches if late(watch)] if target_s < TARGETS_S[-1] else []
        done += [watch for watch in watches if watch not in again]
        left = [watch.fault for watch in again]
        if not left:
            return done
        print(f"with a target duration of {target_s:g} s too late: {', '.join(fault.name for fault in left)}")
    pytest.fail("this machine is too busy for a test on the real clock")


def late(watch: Watch) -> bool:
    """Whether all that can be said against a row may come of a busy machine."""
    return not watch.broken_rules() and bool(watch.complaints(noise_td=NOISE_TD))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: that many streams on one loop would mostly wait for a slow disk."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("live")) as name:
        yield Path(name)


@pytest.mark.timeout(400)
def test_viewers_play_on_by_the_rules_whatever_a_real_server_does(live: Path) -> None:
    watches = measured(live)
    wrong = [(watch, said) for watch in watches if (said := watch.complaints(noise_td=NOISE_TD))]
    for watch in watches:
        print(reported(watch))
    assert not wrong, "\n".join("\n    ".join([reported(watch), *said]) for watch, said in wrong)


@pytest.mark.night
@needs("redis-server", "redis-cli")
def test_an_operator_sees_each_repair_in_show_and_in_the_metrics(tmp_path: Path) -> None:
    faults = [fault for fault in FAULTS if fault.name in ("reset_to_0", "newest_twice", "truncated")]
    with fault_origin_beside_us() as origin, redis_server() as redis, ExitStack() as stack:
        env = environment(tmp_path, redis)
        relays: dict[str, RelayProcess] = {}
        for fault in faults:
            redis.hset(f"hlsrelay:stream:{fault.name}", source=f"{origin.url}/{fault.name}/index.m3u8", desired="run")
            relays[fault.name] = stack.enter_context(relaying(tmp_path / fault.name, redis, stream=fault.name))
        for fault in faults:
            origin.add(fault, 1.0)
        for fault in faults:
            assert fault.repairs
            for repair in fault.repairs:
                until(lambda name=fault.name, repair=repair: counted(relays[name], repair), 40.0)  # type: ignore[misc]
                until(lambda name=fault.name, repair=repair: repair in shown(name, env), 10.0)  # type: ignore[misc]


def counted(relay: RelayProcess, repair: str) -> bool:
    """Whether the metrics page counts a repair."""
    line = f'hlsrelay_repairs_total{{repair="{repair}",stream="{relay.stream}"}} '
    return any(
        one.startswith(line) and float(one.removeprefix(line)) > 0 for one in relay.client.get(f"{relay.url}/metrics").text.split("\n")
    )


def shown(stream: str, env: dict[str, str]) -> dict[str, int]:
    """Return the repairs that `hlsrelay show` lists, with their counts."""
    text: str = json.loads(hlsrelay("show", stream, "--json", env=env)).get("repairs", "")
    return {name: int(count) for name, _, count in (pair.partition("=") for pair in text.split())}
