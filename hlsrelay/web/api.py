"""The HTTP API for operators: what the command line does, as JSON. It changes things, so it wants to know who asks.

Laws:
- Nobody gets in without the token: HLSRELAY_API_TOKEN, or one that is made and kept in the data folder, for whoever may read that. That
  somebody asks over loopback says nothing: so does every proxy of this machine, for anybody.
- Header values and credentials in URLs never come out again.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from hlsrelay import steering
from hlsrelay.declared import declared_of
from hlsrelay.errors import ConfigError, HlsRelayError, RegistryUnavailable, ResourceBusy, UnknownStream
from hlsrelay.fields import Registered, shown
from hlsrelay.registry import Registry, fetched
from hlsrelay.web.answers import NO_STORE, NOSNIFF, Answer, short
from hlsrelay.web.openapi import openapi

MOST_BYTES = 1 << 20
_STATUS: Mapping[type[HlsRelayError], int] = {ConfigError: 400, UnknownStream: 404, ResourceBusy: 409, RegistryUnavailable: 503}
KEPT_AS = "api-token"

Act = Callable[[Registry, Request, dict[str, Any]], Awaitable[object]]


class Refused(Exception):
    """A request that is not let in, with the status and the words that say why."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def api_routes(registry: Registry, token: str) -> list[Route]:
    """Return the routes of the API, for who has the *token*."""

    def route(path: str, method: str, act: Act, status: int = 200) -> Route:
        async def endpoint(request: Request) -> Answer:
            try:
                _let_in(request, token)
                body = await _body(request) if method in ("POST", "PATCH", "PUT") else {}
                return _json(await act(registry, request, body), status)
            except Refused as refused:
                more = ((b"www-authenticate", b"Bearer"),) if refused.status == 401 else ()
                return short(refused.status, str(refused), *more)
            except HlsRelayError as error:
                return short(next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500), str(error))

        return Route(path, endpoint, methods=[method])

    return [
        route("/api/openapi.json", "GET", _openapi),
        route("/api/streams", "POST", _register, 201),
        route("/api/streams/{id}", "GET", _show),
        route("/api/streams/{id}", "PATCH", _change),
        route("/api/streams/{id}", "DELETE", _remove),
        route("/api/streams/{id}/move", "POST", _move),
        route("/api/apply", "POST", _apply),
        route("/api/nodes", "GET", _nodes),
        route("/api/nodes/{name}/drain", "POST", _drain),
    ]


def local_token(data: Path) -> str:
    """Return the token in the data folder, made where there is none. Raises ResourceBusy where the folder can't be written."""
    path = data / KEPT_AS
    try:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=data, prefix=f".{KEPT_AS}-") as made:  # nobody else may read it
            made.write(secrets.token_urlsafe(32))
            made.flush()
            with suppress(FileExistsError):
                os.link(made.name, path)
        return path.read_text().strip()
    except OSError as error:
        raise ResourceBusy(f"{path} can't be had: {error.strerror}; set HLSRELAY_DATA to a folder that can be written") from None


def _let_in(request: Request, token: str) -> None:
    """Raise Refused unless who asks has the token."""
    given = request.headers.get("authorization", "")
    if not token or not hmac.compare_digest(given.encode(errors="replace"), f"Bearer {token}".encode()):
        raise Refused(
            401, f"This needs the header Authorization: Bearer, with HLSRELAY_API_TOKEN, or what {KEPT_AS} in HLSRELAY_DATA holds."
        )


async def _body(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "The body has to be JSON, and Content-Type: application/json.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise Refused(413, f"The body may have {MOST_BYTES} bytes.")
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise Refused(400, "The body is no JSON.") from None
    if not isinstance(found, dict):
        raise Refused(400, "The body has to be a JSON object.")
    return found


def _json(value: object, status: int) -> Answer:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    headers = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), NO_STORE, NOSNIFF)
    return Answer(status, headers, body)


def _stream(registered: Registered) -> dict[str, str]:
    return {"id": registered.id, **shown(registered.fields)}


def _words(body: Mapping[str, Any]) -> dict[str, str]:
    """Return fields as text. Raises ConfigError for what is none; null unsets."""
    for name, value in body.items():
        if (value is not None and not isinstance(value, str | int | float)) or isinstance(value, bool):
            raise ConfigError(f"{name} has to be text, a number, or null")
    return {name: "" if value is None else str(value).strip() for name, value in body.items()}


async def _register(registry: Registry, _: Request, body: dict[str, Any]) -> object:
    words = _words(body)
    return _stream(await steering.register(registry, words.pop("id", ""), {"desired": "run", **words}))


async def _show(registry: Registry, request: Request, _: dict[str, Any]) -> object:
    return _stream(await fetched(registry, request.path_params["id"]))


async def _change(registry: Registry, request: Request, body: dict[str, Any]) -> object:
    words, stream_id = _words(body), request.path_params["id"]
    if words.keys() == {"desired"} and words["desired"] in ("run", "stop"):
        return _stream(await steering.desire(registry, stream_id, words["desired"]))
    return _stream(await steering.change(registry, stream_id, words))


async def _remove(registry: Registry, request: Request, _: dict[str, Any]) -> object:
    await steering.remove(registry, request.path_params["id"])
    return {"id": request.path_params["id"], "removed": True}


async def _move(registry: Registry, request: Request, body: dict[str, Any]) -> object:
    return _stream(await steering.move(registry, request.path_params["id"], _words(body).get("node", "")))


async def _apply(registry: Registry, _: Request, body: dict[str, Any]) -> object:
    flags = {name: body.pop(name, False) for name in ("prune", "dry_run")}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise ConfigError("prune and dry_run are true or false")
    found = await steering.differs(registry, declared_of(body), prune=flags["prune"])
    if found and not flags["dry_run"]:
        await steering.apply(registry, found)
    return {**found.told(), "applied": bool(found) and not flags["dry_run"]}


async def _nodes(registry: Registry, _: Request, __: dict[str, Any]) -> object:
    return {"nodes": [steering.told(one) for one in await registry.sessions()]}


async def _drain(registry: Registry, request: Request, body: dict[str, Any]) -> object:
    undo = body.get("undo", False)
    if not isinstance(undo, bool):
        raise ConfigError("undo is true or false")
    await steering.drain(registry, request.path_params["name"], undo=undo)
    return {"node": request.path_params["name"], "drains": not undo}


async def _openapi(_: Registry, __: Request, ___: dict[str, Any]) -> object:
    return openapi()
