"""hlsrelay side by side with what users would take instead: `make bench ARGS="…"`, `hlsrelay bench …` or `python -m bench …`.

Builds a live origin of its own (nginx on loopback; 5 Mbps, segments of 4 s, playlists rewritten on a wall-clock grid), runs each relay
against it in turn, and prints one table. Ratios against ffmpeg in the same round are the result; absolute figures are this machine's.
Linux, with nginx and ffmpeg; other peers are installed at first use, and named where they can't be had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from bench import probe
from bench.figures import Sample, lines_of, rows_as_json
from bench.identity import prints_of
from bench.installing import Programs
from bench.measuring import Setting, disk_bytes, measure
from bench.origin import MOST_FILES, media
from bench.peers import PEERS, Peer
from bench.table import drawing, markdown_table, text_table
from hlsrelay.errors import ConfigError, HlsRelayError, MissingProgram
from hlsrelay.log import start_logging
from hlsrelay.orphans import sweep
from hlsrelay.processes import Children

LISTED = 6
FOLDER = "hlsrelay-bench-"
FULL_SHARE = 0.95
"""A peer that needs more than this of all cores, or of the free memory, as told by its run with fewer streams, is not run."""
TELLING_STREAMS = 10
"""A run with fewer says little of one with many: what a process costs by itself is most of it."""
SHARED_MEMORY = Path("/dev/shm")


def options() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(prog="hlsrelay bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--streams", default="1,50,200,500", help="how many at once, comma between; peers but hlsrelay: at most 200")
    found.add_argument("--peers", default="all", help=f"all, or how their names begin, comma between: {', '.join(PEERS)}")
    found.add_argument("--seconds", type=float, default=20.0, help="how long each run is measured once all its streams are up")
    found.add_argument(
        "--rounds", type=int, default=3, help="how often hlsrelay and ffmpeg run, in turn; the others run in the first round"
    )
    found.add_argument("--quick", action="store_true", help="1 and 10 streams, one round, 8 seconds")
    found.add_argument("--segment-seconds", type=float, default=4.0, help="how long a segment is")
    found.add_argument("--jitter", type=float, default=0.0, help="seconds that publication may be off its grid, either way")
    found.add_argument("--tls", action="store_true", help="the source by https (hlsrelay and ffmpeg only)")
    found.add_argument("--paced", action="store_true", help="the source gives segments at 10 Mbps per connection, as the internet would")
    found.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    found.add_argument("--svg", type=Path, metavar="FILE", help="write a drawing")
    found.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as the docs have it")
    found.add_argument(
        "--data", type=Path, help="where relays write (default: shared memory where it is large enough, else the temp folder)"
    )
    found.add_argument(
        "--large-pages", action="store_true", help="relays write into a tmpfs of their own whose pages may be large (Linux, as root)"
    )
    found.add_argument("--cache", type=Path, default=default_cache(), help="where media and peers are kept (%(default)s)")
    return found


def default_cache() -> Path:
    """Return the user's own place for what can be made again (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hlsrelay-bench"


def counts(text: str) -> list[int]:
    """Return the numbers of streams that *text* names. Raises ConfigError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(re.fullmatch(r"[1-9]\d{0,3}", word) for word in words):
        raise ConfigError(f"--streams {text!r}: write numbers such as 1,50,200")
    return sorted({int(word) for word in words})


def chosen_peers(text: str, *, tls: bool) -> list[Peer]:
    """Return the peers that *text* names. Raises ConfigError."""
    wanted = [name.strip() for name in text.split(",")] if text != "all" else [""]
    for name in wanted:
        if not any(peer.startswith(name) for peer in PEERS):
            raise ConfigError(f"--peers {name!r}: the peers are {', '.join(PEERS)}")
    return [peer for name, peer in PEERS.items() if name.startswith(tuple(wanted)) and (peer.tls or not tls)]


def too_much(earlier: Sample | None, streams: int) -> str:
    """Return why a peer can't do *streams* at once on this machine, as told by a run of it with fewer; empty where it may."""
    if earlier is None or earlier.streams < TELLING_STREAMS:
        return ""
    cores = earlier.cpu_s_per_stream_minute / 60 * streams
    if cores > FULL_SHARE * (os.cpu_count() or 1):
        return f"not run: as with {earlier.streams} it would need {cores:.1f} cores of {os.cpu_count()}"
    needed = earlier.pss_mib_per_stream * streams * 2**20
    if needed > FULL_SHARE * probe.available_bytes():
        return f"not run: as with {earlier.streams} it would need {needed / 2**30:.1f} GiB of memory"
    return ""


class Bench:
    """All runs of one call."""

    def __init__(self, wanted: argparse.Namespace, peers: list[Peer], streams: list[int]) -> None:
        self.samples: list[Sample] = []
        self.refused: dict[tuple[str, int], str] = {}
        self._wanted, self._peers, self._streams = wanted, peers, streams
        self._begun_s = time.monotonic()

    async def run(self, data: Path) -> None:
        """Measure everything, interleaved: each round runs every peer that is still to be run. Raises HlsRelayError where nothing can."""
        wanted, children = self._wanted, Children()
        programs = Programs(wanted.cache, children)
        try:
            for needed in ("nginx", "ffmpeg"):
                if reason := await programs.debian(needed, (needed,)):
                    raise MissingProgram(reason)
            self.say("media")
            count = max(LISTED + 4, min(MOST_FILES, round(160 / wanted.segment_seconds)))
            files = await media(wanted.cache, wanted.segment_seconds, count, children)
            window_s = max(1, round(wanted.seconds / wanted.segment_seconds)) * wanted.segment_seconds  # whole segments of each stream
            setting = Setting(
                data, files, prints_of(files), wanted.segment_seconds, LISTED, window_s, wanted.jitter, wanted.tls, wanted.paced
            )
            missing = {peer.name: await peer.missing(programs) for peer in self._peers}
            for streams in self._streams:
                for turn in range(1, wanted.rounds + 1):
                    for peer in self._peers:
                        if streams <= peer.most_streams and (peer.often or turn == 1):
                            await self._one(peer, streams, turn, setting, programs, missing[peer.name])
        finally:
            await children.aclose()

    async def _one(self, peer: Peer, streams: int, turn: int, setting: Setting, programs: Programs, missing: str) -> None:
        before = [one for one in self.samples if one.peer == peer.name and one.streams < streams]
        reason = missing or too_much(before[-1] if before else None, streams)
        name = f"{peer.name}, {streams} streams, round {turn}"
        if not reason:
            try:
                sample = await measure(peer, streams, turn, setting, programs, lambda text: self.say(f"{name}: {text}"))
            except HlsRelayError as error:
                reason = str(error)
            else:
                self.samples.append(sample)
                latency = sorted(one.latency_s for one in sample.arrivals)
                middle = f"{latency[len(latency) // 2]:.2f} s" if latency else "-"
                self.say(f"{name}: CPU {sample.cpu_s_per_stream_minute:.3f} s per stream-minute, added latency {middle}")
                return
        self.refused.setdefault((peer.name, streams), reason)
        self.say(f"{name}: {reason}")

    def say(self, text: str) -> None:
        """Tell how far it is."""
        print(f"bench {time.monotonic() - self._begun_s:5.0f} s  {text}", file=sys.stderr, flush=True)


def data_folder(wanted: argparse.Namespace, streams: list[int]) -> Path:
    """Make the folder that relays write into. What a bench that was killed left is removed."""
    setting = Setting(Path("/"), [], {}, wanted.segment_seconds, LISTED, wanted.seconds)
    needed = disk_bytes(max(streams), setting)
    parent = Path(tempfile.gettempdir())
    if SHARED_MEMORY.is_dir() and min(shutil.disk_usage(SHARED_MEMORY).free, 0.6 * probe.available_bytes()) > needed:
        parent = SHARED_MEMORY
    for place in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        for left in place.glob(f"{FOLDER}*"):
            pid = left.name.removeprefix(FOLDER).partition("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists() and left.stat().st_uid == os.getuid():
                removed(left)
    found = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-", dir=wanted.data or parent))
    if wanted.large_pages:
        mounted(found, probe.available_bytes())
    return found


def mounted(folder: Path, available_bytes: int) -> None:
    """Mount a tmpfs on *folder* whose pages may be large: its files grow by many pages at a time. Raises ConfigError."""
    how = f"huge=within_size,size={available_bytes}"
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)], capture_output=True, text=True, check=False)
        said = "" if done.returncode == 0 else done.stderr.strip()
    except OSError as error:
        said = str(error)
    if said:
        removed(folder)
        raise ConfigError(f"--large-pages needs root, and a Linux that has them for tmpfs: {said}")


def removed(folder: Path) -> None:
    """Remove a folder that relays wrote into, and what is mounted there."""
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)


async def bench(wanted: argparse.Namespace) -> Bench:
    """Run what *wanted* asks for; TERM ends it as Ctrl-C does, with everything cleaned up."""
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    streams, peers = counts(wanted.streams), chosen_peers(wanted.peers, tls=wanted.tls)
    sweep()  # what a bench that was killed left running
    found = Bench(wanted, peers, streams)
    data = data_folder(wanted, streams)
    try:
        found.say(f"relays write into {data}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        await found.run(data)
        found.say(f"done; load {os.getloadavg()[0]:.1f}")
    finally:
        removed(data)
    return found


def main() -> None:
    """Entry point: the table on standard output, progress on standard error. Exit code 1 where nothing could be measured."""
    wanted = options().parse_args()
    if wanted.quick:
        wanted.streams, wanted.rounds, wanted.seconds = "1,10", 1, min(wanted.seconds, 8.0)
    start_logging("text")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # for all that is started: 500 streams in one process are many descriptors
    try:
        found = asyncio.run(bench(wanted))
    except HlsRelayError as error:
        sys.stderr.write(f"hlsrelay: {error}\n")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    lines = lines_of(found.samples, found.refused, list(PEERS))
    print(text_table(lines))
    if wanted.json:
        wanted.json.write_text(json.dumps(rows_as_json(lines), indent=2) + "\n")
    if wanted.svg:
        wanted.svg.write_text(drawing(lines))
    if wanted.markdown:
        wanted.markdown.write_text(markdown_table(lines))
    sys.exit(0 if found.samples else 1)


if __name__ == "__main__":
    main()
