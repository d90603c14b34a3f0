"""A stream that goes on in a folder that has none of its files: numbers, times and discontinuities go on (ledger.packed, virtual time)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hlsrelay.hls.window import Progress
from hlsrelay.ledger import LocalLedger, packed, unpacked
from hlsrelay.storage import LocalStorage
from tests.integration.relaying import Watching, later, relayed, scenario


def carried(watch: Watching) -> str:
    """Return what the relay told its successors last."""
    last = next(tick.progress for tick in reversed(watch.ticks) if tick.made and tick.progress)
    return packed({"source": last})


def moves(watch: Watching, folder: Path, text: str) -> None:
    """Go on with a folder of another machine's."""
    watch.storage = LocalStorage(folder, "news").__enter__()
    watch.last = None  # what its predecessor listed before is not here
    assert unpacked(text, watch.storage)


def test_the_next_owner_goes_on_without_gap_repeat_or_discontinuity_while_the_source_lists_what_is_missing(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        later(20, lambda: watch.origin.restart("b"))  # numbers of ours are not the source's any more
        for turn in range(5):
            await relayed(watch, 60 + turn * 20)
            moves(watch, tmp_path / f"machine {turn}", carried(watch))
        await relayed(watch, 200)

    watch = scenario(tmp_path / "first", play)
    assert watch.numbers() == list(range(watch.numbers()[0], watch.numbers()[-1] + 1))
    assert watch.gaps() == []
    assert len(watch.cuts()) == 1, "the source's own"
    assert watch.relayed_exactly()
    assert watch.last is not None
    assert watch.last.discontinuity_sequence == 1


@pytest.mark.parametrize("ahead", [-3, 0, 3])
def test_a_folder_that_knows_as_much_or_more_is_left_as_it_is(tmp_path: Path, ahead: int) -> None:
    watch = scenario(tmp_path / "first", lambda watch: relayed(watch, 40))
    last = next(tick.progress for tick in reversed(watch.ticks) if tick.made and tick.progress)

    def numbered(by: int) -> Progress:
        return replace(last, position=replace(last.position, last_number=last.position.last_number + by))

    with LocalStorage(tmp_path / "next", "news") as storage:
        LocalLedger(storage).record(last)
        assert unpacked(packed({"source": numbered(ahead)}), storage) == ({"source"} if ahead > 0 else set())
        resumed = LocalLedger(storage).resume()
        assert resumed is not None
        assert resumed.position.last_number == last.position.last_number + max(ahead, 0)
        assert bool(resumed.entries) == (ahead <= 0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"source": 7}', '{"source": {"format": 99}}'])
def test_what_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    with LocalStorage(tmp_path, "news") as storage:
        assert not unpacked(text, storage)
        assert LocalLedger(storage).resume() is None


def test_what_is_carried_does_not_grow_with_the_window(tmp_path: Path) -> None:
    sizes = []
    for until_s in (100, 1000):
        watch = scenario(tmp_path / str(until_s), lambda watch, until_s=until_s: relayed(watch, until_s))  # type: ignore[misc]
        sizes.append(len(carried(watch)))
    assert max(sizes) <= 1.1 * min(sizes)
    assert max(sizes) < 4096
