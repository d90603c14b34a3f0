"""No orphan and nothing that piles up: `python -m bench.orphans [--kills 200] [--jobs 10000]`.

--kills: a real `hlsrelay run` with a ladder is killed with kill -9 while an ffmpeg of its is encoding, again and again; all that it had
running (every ffmpeg, its Redis) has to be gone within a second. --jobs: so many short children one after the other, every twentieth an
ffmpeg; descriptors, threads, memory and zombies have to stay where they were.

Ends by itself, with a verdict and exit code 0 if all held, 1 if not. One relay and one job run at a time.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import structlog
import uvloop

from hlsrelay import proc
from hlsrelay.embedded import ffmpeg_path
from hlsrelay.orphans import TAG
from hlsrelay.processes import Children

GONE_WITHIN_S = 1.0
ENCODES_WITHIN_S = 60.0
ENCODING_CPU_S = 0.05
"""An ffmpeg that has used so much is beyond its start."""
LADDER = "720p,480p,360p"
SEGMENT_S = 6
WARM_JOBS = 100
"""After so many, what is made once is there."""
MOST_GROWN_KIB = 4096
TINY = "-hide_banner -nostdin -nostats -progress pipe:1 -loglevel error -f lavfi -i testsrc2=size=64x36:duration=0.2 -f null -"


def made(folder: Path, ffmpeg: Path, segments: int = 3) -> None:
    """Make a live playlist that never moves on, of segments whose ladder takes seconds."""
    argv = [str(ffmpeg), "-loglevel", "error", "-nostdin", "-f", "lavfi", "-i"]
    argv += [f"testsrc2=size=1280x720:rate=30:duration={segments * SEGMENT_S}", "-c:v", "libx264", "-preset", "ultrafast"]
    argv += ["-g", str(30 * SEGMENT_S), "-keyint_min", str(30 * SEGMENT_S), "-sc_threshold", "0", "-b:v", "2M", "-f", "hls"]
    argv += ["-hls_time", str(SEGMENT_S), "-hls_list_size", "0", "live.m3u8"]
    subprocess.run(argv, cwd=folder, check=True, timeout=120)
    playlist = folder / "live.m3u8"
    playlist.write_text(playlist.read_text().replace("#EXT-X-ENDLIST\n", ""))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve *folder* on a free port while the block runs; the value is its URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def running(pid: int) -> bool:
    """Return whether *pid* is a process, and not only its zombie."""
    return proc.started(pid) is not None


def children(relay: int) -> dict[int, str]:
    """Return what *relay* has running, found both as its children and by its tag, with the name of the program."""
    found = set()
    with suppress(OSError):
        found = {int(pid) for pid in Path(f"/proc/{relay}/task/{relay}/children").read_text().split()}
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and re.search(rf"{TAG}=\d+\.{relay}\.".encode(), Path(f"/proc/{name}/environ").read_bytes()):
                found.add(int(name))
    names = {}
    for pid in found - {relay}:
        with suppress(OSError):
            names[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
    return {pid: name for pid, name in names.items() if running(pid)}


def encoding(relay: int) -> bool:
    """Return whether an ffmpeg of *relay*'s is encoding."""
    for pid, name in children(relay).items():
        used = proc.usage(pid)
        if name.startswith("ffmpeg") and used and used.cpu_s > ENCODING_CPU_S:
            return True
    return False


def waited(claim: Callable[[], bool], within_s: float) -> float | None:
    """Return after how many seconds *claim* came true; None if it has not."""
    begun_s = time.monotonic()
    while not claim():
        if time.monotonic() - begun_s > within_s:
            return None
        time.sleep(0.01)
    return time.monotonic() - begun_s


def killed_once(env: dict[str, str], words: Path, chance: random.Random) -> tuple[int, float | None]:
    """Start a relay, kill it while it encodes; return how many children it had, and in what time all were gone, None if they weren't."""
    with words.open("wb") as log:
        argv = [sys.executable, "-m", "hlsrelay", "run", "bench"]
        relay = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        if waited(lambda: encoding(relay.pid) or relay.poll() is not None, ENCODES_WITHIN_S) is None or relay.poll() is not None:
            raise SystemExit(f"the relay has not begun to encode:\n{words.read_text()}")
        time.sleep(chance.random() * 0.3)  # not always at the same step
        had = children(relay.pid)
        while not any(name.startswith("ffmpeg") for name in had.values()) and relay.poll() is None:
            had = children(relay.pid)  # between two jobs
        relay.send_signal(signal.SIGKILL)
        had |= children(relay.pid)
        gone_s = waited(lambda: not any(map(running, had)) and not children(relay.pid), GONE_WITHIN_S)
        for pid in had:
            if running(pid):
                os.kill(pid, signal.SIGKILL)
        return len(had), gone_s
    finally:
        relay.kill()
        relay.wait()


def kills(count: int) -> bool:
    """Kill a relay *count* times; return whether nothing was ever left."""
    chance = random.Random(4)
    left, slowest_s, had = 0, 0.0, 0
    with tempfile.TemporaryDirectory(prefix="hlsrelay-orphans-") as name, served(Path(name)) as url:
        folder = Path(name)
        made(folder, ffmpeg_path())
        env = {key: value for key, value in os.environ.items() if not key.startswith("HLSRELAY_")}
        env |= {"HLSRELAY_DATA": f"{name}/data", "HLSRELAY_HTTP": "none", "HLSRELAY_ALLOW_NETWORKS": "127.0.0.0/8", "HLSRELAY_LOG": "json"}
        add = [sys.executable, "-m", "hlsrelay", "add", "bench", f"{url}/live.m3u8", "--ladder", LADDER]
        subprocess.run(add, env=env, check=True, timeout=60, stdout=subprocess.DEVNULL)
        for turn in range(1, count + 1):
            shutil.rmtree(folder / "data" / "live", ignore_errors=True)  # the next one begins anew, with everything to encode
            number, gone_s = killed_once(env, folder / "words", chance)
            had += number
            left += gone_s is None
            slowest_s = max(slowest_s, gone_s or GONE_WITHIN_S)
            if turn % 20 == 0 or turn == count:
                print(f"{turn:>5} kills, {had} children seen, {left} times something was left, slowest to go {slowest_s:.2f} s", flush=True)
    return left == 0


def state() -> dict[str, int]:
    """Return what must not grow, of this process."""
    status = Path("/proc/self/status").read_text()
    found = {name.lower(): int(value) for name, value in re.findall(r"(?m)^(Threads|VmRSS):\s+(\d+)", status)}
    zombies = [pid for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split() if not running(int(pid))]
    return {"descriptors": len(os.listdir("/proc/self/fd")), **found, "zombies": len(zombies)}


def same(first: dict[str, int], last: dict[str, int]) -> bool:
    """Return whether nothing has grown."""
    return {**first, "vmrss": 0} == {**last, "vmrss": 0} and last["vmrss"] - first["vmrss"] < MOST_GROWN_KIB


async def jobs(count: int) -> bool:
    """Run *count* short children one after the other; return whether nothing grew."""
    one = Children()
    ffmpeg = [str(ffmpeg_path()), *TINY.split()]
    first: dict[str, int] = {}
    for turn in range(1, count + WARM_JOBS + 1):
        tiny = turn % 20 == 0
        finished = await one.run(ffmpeg if tiny else ["true"], purpose="bench", deadline_s=60, watched=tiny)
        if finished.exit_code:
            raise SystemExit(f"{finished.argv[0]} ended with {finished.exit_code}: {finished.stderr_tail}")
        if turn == WARM_JOBS:
            first = state()
            print(f"{0:>6} jobs: {first}", flush=True)
        elif turn > WARM_JOBS and ((turn - WARM_JOBS) % 1000 == 0 or turn == count + WARM_JOBS):
            print(f"{turn - WARM_JOBS:>6} jobs: {state()}", flush=True)
    last = state()
    await one.aclose()
    return same(first, last)


def main() -> None:
    """Kill, run jobs, and judge."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=200, help="how many times a relay is killed (200)")
    options.add_argument("--jobs", type=int, default=10_000, help="how many short children run (10000)")
    chosen = options.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    held = kills(chosen.kills) if chosen.kills else True
    if chosen.jobs:
        held = uvloop.run(jobs(chosen.jobs)) and held
    print("Verdict: no orphan, and nothing grows." if held else "Verdict: FAILED, see above.")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
