"""A stream's place, in a folder or a bucket, and what plays a test against each kind; its fixtures are in conftest."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hlsrelay.bucket import BucketStorage
from hlsrelay.objects import Headers, Objects, open_objects
from hlsrelay.storage import LocalStorage
from tests.memory_objects import MemoryObjects, Watched
from tests.s3_server import BUCKET

PLAYLIST = "source/index.m3u8"
FILE = Headers("video/mp2t", "public, max-age=3600, immutable")


def within(objects: Objects | None) -> Objects:
    """Return the store that is watched."""
    assert isinstance(objects, Watched)
    return objects.watched


def memory(place: Place) -> MemoryObjects:
    """Return the store, which can be made to fail."""
    inner = within(place.objects)
    assert isinstance(inner, MemoryObjects)
    return inner


@dataclass
class Place:
    """Where a stream is published, whoever owns it."""

    folder: Path
    objects: Objects | None
    now_s: float = 1000.0
    owners: list[LocalStorage] = field(default_factory=list)

    @asynccontextmanager
    async def owned(self, epoch: int, machine: str = "machine") -> AsyncGenerator[LocalStorage, None]:
        """Be the owner of a later claim; without a bucket all machines have one folder."""
        live = self.folder / (machine if self.objects else "shared")
        storage = BucketStorage(live, "news", self.objects, epoch, lambda: self.now_s) if self.objects else LocalStorage(live, "news")
        with storage:
            await storage.taken()
            yield storage

    async def seen(self, path: str) -> bytes | None:
        """Return what a player sees."""
        if self.objects:
            if isinstance(inner := within(self.objects), MemoryObjects):  # whatever befalls others
                return inner.held[f"live/news/{path}"][0] if f"live/news/{path}" in inner.held else None
            found = await self.objects.get(f"live/news/{path}")
            return found.body if found else None
        try:
            return (self.folder / "shared" / "news" / path).read_bytes()
        except FileNotFoundError:
            return None


Play = Callable[[Callable[[Place], Awaitable[None]]], None]


def player(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Play:
    """Return what plays a test against a kind of place."""

    def play(test: Callable[[Place], Awaitable[None]]) -> None:
        async def run() -> None:
            place = Place(tmp_path, None)
            if kind == "s3":
                request.getfixturevalue("s3")
                inner: Objects = open_objects(f"s3://{BUCKET}/{re.sub(r'[^a-z0-9]', '-', request.node.name.lower())}")
            else:
                inner = MemoryObjects()
            if kind != "local":
                place.objects = Watched(inner, lambda: place.now_s)
            await test(place)

        asyncio.run(run())

    return play


def grown(storage: LocalStorage, number: int, body: bytes = b"") -> str:
    """Have a segment, and return its name."""
    name = storage.named(str(number), "ts")
    temp = storage.temp(name)
    temp.write_bytes(body or b"segment %d" % number)
    storage.commit(temp, f"source/{name}")
    return name


def playlist(*names: str, first: int = 1) -> str:
    listed = "".join(f"#EXTINF:4.000,\n{name}\n" for name in names)
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{first}\n{listed}"


def without_epoch(body: bytes | None) -> str | None:
    return None if body is None else re.sub(r"(?m)^#hlsrelay-epoch:\d+\n", "", body.decode())
