"""A record is what the progress is, however much of it is taken over from the record before."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hlsrelay.hls.numbering import REMEMBERED
from hlsrelay.hls.window import Progress, Retired
from hlsrelay.ledger import LocalLedger, _Items, handed, handed_on, news, packed
from hlsrelay.model import SOURCE, Entry, Position, Seen
from hlsrelay.storage import LEDGER, LocalStorage

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = st.sampled_from(["/live/{}.ts", '/"recent":[]/{}.ts', "/ä,{}"])
STEPS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), NAMES, st.integers(0, 9)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(0, REMEMBERED))
def test_what_is_recorded_is_read_back_whatever_has_changed_since(
    tmp_path_factory: object, steps: list[tuple[int, int, str, int]], first: int
) -> None:
    made: Path = tmp_path_factory.mktemp("live")  # type: ignore[attr-defined]
    entries, retired = tuple[Entry, ...](), tuple[Retired, ...]()
    recent = tuple(Seen(number, f"/live/{number}.ts", T0, number, "digest") for number in range(first))
    with LocalStorage(made, "news") as storage:
        ledger = LocalLedger(storage)
        for fresh, told, name, cut in steps:
            later = (replace(one, digest=f"{one.number:x}") if index >= len(recent) - told else one for index, one in enumerate(recent))
            last = recent[-1].sequence if recent else first
            new = tuple(Seen(last + 1 + index, name.format(last), T0 + timedelta(seconds=index), last) for index in range(fresh))
            recent = (*later, *new)[-REMEMBERED:] if cut else recent[:told]
            entries = (*entries[cut % 3 :], *(Entry(one.number, 4.0, False, T0, {}, title=one.identity) for one in new))
            if told > 3 and entries:  # one in the middle comes to be another
                entries = (*entries[:1], replace(entries[0], title='"retired":[],'), *entries[1:])
            retired = (*retired[cut % 2 :], Retired((name.format(cut),), T0))
            position = Position('"recent":[]', 1, 0, last, recent, T0, T0)
            progress = Progress(position, 4, entries=entries, retired=retired)
            ledger.record(progress)
            assert storage.read(LEDGER) is not None
            assert LocalLedger(storage).resume() == progress


def test_what_was_read_of_a_record_is_not_kept_for_the_next_that_says_the_same(tmp_path: Path) -> None:
    uri = "/live/1000.ts"
    position = Position("https://origin.example/live.m3u8", 1, 0, 0, (Seen(0, uri, T0, 0),), T0, T0)
    with LocalStorage(tmp_path, "news") as storage:
        ledger = LocalLedger(storage)
        ledger.record(Progress(position, 4))
        texts = packed({SOURCE: Progress(position, 4)}), handed_on(storage)
        ours = [ledger.resume() for _ in range(2)]
    with LocalStorage(tmp_path / "other", "news") as empty:
        theirs = [news(texts[0], empty)[SOURCE] for _ in range(2)]
    seen = [progress.position.recent[0].identity for progress in (*ours, *theirs) if progress]
    assert seen == [uri] * 4
    assert len({id(one) for one in seen}) == 4
    told = [handed(texts[1] or b"") for _ in range(2)]
    names = [name for one in told if one for name in one.tracks]
    assert names == [SOURCE] * 2
    assert names[0] is not names[1]


class Counting:
    """Prints numbers, and counts them."""

    def __init__(self) -> None:
        self.printed = 0
        self.serializer = self

    def to_json(self, one: list[int]) -> bytes:
        self.printed += 1
        return str(one[0]).encode()


def test_no_more_of_a_list_is_printed_anew_than_has_changed() -> None:
    item: Any = Counting()
    written = _Items(item, 4)
    items = tuple([number] for number in range(20))
    assert written(items) == b",".join(b"%d" % number for number in range(20))
    for change, printed in ((0, 0), (1, 1), (4, 4)):
        item.printed = 0
        items = (*items[1 : len(items) - change], *([one[0] + 100] for one in items[len(items) - change :]))
        assert written(items) == b",".join(b"%d" % one[0] for one in items)
        assert item.printed == printed
