"""How a segment of fMP4 that lasts too long is cut between its fragments."""

from __future__ import annotations

import pytest

from hlsrelay.media.split import split
from tests.unit.cut_by_hand import (
    INIT,
    box,
    durations,
    fragment,
)


def test_fragments_are_cut_between_with_what_announces_them() -> None:
    head = box(b"styp", b"msdh") + box(b"prft", b"date") + box(b"emsg", b"event") + box(b"sidx", b"index")
    parts = [head + fragment(2, 90_000 + second * 1000) + fragment(1, second * 48_000) for second in range(10)]
    data = b"".join(parts)
    slices = split(data, INIT, 10.0, 3, 4.5)
    assert slices is not None
    assert durations(slices) == [3, 4, 3]
    assert [data[one.start : one.end] for one in slices] == [b"".join(parts[:3]), b"".join(parts[3:7]), b"".join(parts[7:])]
    assert all(one.independent for one in slices)


def test_fragments_of_pictures_that_do_not_begin_with_an_idr_are_the_second_choice() -> None:
    data = b"".join(fragment(2, second * 1000, sync=second in (0, 4)) for second in range(10))
    slices = split(data, INIT, 10.0, 2, 7.0)
    assert durations(slices) == [4, 6]
    slices = split(data, INIT, 10.0, 2, 5.5)
    assert durations(slices) == [5, 5]
    assert slices is not None
    assert [one.independent for one in slices] == [True, False]


def test_fragments_of_sound_alone_can_be_cut_anywhere() -> None:
    slices = split(b"".join(fragment(1, second * 48_000, sync=False) for second in range(10)), INIT, 10.0, 2, 5.5)
    assert durations(slices) == [5, 5]
    assert slices is not None
    assert all(one.independent for one in slices)


def test_fragments_without_a_time_of_their_own_go_on_where_the_last_one_ended() -> None:
    data = b"".join(fragment(2, 5000, tfdt=not second) for second in range(10))
    assert durations(split(data, INIT, 10.0, 2, 5.5)) == [5, 5]


@pytest.mark.parametrize(
    ("data", "init"),
    [
        (fragment(2, 0) + fragment(2, 5000), None),
        (fragment(2, 0) + fragment(2, 5000), box(b"ftyp", b"iso5")),
        (fragment(2, 0), INIT),
        (fragment(2, 0) + fragment(1, 240_000), INIT),
        (INIT + fragment(2, 0) + fragment(2, 5000), INIT),
        (fragment(2, 0) + fragment(2, 5000, tfhd_flags=0x01), INIT),
        (fragment(2, 0) + fragment(2, 9000), INIT),
        (fragment(2, 0) + fragment(2, 5000) + b"\0\0\1\0moof", INIT),
    ],
    ids=["no init", "no tracks", "one fragment", "one of pictures", "own init", "absolute places", "too coarse", "cut short"],
)
def test_fragments_that_can_not_be_cut_are_none(data: bytes, init: bytes | None) -> None:
    assert split(fragment(2, 0) + fragment(2, 5000), INIT, 10.0, 2, 6.0) is not None
    assert split(data, init, 10.0, 2, 6.0) is None
