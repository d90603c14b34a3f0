"""Reading what sources send: repaired where players forgive, refused by name where it is no playlist."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.errors import ConfigError, PlaylistError
from hlsrelay.hls.parse import identity, parse
from hlsrelay.hls.tracks import chosen
from hlsrelay.model import ByteRange, Presentation
from tests.playlists import URL, Listed, cut, live, parsed

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"


def test_segments_get_consecutive_numbers_and_absolute_uris() -> None:
    snapshot = live(7, 8, 9).snapshot()
    assert [segment.sequence for segment in snapshot.segments] == [7, 8, 9]
    assert snapshot.segments[0].uri == "https://origin.example/live/7.ts"
    assert snapshot.target_duration_s == 4


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not an HLS playlist"),
        (b"<!doctype html><title>login</title>", "not an HLS playlist"),
        (b"#EXTINF:4,\n1.ts\n", "not an HLS playlist"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n", "no segment"),
        (b"\x00\xff\xfe", "not an HLS playlist"),
    ],
)
def test_what_is_no_playlist_is_refused_by_name(body: bytes, reason: str) -> None:
    with pytest.raises(PlaylistError, match=reason):
        parse(body, URL)


@pytest.mark.parametrize(
    ("text", "repair"),
    [
        ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:abc,\n1.ts\n", "extinf_bad"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:-1,\n1.ts\n", "extinf_bad"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4\n1.ts\n", "extinf_bad"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n1.ts\n2.ts\n", "extinf_missing"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:0\n#EXTINF:4,\n1.ts\n", "target_duration_bad"),
        ("#EXTM3U\n#EXTINF:4,\n1.ts\n", "target_duration_bad"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n1.ts\n#EXT-X-MEDIA-SEQUENCE:5\n#EXTINF:4,\n2.ts\n", "media_sequence_late"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:x\n#EXTINF:4,\n1.ts\n", "media_sequence_bad"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n1.ts\n#EXTINF:4,\n1.ts\n", "duplicate_segment"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n1.ts\n#EXTINF:4,\nhttps://x/2", "last_line_cut_off"),
        (f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{'9' * 300}\n#EXTINF:4,\n1.ts\n", "media_sequence_bad"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-PROGRAM-DATE-TIME:9999-12-31T23:59:59Z\n#EXTINF:4,\n1.ts\n", "program_date_time_bad"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-PROGRAM-DATE-TIME:noon\n#EXTINF:4,\n1.ts\n", "program_date_time_bad"),
    ],
)
def test_what_players_forgive_is_repaired_and_named(text: str, repair: str) -> None:
    snapshot = parsed(text)
    assert repair in snapshot.repairs
    assert all(segment.duration_s == 4.0 for segment in snapshot.segments)
    assert snapshot.target_duration_s == 4


def test_a_looped_slate_is_no_duplicate() -> None:
    slate = [Listed(n, "slate.ts", discontinuity=True) for n in (1, 2, 3)]
    assert [segment.sequence for segment in live(0, *slate, 4).snapshot().segments] == [0, 1, 2, 3, 4]
    by_query = live(*(Listed(n, f"seg.php?n={n}") for n in range(6))).snapshot()
    assert len(by_query.segments) == 6


def test_a_target_duration_in_milliseconds_is_none() -> None:
    snapshot = live(1, 2, target="10000").snapshot()
    assert snapshot.target_duration_s == 4
    assert "target_duration_bad" in snapshot.repairs


def test_no_query_can_write_a_line_of_ours() -> None:
    text = '#EXTM3U\n#EXT-X-DEFINE:QUERYPARAM="q"\n#EXT-X-SESSION-DATA:DATA-ID="{$q}",VALUE="x"\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv.m3u8\n'
    found = parse(text.encode(), URL + "?q=1%22%0A%23EXT-X-STREAM-INF:BANDWIDTH=2%0Ahttp://evil.example/x.m3u8")
    assert isinstance(found, Presentation)
    assert len(found.tracks) == 1
    assert all("\n" not in line for line in found.lines)


def test_variables_cannot_blow_a_playlist_up() -> None:
    text = '#EXTM3U\n#EXT-X-DEFINE:NAME="a",VALUE="' + "x" * 30_000 + '"\n' + "{$a}{$a}{$a}\n" * 2000
    with pytest.raises(PlaylistError, match="EXT-X-DEFINE"):
        parse(text.encode(), URL)


def test_bom_and_crlf_are_no_trouble() -> None:
    text = "\ufeff" + live(1, 2).text().replace("\n", "\r\n")
    assert [segment.uri.rpartition("/")[2] for segment in parsed(text).segments] == ["1.ts", "2.ts"]


def test_identity_ignores_the_query_because_tokens_rotate() -> None:
    first = live(Listed(1, "a.ts?token=1")).snapshot().segments[0]
    second = live(Listed(1, "a.ts?token=2")).snapshot().segments[0]
    assert identity(first) == identity(second)
    assert identity(first) != identity(live(Listed(1, "b.ts?token=1")).snapshot().segments[0])


def test_an_implicit_iv_becomes_the_sources_own_sequence_number() -> None:
    text = '#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:258\n#EXT-X-KEY:METHOD=AES-128,URI="k"\n#EXTINF:4,\n1.ts\n'
    (key,) = parsed(text).segments[0].keys
    assert key.iv == "0x00000000000000000000000000000102"
    assert key.uri == "https://origin.example/live/k"


def test_keys_of_several_formats_hold_until_none() -> None:
    keys = '#EXT-X-KEY:METHOD=SAMPLE-AES,URI="a",KEYFORMAT="x"\n#EXT-X-KEY:METHOD=SAMPLE-AES,URI="b",KEYFORMAT="y"\n'
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n{keys}#EXTINF:4,\n1.ts\n#EXT-X-KEY:METHOD=NONE\n#EXTINF:4,\n2.ts\n"
    first, second = parsed(text).segments
    assert [key.keyformat for key in first.keys] == ["x", "y"]
    assert second.keys == ()


def test_a_map_and_a_key_between_extinf_and_uri_count_for_that_segment() -> None:
    text = '#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n#EXT-X-MAP:URI="i.mp4",BYTERANGE="700@10"\n1.m4s\n'
    init = parsed(text).segments[0].init
    assert init is not None
    assert (init.uri, init.byterange) == ("https://origin.example/live/i.mp4", ByteRange(700, 10))


def test_a_byte_range_without_offset_follows_its_predecessor() -> None:
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n#EXT-X-BYTERANGE:100@50\na.ts\n#EXTINF:4,\n#EXT-X-BYTERANGE:30\na.ts\n"
    assert [segment.byterange for segment in parsed(text).segments] == [ByteRange(100, 50), ByteRange(30, 150)]


def test_unknown_tags_are_kept_in_place_and_those_of_the_head_are_not() -> None:
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n1.ts\n#EXT-X-CUE-OUT:30\n#EXT-MINE:a=1\n#EXTINF:4,\n2.ts\n#EXT-X-ENDLIST\n"
    first, second = parsed(text).segments
    assert first.tags == ()
    assert second.tags == ("#EXT-X-CUE-OUT:30", "#EXT-MINE:a=1")


def test_a_discontinuity_stays_with_its_segment() -> None:
    assert [segment.discontinuity for segment in live(1, cut(2), 3).snapshot().segments] == [False, True, False]


MULTIVARIANT = """#EXTM3U
#EXT-X-DEFINE:NAME="where",VALUE="cdn"
#EXT-X-CONTENT-STEERING:SERVER-URI="https://steer.example"
#EXT-X-SESSION-DATA:DATA-ID="x",URI="data.json"
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="English",LANGUAGE="en",DEFAULT=YES,URI="{$where}/en.m3u8"
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="Deutsch",LANGUAGE="de",URI="{$where}/de.m3u8"
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="other",NAME="English",LANGUAGE="en",URI="other.m3u8"
#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="s",NAME="Deutsch",LANGUAGE="de",URI="s.m3u8"
#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID="cc",NAME="CC1",INSTREAM-ID="CC1"
#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=100,RESOLUTION=1280x720,URI="i.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=900000,RESOLUTION=640x360,CODECS="avc1.4d401e,mp4a.40.2",AUDIO="a",SUBTITLES="s",CLOSED-CAPTIONS="cc"
low.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=2500000,RESOLUTION=1280x720,AUDIO="a",X-MINE="1",PATHWAY-ID="A"
high.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=2500000,RESOLUTION=1280x720,AUDIO="a",X-MINE="1",PATHWAY-ID="B"
https://other.example/high.m3u8
"""


def presented(text: str = MULTIVARIANT) -> Presentation:
    found = parse(text.encode(), URL)
    assert isinstance(found, Presentation)
    return found


def test_a_multivariant_playlist_gives_all_its_tracks_under_names_of_ours() -> None:
    assert {track.name: [uri.removeprefix("https://origin.example/live/") for uri in track.uris] for track in presented().tracks} == {
        "audio-en": ["cdn/en.m3u8"],
        "audio-de": ["cdn/de.m3u8"],
        "audio-en-2": ["other.m3u8"],
        "subtitles-de": ["s.m3u8"],
        "iframes-720p": ["i.m3u8"],
        "v360p-900k": ["low.m3u8"],
        "source": ["high.m3u8", "https://other.example/high.m3u8"],
    }


def test_what_is_no_track_goes_through_and_content_steering_does_not() -> None:
    assert presented().lines == (
        '#EXT-X-SESSION-DATA:DATA-ID="x",URI="https://origin.example/live/data.json"',
        '#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID="cc",NAME="CC1",INSTREAM-ID="CC1"',
    )


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        ("all", ["v360p-900k", "source", "audio-en", "audio-de", "subtitles-de", "iframes-720p"]),
        ("best", ["source", "audio-en", "audio-de", "iframes-720p"]),
        ("<=480p", ["source", "audio-en", "audio-de", "subtitles-de"]),
        ("v360p-900k", ["source", "audio-en", "audio-de", "subtitles-de"]),
    ],
)
def test_of_a_presentation_only_what_was_asked_for_is_relayed(wish: str, names: list[str]) -> None:
    assert [track.name for track in chosen(presented(), wish).tracks] == names


def test_a_wish_that_fits_no_variant_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match="v360p-900k, source"):
        chosen(presented(), "<=100p")


def test_variables_of_a_media_playlist_come_from_itself_its_query_and_the_multivariant_playlist() -> None:
    text = (
        '#EXTM3U\n#EXT-X-DEFINE:NAME="a",VALUE="1"\n#EXT-X-DEFINE:IMPORT="b"\n#EXT-X-DEFINE:QUERYPARAM="c"\n'
        "#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{$a}{$b}{$c}{$d}.ts\n"
    )
    found = parse(text.encode(), URL + "?c=3", {"b": "2"})
    assert not isinstance(found, Presentation)
    assert found.segments[0].uri.endswith("/123{$d}.ts")
    with pytest.raises(PlaylistError, match="EXT-X-DEFINE"):
        parse(text.encode(), URL)


@given(st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_a_playlist_error(noise: bytes) -> None:
    for body in (noise, b"#EXTM3U\n" + noise, b"#EXTM3U\n#EXTINF:4,\n" + noise):
        try:
            parse(body, URL)
        except PlaylistError:
            continue


_ODD_LINES = """
#EXTINF:4.0,
#EXTINF:
#EXTINF:nan,
#EXTINF:1e9,
a.ts
b.ts?x=1
../../etc/passwd
http://[
#EXT
#EXT-X-KEY
#EXT-X-KEY:METHOD=AES-128
#EXT-X-MAP:URI="i",BYTERANGE="x"
#EXT-X-BYTERANGE:@
#EXT-X-BYTERANGE:5
#EXT-X-TARGETDURATION:
#EXT-X-TARGETDURATION:1e400
#EXT-X-MEDIA-SEQUENCE:-1
#EXT-X-MEDIA-SEQUENCE:9999999999999999999999
#EXT-X-DISCONTINUITY
#EXT-X-GAP
#EXT-X-STREAM-INF:
#EXT-X-STREAM-INF:BANDWIDTH=x
#EXT-X-MEDIA:TYPE=AUDIO
#EXT-X-PART:URI="p",DURATION=x
#EXT-X-DATERANGE:ID="1",DURATION=x
#EXT-X-SKIP:SKIPPED-SEGMENTS=x
#EXT-X-CUE-OUT-CONT:1/
#EXT-X-ENDLIST
"""


@given(st.lists(st.sampled_from(_ODD_LINES.splitlines()), max_size=30))
def test_any_mix_of_odd_lines_raises_nothing_but_a_playlist_error(lines: list[str]) -> None:
    with suppress(PlaylistError):
        parse("\n".join(["#EXTM3U", *lines]).encode(), URL)


@pytest.mark.skipif(not CORPUS.exists(), reason="the corpus of third-party playlists is not beside the checkout")
def test_every_playlist_of_the_corpus_is_read_or_refused_by_name() -> None:
    read = refused = 0
    for path in CORPUS.rglob("*.m3u8"):
        try:
            parse(path.read_bytes(), URL)
            read += 1
        except PlaylistError:
            refused += 1
    assert read > 350
    assert refused < 60
