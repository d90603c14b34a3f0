"""What one stream asks its source for: redirects that are followed, cookies that are kept, and who may hear which secret.

Laws:
- Each request, redirected ones too, is checked: its scheme, and its address as far as that is written out.
- The operator's headers and the user info of the source go to the source's own origin only, and never from https to http.
- The body of a redirect is not read.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from hlsrelay import __version__
from hlsrelay.addresses import AddressPolicy
from hlsrelay.cookies import BoundedJar
from hlsrelay.errors import AddressRefused
from hlsrelay.http1 import Answered, Door, Head, HttpError, Target
from hlsrelay.model import Sink
from hlsrelay.remembered import remembered
from hlsrelay.urls import SCHEMES

Headers = tuple[tuple[str, str], ...]

MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_PLAIN = re.compile(r"(https?://[A-Za-z0-9.:-]+)(?!.*/\.)(/[A-Za-z0-9._~/-]*(?:\?[A-Za-z0-9._~/=&-]+)?)", re.ASCII)
"""URLs in which nothing but the host can be spelt in another way."""
_TO_ANYBODY = {"user-agent", "referer", "origin"}
"""What an operator's header says about us or the page may be heard by every host that a playlist names; the others may be credentials."""


@dataclass(frozen=True, slots=True)
class Came:
    """Where an answer came from."""

    url: str
    redirected: bool


class Asking:
    """Asks for one stream, whose source is *source* with *headers*, through *door*."""

    def __init__(self, door: Door, policy: AddressPolicy, source: str, headers: Headers) -> None:
        self._door, self._policy = door, policy
        self._source = httpx.URL(source)
        self._headers = tuple((name.lower(), value) for name, value in headers)
        self._basic = basic(self._source) if self._source.userinfo else ""
        self._jar = BoundedJar()

    async def get(self, url: str, headers: Mapping[str, str], answered: Answered) -> Came:
        """Ask for *url*, follow redirects, and return once the body is whole. Raises HttpError, AddressRefused, and what *answered* does.

        *headers* have names in lower case.
        """
        target, moved = _target(url), ""

        def heard(head: Head) -> Sink | None:
            nonlocal moved
            if head.cookies:
                self._keep(target, head)
            if head.status in _REDIRECTS and "location" in head.headers:
                moved = head.headers["location"]
                return None
            return answered(head)

        for turn in range(MOST_REDIRECTS + 1):
            if target.scheme not in SCHEMES:
                elsewhere = f"redirected to something other than http or https ({target.scheme[:16]})"
                raise AddressRefused(elsewhere if turn else "only http and https are relayed")
            self._policy.check_host(target.host)
            moved = ""
            await self._door.get(target, self._said(target, headers), heard)
            if not moved:
                return Came(target.text, bool(turn))
            target = _redirected(target, moved)
        raise HttpError(f"more than {MOST_REDIRECTS} redirects")

    def _said(self, target: Target, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of a request: those that its host may hear."""
        said = {"user-agent": f"hlsrelay/{__version__}", "accept": "*/*", **headers}
        if next(iter(self._jar), None):
            request = httpx.Request("GET", target.text)
            httpx.Cookies(self._jar).set_cookie_header(request)
            if cookies := request.headers.get("cookie"):
                said["cookie"] = cookies
        own = (self._basic or self._headers) and self._is_own(target)
        if own and self._basic:
            said["authorization"] = self._basic
        for name, value in self._headers:
            if own or name in _TO_ANYBODY or name.startswith("accept"):
                said[name] = f"{value}; {said[name]}" if name == "cookie" and "cookie" in said else value
        return said

    def _keep(self, target: Target, head: Head) -> None:
        said = [("set-cookie", cookie) for cookie in head.cookies]
        httpx.Cookies(self._jar).extract_cookies(httpx.Response(head.status, headers=said, request=httpx.Request("GET", target.text)))

    def _is_own(self, target: Target) -> bool:
        """Return whether *target* is at the source's own origin, or is that by https where the source is written with http."""
        source = self._source
        if source.raw_host.decode() != target.host:
            return False
        ports = source.port or _PORTS[source.scheme], target.port
        upgraded = (source.scheme, target.scheme, *ports) == ("http", "https", 80, 443) and source.port is None
        return upgraded or (source.scheme == target.scheme and ports[0] == ports[1])

    async def aclose(self) -> None:
        """Close all connections."""
        await self._door.aclose()


def basic(url: httpx.URL) -> str:
    """Return the user info of *url* as HTTP tells it (RFC 7617)."""
    return f"Basic {base64.b64encode(f'{url.username}:{url.password}'.encode()).decode()}"


def host_of(url: str) -> str:
    """Return the host of *url* as DNS knows it. Raises HttpError."""
    try:
        return httpx.URL(url).raw_host.decode()
    except (httpx.InvalidURL, ValueError) as error:
        raise HttpError(_told(error)) from error


@remembered(2048)
def _target(url: str) -> Target:
    """Return *url* taken apart. Raises HttpError.

    User info is left out: cookies would take it for a part of the host, and URIs resolved against it would hold it.
    """
    if (found := _PLAIN.fullmatch(url)) is None:
        return _any_target(url)
    origin, path = found.groups()
    there = _any_target(f"{origin}/")  # asked for again and again; the path is as it is
    return Target(there.text[:-1] + path, there.scheme, there.host, there.port, there.authority, path)


@remembered(1024)
def _any_target(url: str) -> Target:
    try:
        return _apart(httpx.URL(url))
    except (httpx.InvalidURL, ValueError) as error:
        raise HttpError(_told(error)) from error


def _redirected(target: Target, location: str) -> Target:
    """Return where a redirect leads. Raises HttpError."""
    try:
        asked, to = httpx.URL(target.text), httpx.URL(location)
        if to.scheme and not to.host:  # servers write such
            to = to.copy_with(host=asked.host)
        if to.is_relative_url:
            to = asked.join(to)
        if asked.fragment and not to.fragment:  # RFC 9110 10.2.2
            to = to.copy_with(fragment=asked.fragment)
        return _apart(to)
    except (httpx.InvalidURL, ValueError) as error:
        raise HttpError(f"Invalid URL in location header: {_told(error)}") from error


def _apart(url: httpx.URL) -> Target:
    if url.userinfo:
        url = url.copy_with(userinfo=b"")
    scheme, host = url.scheme, url.raw_host.decode("ascii")
    return Target(str(url), scheme, host, url.port or _PORTS.get(scheme, 0), url.netloc.decode("ascii"), url.raw_path.decode("ascii"))


def _told(error: Exception) -> str:
    return "".join(char if char.isprintable() else "?" for char in str(error)[:200])
