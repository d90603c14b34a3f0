"""EXT-X-DEFINE (rfc8216bis 4.4.2.3) as strict players read it: what defines a variable, and where it is put in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from hlsrelay.judge.findings import Complaint, error
from hlsrelay.judge.listed import Attributes, unquoted

MOST_SUBSTITUTED_CHARACTERS = 4 << 20
_REFERENCE = re.compile(r"\{\$([A-Za-z0-9_-]+)\}")


@dataclass
class Variables:
    """The variables of the playlist *url*, from its own DEFINEs; *imported* are those of the multivariant playlists that name it."""

    url: str
    imported: Mapping[str, str]
    values: dict[str, str] = field(default_factory=dict)
    found: list[Complaint] = field(default_factory=list)
    _left: int = MOST_SUBSTITUTED_CHARACTERS
    _any: bool = False

    def define(self, attributes: Attributes) -> None:
        """Take a DEFINE: its variable is there for the lines after it."""
        self._any = True
        ways = [way for way in ("NAME", "IMPORT", "QUERYPARAM") if way in attributes]
        if len(ways) != 1 or ("VALUE" in attributes) != (ways == ["NAME"]):
            self.found.append(error("A1", "an EXT-X-DEFINE that is none of NAME with VALUE, IMPORT and QUERYPARAM"))
        for way in ways:
            name = unquoted(attributes[way])
            if name in self.values:
                self.found.append(error("A1", "two EXT-X-DEFINEs of one variable", repr(name[:40])))
            elif way == "NAME":
                self.values[name] = unquoted(attributes.get("VALUE", ""))
            elif name in (there := self.imported if way == "IMPORT" else self._query()):
                self.values[name] = there[name]
            else:
                self.found.append(error("A1", f"an EXT-X-DEFINE whose {way} is not there", repr(name[:40])))

    def put_into(self, text: str) -> str:
        """Return a URI or an attribute list with the values of its variables."""
        if not self._any or "{$" not in text:
            return text
        written = "".join(self._pieces(text))
        self._left -= len(written)
        return written

    def _pieces(self, text: str) -> Iterator[str]:
        at, left, undefined = 0, self._left, ""
        for reference in _REFERENCE.finditer(text):
            value = self.values.get(reference[1])
            if value is None:
                undefined = undefined or reference[0]
                continue
            if (left := left - len(value)) < 0:
                self.found.append(error("A1", "the variables of EXT-X-DEFINE make the playlist too large"))
                break
            yield text[at : reference.start()]
            yield value
            at = reference.end()
        yield text[at:]
        if undefined:
            self.found.append(error("A1", "a variable that no EXT-X-DEFINE before it defines", repr(undefined[:40])))

    def _query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.url).query, keep_blank_values=True))
