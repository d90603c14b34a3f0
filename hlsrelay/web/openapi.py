"""The description of the HTTP API, made of the fields that there are."""

from __future__ import annotations

from typing import Any

from hlsrelay import __version__
from hlsrelay.fields import OPERATOR_FIELDS, RELAY_FIELDS


def openapi() -> dict[str, Any]:
    """Return the API's description (OpenAPI 3.1)."""
    fields = {name: {"type": "string", "description": text} for name, text in OPERATOR_FIELDS.items()}
    seen = {name: {"type": "string", "description": text} for name, text in RELAY_FIELDS.items()}
    schemas = {
        "Fields": {"type": "object", "properties": fields, "additionalProperties": False},
        "NewStream": {"type": "object", "properties": {"id": {"type": "string"}, **fields}, "required": ["id", "source"]},
        "Stream": {"type": "object", "properties": {"id": {"type": "string"}, **fields, **seen}, "required": ["id"]},
        "Difference": {
            "type": "object",
            "properties": {
                "added": {"type": "array", "items": {"type": "string"}},
                "changed": {"type": "object", "description": "by stream and field: what stands there, and what is to; null for nothing"},
                "removed": {"type": "array", "items": {"type": "string"}},
                "applied": {"type": "boolean"},
            },
        },
        "Declared": {
            "type": "object",
            "properties": {
                "streams": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Fields"}},
                "prune": {"type": "boolean", "description": "remove streams that are not named"},
                "dry_run": {"type": "boolean", "description": "tell the difference, and change nothing"},
            },
            "required": ["streams"],
        },
    }
    stream, node = _parameter("id", "the stream"), _parameter("name", "the node, as /api/nodes names it")

    to = {"type": "object", "properties": {"node": {"type": "string"}}, "required": ["node"]}
    undo = {"type": "object", "properties": {"undo": {"type": "boolean"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "hlsrelay", "version": __version__, "description": "What the command line does, for programs."},
        "security": [{"token": []}, {}],
        "paths": {
            "/api/streams": {
                "get": _does("all streams at a glance; open to whoever reaches the port"),
                "post": _does("register a stream", "Stream", "NewStream", 201),
            },
            "/api/streams/{id}": {
                "get": _does("a stream's fields", "Stream", "", 200, stream),
                "patch": _does("set fields of a stream; null unsets one", "Stream", "Fields", 200, stream),
                "delete": _does("forget a stream", "", "", 200, stream),
            },
            "/api/streams/{id}/move": {"post": _does("have a node take a stream over", "Stream", to, 200, stream)},
            "/api/apply": {"post": _does("make what is registered what is declared", "Difference", "Declared")},
            "/api/nodes": {"get": _does("the nodes")},
            "/api/nodes/{name}/drain": {"post": _does("have a node hand on its streams", "", undo, 200, node)},
            "/api/openapi.json": {"get": _does("this description")},
        },
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _parameter(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}


def _does(
    summary: str, answer: str = "", body: str | dict[str, Any] = "", status: int = 200, *parameters: dict[str, Any]
) -> dict[str, Any]:
    """Return one operation; *answer* and *body* name schemas, or *body* is one."""
    schema = {"$ref": f"#/components/schemas/{answer}"} if answer else {"type": "object"}
    told: dict[str, Any] = {
        "summary": summary,
        "responses": {
            str(status): {"description": "done", "content": {"application/json": {"schema": schema}}},
            "default": {"description": "one line of text that says what is wrong", "content": {"text/plain": {}}},
        },
    }
    if parameters:
        told["parameters"] = list(parameters)
    if body:
        wanted = body if isinstance(body, dict) else {"$ref": f"#/components/schemas/{body}"}
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": wanted}}}
    return told
