"""EXT-X-DEFINE (rfc8216bis 4.4.2.3): the variables of a source's playlists, put in where they are named. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl, urlsplit

from hlsrelay.errors import PlaylistError

MOST_SUBSTITUTED_CHARACTERS = 4 << 20

_ATTRIBUTE = re.compile(r'(?<![A-Z0-9-])([A-Z0-9-]++)=("[^"]*"|[^",]*)')  # anchored: else a long name without "=" takes its square
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
"""What no line of a playlist may hold (RFC 8216 4.1), and what some readers take for its end."""
_VARIABLE = re.compile(r"\{\$([A-Za-z0-9_-]+)\}")


def attributes(line: str) -> dict[str, str]:
    """Return a tag's attribute list (RFC 8216 4.2), quotes kept; what is no attribute is passed over."""
    return dict(_ATTRIBUTE.findall(line.partition(":")[2]))


def substituted(lines: list[str], url: str, imported: Mapping[str, str]) -> Iterator[str]:
    """Replace the variables of EXT-X-DEFINE (rfc8216bis 4.3): players of ours see none of them."""
    if not any(line.startswith("#EXT-X-DEFINE:") for line in lines):
        yield from lines
        return
    variables: dict[str, str] = {}
    query = _query(url)
    left = MOST_SUBSTITUTED_CHARACTERS
    for line in lines:
        if line.startswith("#EXT-X-DEFINE:"):
            got = {name: value.strip('"') for name, value in attributes(line).items()}
            if "NAME" in got:
                variables[got["NAME"]] = got.get("VALUE", "")
            for source, values in (("IMPORT", imported), ("QUERYPARAM", query)):
                if (name := got.get(source)) is not None:
                    if name not in values:
                        raise PlaylistError(f"EXT-X-DEFINE names a variable that isn't there: {name[:40]!r}")
                    variables[name] = values[name]
            yield line
        else:
            written = _VARIABLE.sub(lambda found: variables.get(found[1], found[0]), line)
            left -= len(written)
            if left < 0:
                raise PlaylistError("the variables of EXT-X-DEFINE make the playlist too large")
            yield written


def _query(url: str) -> dict[str, str]:
    """Return the parameters of a URL's query, without what would end a line or a quoted string of ours."""
    pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    return {name: CONTROL.sub("", value).replace('"', "").replace("\n", "") for name, value in pairs}


def variables_of(body: bytes, url: str) -> dict[str, str]:
    """Return the variables that a multivariant playlist defines, for its media playlists to import."""
    query = _query(url)
    found = [
        attributes(CONTROL.sub("", line)) for line in body.decode("utf-8-sig", "replace").split("\n") if line.startswith("#EXT-X-DEFINE:")
    ]
    named = {got["NAME"].strip('"'): got.get("VALUE", "").strip('"') for got in found if "NAME" in got}
    return named | {name: query[name] for got in found if (name := got.get("QUERYPARAM", "").strip('"')) in query}
