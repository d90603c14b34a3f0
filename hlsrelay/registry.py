"""The registry of streams: what operators write and the relay writes back, and what every registry promises of it.

Commands ask it and wait. A running relay never does (link, session): it goes on as it was while Redis is away.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from hlsrelay.errors import UnknownStream
from hlsrelay.fields import FIGURES, Registered

LEASE_S = 3.0
"""A session that was not renewed for so long is over."""


class Refused(IntEnum):
    """Why a claim got nothing."""

    UNKNOWN = 0
    HELD = -1
    """A living session has it."""
    IN_DOUBT = -2
    """Its session ran out while nobody's was renewed, as when Redis stood still: it may yet come back. Or the claimer's own ran out."""


@dataclass(frozen=True, slots=True)
class Session:
    """An hlsrelay process that takes part: for how long its lease holds still, below 0 since when it is over, and what it tells."""

    id: str
    left_s: float
    fields: Mapping[str, str]

    @property
    def lives(self) -> bool:
        """Whether its streams are its own."""
        return self.left_s >= 0


@dataclass(frozen=True, slots=True)
class Leases:
    """How the leases of sessions stand at a moment; what some of them tell at that moment.

    *count*: how many sessions there are, those that are over too. *over*: how long each of these still holds, so below 0. *next_s*: in how
    many seconds the next one is over, if it is not renewed.
    """

    count: int
    over: Mapping[str, float]
    next_s: float
    told: tuple[Session, ...] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """What changed: ids of streams whose hashes did, or for which the doorbell rang, and names of sessions that tell something else."""

    streams: frozenset[str] = frozenset()
    sessions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Beat:
    """When a session was renewed, by the registry's clock, and the life of the registry (`follow`) that this was in."""

    at_ms: int
    life: str


def apart(fields: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the fields that belong into a stream's hash, and those that are figures."""
    told = {name: value for name, value in fields.items() if name not in FIGURES}
    return told, {name: value for name, value in fields.items() if name in FIGURES}


class Registry(Protocol):
    """What commands and links need. Every method raises RegistryUnavailable where Redis does not answer."""

    async def get(self, stream_id: str) -> Registered | None:
        """Return one stream's fields, figures too."""

    async def follow(self, stream_id: str) -> tuple[Registered | None, str]:
        """Return one stream's fields, without figures, and the life of the registry that they are of: another one has lost what the last
        one had.
        """

    async def all(self) -> list[Registered]:
        """Return every stream, by id, figures too."""

    def heard(self, only: str = "") -> AsyncGenerator[Heard | None, None]:
        """Yield what changed, as it happens, in the order in which it did; None where anything may have.

        None comes first. *only* of that stream, if given; figures are no change, and that a lease is renewed is none. Raises
        RegistryUnavailable; Untracked (tracking).
        """

    async def hashes(self, ids: Iterable[str]) -> list[tuple[str, Registered | None]]:
        """Return what the registry has of streams, without their figures; None of those that are not registered."""

    async def ids(self, cursor: int = 0) -> tuple[list[str], int]:
        """Return some ids of streams and the cursor for the next, 0 at the end; what is there all the while is returned once at least."""

    async def register(self, stream_id: str, fields: Mapping[str, str]) -> bool:
        """Write a new stream; False where one of that id exists."""

    async def change(self, stream_id: str, fields: Mapping[str, str], unset: tuple[str, ...] = ()) -> bool:
        """Set and unset operators' fields of a stream; False where there is none of that id."""

    async def delete(self, stream_id: str) -> bool:
        """Forget a stream; False where there is none of that id."""

    async def report(self, stream_id: str, fields: Mapping[str, str], epoch: int = 0, *, position: str = "", soon: bool = True) -> bool:
        """Write what the relay knows; False, and nothing written, where the operator has deleted the stream.

        *position* is where it stands, for its next owner, of that *epoch*: see `carried`. What need not be written *soon* may be
        written a little later, together with what others report.
        Raises Superseded, and nothing is written, where it was claimed again since *epoch*; 0: by whomever.
        """

    async def carried(self, stream_id: str) -> str:
        """Return where a stream stands as its owners kept it last; empty where none did."""

    async def beat(self, session: str, last: Beat | None, fields: Mapping[str, str], lease_s: float = LEASE_S) -> Beat:
        """Renew a session, and write what its process tells of itself.

        *last*: what this returned last, None before. Where the registry does not know of that any more, in the same life, it went back to
        an older state: another life begins.
        """

    async def tell_session(self, session: str, fields: Mapping[str, str]) -> bool:
        """Write an operator's wishes for a session's process; False where there is none of that id."""

    async def leave(self, session: str) -> None:
        """End a session: what it has may be claimed at once."""

    async def sessions(self) -> list[Session]:
        """Return all sessions that have not been over for long, by name."""

    async def leases(self, ids: Iterable[str] = ()) -> Leases:
        """Return how the leases stand, with what the sessions *ids* tell that are there; costs no more where there are many sessions."""

    async def claim(
        self, stream_id: str, session: str, fields: Mapping[str, str], *, epoch: int = 0, dead: str = "", lease_s: float = LEASE_S
    ) -> int:
        """Take a stream that no living session has, and write *fields*; returns its new epoch, above all before, or a `Refused`.

        *epoch*: what an earlier claim of ours returned. Where the registry is of before that, it is ours, whatever is told there.
        *dead*: a session of which we know that it will not come back.
        """

    async def tell(self, incarnation: str, vitals: str, kept_s: int) -> None:
        """Keep what an hlsrelay process tells of itself (statuses) for *kept_s*."""

    async def told(self) -> list[str]:
        """Return what all processes have told."""


async def fetched(registry: Registry, stream_id: str) -> Registered:
    """Return the stream of that id. Raises UnknownStream that says how to register it."""
    found = await registry.get(stream_id)
    if found is None:
        raise UnknownStream(f"no stream '{stream_id}' is registered: hlsrelay add {stream_id} <URL of its HLS playlist>")
    return found
