"""When a playlist is asked for only if it has changed, and when a server is not believed."""

from __future__ import annotations

from hlsrelay.unchanged import MOST_IN_A_ROW, Unchanged

URL = "https://origin.example/live.m3u8"


def test_what_the_server_said_last_is_asked_about_an_etag_before_a_date() -> None:
    seen = Unchanged()
    assert not seen.asks(URL)
    seen.came(URL, {"etag": '"a"', "last-modified": "then"}, new=True)
    assert seen.asks(URL) == {"if-none-match": '"a"'}
    seen.came(URL, {"last-modified": "later"}, new=True)
    assert seen.asks(URL) == {"if-modified-since": "later"}
    seen.came(URL, {}, new=True)
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
