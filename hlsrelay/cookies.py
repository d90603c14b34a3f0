"""A stream's cookies: as many as sources need, and no more than a hostile one may make us keep and send."""

from __future__ import annotations

from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from typing import Any

MOST_COOKIES = 100
MOST_COOKIES_OF_A_DOMAIN = 30
LONGEST_COOKIE = 4096
"""Characters of its name, value, domain and path together; what browsers keep (RFC 6265 6.1)."""
MOST_CHARACTERS = 64 << 10


class BoundedJar(CookieJar):
    """Keeps cookies within these limits, the newest ones; what came over https never goes out over http."""

    def __init__(self) -> None:
        super().__init__(DefaultCookiePolicy(rfc2965=False, strict_ns_domain=DefaultCookiePolicy.DomainStrictNonDomain))
        self._ages: dict[tuple[str, str, str], Cookie] = {}

    def make_cookies(self, response: Any, request: Any) -> list[Cookie]:
        """Return the cookies of an answer, as Secure where it was."""
        cookies = list(super().make_cookies(response, request))
        for cookie in cookies:
            cookie.secure = cookie.secure or request.type == "https"
        return cookies

    def set_cookie(self, cookie: Cookie) -> None:
        """Keep *cookie* unless it is too long; the oldest go where there are too many."""
        if _length(cookie) > LONGEST_COOKIE:
            return
        super().set_cookie(cookie)
        self._ages.pop(_name(cookie), None)
        self._ages[_name(cookie)] = cookie
        while (gone := self._too_many(cookie.domain)) is not None:
            del self._ages[_name(gone)]
            self._forget(gone)

    def clear(self, domain: str | None = None, path: str | None = None, name: str | None = None) -> None:
        """Forget cookies, as CookieJar does: expired ones too."""
        super().clear(domain, path, name)
        wanted = (domain, path, name)
        keep = {key: one for key, one in self._ages.items() if any(want not in (None, has) for want, has in zip(wanted, key, strict=True))}
        self._ages = keep

    def _forget(self, cookie: Cookie) -> None:
        super().clear(cookie.domain, cookie.path, cookie.name)

    def _too_many(self, domain: str) -> Cookie | None:
        """Return the oldest cookie of those that are too many."""
        of_domain = [one for one in self._ages.values() if one.domain == domain]
        if len(of_domain) > MOST_COOKIES_OF_A_DOMAIN:
            return of_domain[0]
        if len(self._ages) > MOST_COOKIES or sum(_length(one) for one in self._ages.values()) > MOST_CHARACTERS:
            return next(iter(self._ages.values()))
        return None


def _name(cookie: Cookie) -> tuple[str, str, str]:
    return cookie.domain, cookie.path, cookie.name


def _length(cookie: Cookie) -> int:
    return sum(len(text or "") for text in (cookie.name, cookie.value, cookie.domain, cookie.path))
