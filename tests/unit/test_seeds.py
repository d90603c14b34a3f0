"""What the fuzzer once found, and what reaches the far corners: replayed, and never slower than its size allows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hlsrelay.hls import parse as parsing
from tests.fuzz import FOREIGN, SEEDS, Coverage, Run, play, read, seeds, smaller, written
from tests.strangers import generated


@pytest.mark.parametrize("path", seeds(), ids=lambda path: path.name)
def test_no_seed_breaks_anything(path: Path) -> None:
    play(read(path.read_bytes()))


def test_there_are_seeds_and_they_are_small() -> None:
    assert len(seeds()) >= 10
    assert sum(path.stat().st_size for path in SEEDS.iterdir()) < 400_000


def test_no_seed_holds_words_of_strangers() -> None:
    assert not [path.name for path in seeds() if path.name.startswith(FOREIGN)]


def test_a_history_is_read_as_it_was_written() -> None:
    history = generated(random.Random(5))
    assert read(written(history)) == history


def test_a_short_run_finds_nothing() -> None:
    run = Run(random.Random(1), [read(path.read_bytes()) for path in seeds()], saving=False)
    for _ in range(100):
        run.one()
    assert not {kind: text for kind, text in run.failures.items() if not kind.startswith("slow")}  # time is for the long run


def test_the_fuzzer_notices_a_parser_that_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A law of its own: broken once on purpose, it is seen, made smaller and told."""

    def broken(*_: object) -> str:
        raise RuntimeError("leaked")

    history = [(0, b"#EXTM3U\n#EXTINF:4,\na.ts\n" + b"#EXT-X-CUE-OUT:1\n#EXTINF:4,\nb.ts\n" * 5)]
    play(history)
    monkeypatch.setattr(parsing, "_segment", broken)
    with pytest.raises(RuntimeError) as caught:
        play(history)
    assert len(smaller(history, caught.value)[0][1]) < len(history[0][1]) / 2


def test_coverage_counts_what_is_new_only() -> None:
    coverage = Coverage()
    history = generated(random.Random(3))
    assert coverage.of(lambda: play(history)) > 100
    assert coverage.of(lambda: play(history)) == 0
