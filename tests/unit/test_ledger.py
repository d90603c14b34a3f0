"""A record is what the progress is, however much of it is taken over from the record before."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hlsrelay.hls.numbering import REMEMBERED
from hlsrelay.hls.window import Progress, Retired
from hlsrelay.ledger import LocalLedger
from hlsrelay.model import Entry, Position, Seen
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
