"""Which encoders the ffmpeg at hand really has: asked once, and hardware has to show that it works on this machine.

That ffmpeg lists an encoder says that it was compiled in, not that there is a device, a driver and a right to use them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import structlog

from hlsrelay.codecs import Target, VideoEncoder, candidates
from hlsrelay.errors import ChildError
from hlsrelay.model import Codec
from hlsrelay.processes import Children, Limits, Stdout

_ROW = re.compile(r" V\S{5} (\S+)")  # of `ffmpeg -encoders`
_LIBAVCODEC = re.compile(r"libavcodec +(\d+)\.")  # of its banner
_SIDE_BY_SIDE = 61  # ffmpeg 7.0
_DEADLINE_S = 20.0
_LIMITS = Limits(cpu_s=20, open_files=64, niceness=10)
_TRIAL = Target(320, 192, Fraction(25), 500)

log = structlog.get_logger(__name__)


class Offers:
    """The encoders of *ffmpeg*, an operator's *preferred* ones first; or of *newer*, where *ffmpeg* is older than 7.0 and that is not."""

    def __init__(self, ffmpeg: Path, children: Children, preferred: tuple[str, ...] = (), newer: Path | None = None) -> None:
        self.ffmpeg = ffmpeg
        """The one to use, known once encoders were asked for."""
        self._newer = newer
        self._children = children
        self._preferred = preferred
        self._listed: frozenset[str] | None = None
        self._chosen: dict[Codec, VideoEncoder | None] = {}
        self._asking = asyncio.Lock()
        self.side_by_side = False
        """Whether this ffmpeg, as from 7.0 on, runs decoder, filters and each encoder side by side. Known once encoders were asked for."""

    async def encoders(self, codecs: Iterable[Codec]) -> Mapping[Codec, VideoEncoder]:
        """Return what each of *codecs* is encoded with; one that nothing here can encode is left out. Raises ChildError."""
        wanted = set(codecs)
        async with self._asking:
            for codec in wanted - self._chosen.keys():
                self._chosen[codec] = await self._first_that_works(codec)
        return {codec: encoder for codec in wanted if (encoder := self._chosen[codec])}

    async def _first_that_works(self, codec: Codec) -> VideoEncoder | None:
        if self._listed is None:
            self._listed = await self._ask(self.ffmpeg)
            if self._newer and not self.side_by_side:
                listed = await self._ask(self._newer)
                if self.side_by_side:
                    log.info("ffmpeg.chosen", ffmpeg=str(self._newer), instead_of=str(self.ffmpeg), reason="that is older than 7.0")
                    self.ffmpeg, self._listed = self._newer, listed
        reasons: list[str] = []
        for encoder in candidates(codec, self._preferred):
            reason = "not in this ffmpeg" if encoder.name not in self._listed else await self._failure(encoder) if encoder.hardware else ""
            if not reason:
                if reasons:
                    log.warning("encoder.fell_back", codec=codec, encoder=encoder.name, instead_of="; ".join(reasons))
                return encoder
            reasons.append(f"{encoder.name}: {reason}")
        log.warning("encoder.none", codec=codec, tried="; ".join(reasons))
        return None

    async def _ask(self, ffmpeg: Path) -> frozenset[str]:
        argv = [str(ffmpeg), "-encoders"]
        names: frozenset[str] = frozenset()
        async with self._children.spawn(argv, purpose="list encoders", limits=_LIMITS, stdout=Stdout.LINES) as child:
            with suppress(TimeoutError):
                async with asyncio.timeout(_DEADLINE_S):
                    names = frozenset([found[1] async for line in child.lines() if (found := _ROW.match(line))])
                    await child.wait()
            if not names:
                raise ChildError("ffmpeg does not say which encoders it has", argv=argv, exit_code=None, stderr_tail=child.stderr_tail)
            version = _LIBAVCODEC.search(child.stderr_tail)
        self.side_by_side = version is not None and int(version[1]) >= _SIDE_BY_SIDE
        return names

    async def _failure(self, encoder: VideoEncoder) -> str:
        """Return why *encoder* can't encode a quarter of a second here; empty if it can."""
        source = f"testsrc2=size={_TRIAL.width}x{_TRIAL.height}:rate=25:duration=0.24"
        argv = [
            str(self.ffmpeg),
            "-hide_banner",
            "-nostdin",
            "-nostats",
            "-loglevel",
            "error",
            *encoder.device,
            "-f",
            "lavfi",
            "-i",
            source,
        ]
        argv += ["-vf", encoder.upload, "-c:v", encoder.name, *encoder.options(_TRIAL), "-f", "null", "-"]
        try:
            finished = await self._children.run(argv, purpose=f"try {encoder.name}", deadline_s=_DEADLINE_S, limits=_LIMITS)
        except ChildError as error:
            return str(error)
        words = [line.strip() for line in finished.stderr_tail.splitlines() if line.strip()]
        return "" if finished.exit_code == 0 else (words[0] if words else f"ffmpeg ended with {finished.exit_code}")
