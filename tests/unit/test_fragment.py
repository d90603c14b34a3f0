"""The shares of decode times and composition offsets, and what an init section of ours says: no ffmpeg, bytes by hand."""

from __future__ import annotations

import pytest

from hlsrelay.media.fragment import parted, without_negative_offsets
from hlsrelay.media.info import PTS_MODULUS, MediaError
from hlsrelay.media.probe import probe
from tests.unit.cut_by_hand import box, numbers

SECOND = 90_000


def visual(
    number: int, config: bytes = b"", *, kind: bytes = b"avc1", timescale: int = SECOND, edts: bytes = b"", tkhd: bytes = b""
) -> bytes:
    entry = box(kind, bytes(24), (160).to_bytes(2), (90).to_bytes(2), bytes(50), config)
    stbl = box(b"stbl", box(b"stsd", numbers(0, 1), entry))
    media = box(b"mdhd", numbers(0, 0, 0, timescale, 0)) + box(b"hdlr", numbers(0, 0), b"vide", bytes(12)) + box(b"minf", stbl)
    return box(b"trak", tkhd or box(b"tkhd", numbers(0, 0, 0, number, 0)), edts, box(b"mdia", media))


def sound(number: int, bitrate: int, *, timescale: int = 48_000, edts: bytes = b"") -> bytes:
    decoder = b"\x04\x80\x80\x80\x12" + b"\x40\x15\x00\x00\x00" + numbers(bitrate, bitrate) + b"\x05\x80\x80\x80\x02\x11\x90"
    esds = box(b"esds", numbers(0), b"\x03\x80\x80\x80\x1d" + b"\x00\x02\x00" + decoder)
    stbl = box(b"stbl", box(b"stsd", numbers(0, 1), box(b"mp4a", bytes(28), esds)))
    media = box(b"mdhd", numbers(0, 0, 0, timescale, 0)) + box(b"hdlr", numbers(0, 0), b"soun", bytes(12)) + box(b"minf", stbl)
    return box(b"trak", box(b"tkhd", numbers(0, 0, 0, number, 0)), edts, box(b"mdia", media))


def init(*tracks: bytes) -> bytes:
    return box(b"ftyp", b"iso5") + box(b"moov", *(tracks or (visual(1),)))


def edits(*rows: tuple[int, int], version: int = 0) -> bytes:
    """An edit list of durations, in the movie's time scale, and media times, in the track's; those below 0 are empty."""
    size = 8 if version else 4
    return box(b"edts", box(b"elst", numbers(version << 24, len(rows)), *(_edit(row, size) for row in rows)))


def _edit(row: tuple[int, int], size: int) -> bytes:
    return row[0].to_bytes(size) + signed(row[1], size) + numbers(0x10000)


def movie(timescale: int, *tracks: bytes) -> bytes:
    """An init section that says what the movie counts in."""
    return init(box(b"mvhd", numbers(0, 0, 0, timescale, 0), b"the rest"), *tracks)


def signed(value: int, size: int) -> bytes:
    return (value % (1 << 8 * size)).to_bytes(size)


def fragment(time: int, offsets: list[int] | None, *, number: int = 1, samples: int = 4, version: int = 1) -> bytes:
    """A fragment of *samples* that last 3000 ticks each."""
    tfdt = box(b"tfdt", numbers(1 << 24), signed(time, 8))
    rows = b"".join(numbers(3000) + (signed(offsets[index], 4) if offsets else b"") for index in range(samples))
    trun = box(b"trun", numbers(version << 24 | 0x100 | (0x800 if offsets else 0), samples), rows)
    return box(b"moof", box(b"traf", box(b"tfhd", numbers(0x20000, number)), tfdt, trun)) + box(b"mdat", b"media")


def shown(data: bytes, head: bytes) -> tuple[int, ...]:
    video = probe(data, head).video
    assert video is not None
    return video.pts


def test_a_source_loses_its_negative_offsets_and_no_picture_moves() -> None:
    plain = fragment(9 * SECOND, [0, 6000, -3000, -3000]) + fragment(9 * SECOND + 12_000, None)
    data = without_negative_offsets(plain)
    assert shown(data, init()) == shown(plain, init())
    assert data == fragment(9 * SECOND - 3000, [3000, 9000, 0, 0]) + fragment(9 * SECOND + 12_000, None)
    assert without_negative_offsets(data) is data


def test_an_init_section_tells_no_bitrate_of_the_segment_that_came_with_it() -> None:
    heads = {parted(init(visual(1), sound(2, bitrate)) + fragment(0, None))[0] for bitrate in (64_000, 65_000)}
    assert heads == {init(visual(1), sound(2, 0))}


def test_only_what_players_need_stays() -> None:
    head, media = parted(init() + box(b"free", b"x") + fragment(SECOND, None) + box(b"mfra", b"index"))
    assert (head, media) == (init(), fragment(SECOND, None))


@pytest.mark.parametrize(
    ("time", "offsets", "first"),
    [
        (SECOND, [6000, 9000, 3000, 0], SECOND + 6000),  # nothing to do
        (-6000, [6000, 12_000, 3000, 0], 0),  # decoded before 0 and shown after it
        (-SECOND, [6000, 12_000, 3000, 0], PTS_MODULUS - SECOND + 6000),  # before the wrap, as ffmpeg counts it
        (-6000, None, PTS_MODULUS - 6000),
    ],
)
def test_no_decode_time_is_below_zero(time: int, offsets: list[int] | None, first: int) -> None:
    whole = init() + fragment(time, offsets)
    head, media = parted(whole)
    assert shown(media, head) == shown(whole, b"")
    at = media.index(b"tfdt") + 8
    assert int.from_bytes(media[at : at + 8]) < 1 << 62
    assert shown(media, head)[0] == first


def test_sound_comes_later_by_the_same_turn_of_the_clock() -> None:
    head, media = parted(init(visual(1), sound(2, 0)) + fragment(-9000, None) + fragment(-4800, None, number=2))
    info = probe(media, head)
    assert info.video is not None
    assert info.audio is not None
    assert info.video.first_pts_90k == PTS_MODULUS - 9000
    assert info.audio.first_pts_90k == pytest.approx(PTS_MODULUS - 9000, abs=1)


@pytest.mark.parametrize("data", [b"", init(), fragment(0, None), init() + b"\0\0\1\0moof", init() + fragment(0, [0] * 4)[:-60]])
def test_what_is_no_whole_mp4_is_refused(data: bytes) -> None:
    with pytest.raises(MediaError):
        parted(data)


def test_hostile_sample_tables_end_soon() -> None:
    many = box(b"moof", box(b"traf", box(b"tfhd", numbers(0x20000, 1)), box(b"trun", numbers(0x1000000, 1 << 30))))
    with pytest.raises(MediaError):
        without_negative_offsets(many)


@pytest.mark.parametrize(
    ("record", "codecs"),
    [("81080c00", "av01.0.08M.08"), ("814d4c00", "av01.2.13M.10"), ("8128ec00", "av01.1.08H.12"), ("81006c00", "av01.0.00M.12")],
)
def test_av1_is_named_by_its_configuration_record(record: str, codecs: str) -> None:
    head = init(visual(1, box(b"av1C", bytes.fromhex(record)), kind=b"av01"))
    video = probe(fragment(SECOND, None), head).video
    assert video is not None
    assert video.codecs == codecs


UPRIGHT, UPSIDE_DOWN = (1 << 16, 0, 0, 0, 1 << 16), (-1 << 16, 0, 0, 0, -1 << 16)
CLOCKWISE, COUNTER_CLOCKWISE, MIRRORED = (0, 1 << 16, 0, -1 << 16, 0), (0, -1 << 16, 0, 1 << 16, 0), (0, 1 << 16, 0, 1 << 16, 0)
CUT = CLOCKWISE[:4]
WIDE_PIXELS = bytes.fromhex("6742c00dda05825b041000000300100000030320f142aa")  # 352x288, each pixel 16:11


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        (UPRIGHT, False),
        (UPSIDE_DOWN, False),
        (CLOCKWISE, True),
        (COUNTER_CLOCKWISE, True),
        (MIRRORED, True),
        ((0,) * 5, False),
        ((1 << 15, 1 << 15, 0, -1 << 15, 1 << 15), False),
        (CUT, False),
    ],
)
def test_pictures_that_lie_on_their_side_are_told_as_they_are_shown(matrix: tuple[int, ...], turned: bool, version: int) -> None:
    dates, duration = bytes(16 if version else 8), bytes(8 if version else 4)
    fields = numbers(version << 24) + dates + numbers(1, 0) + duration + bytes(16) + b"".join(signed(value, 4) for value in matrix)
    config = box(b"avcC", b"\x01\x42\xc0\x0d\xff\xe1", len(WIDE_PIXELS).to_bytes(2), WIDE_PIXELS)
    video = probe(fragment(SECOND, None), init(visual(1, config, tkhd=box(b"tkhd", fields)))).video
    assert video is not None
    assert (video.width, video.height, video.sar) == ((288, 352, (11, 16)) if turned else (352, 288, (16, 11)))
