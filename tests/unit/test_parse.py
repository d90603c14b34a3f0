"""Reading what sources send: repaired where players forgive, refused by name where it is no playlist."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.errors import ConfigError, PlaylistError
from hlsrelay.hls.parse import identity, parse
from hlsrelay.hls.reader import Reader, suffix
from hlsrelay.hls.spelling import respelt
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
        ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:1e9,\n1.ts\n", "extinf_bad"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:1.5.2,\n1.ts\n", "extinf_bad"),
        ("\ufeff#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n1.ts\n", "byte_order_mark"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:0\n#EXTINF:4,\n1.ts\n", "target_duration_bad"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:6garbage\n#EXTINF:4,\n1.ts\n", "target_duration_bad"),
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


def test_what_is_shown_again_and_again_is_no_duplicate() -> None:
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n"
    shown = "#EXTINF:4,\nempty.vtt\n"
    assert len(parsed(head + 3 * shown).segments) == 3
    dates = [f"#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:0{second}Z\n{shown}" for second in (0, 4)]
    assert len(parsed(head + "".join(dates)).segments) == 2
    keys = [f'#EXT-X-KEY:METHOD=AES-128,URI="{key}"\n{shown}' for key in "ab"]
    assert len(parsed(head + "".join(keys)).segments) == 2
    assert len(parsed(head + 2 * shown).segments) == 1


def test_a_packager_without_a_clock_begins_with_1970() -> None:
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-PROGRAM-DATE-TIME:1970-01-01T00:00:00Z\n#EXTINF:4,\n1.ts\n"
    assert parsed(text).segments[0].program_date_time == datetime(1970, 1, 1, tzinfo=UTC)
    assert parsed(text).repairs == ()


@pytest.mark.parametrize(
    ("written", "spelt"),
    [
        ('#EXT-X-MEDIA:TYPE=AUDIO, GROUP-ID=a ,NAME="A, b",DEFAULT="YES",', '#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="A, b",DEFAULT=YES'),
        ('#EXT-X-STREAM-INF:BANDWIDTH=x,RESOLUTION="1x1",VIDEO-RANGE="SDR"', "#EXT-X-STREAM-INF:RESOLUTION=1x1,VIDEO-RANGE=SDR"),
        ('#EXT-X-DATERANGE:ID="a",X-OWN=0xFF,X-B="1, 2"', '#EXT-X-DATERANGE:ID="a",X-OWN=0xFF,X-B="1, 2"'),
        ("#EXT-SCTE35: CUE=1, ID=2", "#EXT-SCTE35: CUE=1, ID=2"),
        ("#EXTINF:4, TYPE=x", "#EXTINF:4, TYPE=x"),
    ],
)
def test_attribute_lists_are_spelt_properly_and_what_is_none_stays(written: str, spelt: str) -> None:
    assert respelt(written) == spelt


def test_unknown_tags_of_a_multivariant_playlist_go_through_and_those_of_segments_do_not() -> None:
    text = '#EXTM3U\n#EXT-X-OWN:URI="o"\n#EXT-X-DATERANGE:ID="a"\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv.m3u8\n'
    assert presented(text).lines == ('#EXT-X-OWN:URI="https://origin.example/live/o"',)


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


@pytest.mark.parametrize(
    ("names", "again", "told"),
    [
        (["a.ts?token=1", "b.ts?token=1"], ["a.ts?token=2", "b.ts?token=2"], ["/live/a.ts", "/live/b.ts"]),
        (["a?token=1", "b?token=1"], ["a?token=2", "b?token=2"], ["/live/a", "/live/b"]),
        (["?n=12", "?n=13"], ["?n=12", "?n=13"], ["/live/index.m3u8?n=12", "/live/index.m3u8?n=13"]),
        (["s.php?token=1&n=9", "s.php?token=1&n=10"], ["s.php?token=2&n=9", "s.php?token=2&n=10"], ["/live/s.php?n=9", "/live/s.php?n=10"]),
        (["s.php?sig=f1&n=9", "s.php?sig=a2&n=10"], ["s.php?sig=b1&n=9", "s.php?sig=c2&n=10"], ["/live/s.php?n=9", "/live/s.php?n=10"]),
        (["s?name=b.ts&t=1", "s?name=a.ts&t=1"], ["s?name=b.ts&t=2", "s?name=a.ts&t=2"], ["/live/s?name=b.ts", "/live/s?name=a.ts"]),
        (["s?12", "s?13"], ["s?12", "s?13"], ["/live/s?12", "/live/s?13"]),
        (["s?a=1&b=1", "s?a=1&b=2", "s?a=2&b=1"], [], ["/live/s?a=1&b=1", "/live/s?a=1&b=2", "/live/s?a=2&b=1"]),
        (["s.php?n=12"], ["s.php?n=12"], ["/live/s.php?n=12"]),
        (["a.ts?token=1"], ["a.ts?token=2"], ["/live/a.ts"]),
        (["a.ts", "slate.ts", "slate.ts"], [], ["/live/a.ts", "/live/slate.ts", "/live/slate.ts"]),
        (["a.ts?t=1", "slate.ts?t=1", "slate.ts?t=1"], [], ["/live/a.ts", "/live/slate.ts", "/live/slate.ts"]),
    ],
)
def test_identity_keeps_of_the_query_what_alone_tells_segments_apart(names: list[str], again: list[str], told: list[str]) -> None:
    for listed in (names, again) if again else (names,):
        items = (Listed(n, name, discontinuity=name.startswith("slate")) for n, name in enumerate(listed))
        assert [identity(segment) for segment in live(*items).snapshot().segments] == told


@pytest.mark.parametrize("names", [[f"s?n={digit * 5000}" for digit in "98"], ["s?" + "&" * 4000 + digit for digit in "98"]])
def test_queries_beyond_reason_tell_segments_apart_too(names: list[str]) -> None:
    first, second = live(Listed(0, names[0]), Listed(1, names[1])).snapshot().segments
    assert identity(first) != identity(second)


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


def test_pathways_of_content_steering_are_redundant_copies_though_each_has_groups_of_its_own() -> None:
    def pathway(name: str, host: str, spelt: str) -> str:
        return f"""#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="{name}",NAME="{spelt}",LANGUAGE="en",URI="{host}/en.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=1280000,AUDIO="{name}",PATHWAY-ID="CDN-{name}"
{host}/low.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=2560000,AUDIO="{name}",PATHWAY-ID="CDN-{name}"
{host}/high.m3u8
"""

    text = "#EXTM3U\n" + pathway("A", "https://a.example", "English") + pathway("B", "https://b.example", "ENGLISH")
    found = parse(text.encode(), URL)
    assert isinstance(found, Presentation)
    assert {track.name: track.uris for track in found.tracks} == {
        name: (f"https://a.example/{file}.m3u8", f"https://b.example/{file}.m3u8")
        for name, file in (("source", "high"), ("v-1280k", "low"), ("audio-en", "en"))
    }
    assert {track.attribute("AUDIO") or track.attribute("GROUP-ID") for track in found.tracks} == {"A"}


URIS = st.from_regex(r"[a-z0-9./?#:;&=%@~+, -]{1,12}", fullmatch=True).map(str.strip).filter(bool)
BASES = st.sampled_from(
    ["https://o.example", "https://o.example/", "https://o.example/a/b.m3u8?t=/x/y#f", "http://u@h:8/a/../b/;p?q", "file:///"]
)


@given(BASES, URIS)
def test_what_a_uri_stands_for_is_what_the_standard_library_says(base: str, uri: str) -> None:
    assert Reader(base).absolute(uri) == urljoin(base, uri)
    assert suffix(uri) == urlsplit(uri).path.rpartition(".")[2]


def test_what_only_we_say_no_source_can_say() -> None:
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n"
    snapshot = parsed(f"{head}#EXTINF:4,\n#EXT-X-HLSRELAY-URI:http://elsewhere.example/x.ts\n1.ts\n")
    assert [one.uri for one in snapshot.segments] == ["https://origin.example/live/1.ts"]


PIECES = st.text("aZ09/?#:@[];=%&+ ~!$*(),-._|^`\\\"'{}<>\té", max_size=12)


@given(st.sampled_from(["http", "https", "HTTP", "file"]), st.one_of(st.just("cdn.example:8080"), PIECES), PIECES)
def test_a_segment_is_recognised_by_the_path_of_its_uri(scheme: str, host: str, path: str) -> None:
    uri = f"{scheme}://{host}/{path}"
    with suppress(ValueError):  # a host that is none
        assert identity(replace(live(1).snapshot().segments[0], uri=uri)) == urlsplit(uri).path
