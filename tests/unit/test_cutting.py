"""What numbering asks of the media is asked of what is listed now (hlsrelay.cutting)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from hlsrelay.cutting import Cutting, Digest
from hlsrelay.desk import Desk
from hlsrelay.errors import SegmentLost
from hlsrelay.hls.likeness import is_alike
from hlsrelay.hls.numbering import NOTHING_AGREED
from hlsrelay.model import ByteRange, Position, Restart
from tests.playlists import T0, Listed, at, live, stream


class Media:
    """What is under the names, and how often it was fetched."""

    def __init__(self) -> None:
        self.under: dict[str, bytes] = {}
        self.fetched: list[str] = []

    async def fetch(self, uri: str, byterange: ByteRange | None, restart: Restart, deadline_s: float) -> int:
        name = uri.rpartition("/")[2]
        self.fetched.append(name)
        if name not in self.under:
            raise SegmentLost(uri)
        restart()(self.under[name])
        return len(self.under[name])


class Track:
    """A track of the relay that comes to number what is listed."""

    def __init__(self) -> None:
        self.media, self.now_s = Media(), 0.0
        self.digests: dict[int, str] = {}
        self.position: Position | None = None
        self.cutting = Cutting(
            cast(
                "Desk",
                SimpleNamespace(
                    tools=SimpleNamespace(clock=SimpleNamespace(utc_now=lambda: at(self.now_s)), upstream=self.media),
                    track=SimpleNamespace(name="source"),
                    agreement=SimpleNamespace(known_to=lambda _: NOTHING_AGREED, target_duration_s=0),
                    ledger=SimpleNamespace(first_free_number=lambda: None),
                    digests=self.digests,
                    progress=None,
                ),
            )
        )

    def load(self, now_s: float, first: int, *names: str) -> tuple[list[int], tuple[str, ...]]:
        """Take a playlist; return the numbers of what is new, and what was repaired."""
        self.now_s = now_s
        playlist = live(*(Listed(first + index, name) for index, name in enumerate(names)))
        step = asyncio.run(self.cutting.step(self.position, playlist.snapshot(), stream()))
        self.position = step.position
        new = [(one.number, one.segment.uri.rpartition("/")[2]) for one in step.fresh]
        for number, name in new:
            digest = Digest()
            digest.update(self.media.under[name])
            self.digests[number] = digest.text
        return [number for number, _ in new], step.repairs


def test_a_name_that_is_used_again_is_looked_at_again() -> None:
    track = Track()
    track.media.under = {"a.ts": b"one", "b.ts": b"two", "c.ts": b"three"}
    assert track.load(0, 0, "a.ts", "b.ts", "c.ts") == ([0, 1, 2], ())
    assert track.load(2, 100, "a.ts", "b.ts", "c.ts") == ([], ("renumbered",))
    track.media.under = {"a.ts": b"four", "b.ts": b"five", "c.ts": b"six"}
    assert track.load(10, 0, "a.ts", "b.ts", "c.ts") == ([], ("playlist_in_doubt",))
    assert track.media.fetched == ["c.ts", "c.ts", "b.ts"]  # two that differ are enough


def test_a_fetch_that_failed_is_tried_again_with_the_next_playlist() -> None:
    track = Track()
    track.media.under = {"a.ts": b"one", "b.ts": b"two", "c.ts": b"three", "d.ts": b"four"}
    assert track.load(0, 0, "a.ts", "b.ts", "c.ts") == ([0, 1, 2], ())
    lost = track.media.under.pop("c.ts")
    assert track.load(4, 101, "b.ts", "c.ts", "d.ts") == ([], ("playlist_in_doubt",))
    track.media.under["c.ts"] = lost
    assert track.load(6, 101, "b.ts", "c.ts", "d.ts") == ([3], ("renumbered",))
    assert track.media.fetched == ["c.ts", "c.ts"]


@pytest.mark.parametrize(
    ("content", "alike"),
    [
        (b"WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:900000,LOCAL:00:00:00.000\n\n", True),
        (b"\xef\xbb\xbfWEBVTT", True),
        (b"WEBVTT\n\n00:01.000 --> 00:02.000\nHello\n", False),
        (b"\x47" * 188, False),
    ],
)
def test_subtitles_without_cues_are_alike_and_other_content_is_not(content: bytes, alike: bool) -> None:
    digest = Digest()
    digest.update(content)
    at = Position("", 1, 0, 0, (), T0, T0)
    assert is_alike(at, digest.text) is alike
