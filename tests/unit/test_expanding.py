"""Compressed bodies: whole, within bounds, or refused by name."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.expanding import STEP_BYTES, BadEncoding, Expander

TEXT = b"#EXTM3U\n" + bytes(range(256)) * 40


def expanded(body: bytes, encoding: str = "gzip", *, chunk: int = 7, most: int = 1 << 20) -> bytes:
    expander, got = Expander(encoding, most), bytearray()
    for begin in range(0, len(body), chunk):
        expander.feed(body[begin : begin + chunk], got.extend)
    expander.finish()
    return bytes(got)


@given(st.integers(1, 9000), st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_members_one_after_the_other_are_read_as_one_whatever_the_chunks(chunk: int, parts: list[bytes]) -> None:
    assert expanded(b"".join(gzip.compress(part) for part in parts), chunk=chunk) == b"".join(parts)


@pytest.mark.parametrize(("compress", "encoding"), [(gzip.compress, "gzip"), (gzip.compress, "x-gzip"), (zlib.compress, "deflate")])
def test_a_body_that_is_cut_off_anywhere_is_an_error(compress: type[bytes], encoding: str) -> None:
    whole = compress(TEXT)
    for end in range(1, len(whole)):
        with pytest.raises(BadEncoding, match="cut off"):
            expanded(whole[:end], encoding, chunk=1000)
    assert expanded(whole, encoding) == TEXT


def test_a_second_member_that_is_cut_off_is_an_error_too() -> None:
    with pytest.raises(BadEncoding, match="cut off"):
        expanded(gzip.compress(TEXT) + gzip.compress(TEXT)[:-3])


def test_padding_is_no_member_and_rubbish_is_refused() -> None:
    assert expanded(gzip.compress(TEXT) + bytes(100)) == TEXT
    for after in (b"<html>", b"\0\0x", b"\x1f\x8b\x00"):
        with pytest.raises(BadEncoding):
            expanded(gzip.compress(TEXT) + after)


def test_nothing_at_all_is_nothing() -> None:
    assert expanded(b"") == b""


def test_members_without_end_are_refused() -> None:
    with pytest.raises(BadEncoding, match="members"):
        expanded(gzip.compress(b"") * 100)


def test_more_compressed_bytes_than_the_body_may_have_are_refused() -> None:
    with pytest.raises(BadEncoding, match="larger"):
        expanded(gzip.compress(TEXT, 0), most=1000)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress", "x" * 5000])
def test_an_encoding_that_was_not_asked_for_is_refused_in_few_words(encoding: str) -> None:
    with pytest.raises(BadEncoding, match="not asked for") as caught:
        Expander(encoding, 1000)
    assert len(str(caught.value)) < 100


def test_a_bomb_comes_in_small_steps() -> None:
    largest = 0

    def write(chunk: bytes) -> None:
        nonlocal largest
        largest = max(largest, len(chunk))

    Expander("gzip", 1 << 20).feed(gzip.compress(bytes(8 << 20)), write)
    assert largest == STEP_BYTES
