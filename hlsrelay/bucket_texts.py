"""What stands in the bucket, as text: the record of a stream, what its playlists list, and whose they are. Pure."""

from __future__ import annotations

import json
import posixpath
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass

LARGE_BYTES = 64 << 10
"""Records beyond it are compressed."""
EPOCH = "#hlsrelay-epoch:"
"""The last line of our playlists, a comment (RFC 8216 4.1): so the same playlist of another owner is another object."""

_URI = re.compile(r'URI="([^"]*)"')
EPOCH_LINE = re.compile(rb"(?m)^" + EPOCH.encode() + rb"(\d{1,18})$")


@dataclass(frozen=True, slots=True)
class Listing:
    """What a playlist lists: files, relative to the stream's folder, and for how long they stay once it does not (A7)."""

    paths: frozenset[str]
    beside: frozenset[str]
    """Those of them that are keys and init sections."""
    stays_s: float


def listed_in(page: str, body: bytes) -> Listing:
    """Return what one of our playlists lists."""
    folder = posixpath.dirname(page)
    paths, beside = set[str](), set[str]()
    longest_s = total_s = 0.0
    for line in body.decode(errors="replace").splitlines():
        if line.startswith("#EXTINF:"):
            with suppress(ValueError):
                duration_s = float(line.removeprefix("#EXTINF:").partition(",")[0])
                longest_s, total_s = max(longest_s, duration_s), total_s + duration_s
        elif line.startswith("#"):
            found = _URI.search(line) if line.startswith(("#EXT-X-MAP:", "#EXT-X-KEY:")) else None
            if found:
                beside.add(found.group(1))
        elif line:
            paths.add(line)
    inside = [
        {posixpath.normpath(posixpath.join(folder, uri)) for uri in uris if ":" not in uri and not uri.endswith(".m3u8")}
        for uris in (paths | beside, beside)
    ]
    return Listing(frozenset(inside[0]), frozenset(inside[1]), total_s + longest_s)


def is_ledger(path: str) -> bool:
    """Return whether a file of a stream's folder is a ledger."""
    return path.startswith(".ledger") and path.endswith(".json")


def epoch_of(playlist: bytes) -> int:
    """Return the epoch of the owner who wrote a playlist, 0 where none is told."""
    found = EPOCH_LINE.findall(playlist)
    return int(found[-1]) if found else 0


def packed(epoch: int, ledgers: dict[str, bytes]) -> bytes:
    """Return a record: an epoch, and the ledgers by their paths."""
    pairs = (json.dumps(path).encode() + b":" + body for path, body in ledgers.items())
    return b'{"epoch":%d,"ledgers":{%s}}' % (epoch, b",".join(pairs))


def squeezed(record: bytes) -> bytes:
    """Return a record as it is stored: a day's window has megabytes, and is written with each segment."""
    return record if len(record) <= LARGE_BYTES else zlib.compress(record, 1)


def unpacked(body: bytes) -> tuple[int, dict[str, bytes]]:
    """Return the epoch and the ledgers of a record; one that can't be read counts as none."""
    try:
        record = json.loads(body if body.startswith(b"{") else zlib.decompress(body))
        ledgers = {str(path): json.dumps(ledger).encode() for path, ledger in record["ledgers"].items() if is_ledger(path)}
        return int(record["epoch"]), ledgers
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
        return 0, {}


def base36(number: int) -> str:
    """Return a number of 0 or more in digits and small letters."""
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits or "0"
