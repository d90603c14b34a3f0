"""A registry in memory, behind the contract of the one in Redis: for tests and benches that need speed or a virtual clock."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterable, Mapping

from hlsrelay.errors import RegistryUnavailable, Superseded
from hlsrelay.fields import Registered
from hlsrelay.registry import LEASE_S, Beat, Heard, Leases, Refused, Session, apart


class MemoryRegistry:
    """A registry in memory, behind the same contract: for tests that need speed or a virtual clock."""

    def __init__(self) -> None:
        self.streams: dict[str, dict[str, str]] = {}
        self.positions: dict[str, tuple[str, str]] = {}
        self.vitals: dict[str, str] = {}
        self.away = False
        self.lives = 1
        self._hearers: list[asyncio.Queue[Heard | None]] = []
        self._forget()

    def lose(self) -> None:
        """Lose all that is registered, as a Redis does that is restarted without persistence."""
        self.streams.clear()
        self.positions.clear()
        self.lives += 1
        self._forget()
        self._tell(None)

    def _forget(self) -> None:
        self._leases: dict[str, tuple[float, dict[str, str]]] = {}
        self._beaten_s = self._grace_s = 0.0

    def now_s(self) -> float:
        """Return the registry's own time: that of the loop it is asked in."""
        return 1e9 + asyncio.get_running_loop().time()

    def _answering(self) -> None:
        if self.away:
            raise RegistryUnavailable("the registry is away")

    def _tell(self, what: Heard | None) -> None:
        """Tell all who hear what changes."""
        for heard in self._hearers:
            heard.put_nowait(what)

    def ring(self, stream_id: str) -> None:
        """Ring the doorbell for a stream."""
        self._tell(Heard(frozenset((stream_id,))))

    async def heard(self, only: str = "") -> AsyncGenerator[Heard | None, None]:
        """See Registry."""
        self._answering()
        heard: asyncio.Queue[Heard | None] = asyncio.Queue()
        self._hearers.append(heard)
        try:
            yield None
            while True:
                what = await heard.get()
                self._answering()
                if what is None or not only or only in what.streams:
                    yield what
        finally:
            self._hearers.remove(heard)

    async def hashes(self, ids: Iterable[str]) -> list[tuple[str, Registered | None]]:
        """See Registry."""
        return [(stream_id, (await self.follow(stream_id))[0]) for stream_id in ids]

    async def ids(self, cursor: int = 0) -> tuple[list[str], int]:
        """See Registry; two at a time."""
        self._answering()
        ids = sorted(self.streams)
        return ids[cursor : cursor + 2], cursor + 2 if cursor + 2 < len(ids) else 0

    async def get(self, stream_id: str) -> Registered | None:
        """See Registry."""
        self._answering()
        fields = self.streams.get(stream_id)
        return Registered(stream_id, dict(fields)) if fields else None

    async def follow(self, stream_id: str) -> tuple[Registered | None, str]:
        """See Registry."""
        found = await self.get(stream_id)
        return (Registered(stream_id, apart(found.fields)[0]) if found else None), str(self.lives)

    async def all(self) -> list[Registered]:
        """See Registry."""
        self._answering()
        return [Registered(stream_id, dict(fields)) for stream_id, fields in sorted(self.streams.items())]

    async def register(self, stream_id: str, fields: Mapping[str, str]) -> bool:
        """See Registry."""
        self._answering()
        if stream_id in self.streams:
            return False
        self.streams[stream_id] = dict(fields)
        self._tell(Heard(frozenset((stream_id,))))
        return True

    async def change(self, stream_id: str, fields: Mapping[str, str], unset: tuple[str, ...] = ()) -> bool:
        """See Registry."""
        self._answering()
        if stream_id not in self.streams:
            return False
        kept = {name: value for name, value in self.streams[stream_id].items() if name not in unset}
        self.streams[stream_id] = {**kept, **fields}
        if unset or apart(fields)[0]:
            self._tell(Heard(frozenset((stream_id,))))
        return True

    async def delete(self, stream_id: str) -> bool:
        """See Registry."""
        self._answering()
        self.positions.pop(stream_id, None)
        self._tell(Heard(frozenset((stream_id,))))
        return self.streams.pop(stream_id, None) is not None

    async def report(
        self,
        stream_id: str,
        fields: Mapping[str, str],
        epoch: int = 0,
        *,
        position: str = "",
        soon: bool = True,  # noqa: ARG002
    ) -> bool:
        """See Registry."""
        self._answering()
        if epoch and stream_id in self.streams and self.streams[stream_id].get("epoch") != str(epoch):
            raise Superseded(f"stream '{stream_id}' was taken by another node")
        is_news = position and self.streams.get(stream_id, {}).get("carried") != str(epoch)
        if not await self.change(stream_id, {**fields, "carried": str(epoch)} if is_news else fields):
            return False
        if position:
            self.positions[stream_id] = str(epoch), position
        return True

    async def carried(self, stream_id: str) -> str:
        """See Registry."""
        self._answering()
        epoch, text = self.positions.get(stream_id, ("", ""))
        return text if epoch and self.streams.get(stream_id, {}).get("carried") == epoch else ""

    async def beat(self, session: str, last: Beat | None, fields: Mapping[str, str], lease_s: float = LEASE_S) -> Beat:
        """See Registry."""
        self._answering()
        now_s = self.now_s()
        if now_s - self._beaten_s > lease_s:
            self._grace_s = now_s + lease_s
        self.lives += last is not None and last.life == str(self.lives) and session not in self._leases
        self._beaten_s = now_s
        before = self._leases.get(session, (0.0, None))[1]
        told = {**(before or {}), **fields}
        self._leases[session] = now_s + lease_s, told
        if told != before:
            self._tell(Heard(sessions=frozenset((session,))))
        return Beat(round(now_s * 1000), str(self.lives))

    async def tell_session(self, session: str, fields: Mapping[str, str]) -> bool:
        """See Registry."""
        self._answering()
        if session not in self._leases:
            return False
        until_s, told = self._leases[session]
        self._leases[session] = until_s, {**told, **fields}
        self._tell(Heard(sessions=frozenset((session,))))
        return True

    async def leave(self, session: str) -> None:
        """See Registry."""
        self._answering()
        self._leases.pop(session, None)
        self._tell(Heard(sessions=frozenset((session,))))

    async def sessions(self) -> list[Session]:
        """See Registry."""
        self._answering()
        found = [Session(name, until_s - self.now_s(), fields) for name, (until_s, fields) in self._leases.items()]
        return sorted(found, key=lambda one: (one.fields.get("name", ""), one.id))

    async def leases(self, ids: Iterable[str] = ()) -> Leases:
        """See Registry."""
        left_s = {name: until_s - self.now_s() for name, (until_s, _) in self._leases.items()}
        told = tuple(Session(name, left_s[name], self._leases[name][1]) for name in ids if name in left_s)
        self._answering()
        next_s = min((one for one in left_s.values() if one >= 0), default=math.inf)
        return Leases(len(left_s), {name: one for name, one in left_s.items() if one < 0}, next_s, told)

    async def claim(
        self, stream_id: str, session: str, fields: Mapping[str, str], *, epoch: int = 0, dead: str = "", lease_s: float = LEASE_S
    ) -> int:
        """See Registry."""
        self._answering()
        if stream_id not in self.streams:
            return Refused.UNKNOWN
        hash_, now_s = self.streams[stream_id], self.now_s()
        if session in self._leases and self._leases[session][0] < now_s:
            return Refused.IN_DOUBT
        owner, told = hash_.get("session", ""), int(hash_.get("epoch") or "0")
        if owner not in ("", session, dead) and told >= epoch:
            if owner in self._leases and self._leases[owner][0] >= now_s:
                return Refused.HELD
            if now_s < self._grace_s or now_s - self._beaten_s > lease_s:
                return Refused.IN_DOUBT
        epoch = max(told + 1, epoch + 1, int(now_s * 1000))
        hash_ |= {"session": session, "epoch": str(epoch), **apart(fields)[0]}
        self._tell(Heard(frozenset((stream_id,))))
        return epoch

    async def tell(self, incarnation: str, vitals: str, kept_s: int) -> None:  # noqa: ARG002
        """See Registry; it is kept for good."""
        self._answering()
        self.vitals[incarnation] = vitals

    async def told(self) -> list[str]:
        """See Registry."""
        self._answering()
        return list(self.vitals.values())
