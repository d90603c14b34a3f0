"""The HTTP API for operators, over the registry in memory: what it does, whom it lets in, what it says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from hlsrelay import steering
from hlsrelay.errors import ResourceBusy
from hlsrelay.fields import OPERATOR_FIELDS
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.web import api_routes, create_app, local_token
from hlsrelay.web.openapi import openapi
from tests.integration.memory_site import MemorySite
from tests.virtual import elapse, run_virtually

SOURCE = "https://example.com/live.m3u8"
TOKEN = "a token"


class Asking:
    """A client of the API of a node; *peer* is where it comes from."""

    def __init__(self, folder: Path, token: str = TOKEN) -> None:
        self.registry = MemoryRegistry()
        self._app = create_app(MemorySite(folder), api=api_routes(self.registry, token))

    def __call__(
        self, method: str, path: str, body: Any = None, *, peer: str = "127.0.0.1", base: str = "http://127.0.0.1:8080", **headers_: str
    ) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, client=(peer, 1))
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                headers = {"authorization": f"Bearer {TOKEN}", **headers_}
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                raw = isinstance(body, bytes)
                return await client.request(method, path, json=None if raw else body, content=body if raw else None, headers=named)

        return asyncio.run(once())


@pytest.fixture
def ask(tmp_path: Path) -> Asking:
    return Asking(tmp_path)


def test_a_stream_lives_through_all_that_the_api_does(ask: Asking) -> None:
    made = ask("POST", "/api/streams", {"id": "news", "source": f"{SOURCE}?token=secret", "window": 90})
    assert (made.status_code, made.json()["desired"], made.json()["window"]) == (201, "run", "90")
    assert "secret" not in made.text
    assert ask("PATCH", "/api/streams/news", {"ladder": "480p", "window": None}).json()["ladder"] == "480p"
    assert ask.registry.streams["news"] == {"source": f"{SOURCE}?token=secret", "desired": "run", "ladder": "480p"}
    assert ask("PATCH", "/api/streams/news", {"desired": "stop"}).json()["desired"] == "stop"
    assert ask("GET", "/api/streams/news").json()["id"] == "news"
    told = ask("POST", "/api/apply", {"streams": {"sport": {"source": SOURCE, "ladder": ["480p", "360p"]}}, "prune": True, "dry_run": True})
    assert told.json() == {"added": ["sport"], "changed": {}, "removed": ["news"], "applied": False}
    assert ask("POST", "/api/apply", {"streams": {"sport": {"source": SOURCE}}, "prune": True}).json()["applied"] is True
    assert ask.registry.streams == {"sport": {"source": SOURCE, "desired": "run"}}
    assert ask("DELETE", "/api/streams/sport").json() == {"id": "sport", "removed": True}
    assert ask.registry.streams == {}


def test_nodes_are_told_of_and_told_to_drain(ask: Asking) -> None:
    asyncio.run(ask.registry.beat("session of a", None, {"name": "a", "state": "active", "load": "11", "capacity": "a few"}, 1e9))
    ask.registry.now_s = lambda: 1e9  # type: ignore[method-assign]
    [told] = ask("GET", "/api/nodes").json()["nodes"]
    assert (told["name"], told["load"], told["capacity"]) == ("a", 11, "a few")
    assert ask("POST", "/api/nodes/a/drain", {}).json() == {"node": "a", "drains": True}
    assert ask("GET", "/api/nodes").json()["nodes"][0]["wish"] == "drain"
    assert ask("POST", "/api/nodes/a/drain", {"undo": True}).json() == {"node": "a", "drains": False}
    assert ask("POST", "/api/nodes/b/drain", {}).status_code == 400


@pytest.mark.parametrize("state", ["running", "starting"])
def test_a_stream_is_moved_once_it_runs_there_or_is_tried_there_where_it_ran_nowhere(state: str) -> None:
    async def body() -> None:
        registry = MemoryRegistry()
        registry.streams["news"] = {"source": SOURCE, "state": state, "session": "session of a"}
        await registry.beat("session of b", None, {"name": "b", "state": "active", "capacity": "10"}, 1e9)
        moving = asyncio.create_task(steering.move(registry, "news", "b"))
        await elapse(1)
        assert registry.streams["news"]["wanted"] == "session of b"
        registry.streams["news"] |= {"session": "session of b", "state": "starting", "wanted": ""}
        await elapse(1)
        assert moving.done() == (state == "starting")
        registry.streams["news"]["state"] = state
        assert (await moving).fields["session"] == "session of b"

    run_virtually(body())


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/api/streams", {"id": "news", "source": "ftp://x/y"}, 400, "http:// or https://"),
        ("POST", "/api/streams", {"id": "no/id", "source": SOURCE}, 400, "stream id"),
        ("POST", "/api/streams", {"source": SOURCE}, 400, "stream id"),
        ("POST", "/api/streams", {"id": "there", "source": SOURCE}, 400, "registered already"),
        ("POST", "/api/streams", {"id": "news", "source": SOURCE, "state": "running"}, 400, "'state' is no field"),
        ("POST", "/api/streams", {"id": "news", "source": [SOURCE]}, 400, "source has to be text"),
        ("PATCH", "/api/streams/there", {"window": "wide"}, 400, "window is 'wide'"),
        ("PATCH", "/api/streams/nosuch", {"window": "90"}, 404, "hlsrelay add nosuch"),
        ("GET", "/api/streams/nosuch", None, 404, "hlsrelay add nosuch"),
        ("DELETE", "/api/streams/nosuch", None, 404, "hlsrelay add nosuch"),
        ("POST", "/api/streams/there/move", {"node": "a"}, 400, "no node is called 'a'"),
        ("POST", "/api/apply", {"streams": {"news": {}}}, 400, "no source"),
        ("POST", "/api/apply", {"streams": {}, "prune": "yes"}, 400, "true or false"),
        ("POST", "/api/apply", [], 400, "JSON object"),
        ("PUT", "/api/streams/there", {}, 405, "only be read"),
    ],
)
def test_what_cannot_work_is_one_line_and_changes_nothing(ask: Asking, method: str, path: str, body: Any, status: int, words: str) -> None:
    ask.registry.streams["there"] = {"source": SOURCE}
    answer = ask(method, path, body)
    assert answer.status_code == status
    assert words in answer.text
    assert answer.text.count("\n") == 1
    assert ask.registry.streams == {"there": {"source": SOURCE}}


def test_a_redis_that_is_away_is_503(ask: Asking) -> None:
    ask.registry.away = True
    assert ask("GET", "/api/nodes").status_code == 503


NEW = {"id": "news", "source": SOURCE}


@pytest.mark.parametrize(
    ("given", "status"), [(f"Bearer {TOKEN}", 201), ("", 401), ("Bearer", 401), ("Bearer another", 401), (TOKEN, 401), ("Basic abc", 401)]
)
def test_nobody_gets_in_without_the_token_from_wherever(ask: Asking, given: str, status: int) -> None:
    for peer, base in (("10.0.0.7", "http://relay.example"), ("127.0.0.1", "http://127.0.0.1:8080")):
        ask.registry.streams.clear()
        answer = ask("POST", "/api/streams", NEW, peer=peer, base=base, authorization=given)
        assert answer.status_code == status
        assert ("www-authenticate" in answer.headers) == (status == 401)
        assert bool(ask.registry.streams) == (status == 201)


def test_an_empty_token_lets_nobody_in(tmp_path: Path) -> None:
    ask = Asking(tmp_path, "")
    for given in ("", "Bearer", "Bearer "):
        assert ask("GET", "/api/nodes", authorization=given).status_code == 401


def test_a_token_is_made_once_for_who_runs_us_alone(tmp_path: Path) -> None:
    token = local_token(tmp_path / "data")
    assert len(token) >= 40
    assert local_token(tmp_path / "data") == token
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["api-token"]
    assert (tmp_path / "data" / "api-token").stat().st_mode & 0o077 == 0
    with pytest.raises(ResourceBusy, match="HLSRELAY_DATA"):
        local_token(tmp_path / "data" / "api-token")


def test_only_json_is_read_and_what_is_no_text_is_told_in_text(ask: Asking) -> None:
    assert ask("POST", "/api/streams", NEW, content_type="text/plain").status_code == 415
    assert (
        ask("POST", "/api/streams", b'{"id": "\\ud800", "source": "https://example.com/"}', content_type="application/json").status_code
        == 400
    )


def test_a_body_without_end_is_refused(ask: Asking) -> None:
    assert ask("POST", "/api/streams", {"id": "x" * (1 << 20)}).status_code == 413


def test_the_description_names_every_path_method_and_field(ask: Asking) -> None:
    told = ask("GET", "/api/openapi.json").json()
    assert told == json.loads(json.dumps(openapi()))
    described = {(path, method.upper()) for path, methods in told["paths"].items() for method in methods}
    served = {(route.path, next(iter(set(route.methods or ()) - {"HEAD"}))) for route in api_routes(ask.registry, "")}
    assert described == served | {("/api/streams", "GET")}
    assert told["components"]["schemas"]["Fields"]["properties"].keys() == OPERATOR_FIELDS.keys()
    names = json.dumps(told)
    for schema in ("Fields", "NewStream", "Stream", "Difference", "Declared"):
        assert f'"#/components/schemas/{schema}"' in names
