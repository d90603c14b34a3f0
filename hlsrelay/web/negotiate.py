"""What a request's headers ask for: pure functions over their text. Malformed headers ask for nothing (RFC 9110)."""

from __future__ import annotations

import re

from starlette.types import Scope

_RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,100})\s*-\s*([0-9]{0,100})", re.IGNORECASE)
_TAG = re.compile(r'"[^"]*"')
_ZERO = re.compile(r"\s*q\s*=\s*0(\.0{0,3})?\s*", re.IGNORECASE)


def header(scope: Scope, name: bytes) -> str:
    """Return a request header's text (*name* in lower case), empty where it isn't sent; several of a name are one list."""
    return b",".join(value for key, value in scope["headers"] if key == name).decode("latin-1")


def accepts_gzip(accept_encoding: str) -> bool:
    """Say whether a client takes gzip (RFC 9110 12.5.3)."""
    taken = {}
    for item in accept_encoding.split(","):
        coding, _, weight = item.partition(";")
        taken[coding.strip().lower()] = _ZERO.fullmatch(weight) is None
    return taken.get("gzip", taken.get("*", False))


def has_already(if_none_match: str, etag: str) -> bool:
    """Say whether a client holds what *etag* names (RFC 9110 13.1.2: the comparison is weak)."""
    return if_none_match.strip() == "*" or etag in _TAG.findall(if_none_match)


def wanted(range_header: str, size_bytes: int) -> range | None:
    """Return the positions that a Range header asks for; None: all of it; an empty range: none of them exist (416).

    Several ranges, other units and nonsense mean all of it (RFC 9110 14.2 allows that, and players send none of them).
    """
    match = _RANGE.fullmatch(range_header.strip())
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        return range(max(0, size_bytes - int(match[2])), size_bytes)
    first, last = int(match[1]), int(match[2] or size_bytes)
    if match[2] and last < first:
        return None
    return range(first, min(last + 1, size_bytes)) if first < size_bytes else range(0)
