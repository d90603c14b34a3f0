"""Children in virtual time that pass for ffmpeg: they take the CPU that their command would, share the cores, and copy their source.

What they write therefore passes the check that a rung has to pass: the source's own pictures at the source's own moments.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from hlsrelay.processes import Children, Finished
from tests.virtual import elapse

STEP_S = 0.05
CPU_S = {720: 1.4, 480: 0.6, 360: 0.4}
"""CPU seconds of a rung's segment by its height; DECODE_S for decoding, COPY_S where nothing is."""
DECODE_S = 0.6
COPY_S = 0.05


class FakeFfmpeg:
    """processes.Children, as far as the encoder uses it, on a machine of so many *cores*; one job can use *parallel* of them."""

    def __init__(self, cores: float = 2.0, parallel: float = 1.75) -> None:
        self.cores, self.parallel = cores, parallel
        self.failing: set[str] = set()
        """Streams whose jobs fail; `<stream> <threads>`: those on so many threads."""
        self.began: list[tuple[float, str, int]] = []
        """When what began, on how many threads."""
        self.running = 0
        self.most_running = 0

    def children(self) -> Children:
        """Return it as what it passes for."""
        return cast(Children, self)

    @asynccontextmanager
    async def spawn(self, argv: Sequence[str], **_: Any) -> AsyncIterator[FakeFfmpeg]:
        """Tell which encoders there are, which is all that is asked so."""
        assert "-encoders" in argv
        yield self

    async def lines(self) -> AsyncIterator[str]:
        yield " V....D libx264  H.264"

    stderr_tail = "  libavcodec     63.  1.102 / 63.  1.102"

    async def wait(self) -> None:
        """It has told all."""

    async def run(self, argv: Sequence[str], *, purpose: str, **_: Any) -> Finished:
        """See Children."""
        loop = asyncio.get_running_loop()
        began_s, stream = loop.time(), purpose.split()[1]
        threads = int(argv[list(argv).index("-threads") + 1])
        self.began.append((began_s, stream, threads))
        command = " ".join(argv)
        heights = re.findall(r"scale=\d+:(\d+)", command)
        cpu_s = DECODE_S + sum(CPU_S[int(height)] for height in heights) if heights else COPY_S
        fails = {stream, f"{stream} {threads}"} & self.failing
        left_s = 0.1 if fails else cpu_s
        source, *outputs = re.findall(r" file:(\S+)", command.replace("concat:", "file:"))
        for output in outputs:
            Path(output).touch()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            while left_s > 0:
                await elapse(STEP_S)
                left_s -= STEP_S * min(self.parallel, threads, self.cores / self.running)
        finally:
            self.running -= 1
        if not fails:
            for output in outputs:
                shutil.copyfile(source.rpartition("|")[2], output)
        return Finished(tuple(argv), 1 if fails else 0, "no such luck" if fails else "", loop.time() - began_s, cpu_s)
