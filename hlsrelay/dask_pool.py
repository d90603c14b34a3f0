"""The pool that is a Dask cluster: the way to its scheduler, kept up in the background. Importing this takes a second.

Laws:
- Nobody waits for the scheduler but the job that is with it: while it is away, or silent, jobs are refused at once (PoolLost).
- No more than one thread is used here, and none of Dask's words are written to our log: what matters of them is an event of ours.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
import warnings
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import dask.config
import structlog

dask.config.set(
    {
        "distributed.comm.offload": False,  # else large messages are packed in a thread; read when distributed is imported
        "distributed.admin.large-graph-warning-threshold": "1GiB",  # a job is its segment
        "distributed.client.preload": [],
    }
)

from distributed import Client  # noqa: E402
from distributed.versions import VersionMismatchWarning  # noqa: E402

from hlsrelay.dask_worker import encode  # noqa: E402
from hlsrelay.errors import PoolLost  # noqa: E402
from hlsrelay.parcel import FORM, RESOURCE, Answer, unpacked  # noqa: E402
from hlsrelay.pool import Ticket  # noqa: E402

KEY = "hlsrelay_encode"
CONNECT_S = 5.0
RETRY_S = 2.0
LOOK_S = 1.0
SILENT_S = 3.0
"""A scheduler that does not answer for so long is away: it, or the network, stands still."""
FOUND_WITHIN_S = 0.5
CLOSED_WITHIN_S = 2.0
GONE = "the scheduler is gone"
RUNNING = "running"
"""A client's status, as Dask has it, while it is connected."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Line:
    """A connection to the scheduler; *lost* is done once it can't be used any more, and says why."""

    client: Any
    lost: asyncio.Future[str]


class DaskPool:
    """See pool.Pool. *address* is the scheduler's as Dask writes it: tcp://host:port, or tls://host:port."""

    def __init__(self, address: str) -> None:
        self.taken = 0
        self._slots = 0
        self._address = address
        self._line: _Line | None = None
        self._reason = "the scheduler has not answered yet"
        self._told: str | None = None
        self._workers: dict[str, str] = {}
        """Names of workers that are ours to use, by address."""
        self._tickets: dict[str, Ticket] = {}

    @property
    def slots(self) -> int:
        """See pool.Pool."""
        return self._slots if self._line is not None and self._line.client.status == RUNNING else 0

    async def done(self, ticket: Ticket) -> Answer:
        """See pool.Pool."""
        line = self._line
        if line is None or line.client.status != RUNNING:
            raise PoolLost(self._reason if line is None else GONE)
        others: list[str] = []
        if ticket.beside is not None:
            try:
                await _within(FOUND_WITHIN_S, self._look(line))
            except Exception as error:  # then anybody may have it
                log.debug("pool.not_looked_at", exc_info=error)  # it may be a fault of ours
            others = [address for address, name in self._workers.items() if name != ticket.beside.worker]
        key = f"{KEY}-{uuid.uuid4().hex}"
        try:
            future: Any = line.client.submit(
                encode,
                key,
                FORM,
                ticket.parcel,
                key=key,
                pure=False,
                retries=0,
                priority=ticket.priority,
                resources={RESOURCE: 1},
                **({"workers": others} if others else {}),
            )
        except Exception as error:  # Dask has no error of its own: what its parts raise comes out
            raise PoolLost(_said(error)) from error
        self._tickets[key] = ticket
        # By itself: Dask fetches the results of several in one go, and whoever is cancelled would cancel that.
        result: asyncio.Future[bytes] = asyncio.ensure_future(future.result())
        result.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            ends: set[asyncio.Future[Any]] = {result, line.lost}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise PoolLost(line.lost.result())
            try:
                return unpacked(result.result())
            except (Exception, asyncio.CancelledError) as error:
                raise PoolLost(_said(error)) from error
        finally:
            del self._tickets[key]
            try:
                future.release()
            except Exception as error:  # the line may be lost; nobody waits for it any more
                log.debug("pool.not_released", exc_info=error)  # it may be a fault of ours

    @asynccontextmanager
    async def reached(self) -> AsyncGenerator[DaskPool, None]:
        """Keep the way to the scheduler up while the block runs; it is entered at once, whether there is one or not."""
        watching = asyncio.create_task(self._watch(), name="pool")
        try:
            yield self
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                await self._keep()
            except Exception as error:  # the same; it is told, and tried again
                log.debug("pool.away", exc_info=error)  # it may be a fault of ours
                self._away(_said(error))
            await asyncio.sleep(RETRY_S)

    async def _keep(self) -> None:
        """Connect, and look after the connection until it is lost. Raises what Dask does, and OSError."""
        warnings.filterwarnings("ignore", category=VersionMismatchWarning)
        connect: Any = Client  # which has no types
        client = connect(self._address, asynchronous=True, timeout=CONNECT_S, set_as_default=False, name="hlsrelay")
        _hush()
        line = _Line(client, asyncio.get_running_loop().create_future())
        reason = "we close"
        try:
            await _within(CONNECT_S + 1, client)
            self._line = line
            while client.status == RUNNING:
                await _within(SILENT_S, self._look(line))
                await asyncio.sleep(LOOK_S)
            reason = GONE
            self._away(reason)
        except Exception as error:
            reason = _said(error)
            raise
        finally:
            self._line, self.taken, self._workers = None, 0, {}
            line.lost.set_result(reason)
            try:
                await _within(CLOSED_WITHIN_S, client.close(CLOSED_WITHIN_S))
            except Exception as error:  # what is lost can't be closed well
                log.debug("pool.not_closed", exc_info=error)  # it may be a fault of ours

    async def _look(self, line: _Line) -> None:
        """See which workers there are, and who has which job."""
        scheduler = line.client.scheduler
        identity, processing = await asyncio.gather(scheduler.identity(n_workers=-1), scheduler.processing())
        if self._line is not line:
            return
        usable = {
            address: one
            for address, one in identity["workers"].items()
            if one["resources"].get(RESOURCE, 0) >= 1 and one.get("status", "running") == "running"
        }
        self._workers = {address: str(one["name"]) for address, one in usable.items()}
        self._slots = sum(int(one["resources"][RESOURCE]) for one in usable.values())
        taken = 0
        for address, keys in processing.items():
            for key in keys:
                if (ticket := self._tickets.get(key)) is not None:
                    ticket.worker = self._workers.get(address, address)
                elif str(key).startswith(KEY):
                    taken += 1
        self.taken = taken
        if not self._slots:
            self._away(f"no worker there has the resource {RESOURCE}: start some with --resources {RESOURCE}=N")
        elif self._told != "":
            self._told = ""
            log.info("pool.reached", scheduler=self._address, workers=len(usable), slots=self._slots)

    def _away(self, reason: str) -> None:
        self._reason = reason
        if self._told != reason:
            self._told = reason
            log.warning("pool.away", scheduler=self._address, reason=reason)


async def _within(seconds: float, work: Awaitable[T]) -> T:
    """Return what Dask's *work* does. Raises TimeoutError; cancelled, it leaves it alone: Dask forgets at times that it was cancelled."""

    async def whole() -> T:
        return await work

    task = asyncio.create_task(whole())
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        task.cancel()
    if not task.done() or task.cancelled():
        raise TimeoutError
    return task.result()


def _said(error: BaseException) -> str:
    """Return what an exception says, in one line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, TimeoutError) and not text:
        return "the scheduler does not answer"
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"


def _hush() -> None:
    """Have Dask's loggers, which it gives handlers of their own, say nothing."""
    for name in ("distributed", "distributed.client", "distributed.gc", "tornado", "tornado.application", "bokeh"):
        logger: Any = logging.getLogger(name)
        logger.handlers[:] = [logging.NullHandler()]
        logger.propagate = False
