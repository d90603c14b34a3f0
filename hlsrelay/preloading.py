"""The stage that has each file pulled through the operator's caches before a playlist lists it.

What comes of a clip is pulled as soon as it is in the stream's folder: the source's segment while the encoder makes its rungs, the rungs
while those before them are waited for. Only from then on, when all is made, anybody waits, and not for long (caches).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

from hlsrelay.caches import Caches, Pull
from hlsrelay.desk import Desk
from hlsrelay.downloading import Clip
from hlsrelay.model import Made, MediaFile, Stream
from hlsrelay.urls import redacted
from hlsrelay.values import replace


class Preloading:
    """Does *work* on each clip, and pulls what comes of it through the caches that its stream, or the node, names."""

    def __init__(self, desk: Desk, work: Callable[[Clip], Awaitable[Made]]) -> None:
        self._desk = desk
        self._work = work
        self._under_way: list[Pull] = []
        self._trouble: dict[str, str] = {}
        self._coming = 0
        """Clips whose work has yet to be called for: none may overtake them."""

    def __call__(self, item: Clip) -> Awaitable[Made]:
        caches, stream = self._desk.tools.caches, item.numbered.stream
        bases = tuple(dict.fromkeys((*caches.everywhere, *stream.preload))) if caches else ()
        if caches is None or not (bases or self._coming):
            return self._work(item)
        self._coming += 1
        return self._pulled(item, caches, bases)

    async def _pulled(self, item: Clip, caches: Caches, bases: tuple[str, ...]) -> Made:
        stream = item.numbered.stream
        begun: dict[tuple[str, str], Pull] = {}
        if item.file:
            self._begin(caches, bases, begun, stream, self._desk.track.name, item.file)
        self._coming -= 1
        made = await self._work(item)  # called before anything is waited for: clips are looked into in their order
        with suppress(OSError):  # who publishes tells of it
            self._desk.tools.storage.keep(made.inits)  # a sweep may have taken one since
        for name, file in made.entry.files.items():
            self._begin(caches, bases, begun, stream, name, file)
        self._note(bases)
        await caches.waited(begun.values(), [base for base, text in self._trouble.items() if text])
        self._note(bases)
        cold = self._told(caches, bases)
        return replace(made, cold=cold) if cold else made

    def _begin(
        self, caches: Caches, bases: tuple[str, ...], begun: dict[tuple[str, str], Pull], stream: Stream, name: str, file: MediaFile
    ) -> None:
        """Begin to pull a file, and what it needs beside itself, through all caches; what has *begun* goes on."""
        for base in bases:
            for uri, kept in _needed(file):
                path = f"{stream.id}/{name}/{uri}"
                if (base, path) not in begun and (pull := caches.pull(base, path, kept=kept)):
                    begun[base, path] = pull
                    self._under_way.append(pull)

    def _note(self, bases: tuple[str, ...]) -> None:
        """Note what has come of this track's pulls: a cache that one failed through is in trouble until one goes well."""
        done = [one for one in self._under_way if one.task.done()]
        self._under_way = [one for one in self._under_way if not one.task.done()]
        for base in {one.base for one in done}:
            self._trouble[base] = next((one.reason for one in done if one.base == base and one.reason), "")
        self._trouble = {base: text for base, text in self._trouble.items() if base in bases}

    def _told(self, caches: Caches, bases: tuple[str, ...]) -> str:
        """Return what is wrong with the caches, as far as is known; empty where nothing is."""
        troubles = {base: self._trouble.get(base) or ("comes too late to be waited for" if caches.is_late(base) else "") for base in bases}
        return "; ".join(f"{redacted(base)} {text}" for base, text in troubles.items() if text)


def _needed(file: MediaFile) -> Iterator[tuple[str, bool]]:
    """Yield what players fetch for a file, and whether others are listed with the same."""
    yield file.uri, False
    for uri in dict.fromkeys((file.init_uri, *file.key_uris)):
        if uri:
            yield uri, True
