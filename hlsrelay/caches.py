"""Pulls files through the caches in front of us, before players know of them: nobody meets a cold one (`preload`).

Laws:
- Who publishes waits for a pull for WITHIN_S at most, and not at all for a cache that is overdue with an earlier one, comes late each
  time, or is being tried again: a dead one costs WITHIN_S once.
- A pull that is not waited for goes on to its end, so that the cache gets warm all the same: for ENDED_WITHIN_S at most, and MOST_UNDER_WAY
  of one cache at a time. What is more is left out.
- A cache that gives no answer again and again is left alone for a while (breaker). One that says it has no such file is not: it may not
  have heard of the stream yet, as a node of ours within a stream's first second, and is asked again, a few times.
- Nothing is kept of what comes. A redirect is a failure: players would be sent on by it with each request.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

import httpx

from hlsrelay import __version__
from hlsrelay.breaker import Breaker
from hlsrelay.transport import open_transport
from hlsrelay.urls import redacted

WITHIN_S = 0.5
ENDED_WITHIN_S = 10.0
MOST_UNDER_WAY = 128
MOST_CONNECTIONS = 32
AGAIN_AFTER_S = (0.1, 0.2, 0.4, 0.8, 1.6)
"""A node hears of each stream once in 0.8 s or so (claims)."""
LATES = 3
"""A cache that was late so often in a row is not waited for, until a pull through it takes no longer than WITHIN_S."""
AGAIN_S = 60.0
"""Init sections and keys are pulled again after this: nobody but us may have asked for them since, and caches forget."""
REMEMBERED = 4096
"""Init sections and keys of which it is known when they were pulled."""
HEADERS = {
    "user-agent": f"hlsrelay/{__version__}",
    "accept-encoding": "gzip, deflate, br",  # as browsers ask: a cache may keep one answer for each
}


class Pulled(StrEnum):
    """What became of a pull: there before publishing went on, later, not at all; or not tried."""

    WARM = "warm"
    LATE = "late"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(slots=True, eq=False)
class Pull:
    """A file on its way through the cache at *base*; once *task* is done *reason* says why it failed, empty where it did not."""

    base: str
    began_s: float
    task: asyncio.Task[None] = field(init=False)
    published: bool = False
    """Whether publishing went on before it was done."""
    missing: bool = False
    """Whether the cache has said that it has no such file."""
    reason: str = ""


@dataclass(slots=True, eq=False)
class _Cache:
    url: str
    client: httpx.AsyncClient
    breaker: Breaker = field(default_factory=Breaker)
    under_way: dict[str, Pull] = field(default_factory=dict)
    lates: int = 0
    pulled_s: OrderedDict[str, float] = field(default_factory=OrderedDict)

    def is_waited_for(self, now_s: float) -> bool:
        overdue = any(one.published and not one.missing and now_s - one.began_s > WITHIN_S for one in self.under_way.values())
        return not overdue and self.lates < LATES and not self.breaker.open


class Caches:
    """The caches of this process, by base URL: one client each. *everywhere* are those that every stream is pulled through.

    *counted* hears of each pull: the path, the base as it may be shown, the outcome.
    """

    def __init__(
        self,
        everywhere: tuple[str, ...],
        now_s: Callable[[], float],
        counted: Callable[[str, str, Pulled], object],
        transport: Callable[[int], httpx.AsyncBaseTransport] = open_transport,
    ) -> None:
        self.everywhere = everywhere
        self._now_s = now_s
        self._counted = counted
        self._transport = transport
        self._caches: dict[str, _Cache] = {}

    def pull(self, base: str, path: str, *, kept: bool = False) -> Pull | None:
        """Begin to pull *path* ('news/720p/12.ts') through the cache at *base*; None where it is left out.

        *kept*: it is listed for long, such as an init section, and pulled anew only after AGAIN_S.
        """
        cache, now_s = self._at(base), self._now_s()
        if kept and now_s - cache.pulled_s.get(path, float("-inf")) < AGAIN_S:
            return None
        if path in cache.under_way:
            return cache.under_way[path]
        if len(cache.under_way) >= MOST_UNDER_WAY or not cache.breaker.admits(now_s):
            self._counted(path, redacted(base), Pulled.SKIPPED)
            return None
        pull = cache.under_way[path] = Pull(base, now_s)
        pull.task = asyncio.create_task(self._pulled(cache, pull, path, kept=kept), name=f"preload {path}")
        return pull

    async def waited(self, pulls: Iterable[Pull], doubted: Collection[str]) -> None:
        """Wait until *pulls* are done, for WITHIN_S at most, and only for those that are worth it. Publishing goes on then.

        *doubted*: bases that are not waited for in any case.
        """
        pending = [one for one in pulls if not one.task.done()]
        now_s = self._now_s()
        if awaited := [one.task for one in pending if one.base not in doubted and self._at(one.base).is_waited_for(now_s)]:
            await asyncio.wait(awaited, timeout=WITHIN_S)
        for one in pending:
            one.published = not one.task.done()

    def is_late(self, base: str) -> bool:
        """Say whether the cache at *base* has been late so often that it is not waited for."""
        return self._at(base).lates >= LATES

    def pulling(self, path: str) -> bool:
        """Say whether *path* is on its way: who asks us for it is a cache, and no player."""
        return any(path in cache.under_way for cache in self._caches.values())

    def _at(self, base: str) -> _Cache:
        if base not in self._caches:
            url = httpx.URL(base)
            auth = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
            client = httpx.AsyncClient(
                transport=self._transport(MOST_CONNECTIONS),
                trust_env=False,
                headers=HEADERS,
                auth=auth,
                timeout=httpx.Timeout(None),  # for each read none: see open_transport
                follow_redirects=False,
            )
            self._caches[base] = _Cache(str(url.copy_with(userinfo=b"")).rstrip("/"), client)
        return self._caches[base]

    async def _pulled(self, cache: _Cache, pull: Pull, path: str, *, kept: bool) -> None:
        answers = False
        try:
            async with asyncio.timeout(ENDED_WITHIN_S):
                for wait_s in (0.0, *AGAIN_AFTER_S):
                    await asyncio.sleep(wait_s)
                    async with cache.client.stream("GET", f"{cache.url}/{path}") as answer:
                        async for _ in answer.aiter_raw():
                            pass
                    pull.reason, pull.missing = _refusal(answer.status_code), answer.status_code == 404
                    answers = answer.status_code < 500 and answer.status_code != 429
                    if not pull.missing:
                        break
        except TimeoutError:
            pull.reason, answers = f"gives no answer, or not whole, within {ENDED_WITHIN_S:.0f} s", False
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            pull.reason, answers = f"can't be reached: {str(error) or type(error).__name__}"[:300], False
        finally:
            del cache.under_way[path]
            cache.client.cookies.clear()  # a cache that is shown one may ask the origin for an answer of its own
        now_s = self._now_s()
        if answers:
            cache.breaker = Breaker()
        else:
            cache.breaker.failed(now_s, pull.reason, random.random())
        if kept and not pull.reason:
            cache.pulled_s.pop(path, None)
            cache.pulled_s[path] = now_s
            if len(cache.pulled_s) > REMEMBERED:
                cache.pulled_s.popitem(last=False)
        if not pull.published or now_s - pull.began_s <= WITHIN_S:
            cache.lates = 0
        elif not pull.missing:
            cache.lates += 1
        outcome = Pulled.FAILED if pull.reason else Pulled.LATE if pull.published else Pulled.WARM
        self._counted(path, redacted(pull.base), outcome)

    async def aclose(self) -> None:
        """End what is under way."""
        tasks = [pull.task for cache in self._caches.values() for pull in cache.under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for cache in self._caches.values():
            with suppress(httpx.HTTPError):
                await cache.client.aclose()
        self._caches.clear()


def _refusal(status: int) -> str:
    """Return what is wrong with an answer, empty where nothing is."""
    if status == 200:
        return ""
    return f"redirects ({status}): write the URL that it leads to" if 300 <= status < 400 else f"answers {status}"
