"""Whether what a source lists can be had, before it is relayed: a playlist may go on where its segments do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hlsrelay.beside import INIT_LIMIT_BYTES, KEY_BYTES, KEY_LIMIT_BYTES, served_by_us
from hlsrelay.clock import Clock
from hlsrelay.cutting import Digest
from hlsrelay.desk import Source
from hlsrelay.downloading import Downloading, text_page
from hlsrelay.errors import SegmentLost
from hlsrelay.model import InitSection, Key, KeyPolicy, Sink, Snapshot
from hlsrelay.upstream import SEGMENT_LIMIT_BYTES


async def newest_had(source: Source, snapshot: Snapshot, policy: KeyPolicy, clock: Clock) -> bool:
    """Return whether the newest segment can be had in the time that a relayed one has, with the keys and the init section it needs.

    It is fetched whole: a server may answer well, and be too slow to play from. Nothing is kept.
    """
    segment = next((one for one in reversed(snapshot.segments) if not one.gap), None)
    if segment is None:
        return False
    until_s = clock.monotonic_s() + Downloading.deadline_s(snapshot.target_duration_s)

    async def fetched(what: InitSection, most_bytes: int, wrong: Callable[[bytes], str]) -> None:
        body = Digest()

        def restart() -> Sink:
            nonlocal body
            body = Digest()
            return body.update

        left_s = max(0.0, until_s - clock.monotonic_s())
        await source.fetch(what.uri, what.byterange, restart, left_s, whole=lambda: wrong(body.head), most_bytes=most_bytes)

    try:
        for key in dict.fromkeys((*segment.keys, *(segment.init.keys if segment.init else ()))):
            if key.uri and served_by_us(key, policy):
                await fetched(InitSection(key.uri), KEY_LIMIT_BYTES, partial(_wrong_key, key))
        if segment.init:
            await fetched(segment.init, INIT_LIMIT_BYTES, lambda _: "")
        await fetched(
            InitSection(segment.uri, segment.byterange), SEGMENT_LIMIT_BYTES, lambda head: "" if segment.keys else text_page(head)
        )
    except SegmentLost:
        return False
    return True


def _wrong_key(key: Key, body: bytes) -> str:
    return "" if KEY_BYTES.get(key.method) in (None, len(body)) else f"a key of {len(body)} bytes"
