"""Which ladder suits a source, and what is said of it: figures beside figures."""

from __future__ import annotations

import shlex

import pytest

from hlsrelay.ladder import format_ladder, parse_ladder
from hlsrelay.media.info import Container
from hlsrelay.model import Kind
from hlsrelay.portrait import Facts, Portrait, Sample, as_data, as_words, command, length_s, proposed, stream_id_for

URL = "https://origin.example/live/news/index.m3u8"
PICTURE = Sample(2.0, 750_000, Container.TS, ("avc1.64001f", "mp4a.40.2"), 1280, 720, 25.0, 2.0, True, (0.0,))


def facts(*samples: Sample, name: str = "source", **more: object) -> Facts:
    return Facts(name, Kind.VARIANT, {}, 2, (2.0, 2.0, 2.0), samples=samples or (PICTURE,) * 3, **more)  # type: ignore[arg-type]


def of(*tracks: Facts) -> Portrait:
    return Portrait(URL, len(tracks) > 1, tracks)


@pytest.mark.parametrize(
    ("height", "kbps", "offered", "ladder"),
    [
        (1080, 6000, (), "720p,480p,360p"),
        (720, 3000, (), "480p,360p"),
        (720, 900, (), "480p:480:500,360p:360:300"),  # what a bitrate can't give, no rung can have
        (720, 300, (), "480p:480:150"),
        (720, 3000, (720, 480, 234), "360p"),  # it brings 480 itself
        (2160, 20_000, (), "1080p,720p,480p,360p"),
        (384, 1000, (), ""),  # 360 lines are no other quality
        (0, 3000, (), ""),
    ],
)
def test_rungs_are_below_the_source_at_no_more_than_its_quality(height: int, kbps: int, offered: tuple[int, ...], ladder: str) -> None:
    rungs = proposed(height, kbps, offered)
    assert format_ladder(rungs) == ladder
    assert parse_ladder(ladder) == rungs


@pytest.mark.parametrize(
    ("track", "words"),
    [
        (facts(encryption="SAMPLE-AES (com.apple.streamingkeydelivery)"), "encrypted with SAMPLE-AES"),
        (facts(Sample(2.0, 32_000, Container.AAC, ("mp4a.40.2",))), "no picture"),
        (facts(Sample(2.0, 750_000, Container.UNKNOWN, ("avc1",), 1280, 720)), "this is unknown"),
        (facts(Sample(2.0, fault="segment 7: HTTP 404")), "could be read: segment 7: HTTP 404"),
        (facts(Sample(2.0, 60_000, Container.TS, ("avc1",), 320, 180)), "small already"),
    ],
)
def test_where_no_ladder_can_be_made_it_says_why_and_the_command_asks_for_none(track: Facts, words: str) -> None:
    portrait = of(track)
    assert words in portrait.refusal
    assert "--ladder" not in command(portrait)
    assert as_data(portrait)["ladder"] == ""
    assert any(line.startswith("ladder        none: ") for line in as_words(portrait))


def test_aes_128_is_no_reason_against_a_ladder() -> None:
    assert of(facts(encryption="AES-128")).refusal == ""


def test_the_command_can_be_pasted_whatever_the_url_holds() -> None:
    portrait = Portrait(URL + "?a=1&b='2'", False, (facts(),))
    assert shlex.split(command(portrait)) == ["hlsrelay", "add", "news", portrait.url, "--ladder", "480p,360p"]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://origin.example/live/news/index.m3u8", "news"),
        ("https://origin.example/live/index.m3u8", "live"),
        ("https://tv.example/index.m3u8", "tv-example"),
        ("http://[::1]:8080/index.m3u8", "1"),
    ],
)
def test_the_id_tells_a_person_which_source_it_is(url: str, name: str) -> None:
    assert stream_id_for(url) == name


def test_a_private_address_and_headers_are_remembered() -> None:
    lines = list(as_words(Portrait("http://10.0.0.7/news/index.m3u8", False, (facts(),), needs=("headers",))))
    assert "# and then: hlsrelay set news headers=…" in lines
    assert any("HLSRELAY_ALLOW_NETWORKS" in line for line in lines)
    assert not any("ALLOW_NETWORKS" in line for line in as_words(of(facts())))


def test_key_frames_are_counted_over_the_bounds_of_segments() -> None:
    off_grid = Sample(2.0, 1, Container.TS, ("avc1",), 64, 64, 25.0, 2.0, False, (1.0,))
    one = facts(PICTURE, off_grid, PICTURE)
    assert one.gop_s == (3.0, 1.0)
    assert "  key frames  every 1 to 3 s; 2 of 3 segments begin with one" in list(as_words(of(one)))


def test_bitrates_are_of_the_segments_as_they_are_listed() -> None:
    one = facts(PICTURE, Sample(1.0, 750_000, Container.TS, ("avc1",), 1280, 720))
    assert (one.average_kbps, one.peak_kbps) == (4000, 6000)


def test_pictures_last_as_long_as_the_last_one_too_also_across_the_wrap() -> None:
    assert length_s((2**33 - 3600, 0, 3600)) == pytest.approx(0.12)
    assert length_s((5,)) == 0.0
