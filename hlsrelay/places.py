"""Where a playlist that is watched is, and its media: behind HTTP, or in files on disk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from hlsrelay.errors import ConfigError, UpstreamError
from hlsrelay.judge import Resource, Span
from hlsrelay.model import Stream
from hlsrelay.upstream import PLAYLIST_DEADLINE_S, SEGMENT_LIMIT_BYTES, Answer, TransportFactory, Upstream
from hlsrelay.urls import redacted

ANYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
"""The operator typed the address himself: a private one is as good as any."""
PLAYLIST_LIMIT_BYTES = 8 << 20
PEEK_BYTES = 1024


class Place(Protocol):
    """Where playlists and media are: behind HTTP or on disk. Its methods raise UpstreamError where there is no answer."""

    shortest_s: float
    longest_s: float
    """Between two looks at a playlist."""

    async def playlist(self, where: str) -> Answer:
        """Return a playlist as it is now."""
        ...

    async def media(self, resource: Resource, whole: bool) -> Answer:
        """Return a segment, MAP or key, or its first bytes."""
        ...

    def headers(self, answer: Answer) -> Mapping[str, str] | None:
        """Return the headers that the judge may hold against an answer, None where files have none."""
        ...


@asynccontextmanager
async def place_of(target: str, transport: TransportFactory, stream: Stream | None) -> AsyncGenerator[tuple[Place, list[str]], None]:
    """Yield where *target* is, a URL, a playlist file or a folder, and its playlists; with the headers and proxy of *stream*.

    Raises ConfigError where it can be none, UpstreamError where the source of *stream* is none.
    """
    if urlsplit(target).scheme in ("http", "https"):
        async with Upstream(ANYWHERE, transport=transport) as upstream:
            if stream:
                await upstream.survey(stream)
            yield _Web(upstream), [target]
        return
    path = Path(target)
    if path.is_file():
        roots = [path]
    elif path.is_dir():
        index = path / "index.m3u8"
        roots = [index] if index.exists() else sorted(one for one in path.glob("*.m3u8") if not one.name.startswith("."))
    else:
        raise ConfigError(f"{target}: write the URL of a playlist, a playlist file, or a folder that holds one")
    if not roots:
        raise ConfigError(f"no playlist (*.m3u8) is in {target}")
    yield _Disk(), [one.absolute().as_posix() for one in roots]


class _Web:
    """Behind HTTP; as players do it."""

    shortest_s = 0.25
    longest_s = 2.0

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def playlist(self, where: str) -> Answer:
        headers = {"Accept-Encoding": "gzip, deflate", "Cache-Control": "no-cache"}
        return await self._upstream.get(where, headers, most_bytes=PLAYLIST_LIMIT_BYTES, deadline_s=PLAYLIST_DEADLINE_S)

    async def media(self, resource: Resource, whole: bool) -> Answer:
        headers = {"Accept-Encoding": "identity"}
        span = resource.span
        if not whole:
            span = Span(min(PEEK_BYTES, span.length) if span else PEEK_BYTES, span.offset if span else 0)
        if span is not None:
            headers["Range"] = f"bytes={span.offset}-{span.offset + span.length - 1}"
        return await self._upstream.get(resource.uri, headers, most_bytes=SEGMENT_LIMIT_BYTES, deadline_s=2 * PLAYLIST_DEADLINE_S)

    def headers(self, answer: Answer) -> Mapping[str, str] | None:
        return answer.headers


class _Disk:
    """Files as they are published: read often, since what is not atomic is so for moments only."""

    shortest_s = 0.05
    longest_s = 0.05

    async def playlist(self, where: str) -> Answer:
        return self._read(where, None)

    async def media(self, resource: Resource, whole: bool) -> Answer:
        span = resource.span if whole or resource.span else Span(PEEK_BYTES, 0)
        return self._read(unquote(resource.uri), span)

    def headers(self, answer: Answer) -> Mapping[str, str] | None:  # noqa: ARG002
        return None

    def _read(self, path: str, span: Span | None) -> Answer:
        if urlsplit(path).scheme in ("http", "https"):
            raise UpstreamError(f"{redacted(path)}: on another server, and this is a folder")
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                file.seek(span.offset if span else 0)
                body = file.read(span.length if span else -1)
        except FileNotFoundError:
            return Answer(404, {}, b"", path)
        except OSError as error:
            raise UpstreamError(f"{path}: {error.strerror}") from error
        return Answer(206 if span else 200, {"content-range": f"bytes */{size}"} if span else {}, body, path)
