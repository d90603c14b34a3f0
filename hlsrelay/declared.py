"""What a file says that is to be registered, and what has to change for that. Pure.

The file is YAML: `streams:` maps ids to fields, as they are in Redis. Lists, `yes`/`no` and numbers may be written as YAML has them.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from hlsrelay.errors import ConfigError
from hlsrelay.fields import OPERATOR_FIELDS, Registered, shown, stream_of

_JOINED = {"ladder": ",", "variants": ",", "backup": " ", "preload": " "}


@dataclass(frozen=True, slots=True)
class Difference:
    """What is to be added, changed and removed; *changed*: by stream and field what stands there and what is to, None for nothing."""

    added: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    changed: Mapping[str, Mapping[str, tuple[str | None, str | None]]] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def told(self) -> dict[str, Any]:
        """Return it as commands and the API tell it in JSON, without what is secret."""
        changed = {stream_id: {name: list(safe(name, pair)) for name, pair in fields.items()} for stream_id, fields in self.changed.items()}
        return {"added": list(self.added), "changed": changed, "removed": list(self.removed)}


def safe(name: str, pair: tuple[str | None, str | None]) -> tuple[str | None, str | None]:
    """Return both values of a field as they may be shown."""
    before, after = (None if value is None else shown({name: value})[name] for value in pair)
    return before, after


def declared(text: str) -> dict[str, dict[str, str]]:
    """Return the fields of each stream that *text* names, by id. Raises ConfigError that says where it is wrong, and what to write."""
    try:
        found = yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"this is no YAML: {' '.join(str(error).split())}") from None
    return declared_of(found)


def declared_of(found: Any) -> dict[str, dict[str, str]]:
    """Return the fields of each stream that a file, or a JSON body, names. Raises ConfigError as `declared` does."""
    if not isinstance(found, dict) or set(found) != {"streams"} or not isinstance(found["streams"] or {}, dict):
        raise ConfigError("the file has to be one mapping `streams:` of stream ids to their fields")
    streams = {}
    for stream_id, fields in (found["streams"] or {}).items():
        if not isinstance(stream_id, str):
            raise ConfigError(f"'{stream_id}' can't be a stream id: write it in quotes")
        if not isinstance(fields, dict):
            raise ConfigError(f"stream '{stream_id}' has to be a mapping of fields, such as source: https://example.com/live/index.m3u8")
        for name in fields:
            if name not in OPERATOR_FIELDS:
                raise ConfigError(f"stream '{stream_id}': '{name}' is no field: the fields are {', '.join(OPERATOR_FIELDS)}")
        words = {name: _word(stream_id, name, value) for name, value in fields.items()}
        streams[stream_id] = {"desired": "run"} | {name: word for name, word in words.items() if word}
        try:
            stream_of(stream_id, streams[stream_id])
        except ConfigError as error:
            raise ConfigError(f"stream '{stream_id}': {error}") from None
    return streams


def difference(wanted: Mapping[str, Mapping[str, str]], registered: Iterable[Registered], *, prune: bool) -> Difference:
    """Return what has to change; streams that are not *wanted* are left alone unless *prune*."""
    there = {one.id: {name: value for name, value in one.fields.items() if name in OPERATOR_FIELDS and value} for one in registered}
    changed = {}
    for stream_id, fields in wanted.items():
        before = {"desired": "run"} | there[stream_id] if stream_id in there else None
        if before is not None and before != fields:
            names = sorted(before.keys() | fields.keys())
            changed[stream_id] = {name: (before.get(name), fields.get(name)) for name in names if before.get(name) != fields.get(name)}
    added = {stream_id: fields for stream_id, fields in wanted.items() if stream_id not in there}
    return Difference(added, changed, tuple(sorted(there.keys() - wanted.keys())) if prune else ())


def _word(stream_id: str, name: str, value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case str() | int() | float():
            return str(value).strip()
        case list() if name in _JOINED and all(isinstance(one, str | int) for one in value):
            return _JOINED[name].join(map(str, value))
        case dict() if name == "headers":
            return json.dumps(value)
        case _:
            raise ConfigError(f"stream '{stream_id}': {name} can't be a {type(value).__name__}: {OPERATOR_FIELDS[name]}")


class _Loader(yaml.SafeLoader):
    """YAML without a key that stands twice in one mapping: which of the two is meant nobody knows."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        for name in names:
            if isinstance(name, Hashable) and names.count(name) > 1:
                raise ConfigError(f"'{name}' stands twice in one mapping, line {node.start_mark.line + 1} on: write it once")
        return super().construct_mapping(node, deep)
