"""Our ends of a child's pipes. What nobody reads stops the child for good, so all but `Lines` are read whenever there is something."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from typing import IO

from hlsrelay.progress import Progress, parse

TAIL_BYTES = 4096

_CHUNK_BYTES = 64 * 1024
_LAST_READS = 32  # after the exit: what a pipe can hold, and no more if a stranger goes on writing
_MOST_LINE_BYTES = 1024 * 1024


class Pipe(ABC):
    """Reads *pipe* as something comes, until either end is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pipe: IO[bytes]) -> None:
        self._loop = loop
        self._pipe = pipe
        os.set_blocking(pipe.fileno(), False)
        loop.add_reader(pipe.fileno(), self._on_readable)

    def finish(self) -> None:
        """Take what is left after the child's end, and close."""
        for _ in range(_LAST_READS):
            if self._pipe.closed or not self._take():
                break
        self.close()

    def close(self) -> None:
        """Read no more; a child that goes on writing is told by SIGPIPE."""
        if not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()

    def _on_readable(self) -> None:
        self._take()

    def _take(self) -> bool:
        """Read once; return whether there may be more now."""
        try:
            chunk = os.read(self._pipe.fileno(), _CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            return False
        self._got(chunk)
        return True

    @abstractmethod
    def _got(self, chunk: bytes) -> None:
        """Take what was read."""


class Tail(Pipe):
    """Keeps the last 4 KiB."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pipe: IO[bytes]) -> None:
        self._tail = b""
        super().__init__(loop, pipe)

    @property
    def text(self) -> str:
        """The last 4 KiB so far."""
        return self._tail.decode(errors="replace")

    def _got(self, chunk: bytes) -> None:
        self._tail = (self._tail + chunk)[-TAIL_BYTES:]


class Reports(Pipe):
    """Keeps what ffmpeg's `-progress` told last."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pipe: IO[bytes]) -> None:
        self.progress: Progress | None = None
        self._rest = b""
        self._block: dict[str, str] = {}
        super().__init__(loop, pipe)

    def _got(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[-TAIL_BYTES:]
        for line in lines:
            name, _, value = line.decode(errors="replace").partition("=")
            if name == "progress":  # the last line of a block
                self.progress, self._block = parse(self._block), {}
            elif name in ("frame", "out_time_us", "total_size", "speed"):
                self._block[name] = value


class Lines(Pipe):
    """Gives lines; reads no further than a line and a bit ahead."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pipe: IO[bytes]) -> None:
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._news = asyncio.Event()
        super().__init__(loop, pipe)

    async def read(self) -> AsyncIterator[str]:
        """Yield line by line, without line ends, until the pipe is closed."""
        while True:
            while self._lines:
                yield self._lines.popleft().decode(errors="replace")
            if self._pipe.closed:
                return
            self._news.clear()
            self._loop.add_reader(self._pipe.fileno(), self._on_readable)
            await self._news.wait()

    def close(self) -> None:
        """See Pipe: what came last is a line, too."""
        if not self._pipe.closed:
            super().close()
            if self._rest:
                self._lines.append(self._rest)
                self._rest = b""
            self._news.set()

    def _on_readable(self) -> None:
        self._take()
        if self._lines and not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())  # until somebody has read them

    def _got(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[:_MOST_LINE_BYTES]
        self._lines += lines
        if lines:
            self._news.set()
