"""What a relay holds does not grow over days (night): the weeks that it is to run for, in virtual time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

MOST_MIB_A_DAY = 1.0


@pytest.mark.night
def test_what_a_relay_holds_does_not_grow_from_the_second_day_on() -> None:
    argv = [sys.executable, "-m", "tests.days", "--days", "4", "--each", "0.125"]
    said = subprocess.run(argv, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True).stdout
    print(said)
    last = re.search(r"^(\d+) segments in 4 days: ([+-][\d.]+) MiB a day", said, re.MULTILINE)
    assert last, said
    assert int(last[1]) > 4 * 8000
    assert float(last[2]) < MOST_MIB_A_DAY
