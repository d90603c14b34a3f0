"""Asking for a playlist only if it is another one by now (RFC 9110 13.1). Pure.

Laws:
- What a server says of a playlist (ETag, else Last-Modified) is held against what comes: where it said the same of two that differ, it
  is not believed any more. A date counts whole seconds, and there are servers whose ETag is made of it.
- What is repeated to a server is what such a header may be, and no more: who is redirected says it to others.
- However often a server says that nothing has changed, the whole is asked for now and then: one that is wrong costs a few loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,256}"')
_DATE = re.compile(r"[A-Za-z]{3}, \d\d [A-Za-z]{3} \d{4} \d\d:\d\d:\d\d GMT")
MOST_IN_A_ROW = 3
"""So often, one after another, a server is believed that nothing has changed."""


class Unchanged:
    """What a server said of one playlist when it came last, and whether that can be relied on."""

    def __init__(self) -> None:
        self._url = ""
        self._asks: dict[str, str] = {}
        self._in_a_row = 0
        self._reliable = True

    def asks(self, url: str) -> Mapping[str, str]:
        """Return the headers by which *url* is asked for only if it has changed; none where the whole is wanted."""
        return self._asks if self._reliable and url == self._url and self._in_a_row < MOST_IN_A_ROW else {}

    def said_so(self) -> None:
        """The server said that nothing has changed."""
        self._in_a_row += 1

    def came(self, url: str, headers: Mapping[str, str], *, new: bool) -> None:
        """A playlist came, whole, when *url* was asked for, and is not the one before if it is *new*; header names are in lower case."""
        asks = {}
        if _ETAG.fullmatch(etag := headers.get("etag", "")):
            asks = {"if-none-match": etag}
        elif _DATE.fullmatch(modified := headers.get("last-modified", "")):
            asks = {"if-modified-since": modified}
        if new and asks and (url, asks) == (self._url, self._asks):
            self._reliable = False
        self._url, self._asks, self._in_a_row = url, asks, 0

    def forget(self) -> None:
        """Have the whole come next."""
        self._asks = {}
