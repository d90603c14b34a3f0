"""An object store in memory, which fails as it is told to; and what players see of any, at each state that it comes to."""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hlsrelay.errors import StorageAway
from hlsrelay.objects import NEW, Found, Headers, Objects, Raced

Fault = Callable[[str, str], str]
"""Told an operation and a key: what befalls it. Empty: nothing; "refused"; or "unheard": it is done, and the answer is lost."""


@dataclass
class MemoryObjects:
    """Objects, in memory."""

    url: str = "s3://memory/test"
    fault: Fault = lambda _, __: ""
    takes_s: float = 0.0
    held: dict[str, tuple[bytes, Headers]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def get(self, key: str) -> Found | None:
        await self._asked("get", key)
        return Found(self.held[key][0], _tag(self.held[key][0])) if key in self.held else None

    async def put(self, key: str, body: bytes | Path, headers: Headers, *, tag: str | None = None) -> str:
        body = body.read_bytes() if isinstance(body, Path) else body
        fate = await self._asked("put", key)
        there = _tag(self.held[key][0]) if key in self.held else NEW
        if tag is not None and tag != there:
            raise Raced
        self.held[key] = body, headers
        self._unheard(fate)
        return _tag(body)

    async def delete(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            fate = await self._asked("delete", key)
            self.held.pop(key, None)
            self._unheard(fate)

    async def list(self, prefix: str) -> Mapping[str, int]:
        await self._asked("list", prefix)
        return {key: len(body) for key, (body, _) in self.held.items() if key.startswith(prefix)}

    async def _asked(self, operation: str, key: str) -> str:
        self.asked.append((operation, key))
        await asyncio.sleep(self.takes_s)
        fate = self.fault(operation, key)
        if fate == "refused":
            raise StorageAway(f"{self.url}: 503 Slow Down")
        return fate

    def _unheard(self, fate: str) -> None:
        if fate == "unheard":
            raise StorageAway(f"{self.url}: no answer within 5 s")


def _tag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'  # as S3 has it


class Watched:
    """An object store, and a player who looks at all of it after each change: nothing that is listed may be missing.

    What was listed stays for as long as A7 wants: a longest playlist that listed it, and itself. *now_s* tells the time.
    """

    def __init__(self, objects: Objects, now_s: Callable[[], float]) -> None:
        self.watched = objects
        self._now_s = now_s
        self._stays_until_s: dict[str, float] = {}
        self.looks = 0
        self.sequences: dict[str, int] = {}
        self._read: dict[str, tuple[bytes, list[str], float]] = {}

    @property
    def url(self) -> str:
        return self.watched.url

    async def get(self, key: str) -> Found | None:
        return await self.watched.get(key)

    async def put(self, key: str, body: bytes | Path, headers: Headers, *, tag: str | None = None) -> str:
        try:
            return await self.watched.put(key, body, headers, tag=tag)
        finally:
            await self.look()

    async def delete(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        try:
            await self.watched.delete(keys)
        finally:
            for key in keys:
                assert self._stays_until_s.get(key, 0.0) <= self._now_s(), f"{key} is gone too soon"
            await self.look()

    async def list(self, prefix: str) -> Mapping[str, int]:
        return await self.watched.list(prefix)

    async def look(self) -> None:
        if isinstance(self.watched, MemoryObjects):  # unseen, and whatever befalls others
            held = {key: body for key, (body, _) in self.watched.held.items()}
        else:
            keys = await self.watched.list("live/")
            held = {key: found.body if (found := await self.watched.get(key)) else b"" for key in keys if key.endswith(".m3u8")}
            held = {**dict.fromkeys(keys, b""), **held}
        self.looks += 1
        for key, body in held.items():
            if key.endswith(".m3u8"):
                if self._read.get(key, (b"",))[0] != body:
                    self._read[key] = body, *_read(key, body.decode())
                    self._moved(key, body.decode())
                _, listed, stays_s = self._read[key]
                for one in listed:
                    assert one in held, f"{one} is listed in {key} and not there"
                    self._stays_until_s[one] = self._now_s() + stays_s

    def _moved(self, key: str, text: str) -> None:
        if found := re.search(r"(?m)^#EXT-X-MEDIA-SEQUENCE:(\d+)$", text):
            assert self.sequences.get(key, 0) <= int(found.group(1)), f"the media sequence of {key} fell"
            self.sequences[key] = int(found.group(1))


def _read(key: str, text: str) -> tuple[list[str], float]:
    """Return what a playlist lists, and how long that stays."""
    lengths = [float(length) for length in re.findall(r"(?m)^#EXTINF:([0-9.]+),", text)]
    found, gap = list[str](), False
    for line in text.splitlines():
        gap = gap or line == "#EXT-X-GAP"
        uris = re.findall(r'^#EXT-X-(?:MAP|KEY):.*URI="([^":]+)"', line) if line.startswith("#") else [line] if line else []
        if line.startswith("#") or not gap:
            found += [posixpath.normpath(posixpath.join(posixpath.dirname(key), uri)) for uri in uris]
        gap = gap and line.startswith("#")
    return found, sum(lengths) + min(lengths, default=0.0)
