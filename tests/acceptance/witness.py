"""Sees from outside what several nodes publish, who owns what, and what the source lists: for the laws of tests.published.

    with witnessed(redis, folder, nodes, ["news"], target_duration_s=1) as seen: ...
    print(seen.history().told())

It looks at the folders, where a playlist's time is that of its file, and at the locks that say who writes into them; and at the streams'
epochs in Redis, each of which is the time of its claim. What a node tells of itself is its log.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis as redis_client

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.parse import parse
from hlsrelay.model import Snapshot
from hlsrelay.storage import lock_holder
from tests.acceptance.live_source import muxing
from tests.acceptance.nodes import Worker, newest, runs_on, working
from tests.acceptance.relay_process import KEY, RedisServer, redis_server
from tests.published import Claimed, History, Law, Offered, Written, of
from tests.waiting import until

EVERY_S = 0.04
ASKED_EVERY_S = 0.1
CLAIMED_LATELY_S = 60.0
"""An epoch that is no time of now counts on from an older one: it is of when it was seen."""


@dataclass
class Witness:
    """What was seen so far. *folders*: where nodes keep their streams, with who writes there (None: whoever holds the lock)."""

    source: Path
    folders: Mapping[Path, str | None]
    streams: list[str]
    workers: list[Worker]
    target_duration_s: float
    writes: list[Written] = field(default_factory=list)
    claims: list[Claimed] = field(default_factory=list)
    _known: dict[Path, tuple[int, int]] = field(default_factory=dict)
    _digests: dict[Path, str] = field(default_factory=dict)
    _contents: dict[tuple[str, int], str] = field(default_factory=dict)
    _offered: dict[str, tuple[float, float]] = field(default_factory=dict)
    _listed: set[str] = field(default_factory=set)
    _over: threading.Event = field(default_factory=threading.Event)

    def history(self) -> History:
        """Return all that was seen."""
        offers = [Offered(self._digests[self.source / name], *times) for name, times in self._offered.items()]
        return History(list(self.writes), list(self.claims), offers, self.target_duration_s)

    def wrote(self, stream: str = "news") -> list[Written]:
        """Return the playlists of one stream, in order."""
        return self.history().streams().get(stream, [])

    def errors(self) -> list[str]:
        """Return what nodes logged as a fault of their own: nothing that befalls them may lead to one."""
        lines = [json.loads(line) for one in self.workers for line in one.words.read_text().splitlines() if line.startswith("{")]
        return [str(line) for line in lines if line.get("level") in ("error", "critical") or "exception" in line]

    def keeps_the_laws(self, fault: str, *but: Law) -> str:
        """Return the figures of *fault* in a line; asserts that no law was broken *but* these, and that no node failed by itself."""
        history = self.history()
        assert self.errors() == []
        assert of(history.findings(), *but) == [], (history.told(), history.findings())
        return f"\n{fault}: {history.told()}"

    def look(self) -> None:
        """See what is there now."""
        self._see_source()
        for folder, writer in self.folders.items():
            for stream in tuple(self.streams):
                self._see(folder / "live" / stream, stream, writer)

    def _see_source(self) -> None:
        path = self.source / "live.m3u8"
        with suppress(OSError):
            at_s = path.stat().st_mtime
            names = [line for line in path.read_text().splitlines() if line.endswith(".ts")]
            for name in names:
                self._digest(self.source / name)
                self._offered.setdefault(name, (at_s, float("inf")))
            for name in self._listed - set(names):
                self._offered[name] = (self._offered[name][0], at_s)
            self._listed = set(names)

    def _see(self, folder: Path, stream: str, writer: str | None) -> None:
        path, before = folder / "source/index.m3u8", lock_holder(folder)
        try:
            facts = path.stat()
            if self._known.get(path) == (facts.st_ino, facts.st_mtime_ns):
                return
            with path.open("rb") as file:
                snapshot = parse(file.read(), "file:///")
            assert isinstance(snapshot, Snapshot)
            entries = tuple(
                (one.sequence, "" if one.gap else self._content(stream, one.sequence, path.parent / Path(one.uri).name))
                for one in snapshot.segments
            )
        except (OSError, PlaylistError, KeyError):
            return
        if before != lock_holder(folder) and writer is None:
            return  # seen again, and it is one of these
        self._known[path] = facts.st_ino, facts.st_mtime_ns
        who = writer or next((one.name for one in self.workers if str(one.process.pid) == before), before)
        cuts = sum(one.discontinuity for one in snapshot.segments)
        self.writes.append(Written(facts.st_mtime_ns / 1e9, stream, who, entries, cuts, snapshot.ended))

    def _content(self, stream: str, number: int, path: Path) -> str:
        """Return the digest of what is listed; of what is not in this folder yet what it was in the one of the owner before."""
        try:
            found = self._digest(path)
        except FileNotFoundError:
            return self._contents[stream, number]
        self._contents[stream, number] = found
        return found

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._digests[path]

    def claimed(self, stream: str, epoch: int, node: str) -> None:
        """Take down who has a stream."""
        if not any((one.stream, one.epoch, one.node) == (stream, epoch, node) for one in self.claims):
            now_s = time.time()
            at_s = epoch / 1000 if 0 <= now_s - epoch / 1000 < CLAIMED_LATELY_S else now_s
            self.claims.append(Claimed(at_s, stream, epoch, node))

    def watch(self) -> None:
        """Look until told to end."""
        while not self._over.wait(EVERY_S):
            self.look()
        self.look()

    def ask(self, url: str) -> None:
        """Ask Redis who has what until told to end; while it is away nothing is seen there."""
        with redis_client.Redis.from_url(url, decode_responses=True, socket_timeout=0.5, socket_connect_timeout=0.5) as client:
            while not self._over.wait(ASKED_EVERY_S):
                with suppress(redis_client.RedisError):
                    for stream in tuple(self.streams):
                        epoch, node, session = client.hmget(f"hlsrelay:stream:{stream}", "epoch", "node", "session")
                        if epoch and node and session:
                            self.claimed(stream, int(epoch), node)

    def end(self) -> None:
        """Look no more."""
        self._over.set()


@contextmanager
def witnessed(
    redis: RedisServer,
    source: Path,
    folders: Mapping[Path, str | None],
    workers: Sequence[Worker],
    streams: Sequence[str] = ("news",),
    *,
    target_duration_s: float = 1.0,
) -> Iterator[Witness]:
    """Look on while the block runs; workers that come later are told to it (`Witness.workers`)."""
    seen = Witness(source, folders, list(streams), list(workers), target_duration_s)
    threads = [threading.Thread(target=seen.watch, daemon=True), threading.Thread(target=seen.ask, args=(redis.url,), daemon=True)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        seen.end()
        for thread in threads:
            thread.join()


@dataclass(frozen=True)
class Pair:
    """Two workers and a stream that one of them has."""

    redis: RedisServer
    has: Worker
    other: Worker
    folders: Mapping[str, Path]
    """Their data, by their names."""
    seen: Witness

    @property
    def data(self) -> Path:
        """Where the one that had it first keeps it."""
        return self.folders[self.has.name]

    def newest(self) -> int:
        """Return the newest number that anybody has published."""
        return max(newest(one) for one in set(self.folders.values()) if (one / "live/news/source/index.m3u8").exists())


@contextmanager
def pair(
    origin: tuple[Path, str],
    at: Path,
    *,
    redis: RedisServer | None = None,
    apart: bool = False,
    window: str = "60",
    **settings: Mapping[str, str],
) -> Iterator[Pair]:
    """Run two workers, *a* and *b*, while the block runs, and a stream of four segments; *apart*: each has a folder of its own.

    *settings*: those of `a`, and of `b`, beside what all have.
    """
    source, url = origin
    data = {name: at / (name if apart else "data") for name in ("a", "b")}
    folders = {folder: name if apart else None for name, folder in data.items()}
    with ExitStack() as stack:
        redis = redis or stack.enter_context(redis_server())
        stack.enter_context(muxing(source, segment_s=1, size="320x180"))
        a, b = (stack.enter_context(working(name, data[name], redis, **settings.get(name, {}))) for name in ("a", "b"))
        seen = stack.enter_context(witnessed(redis, source, folders, (a, b)))
        redis.hset(KEY, source=f"{url}/live.m3u8", desired="run", window=window)
        first = until(lambda: runs_on(redis, "a", "b"))
        two = Pair(redis, *((a, b) if first == "a" else (b, a)), data, seen)
        until(lambda: (two.data / "live/news/source/index.m3u8").exists() and len(seen.wrote()) >= 4)
        yield two
