"""Source URLs: what an operator may write, and how one is shown. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

from hlsrelay.errors import ConfigError

SCHEMES = ("http", "https")


LONGEST_SHOWN = 300
"""Characters of a URL that a log line or a page may hold."""


def checked_url(text: str) -> str:
    """Return *text* as a source's URL. Raises ConfigError that says what is wrong with it."""
    text = text.strip()
    if any(char.isspace() or not char.isprintable() for char in text):
        raise ConfigError(f"{redacted(text)!r} has a blank or control character in it: write them as %20")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{redacted(text)!r} is no URL ({_first_words(error)})") from None
    if parts.scheme not in SCHEMES or not host:
        raise ConfigError(f"{redacted(text)!r} can't be used: write an http:// or https:// URL")
    return text


def checked_base(text: str) -> str:
    """Return *text* as a URL that paths are put behind, without a slash at its end. Raises ConfigError."""
    url = checked_url(text)
    parts = urlsplit(url)
    if parts.query or parts.fragment or parts.path.endswith(".m3u8"):
        raise ConfigError(f"{redacted(url)!r} is no base URL: write it without file, '?' and '#', such as https://cdn.example/live")
    return url.rstrip("/")


def redacted(url: str) -> str:
    """Return *url* as logs and pages may show it: without user info and without the values of its query and of its path's parameters."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "?"
    if ":" in host:
        host = f"[{host}]"
    path = re.sub(r"([;=])[^/]*", r"\1…", parts.path)
    if not host:  # what stands before an @ may be a password all the same
        path = path.rpartition("@")[2]
    query = "&".join(f"{name}=…" if is_pair else "…" for name, is_pair, _ in (one.partition("=") for one in parts.query.split("&")))
    text = urlunsplit((parts.scheme, host + port, path, query if parts.query else "", ""))
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…"


def _first_words(error: ValueError) -> str:
    """Return what a ValueError of urlsplit says, without what it quotes: that may be a password."""
    return re.split("['\":]", str(error))[0].strip()
