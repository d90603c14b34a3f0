"""MPEG-TS as packets (ISO/IEC 13818-1, 2.4.3): where they are, which of them begin a PES or a table, and what these hold. Pure.

Packets are found by slicing with a stride: see ts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hlsrelay.media.info import MediaError

PACKET = 188
_MOST_STARTS = 50_000
_MOST_RESYNCS = 16
_NOT_SYNC = re.compile(rb"[^\x47]")
_STARTS = re.compile(rb"[\x40-\x7f\xc0-\xff]")  # payload_unit_start_indicator, in the byte after the sync byte
_FIVE_SYNCS = re.compile(rb"\x47(?=(?:.{187}\x47){4})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Run:
    """Packets that follow each other in alignment, from byte *begin*."""

    begin: int
    count: int


def looks_like_ts(data: bytes) -> bool:
    """Return whether *data* begins with TS packets, or has five of them in a row in its first kilobytes."""
    if len(data) >= PACKET and all(data[at : at + 1] in (b"", b"\x47") for at in (0, PACKET, 2 * PACKET)):
        return True
    return _FIVE_SYNCS.search(data, 0, 16 * PACKET) is not None


def first_packet(data: bytes) -> int:
    """Return where the TS packets of *data*, which looks like TS, begin."""
    if data[:1] == data[PACKET : PACKET + 1] == b"\x47" or len(data) <= PACKET:
        return 0
    found = _FIVE_SYNCS.search(data, 0, 16 * PACKET)
    return found.start() if found else 0


def runs_in(data: bytes) -> list[Run]:
    runs: list[Run] = []
    at = 0
    while len(data) - at >= PACKET:
        if data[at] != 0x47:
            found = _FIVE_SYNCS.search(data, at)
            if found is None:
                break
            at = found.start()
        packets = (len(data) - at) // PACKET
        sync = data[at : at + packets * PACKET : PACKET]
        lost = _NOT_SYNC.search(sync)
        count = lost.start() if lost else packets
        runs.append(Run(at, count))
        at += count * PACKET
        if len(runs) > _MOST_RESYNCS:
            raise MediaError("a transport stream that loses its sync byte all the time")
    if not runs:
        raise MediaError("no transport stream packets")
    return runs


def starts_in(data: bytes, runs: list[Run]) -> list[int]:
    """Return where the packets that begin a PES or a table are, in order."""
    starts: list[int] = []
    for run in runs:
        flags = data[run.begin + 1 : run.begin + run.count * PACKET : PACKET]
        starts += [run.begin + match.start() * PACKET for match in _STARTS.finditer(flags)]
        if len(starts) > _MOST_STARTS:
            raise MediaError("a transport stream of too many pieces")
    return starts


def pid_at(data: bytes, at: int) -> int:
    return (data[at + 1] & 0x1F) << 8 | data[at + 2]


def payload_at(data: bytes, at: int) -> bytes:
    """Return the payload of the packet at *at*; empty if it has none, is marked broken, or is scrambled."""
    control = data[at + 3]
    if not control & 0x10 or control & 0xC0 or data[at + 1] & 0x80:
        return b""
    skip = 5 + data[at + 4] if control & 0x20 else 4
    return data[at + skip : at + PACKET] if skip < PACKET else b""


def following(runs: list[Run], at: int) -> Iterator[int]:
    """Yield where the packets after the one at *at* are."""
    for run in runs:
        end = run.begin + run.count * PACKET
        if at < end:
            yield from range(max(run.begin, at + PACKET), end, PACKET)


def unit_at(data: bytes, runs: list[Run], at: int, most: int) -> bytes:
    """Return the first *most* bytes of the PES or table that begins at *at*."""
    pid, low, parts = pid_at(data, at), data[at + 2], [payload_at(data, at)]
    size = len(parts[0])
    if size < most:
        for packet in following(runs, at):
            if data[packet + 2] == low and pid_at(data, packet) == pid:
                if data[packet + 1] & 0x40:
                    break
                parts.append(payload_at(data, packet))
                size += len(parts[-1])
                if size >= most:
                    break
    return b"".join(parts)[:most]


def section_at(data: bytes, runs: list[Run], at: int, table: int) -> bytes:
    """Return the body of the table section that begins at *at*, empty if it is another one or cut."""
    head = payload_at(data, at)
    if not head or 1 + head[0] + 3 > len(head) or head[1 + head[0]] != table:
        return b""
    begin = 1 + head[0]
    length = int.from_bytes(head[begin + 1 : begin + 3]) & 0xFFF
    if length < 9 or length > 1021:
        return b""
    end = begin + 3 + length
    unit = head if len(head) >= end else unit_at(data, runs, at, end)
    return unit[begin + 8 : end - 4] if len(unit) >= end else b""  # without header and CRC
