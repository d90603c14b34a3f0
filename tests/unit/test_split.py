"""How a segment of MPEG-TS that lasts too long is cut, in streams made by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlsrelay.media.h264 import H264, HEVC, MPEG2, Access, access
from hlsrelay.media.info import PTS_MODULUS
from hlsrelay.media.split import Slice, split, split_freely
from tests.unit.cut_by_hand import (
    AES,
    REST_OF_PICTURE,
    SECOND,
    SOUND_PMT,
    TABLES,
    coded,
    durations,
    lawful,
    picture,
    pictures,
    with_dts,
)
from tests.unit.test_media_probe import PAT, packet, pes, sound


def test_a_segment_is_cut_at_its_idr_pictures_nearest_to_equal_parts() -> None:
    data = pictures(10, idr_every_s=1)
    slices = split(data, None, 10.0, 3, 4.5)
    assert slices is not None
    assert durations(slices) == [3, 4, 3]
    assert all(one.independent for one in slices)
    assert all(data[one.start : one.end].startswith(TABLES + picture(at_s, idr=True)) for one, at_s in zip(slices, (0, 3, 7), strict=True))
    lawful(slices, data, 10.0, 3, 4.5)


def test_a_picture_in_the_middle_is_a_cut_only_where_idr_pictures_do_not_do() -> None:
    slices = split(pictures(12, idr_every_s=6), None, 12.0, 4, 4.5)
    assert durations(slices) == [3, 3, 3, 3]
    assert slices is not None
    assert [one.independent for one in slices] == [True, False, True, False]


def test_a_cut_is_in_a_place_without_an_idr_if_there_is_none() -> None:
    data = pictures(10, idr_every_s=60)
    slices = split(data, None, 10.0, 3, 4.5)
    assert durations(slices) == [3.3, 3.4, 3.3]
    assert slices is not None
    assert [one.independent for one in slices] == [True, False, False]
    assert data[slices[1].start :].startswith(picture(3.3))


def test_pictures_with_tables_before_them_are_cut_at_first() -> None:
    data = pictures(4, idr_every_s=60) + TABLES + pictures(10, idr_every_s=60)[len(TABLES) * 1 + 40 * 376 :]
    slices = split(data, None, 10.0, 2, 9.0)
    assert durations(slices) == [4, 6]
    assert slices is not None
    assert data[slices[1].start :].startswith(TABLES + picture(4))


def test_an_idr_without_tables_begins_with_its_own_packet_and_is_not_independent() -> None:
    data = pictures(10, idr_every_s=5, tables=False)
    slices = split(data, None, 10.0, 2, 6.0)
    assert slices is not None
    assert data[slices[1].start :].startswith(picture(5, idr=True))
    assert [one.independent for one in slices] == [True, False]


def test_a_pat_without_a_pmt_is_no_beginning() -> None:
    data = pictures(5, idr_every_s=5) + packet(PAT) + picture(5, idr=True) + picture(6)
    slices = split(data, None, 7.0, 2, 6.0)
    assert slices is not None
    assert data[slices[1].start :].startswith(picture(5, idr=True))
    assert not slices[1].independent


def test_an_idr_is_seen_behind_a_packet_full_of_captions() -> None:
    captions = with_dts(0x100, 4 * SECOND, 4 * SECOND, b"\0\0\1\x06" + b"\x55" * 140)
    data = pictures(4, idr_every_s=5) + TABLES + captions + bytes((0x47, 0x01, 0x00, 0x10)) + coded(idr=True).ljust(184, b"\x55")
    slices = split(data + picture(5) + picture(6), None, 7.0, 2, 6.0)
    assert durations(slices) == [4, 3]
    assert slices is not None
    assert slices[1].independent


def test_tables_in_the_init_section_make_every_idr_independent() -> None:
    data = pictures(10, idr_every_s=5, tables=False)[len(TABLES) :]
    slices = split(data, TABLES, 10.0, 2, 6.0)
    assert slices is not None
    assert [one.independent for one in slices] == [True, True]


def test_sound_between_tables_and_picture_goes_with_them() -> None:
    data = pictures(5, idr_every_s=5) + TABLES + sound(5 * SECOND) + picture(5, idr=True) + picture(6)
    slices = split(data, None, 7.0, 2, 6.0)
    assert slices is not None
    assert data[slices[1].start :].startswith(TABLES + sound(5 * SECOND) + picture(5, idr=True))
    assert slices[1].independent


def test_the_rest_of_a_picture_stays_with_it_and_not_with_the_tables_that_come_before_its_end() -> None:
    data = pictures(5, idr_every_s=5) + TABLES + REST_OF_PICTURE + picture(5, idr=True) + picture(6)
    slices = split(data, None, 7.0, 2, 6.0)
    assert slices is not None
    assert data[slices[1].start :].startswith(picture(5, idr=True))
    assert not slices[1].independent


def test_a_recovery_point_is_better_than_any_other_picture_and_not_independent() -> None:
    data = TABLES + b"".join(picture(tenth / 10, idr=not tenth, random_access=tenth in (0, 40)) for tenth in range(100))
    slices = split(data, None, 10.0, 2, 9.0)
    assert durations(slices) == [4, 6]
    assert slices is not None
    assert not slices[1].independent


@settings(deadline=None)
@given(st.integers(0, PTS_MODULUS - 1))
def test_the_wrap_of_the_clock_changes_nothing(origin: int) -> None:
    for every_s in (2, 60):
        assert split(pictures(10, idr_every_s=every_s, origin=origin), None, 10.0, 3, 4.5) == split(
            pictures(10, idr_every_s=every_s), None, 10.0, 3, 4.5
        )


def test_pictures_out_of_order_are_measured_by_when_they_are_decoded() -> None:
    """I0 P4 b2 B1 B3 and so on: shown two pictures after they are decoded at the earliest."""
    shown = [0] + [base + step for base in range(0, 96, 4) for step in (4, 2, 1, 3)]
    data = TABLES + b"".join(with_dts(0x100, (pts + 2) * 9000, index * 9000, coded(idr=not index)) for index, pts in enumerate(shown))
    assert durations(split(data, None, 9.7, 2, 5.0)) == [4.8, 4.9]


def test_pictures_out_of_order_without_dts_are_measured_by_the_earliest_that_follows() -> None:
    shown = [0] + [base + step for base in range(0, 96, 4) for step in (4, 2, 1, 3)]
    data = TABLES + b"".join(pes(0x100, pts * 9000, coded(idr=not index)) for index, pts in enumerate(shown))
    slices = split(data, None, 9.7, 2, 5.0)
    assert slices is not None
    assert durations(slices) == [4.9, 4.8]
    assert (slices[0].end - 376) // 188 == 49


def test_the_durations_of_idr_pictures_are_when_they_are_shown() -> None:
    late = [with_dts(0x100, (index + 2 + (index >= 5)) * SECOND, index * SECOND, coded(idr=index in (0, 5))) for index in range(10)]
    assert durations(split(TABLES + b"".join(late), None, 11.0, 2, 7.0)) == [6, 5]


def test_a_picture_that_comes_after_the_end_is_no_place_to_cut() -> None:
    assert split(TABLES + picture(0, idr=True) + picture(10, idr=True), None, 10.0, 2, 12.0) is None
    assert durations(split(TABLES + picture(0, idr=True) + picture(9.9, idr=True), None, 10.0, 2, 12.0)) == [9.9, 0.1]


def test_a_picture_that_contradicts_an_idr_is_no_place_to_cut() -> None:
    """Decoded at 5.2 s, and the IDR after it is shown 5 s after the first one: it was held back less."""
    held_back = [(0, 0.5, True), (2, 2.5, False), (5.2, 5.3, False), (5.3, 5.5, True), (6, 6.5, False)]
    data = TABLES + b"".join(
        with_dts(0x100, round(shown_s * SECOND), round(decoded_s * SECOND), coded(idr=idr)) for decoded_s, shown_s, idr in held_back
    )
    assert durations(split(data, None, 7.0, 2, 5.5)) == [5, 2]


def test_sound_alone_is_cut_at_its_pes_and_every_slice_is_independent_where_tables_come_first() -> None:
    frames = [sound(second * SECOND // 2) for second in range(20)]
    data = packet(PAT) + SOUND_PMT + b"".join(frames[:10]) + packet(PAT) + SOUND_PMT + b"".join(frames[10:])
    slices = split(data, None, 10.0, 2, 6.0)
    assert slices is not None
    assert durations(slices) == [5, 5]
    assert data[slices[1].start :].startswith(packet(PAT) + SOUND_PMT + frames[10])
    assert [one.independent for one in slices] == [True, True]


def test_a_segment_that_begins_in_the_middle_of_pictures_is_not_independent() -> None:
    slices = split(pictures(10, idr_every_s=2)[len(TABLES) + 376 :], None, 9.9, 3, 4.5)
    assert slices is not None
    assert [one.independent for one in slices] == [False, True, True]
    assert durations(slices)[0] in (1.9, 3.9)


def test_what_comes_before_the_first_packet_and_a_cut_last_one_stay_in_the_slices() -> None:
    data = b"junk" + pictures(10, idr_every_s=2) + b"\x47\x01"
    slices = split(data, None, 10.0, 3, 4.5)
    assert slices is not None
    lawful(slices, data, 10.0, 3, 4.5)
    assert data[slices[1].start :].startswith(TABLES)


def test_pes_that_go_on_with_a_picture_are_no_place_to_cut() -> None:
    rest = with_dts(0x100, 5 * SECOND, 5 * SECOND, b"\0\0\1\x41\x12")  # first_mb_in_slice is not 0
    data = TABLES + picture(0, idr=True) + rest + picture(6)
    assert split(data, None, 10.0, 2, 5.5) is None
    assert durations(split(data, None, 10.0, 2, 6.5)) == [6, 4]


def test_a_clock_that_jumps_inside_the_segment_leaves_only_what_can_be_measured() -> None:
    data = TABLES + b"".join(picture(at_s, idr=True) for at_s in (0, 1, 2, 3, 900, 901, 902))
    assert durations(split(data, None, 6.0, 2, 5.0)) == [3, 3]
    assert split(data, None, 10.0, 2, 6.0) is None


@pytest.mark.parametrize("limit_s", [3.0, 3.0000005])
def test_the_longest_duration_is_not_reached(limit_s: float) -> None:
    assert split(pictures(9, idr_every_s=3), None, 9.0, 3, 3.1) is not None
    assert split(pictures(9, idr_every_s=3), None, 9.0, 3, limit_s) is None


def test_one_piece_is_the_whole() -> None:
    data = pictures(4, idr_every_s=2)
    assert split(data, None, 4.0, 1, 4.5) == (Slice(0, len(data), 4.0, True),)
    assert split(data, None, 4.4999999, 1, 4.5) is None


@pytest.mark.parametrize(
    ("data", "init"),
    [
        (b"", None),
        (AES, None),
        (bytes.fromhex("fff14c8001bffc") + b"\0" * 6, None),
        (b"WEBVTT\n\n00:00.000 --> 00:10.000\nwords\n", None),
        (b"<!DOCTYPE html><html></html>", None),
        (packet(b"\x47\x1f\xff\x10") * 50, None),
        (pictures(10, idr_every_s=2)[len(TABLES) : len(TABLES) + 15 * 376], None),  # no tables
        (TABLES + picture(0, idr=True) + REST_OF_PICTURE * 100, None),
        (pictures(10, idr_every_s=2).replace(b"\x47\x41\x00\x30", b"\x47\x41\x00\xb0"), None),  # scrambled
        (TABLES + b"".join(sound(second * SECOND).replace(b"\x47\x41\x01", b"\x47\x41\x09") for second in range(10)), None),
    ],
    ids=["nothing", "AES-128", "AAC", "WebVTT", "HTML", "stuffing", "no tables", "one picture", "scrambled", "neither picture nor sound"],
)
def test_what_can_not_be_cut_is_none(data: bytes, init: bytes | None) -> None:
    assert split(data, init, 10.0, 2, 6.0) is None


@pytest.mark.parametrize("duration_s", [0.0, -1.0, 12.0, float("nan"), float("inf")])
def test_durations_that_make_no_sense_are_none(duration_s: float) -> None:
    assert split(pictures(10, idr_every_s=1), None, duration_s, 2, 6.0) is None


@pytest.mark.parametrize("pieces", [-1, 0, 1, 11, 100, 10**9])
def test_a_number_of_pieces_that_can_not_be_is_none(pieces: int) -> None:
    assert split(TABLES + b"".join(picture(at_s, idr=True) for at_s in range(10)), None, 10.0, pieces, 6.0) is None


@pytest.mark.parametrize(
    ("codec", "elementary", "expected"),
    [
        (H264, "0000000109f0 00000001 6588", Access.IDR),
        (H264, "0000000109f0 000001 419a", Access.OTHER),
        (H264, "000001 67640028 000001 0688 000001 419a", Access.RANDOM),
        (H264, "000001 419a 000001 67 000001 6588", Access.OTHER),
        (H264, "000001 4112", Access.REST),
        (H264, "000001 0688 000001 41", None),
        (H264, "0102030405", None),
        (HEVC, "000001 460150 000001 2601af", Access.IDR),
        (HEVC, "000001 2801af", Access.IDR),
        (HEVC, "000001 2a01af", Access.RANDOM),
        (HEVC, "000001 0201d0", Access.OTHER),
        (HEVC, "000001 020150", Access.REST),
        (HEVC, "000001 4201ff", None),
        (MPEG2, "000001b31600f013 000001b800080040 000001000008", Access.IDR),
        (MPEG2, "000001b31600f013 000001b800080000 000001000008", Access.RANDOM),
        (MPEG2, "000001 000050", Access.OTHER),
        (MPEG2, "000001b31600f013", None),
    ],
)
def test_what_a_picture_begins_with(codec: str, elementary: str, expected: Access | None) -> None:
    assert access(codec, bytes.fromhex(elementary)) is expected


@pytest.mark.parametrize(
    ("duration_s", "idr_at", "expected"),
    [
        (10, (0, 25, 50, 75), [2.5, 2.5, 2.5, 2.5]),
        (8.4, (0, 42), [4.2, 4.2]),
        (10, (0, 20, 40, 60, 80), [4, 2, 4]),
        (10, (0,), [3.3, 3.4, 3.3]),
        (10, (0, 30), [3, 3.7, 3.3]),
        (4, (0, 20), [4]),
    ],
)
def test_the_number_of_slices_is_the_one_that_suits_the_media(duration_s: float, idr_at: tuple[int, ...], expected: list[float]) -> None:
    data = b"".join(
        (TABLES if tenth in idr_at else b"") + picture(tenth / 10, idr=tenth in idr_at) for tenth in range(round(duration_s * 10))
    )
    slices = split_freely(data, None, float(duration_s), 4.5)
    assert durations(slices) == expected
    assert slices == split(data, None, float(duration_s), len(expected), 4.5)


@pytest.mark.parametrize("nonsense_s", [0.0, -1.0, float("nan"), float("inf")])
def test_no_number_of_slices_suits_durations_that_make_no_sense(nonsense_s: float) -> None:
    assert split_freely(pictures(10, idr_every_s=1), None, nonsense_s, 4.5) is None
    assert split_freely(pictures(10, idr_every_s=1), None, 10.0, nonsense_s) is None
    assert split_freely(pictures(10, idr_every_s=1), None, 1000.0, 4.5) is None
    assert split_freely(AES, None, 10.0, 4.5) is None
