"""What all relays of a process share, and where they are served."""

from __future__ import annotations

import functools
import importlib
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hlsrelay.awake import Awake
from hlsrelay.bucket import BucketStorage
from hlsrelay.caches import Caches, Pulled
from hlsrelay.clock import Clock
from hlsrelay.demand import Demand
from hlsrelay.edge import Edge
from hlsrelay.embedded import EmbeddedRedis, embedded_ffmpeg_path, ffmpeg_path
from hlsrelay.encoder import Encoded, Encoder, LocalEncoder, Outcome
from hlsrelay.errors import ConfigError, EncodeError, MissingProgram
from hlsrelay.memory import Pressure
from hlsrelay.metrics import Metrics
from hlsrelay.objects import Objects
from hlsrelay.pool import Local, PoolEncoder
from hlsrelay.processes import Children
from hlsrelay.recipe import EncodeJob
from hlsrelay.registry import Registry
from hlsrelay.roster import Roster
from hlsrelay.settings import Settings
from hlsrelay.storage import LocalStorage
from hlsrelay.turns import Turns
from hlsrelay.upstream import Upstream


@dataclass
class Node:
    """What all relays of this process share."""

    settings: Settings
    live: Path
    registry: Registry
    children: Children
    encoder: Encoder
    metrics: Metrics = field(default_factory=Metrics)
    clock: Clock = field(default_factory=Clock)
    redis: EmbeddedRedis | None = None
    objects: Objects | None = None
    """The bucket that streams are published into; None: the folders."""
    pool: PoolEncoder | None = None
    """The encoder again, where it has a pool."""
    pressure: Pressure = field(default_factory=lambda: Pressure(100.0))
    storages: dict[str, LocalStorage] = field(default_factory=dict)
    coming: set[str] = field(default_factory=set)
    """Streams that are in our hands, and of which our folder may yet show what is of before."""
    ended: int = 0
    """How many streams have ended here since what they held was given back (vitals)."""
    demands: dict[str, Demand] = field(default_factory=dict)
    elsewhere: Callable[[str], str] = lambda _: ""
    """Tells at which URL a stream is served that another node relays, into a folder that is not ours; empty for all others."""
    roster: Roster | None = None
    """What Redis tells of changes; None: who follows a stream asks for it again and again."""
    url: str = ""
    """Where other nodes reach our web server, once it serves."""
    hears_redis: Callable[[], bool] = lambda: True
    """Says whether Redis has answered lately."""
    lives: Callable[[], Awaitable[str]] | None = None
    """Asks Redis which life it is in (session.Member.lives)."""
    turns: Turns = field(default_factory=Turns)
    """When the relays' downloads may begin."""
    draining: bool = False
    """Whether it is about to leave: what balances load is to send viewers elsewhere."""
    told: Callable[[str], None] = lambda _: None
    """Hears each state that a stream comes to."""

    @functools.cached_property
    def awake(self) -> Awake:
        """What knows whether this process has stood still."""
        return Awake(self.clock)

    @functools.cached_property
    def edge(self) -> Edge:
        """What fetches from the other nodes."""
        return Edge(self._where, self.clock.monotonic_s)

    def _where(self, stream_id: str) -> str:
        return self.elsewhere(stream_id)  # as it is then

    @functools.cached_property
    def caches(self) -> Caches:
        """What pulls new files through the caches in front of us."""

        def counted(path: str, base: str, outcome: Pulled) -> None:
            self.metrics.preloads.labels(path.partition("/")[0], base, outcome).inc()

        return Caches(self.settings.preload, self.clock.monotonic_s, counted)

    @functools.cached_property
    def live_at(self) -> str:
        """`live` as other processes of the machine know it."""
        return str(self.live.resolve())

    @property
    def name(self) -> str:
        """This node's name in Redis."""
        return self.settings.node or f"{socket.gethostname()}:{os.getpid()}"

    def left(self, stream_id: str) -> None:
        """A relay here is over."""
        self.metrics.ended(stream_id)
        self.ended += 1

    def place(self) -> dict[str, str]:
        """Return where we serve what, as our session tells it (session)."""
        return {"http": self.settings.http, "live": self.live_at, "url": self.url}

    @property
    def serves(self) -> bool:
        """Whether players reach the streams through this process."""
        return self.settings.http != "none"

    @property
    def pressed(self) -> bool:
        """Whether memory is short (memory): no ladder job starts, and nothing new is claimed."""
        return self.pressure.pressed

    def storage(self, stream_id: str, epoch: int) -> LocalStorage:
        """Return where a stream is published by who claimed it with *epoch*."""
        if self.objects is None:
            return LocalStorage(self.live, stream_id)
        return BucketStorage(self.live, stream_id, self.objects, epoch, self.clock.monotonic_s)

    def connect(self) -> Upstream:
        """Return a way to a source."""
        return Upstream(self.settings.allow_networks)

    def refusal(self) -> str:
        """Return why nothing more may be started here now, empty where it may: the one place that is asked before a cold start."""
        return "memory is short on this node" if self.pressed else ""


@asynccontextmanager
async def encoding(settings: Settings, children: Children, metrics: Metrics) -> AsyncGenerator[tuple[Encoder, PoolEncoder | None]]:
    """Yield who makes ladders, and that again where it has a pool beside this machine (settings). Raises ConfigError.

    It is there at once, whether the pool is or not.
    """
    local = local_encoder(settings, children)
    if not settings.scheduler:
        yield local, None
        return
    try:
        dask_pool = importlib.import_module("hlsrelay.dask_pool")  # only now: it takes a second
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("dask", "distributed"):
            raise
        raise ConfigError(f"HLSRELAY_ENCODER is {settings.encoder}, which needs Dask: pip install 'hlsrelay[dask]'") from None
    async with dask_pool.DaskPool(settings.scheduler).reached() as pool:
        encoder = PoolEncoder(pool, local, counted=lambda where: metrics.ladder_jobs.labels(where).inc())
        metrics.pool_slots.set_function(lambda: pool.slots)
        metrics.pool_jobs.set_function(lambda: encoder.jobs)
        try:
            yield encoder, encoder
        finally:
            await encoder.aclose()


def local_encoder(settings: Settings, children: Children) -> Local:
    """Return the encoder of this machine; where there is no ffmpeg one whose every job fails and says so."""
    try:
        ffmpeg, newer = (settings.ffmpeg, None) if settings.ffmpeg else (ffmpeg_path(), embedded_ffmpeg_path())
        slots = settings.transcode_slots or os.cpu_count() or 1
        return LocalEncoder(ffmpeg, children, slots, preferred=settings.encoders, newer=newer)
    except MissingProgram as error:
        return _NoEncoder(str(error))


class _NoEncoder:
    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def encode(self, _job: EncodeJob) -> Encoded:
        raise EncodeError(self._reason)

    async def undertaken(self, _job: EncodeJob) -> Outcome:
        raise EncodeError(self._reason)

    async def prepared(self, _job: EncodeJob) -> None:
        pass

    def reckoned_s(self, _job: EncodeJob) -> float:
        return 0.0

    def shed(self) -> bool:
        return False
