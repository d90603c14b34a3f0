"""Fetches from the node that relays a stream what players ask for here, once for all of them.

Laws:
- A file is fetched once, however many ask for it at a time, and kept while the newest ones fit into KEPT_BYTES. Playlists are as old as
  FRESH_S at most.
- Only what is relayed by another node is asked for, and only there: a request that comes from a node is answered from what is here.
- A stream that changes hands is asked for where it is now; who asks meanwhile waits, for FOLLOWED_WITHIN_S at most.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import httpx
import structlog

from hlsrelay.transport import open_transport

FRESH_S = 0.25
"""A fraction of what a player waits between two looks (a target duration): it costs the owner four requests a second and stream at most."""
KEPT_BYTES = 64 * 2**20
LARGEST_BYTES = 256 * 2**20
FETCHED_WITHIN_S = 20.0
CONNECTED_WITHIN_S = 2.0
HEARD_WITHIN_S = 0.5
HEALTH = "health"
FOLLOWED_WITHIN_S = 3.0
LOOKED_EVERY_S = 0.1
MOST_CONNECTIONS = 32
AT_LEISURE = 8
HOP = "x-hlsrelay-hop"
"""A request that has it comes from a node, which asks only the owner: it is not passed on a second time."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole answer of the owner's: 200 with a body, or what it says instead."""

    status: int
    body: bytes = b""
    etag: str = ""
    reason: str = ""
    """Why there is no answer."""


class Edge:
    """What this node fetches from others. *where* tells by stream id at which URL its owner serves; empty for ours and unknown ones."""

    def __init__(self, where: Callable[[str], str], now_s: Callable[[], float], transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._where = where
        self._now_s = now_s
        self._transport = transport
        self._clients: dict[str, httpx.AsyncClient] = {}
        self._under_way: dict[str, asyncio.Task[Fetched]] = {}
        self._kept: OrderedDict[str, tuple[float, str, Fetched]] = OrderedDict()
        self._kept_bytes = 0
        self.fetches = 0
        self.lanes = asyncio.Semaphore(AT_LEISURE)
        """For what nobody waits for (backfill): a few at a time, of all streams together."""

    def has(self, stream_id: str) -> bool:
        """Return whether a stream is relayed by another node, whose folder is not ours."""
        return bool(self._where(stream_id))

    async def get(self, path: str) -> Fetched:
        """Return what the owner of its stream has at *path* ('news/720p/12.ts'); 503 where nobody can be reached that has it."""
        fresh_s = FRESH_S if path.endswith(".m3u8") else float("inf")
        until_s = self._now_s() + FOLLOWED_WITHIN_S
        while True:
            owner = self._owner(path)
            kept = self._kept.get(path)
            if kept and self._now_s() - kept[0] <= fresh_s and (kept[1] == owner or fresh_s != FRESH_S):
                self._kept.move_to_end(path)
                return kept[2]
            found = await self._once(owner, path) if owner else Fetched(503)
            if found is None:  # it is another's now
                until_s = self._now_s() + FOLLOWED_WITHIN_S
                continue
            if found.status not in (404, 502, 503) or self._now_s() >= until_s:
                return found
            # It may have changed hands: before the new owner is known here, or before it has published.
            if found.status == 404 and self._owner(path) == owner:
                return found
            await asyncio.sleep(LOOKED_EVERY_S)

    def _owner(self, path: str) -> str:
        return self._where(path.partition("/")[0])

    async def hears_redis(self, url: str) -> bool:
        """Ask the node at *url* whether Redis answers it; one that can't be reached says no."""
        try:
            async with asyncio.timeout(HEARD_WITHIN_S):
                answer = await self._connected(HEALTH).get(f"{url}/healthz")
                return answer.status_code == 200 and answer.json().get("redis") is True
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, AttributeError):
            return False

    async def _once(self, owner: str, path: str) -> Fetched | None:
        """Fetch a file, or wait for who fetches it already; None once its stream has another owner: this one may answer never.

        Whoever gives up waiting does not end it for the others.
        """
        name = f"{owner} {path}"
        task = self._under_way.get(name)
        if task is None:
            task = self._under_way[name] = asyncio.create_task(self._fetch(owner, path), name=f"edge {path}")
            task.add_done_callback(lambda _: self._under_way.pop(name, None))
        while not task.done():
            await asyncio.wait((task,), timeout=LOOKED_EVERY_S)
            if not task.done() and self._owner(path) not in ("", owner):
                return None
        return task.result() if not task.cancelled() else Fetched(503)

    def _connected(self, owner: str) -> httpx.AsyncClient:
        """Return the client of one owner: one that hangs takes no connection from the others."""
        if owner not in self._clients:
            timeout = httpx.Timeout(None, connect=CONNECTED_WITHIN_S)  # for each read none: see open_transport
            transport = self._transport or open_transport(MOST_CONNECTIONS)  # httpx's own has no connection left after an owner hung
            self._clients[owner] = httpx.AsyncClient(
                trust_env=False, timeout=timeout, transport=transport, headers={HOP: "1"}, follow_redirects=False
            )
        return self._clients[owner]

    async def asked(self, url: str, path: str, within_s: float = FETCHED_WITHIN_S) -> Fetched:
        """Return what the node at *url* has at *path* ('live/news/source/12.ts'), whoever relays the stream; it is not kept.

        502 where it can't be had in time.
        """
        try:
            async with asyncio.timeout(within_s), self._connected(url).stream("GET", f"{url}/{path}") as answer:
                if answer.status_code != 200:
                    return Fetched(answer.status_code)
                body = bytearray()
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > LARGEST_BYTES:
                        return Fetched(502, reason=f"it has more than {LARGEST_BYTES} bytes")
                return Fetched(200, bytes(body), answer.headers.get("etag", ""))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return Fetched(502, reason=f"{type(error).__name__} {error}".strip())

    async def _fetch(self, owner: str, path: str) -> Fetched:
        self.fetches += 1
        found = await self.asked(owner, f"live/{path}")
        if found.reason:
            log.warning("edge.failed", path=path, owner=owner, reason=found.reason)
        elif found.status == 200:
            self._keep(owner, path, found)
        return found

    def _keep(self, owner: str, path: str, found: Fetched) -> None:
        if before := self._kept.pop(path, None):
            self._kept_bytes -= len(before[2].body)
        self._kept[path] = self._now_s(), owner, found
        self._kept_bytes += len(found.body)
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1][2].body)

    async def aclose(self) -> None:
        """End what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in self._clients.values():
            with suppress(httpx.HTTPError):
                await client.aclose()
        self._clients.clear()
