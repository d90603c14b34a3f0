"""What holds of cutting whatever the bytes: the best cut where there is one, no broken law, and no time lost."""

from __future__ import annotations

import time
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlsrelay.media.split import split
from tests.unit.cut_by_hand import (
    INIT,
    TABLES,
    coded,
    fragment,
    lawful,
    picture,
    pictures,
)
from tests.unit.test_media_probe import PAT, PMT, packet, pes, sound


@settings(deadline=None)
@given(st.data())
def test_there_is_an_answer_whenever_there_can_be_one_and_no_better_one(draw: st.DataObject) -> None:
    steps = draw.draw(st.lists(st.tuples(st.integers(1, 30), st.booleans(), st.booleans()), min_size=1, max_size=9))
    pieces = draw.draw(st.integers(2, 5))
    longest_s = draw.draw(st.integers(2, 60)) / 10 + 0.05
    tenth, cuts, packets = 0, [], [TABLES, picture(0, idr=True)]
    for step, idr, tables in steps:
        tenth += step
        cuts.append((tenth / 10, (0 if idr else 1_000_000) + (0 if tables else 100)))
        packets += [TABLES if tables else b"", picture(tenth / 10, idr=idr)]
    duration_s = (tenth + 3) / 10
    data = b"".join(packets)
    possible = [
        sum(cost + (at_s / duration_s - number / pieces) ** 2 for number, (at_s, cost) in enumerate(chosen, 1))
        for chosen in combinations(cuts, pieces - 1)
        if all(later - earlier < longest_s for earlier, later in pairwise([0, *(at_s for at_s, _ in chosen), duration_s]))
    ]
    slices = split(data, None, duration_s, pieces, longest_s)
    lawful(slices, data, duration_s, pieces, longest_s)
    assert (slices is None) == (not possible)
    if slices is not None:
        ends = [sum(one.duration_s for one in slices[:count]) for count in range(1, pieces)]
        prices = {round(at_s, 6): cost for at_s, cost in cuts}
        found = sum(prices[round(at_s, 6)] + (at_s / duration_s - number / pieces) ** 2 for number, at_s in enumerate(ends, 1))
        assert found == pytest.approx(min(possible), abs=1e-6)


WHOLE = pictures(3, idr_every_s=1)
FRAGMENTS = b"".join(fragment(2, second * 300) for second in range(10))


@settings(deadline=None)
@given(st.binary(max_size=2000), st.one_of(st.none(), st.binary(max_size=200)), st.floats(), st.integers(-1, 12), st.floats())
def test_random_bytes_break_no_law(data: bytes, init: bytes | None, duration_s: float, pieces: int, longest_s: float) -> None:
    for head in (b"", b"\0\0\0\x10moof", b"\0\0\0\x10styp", b"\x47", TABLES, TABLES + picture(0, idr=True)):
        lawful(split(head + data, init or INIT, duration_s, pieces, longest_s), head + data, duration_s, pieces, longest_s)


@settings(deadline=None, max_examples=300)
@given(st.data(), st.sampled_from([WHOLE, FRAGMENTS]), st.integers(1, 8), st.integers(3, 30))
def test_mutated_segments_break_no_law(draw: st.DataObject, whole: bytes, pieces: int, tenths: int) -> None:
    data, init = bytearray(whole), bytearray(INIT)
    for _ in range(draw.draw(st.integers(0, 20))):
        target = draw.draw(st.sampled_from([data, data, data, init]))
        target[draw.draw(st.integers(0, len(target) - 1))] = draw.draw(st.integers(0, 255))
    cut = bytes(data[: draw.draw(st.integers(1, len(data)))])
    longest_s = tenths / 10 + 0.05
    lawful(split(cut, bytes(init), 3.0, pieces, longest_s), cut, 3.0, pieces, longest_s)


def test_a_big_segment_is_cut_without_holding_up_everybody_else() -> None:
    filler = bytes((0x47, 0x01, 0x00, 0x10)) + b"\x55" * 184
    frames = [picture(n / 60, idr=not n) + filler * 54 + sound(n * 1500) for n in range(600)]
    data = TABLES + b"".join(frames)
    assert len(data) > 6_000_000
    assert min(_seconds(data) for _ in range(5)) < 0.1  # 10 ms are meant; the machines that tests run on are slow and busy


@pytest.mark.parametrize(
    "data",
    [
        b"\x47" * (4 << 20),
        TABLES + pes(0x100, 0, b"\0\0\1" * 50) * 6_000,
        TABLES + b"".join(pes(0x100, n, coded()) for n in range(6_000)),
        TABLES + (packet(PAT) * 60 + packet(PMT) + picture(0)) * 400,
        TABLES + (sound(0) * 63 + picture(0)) * 400,
        fragment(2, 0) * 6000,
        b"".join(fragment(1 + n % 2, 0, tfdt=False) for n in range(6000)),
    ],
    ids=range(7),
)
def test_bytes_that_mean_harm_are_done_with_soon(data: bytes) -> None:
    assert _seconds(data) < 1


def _seconds(data: bytes) -> float:
    begun = time.process_time()
    split(data, INIT, 10.0, 3, 4.5)
    return time.process_time() - begun
