"""Whether anybody watches a stream: the web server tells, and whoever relays a stream that is on_demand asks.

Laws:
  1. A request for a playlist of an idle stream starts it; any number of requests start it once.
  2. Each of them waits for the first window, or hears why there is none: after START_WITHIN_S at the latest.
  3. A stream is left once nothing of it was asked for during its idle_timeout, and nobody waits. A segment counts as a playlist does,
     but starts nothing: who has no playlist can't know it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from hlsrelay.clock import Clock, Nudges
from hlsrelay.model import Desired, Stream

START_WITHIN_S = 15.0
"""Players wait for a playlist for 20 s or so (hls.js 1.6: maxLoadTimeMs); ours comes before that, or a word why not."""


class Demand:
    """Who watches one stream. *wish* gives the operator's fields as they are now, and *nudges* tells that they changed.

    *refusal* says why nothing more may be started here, empty where it may.
    """

    def __init__(self, wish: Callable[[], Stream], clock: Clock, nudges: Nudges, refusal: Callable[[], str]) -> None:
        self._wish = wish
        self._clock = clock
        self._refusal = refusal
        self._moved = nudges.listen()
        self._waiting: set[asyncio.Future[str]] = set()
        self._asked_s = -math.inf
        self._is_open = False
        self.idle = False
        """Whether nothing of the stream runs."""

    # Told by the web server --------------------------------------------------------------------------------------------------------------

    def asked(self, *, playlist: bool) -> bool:
        """Note that a player asks for something; returns whether it has to wait for the stream to start: see `started`."""
        if self._is_open or not self._wish().on_demand:
            self._asked_s = self._clock.monotonic_s()
            return False
        return playlist

    async def started(self) -> str:
        """Wait until the stream has something to show, which starts it where it is idle; returns why it has not, empty if it has."""
        if self.idle and (refusal := self._refusal()):
            return refusal
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.add(told)
        self._moved.set()
        try:
            async with asyncio.timeout(START_WITHIN_S):
                return await told
        except TimeoutError:
            return f"the source has brought nothing within {START_WITHIN_S:.0f} s"
        finally:
            self._waiting.discard(told)
            self._asked_s = self._clock.monotonic_s()
            self._moved.set()

    # Told, and asked, by whoever relays --------------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """The first window is there: who waits may have it."""
        self._is_open = True
        self._tell("")

    def failed(self, reason: str) -> None:
        """The start has failed for now: who waits hears why."""
        if not self._is_open:
            self._tell(reason)

    def closed(self) -> None:
        """Nothing is there to show any more: who comes from now on waits."""
        self._is_open = False

    @property
    def starts(self) -> bool:
        """Whether a request starts the stream where it is idle."""
        return self._wish().on_demand

    @property
    def unwanted(self) -> bool:
        """Whether the stream is on_demand, and nobody has asked for it for so long."""
        return self._left_s() <= 0.0

    async def wanted(self) -> None:
        """Wait until somebody watches, or the operator wants the stream relayed in any case, or stopped."""
        while self.unwanted and self._wish().desired is Desired.RUN:
            self._moved.clear()
            await self._moved.wait()

    async def left(self) -> None:
        """Wait until nobody has watched for as long as the operator gives them."""
        while (left_s := self._left_s()) > 0.0:
            self._moved.clear()
            await self._moved.wait(left_s if math.isfinite(left_s) else None)

    def _left_s(self) -> float:
        """Return for how long the stream is wanted if nobody asks any more."""
        wish = self._wish()
        if not wish.on_demand or self._waiting:
            return math.inf
        return self._asked_s + wish.idle_timeout_s - self._clock.monotonic_s()

    def _tell(self, reason: str) -> None:
        for one in self._waiting:
            if not one.done():
                one.set_result(reason)
