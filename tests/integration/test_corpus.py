"""Playlists that others wrote: relayed, or refused by name; what comes out is legal, and says all that went in."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urljoin

import pytest

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.advance import advance
from hlsrelay.hls.parse import LONGEST_EXTINF_S, parse
from hlsrelay.hls.render import multivariant_playlist
from hlsrelay.hls.window import Progress, slide
from hlsrelay.judge import Judge
from hlsrelay.judge.findings import Severity
from hlsrelay.model import Entry, KeyPolicy, Kind, MediaFile, Presentation, Snapshot, Track, Traits
from tests.corpus import (
    Block,
    Pairs,
    Relayed,
    at_once,
    body,
    corpus,
    files,
    lines_of,
    live,
    name,
    pairs,
    plainly,
    refusals,
    split_tag,
    strict,
)
from tests.playlists import URL, at, stream
from tests.playlists import live as live_source

pytestmark = pytest.mark.xdist_group("corpus")  # they share what is relayed once

NO_FIRST_LINE = "not an HLS playlist"
REFUSED = {
    # A comment or nothing before #EXTM3U, or no #EXTM3U at all: it MUST be the first line [RFC 8216 4.3.1.1].
    "grafov/master-with-hlsv7.m3u8": NO_FIRST_LINE,
    "grafov/media-playlist-with-discontinuity.m3u8": NO_FIRST_LINE,
    "m3u8-parser/empty.m3u8": NO_FIRST_LINE,
    "m3u8-parser/manifestNoExtM3u.m3u8": NO_FIRST_LINE,
    "m3u8-parser/master.m3u8": NO_FIRST_LINE,
    "m3u8-parser/start.m3u8": NO_FIRST_LINE,
    "m3u8-parser/streamInfInvalid.m3u8": NO_FIRST_LINE,
    "vhs/manifests/main-captions.m3u8": NO_FIRST_LINE,
    "vhs/manifests/main-subtitles.m3u8": NO_FIRST_LINE,
    "vhs/manifests/main.m3u8": NO_FIRST_LINE,
    "vhs/manifests/manifestNoExtM3u.m3u8": NO_FIRST_LINE,
    "vhs/manifests/one-rendition.m3u8": NO_FIRST_LINE,
    "vhs/manifests/streamInfInvalid.m3u8": NO_FIRST_LINE,
    "vhs/manifests/two-renditions.m3u8": NO_FIRST_LINE,
    # #EXTM3U and nothing else.
    "m3u8-parser/headerOnly.m3u8": "lists no segment",
    # 40,001 segments: no live window is so long, and reading it again and again would hold up other streams.
    "grafov/media-playlist-large.m3u8": "more than 60000 lines",
}


@functools.cache
def read() -> dict[str, Snapshot | Presentation | PlaylistError]:
    """Every playlist of the corpus, as it is read or refused."""
    found: dict[str, Snapshot | Presentation | PlaylistError] = {}
    for path in files(".m3u8"):
        try:
            found[name(path)] = parse(path.read_bytes(), URL)
        except PlaylistError as error:
            found[name(path)] = error
    return found


def text(named: str) -> str:
    return body(named).decode("utf-8", "replace")


@functools.cache
def all_relayed() -> dict[str, tuple[Relayed, Relayed]]:
    """Every media playlist of the corpus, loaded once and as a live source lists it."""
    return {named: (at_once(text(named)), live(text(named))) for named, found in read().items() if isinstance(found, Snapshot)}


@functools.cache
def all_presented() -> dict[str, str]:
    """The multivariant playlist that each of the corpus becomes, while all of its tracks are published."""
    return {named: presented(found) for named, found in read().items() if isinstance(found, Presentation)}


TRAITS = {
    Kind.VARIANT: Traits("avc1.64001f,mp4a.40.2", 1280, 720, 30.0),
    Kind.AUDIO: Traits("mp4a.40.2"),
    Kind.VIDEO: Traits("avc1.64001f", 1280, 720, 30.0),
    Kind.SUBTITLES: Traits("wvtt"),
    Kind.I_FRAMES: Traits("avc1.64001f", 1280, 720, 1.0),
}


def presented(presentation: Presentation) -> str:
    return multivariant_playlist(presentation, {track.name: published(track) for track in presentation.tracks}, KeyPolicy.ORIGIN)


def published(track: Track) -> Progress:
    position = advance(None, live_source(0).snapshot(), stream(), at(0)).position
    progress = Progress(position, 4, track.name, track.kind)
    for number in range(3):
        files = {track.name: MediaFile(f"{number}.ts", 500_000, traits=TRAITS[track.kind])}
        entry = Entry(number, 4.0, discontinuity=False, program_date_time=at(4 * number), files=files)
        progress = slide(progress, entry, replace(position, last_number=number), 60.0, at(4 * number))
    return progress


# Legal, or refused ----------------------------------------------------------------------------------------------------------------------


@corpus
def test_every_playlist_is_read_or_refused_and_the_refused_are_known() -> None:
    refused = {named: str(found) for named, found in read().items() if isinstance(found, PlaylistError)}
    assert {named: reason for named, reason in refused.items() if REFUSED.get(named, "\0") not in reason} == {}
    assert refused.keys() == REFUSED.keys()
    assert len(read()) > 400


@corpus
@pytest.mark.parametrize("how", [0, 1], ids=["loaded-once", "live"])
def test_what_comes_out_of_a_media_playlist_passes_the_static_rules(how: int) -> None:
    errors = {named: set(both[how].errors()) for named, both in all_relayed().items()}
    assert {named: said for named, said in errors.items() if said} == {}


@corpus
def test_what_comes_out_of_a_multivariant_playlist_passes_the_static_rules() -> None:
    assert {named: broken for named, shown in all_presented().items() if (broken := judged(shown))} == {}


def judged(shown: str) -> list[str]:
    judge = Judge()
    judge.playlist("https://relay.example/news/index.m3u8", shown.encode(), None, 0.0)
    return [f"{one.rule}: {one.text} {one.detail}" for one in judge.findings if one.severity is Severity.ERROR]


@corpus
@strict
def test_what_comes_out_passes_the_strict_mode_of_another_parser() -> None:
    shown = [(named, one) for named, both in all_relayed().items() for relayed in both for one in relayed.texts]
    shown += all_presented().items()
    refused: dict[str, set[str]] = defaultdict(set)
    for (named, _), reason in zip(shown, refusals(one for _, one in shown), strict=True):
        if reason is not None:
            refused[named].add(reason)
    assert refused == {}
    assert len(shown) > 3000


@strict
def test_the_other_parser_refuses_what_is_not_legal() -> None:
    legal = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXTINF:4.0,Grüße ✓\n1.ts\n"
    said = list(refusals([legal, legal.replace("#EXTINF", '#EXT-X-MAP:URI="i"\n#EXTINF'), legal.replace(":4.0", ":9.0"), ""]))
    assert said[0] is None
    assert None not in said[1:]


# Nothing is lost ------------------------------------------------------------------------------------------------------------------------

DATED_LATE = {"m3u8-parser/llhlsDelta.m3u8"}
"""Dates that begin after the first load: ours go on to the next DISCONTINUITY, because two clocks in one playlist mean nothing [A12]."""

EVERYTHING = """#EXTM3U
#EXT-X-VERSION:6
#EXT-X-TARGETDURATION:4
#EXT-X-MEDIA-SEQUENCE:700
#EXT-X-MINE-OF-THE-HEAD:1
#EXT-X-KEY:METHOD=AES-128,URI="k1?a=b,c",X-OWN="1,2",KEYFORMATVERSIONS="1"
#EXT-X-MAP:URI="all.m4s",BYTERANGE="700@0"
#EXT-X-PROGRAM-DATE-TIME:2026-01-01T01:00:00.120+01:00
#EXT-X-BITRATE:2000
#EXTINF:4.004,Nachrichten, heute ✓
#EXT-X-BYTERANGE:1000@700
all.m4s
#EXT-X-DATERANGE:ID="ad",START-DATE="2026-01-01T00:00:04.124Z",PLANNED-DURATION=8,SCTE35-OUT=0xFC30,X-OWN="a,b"
#EXT-X-CUE-OUT:DURATION=8
#EXT-OATCLS-SCTE35:/DAlAAAAAAAAAP/wFAUAAAABf+/+ANgNkv4AFJlwAAEBAQAA5xULLA==
#EXTINF:4.004,
#EXT-X-BYTERANGE:900
all.m4s
#EXT-X-CUE-OUT-CONT:4.004/8
#EXT-X-GAP
#EXTINF:4.004,
gone.m4s
#EXT-X-CUE-IN
#EXT-X-DISCONTINUITY
#EXT-X-KEY:METHOD=SAMPLE-AES,KEYFORMAT="com.apple.streamingkeydelivery",URI="skd://one",KEYFORMATVERSIONS="1"
#EXT-X-KEY:METHOD=SAMPLE-AES-CTR,URI="data:text/plain;base64,AAAA==",KEYFORMAT="urn:uuid:edef8ba9",KEYID=0x01
#EXT-X-MAP:URI="two.mp4"
#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:01:00Z
#EXTINF:3,
20.m4s
#EXT-VENDOR-THING
#EXTINF:3.5,
21.m4s
#EXT-X-KEY:METHOD=NONE
#EXT-X-MAP:URI="two.mp4",BYTERANGE="10@20"
#EXTINF:4,
22.m4s
#EXTINF:4,
#EXT-X-KEY:METHOD=AES-128,URI="https://keys.example/3",IV=0x0123456789ABCDEF0123456789abcdef
23.m4s
#EXT-X-BITRATE:1500
#EXTINF:4,
24.m4s
"""


@corpus
def test_no_media_playlist_loses_what_it_says() -> None:
    lost = {
        named: found for named, both in all_relayed().items() if (found := [*missing(text(named), both[0]), *missing(text(named), both[1])])
    }
    assert lost.keys() == DATED_LATE
    assert all(": date " in one for found in lost.values() for one in found)


def test_a_gap_stays_listed_as_it_was_when_the_format_changes() -> None:
    old = "#EXTINF:4,\n0.ts\n#EXT-X-GAP\n#EXTINF:4,\n1.ts\n#EXTINF:4,\n2.ts\n"
    new = '#EXT-X-DISCONTINUITY\n#EXT-X-MAP:URI="init.mp4"\n' + "".join(f"#EXTINF:4,\n{number}.m4s\n" for number in range(3, 16))
    late = new.replace("#EXTINF:4,\n4.m4s", "#EXT-X-GAP\n#EXTINF:4,\n4.m4s")
    for text in (old + new, old + late):
        relayed = live("#EXTM3U\n#EXT-X-TARGETDURATION:4\n" + text)
        gaps = [block.uri for _, block in sorted(relayed.published.items()) if block.value("#EXT-X-GAP") is not None]
        assert relayed.errors() == []
        assert gaps == (["1.ts", "4.m4s"] if text.endswith(late) else ["1.ts"])


def test_a_playlist_of_every_tag_loses_none() -> None:
    for relayed in (at_once(EVERYTHING), live(EVERYTHING)):
        assert list(missing(EVERYTHING, relayed)) == []
        assert relayed.errors() == []
    assert len(live(EVERYTHING).published) == 8


def missing(source: str, relayed: Relayed) -> Iterator[str]:
    """Yield what the source says of a segment and the relay does not, or says otherwise."""
    known = plainly(source).numbered()
    inits: dict[tuple[str, str], set[str]] = defaultdict(set)
    first = min(relayed.published)
    ranges = [(where, spaced(line)) for where, block in known.items() for line in block.tags if line.startswith("#EXT-X-DATERANGE")]
    for number, ours in relayed.published.items():
        theirs = known[number]
        elsewhere = {line for where, line in ranges if where != number}
        mine = replace(ours, tags=tuple(line for line in ours.tags if line not in elsewhere))  # a range belongs to the whole playlist
        whole = number not in relayed.sliced
        for what, wanted, got in (*said(theirs, mine, whole=whole), *locked(theirs, mine, number)):
            if wanted == got or (what == "DISCONTINUITY" and number == first):  # nothing stands before the first ever
                continue
            if what != "DISCONTINUITY" or wanted is not None or not breaks(known, number):
                yield f"{number}: {what} {got!r}, not {wanted!r}"
        if ours.value("#EXT-X-GAP") is None:
            init = dict(theirs.init)
            inits[absolute(init.get("URI", '""')), init.get("BYTERANGE", "")].add(dict(ours.init).get("URI", ""))
    yield from (f"MAP {init}: {uris}" for init, uris in inits.items() if len(uris) != 1 or (uris == {""}) == bool(init[0]))
    if len({uri for uris in inits.values() for uri in uris}) != len(inits):
        yield f"MAPs that differ are one: {dict(inits)}"


def breaks(known: Mapping[int, Block], number: int) -> bool:
    """Whether a block has another MAP than the one before it, or a date that does not go on from there."""
    block, before = known[number], known[number - 1]
    when, was = (instant(one.value("#EXT-X-PROGRAM-DATE-TIME")) for one in (block, before))
    length_s = float((before.value("#EXTINF") or "0").partition(",")[0])
    return block.init != before.init or (when is not None and was is not None and abs((when - was).total_seconds() - length_s) > 1)


def said(theirs: Block, ours: Block, *, whole: bool) -> Iterator[tuple[str, object, object]]:
    yield "DISCONTINUITY", theirs.value("#EXT-X-DISCONTINUITY"), ours.value("#EXT-X-DISCONTINUITY")
    yield "GAP", theirs.value("#EXT-X-GAP"), ours.value("#EXT-X-GAP")
    yield "tags", [spaced(line) for line in theirs.others()], ours.others()
    duration, _, title = (theirs.value("#EXTINF") or "").partition(",")
    our_duration, _, our_title = (ours.value("#EXTINF") or "").partition(",")
    yield "title", title.strip(), our_title
    if whole and duration.replace(".", "", 1).isdecimal() and 0 < float(duration) <= LONGEST_EXTINF_S:
        yield "duration", round(float(duration), 6), float(our_duration)
    if (when := instant(theirs.value("#EXT-X-PROGRAM-DATE-TIME"))) is not None:
        yield "date", when, instant(ours.value("#EXT-X-PROGRAM-DATE-TIME"))


def spaced(line: str) -> str:
    """Blanks after the commas of an attribute list are none of its attributes."""
    return line.replace(", ", ",") if line.startswith("#EXT-X-DATERANGE") else line


def instant(value: str | None) -> datetime | None:
    """Return a date, to the millisecond; None where it is none, or one before Unix time as of a broken clock."""
    try:
        when = datetime.fromisoformat(value or "")
    except ValueError:
        return None
    when = (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    return when.replace(microsecond=when.microsecond // 1000 * 1000)


def locked(theirs: Block, ours: Block, number: int) -> Iterator[tuple[str, object, object]]:
    """Compare the keys in force, of the segment and of its MAP: attributes, order and quotes, the URI absolute, no IV left implied."""
    if ours.value("#EXT-X-GAP") is not None:
        return
    yield "keys", [told(key, number) for key in theirs.keys.values()], list(ours.keys.values())
    if theirs.init:
        yield "keys of the MAP", [told(key, 0) for key in theirs.init_keys.values()], list(ours.init_keys.values())


def told(key: Pairs, number: int) -> Pairs:
    named = dict(key)
    implied = "IV" not in named and named["METHOD"] in ("AES-128", "SAMPLE-AES") and "KEYFORMAT" not in named
    uris = tuple((attribute, f'"{absolute(value)}"' if attribute == "URI" else value) for attribute, value in key)
    return (*uris, *((("IV", f"0x{number:032x}"),) if implied else ()))


def absolute(uri: str) -> str:
    return urljoin(URL, uri.strip('"')) if uri.strip('"') else ""


# Multivariant playlists -----------------------------------------------------------------------------------------------------------------

OURS = {"BANDWIDTH", "AVERAGE-BANDWIDTH", "URI"}
"""What the relay says itself: bitrates are measured [A 9.14], URIs are its own."""
OF_COPIES = {"PATHWAY-ID", "PROGRAM-ID", "STABLE-VARIANT-ID", "STABLE-RENDITION-ID"}
"""What redundant copies of a track differ by: the relay is one source and lists each once."""
GROUPS = ("AUDIO", "VIDEO", "SUBTITLES")
TRACKS = {"#EXT-X-STREAM-INF", "#EXT-X-I-FRAME-STREAM-INF", "#EXT-X-MEDIA"}
WORDS = {"RESOLUTION", "VIDEO-RANGE"}
"""What has no quotes [bis 4.4.6.2], whatever a source writes."""
NOT_THROUGH = {"#EXTM3U", "#EXT-X-VERSION", "#EXT-X-CONTENT-STEERING", "#EXT-X-ALLOW-CACHE", "#EXT-X-TARGETDURATION"}
"""Ours differ, would point players past us, or have no business in a multivariant playlist."""

EVERY_TRACK = """#EXTM3U
#EXT-X-VERSION:7
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-START:TIME-OFFSET=-12.5,PRECISE=YES
#EXT-X-CONTENT-STEERING:SERVER-URI="https://steer.example"
#EXT-X-SESSION-DATA:DATA-ID="com.example.title",VALUE="A, B",LANGUAGE="en"
#EXT-X-SESSION-DATA:DATA-ID="com.example.data",URI="data.json"
#EXT-X-SESSION-KEY:METHOD=SAMPLE-AES,URI="skd://one",KEYFORMAT="com.apple.streamingkeydelivery",KEYFORMATVERSIONS="1"
#EXT-X-SESSION-KEY:METHOD=AES-128,URI="keys/1"
#EXT-X-VENDOR-HEAD:a=1
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="English, loud",LANGUAGE="en",DEFAULT=YES,AUTOSELECT=YES,CHANNELS="2",X-OWN="1",URI="en.m3u8"
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="Deutsch",LANGUAGE="de",ASSOC-LANGUAGE="gsw",CHARACTERISTICS="public.easy-to-read",URI="de.m3u8"
#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="s",NAME="Deutsch",LANGUAGE="de",FORCED=NO,URI="s.m3u8"
#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID="cc",NAME="CC1",INSTREAM-ID="CC1"
#EXT-X-STREAM-INF:BANDWIDTH=900000,CODECS="avc1.4d401e,mp4a.40.2",RESOLUTION=640x360,AUDIO="a",SUBTITLES="s",CLOSED-CAPTIONS="cc",X-OWN="2"
low.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=2500000,SCORE=2,VIDEO-RANGE=SDR,HDCP-LEVEL=NONE,FRAME-RATE=25,RESOLUTION=1280x720,CLOSED-CAPTIONS=NONE
high.m3u8
#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=100,CODECS="avc1.4d401e",RESOLUTION=1280x720,X-OWN=3,URI="i.m3u8"
"""


@corpus
def test_no_multivariant_playlist_loses_what_it_says() -> None:
    lost = {named: found for named, shown in all_presented().items() if (found := list(unsaid(text(named), shown)))}
    assert lost == {}


def test_a_multivariant_playlist_of_every_tag_loses_none_but_content_steering() -> None:
    found = parse(EVERY_TRACK.replace("CLOSED-CAPTIONS=NONE", 'CLOSED-CAPTIONS="cc"').encode(), URL)
    assert isinstance(found, Presentation)
    shown = presented(found)
    assert list(unsaid(EVERY_TRACK.replace("CLOSED-CAPTIONS=NONE", 'CLOSED-CAPTIONS="cc"'), shown)) == []
    assert judged(shown) == []
    assert "STEERING" not in shown  # it would point players past us


def unsaid(source: str, shown: str) -> Iterator[str]:
    """Yield what the source's multivariant playlist says and ours does not. Variants keep their order: players begin with the first."""
    ours = list(tracks(shown))
    groups = {(track.get("TYPE"), track.get("GROUP-ID")) for _, track in tracks(source)}
    seen: list[tuple[str, dict[str, str]]] = []
    for tag, track in tracks(source):
        one = {key: value for key, value in track.items() if key not in OF_COPIES | {"URI"}}
        if (tag, one) in seen:
            continue
        seen.append((tag, one))
        said = {key: value for key, value in one.items() if key not in OURS and not (key in GROUPS and (key, value) not in groups)}
        at = next((index for index, (other, got) in enumerate(ours) if other == tag and said.items() <= got.items()), None)
        if at is None:
            yield f"{tag}: {said}"
        else:
            passed = [other for other in ours[:at] if other[0] != tag or tag != "#EXT-X-STREAM-INF"]
            ours = passed + ours[at + 1 :]
    got = list(sessions(shown))
    yield from (str(one) for one in sessions(source) if one not in got)


def tracks(playlist: str) -> Iterator[tuple[str, dict[str, str]]]:
    for line in lines_of(playlist):
        tag, value = split_tag(line)
        if tag in TRACKS:
            yield tag, {key: said.strip('"') if key in WORDS else said for key, said in pairs(value)}


def sessions(playlist: str) -> Iterator[tuple[str, Pairs]]:
    """Yield the tags that are no track's, their URIs absolute."""
    for line in lines_of(playlist):
        tag, value = split_tag(line)
        if line.startswith("#") and tag not in TRACKS | NOT_THROUGH:
            yield tag, tuple((key, f'"{absolute(said)}"' if key == "URI" else said) for key, said in pairs(value))
