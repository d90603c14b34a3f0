"""Whether a file is a whole segment, told by its head and its tail."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.media.ends import Ends
from hlsrelay.media.info import PTS_MODULUS
from hlsrelay.media.whole import MOST_BOXES, Read, cut_off
from tests.unit.test_media_probe import PAT, PMT, WHOLE, packet, picture, segment, sound

NULL = b"\x47\x1f\xff\x10" + b"\xff" * 184


def reader(data: bytes) -> Read:
    return lambda at, length: data[at : at + length]


def cut(data: bytes, *, encrypted: bool = False) -> str:
    return cut_off(reader(data), len(data), encrypted=encrypted)


def lasts(data: bytes, init: bytes | None = None) -> float | None:
    return Ends(reader(data), len(data), init).lasts_s()


def box(kind: bytes, *inner: bytes) -> bytes:
    body = b"".join(inner)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full(kind: bytes, flags: int, *fields: int) -> bytes:
    return box(kind, struct.pack(f">{1 + len(fields)}I", flags, *fields))


def init_section(timescale: int = 1000) -> bytes:
    mdia = box(b"mdia", full(b"mdhd", 0, 0, 0, timescale, 0, 0), box(b"hdlr", bytes(8) + b"vide" + bytes(13)))
    return box(b"ftyp", b"iso6") + box(b"moov", box(b"trak", full(b"tkhd", 0, 0, 0, 1, 0, 0), mdia))


def fragment(begin: int, *, frames: int, each: int = 100) -> bytes:
    traf = box(b"traf", full(b"tfhd", 0x08, 1, each), full(b"tfdt", 0, begin), full(b"trun", 0x200, frames, *([500] * frames)))
    return box(b"moof", traf) + box(b"mdat", bytes(500 * frames))


def test_whole_segments_are_whole() -> None:
    assert [cut(WHOLE), cut(fragment(0, frames=40)), cut(bytes(160), encrypted=True), cut(b"WEBVTT\n\n"), cut(b"")] == [""] * 5


@pytest.mark.parametrize("length", [1, 37, 187, 189, 188 * 3 + 100, len(WHOLE) - 1])
def test_a_transport_stream_ends_with_a_packet(length: int) -> None:
    assert "no whole MPEG-TS packets" in cut(WHOLE[:length])


def test_what_stands_before_the_first_packet_is_none() -> None:
    assert cut(b"junk" + WHOLE) == ""
    assert cut(b"junk" + WHOLE[:-5]) != ""


def test_an_mp4_segment_ends_with_a_box() -> None:
    whole = box(b"styp", b"msdh") + fragment(0, frames=4) + fragment(400, frames=4)
    ends = {8 + 4, 12 + len(fragment(0, frames=4)), len(whole)}
    moof = len(fragment(0, frames=4)) - 2008
    ends |= {12 + moof, 12 + moof + 2008 + moof}
    few = {end + more for end in ends for more in range(8) if end + more <= len(whole)}  # too few bytes for a box
    assert {length for length in range(8, len(whole) + 1) if not cut(whole[:length])} == few


def test_a_box_may_be_large_or_go_on_to_the_end_of_the_file() -> None:
    assert cut(box(b"moof") + struct.pack(">I4sQ", 1, b"mdat", 16 + 50) + bytes(50)) == ""
    assert "mdat" in cut(box(b"moof") + struct.pack(">I4sQ", 1, b"mdat", 16 + 50) + bytes(49))
    assert cut(box(b"moof") + struct.pack(">I4s", 0, b"mdat") + bytes(50)) == ""


def test_encrypted_files_are_whole_blocks() -> None:
    assert "no whole blocks" in cut(WHOLE[:-1], encrypted=True)


def test_time_is_read_from_head_and_tail_alone() -> None:
    asked: list[int] = []
    middle = NULL * 20_000
    data = segment(picture(9000, idr=True), sound(9000)) + middle + picture(9000 + 6 * 90_000) + NULL * 200

    def read(at: int, length: int) -> bytes:
        asked.append(length)
        return data[at : at + length]

    assert Ends(read, len(data), None).lasts_s() == 6.0
    assert cut_off(read, len(data)) == ""
    assert sum(asked) < 200_000 < len(data)


def test_a_tail_that_one_picture_fills_is_looked_into_further() -> None:
    data = segment(picture(0, idr=True)) + NULL * 9000 + picture(90_000) + NULL * 2000
    assert lasts(data) == 1.0
    assert lasts(segment(picture(0, idr=True)) + NULL * 9000) is None


def test_time_goes_on_over_the_wrap_of_the_clock() -> None:
    assert lasts(segment(picture(PTS_MODULUS - 45_000, idr=True), picture(45_000))) == 1.0


def test_an_mp4_segment_tells_time_with_its_init_section() -> None:
    init = init_section()
    assert lasts(fragment(0, frames=40), init) == pytest.approx(3.9)
    assert lasts(b"".join(fragment(begin, frames=5) for begin in range(70_000, 74_000, 500)), init) == pytest.approx(3.9)
    assert lasts(fragment(0, frames=40)) is None


def test_what_tells_no_time_has_none() -> None:
    assert [lasts(data) for data in (b"", b"WEBVTT\n\n", NULL * 4, packet(PAT) + packet(PMT), bytes(5000))] == [None] * 5


def test_many_boxes_are_not_all_looked_at() -> None:
    asked = 0
    data = box(b"moof") * (3 * MOST_BOXES)

    def read(at: int, length: int) -> bytes:
        nonlocal asked
        asked += 1
        return data[at : at + length]

    assert cut_off(read, len(data)) == ""
    assert asked < MOST_BOXES + 10


@given(st.one_of(st.binary(max_size=2000), st.binary(max_size=600).map(lambda tail: WHOLE + tail),
                 st.binary(max_size=300).map(lambda tail: fragment(0, frames=2) + tail)), st.booleans())  # fmt: skip
def test_no_bytes_are_too_odd(data: bytes, encrypted: bool) -> None:
    assert isinstance(cut(data, encrypted=encrypted), str)
    found = lasts(data, init_section())
    assert found is None or found >= 0
