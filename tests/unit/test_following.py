"""A playlist that goes on is read as if it were read anew, at the cost of what is new."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.following import Following, is_long
from hlsrelay.hls.parse import parse
from hlsrelay.model import Presentation, Snapshot

URL = "https://origin.example/live/index.m3u8"


@dataclass(frozen=True)
class Source:
    """What a source may list: blocks that stay, under a head that changes, before a foot that does."""

    blocks: tuple[str, ...]
    first: int = 100
    count: int = 8
    head: str = "#EXT-X-TARGETDURATION:4\n"
    foot: str = ""
    gone_eras: int = 0
    body: bytes = field(init=False, default=b"")

    def __post_init__(self) -> None:
        listed = self.blocks[self.first - 100 : self.first - 100 + self.count]
        era = self.gone_eras + sum("#EXT-X-DISCONTINUITY\n" in one for one in self.blocks[: self.first - 100])
        head = f"#EXTM3U\n{self.head}#EXT-X-MEDIA-SEQUENCE:{self.first}\n#EXT-X-DISCONTINUITY-SEQUENCE:{era}\n"
        object.__setattr__(self, "body", "".join((head, *listed, self.foot)).encode())


def plain(number: int) -> str:
    return f"#EXTINF:4.0,\nsegment-{number}.ts\n"


def dated(number: int) -> str:
    return f"#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:{number // 15:02}:{number % 15 * 4:02}Z\n{plain(number)}"


def told(snapshot: Snapshot | Presentation | None) -> Snapshot | Presentation | None:
    """Return *snapshot* with its repairs in one order: they are counted by name."""
    return replace(snapshot, repairs=tuple(sorted(snapshot.repairs))) if isinstance(snapshot, Snapshot) else snapshot


def follow(bodies: list[bytes], url: str = URL) -> int:
    """Read *bodies* one after the other, each as if anew; return how many were not read anew."""
    following, went_on, before = Following(), 0, None
    for body in bodies:
        found: Snapshot | Presentation | None = following.read_on(body, url)
        try:
            anew = parse(body, url, None, before)
        except PlaylistError:
            assert found is None
            with pytest.raises(PlaylistError):
                following.read_anew(body, url, {})
            continue
        if found is None:
            found, following = following.read_anew(body, url, {})
        else:
            went_on += 1
        assert told(found) == told(anew)
        before = anew if isinstance(anew, Snapshot) else None
    return went_on


SLIDING = [
    pytest.param(plain, id="plain"),
    pytest.param(dated, id="dated"),
    pytest.param(lambda n: dated(n) if n % 5 == 0 else plain(n), id="dated now and then"),
    pytest.param(lambda n: f"#EXTINF:4\nsegment-{n}.ts\n", id="EXTINF without a comma"),
    pytest.param(lambda n: f"{'#EXT-X-DISCONTINUITY' if n % 4 == 0 else '#X'}\n{dated(n)}", id="discontinuities"),
    pytest.param(lambda n: f"#EXT-X-KEY:METHOD=AES-128,URI=\"k{n // 3}\"\n{plain(n)}", id="keys without IVs"),
    pytest.param(lambda n: f"#EXT-X-BYTERANGE:1000@{n % 20 * 1000}\n#EXTINF:4,\nf{n // 20}.ts\n", id="byte ranges"),
    pytest.param(lambda n: f"#EXTINF:4,\r\nsegment-{n}.ts?token={n * 7}\r\n", id="tokens and CRLF"),
    pytest.param(lambda n: f'#EXT-X-DATERANGE:ID="{n}",START-DATE="2026-01-01T00:00:00Z"\n#EXT-X-CUE:{n}\n{plain(n)}', id="tags"),
]  # fmt: skip


@pytest.mark.parametrize("block", SLIDING)
def test_a_window_that_slides_is_never_read_anew(block: object) -> None:
    blocks = tuple(block(number) for number in range(40))  # type: ignore[operator]
    bodies = [Source(blocks, first).body for first in (100, 101, 102, 102, 103, 106, 107)]
    assert follow(bodies) == 6


def test_a_window_that_grows_is_never_read_anew() -> None:
    blocks = tuple(dated(number) for number in range(40))
    assert follow([Source(blocks, count=count).body for count in (5, 6, 7, 12, 30)]) == 4


def test_keys_and_maps_that_move_to_the_head_with_the_window_are_no_change() -> None:
    head = '#EXT-X-TARGETDURATION:4\n#EXT-X-KEY:METHOD=AES-128,URI="k"\n#EXT-X-MAP:URI="init.mp4"\n'
    blocks = tuple(dated(number) for number in range(40))
    assert follow([Source(blocks, first, head=head).body for first in (100, 101, 102)]) == 2
    assert follow([Source(blocks, 100, head=head).body, Source(blocks, 101).body]) == 0


def test_parts_that_a_server_takes_away_are_read_again() -> None:
    def listed(newest: int) -> bytes:
        parts = tuple(
            f'#EXT-X-PART:DURATION=2,URI="{n}.0"\n#EXT-X-PART:DURATION=2,URI="{n}.1"\n{dated(n)}' if n > newest - 3 else dated(n)
            for n in range(newest + 1)
        )
        foot = f'#EXT-X-PART:DURATION=2,URI="{newest + 1}.0"\n#EXT-X-PRELOAD-HINT:TYPE=PART,URI="{newest + 1}.1"\n'
        return Source(parts, 100 + newest - 19, count=20, foot=foot).body

    assert follow([listed(newest) for newest in range(25, 32)]) == 6


def test_an_end_is_seen_and_taken_back() -> None:
    blocks = tuple(plain(number) for number in range(40))
    ended = Source(blocks, 101, foot="#EXT-X-ENDLIST\n").body
    assert follow([Source(blocks, 100).body, ended, Source(blocks, 102).body]) == 2
    following = Following().read_anew(Source(blocks, 100).body, URL, {})[1]
    found = following.read_on(ended, URL)
    assert found is not None
    assert found.ended


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.replace(b"segment-4.ts", b"other-4.ts"),
        lambda body: body.replace(b"SEQUENCE:101", b"SEQUENCE:90"),
        lambda body: body.replace(b"SEQUENCE:101", b"SEQUENCE:107"),
        lambda body: body.replace(b"#EXT-X-TARGETDURATION:4", b"#EXT-X-DEFINE:NAME=\"a\",VALUE=\"b\""),
        lambda body: body.replace(b"#EXTM3U", b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1"),
        lambda body: body + b"#EXT-X-STREAM-INF:BANDWIDTH=1\nx.m3u8\n",
        lambda body: body + b"#EXT-X-TARGETDURATION:9\n#EXTINF:4,\nx.ts\n",
        lambda body: body + b"#EXTINF:4,\nsegment-5.ts\n",
        lambda body: body + b"#EXTINF:4,\nsegment-8.ts\n",
        lambda body: body[:-4],
        lambda body: b"\xef\xbb\xbf" + body,
        lambda body: b"\x00" + body,
        lambda body: body.replace(b"#EXTINF:4.0,\nsegment-1.ts", b"#EXTINF:3.0,\nsegment-1.ts"),
        lambda body: body.replace(b"DISCONTINUITY-SEQUENCE:0", b"DISCONTINUITY-SEQUENCE:4"),
        lambda body: b"<html>",
        lambda body: b"",
        lambda body: b"#EXTM3U\n",
    ],
)  # fmt: skip
def test_what_changes_otherwise_is_read_as_it_is(change: object) -> None:
    blocks = tuple(plain(number) for number in range(40))
    before, after = Source(blocks, 100).body, Source(blocks, 101).body
    follow([before, change(after), Source(blocks, 102).body, Source(blocks, 103).body])  # type: ignore[operator]


def test_another_address_is_another_playlist() -> None:
    blocks = tuple(plain(number) for number in range(40))
    following = Following().read_anew(Source(blocks, 100).body, URL, {})[1]
    assert following.read_on(Source(blocks, 101).body, "https://other.example/live/index.m3u8") is None


def test_a_long_rest_is_read_anew_where_that_holds_nobody_up() -> None:
    blocks = tuple(plain(number) for number in range(2600))
    short, long = Source(blocks, 100).body, Source(blocks, 100, count=2500).body
    assert [is_long(short), is_long(long)] == [False, True]
    assert follow([short, long]) == 0


NOW_AND_THEN = st.sampled_from(
    [
        "", "", "", "", "#EXT-X-DISCONTINUITY\n", "#EXT-X-GAP\n", "#EXT-X-KEY:METHOD=NONE\n", "#EXT-X-KEY:METHOD=AES-128,URI=\"k1\"\n",
        "#EXT-X-KEY:METHOD=AES-128,URI=\"k2\",IV=0x1\n", '#EXT-X-MAP:URI="a.mp4"\n', '#EXT-X-MAP:URI="b.mp4",BYTERANGE="10@0"\n', "#note\n",
        '#EXT-X-DATERANGE:ID="x",START-DATE="2026-01-01T00:00:00Z"\n', "#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:00.123Z\n", "\n",
        "#EXT-X-PROGRAM-DATE-TIME:never\n", "#EXT-X-CUE-OUT:30\n", "#EXT-X-BYTERANGE:100\n", "#EXT-X-BYTERANGE:100@5\n", "#EXT-X-ENDLIST\n",
        '#EXT-X-PART:DURATION=1,URI="p",BYTERANGE="5"\n', "#EXT-X-TARGETDURATION:9\n", "#EXT-X-MEDIA-SEQUENCE:7\n", "\x07\u2028\n",
        '#EXT-X-SKIP:SKIPPED-SEGMENTS=3\n', '#EXT-X-DEFINE:NAME="v",VALUE="w"\n', "#EXT-X-DISCONTINUITY-SEQUENCE:3\n", "\ufeff#EXTINF:2,\n",
    ]
)  # fmt: skip
EXTINF = st.sampled_from(["#EXTINF:4,\n"] * 6 + ["#EXTINF:3.96,title\n", "#EXTINF:4\n", "#EXTINF:nan,\n", "", "#EXTINF:11.5,\n"])
URIS = st.sampled_from(["{}.ts\n"] * 8 + ["{}.ts?t=1\n", "same.ts\n", "same.ts?n={}\n", "{}\r\n", "/x/{}.ts\n", "{{$v}}{}.ts\n"])
BLOCKS = st.lists(st.tuples(NOW_AND_THEN, NOW_AND_THEN, EXTINF, URIS), min_size=14, max_size=14)
LOADS = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(3, 9), st.booleans(), st.sampled_from(["", "", "#EXT-X-ENDLIST\n", "#EXT-X-GAP\n", "#EXTINF:2,\n1"])
    ),
    min_size=2,
    max_size=6,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(BLOCKS, LOADS, st.integers(0, 3))
def test_whatever_is_listed_going_on_is_no_other_than_reading_anew(
    parts: list[tuple[str, str, str, str]], loads: list[tuple[int, int, bool, str]], odd: int
) -> None:
    # Few oddities at a time: with more of them most playlists can't be gone on from at all.
    blocks = tuple(
        f"{a if index % 4 < odd else ''}{b if index % 5 < odd - 1 else ''}{extinf if odd else '#EXTINF:4,' + chr(10)}"
        f"{uri.format(index) if odd > 1 else f'{index}.ts' + chr(10)}"
        for index, (a, b, extinf, uri) in enumerate(parts)
    )
    first, bodies = 100, []
    for moves, count, cut_off, foot in loads:
        first = min(first + moves, 106)
        body = Source(blocks, first, count, foot=foot).body
        bodies.append(body[:-3] if cut_off else body)
    follow(bodies)
