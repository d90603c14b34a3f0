"""Source URLs: what an operator may write, and how one is shown. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from hlsrelay.errors import ConfigError

SCHEMES = ("http", "https")


def checked_url(text: str) -> str:
    """Return *text* as a source's URL. Raises ConfigError that says what is wrong with it."""
    try:
        parts = urlsplit(text.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{redacted(text)!r} is no URL ({error})") from None
    if any(char.isspace() or ord(char) < 32 for char in text.strip()):
        raise ConfigError(f"{redacted(text)!r} has a blank or control character in it: write them as %20")
    if parts.scheme not in SCHEMES or not host:
        raise ConfigError(f"{redacted(text)!r} can't be used: write an http:// or https:// URL")
    return text.strip()


def redacted(url: str) -> str:
    """Return *url* as logs and pages may show it: without user info and without the values of its query."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "?"
    if ":" in host:
        host = f"[{host}]"
    query = "&".join(f"{pair.partition('=')[0]}=…" for pair in parts.query.split("&")) if parts.query else ""
    return urlunsplit((parts.scheme, host + port, parts.path, query, ""))
