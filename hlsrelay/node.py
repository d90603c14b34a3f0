"""What all relays of a process share, and where they are served."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from hlsrelay.awake import Awake
from hlsrelay.clock import Clock
from hlsrelay.demand import Demand
from hlsrelay.edge import Edge
from hlsrelay.embedded import EmbeddedRedis, embedded_ffmpeg_path, ffmpeg_path
from hlsrelay.encoder import Encoded, Encoder, LocalEncoder
from hlsrelay.errors import EncodeError, MissingProgram
from hlsrelay.memory import Pressure
from hlsrelay.metrics import Metrics
from hlsrelay.processes import Children
from hlsrelay.recipe import EncodeJob
from hlsrelay.registry import Registry
from hlsrelay.settings import Settings
from hlsrelay.storage import LocalStorage
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
    pressure: Pressure = field(default_factory=lambda: Pressure(100.0))
    storages: dict[str, LocalStorage] = field(default_factory=dict)
    demands: dict[str, Demand] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Streams that other nodes relay into folders that are not ours, and the URLs at which those serve."""
    url: str = ""
    """Where other nodes reach our web server, once it serves."""
    hears_redis: Callable[[], bool] = lambda: True
    """Says whether Redis has answered lately."""
    lives: Callable[[], Awaitable[str]] | None = None
    """Asks Redis which life it is in (session.Member.lives)."""
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
        return Edge(lambda: self.elsewhere, self.clock.monotonic_s)

    @property
    def name(self) -> str:
        """This node's name in Redis."""
        return self.settings.node or f"{socket.gethostname()}:{os.getpid()}"

    def place(self) -> dict[str, str]:
        """Return where we serve what, as our session tells it (session)."""
        return {"http": self.settings.http, "live": str(self.live.resolve()), "url": self.url}

    @property
    def serves(self) -> bool:
        """Whether players reach the streams through this process."""
        return self.settings.http != "none"

    @property
    def pressed(self) -> bool:
        """Whether memory is short (memory): no ladder job starts, and nothing new is claimed."""
        return self.pressure.pressed

    def connect(self) -> Upstream:
        """Return a way to a source."""
        return Upstream(self.settings.allow_networks)

    def refusal(self) -> str:
        """Return why nothing more may be started here now, empty where it may: the one place that is asked before a cold start."""
        return "memory is short on this node" if self.pressed else ""


def local_encoder(settings: Settings, children: Children) -> Encoder:
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

    def shed(self) -> bool:
        return False
