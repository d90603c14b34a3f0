"""Which names the tracks of a source have, and that they keep them from one survey to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.errors import ConfigError
from hlsrelay.hls.parse import parse
from hlsrelay.hls.tracks import chosen, telling
from hlsrelay.model import SOURCE, Kind, Presentation, Track
from tests.playlists import URL

Knowing = Callable[[Iterable[Track]], list[Track]]
LADDER = (
    "BANDWIDTH=900000,RESOLUTION=640x360",
    "BANDWIDTH=1500000,RESOLUTION=640x360",
    "BANDWIDTH=2500000,RESOLUTION=1280x720",
)
NAMES = ["v360p-900k", "v360p-1500k", SOURCE]


def presented(*variants: str, media: Iterable[str] = ()) -> Presentation:
    """What a multivariant playlist with these STREAM-INFs and EXT-X-MEDIAs presents; the n-th attribute list has the n-th URI."""
    lines = [f'#EXT-X-MEDIA:{said},URI="m{count}.m3u8"' for count, said in enumerate(media)]
    lines += [f"#EXT-X-STREAM-INF:{said}\nv{count}.m3u8" for count, said in enumerate(variants)]
    found = parse("\n".join(["#EXTM3U", *lines, ""]).encode(), URL)
    assert isinstance(found, Presentation)
    return found


def names(presentation: Presentation, known: Iterable[Track] = (), wish: str = "all") -> list[str]:
    return [track.name for track in chosen(presentation, wish, known).tracks]


def in_memory(tracks: Iterable[Track]) -> list[Track]:
    return list(tracks)


def recorded(tracks: Iterable[Track]) -> list[Track]:
    return [Track(track.name, track.kind, (), telling(track)) for track in tracks]


def by_name(tracks: Iterable[Track]) -> list[Track]:
    return [Track(track.name, track.kind, ()) for track in tracks]


knowing = pytest.mark.parametrize("knowing", [in_memory, recorded, by_name])


@knowing
def test_a_measured_bandwidth_renames_nothing(knowing: Knowing) -> None:
    known = knowing(chosen(presented(*LADDER), "all").tracks)
    measured = presented(*(said.replace("00000", "07431") for said in LADDER))
    assert names(measured) == ["v360p-907k", "v360p-1507k", SOURCE]
    assert names(measured, known) == NAMES


@knowing
def test_variants_of_one_height_keep_their_names_in_any_order(knowing: Knowing) -> None:
    known = knowing(chosen(presented(*LADDER), "all").tracks)
    measured = presented("BANDWIDTH=2400000,RESOLUTION=1280x720", "BANDWIDTH=1290000,RESOLUTION=640x360", LADDER[0])
    assert names(measured, known) == [SOURCE, "v360p-1500k", "v360p-900k"]


def test_variants_whose_bitrates_cross_are_told_apart_by_what_else_is_said_of_them() -> None:
    variants = ['BANDWIDTH=900000,RESOLUTION=640x360,AUDIO="{}"', 'BANDWIDTH=950000,RESOLUTION=640x360,AUDIO="{}"']
    known = recorded(chosen(presented(LADDER[2], *(said.format(of) for said, of in zip(variants, "ab", strict=True))), "all").tracks)
    crossed = presented(LADDER[2], *(said.format(of) for said, of in zip(variants, "ba", strict=True)))
    assert names(crossed, known) == [SOURCE, "v360p-950k", "v360p-900k"]


def test_a_stable_id_tells_more_than_a_bitrate() -> None:
    said = 'BANDWIDTH={},RESOLUTION=640x360,STABLE-VARIANT-ID="{}"'
    known = recorded(chosen(presented(LADDER[2], said.format(900000, "a"), said.format(950000, "b")), "all").tracks)
    measured = presented(LADDER[2], said.format(3000000, "a"), said.format(900000, "b"))
    assert names(measured, known) == [SOURCE, "v360p-900k", "v360p-950k"]


@knowing
def test_renditions_of_one_language_are_told_apart_as_far_as_is_known(knowing: Knowing) -> None:
    media = ['TYPE=AUDIO,GROUP-ID="a",LANGUAGE="en",NAME="English"', 'TYPE=AUDIO,GROUP-ID="a",LANGUAGE="en",NAME="Commentary"']
    variant = 'BANDWIDTH=900000,AUDIO="a"'
    known = knowing(chosen(presented(variant, media=media), "all").tracks)
    assert names(presented(variant, media=media), known) == [SOURCE, "audio-en", "audio-en-2"]
    if knowing is not by_name:
        assert names(presented(variant, media=media[::-1]), known) == [SOURCE, "audio-en-2", "audio-en"]
        assert names(presented(variant, media=media[1:]), known) == [SOURCE, "audio-en-2"]


@knowing
def test_a_variant_that_comes_has_a_name_of_its_own_and_none_takes_that_of_one_that_went(knowing: Knowing) -> None:
    known = knowing(chosen(presented(*LADDER), "all").tracks)
    assert names(presented(LADDER[1], LADDER[2], "BANDWIDTH=900000,RESOLUTION=852x480"), known) == [*NAMES[1:], "v480p-900k"]
    assert names(presented("BANDWIDTH=2400000,RESOLUTION=640x360", *LADDER[1:]), known) == ["v360p-2400k", *NAMES[1:]]


def test_a_variant_of_another_codec_does_not_get_the_name_of_one_that_went() -> None:
    avc, hevc = (f'BANDWIDTH=900000,RESOLUTION=640x360,CODECS="{codec}"' for codec in ("avc1.64001e", "hvc1.1.6.L90"))
    known = recorded(chosen(presented(avc, LADDER[2]), "all").tracks)
    assert names(presented(hevc, LADDER[2]), known) == ["v360p-900k-2", SOURCE]
    assert names(presented(avc.replace("1e", "1f"), LADDER[2]), known) == ["v360p-900k", SOURCE]


def test_the_main_variant_stays_until_one_has_more_lines_or_is_much_faster() -> None:
    known = recorded(chosen(presented(*LADDER), "all").tracks)
    assert names(presented(*LADDER, "BANDWIDTH=2600000,RESOLUTION=1280x720"), known) == [*NAMES, "v720p-2600k"]
    assert names(presented(*LADDER, "BANDWIDTH=6000000,RESOLUTION=1280x720"), known) == [*NAMES[:2], "v720p-2500k", SOURCE]
    assert names(presented(*LADDER, "BANDWIDTH=2600000,RESOLUTION=1920x1080"), known) == [*NAMES[:2], "v720p-2500k", SOURCE]
    assert names(presented(*LADDER[:2]), known) == ["v360p-900k", SOURCE]


def test_the_names_an_operator_wrote_go_on_meaning_the_same_variants() -> None:
    measured = presented(*(said.replace("00000", "07431") for said in LADDER))
    known = recorded(chosen(presented(*LADDER), "v360p-1500k,v360p-900k").tracks)
    assert names(measured, known, "v360p-1500k,v360p-900k") == ["v360p-900k", SOURCE]
    assert names(measured, (), "v360p-900k") == [SOURCE]
    assert chosen(measured, "v360p-900k").tracks[0].uris == (URL.rpartition("/")[0] + "/v0.m3u8",)
    for wish in ("v360p-400k", "v480p-900k", "main", ","):
        with pytest.raises(ConfigError):
            chosen(measured, wish, known)


SAID = st.builds(
    "BANDWIDTH={}{}{}".format,
    st.sampled_from([1, 900_000, 950_000, 2_500_000, 10**100]),
    st.sampled_from(["", ",RESOLUTION=640x360", ",RESOLUTION=1280x720"]),
    st.sampled_from(["", ',CODECS="avc1.64001e"', ',CODECS="hvc1.1.6.L90"', ',STABLE-VARIANT-ID="a"']),
)
SURVEYS = st.lists(st.lists(SAID, min_size=1, max_size=5, unique=True), min_size=2, max_size=5)


@given(SURVEYS, st.sampled_from([in_memory, recorded, by_name]))
def test_no_two_tracks_have_one_name_and_the_same_survey_gives_the_same_names(surveys: list[list[str]], knowing: Knowing) -> None:
    known: list[Track] = []
    for variants in surveys:
        found = chosen(presented(*variants), "all", known)
        got = [track.name for track in found.tracks]
        assert len(set(got)) == len(got)
        assert got.count(SOURCE) == 1
        if knowing is not by_name:
            assert names(presented(*variants), knowing(found.tracks)) == got
        known = knowing({track.name: track for track in (*known, *found.tracks)}.values())


def test_kinds_are_not_taken_for_one_another() -> None:
    known = [Track("audio-en", Kind.AUDIO, ()), Track("v360p-900k", Kind.VARIANT, ())]
    media = ['TYPE=SUBTITLES,GROUP-ID="s",LANGUAGE="en",NAME="English"']
    assert names(presented('BANDWIDTH=9,SUBTITLES="s"', media=media), known) == [SOURCE, "subtitles-en"]


def test_a_bandwidth_of_hundreds_of_digits_is_compared() -> None:
    huge = presented(LADDER[0], f"BANDWIDTH={10**400},RESOLUTION=640x360")
    assert names(huge, huge.tracks)[1] == SOURCE
