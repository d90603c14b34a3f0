"""A segment as it comes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from hlsrelay.cutting import LOOKED_AT_BYTES
from hlsrelay.growing import Growing
from hlsrelay.storage import LocalStorage

EDGES = [0, 1, LOOKED_AT_BYTES - 1, LOOKED_AT_BYTES, LOOKED_AT_BYTES + 1, 3 * LOOKED_AT_BYTES]


@pytest.mark.parametrize("size", EDGES)
def test_it_reads_what_was_written_wherever_that_is(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    pread = os.pread

    def counted(file: int, length: int, at: int) -> bytes:
        read.append(at + length)
        return pread(file, length, at)

    monkeypatch.setattr(os, "pread", counted)
    with LocalStorage(tmp_path, "news") as storage, Growing(storage, "1") as file:
        for seed in range(2):  # a second attempt brings something else
            body, write = random.Random(seed).randbytes(size), file.restart()
            for at in range(0, size, 50_000):
                write(memoryview(body)[at : at + 50_000])
            for at in EDGES:
                for length in EDGES:
                    assert file.read(at, length) == body[at : at + length], (at, length)
            assert file.read(0, size + 1) == body
    assert all(end > LOOKED_AT_BYTES for end in read), "what is at hand is not read again"
    assert bool(read) == (size > LOOKED_AT_BYTES)
