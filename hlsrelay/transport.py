"""How a stream's requests reach the network: addresses that are checked, a proxy, and who may hear which secret.

httpx's own connection pool leaks on cancelled requests, so its requests go through aiohttp; each stream has a small client of its own
(one cookie jar, one pool).
"""

from __future__ import annotations

import base64
import functools
import logging
import socket
import ssl
from collections.abc import Callable

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport

from hlsrelay.addresses import AddressPolicy, ProxyPolicy
from hlsrelay.cookies import BoundedJar
from hlsrelay.errors import AddressRefused
from hlsrelay.urls import SCHEMES

Headers = tuple[tuple[str, str], ...]
TransportFactory = Callable[[AddressPolicy, str], httpx.AsyncBaseTransport]
"""Makes a transport that keeps to a policy, through an HTTP proxy unless that is empty."""

logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells each URL whole, tokens included

_TO_ANYBODY = {"user-agent", "referer", "origin"}
"""What an operator's header says about us or the page may be heard by every host that a playlist names; the others may be credentials."""


@functools.cache
def _tls() -> ssl.SSLContext:
    """One context for all streams: each costs about 1 MiB."""
    return httpx.create_ssl_context(trust_env=False)


def http_transport(policy: AddressPolicy, proxy: str) -> httpx.AsyncBaseTransport:
    """Return the real transport, of one stream. Call it inside the running loop.

    Through a proxy the only address that is connected to is the proxy's, which is the operator's own: what names mean is its business.
    """
    door = ProxyPolicy() if proxy else policy
    resolver = _Resolver(door)
    connector = aiohttp.TCPConnector(ssl=_tls(), limit=8, keepalive_timeout=30, socket_factory=door.make_socket, resolver=resolver)
    session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
    return _Proxied(session, httpx.URL(proxy)) if proxy else AiohttpTransport(verify=False, trust_env=False, client=session)


def open_transport(connections: int) -> httpx.AsyncBaseTransport:
    """Return a transport to what operators name themselves, wherever that is. Call it inside the running loop.

    Put `asyncio.timeout` round the whole of a request, and give it no timeout for reading: aiohttp 3.14 on uvloop leaves that running on
    a connection that is kept, and once it is over the next request fails at once.
    """
    connector = aiohttp.TCPConnector(ssl=_tls(), limit=connections, keepalive_timeout=30)
    session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
    return AiohttpTransport(verify=False, trust_env=False, client=session)


class _Proxied(AiohttpTransport):
    """Through an HTTP proxy. Its credentials go with CONNECT; without that, with the request, which the proxy reads itself."""

    def __init__(self, session: aiohttp.ClientSession, proxy: httpx.URL) -> None:
        self._told = {"proxy-authorization": _basic(proxy)} if proxy.userinfo else {}
        where = httpx.Proxy(proxy.copy_with(userinfo=b""), headers=self._told)
        super().__init__(verify=False, trust_env=False, client=session, proxy=where)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.scheme == "http":
            request.headers.update(self._told)
        return await super().handle_async_request(request)


class _Resolver(AbstractResolver):
    """aiohttp's own, that tells the policy what it finds."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        self._policy.resolved(host, [one["host"] for one in found])
        return found

    async def close(self) -> None:
        await self._resolver.close()


class Guarded(httpx.AsyncBaseTransport):
    """What each request passes, redirected ones too: its scheme, its address as far as it is written out, and who may hear which secret.

    The operator's headers and the user info of the source go to the source's own origin only, and never from https to http.
    """

    def __init__(
        self, transport: httpx.AsyncBaseTransport, policy: AddressPolicy, jar: BoundedJar, source: httpx.URL, headers: Headers
    ) -> None:
        self._transport, self._policy, self._jar = transport, policy, jar
        self._source = source
        self._headers = tuple((name.lower(), value) for name, value in headers)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()  # httpx leaves that of a redirected one unread, and aiohttp would send it as a body in chunks
        if request.url.scheme not in SCHEMES:
            raise AddressRefused(f"redirected to something other than http or https ({request.url.scheme[:16]})")
        self._policy.check_host(request.url.host)
        self._address_headers(request)
        answer = await self._transport.handle_async_request(request)
        if not answer.has_redirect_location:
            return answer
        await answer.aclose()  # httpx reads these bodies whole, and expands them: nobody needs them
        kept = [(name, value) for name, value in answer.headers.multi_items() if name in ("location", "set-cookie")]
        return httpx.Response(answer.status_code, headers=kept, request=request)

    def _address_headers(self, request: httpx.Request) -> None:
        """Give *request* the headers that its host may hear; a redirected one comes with those of the request before."""
        headers, own = request.headers, _own(self._source, request.url)
        for name in ("authorization", "cookie", *(name for name, _ in self._headers)):
            headers.pop(name, None)
        httpx.Cookies(self._jar).set_cookie_header(request)
        if own and self._source.userinfo:
            headers["authorization"] = _basic(self._source)
        for name, value in self._headers:
            if own or name in _TO_ANYBODY or name.startswith("accept"):
                headers[name] = f"{value}; {headers[name]}" if name == "cookie" and "cookie" in headers else value

    async def aclose(self) -> None:
        await self._transport.aclose()


def _basic(url: httpx.URL) -> str:
    """Return the user info of *url* as HTTP tells it (RFC 7617)."""
    return f"Basic {base64.b64encode(f'{url.username}:{url.password}'.encode()).decode()}"


def _own(source: httpx.URL, target: httpx.URL) -> bool:
    """Return whether *target* is at the source's own origin, or is that by https where the source is written with http."""
    if source.host != target.host:
        return False
    upgraded = (source.scheme, target.scheme) == ("http", "https") and source.port is None and target.port is None
    return upgraded or (source.scheme, source.port) == (target.scheme, target.port)
