"""The playlist language of the tests: `live(7, 8, 9)`, `live(8, 9, gap(10)).ended()`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from hlsrelay.hls.parse import parse
from hlsrelay.ladder import parse_ladder
from hlsrelay.model import Presentation, Snapshot, Stream

URL = "https://origin.example/live/index.m3u8"
T0 = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Listed:
    """One segment as a test's source lists it; its name is its content."""

    sequence: int
    name: str = ""
    duration: str = "4.0"
    gap: bool = False
    discontinuity: bool = False
    pdt: datetime | None = None

    def lines(self) -> list[str]:
        lines = ["#EXT-X-DISCONTINUITY"] if self.discontinuity else []
        lines += [f"#EXT-X-PROGRAM-DATE-TIME:{self.pdt.isoformat()}"] if self.pdt else []
        lines += ["#EXT-X-GAP"] if self.gap else []
        return [*lines, f"#EXTINF:{self.duration},", self.name or f"{self.sequence}.ts"]


@dataclass(frozen=True)
class Playlist:
    """A source's media playlist."""

    items: tuple[Listed, ...]
    target_duration: str = "4"
    end: bool = False

    def ended(self) -> Playlist:
        return replace(self, end=True)

    def text(self) -> str:
        head = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{self.target_duration}"]
        head.append(f"#EXT-X-MEDIA-SEQUENCE:{self.items[0].sequence if self.items else 0}")
        body = [line for item in self.items for line in item.lines()]
        return "\n".join([*head, *body, *(["#EXT-X-ENDLIST"] if self.end else []), ""])

    def snapshot(self, url: str = URL) -> Snapshot:
        return parsed(self.text(), url)


def live(*items: int | Listed, target: str = "4") -> Playlist:
    """A live playlist of these segments."""
    return Playlist(tuple(item if isinstance(item, Listed) else Listed(item) for item in items), target)


def gap(sequence: int) -> Listed:
    """A segment that the source itself lacks."""
    return Listed(sequence, gap=True)


def cut(sequence: int) -> Listed:
    """A segment after a DISCONTINUITY."""
    return Listed(sequence, discontinuity=True)


def parsed(text: str, url: str = URL) -> Snapshot:
    """Parse a media playlist."""
    found = parse(text.encode(), url)
    assert not isinstance(found, Presentation)
    return found


def stream(source: str = URL, ladder: str = "", window_s: float = 60.0) -> Stream:
    """A stream to relay."""
    return Stream("news", source, ladder=parse_ladder(ladder), window_s=window_s)


def at(seconds: float) -> datetime:
    """The test's wall clock."""
    return T0 + timedelta(seconds=seconds)
