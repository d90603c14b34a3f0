"""Segments made by hand, TS and fMP4, to be cut, and the laws that hold for whatever comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from hlsrelay.media.info import PTS_MODULUS
from hlsrelay.media.split import Slice
from tests.unit.test_media_probe import PAT, PMT, PPS, SPS, packet

SECOND = 90_000
TABLES = packet(PAT) + packet(PMT)
SOUND_PMT = packet(bytes.fromhex("475000100002b0120001c10000e101f0000fe101f0002f44b99b"))
AES = bytes(range(256)) * 100
REST_OF_PICTURE = bytes((0x47, 0x01, 0x00, 0x10)) + b"\x55" * 184


def with_dts(pid: int, pts: int, dts: int, payload: bytes, *, random_access: bool = False) -> bytes:
    """Return one packet with a PES of *payload*, decoded at *dts*."""
    stamps = b""
    for mark, value in ((0x31, pts % PTS_MODULUS), (0x11, dts % PTS_MODULUS)):
        stamps += bytes((mark | value >> 29 & 0x0E, value >> 22 & 255, value >> 14 & 254 | 1, value >> 7 & 255, value << 1 & 254 | 1))
    body = b"\0\0\1\xe0\0\0\x80\xc0\x0a" + stamps + payload
    room = 184 - len(body) - 1
    return bytes((0x47, 0x40 | pid >> 8, pid & 255, 0x30, room, 0x40 * random_access)) + b"\xff" * (room - 1) + body


def coded(*, idr: bool = False) -> bytes:
    nals = [b"\x09\xf0", *([SPS, PPS] if idr else []), b"\x65\x88" if idr else b"\x41\x9a"]
    return b"".join(b"\0\0\0\1" + nal for nal in nals)


def picture(at_s: float, *, idr: bool = False, origin: int = 0, random_access: bool = False) -> bytes:
    ticks = origin + round(at_s * SECOND)
    return with_dts(0x100, ticks, ticks, coded(idr=idr), random_access=random_access)


def pictures(seconds: int, *, idr_every_s: int, tables: bool = True, origin: int = 0) -> bytes:
    """Return ten pictures a second, with tables before each IDR."""
    found = []
    for tenth in range(seconds * 10):
        idr = tenth % (10 * idr_every_s) == 0
        found += [TABLES] if idr and (tables or not tenth) else []
        found += [picture(tenth / 10, idr=idr, origin=origin), REST_OF_PICTURE]
    return b"".join(found)


def durations(slices: Sequence[Slice] | None) -> list[float]:
    assert slices is not None
    return [round(one.duration_s, 6) for one in slices]


def lawful(slices: tuple[Slice, ...] | None, data: bytes, duration_s: float, pieces: int, longest_s: float) -> None:
    """The laws that hold for whatever *data* is."""
    if slices is None:
        return
    assert len(slices) == pieces
    assert (slices[0].start, slices[-1].end) == (0, len(data))
    assert all(one.end == following.start for one, following in pairwise(slices))
    assert all(one.start < one.end for one in slices)
    assert all(0 < one.duration_s < longest_s for one in slices)
    assert sum(one.duration_s for one in slices) == pytest.approx(duration_s)


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return (len(body) + 8).to_bytes(4) + kind + body


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(4) for value in values)


def track(number: int, handler: bytes, timescale: int) -> bytes:
    mdia = box(b"mdia", box(b"mdhd", numbers(0, 0, 0, timescale, 0)), box(b"hdlr", numbers(0, 0), handler, b"\0" * 12))
    return box(b"trak", box(b"tkhd", numbers(0, 0, 0, number, 0)), mdia)


INIT = box(b"ftyp", b"iso5") + box(b"moov", track(1, b"soun", 48_000), track(2, b"vide", 1000))


def fragment(number: int, time: int, *, sync: bool = True, tfhd_flags: int = 0x20000, tfdt: bool = True) -> bytes:
    base = b"\0" * 8 if tfhd_flags & 1 else b""
    dated = box(b"tfdt", numbers(0, time)) if tfdt else b""
    trun = box(b"trun", numbers(0x105, 1, 0, 0 if sync else 0x10000, 1000))
    traf = box(b"traf", box(b"tfhd", numbers(tfhd_flags, number), base), dated, trun)
    return box(b"moof", box(b"mfhd", numbers(0, 1)), traf) + box(b"mdat", b"media")
