"""How much memory is in use, told by files as Linux has them, and when that is too much."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from hlsrelay.memory import EASES_PERCENT, Pressure, give_back, used_percent

MEMINFO = "MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:    600 kB\n"
V1 = "9:name=systemd:/\n4:memory:/pod/relay\n1:cpu:/\n"
V2 = "0::/pod/relay\n"
NO_LIMIT = "9223372036854771712\n"


def percent(tmp_path: Path, files: Mapping[str, str]) -> float | None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return used_percent(tmp_path / "proc", tmp_path / "cgroup")


def v2(folder: str, current: int, most: str, files: int = 0, high: str = "max") -> dict[str, str]:
    stat = f"anon 5\nfile 77\nactive_file {files}\ninactive_file {files}\n"
    return {
        f"cgroup/{folder}memory.current": f"{current}\n",
        f"cgroup/{folder}memory.max": f"{most}\n",
        f"cgroup/{folder}memory.high": f"{high}\n",
        f"cgroup/{folder}memory.stat": stat,
    }


def test_nothing_that_tells_is_not_known(tmp_path: Path) -> None:
    assert percent(tmp_path, {}) is None
    assert percent(tmp_path, {"proc/meminfo": "MemTotal: none of your business\n", "proc/self/cgroup": V2}) is None


def test_the_machines_memory_is_what_is_not_available(tmp_path: Path) -> None:
    assert percent(tmp_path, {"proc/meminfo": MEMINFO}) == pytest.approx(40)


def test_a_cgroup_of_version_2_counts_without_the_pages_of_files(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": V2} | v2("pod/relay/", 1000, "1000", files=100)
    assert percent(tmp_path, files) == pytest.approx(80)


def test_a_cgroup_of_version_1_counts_without_the_pages_of_files(tmp_path: Path) -> None:
    at = "cgroup/memory/pod/relay/memory."
    stat = "inactive_file 1\nactive_file 1\ntotal_inactive_file 100\ntotal_active_file 200\n"
    files = {"proc/self/cgroup": V1, f"{at}usage_in_bytes": "900\n", f"{at}limit_in_bytes": "1000\n", f"{at}stat": stat}
    assert percent(tmp_path, files) == pytest.approx(60)


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert percent(tmp_path, {"proc/self/cgroup": V2} | v2("pod/relay/", 900, "max")) is None
    at = "cgroup/memory/pod/relay/memory."
    assert percent(tmp_path, {"proc/self/cgroup": V1, f"{at}usage_in_bytes": "900\n", f"{at}limit_in_bytes": NO_LIMIT}) is None


@pytest.mark.parametrize(("high", "most", "used"), [("1000", "2000", 90), ("1000", "max", 90), ("2000", "1000", 90), ("max", "1500", 60)])
def test_the_limit_from_which_on_the_kernel_slows_us_counts_as_well(high: str, most: str, used: float, tmp_path: Path) -> None:
    assert percent(tmp_path, {"proc/self/cgroup": V2} | v2("pod/relay/", 900, most, high=high)) == pytest.approx(used)


def test_the_scarcest_of_machine_cgroup_and_those_around_it_counts(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": V2}
    files |= v2("pod/relay/", 500, "1000") | v2("pod/", 950, "1000") | v2("", 1, "1000")
    assert percent(tmp_path, files) == pytest.approx(95)


def test_a_container_sees_its_own_cgroup_as_the_root(tmp_path: Path) -> None:
    assert percent(tmp_path, {"proc/self/cgroup": "0::/\n"} | v2("", 700, "1000")) == pytest.approx(70)
    assert percent(tmp_path, {"proc/self/cgroup": "0::/not/to/be/seen\n"}) == pytest.approx(70)


def test_memory_is_short_from_the_threshold_on_and_eases_a_bit_below() -> None:
    pressure = Pressure(90)
    told = []
    for reading in (89.9, 90.0, 95.0, 89.0, 90.0 - EASES_PERCENT, 90.0 - EASES_PERCENT - 0.1, 89.0, None):
        told.append((pressure.note(reading), pressure.pressed))
    assert told == [
        (False, False),
        (True, True),
        (False, True),
        (False, True),
        (False, True),
        (True, False),
        (False, False),
        (False, False),
    ]


def test_what_is_not_known_is_not_short() -> None:
    pressure = Pressure(90)
    pressure.note(99)
    assert pressure.note(None)
    assert not pressure.pressed


def test_this_machine_tells(tmp_path: Path) -> None:
    if not Path("/proc/meminfo").exists():
        pytest.skip("no /proc here")
    found = used_percent()
    assert found is not None
    assert 0 < found <= 100


def test_what_nobody_uses_is_given_back() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library has no malloc_trim")
    taken = [bytes(1000) for _ in range(50_000)]
    last = taken.pop()  # what lies before it is not given back by itself
    del taken
    before = resident_bytes()
    give_back()
    assert before - resident_bytes() > 30 << 20
    assert len(last) == 1000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
