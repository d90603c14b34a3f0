"""The ASGI application: which path is answered by what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hlsrelay import __version__, statuses
from hlsrelay.edge import HOP
from hlsrelay.errors import HlsRelayError
from hlsrelay.statuses import StreamStatus
from hlsrelay.web.answers import NO_STORE, Answer, Texts, short
from hlsrelay.web.files import Live
from hlsrelay.web.site import Site

PAGE_DIR = Path(__file__).parents[1] / "web_page"
HLS_JS = "node_modules/hls.js"
NO_HLS_JS = b"// hls.js isn't installed here (make install puts it in place when npm is there): the page uses the browser's own HLS.\n"

SECURITY = (  # blob: is how hls.js feeds the video element and starts its worker
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; media-src 'self' blob:; "
        b"worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
)
LIVE = "/live/"
REVALIDATE = (b"cache-control", b"no-cache")

log = structlog.get_logger()

_ASSETS = {
    "page.js": (("page.js",), b"text/javascript; charset=utf-8"),
    "page.css": (("page.css",), b"text/css; charset=utf-8"),
    "icon.svg": (("icon.svg",), b"image/svg+xml"),
    "hls.js": ((f"{HLS_JS}/dist/hls.min.js", f"{HLS_JS}/dist/hls.light.min.js"), b"text/javascript; charset=utf-8"),
    "hls.js.LICENSE.txt": ((f"{HLS_JS}/LICENSE",), b"text/plain; charset=utf-8"),
}
"""Name below /assets: the files it may be (the first that is there), and its type."""

_FIELDS = tuple(field.name for field in fields(StreamStatus))


def create_app(site: Site, *, page_dir: Path = PAGE_DIR, api: Sequence[Route] = ()) -> ASGIApp:
    """Return the web application of *site*; *page_dir* holds the page and, where npm was there, hls.js; *api* is the operators'."""
    texts = Texts()

    def asset(request: Request, name: str, paths: tuple[str, ...], content_type: bytes) -> Answer:
        for path in paths:
            try:
                body = (page_dir / path).read_bytes()
            except OSError:
                continue
            return texts.answer(request.scope, name, body, (b"content-type", content_type), REVALIDATE, *SECURITY)
        if name == "assets/hls.js":
            return texts.answer(request.scope, name, NO_HLS_JS, (b"content-type", content_type), NO_STORE)
        return short(404, "There is no such page here.")

    def json_of(request: Request, value: object) -> Answer:
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        return texts.answer(request.scope, request.url.path, body, (b"content-type", b"application/json"), NO_STORE)

    async def page(request: Request) -> Answer:
        return asset(request, "page", ("index.html",), b"text/html; charset=utf-8")

    async def assets(request: Request) -> Answer:
        name = request.path_params["name"]
        return asset(request, f"assets/{name}", *_ASSETS[name]) if name in _ASSETS else short(404, "There is no such page here.")

    async def streams(request: Request) -> Answer:
        try:
            found = sorted(await site.streams(), key=lambda status: status.id)
        except HlsRelayError as error:
            return short(503, str(error))
        return json_of(request, {"streams": [{name: getattr(status, name) for name in _FIELDS} for status in found]})

    async def processes(request: Request) -> Answer:
        return json_of(request, statuses.shown(await site.nodes()))

    async def window(request: Request) -> Answer:
        """For nodes only: what players know of a stream that another one goes on with."""
        body = site.handed_on(request.path_params["stream"]) if request.headers.get(HOP) else None
        if body is None:
            return short(404, "There is no such page here.")
        return Answer(200, ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), NO_STORE), body)

    async def healthz(request: Request) -> Answer:
        return json_of(request, {"status": "ok", "ready": site.ready(), "redis": site.hears_redis(), "version": __version__})

    async def readyz(_: Request) -> Answer:
        return short(200, "ready") if site.ready() else short(503, "not ready: draining, or not started yet")

    async def metrics(request: Request) -> Answer:
        return texts.answer(
            request.scope, "metrics", site.metrics(), (b"content-type", b"text/plain; version=0.0.4; charset=utf-8"), NO_STORE
        )

    live = Live(site, texts)
    app = Starlette(
        routes=[
            Route("/live/{path:path}", live),
            Route("/window/{stream}", window),
            Route("/", page),
            Route("/assets/{name}", assets),
            Route("/api/streams", streams),
            Route("/api/processes", processes),
            *api,
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ],
        exception_handlers={404: _not_found, 405: _not_allowed, Exception: _failed},
    )
    app.router.redirect_slashes = False  # a redirect costs a player a round trip (Apple's authoring specification 8.18)
    return _Front(app, live, site)


class _Front:
    """What is in front of the routes.

    Players' requests go past them: matching and guarding them costs as much as the answer. Once we are about to leave, each connection ends
    with its next answer: players come to another process by themselves.
    """

    def __init__(self, app: ASGIApp, live: ASGIApp, site: Site) -> None:
        self._app = app
        self._live = live
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        answering = send if self._site.ready() else closing
        path: str = scope["path"]
        if scope["type"] != "http" or not path.startswith(LIVE) or len(path) == len(LIVE):
            await self._app(scope, receive, answering)
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await answering(message)

        try:
            await self._live({**scope, "path_params": {"path": path.removeprefix(LIVE)}}, receive, noting)
        except Exception as error:
            if started:
                raise
            await (await _failed(Request(scope), error))(scope, receive, answering)


async def _not_found(_: Request, __: Exception) -> Answer:
    return short(404, "There is no such page here.")


async def _not_allowed(_: Request, __: Exception) -> Answer:
    return short(405, "This can only be read.", (b"allow", b"GET, HEAD"))


async def _failed(request: Request, error: Exception) -> Answer:
    log.error("web.failed", path=request.url.path, exc_info=error)
    return short(500, "Something went wrong here; the relay's log says what.")
