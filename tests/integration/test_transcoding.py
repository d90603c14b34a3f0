"""What the encoder is told of a segment: which one came before it, and where in the source's sound it begins."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hlsrelay.desk import Desk
from hlsrelay.downloading import Clip
from hlsrelay.encoder import Encoded
from hlsrelay.errors import EncodeError
from hlsrelay.media.info import PTS_MODULUS
from hlsrelay.model import SOURCE, Made, MediaFile, Numbered, Position
from hlsrelay.recipe import EncodeJob
from hlsrelay.storage import LocalStorage
from hlsrelay.transcoding import READ_THROUGH_EVERY, Transcoding
from tests.playlists import T0, live, stream
from tests.unit.test_media_probe import picture, segment, sound


class Remembering:
    """An encoder that can't, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.jobs: list[EncodeJob] = []

    async def encode(self, job: EncodeJob) -> Encoded:
        self.jobs.append(job)
        raise EncodeError("not here")


def test_sound_is_counted_on_from_segment_to_segment_and_anew_after_a_discontinuity(tmp_path: Path) -> None:
    encoder = Remembering()
    listed = live(1, 2, 3, 4).snapshot().segments
    position = Position("", 1, 0, 0, (), T0, T0)

    async def main(storage: LocalStorage) -> None:
        desk: Any = SimpleNamespace(
            tools=SimpleNamespace(storage=storage, encoder=encoder),
            track=SimpleNamespace(name=SOURCE),
            stream=stream(),
            alone=True,
            progress=None,
        )
        transcoding = Transcoding(cast("Desk", desk))
        for one, pts in zip(listed, (PTS_MODULUS - 2_000, PTS_MODULUS - 79, 1_841, 90_000), strict=True):
            body = segment(sound(pts))
            storage.write(f"{SOURCE}/{one.sequence}.ts", body)
            numbered = Numbered(one.sequence, one, one.sequence == 4, T0, 4, stream(ladder="audio:96"), position)
            await transcoding(Clip(numbered, MediaFile(f"{one.sequence}.ts", len(body))))

    with LocalStorage(tmp_path, "news") as storage:
        asyncio.run(main(storage))
    first = round((PTS_MODULUS - 2_000) * 8 / 15)
    # 1921 and 1920 ticks, rounded as they are, are frames of 1024 samples each.
    assert [job.first_sample for job in encoder.jobs] == [first, first + 1024, first + 2048, 48_000]
    assert [job.previous and job.previous.name for job in encoder.jobs] == [None, "1.ts", "2.ts", None]


@pytest.mark.parametrize(("name", "turn"), [("news", 20), ("sport", 7)])
def test_pass_through_reads_few_segments_through_and_notices_all_the_same_where_time_does_not_go_on(
    name: str, turn: int, tmp_path: Path
) -> None:
    """Each stream has a turn of its own: those that count alike are not all read through at once."""
    read: list[str] = []
    jumps = 1 + 2 * READ_THROUGH_EVERY
    numbers = range(1, 4 * READ_THROUGH_EVERY)
    position = Position("", 1, 0, 0, (), T0, T0)

    class Counting(LocalStorage):
        def read(self, path: str) -> bytes | None:
            read.append(path)
            return super().read(path)

    async def main(storage: LocalStorage) -> list[int]:
        tools = SimpleNamespace(storage=storage, encoder=Remembering())
        desk: Any = SimpleNamespace(
            tools=tools, track=SimpleNamespace(name=SOURCE), stream=replace(stream(), id=name), alone=True, progress=None
        )
        transcoding, broken = Transcoding(cast("Desk", desk)), []
        for number in numbers:
            begins = number * 360_000 + (900_000 if number >= jumps else 0)
            body = segment(*[picture(begins + frame * 3600, idr=frame == 0) for frame in range(100)])
            storage.write(f"{SOURCE}/{number}.ts", body)
            numbered = Numbered(number, live(number).snapshot().segments[0], False, T0, 4, stream(), position)
            made = await transcoding(Clip(numbered, MediaFile(f"{number}.ts", len(body))))
            assert isinstance(made, Made)
            broken += [number] if made.entry.discontinuity else []
        return broken

    with Counting(tmp_path, "news") as storage:
        assert asyncio.run(main(storage)) == [jumps]
    assert read == [f"{SOURCE}/{number}.ts" for number in (1, *range(turn, numbers.stop, READ_THROUGH_EVERY))]
