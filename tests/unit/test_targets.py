"""URLs taken apart: the short way that most go gives what the long one does."""

from __future__ import annotations

import httpx
from hypothesis import example, given
from hypothesis import strategies as st

from hlsrelay import asking
from hlsrelay.http1 import HttpError, Target

WORDS = st.text("abzAZ019._~/-=&?:%@ é#", max_size=12)
HOSTS = st.sampled_from(
    ["a.example", "A.Example", "127.0.0.1", "300.1.1.1", "127.1", "a_b", "a..b", "-", "a:80", "a:443", "a:8080", "a:0", "a:99999"]
)


def long_way(url: str) -> Target | str:
    try:
        return asking._apart(httpx.URL(url))
    except (httpx.InvalidURL, ValueError):
        return "refused"


def taken_apart(url: str) -> Target | str:
    try:
        return asking._target(url)
    except HttpError:
        return "refused"


@given(st.sampled_from(["http", "https"]), HOSTS, WORDS)
@example("http", "a.example", "a/../b.ts")
@example("http", "a.example", "./b")
@example("https", "a:443", "b.ts?c=d&e=f")
@example("http", "a.example", "")
@example("http", "a.example", "b?c?d")
def test_a_url_is_taken_apart_alike_both_ways(scheme: str, host: str, path: str) -> None:
    url = f"{scheme}://{host}/{path}"
    assert taken_apart(url) == long_way(url)
    assert taken_apart(f"{scheme}://{host}") == long_way(f"{scheme}://{host}")


def test_most_urls_go_the_short_way() -> None:
    assert asking._PLAIN.fullmatch("http://a.example:8080/live/seg-1_2.ts?token=abc&e=5")
    assert not asking._PLAIN.fullmatch("http://u:p@a.example/seg.ts")
    assert not asking._PLAIN.fullmatch("http://a.example/a/%2e%2e/seg.ts")
