"""What a Dask worker runs: `encode`, an importable function, so a worker needs hlsrelay installed, and ffmpeg.

Dask runs a coroutine function on the worker's own event loop, which is in the main thread of its process, with a nanny and without: so
children are started, confined and killed as they are at a relay's (processes), and a worker that is killed leaves no ffmpeg. Dask does not
stop a task that nobody wants any more; it tells plugins so, and ours stops it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from hlsrelay.embedded import embedded_ffmpeg_path, ffmpeg_path
from hlsrelay.errors import HlsRelayError
from hlsrelay.log import start_logging
from hlsrelay.offers import Offers
from hlsrelay.parcel import done, unfit
from hlsrelay.processes import Children
from hlsrelay.settings import load_settings

_NAME = "hlsrelay"


class _Hands(WorkerPlugin):
    """What all jobs of a worker share: its children, its ffmpeg, and which job is whose.

    Nothing is to be torn down: a worker that closes cancels its jobs, and waits for them, before it asks its plugins to.
    """

    def __init__(self) -> None:
        settings = load_settings()
        start_logging(settings.log)
        self.children = Children()
        ffmpeg, newer = (settings.ffmpeg, None) if settings.ffmpeg else (ffmpeg_path(), embedded_ffmpeg_path())
        self.offers = Offers(ffmpeg, self.children, settings.encoders, newer)
        self.tasks: dict[str, asyncio.Task[bytes]] = {}

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:  # noqa: ARG002 - as Dask names them
        """See WorkerPlugin: a job that runs and is released is one that nobody wants any more."""
        if finish == "released" and key in self.tasks:
            self.tasks[key].cancel()


async def encode(key: str, form: str, parcel: bytes) -> bytes:
    """Do the job in *parcel* (see parcel.done); *key* is Dask's for it."""
    worker = get_worker()
    try:
        hands = await _hands(worker)
    except HlsRelayError as error:
        return unfit(str(error))
    task = hands.tasks[key] = asyncio.ensure_future(done(form, parcel, Path(worker.local_directory), hands.children, hands.offers))
    try:
        await asyncio.wait({task})
        return unfit("nobody wants it any more") if task.cancelled() else task.result()
    finally:  # the worker closes, where it is not done
        del hands.tasks[key]
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})


async def _hands(worker: Worker) -> _Hands:
    if _NAME not in worker.plugins:
        await worker.plugin_add(_Hands(), name=_NAME)
    hands = worker.plugins[_NAME]
    assert isinstance(hands, _Hands)
    return hands
