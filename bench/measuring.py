"""One run of one peer: a fresh origin, the peer, a wait until all streams are up, then a window in which everything is counted."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import probe
from bench.figures import Sample, most_in
from bench.installing import Programs
from bench.origin import MEDIA_KBPS, ROOT, Origin, asked, publications, serving, whole_lines
from bench.peers import Given, Peer, Task
from bench.watching import Folders, Seen, arrivals_of, played, streams_up
from hlsrelay.errors import HlsRelayError
from hlsrelay.processes import Child, Children

UP_AFTER_SEGMENTS = 2
"""A stream is up when it has brought so many segments that were published while it ran."""
WARM_UP_S, WARM_UP_SEGMENTS, WARM_UP_S_PER_STREAM = 20.0, 6.0, 0.4
"""How long that may take."""
SETTLED_WINDOWS, SETTLED_SEGMENTS = 2, 3
"""Counting begins so many windows and segments after all are up. By then a relay removes as much as it writes, as it will for
weeks (what leaves a playlist stays for as long again, RFC 8216 6.2.2). Before, all that it writes goes to fresh memory, which in a virtual
machine costs the host's page faults too: three times as much as the copy."""
LOG_FLUSHED_S = 0.5
LOOK_S = 0.5
TOLD_S = 5.0


class NotMeasured(HlsRelayError):
    """A run that has no result; the text says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common."""

    data: Path
    files: list[Path]
    prints: dict[bytes, int]
    segment_s: float
    listed: int
    window_s: float
    jitter_s: float = 0.0
    tls: bool = False
    paced: bool = False


def warm_up_s(streams: int, segment_s: float) -> float:
    """Return how long a peer may take until all its streams are up."""
    return WARM_UP_S + WARM_UP_SEGMENTS * segment_s + WARM_UP_S_PER_STREAM * streams


def settled_s(setting: Setting) -> float:
    """Return how long after all its streams are up a relay removes as much as it writes."""
    return (SETTLED_WINDOWS * setting.listed + SETTLED_SEGMENTS) * setting.segment_s


def disk_bytes(streams: int, setting: Setting) -> float:
    """Return what a run writes at most, where nothing is removed before its end."""
    lasts_s = min(warm_up_s(streams, setting.segment_s), 15 * setting.segment_s) + settled_s(setting) + setting.window_s
    return streams * (setting.listed + lasts_s / setting.segment_s) * setting.segment_s * MEDIA_KBPS * 1000 / 8


async def measure(peer: Peer, streams: int, turn: int, setting: Setting, programs: Programs, say: Callable[[str], None]) -> Sample:
    """Run *peer* and return what it cost and gave. Raises NotMeasured. Whatever happens nothing is left running or on disk."""
    if disk_bytes(streams, setting) > shutil.disk_usage(setting.data).free:
        raise NotMeasured(f"{setting.data} has not the {disk_bytes(streams, setting) / 2**30:.0f} GiB free that it may need")
    folder = setting.data / f"{peer.name.split()[0]}-{streams}-{turn}"
    beside, its_own = Children(), Children()
    try:
        async with serving(
            folder / "origin",
            setting.files,
            beside,
            streams=streams,
            segment_s=setting.segment_s,
            listed=setting.listed,
            jitter_s=setting.jitter_s,
            tls=setting.tls,
            paced=setting.paced,
        ) as origin:
            task = Task(origin, streams, setting.segment_s, setting.listed, folder / "peer", its_own)
            async with peer.relaying(task, programs) as given, _watched(given, folder, setting, beside) as seen:
                try:
                    roots = its_own.running()
                    up = await _up(seen, origin, streams, setting, roots, say)
                    return await _counted(peer, streams, turn, setting, origin, seen, roots, up, given.lag)
                finally:
                    await its_own.aclose()  # all at once: who started them would end them one after another
    except TimeoutError:
        raise NotMeasured("it did not start in time") from None
    finally:
        await asyncio.gather(its_own.aclose(), beside.aclose())
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@asynccontextmanager
async def _watched(given: Given, folder: Path, setting: Setting, beside: Children) -> AsyncGenerator[Callable[[], list[Seen]], None]:
    """Watch while the block runs; the value tells what has been seen so far."""
    if given.urls:
        streams, out = folder / "streams", folder / "played"
        streams.write_text("".join(f"{name} {url}\n" for name, url in given.urls.items()))
        argv = [sys.executable, "-m", "bench.player", str(setting.files[0].parent), str(out), "--streams", str(streams)]
        async with beside.spawn(argv, purpose="bench player", cwd=ROOT):
            yield lambda: played(out)
        return
    folders = Folders(given.playlists, setting.prints)
    watching = asyncio.create_task(folders.watch())
    try:
        yield lambda: folders.seen
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def _up(
    seen: Callable[[], list[Seen]], origin: Origin, streams: int, setting: Setting, roots: tuple[Child, ...], say: Callable[[str], None]
) -> int:
    """Wait until all streams are up and have settled, and return how many are up. Raises NotMeasured where none is."""
    until_s = time.monotonic() + warm_up_s(streams, setting.segment_s)
    told_s = 0.0
    while True:
        up = len(streams_up(seen(), origin.publications, UP_AFTER_SEGMENTS, len(setting.files)))
        if up == streams or time.monotonic() - told_s > TOLD_S:
            told_s = time.monotonic()
            say(f"{up} of {streams} up")
        if up == streams or time.monotonic() > until_s:
            break
        if all(root.finished for root in roots):
            raise NotMeasured(f"it ended: {_last_words(roots)}")
        await asyncio.sleep(LOOK_S)
    if up == 0:
        raise NotMeasured(f"no stream was up after {warm_up_s(streams, setting.segment_s):.0f} s: {_last_words(roots)}")
    await asyncio.sleep(settled_s(setting))
    return up


async def _counted(
    peer: Peer,
    streams: int,
    turn: int,
    setting: Setting,
    origin: Origin,
    seen: Callable[[], list[Seen]],
    roots: tuple[Child, ...],
    up: int,
    lag: Path | None,
) -> Sample:
    pids = [root.pid for root in roots]
    lags = _lags(lag)
    begun_s, begun_cpu_s, begun_busy_s = time.time(), probe.cpu_s(probe.tree(pids)), probe.busy_s()
    await asyncio.sleep(setting.window_s)
    tree = probe.tree(pids)
    ended_s, cpu_s, busy_s = time.time(), probe.cpu_s(tree) - begun_cpu_s, probe.busy_s() - begun_busy_s
    pss_bytes = probe.pss_bytes(tree)
    await asyncio.sleep(LOG_FLUSHED_S)
    lags = {most_s: count - lags.get(most_s, 0.0) for most_s, count in _lags(lag).items()}
    requests, playlists = asked(whole_lines(origin.access), begun_s, ended_s)
    published = publications(origin.publications)
    arrivals = await asyncio.to_thread(arrivals_of, seen(), published, setting.files, begun_s, ended_s)
    notes = [f"{streams - up} of {streams} streams did not come up"] if up < streams else []
    gone = [root for root in roots if root.finished]
    notes += [f"{len(gone)} processes ended: {_last_words(tuple(gone))}"] if gone else []
    notes += [f"the machine was {busy_s / (ended_s - begun_s):.1f} cores busy in all"]
    return Sample(
        peer.name,
        streams,
        turn,
        ended_s - begun_s,
        setting.segment_s,
        cpu_s,
        pss_bytes,
        tuple(arrivals),
        requests,
        playlists,
        "; ".join(notes),
        most_in(lags, 99),
    )


def _lags(told: Path | None) -> dict[float, float]:
    """Return how often a peer's loop has been late by no more than so many seconds; nothing where it does not tell."""
    try:
        return {float(most_s): count for most_s, count in json.loads(told.read_text()).items()} if told else {}
    except FileNotFoundError:
        return {}


def _last_words(roots: tuple[Child, ...]) -> str:
    words = next((root.stderr_tail.strip() for root in roots if root.stderr_tail.strip()), "it says nothing")
    return words.rpartition("\n")[2][-200:]
