"""EXT-X-DATERANGE: stays while it maps to a listed segment, is one range for ever, and cannot blow the playlist up."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.hls.dateranges import MOST_DATERANGES, carried
from hlsrelay.hls.parse import MOST_TAG_CHARACTERS
from hlsrelay.hls.render import media_playlist
from hlsrelay.hls.window import Progress, slide
from hlsrelay.judge import Judge, Severity
from hlsrelay.model import SOURCE, Numbered
from tests.playlists import at, parsed, stream
from tests.unit.test_window import POSITION, entry

WINDOW_S = 24.0
BASE = "https://relay.example/live/source/index.m3u8"


def tag(name: str, start_s: float, **more: object) -> str:
    said = ",".join(f"{key.replace('_', '-')}={value}" for key, value in more.items())
    return f'#EXT-X-DATERANGE:ID="{name}",START-DATE="{at(start_s).isoformat()}"' + ("," + said if said else "")


def published(rows: dict[int, tuple[str, ...]], count: int, progress: Progress | None = None) -> list[str]:
    """Publish *count* segments of 4 s with these tags before them; returns each version's text, which the judge finds no fault with."""
    progress, judge, texts = progress or Progress(POSITION, 4), Judge(), []
    for number in range(count):
        made = replace(entry(number), tags=rows.get(number, ()))
        progress = slide(progress, made, replace(POSITION, last_number=number), WINDOW_S, at(number * 4))
        texts.append(media_playlist(progress, SOURCE))
        judge.playlist(BASE, texts[-1].encode(), None, number * 4.0)
    assert [f"{one.rule} {one.text}" for one in judge.findings if one.severity is Severity.ERROR] == []
    return texts


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#EXT-X-DATERANGE")]


def test_a_range_that_ends_on_the_next_of_its_class_ends_there() -> None:
    show = [tag(name, start_s, CLASS='"show"', END_ON_NEXT="YES") for name, start_s in (("a", 0), ("b", 48))]
    other = tag("x", 4, CLASS='"other"', DURATION=1)
    texts = published({0: (show[0],), 1: (other,), 12: (show[1],)}, 40)
    assert lines(texts[11]) == [show[0]]
    assert lines(texts[16]) == show  # the list begins at 44 s
    assert lines(texts[39]) == [show[1]]  # for as long as nothing follows it
    assert show[0] not in texts[17]  # it begins at 48 s


def test_tags_of_one_id_are_one_range_and_lose_no_attribute() -> None:
    out = tag("ad", 0, PLANNED_DURATION=30, SCTE35_OUT="0xFC01", X_MINE='"1"')
    back = tag("ad", 0, DURATION=60, SCTE35_IN="0xFC02")
    texts = published({0: (out,), 4: (back,)}, 24)
    assert lines(texts[8]) == [out, back]  # the first one left its segment, and still maps
    (merged,) = lines(texts[12])
    for said in ("PLANNED-DURATION=30", "SCTE35-OUT=0xFC01", 'X-MINE="1"', "DURATION=60", "SCTE35-IN=0xFC02"):
        assert said in merged.split(",")
    assert lines(texts[19]) == [merged]
    assert lines(texts[20]) == []


def test_a_range_that_turns_out_to_be_over_loses_nothing_while_the_tag_that_says_so_is_listed() -> None:
    first, over = tag("ad", -40, CLASS='"c"'), tag("ad", -40, DURATION=20)
    texts = published({1: (first,), 6: (over,)}, 20)
    assert lines(texts[9]) == [first, over]  # the first one left its segment
    assert lines(texts[12]) == []


def test_what_a_tag_says_again_is_listed_once_and_what_it_changes_does_not_count() -> None:
    first = tag("ad", 0, DURATION=200, X_MINE='"1"')
    changed = tag("ad", 0, DURATION=300, X_MINE='"2"', X_NEW='"3"')
    texts = published(dict.fromkeys(range(20), (first, changed)), 20)
    assert lines(texts[0]) == [first, tag("ad", 0, X_NEW='"3"')]
    assert lines(texts[19]) == [first + ',X-NEW="3"']


def test_an_id_that_the_source_uses_again_becomes_another() -> None:
    first, second, end = tag("1", 0, DURATION=12), tag("1", 80, X_A='"1"'), tag("1", 80, DURATION=40)
    texts = published({0: (first,), 20: (second,), 21: (end,)}, 26)
    begun, ended = lines(texts[25])
    assert begun == second.replace('"1"', f'"1@{at(80).isoformat()}"', 1)
    assert ended == end.replace('"1"', f'"1@{at(80).isoformat()}"', 1)


def test_a_range_that_is_over_does_not_come_back_because_the_source_still_lists_it() -> None:
    first, long_gone = tag("1", 0, DURATION=12), tag("0", -600, DURATION=12)
    texts = published(dict.fromkeys(range(20), (first, long_gone)), 20)
    assert all(long_gone not in text for text in texts)
    assert [first in text for text in texts] == [True] * 8 + [False] * 12


def test_a_range_without_id_or_date_cannot_be_listed() -> None:
    texts = published({0: ('#EXT-X-DATERANGE:ID="a"', tag("", 0, DURATION=9), '#EXT-X-DATERANGE:ID="b",START-DATE="noon"')}, 1)
    assert lines(texts[0]) == []


def test_thousands_of_ranges_leave_the_newest() -> None:
    rows = {number: tuple(tag(f"{number}-{index}", number * 4, X_A='"1"') for index in range(80)) for number in range(30)}
    texts = []
    progress = Progress(POSITION, 4)
    for number in range(30):
        made = replace(entry(number), tags=("#EXT-X-CUE-OUT:30", *rows[number]))
        progress = slide(progress, made, replace(POSITION, last_number=number), WINDOW_S, at(number * 4))
        texts.append(media_playlist(progress, SOURCE))
        assert len(progress.daterange_ids) <= 4 * MOST_DATERANGES
    assert all(len(lines(text)) <= MOST_DATERANGES for text in texts)
    assert lines(texts[29]) == [*rows[28], *rows[29]][-MOST_DATERANGES:]
    assert texts[29].count("#EXT-X-CUE-OUT:30") == 6


def test_what_was_too_much_does_not_come_back_when_the_source_says_it_again() -> None:
    first, second = ([tag(f"{name}{index}", 0, X_A='"1"') for index in range(80)] for name in "ab")
    texts = published({0: tuple(first), 1: tuple(second), 2: tuple(first)}, 3)
    assert lines(texts[2]) == lines(texts[1]) == [*first[60:], *second]


def test_of_a_playlist_with_too_many_ranges_the_last_are_read_and_tags_have_a_limit() -> None:
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n"
    found = parsed(head + "".join(tag(f"{n}", n) + "\n" for n in range(5000)) + "#EXTINF:4,\n0.ts\n")
    assert found.dateranges == tuple(tag(f"{n}", n) for n in range(5000 - MOST_DATERANGES, 5000))
    assert "dateranges_too_many" in found.repairs
    found = parsed(head + ("#EXT-X-MINE:" + "x" * 1000 + "\n") * 900 + "#EXTINF:4,\n0.ts\n#EXT-X-MINE\n#EXTINF:4,\n1.ts\n")
    assert sum(map(len, found.segments[0].tags)) <= MOST_TAG_CHARACTERS
    assert found.segments[1].tags == ("#EXT-X-MINE",)
    assert "tags_too_many" in found.repairs


def test_ranges_are_found_wherever_the_source_writes_them_and_go_before_what_is_new() -> None:
    ranges = [tag(name, 0, DURATION=60) for name in ("head", "place", "tail")]
    body = f"{ranges[0]}\n#EXTINF:4,\n0.ts\n#EXT-X-CUE-OUT:30\n{ranges[1]}\n#EXTINF:4,\n1.ts\n#EXTINF:4,\n2.ts\n{ranges[2]}\n"
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n" + body
    snapshot = parsed(text)
    fresh = [Numbered(one.sequence, one, False, at(0), 4, stream(), POSITION) for one in snapshot.segments[1:]]
    assert [one.segment.tags for one in carried(fresh, snapshot)] == [(ranges[0], ranges[2], "#EXT-X-CUE-OUT:30", ranges[1]), ()]
    assert carried([], snapshot) == ()


def test_cues_stay_with_their_segments_in_their_order() -> None:
    cues = {
        1: ("#EXT-OATCLS-SCTE35:/DAlAAAAAAAAAP/wFAUAAAABf+/+c2nALv4AUsz1AAAAAAAKAAhDVUVJAAABNWLbowo=", "#EXT-X-CUE-OUT:30.000"),
        2: ("#EXT-X-CUE-OUT-CONT:ElapsedTime=4.0,Duration=30.0,SCTE35=/DAl",),
        3: ("#EXT-X-CUE-IN", tag("s", 12, SCTE35_CMD="0xFC30", DURATION=4)),
    }
    text = published(cues, 4)[-1]
    body = text.splitlines()
    for number, tags in cues.items():
        at_uri = body.index(f"{number}.ts")
        assert tuple(body[body.index(f"{number - 1}.ts") + 1 : at_uri - 2]) == tags


_ROW = st.tuples(
    st.integers(0, 5), st.integers(-40, 120), st.sampled_from(["", "DURATION", "PLANNED-DURATION", "END-ON-NEXT"]), st.integers(0, 60)
)


@given(st.lists(st.lists(_ROW, max_size=4), min_size=1, max_size=40))
def test_whatever_ranges_a_source_sends_ours_break_no_rule(history: list[list[tuple[int, int, str, int]]]) -> None:
    rows = {}
    for number, tags in enumerate(history):
        rows[number] = tuple(
            tag(f"{name}", start_s, CLASS='"c"', **({kind.replace("-", "_"): "YES" if kind == "END-ON-NEXT" else length_s} if kind else {}))
            for name, start_s, kind, length_s in tags
        )
    published(rows, len(history))
