"""What a segment is and when it plays, by its head and its tail."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.media import ts
from hlsrelay.media.ends import Ends, Glimpse
from hlsrelay.media.packets import PACKET, payload_at
from hlsrelay.media.probe import Container, probe, recognised
from tests.unit.test_media_probe import PAT, PMT, PPS, SPS, WHOLE, packet, pes, picture, segment, sound
from tests.unit.test_whole import NULL, fragment, init_section, reader


def seen(data: bytes, init: bytes | None = None) -> Glimpse | None:
    return Ends(reader(data), len(data), init).glimpse()


def test_a_glimpse_tells_what_reading_it_through_does() -> None:
    data = segment(*[picture(9000 + 3600 * frame, idr=frame == 0) for frame in range(50)], sound(9000))
    told, found = probe(data), seen(data)
    assert found is not None
    assert told.video is not None
    assert (found.first_pts_90k, found.last_pts_90k) == (told.video.first_pts_90k, told.video.last_pts_90k)
    assert found.size in (None, (told.video.width, told.video.height))
    assert set(found.codecs) <= {one.codecs for one in (told.video, told.audio) if one}


@pytest.mark.parametrize("captions", [0, 200, *range(960, 1030), 2000, 3900])
def test_a_key_picture_tells_what_it_is_behind_its_captions(captions: int) -> None:
    nals = [b"\x09\xf0", *([b"\x06" + b"\x55" * captions] if captions else []), SPS, PPS, b"\x65" + b"\x88" * 400]
    told = b"".join(b"\0\0\0\1" + nal for nal in nals)
    rest = [b"\x47\x01\x00\x10" + told[at : at + 184].ljust(184, b"\x88") for at in range(169, len(told), 184)]
    found = seen(segment(pes(0x100, 9000, told[:169]), *rest, picture(12600), sound(9000)))
    assert found is not None
    assert (found.size, found.codecs) == ((1280, 720), ("avc1.640028", "mp4a.40.2"))


def test_the_middle_is_not_looked_at() -> None:
    asked: list[int] = []
    data = segment(picture(0, idr=True), sound(0)) + NULL * 40_000 + picture(360_000) + sound(540_000) + NULL * 100

    def read(at: int, length: int) -> bytes:
        asked.append(length)
        return data[at : at + length]

    found = Ends(read, len(data), None).glimpse()
    assert found is not None
    assert (found.first_pts_90k, found.last_pts_90k) == (0, 360_000)  # of pictures: sound may end later
    assert sum(asked) < 200_000 < len(data)


def test_fragments_tell_with_their_init_section() -> None:
    data = b"".join(fragment(begin, frames=5) for begin in range(0, 4000, 500))
    whole, found = probe(data, init_section()), seen(data, init_section())
    assert found is not None
    assert whole.video is not None
    assert (found.first_pts_90k, found.last_pts_90k) == (whole.video.first_pts_90k, whole.video.last_pts_90k)
    assert seen(data) is None


@pytest.mark.parametrize(
    "data", [b"", b"WEBVTT\n\n", NULL * 4, packet(PAT) + packet(PMT), segment(sound(0)), segment(picture(0)) + NULL * 9000]
)
def test_what_head_and_tail_do_not_tell_is_not_told(data: bytes) -> None:
    assert seen(data) is None


SPOILT = st.builds(lambda at, byte: WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :], st.integers(0, len(WHOLE) - 1), st.integers(0, 255))


@given(st.binary(max_size=400) | SPOILT)
def test_no_bytes_are_too_odd(data: bytes) -> None:
    seen(data)
    seen(data, init_section())


PES = bytes.fromhex("000001e0000080c00a310001000111000100010000")


def test_a_time_stamp_is_read_where_it_stands_as_of_the_payload() -> None:
    stamped = 0
    wrong = [(at, byte) for at in (0, 2, 6, 7, 9) for byte in (0x00, 0x40, 0xFF)]
    for flags, control, adaptation in product((0x00, 0x40, 0x80), (0x00, 0x10, 0x20, 0x30, 0x50, 0x90), (0, 7, *range(165, 184), 255)):
        for at, byte in [(3, 0xE0), *wrong]:
            pes = PES[:at] + bytes([byte]) + PES[at + 1 :]
            skip = 5 + adaptation if control & 0x20 else 4
            header = bytes([0x47, flags, 0, control, *([adaptation] if control & 0x20 else [])])
            packet = (header.ljust(skip, b"\xff") + pes).ljust(PACKET, b"\xff")[:PACKET]
            data = NULL + packet + pes[PACKET - skip :] * 10
            pts = ts._pes_pts(payload_at(data, PACKET))
            assert ts._pts_at(data, PACKET) == pts
            stamped += pts is not None
    assert stamped > 100


def test_a_container_is_recognised_by_its_first_bytes() -> None:
    heads = (WHOLE[:2000], fragment(0, frames=1), b"WEBVTT\n", b"", b"<html>")
    assert [recognised(head) for head in heads] == [Container.TS, Container.FMP4, Container.VTT, Container.UNKNOWN, Container.UNKNOWN]
