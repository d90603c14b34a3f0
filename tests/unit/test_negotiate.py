"""Request headers: what they ask for, and that nonsense asks for nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.web.negotiate import accepts_gzip, has_already, header, wanted


@pytest.mark.parametrize(
    ("text", "size", "positions"),
    [
        ("bytes=0-3", 10, range(4)),
        ("bytes=4-", 10, range(4, 10)),
        ("bytes=9-9", 10, range(9, 10)),
        ("bytes=-4", 10, range(6, 10)),
        ("bytes=-400", 10, range(10)),
        ("bytes=5-400", 10, range(5, 10)),
        ("BYTES = 1 - 2", 10, range(1, 3)),
        ("bytes=0-" + "9" * 90, 10, range(10)),
    ],
)
def test_a_single_range_gives_the_bytes_it_names(text: str, size: int, positions: range) -> None:
    assert wanted(text, size) == positions


@pytest.mark.parametrize(("text", "size"), [("bytes=10-", 10), ("bytes=10-12", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)])
def test_a_range_outside_the_file_is_an_empty_one(text: str, size: int) -> None:
    span = wanted(text, size)
    assert span is not None
    assert not span


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=4-2",
        "bytes=a-b",
        "bytes=1-2,4-5",
        "items=0-1",
        "bytes=--1",
        "bytes=٣-٤",
        "bytes=" + "9" * 9000 + "-",
    ],
)
def test_a_range_that_makes_no_sense_means_the_whole_file(text: str) -> None:
    assert wanted(text, 10) is None


@given(st.text(alphabet="bytes=0123456789-, ", max_size=30), st.integers(0, 2**40))
def test_no_range_ever_leads_outside_the_file(text: str, size: int) -> None:
    span = wanted(text, size)
    assert span is None or not span or 0 <= span.start < span.stop <= size


@pytest.mark.parametrize("text", ["gzip", "gzip, deflate, br", "br;q=1.0, GZIP;q=0.5", "*", "gzip;q=0.001", "identity;q=0, *"])
def test_gzip_is_accepted_when_it_is_listed(text: str) -> None:
    assert accepts_gzip(text)


@pytest.mark.parametrize("text", ["", "identity", "br", "gzip;q=0", "gzip;q=0.000", "*;q=0", "gzip;q=0, *", "gzipped"])
def test_gzip_is_not_accepted_when_it_is_refused_or_absent(text: str) -> None:
    assert not accepts_gzip(text)


def test_a_tag_that_the_client_holds_is_found_in_a_list_weak_or_not() -> None:
    assert has_already('"a", W/"b"', '"b"')
    assert has_already("*", '"b"')
    assert not has_already('"a"', '"b"')
    assert not has_already("", '"b"')


def test_a_header_sent_twice_reads_as_one_list() -> None:
    assert header({"headers": [(b"accept-encoding", b"br"), (b"x", b"y"), (b"accept-encoding", b"gzip")]}, b"accept-encoding") == "br,gzip"
