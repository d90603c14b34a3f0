"""What segments need beside themselves, init sections and keys: fetched once each, and served where the operator wants that."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from hlsrelay.desk import Desk
from hlsrelay.errors import SegmentLost
from hlsrelay.hls.window import FEWEST_ENTRIES
from hlsrelay.media.decrypt import can_decrypt, decrypted
from hlsrelay.media.probe import MediaError
from hlsrelay.model import InitSection, Key, KeyPolicy, MediaFile, Numbered, Sink
from hlsrelay.values import replace

KEY_BYTES = {"AES-128": 16, "AES-256": 32}
"""The methods that encrypt files as a whole, and how long their keys are."""
INIT_LIMIT_BYTES = 1 << 20
KEY_LIMIT_BYTES = 4 << 10
"""Both are kept in memory."""


@dataclass(frozen=True, slots=True)
class Extra:
    """A small file that segments need: an init section or a key; *uri* is its name in the track's folder."""

    uri: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Need:
    """Which segment needs something beside itself, the number of the last DISCONTINUITY up to it, and until when it can wait."""

    item: Numbered
    since: int
    until_s: float


@dataclass(frozen=True, slots=True)
class Given:
    """A key as players of ours get it, and its file where we serve it."""

    key: Key
    file: Extra | None = None


class Beside:
    """Fetches what segments need beside themselves, once each, and publishes it in the track's folder.

    After a DISCONTINUITY it is fetched again: encoders that restart write other content under the same URI.
    The same content keeps its file, whatever URI the source gives it next: tokens rotate, and a MAP or a KEY that is new by its name
    alone would make players begin anew. A file that none of the last entries lists may have left the playlist, and the disk.
    """

    MOST = 16
    WRONG_KEYS = 3
    WRONG_KEY_PAUSE_S = 1.0

    def __init__(self, desk: Desk) -> None:
        self._tools = desk.tools
        self._name = desk.track.name
        self._had: OrderedDict[tuple[int, InitSection], asyncio.Task[Extra]] = OrderedDict()
        """By the number of the last DISCONTINUITY, and what was asked for."""
        self._files: dict[str, tuple[bytes, int]] = {}
        """What is in which file, and the newest number that lists it."""
        for entry in desk.progress.entries[-FEWEST_ENTRIES:] if desk.progress else ():
            file = entry.files.get(self._name)
            for uri in (file.init_uri, *file.key_uris) if file else ():
                if uri and (body := self._tools.storage.read(f"{self._name}/{uri}")):
                    self._files[uri] = body, entry.number

    def listed(self, number: int, file: MediaFile) -> None:
        """Take note that the entry *number* needs what *file* names."""
        for uri in (file.init_uri, *file.key_uris):
            if uri in self._files:
                body, before = self._files[uri]
                self._files[uri] = body, max(before, number)

    async def init(self, section: InitSection, need: Need) -> Extra:
        """Return an init section. Raises SegmentLost."""
        return await self._once(replace(section, keys=()), need, self._tools.storage.named(f"init-{need.item.number}", "mp4"))

    async def keys(self, keys: tuple[Key, ...], need: Need, prefix: str) -> tuple[Given, ...]:
        """Return *keys* as players of ours get them. Raises SegmentLost."""
        given = []
        for index, key in enumerate(keys):
            if not key.uri or not served_by_us(key, need.item.stream.keys):
                given.append(Given(key))
                continue
            file = await self._once(
                InitSection(key.uri), need, self._tools.storage.named(f"{prefix}-{need.item.number}-{index}", "key"), key
            )
            ours_said = tuple((said, f'"{file.uri}"' if said == "URI" else value) for said, value in key.attributes)  # no token of theirs
            given.append(Given(replace(key, uri=file.uri, attributes=ours_said), file))
        return tuple(given)

    async def _once(self, section: InitSection, need: Need, name: str, key: Key | None = None) -> Extra:
        """Return the file, fetched where it is not had or may be gone."""
        number, what = need.item.number, (need.since, section)
        task = self._had.get(what)
        if task is not None and task.done() and (task.cancelled() or task.exception() or not self._stays(task.result().uri, number)):
            task = None
        if task is None:
            task = self._had[what] = asyncio.ensure_future(self._fetched(section, need, name, key))
            while len(self._had) > self.MOST:
                self._had.popitem(last=False)
        self._had.move_to_end(what)
        return await asyncio.shield(task)

    def _stays(self, uri: str, number: int) -> bool:
        """Return whether a file is still listed by the time that the entry *number* is."""
        return uri in self._files and number - self._files[uri][1] < FEWEST_ENTRIES

    async def _fetched(self, section: InitSection, need: Need, name: str, key: Key | None) -> Extra:
        body, number = bytearray(), need.item.number
        length, what, limit = (KEY_BYTES.get(key.method), "key", KEY_LIMIT_BYTES) if key else (None, "init section", INIT_LIMIT_BYTES)

        def restart() -> Sink:
            body.clear()
            return body.extend

        for attempt in range(1, self.WRONG_KEYS + 1):
            left_s = max(0.0, need.until_s - self._tools.clock.monotonic_s())
            try:
                await self._tools.upstream.fetch(section.uri, section.byterange, restart, left_s, most_bytes=limit)
            except SegmentLost as error:
                raise SegmentLost(f"its {what}: {error}") from error
            if length in (None, len(body)):
                break
            if attempt == self.WRONG_KEYS:  # a page that says why not, most likely: to decrypt with it would give noise
                raise SegmentLost(f"the key has {len(body)} bytes, not {length}")
            await asyncio.sleep(self.WRONG_KEY_PAUSE_S)
        had = bytes(body)
        self._files = {uri: file for uri, file in self._files.items() if self._stays(uri, number)}
        for uri, (known, _) in self._files.items():
            if known == had and uri.rpartition(".")[2] == name.rpartition(".")[2]:
                return Extra(uri, had)
        self._tools.storage.write(f"{self._name}/{name}", had)
        self._files[name] = had, number
        return Extra(name, had)


def served_by_us(key: Key, policy: KeyPolicy) -> bool:
    """Return whether players get *key* from us.

    Only identity keys have a format that is known to us; keys of DRM systems are theirs to hand out.
    """
    return policy is KeyPolicy.PROXY and key.keyformat == "identity" and (key.uri or "").startswith(("http:", "https:"))


def in_the_clear(init: Extra, keys: tuple[Given, ...]) -> bytes | None:
    """Return the init section in the clear, for whoever looks into the segment; players get it as it came."""
    if not any(one.key.method in KEY_BYTES for one in keys):  # SAMPLE-AES and its like leave init sections alone
        return init.body
    if len(keys) != 1 or keys[0].file is None or not can_decrypt((keys[0].key,)):
        return None
    try:
        return decrypted(init.body, keys[0].key, keys[0].file.body)
    except MediaError:
        return None
