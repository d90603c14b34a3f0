"""The fields of a stream's hash: what operators write, checked, and what the relay writes back. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hlsrelay.errors import ConfigError
from hlsrelay.ladder import parse_ladder
from hlsrelay.model import Desired, KeyPolicy, Polling, Stream
from hlsrelay.redis_keys import STREAM_ID
from hlsrelay.urls import checked_base, checked_url, redacted

OPERATOR_FIELDS: Mapping[str, str] = {
    "source": "URL of the live HLS playlist to relay, multivariant or media (needed)",
    "backup": "further URLs of the same programme, blanks between, to fail over to in this order (default: none)",
    "stall": "seconds without anything new after which the next source is taken, 1 to 3600 (default: 3 target durations, at least 5)",
    "hold": "seconds that the primary must have been well before it is taken back, 1 to 86400 (default: 10 target durations, at least 30); "
    "doubled, up to an hour, each time that it fails again within an hour",
    "headers": 'HTTP headers, as a JSON object such as {"Referer": "https://example.com/"}: User-Agent, Referer, Origin and Accept… '
    "for every host that is asked, all others for the source's own scheme, host and port only (default: none)",
    "proxy": "HTTP proxy to reach the source through, such as http://user:password@10.0.0.1:3128 (default: none)",
    "desired": "run or stop (default: run)",
    "ladder": "rungs to make, comma between: 1080p, 720p, 480p, 360p, audio, or name:height:kbps, behind that a codec (h264, hevc or av1) "
    "and a bitrate for the audio if it is not to be copied; audio:64 is audio alone (default: none, pass-through)",
    "variants": "what of a multivariant source to relay: all, best, <=720p, or names of variants (default: all)",
    "keys": "where players get decryption keys: proxy, from us, fetched once; or origin, from where the source says (default: proxy)",
    "polling": "when the source's playlists are asked for: fast, just when it publishes, which is learnt; polite, no sooner than RFC 8216 "
    "6.3.4 has it; or fast, but with so many seconds between two requests at least, 0.1 to 60 (default: fast)",
    "window": "seconds of media that the playlists list, 6 to 86400 (default: 60)",
    "on_demand": "yes: relay only while somebody watches, from the first playlist request on; or no (default: no)",
    "idle_timeout": "seconds without a request after which an on_demand stream stops its relay, 10 to 86400 (default: 60)",
    "preload": "base URLs of caches, blanks between, such as https://cdn.example/live: each new file is pulled through them, as "
    "<base>/<id>/<rendition>/<file>, before it is listed, which holds it back by 0.5 s at most (default: none)",
}
RELAY_FIELDS: Mapping[str, str] = {
    "state": "starting, running, stalled, idle (on_demand, and nobody watches), ended, stopped, failed, or registered when nobody does",
    "node": "who relays it",
    "session": "the process that does; a stream is free where it is empty, or its lease ran out",
    "epoch": "which claim of the stream that was; it rises with each, and what an earlier owner writes after a later claim is refused",
    "carried": "which claim last kept where its numbering stands, for an owner that has none of its files",
    "wanted": "the session that asks for it to be handed over",
    "attempt": "how often in a row relaying it failed at once",
    "retry_at": "when it is tried again, where it failed",
    "since": "when it entered this state",
    "last_sequence": "newest media sequence number published",
    "lag": "seconds from the load that listed the newest segment at the source to our listing it",
    "last_error": "what went wrong last, and when; empty when nothing did",
    "repairs": "what the source broke and the relay made right, each name with its count since this relay started",
    "ladder_trouble": "what the ladder lacks at present: rungs dropped under overload, or why it is paused; empty when it is whole",
    "reason": "why the state is failed: which field is wrong and what to write",
}
FIGURES = frozenset(("last_sequence", "lag", "last_error", "repairs", "ladder_trouble"))
"""Those of the relay's fields that change with the segments. They have a hash of their own: of a change in the other every node hears."""
_OURS = {"host", "range", "accept-encoding", "content-length", "transfer-encoding", "connection"}
SHORTEST_WINDOW_S, LONGEST_WINDOW_S, DEFAULT_WINDOW_S = 6.0, 86_400.0, 60.0
SHORTEST_IDLE_S, LONGEST_IDLE_S, DEFAULT_IDLE_S = 10.0, 86_400.0, 60.0


@dataclass(frozen=True, slots=True)
class Registered:
    """A stream's hash as read: all fields, as text."""

    id: str
    fields: Mapping[str, str]


def checked_id(text: str) -> str:
    """Return *text* as a stream's id. Raises ConfigError."""
    if not re.fullmatch(STREAM_ID, text) or ".." in text:
        raise ConfigError(f"'{text}' can't be a stream id: letters, digits, '_', '-' and '.', at most 64, a letter or digit first, no '..'")
    return text


def stream_of(stream_id: str, fields: Mapping[str, str]) -> Stream:
    """Return the stream that *fields* describe. Raises ConfigError that names the field and says what to write."""
    for name in fields:
        if name not in OPERATOR_FIELDS and name not in RELAY_FIELDS:
            raise ConfigError(f"stream '{stream_id}' has a field '{name}' that nothing reads: the fields are {', '.join(OPERATOR_FIELDS)}")
    if not fields.get("source"):
        raise ConfigError(f"stream '{stream_id}' has no source: set its field 'source' to the URL of an HLS playlist")
    try:
        desired = Desired(fields.get("desired", Desired.RUN).strip().lower())
    except ValueError:
        raise ConfigError(f"desired is '{fields['desired']}': write run or stop") from None
    return Stream(
        id=checked_id(stream_id),  # whoever writes to Redis may write any: it becomes a folder
        source=checked_url(fields["source"]),
        desired=desired,
        ladder=parse_ladder(fields.get("ladder", "")),
        window_s=_seconds("window", fields, SHORTEST_WINDOW_S, LONGEST_WINDOW_S) or DEFAULT_WINDOW_S,
        headers=_headers(fields.get("headers", "")),
        proxy=checked_url(fields["proxy"]) if fields.get("proxy") else "",
        backups=tuple(checked_url(url) for url in fields.get("backup", "").split()),
        stall_s=_seconds("stall", fields, 1.0, 3600.0),
        hold_s=_seconds("hold", fields, 1.0, 86_400.0),
        keys=_keys(fields.get("keys", "")),
        variants=_variants(fields.get("variants", "")),
        on_demand=_yes("on_demand", fields),
        idle_timeout_s=_seconds("idle_timeout", fields, SHORTEST_IDLE_S, LONGEST_IDLE_S) or DEFAULT_IDLE_S,
        polling=_polling(fields.get("polling", "")),
        preload=_preload(fields.get("preload", "")),
    )


def _preload(text: str) -> tuple[str, ...]:
    try:
        return tuple(checked_base(url) for url in text.split())
    except ConfigError as error:
        raise ConfigError(f"preload: {error}") from None


def _polling(text: str) -> Polling:
    text = text.strip().lower() or "fast"
    if text in ("fast", "polite"):
        return Polling(polite=text == "polite")
    try:
        closest_s = float(text)
    except ValueError:
        closest_s = 0.0
    if not 0.1 <= closest_s <= 60:
        raise ConfigError(f"polling is '{text}': write fast, polite, or seconds from 0.1 to 60")
    return Polling(closest_s=closest_s)


def _variants(text: str) -> str:
    text = text.strip() or "all"
    if not re.fullmatch(r"all|best|<=\s*\d{1,4}p|[A-Za-z0-9-]+(\s*,\s*[A-Za-z0-9-]+)*", text):
        raise ConfigError(f"variants is '{text}': write all, best, <=720p, or names of variants with commas between")
    return text


def _headers(text: str) -> tuple[tuple[str, str], ...]:
    if not text.strip():
        return ()
    hint = 'write a JSON object of text, such as {"Referer": "https://example.com/"}'
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"headers is no JSON: {hint}") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ConfigError(f"headers is not what is needed: {hint}")
    for name, value in found.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", name) or not re.fullmatch(r"[\t\x20-\x7e]{0,4096}", value):
            raise ConfigError(f"headers: {name!r} can't be sent: names are HTTP tokens, values printable ASCII without line breaks")
        if name.lower() in _OURS:
            raise ConfigError(f"headers: {name} is set by the relay itself: leave it out")
    return tuple(sorted(found.items()))


def shown(fields: Mapping[str, str]) -> dict[str, str]:
    """Return a stream's fields as commands and pages may show them: URLs redacted, header values left out."""
    safe = dict(fields)
    for name in ("source", "proxy"):
        if name in safe:
            safe[name] = redacted(safe[name])
    for name in ("backup", "preload"):
        if name in safe:
            safe[name] = " ".join(redacted(url) for url in safe[name].split())
    if "headers" in safe:
        try:
            safe["headers"] = ", ".join(f"{name}: …" for name, _ in _headers(safe["headers"]))
        except ConfigError:
            safe["headers"] = "…"
    return safe


def _keys(text: str) -> KeyPolicy:
    try:
        return KeyPolicy(text.strip() or KeyPolicy.PROXY)
    except ValueError:
        raise ConfigError(f"keys is '{text}': write proxy or origin") from None


def _yes(name: str, fields: Mapping[str, str]) -> bool:
    """Return whether a field says yes; an empty one says no."""
    text = fields.get(name, "").strip().lower() or "no"
    if text not in ("yes", "no"):
        raise ConfigError(f"{name} is '{fields[name]}': write yes or no")
    return text == "yes"


def _seconds(name: str, fields: Mapping[str, str], least: float, most: float) -> float | None:
    """Return a field of seconds, None where it is empty."""
    text = fields.get(name, "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= most:
        raise ConfigError(f"{name} is '{text}': write seconds from {least:.0f} to {most:.0f}")
    return seconds
