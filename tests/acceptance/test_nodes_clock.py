"""A node whose wall clock is off by an hour: it relays, takes over and is taken over as any other (`make nemesis`)."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.acceptance.judged import NOTHING, judged
from tests.acceptance.nodes import free_port, runs_on
from tests.acceptance.relay_process import ROOT, environment, hlsrelay
from tests.acceptance.witness import Pair, pair
from tests.needs import needs
from tests.published import Law
from tests.waiting import until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.night,
    needs("ffmpeg", "nginx", "redis-server", "redis-cli"),
    pytest.mark.xdist_group("realtime"),
]

HOUR_S = 3600
LEFT_BEHIND = (
    "what the last owner listed, and how large it was, is in its folder: one that is killed leaves the next one only what is new to list"
)
FOLDERS_DIFFER = dict.fromkeys(("A4", "A6", "A7", "A21"), LEFT_BEHIND)
CLOCK_OFF = Path(__file__).parent / "clock_off"


def goes_on(two: Pair, segments: int) -> None:
    """Wait until so many more are published."""
    before = two.newest()
    until(lambda: two.newest() >= before + segments, within_s=60)


def moves(two: Pair, to: str) -> None:
    """Have a node take the stream over, if it has it not, and publish some of it."""
    if not runs_on(two.redis, to):
        hlsrelay("move", "news", to, env=environment(two.data, two.redis))
    until(lambda: runs_on(two.redis, to))
    goes_on(two, 4)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("apart", [False, True], ids=["one folder", "two folders"])
@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S], ids=["ahead", "behind"])
def test_a_node_whose_clock_is_off_by_an_hour_is_one_as_any_other(
    origin: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], off_s: int, apart: bool
) -> None:
    """*a* is off, *b* is not; each has it in turn, handed over, and at last the one that is off is killed. Viewers are at *b*."""
    http = f"127.0.0.1:{free_port()}"
    off, right = {"PYTHONPATH": f"{CLOCK_OFF}:{ROOT}", "CLOCK_OFF_S": str(off_s)}, {"HLSRELAY_HTTP": http}
    with pair(origin, tmp_path, apart=apart, a=off, b=right, window="8") as two:
        a = next(one for one in (two.has, two.other) if one.name == "a")
        with judged(f"http://{http}/live/news/index.m3u8", allowed=FOLDERS_DIFFER if apart else NOTHING):
            for name in "abab":
                moves(two, name)
            moves(two, "a")
            a.process.send_signal(signal.SIGKILL)
            until(lambda: runs_on(two.redis, "b"))
            goes_on(two, 6)
        with capsys.disabled():
            print(two.seen.keeps_the_laws(f"a clock {'ahead' if off_s > 0 else 'behind'} by an hour", Law.LONG))
