"""N streams relayed by one hlsrelay process: `python -m bench.node COUNT PLAYLIST-URL` with `{}` for the number in the URL.

It is `hlsrelay worker`: the same registry (the embedded Redis unless HLSRELAY_REDIS_URL says otherwise), web server and claims, settings
from the environment. But it registers the streams itself, has room for all of them, may trust a certificate of the bench's own, and
`--lag FILE` has it write there, every four seconds, how often its loop was how late. It ends on TERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from bench.schedule import stream_name
from hlsrelay import transport
from hlsrelay.claims import Claims
from hlsrelay.commands import _node, _on_signals
from hlsrelay.log import start_logging
from hlsrelay.node import Node
from hlsrelay.settings import Settings, load_settings
from hlsrelay.site import RelaySite
from hlsrelay.web import create_app, serve

LAG_TOLD_S = 4.0


async def tell_lag(node: Node, told: Path) -> None:
    """Write how often the loop was how late: upper bounds in seconds, and how often up to each."""
    while True:
        await asyncio.sleep(LAG_TOLD_S)
        found = {one.labels["le"]: one.value for each in node.metrics.loop_lag_s.collect() for one in each.samples if "le" in one.labels}
        written = told.with_suffix(".new")
        written.write_text(json.dumps(found))
        written.replace(told)


async def relay_all(count: int, url: str, window_s: float, settings: Settings, lag: Path | None = None) -> None:
    """Relay the streams until told to go."""
    start_logging(settings.log)
    leaving = _on_signals()
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(_node(settings))
        await stack.enter_async_context(serve(create_app(RelaySite(node)), settings.http))
        for index in range(count):
            fields = {"source": url.format(stream_name(index)), "desired": "run", "window": f"{window_s:g}"}
            await node.registry.register(stream_name(index), fields)
        telling = asyncio.create_task(tell_lag(node, lag)) if lag else None
        claims = Claims(node, leaving)
        async with claims.taking_part():
            await claims.kept()
        if telling:
            telling.cancel()


def main() -> None:
    """Read the command line, and relay."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("count", type=int)
    options.add_argument("url")
    options.add_argument("--window", type=float, default=24.0)
    options.add_argument("--trust", type=Path, help="certificate to trust beside the usual ones")
    options.add_argument("--lag", type=Path, help="file to write the loop's lag to")
    chosen = options.parse_args()
    if chosen.trust:
        transport._tls().load_verify_locations(chosen.trust)  # no setting for it: a source on the internet needs none
    uvloop.run(relay_all(chosen.count, chosen.url, chosen.window, load_settings(capacity=2 * chosen.count), chosen.lag))


if __name__ == "__main__":
    main()
