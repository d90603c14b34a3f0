"""The cookie jar: a source may use it, and not fill it."""

from __future__ import annotations

import httpx

from hlsrelay.cookies import LONGEST_COOKIE, MOST_CHARACTERS, MOST_COOKIES, MOST_COOKIES_OF_A_DOMAIN, BoundedJar


def told(jar: BoundedJar, url: str, *cookies: str) -> None:
    """Have *jar* hear an answer of *url*."""
    headers = [("set-cookie", cookie) for cookie in cookies]
    httpx.Cookies(jar).extract_cookies(httpx.Response(200, headers=headers, request=httpx.Request("GET", url)))


def sent(jar: BoundedJar, url: str) -> str:
    """Return what *jar* would send to *url*."""
    request = httpx.Request("GET", url)
    httpx.Cookies(jar).set_cookie_header(request)
    return str(request.headers.get("cookie", ""))


def test_a_cookie_comes_back_to_its_host_and_to_no_other() -> None:
    jar = BoundedJar()
    told(jar, "https://a.example/x", "turn=1; Path=/")
    assert sent(jar, "https://a.example/y") == "turn=1"
    for url in ("https://b.example/", "https://sub.a.example/", "https://example/"):
        assert sent(jar, url) == ""


def test_a_cookie_that_came_over_https_never_goes_out_over_http() -> None:
    jar = BoundedJar()
    told(jar, "https://a.example/x", "secret=1; Path=/")
    told(jar, "http://a.example/x", "plain=1; Path=/")
    assert sent(jar, "http://a.example/") == "plain=1"
    assert set(sent(jar, "https://a.example/").split("; ")) == {"secret=1", "plain=1"}


def test_a_cookie_for_a_domain_goes_to_its_hosts() -> None:
    jar = BoundedJar()
    told(jar, "https://www.cdn.example/x", "turn=1; Path=/; Domain=cdn.example")
    assert sent(jar, "https://media.cdn.example/y") == "turn=1"


def test_the_newest_cookies_stay_and_never_more_than_so_many() -> None:
    jar = BoundedJar()
    for number in range(2 * MOST_COOKIES_OF_A_DOMAIN):
        told(jar, "https://a.example/x", f"c{number}=1; Path=/")
    names = {cookie.name for cookie in jar}
    assert len(names) == MOST_COOKIES_OF_A_DOMAIN
    assert f"c{2 * MOST_COOKIES_OF_A_DOMAIN - 1}" in names
    for number in range(2 * MOST_COOKIES):
        told(jar, f"https://h{number}.example/x", "c=1; Path=/")
    assert len(jar) == MOST_COOKIES


def test_a_cookie_that_is_set_again_is_new_again() -> None:
    jar = BoundedJar()
    for number in range(3 * MOST_COOKIES_OF_A_DOMAIN):
        told(jar, "https://a.example/x", "session=1; Path=/", f"c{number}=1; Path=/")
    assert "session=1" in sent(jar, "https://a.example/")


def test_long_cookies_are_not_kept_and_many_middling_ones_only_up_to_a_size() -> None:
    jar = BoundedJar()
    told(jar, "https://a.example/x", f"long={'x' * LONGEST_COOKIE}; Path=/")
    assert len(jar) == 0
    for number in range(200):
        told(jar, f"https://h{number}.example/x", f"c={'x' * 3000}; Path=/")
    assert 0 < sum(len(cookie.value or "") for cookie in jar) <= MOST_CHARACTERS


def test_a_cookie_that_is_taken_back_is_forgotten_for_good() -> None:
    jar = BoundedJar()
    told(jar, "https://a.example/x", "turn=1; Path=/")
    told(jar, "https://a.example/x", "turn=; Path=/; Max-Age=0")
    assert sent(jar, "https://a.example/") == ""
    for number in range(2 * MOST_COOKIES_OF_A_DOMAIN):
        told(jar, "https://a.example/x", f"c{number}=1; Path=/")
        told(jar, "https://a.example/x", f"c{number}=1; Path=/; Max-Age=0")
    assert len(jar) == 0
