"""What tells the segments of a playlist apart where their paths do not: of their queries as little as will do, for tokens rotate. Pure."""

from __future__ import annotations

from urllib.parse import parse_qsl

from hlsrelay.model import ByteRange, Segment
from hlsrelay.values import replace

DIGITS_OF_A_COUNT = 20
"""A longer number counts nothing."""
MOST_PARAMETERS = 64
_MEDIA_SUFFIXES = {
    "ts", "m2ts", "mts", "mp4", "m4s", "m4v", "m4a", "m4f", "cmfv", "cmfa", "cmft", "aac", "mp3", "ac3", "ec3", "vtt", "webvtt",
}  # fmt: skip


def told_apart(segments: list[Segment]) -> list[Segment]:
    """Return *segments*, those that differ from others by their queries alone with what these differ by.

    Queries hold tokens, other in each load, so they count only where a path names several segments. One segment has none to be held
    against: its query counts unless the path ends as those of media files do.
    """
    places = [(segment.uri.partition("?")[0], segment.byterange) for segment in segments]
    if len(segments) == 1:
        path, _, query = segments[0].uri.partition("#")[0].partition("?")
        told = not query or path.rpartition("/")[2].rpartition(".")[2].lower() in _MEDIA_SUFFIXES
        return segments if told else [replace(segments[0], query=query)]
    if len(set(places)) == len(places):
        return segments
    groups: dict[tuple[str, ByteRange | None], list[int]] = {}
    for index, place in enumerate(places):
        groups.setdefault(place, []).append(index)
    named = list(segments)
    for indexes in groups.values():
        queries = [segments[index].uri.partition("#")[0].partition("?")[2] for index in indexes]
        for index, query in zip(indexes, _telling(queries), strict=True):
            named[index] = replace(segments[index], query=query)
    return named


def _telling(queries: list[str]) -> list[str]:
    """Return of each query what tells it from the others: one parameter if that does, best one that counts up; else all of it.

    Queries that are the same, as of a slate that is shown again, tell nothing.
    """
    distinct = list(dict.fromkeys(queries))
    if len(distinct) == 1:
        return [""] * len(queries)
    if any(query.count("&") >= MOST_PARAMETERS for query in distinct):
        return queries
    values: dict[str, list[str]] = {}
    for query in distinct:
        for name, value in dict(parse_qsl(query, keep_blank_values=True)).items():
            values.setdefault(name, []).append(value)
    apart = {name: told for name, told in values.items() if len(set(told)) == len(distinct)}
    if not apart:
        return queries
    best = next((name for name, told in apart.items() if _counts_up(told)), next(iter(apart)))
    said = dict(zip(distinct, apart[best], strict=True))
    return [f"{best}={said[query]}" for query in queries]


def _counts_up(values: list[str]) -> bool:
    numbers = [int(value) for value in values if value.isdecimal() and len(value) <= DIGITS_OF_A_COUNT]
    return len(numbers) == len(values) and numbers == sorted(numbers)
