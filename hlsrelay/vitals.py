"""What a node does beside its relays, once a second: it tells its children to Redis, sheds ladder jobs while memory is short, is awake.

Oftener it looks how late its loop is.

Laws:
- No relay waits for any of this: Redis away, or slow, only makes `hlsrelay ps` on other machines blind.
- While memory is short no ladder job starts and nothing new is claimed; those that run are stopped one at a time, oldest first, until it
  eases. Their rungs are GAPs for that segment. Pass-through is never touched.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import structlog

from hlsrelay.clock import ticking_s
from hlsrelay.errors import RegistryUnavailable
from hlsrelay.memory import give_back, used_percent
from hlsrelay.node import Node
from hlsrelay.orphans import incarnation
from hlsrelay.remembered import forget
from hlsrelay.statuses import NodeStatus, written

PERIOD_S = 1.0
LOOKED_S = 0.5
"""Between two looks at the loop; what blocks it for long is seen by each of them."""
FAR_SHARE, FAR_PERIODS = 0.7, 4
"""With less than this part of the threshold in use, memory is looked at that much more seldom; not while anything is encoded."""
FEWEST_ENDED = 16
KEPT_S = 3
"""A node that has told nothing for so long is dead, or has no children any more; so many times that long where it tells more seldom."""
STEADY_AFTER, STEADY_PERIODS = 10, 8
"""Whose children are the same for so many periods (a Redis of its own, as a rule) tells of them that much more seldom."""

log = structlog.get_logger()


@asynccontextmanager
async def attended(node: Node, used: Callable[[], float | None] = used_percent) -> AsyncGenerator[None, None]:
    """Attend to *node* while the block runs; *used* reads how much memory is in use, in percent."""
    tasks = [
        asyncio.create_task(_tell(node), name="tell"),
        asyncio.create_task(_relieve(node, used), name="relieve"),
    ]
    lateness = _Lateness(node)
    try:
        yield
    finally:
        lateness.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def status_of(node: Node) -> NodeStatus:
    """Return a node's memory, its children and its jobs that are with a pool, as they are now."""
    percent = node.pressure.percent
    children = tuple(child.status(node.name) for child in node.children.running())
    children += node.pool.away(node.name) if node.pool else ()
    return NodeStatus(node.name, incarnation(), None if percent is None else round(percent, 1), node.pressed, children)


async def _tell(node: Node) -> None:
    before, same = frozenset[int](), 0
    while True:
        children = frozenset(child.pid for child in node.children.running())
        moves = children != before or node.pressed or bool(node.pool and node.pool.jobs)
        before, same = children, 0 if moves else same + 1
        if (children or moves) and (same < STEADY_AFTER or (same - STEADY_AFTER) % STEADY_PERIODS == 0):
            kept_s = KEPT_S * (STEADY_PERIODS if same >= STEADY_AFTER else 1)
            with suppress(RegistryUnavailable):
                await node.registry.tell(incarnation(), written(status_of(node)), kept_s)
        await asyncio.sleep(PERIOD_S)


async def _relieve(node: Node, used: Callable[[], float | None]) -> None:
    periods = itertools.count()
    while True:
        if next(periods) % FAR_PERIODS == 0 or not _is_far(node):
            _look_at_memory(node, used())
        node.awake.stops()
        _tidy(node)
        await asyncio.sleep(PERIOD_S)


def _is_far(node: Node) -> bool:
    """Return whether memory can't be short within the next few seconds: nothing is encoded, and much of it is free."""
    percent = node.pressure.percent
    encodes = any(child.purpose.startswith("encode ") for child in node.children.running())
    return percent is not None and percent < FAR_SHARE * node.settings.memory_pressure and not encodes


def _look_at_memory(node: Node, used_percent: float | None) -> None:
    """Tell whether memory is short, and shed a ladder job if it is."""
    changed = node.pressure.note(used_percent)
    percent = node.pressure.percent or 0.0
    if changed:
        node.metrics.memory_pressure.set(node.pressed)
    if changed and node.pressed:
        log.warning("memory.short", used_percent=round(percent, 1), threshold_percent=node.settings.memory_pressure)
    elif changed:
        log.info("memory.eased", used_percent=round(percent, 1))
    if node.pressed:
        node.encoder.shed()


def _tidy(node: Node) -> None:
    """Give back what streams held that have ended, once they are as many as those that run: it hangs together in circles.

    What looks for circles looks seldom (commands), and would not come to what has lived for long before millions of objects more. It goes
    through all that lives: so each stream that ends costs no more than one that runs. What is
    remembered of them (remembered) goes first, and what is free then goes back to the system.
    """
    if node.ended >= max(FEWEST_ENDED, len(node.storages)):
        node.ended = 0
        forget()
        gc.collect()
        give_back()


class _Lateness:
    """Tells, every LOOKED_S, how late the loop is: by a timer, for a task would cost several times as much."""

    def __init__(self, node: Node) -> None:
        self._lag_s = node.metrics.loop_lag_s
        self._loop = asyncio.get_running_loop()
        self._next()

    def _next(self) -> None:
        self._due_s = ticking_s() + LOOKED_S
        self._timer = self._loop.call_later(LOOKED_S, self._look)

    def _look(self) -> None:
        self._lag_s.observe(max(0.0, ticking_s() - self._due_s))
        self._next()

    def close(self) -> None:
        """Look no more."""
        self._timer.cancel()
