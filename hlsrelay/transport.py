"""The ways to the network: straight, for what streams read; through a proxy, and to what operators name themselves, by aiohttp.

httpx's own connection pool leaks on cancelled requests, and costs more than all else that a relay does; aiohttp's costs half of that.
"""

from __future__ import annotations

import functools
import logging
import socket
import ssl
from collections.abc import Callable, Mapping

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport

from hlsrelay.addresses import AddressPolicy, ProxyPolicy, RefusedSocket
from hlsrelay.asking import basic
from hlsrelay.connections import CONNECTED_WITHIN_S, Connections
from hlsrelay.errors import AddressRefused
from hlsrelay.http1 import Answered, Door, Head, HttpError, Target

TransportFactory = Callable[[AddressPolicy, str], httpx.AsyncBaseTransport | Door]
"""Makes a way to the network that keeps to a policy, through an HTTP proxy unless that is empty. Called inside the running loop."""

logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells each URL whole, tokens included


@functools.cache
def _tls() -> ssl.SSLContext:
    """One context for all streams: each costs about 1 MiB."""
    return httpx.create_ssl_context(trust_env=False)


def http_transport(policy: AddressPolicy, proxy: str) -> httpx.AsyncBaseTransport | Door:
    """Return the real way, of one stream. Call it inside the running loop.

    Through a proxy the only address that is connected to is the proxy's, which is the operator's own: what names mean is its business.
    """
    if not proxy:
        return Connections(policy, _tls)
    door = ProxyPolicy()
    resolver = _Resolver(door)
    connector = aiohttp.TCPConnector(ssl=_tls(), limit=8, keepalive_timeout=30, socket_factory=door.make_socket, resolver=resolver)
    session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
    return _Proxied(session, httpx.URL(proxy))


def open_transport(connections: int) -> httpx.AsyncBaseTransport:
    """Return a transport to what operators name themselves, wherever that is. Call it inside the running loop.

    Put `asyncio.timeout` round the whole of a request, and give it no timeout for reading: aiohttp 3.14 on uvloop leaves that running on
    a connection that is kept, and once it is over the next request fails at once.
    """
    connector = aiohttp.TCPConnector(ssl=_tls(), limit=connections, keepalive_timeout=30)
    session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
    return AiohttpTransport(verify=False, trust_env=False, client=session)


def door_of(way: httpx.AsyncBaseTransport | Door) -> Door:
    """Return what a TransportFactory made as a Door."""
    return _ByHttpx(way) if isinstance(way, httpx.AsyncBaseTransport) else way


class _ByHttpx:
    """A Door by a transport of httpx."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def get(self, target: Target, headers: Mapping[str, str], answered: Answered) -> None:
        """See Door."""
        timeout = httpx.Timeout(None, connect=CONNECTED_WITHIN_S).as_dict()  # for each read none: see open_transport
        try:
            request = httpx.Request("GET", target.text, headers=dict(headers), extensions={"timeout": timeout})
            answer = await self._transport.handle_async_request(request)
            try:
                said = answer.headers
                sink = answered(Head(answer.status_code, dict(said), tuple(said.get_list("set-cookie"))))
                if sink is not None:
                    received = 0
                    async for chunk in answer.aiter_raw():
                        received += len(chunk)
                        sink(chunk)
                    _check_length(said.get("content-length", ""), received)
            finally:
                await answer.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, ValueError) as error:
            if refused := _refusal(error):
                raise AddressRefused(refused) from error
            raise HttpError(_told(error)) from error

    async def aclose(self) -> None:
        """See Door."""
        await self._transport.aclose()


def _check_length(declared: str, received: int) -> None:
    """Raise HttpError where fewer or more bytes came than were declared."""
    if declared.isdecimal() and declared.lstrip("0") != str(received).lstrip("0"):
        raise HttpError(f"{received} of {declared[:20]} bytes")


class _Proxied(AiohttpTransport):
    """Through an HTTP proxy. Its credentials go with CONNECT; without that, with the request, which the proxy reads itself."""

    def __init__(self, session: aiohttp.ClientSession, proxy: httpx.URL) -> None:
        self._told = {"proxy-authorization": basic(proxy)} if proxy.userinfo else {}
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


def _refusal(error: BaseException) -> str | None:
    """Return the refusal that the connection error came from; several addresses may have been tried."""
    seen: BaseException | None = error
    passed: set[int] = set()  # chains of exceptions can be rings
    while seen is not None and id(seen) not in passed:
        if isinstance(seen, RefusedSocket):
            return str(seen)
        passed.add(id(seen))
        seen = seen.__cause__ or seen.__context__
    text = str(error)
    return text if "not a public address" in text or "metadata address" in text else None


def _told(error: BaseException) -> str:
    """Return an error's text; aiohttp's own texts hold whole URLs, tokens included, so of those only the kind is told."""
    for one in (error, error.__cause__):
        if isinstance(one, aiohttp.ClientResponseError | aiohttp.InvalidURL) or (one is error and isinstance(one, aiohttp.ClientError)):
            return type(one).__name__
    text = str(error) or type(error).__name__
    return "".join(char if char.isprintable() else "?" for char in text[:200])
