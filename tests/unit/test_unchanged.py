"""When a playlist is asked for only if it has changed, and when a server is not believed."""

from __future__ import annotations

import pytest

from hlsrelay.unchanged import MOST_IN_A_ROW, Unchanged

URL = "https://origin.example/live.m3u8"
DATE = "Sat, 28 Nov 2026 07:00:00 GMT"


def test_what_the_server_said_last_is_asked_about_an_etag_before_a_date() -> None:
    seen = Unchanged()
    assert not seen.asks(URL)
    seen.came(URL, {"etag": '"a"', "last-modified": DATE}, new=True)
    assert seen.asks(URL) == {"if-none-match": '"a"'}
    seen.came(URL, {"last-modified": DATE}, new=True)
    assert seen.asks(URL) == {"if-modified-since": DATE}
    seen.came(URL, {}, new=True)
    assert not seen.asks(URL)


@pytest.mark.parametrize(
    "said",
    [
        {"etag": "bare"},
        {"etag": '"a"\rx-forwarded-for: 10.0.0.1'},
        {"etag": f'"{257 * "a"}"'},
        {"etag": '"\xe9"'},
        {"last-modified": "yesterday"},
        {"last-modified": DATE + "\rx: y"},
    ],
)
def test_what_is_no_etag_and_no_date_is_not_repeated(said: dict[str, str]) -> None:
    seen = Unchanged()
    seen.came(URL, said, new=True)
    assert not seen.asks(URL)


def test_another_url_is_asked_for_whole() -> None:
    seen = Unchanged()
    seen.came(URL, {"etag": '"a"'}, new=True)
    assert not seen.asks(URL + "?token=2")


def test_a_server_that_says_so_again_and_again_is_asked_for_the_whole_now_and_then() -> None:
    seen = Unchanged()
    seen.came(URL, {"etag": '"a"'}, new=True)
    for _ in range(MOST_IN_A_ROW):
        assert seen.asks(URL)
        seen.said_so()
    assert not seen.asks(URL)
    seen.came(URL, {"etag": '"a"'}, new=False)
    assert seen.asks(URL)


def test_a_server_that_says_the_same_of_two_that_differ_is_not_believed_any_more() -> None:
    seen = Unchanged()
    seen.came(URL, {"etag": '"a"'}, new=True)
    seen.came(URL, {"etag": '"a"'}, new=True)
    assert not seen.asks(URL)
    seen.came(URL, {"etag": '"b"'}, new=True)
    assert not seen.asks(URL)
