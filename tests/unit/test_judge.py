"""The judge: silent on a good history, and each fault is found under the number of its rule, and nothing else is."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import hlsrelay.judge
from hlsrelay.judge import RULES, MediaPlaylist, Severity, Span
from hlsrelay.media import PTS_MODULUS, AudioInfo, Container, MediaInfo, VideoInfo
from tests.playlists import at
from tests.unit.judge_faults import FAULTS
from tests.unit.judging import (
    AT_60,
    CODECS,
    ENDED,
    GOOD,
    HIGH,
    IV,
    KEY,
    LISTED,
    LOW,
    MAP,
    MASTER,
    ON_NEXT,
    SIZE,
    E,
    Item,
    Told,
    Version,
    W,
    Watch,
    in_a_variant,
    items,
    master,
    media,
    variants,
    version,
    with_item,
    with_parts,
)

# Silence on what is good --------------------------------------------------------------------------------------------------------------


def test_a_good_history_gives_no_finding_at_all() -> None:
    watch = Watch().load(*(version(first) for first in range(10, 30)))
    watch.media(*range(23, 36))
    assert watch.judge.findings == ()


def test_two_variants_that_agree_give_no_finding() -> None:
    watch = Watch().load(master(), where=MASTER, step_s=0.0)
    for first in range(10, 20):
        watch.load(version(first), step_s=0.5).load(version(first), where=LOW, step_s=3.0).load(master(), where=MASTER, step_s=0.5)
        watch.media(first + 5, first + 6).media(first + 5, first + 6, where=LOW)
    assert watch.judge.findings == ()


def test_discontinuities_that_are_counted_give_no_finding() -> None:
    cut = {14: Item(14, tags=("#EXT-X-DISCONTINUITY",), pdt_s=1000.0)} | {n: Item(n, pdt_s=1000.0 + 4 * (n - 14)) for n in range(15, 40)}
    watch = Watch().load(*(Version(items(first, cut), cuts=int(first > 14)) for first in range(10, 20)))
    assert watch.judge.findings == ()


def test_a_discontinuity_that_leaves_with_the_segment_before_it_is_counted_then() -> None:
    """RFC 8216 6.2.2 counts the tag when it is removed; who removes it one segment early counts it one segment early."""
    cut = {14: Item(14, tags=("#EXT-X-DISCONTINUITY",))}
    watch = Watch().load(*(Version(items(first, cut if first < 14 else {}), cuts=int(first >= 14)) for first in range(10, 20)))
    assert watch.told() == []


def test_an_ended_playlist_may_stay_as_it_is_for_ever() -> None:
    last = version(11, tail=("#EXT-X-ENDLIST",))
    assert Watch().load(version(10), last, last, last, last).told() == []


def test_carriage_returns_and_unknown_tags_and_comments_are_fine() -> None:
    texts = [version(first, head=("# a comment", "#EXT-X-UNHEARD-OF:A=b;c")).text().replace("\n", "\r\n") for first in (10, 11, 12)]
    assert Watch().load(*texts).told() == []


def test_keys_maps_and_byte_ranges_that_are_repeated_at_the_head_are_fine() -> None:
    key = '#EXT-X-KEY:METHOD=AES-128,URI="https://k.example/k",IV=0x0123456789abcdef0123456789abcdef'

    def listed(first: int) -> Version:
        rows = {
            number: Item(
                number,
                "all.m4s",
                tags=((key, '#EXT-X-MAP:URI="init.mp4"') if number == first else ())
                + (f"#EXT-X-BYTERANGE:1000@{number * 1000}" if number == first else "#EXT-X-BYTERANGE:1000",),
            )
            for number in range(first, first + LISTED)
        }
        return Version(items(first, rows), version="6")

    assert Watch().load(*(listed(first) for first in range(10, 16))).told() == []


def test_variables_are_put_in_where_they_are_named() -> None:
    defines = ('#EXT-X-DEFINE:NAME="p",VALUE="seg"', '#EXT-X-DEFINE:IMPORT="host"', '#EXT-X-DEFINE:QUERYPARAM="token"')
    head = (*defines, '#EXT-X-MAP:URI="{$host}/init.mp4"')
    low = LOW + "?token=a%2Fb"
    variants = '#EXTM3U\n#EXT-X-VERSION:8\n#EXT-X-DEFINE:NAME="host",VALUE="https://cdn.example"\n#EXT-X-DEFINE:NAME="l",VALUE="low"\n'
    watch = Watch().load(
        variants + master().removeprefix("#EXTM3U\n").replace("low/index.m3u8", "{$l}/index.m3u8?token=a%2Fb"), where=MASTER
    )
    for first in range(10, 14):
        listed = tuple(Item(number, f"{{$host}}/{{$p}}/{number}.ts?{{$token}}") for number in range(first, first + LISTED))
        watch.load(Version(listed, head, version="11"), where=low)
    assert watch.told() == []
    newest = watch.judge.fresh(low)[-1]
    assert newest.resource.uri == f"https://cdn.example/seg/{newest.sequence}.ts?a/b"
    assert newest.init
    assert newest.init.uri == "https://cdn.example/init.mp4"


def test_a_range_that_ended_on_the_next_of_its_class_may_go() -> None:
    following = ON_NEXT.replace('"show"', '"next"').replace(at(60).isoformat(), at(80).isoformat())
    assert Watch().load(*(version(first, head=(ON_NEXT, following)) for first in (18, 19)), version(20, head=(following,))).told() == []


def test_a_removed_segment_may_go_once_its_time_is_over() -> None:
    watch = Watch().load(version(10), version(11))
    watch.now_s += 4 * LISTED + 4
    assert watch.got(10, status=404).told() == []


def test_a_gap_is_never_missing() -> None:
    gap = {12: Item(12, tags=("#EXT-X-GAP",))}
    assert Watch().load(Version(items(10, gap)), Version(items(11, gap))).got(12, status=404).told() == []


def test_time_stamps_go_on_over_their_wrap() -> None:
    watch = Watch().load(version(10), version(11))
    start = PTS_MODULUS - 360_000 - 1800
    for offset, number in enumerate((15, 16, 17)):
        watch.media(number, start=start + offset * 360_000)
    assert watch.told() == []


# Every fault ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_under_the_number_of_its_rule_and_nothing_else_is(name: str) -> None:
    fault, rule, severity = FAULTS[name]
    watch = Watch()
    fault(watch)
    assert watch.told() == [(rule, severity)], [(one.rule, one.severity, one.text) for one in watch.judge.findings]


def test_parts_as_they_should_be_are_nothing_to_speak_of() -> None:
    short = ('#EXT-X-PART:URI="5.part.ts",DURATION=0.2,INDEPENDENT=YES', '#EXT-X-PART:URI="6.part.ts",DURATION=0.3,GAP=YES')
    assert Watch().load(with_parts(1.0, 0.85, 1.0, 0.4, more=short[1:])).told() == []
    assert Watch().load(with_parts(1.0, 0.9, more=(*short, '#EXT-X-PART:URI="7.part.ts",DURATION=0.1'))).told() == []


def test_every_rule_that_can_be_judged_has_a_fault_that_breaks_it() -> None:
    assert {rule for _, rule, _ in FAULTS.values()} == set(RULES)


def test_a_higher_version_than_needed_is_a_mere_note() -> None:
    watch = Watch().load(version(10, version="7"))
    assert [(one.rule, one.severity) for one in watch.judge.findings] == [("A18", Severity.NOTE)]


def test_a_finding_that_repeats_is_counted_and_told_once() -> None:
    watch = Watch().load(*(version(first, version="2") for first in range(10, 15)))
    (finding,) = watch.judge.findings
    assert finding.count == 5
    assert len(watch.judge.news()) == 1
    assert watch.load(version(15, version="2")).judge.news() == ()


def test_after_a_fault_the_judge_goes_on_from_what_is_there() -> None:
    fallen = [Version(tuple(Item(n, f"b{n}.ts") for n in range(first, first + LISTED))) for first in range(5)]
    watch = Watch().load(version(40), version(41), *fallen)
    assert watch.told() == [("A4", E)]
    assert watch.judge.findings[0].count == 1


def test_time_stamps_of_a_moment_that_differ_between_variants_are_found() -> None:
    watch = Watch().load(master(), where=MASTER, step_s=0.1).load(GOOD, step_s=0.1).load(GOOD, where=LOW, step_s=0.1)
    watch.media(12).media(12, where=LOW, start=12 * 360_000 + 45_000)
    assert watch.told() == [("A20", E)]


def test_variants_are_compared_by_date_where_their_numbers_differ() -> None:
    shifted = Version(tuple(Item(n, f"{n}.ts", pdt_s=4.0 * (n - 500)) for n in range(510, 510 + LISTED)))
    assert (variants(GOOD, shifted)(watch := Watch()), watch.told())[1] == []
    assert (variants(GOOD, replace(shifted, cuts=3))(watch := Watch()), watch.told())[1] == [("A20", E)]


def test_a_bitrate_that_rises_is_judged_by_what_was_stated_after_it_was_listed() -> None:
    watch = Watch().load(GOOD, step_s=0.1).load(GOOD, where=LOW, step_s=0.1).load(master(), where=MASTER, step_s=3.0)
    watch.load(version(11), step_s=0.1).load(version(11), where=LOW, step_s=0.1)
    watch.got(17, size=2 * SIZE + 188 * 100)
    assert watch.told() == []
    watch.load(master(BANDWIDTH="900000"), where=MASTER)
    assert watch.told() == []
    watch.load(version(12)).got(18, size=4 * SIZE).load(master(BANDWIDTH="900000"), where=MASTER)
    assert [(one.rule, one.severity, one.kind) for one in watch.judge.findings if one.severity is E] == [
        ("A21", E, "BANDWIDTH below the measured peak")
    ]


def test_codecs_that_nobody_can_know_are_advice_and_those_that_the_media_tell_are_owed() -> None:
    in_a_variant(media(10), CODECS="")(watch := Watch())
    assert watch.told() == [("A21", E), ("A21", W)]
    secret = version(10, head=(KEY + IV,))
    watch = Watch().load(secret, step_s=0.1).load(secret, where=LOW, step_s=0.1).load(master(CODECS=""), where=MASTER, step_s=0.1)
    assert watch.load(secret).got(10, info=media(10)).told() == [("A21", W)]


@pytest.mark.parametrize("seen_first", [True, False])
@pytest.mark.parametrize(("resolution", "told"), [("1280x720", []), ("640x360", []), ("320x180", [("A21", E)])])
def test_a_stream_inf_may_tell_the_size_of_any_picture_that_was_listed_when_it_was_loaded(
    resolution: str, told: Told, seen_first: bool
) -> None:
    small = VideoInfo("avc1.64001f", 640, 360, 100, 17 * 360_000, 17 * 360_000 + 356_400, 25.0, True, ())
    watch = Watch().load(GOOD, step_s=0.1).got(12, info=media(12))
    if seen_first:
        watch.load(with_item(11, Item(17, tags=("#EXT-X-DISCONTINUITY",))), step_s=0.1)
    watch.load(master(RESOLUTION=resolution), where=MASTER, step_s=0.1)
    watch.load(with_item(11, Item(17, tags=("#EXT-X-DISCONTINUITY",))), step_s=0.1)
    watch.got(13, info=media(13)).got(17, info=media(17, video=small))
    assert watch.told() == told


def demuxed(bandwidth_bps: int) -> str:
    sound = '#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="s",NAME="en",URI="low/index.m3u8"'
    stated = f'BANDWIDTH={bandwidth_bps},AVERAGE-BANDWIDTH=300000,CODECS="{CODECS}",RESOLUTION=1280x720,FRAME-RATE=25.000,AUDIO="s"'
    return f"#EXTM3U\n{sound}\n#EXT-X-STREAM-INF:{stated}\nhigh/index.m3u8\n"


@pytest.mark.parametrize(("bandwidth_bps", "told"), [(700_000, [("A21", W)]), (760_000, [])])
def test_bandwidth_covers_the_sound_of_its_group(bandwidth_bps: int, told: Told) -> None:
    watch = Watch().load(GOOD, step_s=0.1).load(GOOD, where=LOW, step_s=0.1).load(demuxed(bandwidth_bps), where=MASTER, step_s=0.1)
    for where in (HIGH, LOW):
        watch.judge.media(where.replace("index.m3u8", "10.ts"), 200, SIZE, None, watch.now_s)
    assert watch.told() == told


@pytest.mark.parametrize(("late_s", "told"), [(0.0, []), (0.3, []), (0.9, [("A20", E)])])
def test_sound_and_pictures_of_one_date_are_of_one_time(late_s: float, told: Told) -> None:
    watch = Watch().load(demuxed(900_000), where=MASTER, step_s=0.1).load(GOOD, step_s=0.1).load(GOOD, where=LOW, step_s=0.1)
    sound = MediaInfo(Container.AAC, None, AudioInfo("mp4a.40.2", round(12 * 360_000 + late_s * 90_000)))
    watch.got(12, info=replace(media(12), audio=None))
    watch.judge.media(LOW.replace("index.m3u8", "12.ts"), 200, SIZE, sound, watch.now_s)
    assert watch.told() == told


def test_renditions_cut_at_other_moments_are_held_against_their_dates() -> None:
    shifted = Version(tuple(Item(n, f"{n}.ts", pdt_s=4.0 * n + 1.5) for n in range(10, 10 + LISTED)))
    watch = Watch().load(master(), where=MASTER, step_s=0.1).load(GOOD, step_s=0.1).load(shifted, where=LOW, step_s=0.1)
    watch.media(12).media(12, where=LOW, start=12 * 360_000 + 135_000)
    assert watch.told() == []


def test_who_has_ended_may_go() -> None:
    watch = Watch().load(master(), where=MASTER, step_s=0.1).load(ENDED, step_s=0.1)
    watch.judge.unavailable(HIGH, 404, "HTTP 404", watch.now_s)
    assert watch.told() == []
    watch.judge.unavailable(MASTER, 404, "HTTP 404", watch.now_s)
    assert watch.told() == [("A3", E)], "not all that it names has ended"


def test_a_media_sequence_that_comes_too_late_numbers_nothing() -> None:
    text = "\n".join(line for line in GOOD.text().splitlines() if "MEDIA-SEQUENCE" not in line)
    watch = Watch().load(text.replace("11.ts", "11.ts\n#EXT-X-MEDIA-SEQUENCE:10") + "\n")
    assert watch.told() == [("A4", E)]
    playlist = watch.judge.latest(HIGH)
    assert isinstance(playlist, MediaPlaylist)
    assert [segment.sequence for segment in playlist.segments] == list(range(LISTED))


def test_a_byte_range_is_held_against_its_length() -> None:
    listed = with_item(10, Item(10, "all.ts", tags=("#EXT-X-BYTERANGE:1000@0",)), version="4")
    uri = HIGH.replace("index.m3u8", "all.ts")
    watch = Watch().load(listed)
    watch.judge.media(uri, 206, 1000, None, watch.now_s, span=Span(1000, 0))
    assert watch.told() == []
    watch.judge.media(uri, 206, 900, None, watch.now_s, span=Span(1000, 0))
    assert watch.told() == [("A8", E)]


@given(st.binary(max_size=400))
def test_no_bytes_make_the_judge_fall(body: bytes) -> None:
    Watch().load(GOOD, body, b"#EXTM3U\n" + body, GOOD.text().encode() + body + b"\n", version(11))


_LINES = st.sampled_from([*GOOD.text().splitlines(), KEY, MAP, AT_60, "#EXT-X-BYTERANGE:9", "#EXT-X-ENDLIST", "#EXT-X-GAP", "a b", ""])


def test_variables_that_grow_without_end_are_put_in_no_more() -> None:
    head = ('#EXT-X-DEFINE:NAME="a",VALUE="' + "x" * 1000 + '"',)
    watch = Watch().load(Version((Item(10, "{$a}" * 6000 + ".ts"), *items(11, {})), head, version="8"))
    assert watch.told() == [("A1", E)]
    assert len(watch.judge.fresh(HIGH)[0].resource.uri) < 5 << 20


@given(st.lists(st.lists(_LINES, max_size=20), max_size=4))
@example([["#EXTINF:4.000,", "12.ts", "#EXT-X-MEDIA-SEQUENCE:10", "#EXTINF:4.000,", "13.ts"], ["#EXTINF:4.000,", "16.ts"] * 2])
def test_no_order_of_lines_makes_the_judge_fall(histories: list[list[str]]) -> None:
    Watch().load(GOOD, *("\n".join(["#EXTM3U", *lines, ""]) for lines in histories), version(11))


def test_the_judge_shares_no_code_with_what_it_judges() -> None:
    for path in Path(hlsrelay.judge.__file__).parent.glob("*.py"):
        named = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module}
        ours = {name for name in named if name.startswith("hlsrelay")}
        assert all(name.startswith(("hlsrelay.judge", "hlsrelay.media")) for name in ours), path.name
