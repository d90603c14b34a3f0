"""Playlists made to be slow to read: as much again takes as long again, or is refused. Measured as a ratio, for machines differ."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.parse import LONGEST_LINE, MOST_LINES, MOST_SEGMENTS, parse
from hlsrelay.hls.reader import MOST_ATTRIBUTES
from hlsrelay.model import Snapshot
from tests.playlists import URL

HEAD, MEDIA = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n", "#EXTINF:4,\na.ts\n"
MASTER = "#EXT-X-STREAM-INF:BANDWIDTH=1\nv.m3u8\n"
ATTEMPTS, MOST_RATIO = 3, 8.0
"""Of four times as much: what takes its square takes 16 times as long."""

BLOWUPS: dict[str, tuple[Callable[[int], str], int]] = {
    "a name that never ends": (lambda n: HEAD + "#EXT-X-KEY:" + "A" * n + "\n" + MEDIA, 4_000),
    "A=A=A=": (lambda n: HEAD + "#EXT-X-KEY:" + "A=" * n + "\n" + MEDIA, 15_000),
    "quotes": (lambda n: HEAD + "#EXT-X-MAP:" + 'A="' * n + "\n" + MEDIA, 10_000),
    "commas": (lambda n: HEAD + "#EXT-X-DATERANGE:" + "," * n + "\n" + MEDIA, 30_000),
    "names and dashes": (lambda n: HEAD + "#EXT-X-PART:" + "A-" * n + "=1\n" + MEDIA, 4_000),
    "blanks": (lambda n: HEAD + "#EXT-X-KEY:METHOD" + " " * n + "=NONE,X= " + " " * n + "1\n" + MEDIA, 15_000),
    "blanks in EXTINF": (lambda n: HEAD + "#EXTINF:" + " " * n + "x,\na.ts\n", 30_000),
    "digits": (lambda n: HEAD + "#EXTINF:" + "1" * n + ",\na.ts\n", 30_000),
    "a number": (lambda n: HEAD + "#EXT-X-MEDIA-SEQUENCE:" + "1" * n + "\n" + MEDIA, 30_000),
    "variables": (lambda n: HEAD + '#EXT-X-DEFINE:NAME="a",VALUE="b"\n' + ("{$a}" * 10_000 + "\n") * n + MEDIA, 2),
    "variables that never end": (lambda n: HEAD + '#EXT-X-DEFINE:NAME="a",VALUE="b"\n#' + "{$a" * n + "\n" + MEDIA, 10_000),
    "definitions": (lambda n: HEAD + "".join(f'#EXT-X-DEFINE:NAME="{i}",VALUE="b"\n' for i in range(n)) + MEDIA, 4_000),
    "empty lines": (lambda n: HEAD + "\n" * n + MEDIA, 25_000),
    "comments": (lambda n: HEAD + "#\n" * n + MEDIA, 25_000),
    "lines of one character": (lambda n: HEAD + "a\n" * n, 4_000),
    "date ranges": (
        lambda n: HEAD + "".join(f'#EXT-X-DATERANGE:ID="{i}",START-DATE="2026-01-01T00:00:00Z"\n' for i in range(n)) + MEDIA,
        3_000,
    ),
    "tags": (lambda n: HEAD + "#EXT-MINE:a=1\n" * n + MEDIA, 10_000),
    "keys": (lambda n: HEAD + '#EXT-X-KEY:METHOD=AES-128,URI="k"\n' * n + MEDIA, 3_000),
    "keys and segments": (lambda n: HEAD + ('#EXT-X-KEY:METHOD=AES-128,URI="k"\n' + MEDIA) * n, 1_000),
    "parts": (lambda n: HEAD + '#EXT-X-PART:DURATION=1,URI="p.ts"\n' * n + MEDIA, 3_000),
    "maps": (lambda n: HEAD + ('#EXT-X-MAP:URI="i.mp4"\n' + MEDIA) * n, 1_000),
    "byte ranges": (lambda n: HEAD + ("#EXT-X-BYTERANGE:10\n" + MEDIA) * n, 1_500),
    "dates": (lambda n: HEAD + ("#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:00Z\n" + MEDIA) * n, 1_500),
    "discontinuities": (lambda n: HEAD + ("#EXT-X-DISCONTINUITY\n" + MEDIA) * n, 1_500),
    "sequences": (lambda n: HEAD + ("#EXT-X-MEDIA-SEQUENCE:1\n" + MEDIA) * n, 1_500),
    "segments": (lambda n: HEAD + MEDIA * n, 3_000),
    "a skip": (lambda n: HEAD + f"#EXT-X-SKIP:SKIPPED-SEGMENTS={n * 1000}\n" + MEDIA * n, 2_000),
    "variants": (lambda n: "#EXTM3U\n" + MASTER * n, 3_000),
    "other variants": (lambda n: "#EXTM3U\n" + "".join(f"#EXT-X-STREAM-INF:BANDWIDTH={i}\n{i}\n" for i in range(n)), 3_000),
    "renditions": (
        lambda n: "#EXTM3U\n" + "".join(f'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="{i}",URI="{i}"\n' for i in range(n)) + MASTER,
        2_000,
    ),
    "session data": (lambda n: "#EXTM3U\n" + '#EXT-X-SESSION-DATA:DATA-ID="a",URI="b"\n' * n + MASTER, 3_000),
}


def spent_s(body: bytes) -> float:
    """Return the processor time that reading *body* takes, at best."""
    best = float("inf")
    for _ in range(3):
        began_s = time.process_time()
        with suppress(PlaylistError):
            parse(body, URL)
        best = min(best, time.process_time() - began_s)
    return best


@pytest.mark.parametrize("name", BLOWUPS)
def test_four_times_as_much_takes_about_four_times_as_long(name: str) -> None:
    made, size = BLOWUPS[name]
    ratios = []
    for _ in range(ATTEMPTS):
        ratios.append((spent_s(made(2 * size).encode()) + 1e-3) / (spent_s(made(size // 2).encode()) + 1e-3))
        if ratios[-1] < MOST_RATIO:
            return
    raise AssertionError(f"{name}: four times as much takes {min(ratios):.1f} times as long")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (HEAD + "#\n" * (MOST_LINES + 1), "lines"),
        (HEAD + "a\n" * (MOST_SEGMENTS + 1), "segments"),
        (HEAD + "#" + "x" * LONGEST_LINE + "\n" + MEDIA, "a line of"),
        (HEAD + "#EXTINF:4,\n" + "x" * 9000 + "\n", "a URI of"),
        (HEAD + "#EXT-X-KEY:METHOD=X," + ",".join(f"A{n}=1" for n in range(MOST_ATTRIBUTES)) + "\n" + MEDIA, "attributes"),
    ],
)
def test_what_is_larger_than_any_honest_playlist_is_refused_by_name(body: str, reason: str) -> None:
    with pytest.raises(PlaylistError, match=reason):
        parse(body.encode(), URL)


def test_a_dvr_window_of_a_day_is_no_blow_up() -> None:
    found = parse((HEAD + "".join(f"#EXTINF:6.006,\nhd/segment-{n:08}.ts\n" for n in range(14_400))).encode(), URL)
    assert isinstance(found, Snapshot)
    assert len(found.segments) == 14_400


def test_a_key_with_many_attributes_is_not_repeated_for_each_segment() -> None:
    """Its attributes times the segments would be gigabytes."""
    with pytest.raises(PlaylistError, match="attributes"):
        parse(
            (HEAD + '#EXT-X-KEY:METHOD=AES-128,URI="k",' + ",".join(f"A{n}=1" for n in range(5_000)) + "\n" + MEDIA * 10_000).encode(), URL
        )
