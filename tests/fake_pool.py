"""A pool in virtual time: what a worker runs is what a real one runs (parcel.done), with children that pass for ffmpeg."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hlsrelay.errors import PoolLost
from hlsrelay.offers import Offers
from hlsrelay.parcel import FORM, Answer, done, unpacked
from hlsrelay.pool import Ticket
from tests.fake_ffmpeg import FakeFfmpeg
from tests.virtual import elapse

NEVER_S = 10_000.0


class FakePool:
    """pool.Pool, of so many *slots*. *hows*, one for each job that is asked of it in turn, say what becomes of it; then each is done.

    A number: the worker is lost after so many seconds. `hangs`, `refuses`: as they say. `loses all`: the pool is away from then on.
    """

    def __init__(self, folder: Path, slots: int = 4) -> None:
        self.slots, self.taken = slots, 0
        self.ffmpeg = FakeFfmpeg(cores=2.0 * slots)
        self.hows: list[str | float] = []
        self.asked: list[tuple[float, Ticket]] = []
        self.stopped: list[Ticket] = []
        self.form = FORM
        self._folder = folder
        self._lost = asyncio.Event()

    def lose(self) -> None:
        """The scheduler dies, and with it what is under way."""
        self.slots = 0
        self._lost.set()

    async def done(self, ticket: Ticket) -> Answer:
        """See pool.Pool."""
        self.asked.append((asyncio.get_running_loop().time(), ticket))
        how = self.hows.pop(0) if self.hows else "does it"
        ticket.worker = f"w{len(self.asked)}"
        lost = asyncio.create_task(self._lost.wait())
        doing = asyncio.create_task(self._done(ticket, how))
        try:
            await asyncio.wait({lost, doing}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise PoolLost("the scheduler is gone")
            return doing.result()
        except asyncio.CancelledError:
            self.stopped.append(ticket)
            raise
        finally:
            lost.cancel()
            doing.cancel()

    async def _done(self, ticket: Ticket, how: str | float) -> Answer:
        match how:
            case "hangs":
                await elapse(NEVER_S)
            case "refuses":
                return Answer({}, {}, {}, unfit="its disk is full")
            case int() | float():
                await elapse(how)
                raise PoolLost("the worker is gone")
        children = self.ffmpeg.children()
        return unpacked(await done(self.form, ticket.parcel, self._folder, children, Offers(Path("ffmpeg"), children)))
