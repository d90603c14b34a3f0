"""What is encrypted with what: our playlists say of every segment and init section exactly what the source's says, wherever they begin."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.parse import parse
from hlsrelay.hls.render import media_playlist
from hlsrelay.hls.window import Progress, slide
from hlsrelay.judge import Judge, Severity
from hlsrelay.model import SOURCE, Entry, Key, MediaFile, Segment, Snapshot
from tests.playlists import URL, at, parsed
from tests.unit.test_window import POSITION, entry

KeySet = frozenset[frozenset[tuple[str, str]]]
Covered = dict[int, tuple[KeySet, str, KeySet]]
WINDOW_S = 24.0
HEAD = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{}\n"


def attributes(line: str) -> dict[str, str]:
    return dict(re.findall(r'([A-Z-]+)=("[^"]*"|[^",]*)', line.partition(":")[2]))


def covered(text: str, base: str) -> Covered:
    """Walk a playlist as RFC 8216 4.3.2.4 and 4.3.2.5 say: number -> the segment's keys, its MAP, the MAP's keys; every IV written out."""
    keys: dict[str, dict[str, str]] = {}
    init, of_init = "", frozenset[frozenset[tuple[str, str]]]()
    number = 0
    found: Covered = {}

    def in_force(sequence: int) -> KeySet:
        every = []
        for key in keys.values():
            said = {name: value for name, value in key.items() if name != "URI"} | {"URI": urljoin(base, key["URI"].strip('"'))}
            if "IV" not in said and said.get("KEYFORMAT", '"identity"') == '"identity"':
                said["IV"] = f"0x{sequence:032x}"
            every.append(frozenset(said.items()))
        return frozenset(every)

    for line in text.splitlines():
        tag, _, value = line.partition(":")
        if tag == "#EXT-X-MEDIA-SEQUENCE":
            number = int(value)
        elif tag == "#EXT-X-KEY":
            said = attributes(line)
            keys = {} if said["METHOD"] == "NONE" else {**keys, said.get("KEYFORMAT", '"identity"'): said}
        elif tag == "#EXT-X-MAP":
            init, of_init = urljoin(base, attributes(line)["URI"].strip('"')), in_force(0)
        elif line and not line.startswith("#"):
            found[number] = in_force(number), init, of_init
            number += 1
    return found


def passed_through(segment: Segment) -> Entry:
    """The segment as pass-through lists it, its files and keys where they were."""
    init = segment.init
    file = MediaFile(segment.uri, 10, init.uri if init else None, init_keys=init.keys if init else None)
    return replace(entry(segment.sequence), files={SOURCE: file}, keys=segment.keys)


def republished(text: str) -> list[str]:
    """Relay every segment of the playlist *text*; returns each version of ours."""
    progress, versions = Progress(POSITION, 4), []
    for segment in parsed(text).segments:
        progress = slide(progress, passed_through(segment), replace(POSITION, last_number=segment.sequence), WINDOW_S, at(0))
        versions.append(media_playlist(progress, SOURCE))
    return versions


_IV = st.sampled_from(["", ",IV=0x000000000000000000000000000000aa", ",IV=0x000000000000000000000000000000bb"])
_KEY = st.one_of(
    st.builds('#EXT-X-KEY:METHOD=AES-128,URI="k{}"{}'.format, st.integers(1, 2), _IV),
    st.builds('#EXT-X-KEY:METHOD=SAMPLE-AES,URI="s{}"{}'.format, st.integers(1, 2), _IV),
    st.builds(
        '#EXT-X-KEY:METHOD=SAMPLE-AES-CTR,URI="data:x{}",KEYFORMAT="{}"'.format, st.integers(1, 2), st.sampled_from(["drm-a", "drm-b"])
    ),
    st.just("#EXT-X-KEY:METHOD=NONE"),
)
_LINE = st.one_of(
    _KEY, st.builds('#EXT-X-MAP:URI="init{}.mp4"'.format, st.integers(1, 2)), st.just("#EXTINF:4.0,"), st.just("#EXTINF:4.0,")
)


@given(st.lists(_LINE, max_size=60), st.integers(0, 1000))
def test_every_segment_and_every_init_section_keeps_the_keys_that_the_source_gives_it(lines: list[str], first: int) -> None:
    body, count = [], 0
    for line in [*lines, "#EXTINF:4.0,"]:
        body.append(line)
        if line.startswith("#EXTINF"):
            body.append(f"{count}.m4s")
            count += 1
    text = HEAD.format(first) + "\n".join(body) + "\n"
    theirs = covered(text, URL)
    for version in republished(text):
        ours = covered(version, "https://relay.example/source/index.m3u8")
        assert ours == {number: theirs[number] for number in ours}


AES = '#EXT-X-KEY:METHOD=AES-128,URI="k",IV=0x0000000000000000000000000000000a'
MAP = '#EXT-X-MAP:URI="i.mp4"'
EXTINFS = "".join(f"#EXTINF:4.0,\n{n}.m4s\n" for n in range(10))


@pytest.mark.parametrize("head", [f"{MAP}\n{AES}", f"{AES}\n{MAP}", f"{AES}\n{MAP}\n#EXT-X-KEY:METHOD=NONE"])
def test_key_and_map_are_printed_in_the_order_that_means_the_same(head: str) -> None:
    for version in republished(HEAD.format(5) + head + "\n" + EXTINFS):
        lines = [line for line in version.splitlines() if line.startswith(("#EXT-X-KEY", "#EXT-X-MAP"))]
        assert lines == [
            line.replace('"k"', f'"{urljoin(URL, "k")}"').replace('"i.mp4"', f'"{urljoin(URL, "i.mp4")}"') for line in head.split("\n")
        ]


def test_an_encrypted_init_section_without_iv_gets_one_that_stays_when_the_playlist_slides() -> None:
    text = HEAD.format(5) + f'#EXT-X-KEY:METHOD=AES-128,URI="k"\n{MAP}\n' + EXTINFS
    snapshot = parsed(text)
    assert "map_iv_missing" in snapshot.repairs
    (init,) = {segment.init for segment in snapshot.segments}
    assert init is not None
    assert [key.iv for key in init.keys] == [f"0x{0:032x}"]
    judge = Judge()
    for step, version in enumerate(republished(text)):
        judge.playlist("https://relay.example/source/index.m3u8", version.encode(), None, step * 4.0)
    assert [one.text for one in judge.findings if one.severity is Severity.ERROR] == []


def test_a_rung_that_stands_in_for_the_source_has_its_keys_and_one_of_its_own_has_none() -> None:
    key = Key("AES-128", "key-1-0.key", "0x0a", "identity", (("METHOD", "AES-128"), ("URI", '"k"'), ("IV", "0x0a")))

    def made(number: int, *rungs: str) -> Entry:
        clear = MediaFile(f"{number}.m4s", 1, "init-0.mp4", init_keys=())
        return replace(entry(number, *rungs), files={**entry(number, *rungs).files, SOURCE: clear}, keys=(key,))

    progress = Progress(POSITION, 4)
    for number in range(6):
        rungs = ("360p",) if number >= 3 else ()
        progress = slide(progress, made(number, *rungs), replace(POSITION, last_number=number), WINDOW_S, at(0))
    rows = covered(media_playlist(progress, "360p"), "https://relay.example/360p/index.m3u8")
    assert {init for _, init, _ in rows.values()} == {"https://relay.example/source/init-0.mp4"}
    assert [bool(of_init) for _, _, of_init in rows.values()] == [False] * 6
    assert [len(keys) for keys, _, _ in rows.values()] == [1, 1, 1, 0, 0, 0]
    assert {dict(one)["URI"] for keys, _, _ in rows.values() for one in keys} == {"https://relay.example/source/key-1-0.key"}


def test_a_record_from_before_init_sections_had_keys_of_their_own_reads_as_it_was_printed() -> None:
    key = Key("AES-128", "k", "0x0a", "identity", (("METHOD", "AES-128"), ("URI", '"k"'), ("IV", "0x0a")))
    old = replace(entry(0), files={SOURCE: MediaFile("0.m4s", 1, "init-0.mp4")}, keys=(key,))
    progress = slide(Progress(POSITION, 4), old, replace(POSITION, last_number=0), WINDOW_S, at(0))
    text = media_playlist(progress, SOURCE)
    assert text.index("#EXT-X-KEY") < text.index("#EXT-X-MAP")
    assert text.count("#EXT-X-KEY") == 1


@pytest.mark.parametrize(
    ("lines", "needed"),
    [
        ("", 3),
        ('#EXT-X-KEY:METHOD=AES-128,URI="k",IV=0x0a\n', 3),
        ('#EXT-X-KEY:METHOD=SAMPLE-AES,URI="k",IV=0x0a\n', 5),
        ('#EXT-X-KEY:METHOD=AES-128,URI="k",IV=0x0a,KEYFORMATVERSIONS="1"\n', 5),
        ('#EXT-X-KEY:METHOD=AES-128,URI="k",IV=0x0a,KEYFORMAT="identity"\n', 5),
        ("#EXT-X-I-FRAMES-ONLY\n", 4),
        (MAP + "\n", 6),
        (f"#EXT-X-I-FRAMES-ONLY\n{MAP}\n", 5),
        ("#EXT-X-MINE:REQ-THIS=1\n", 12),
    ],
)
def test_the_version_is_the_lowest_that_the_tags_need(lines: str, needed: int) -> None:
    snapshot = parsed(HEAD.format(0) + lines + "#EXTINF:4.0,\n0.m4s\n")
    progress = Progress(POSITION, 4, i_frames_only=snapshot.i_frames_only)
    made = replace(passed_through(snapshot.segments[0]), tags=snapshot.segments[0].tags)
    text = media_playlist(slide(progress, made, POSITION, WINDOW_S, at(0)), SOURCE)
    assert f"#EXT-X-VERSION:{needed}\n" in text


def test_the_version_of_a_rung_does_not_count_the_keys_of_the_source() -> None:
    key = Key("SAMPLE-AES", "k", "0x0a", "identity", (("METHOD", "SAMPLE-AES"), ("URI", '"k"'), ("IV", "0x0a")))
    progress = slide(Progress(POSITION, 4), replace(entry(0, "360p"), keys=(key,)), POSITION, WINDOW_S, at(0))
    assert "#EXT-X-VERSION:5\n" in media_playlist(progress, SOURCE)
    assert "#EXT-X-VERSION:3\n" in media_playlist(progress, "360p")


def test_sample_aes_passes_with_the_iv_of_the_sources_number_under_ours() -> None:
    found = parse((HEAD.format(300) + '#EXT-X-KEY:METHOD=SAMPLE-AES,URI="k"\n' + EXTINFS).encode(), URL)
    assert isinstance(found, Snapshot)
    progress = Progress(POSITION, 4)
    for number, segment in enumerate(found.segments):  # renumbered from 0 on
        progress = slide(progress, replace(passed_through(segment), number=number), replace(POSITION, last_number=number), WINDOW_S, at(0))
    ours = covered(media_playlist(progress, SOURCE), URL)
    assert [dict(one)["IV"] for keys, _, _ in ours.values() for one in keys] == [f"0x{300 + number:032x}" for number in ours]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("0xABC", "0x00000000000000000000000000000ABC"),
        ("0Xabc", "0x00000000000000000000000000000abc"),
        ("abc", "0x00000000000000000000000000000abc"),
        ('"0xABC"', "0x00000000000000000000000000000ABC"),
        ("0x00" + "A" * 32, "0x" + "A" * 32),
        ("0X" + "a" * 32, "0X" + "a" * 32),
    ],
)
def test_an_iv_has_128_bits_however_its_source_writes_it(said: str, meant: str) -> None:
    (key,) = parsed(f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="k",IV={said}\n#EXTINF:4,\n1.ts\n').segments[0].keys
    assert (key.iv, dict(key.attributes)["IV"]) == (meant, meant)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ('METHOD=AES-128,URI="k",IV=0x' + "A" * 33, "no number of 128 bits"),
        ('METHOD=AES-128,URI="k",IV=0xXYZ', "no number of 128 bits"),
        ("METHOD=AES-128", "has no URI"),
        ('METHOD=SAMPLE-AES,URI=""', "has no URI"),
    ],
)
def test_a_key_that_nobody_could_decrypt_with_is_refused_by_name(key: str, reason: str) -> None:
    with pytest.raises(PlaylistError, match=reason):
        parsed(f"#EXTM3U\n#EXT-X-KEY:{key}\n#EXTINF:4,\n1.ts\n")
