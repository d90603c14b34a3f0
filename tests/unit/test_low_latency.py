"""A low-latency source (rfc8216bis): parts, hints and delta updates are understood, and the playlist of ours is a regular one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hlsrelay.hls.advance import advance
from hlsrelay.hls.parse import parse
from hlsrelay.hls.render import media_playlist
from hlsrelay.hls.window import Progress, slide
from hlsrelay.judge import Judge, Severity
from hlsrelay.model import SOURCE, ByteRange, Part, Position, Snapshot
from tests.playlists import URL, at, parsed, stream
from tests.unit.test_keys_and_maps import covered, passed_through

PARTS = 4
LISTED = 9
WITH_PARTS = 3
KEY = '#EXT-X-KEY:METHOD=AES-128,URI="k{}"'
LOW_LATENCY_TAGS = ("EXT-X-PART", "EXT-X-SKIP", "EXT-X-PRELOAD-HINT", "EXT-X-SERVER-CONTROL", "EXT-X-RENDITION-REPORT")


def part(number: int, index: int) -> str:
    """A part of segment *number*, a range of its file: the offset is told for the first one only."""
    at_start = "@0" if index == 0 else ""
    independent = ",INDEPENDENT=YES" if index == 0 else ""
    return f'#EXT-X-PART:DURATION=1.00000,URI="{number}.m4s",BYTERANGE="{1000 + index}{at_start}"{independent}'


def body_of(number: int, *, parts: bool, head: bool) -> list[str]:
    """A whole segment; keys rotate every five, the programme breaks at 20, and dates are written every third."""
    lines = ["#EXT-X-DISCONTINUITY"] if number == 20 else []
    lines += [KEY.format(number // 5), '#EXT-X-MAP:URI="init.mp4"'] if head or number % 5 == 0 else []
    lines += [f"#EXT-X-PROGRAM-DATE-TIME:{at(number * 4).isoformat()}"] if head or number % 3 == 0 else []
    lines += [part(number, index) for index in range(PARTS)] if parts else []
    return [*lines, "#EXTINF:4.00000,", f"{number}.m4s"]


def version(newest: int, made: int, *, skip: int = 0) -> str:
    """The playlist once segment *newest* is whole and *made* parts of the next are; *skip* makes a delta update of it."""
    first = newest - LISTED + 1
    lines = ["#EXTM3U", "#EXT-X-VERSION:9", "#EXT-X-TARGETDURATION:4"]
    lines += ["#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=3.0,CAN-SKIP-UNTIL=24.0", "#EXT-X-PART-INF:PART-TARGET=1.0"]
    lines += [f"#EXT-X-MEDIA-SEQUENCE:{first}", f"#EXT-X-DISCONTINUITY-SEQUENCE:{int(first > 20)}"]
    lines += [f"#EXT-X-SKIP:SKIPPED-SEGMENTS={skip}"] if skip else []
    for number in range(first + skip, newest + 1):
        lines += body_of(number, parts=number > newest - WITH_PARTS, head=number == first)
    lines += ["#EXT-X-DISCONTINUITY"] if newest + 1 == 20 and made else []
    lines += [part(newest + 1, index) for index in range(made)]
    lines += [f'#EXT-X-PRELOAD-HINT:TYPE=PART,URI="{newest + 1}.m4s",BYTERANGE-START={1000 * made}']
    lines += [f'#EXT-X-RENDITION-REPORT:URI="../low/live.m3u8",LAST-MSN={newest},LAST-PART={made}']
    return "\n".join([*lines, ""])


def relayed(texts: list[str]) -> list[str]:
    """Load one version after the other, and publish what is new; returns the versions of ours."""
    before: Snapshot | None = None
    position: Position | None = None
    progress: Progress | None = None
    published: list[str] = []
    for index, text in enumerate(texts):
        before = load(text, before)
        step = advance(position, before, stream(window_s=24.0), at(100 + index))
        position = step.position
        for one in step.fresh:
            progress = progress or Progress(one.position, 4, discontinuity_sequence=one.segment.era)
            made = replace(passed_through(one.segment), number=one.number, discontinuity=one.discontinuity)
            made = replace(made, program_date_time=one.program_date_time)
            progress = slide(progress, made, one.position, 24.0, at(100 + index))
        if progress:
            published.append(media_playlist(progress, SOURCE))
    return published


def load(text: str, before: Snapshot | None = None) -> Snapshot:
    found = parse(text.encode(), URL, None, before)
    assert isinstance(found, Snapshot)
    return found


SERIES = [(newest, made) for newest in range(10, 34) for made in range(PARTS)]
WHOLE = [version(newest, made) for newest, made in SERIES]
DELTA = [version(newest, made, skip=(2 + newest % 2 if index % 4 else 0)) for index, (newest, made) in enumerate(SERIES)]
ONLY_DELTA = [version(newest, made, skip=3 if index else 0) for index, (newest, made) in enumerate(SERIES)]


@pytest.mark.parametrize("texts", [WHOLE, DELTA, ONLY_DELTA], ids=["whole", "now and then a delta", "one whole, then deltas"])
def test_a_low_latency_source_comes_out_as_a_regular_one_with_the_right_numbers(texts: list[str]) -> None:
    published = relayed(texts)
    judge = Judge()
    theirs = {number: row for text in WHOLE for number, row in covered(text, URL).items()}
    for index, text in enumerate(published):
        judge.playlist("https://relay.example/source/index.m3u8", text.encode(), None, 100.0 + index)
        assert not any(tag in text for tag in LOW_LATENCY_TAGS)
        ours = parsed(text)
        for segment in ours.segments:
            assert segment.uri.endswith(f"/{segment.sequence}.m4s")
            assert segment.program_date_time == at(segment.sequence * 4)
            assert segment.discontinuity == (segment.sequence == 20)
        assert covered(text, URL) == {segment.sequence: theirs[segment.sequence] for segment in ours.segments}
    assert [one.text for one in judge.findings if one.severity is Severity.ERROR] == []
    assert parsed(published[-1]).segments[-1].sequence == SERIES[-1][0]
    assert [parsed(text).discontinuity_sequence for text in published][-1] == 1


@pytest.mark.parametrize("made", range(PARTS))
def test_parts_belong_to_the_segment_that_follows_them_and_the_newest_to_none(made: int) -> None:
    snapshot = load(version(12, made))
    assert [segment.sequence for segment in snapshot.segments] == list(range(4, 13))
    assert [len(segment.parts) for segment in snapshot.segments] == [0] * 6 + [PARTS] * 3
    for segment in snapshot.segments[-3:]:
        assert {one.uri for one in segment.parts} == {segment.uri}
        assert sum(one.duration_s for one in segment.parts) == segment.duration_s


def test_a_part_without_offset_begins_where_the_one_before_it_in_its_file_ends() -> None:
    lines = ['URI="a.mp4",DURATION=1,BYTERANGE="10@5"', 'URI="a.mp4",DURATION=1,BYTERANGE="20"', 'URI="b.mp4",DURATION=1,BYTERANGE="30"']
    lines.append('GAP=YES,URI="c.mp4",DURATION=0.5')
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n" + "".join(f"#EXT-X-PART:{line}\n" for line in lines) + "#EXTINF:4,\na.ts\n"
    base = "https://origin.example/live/"
    assert parsed(text).segments[0].parts == (
        Part(base + "a.mp4", 1.0, byterange=ByteRange(10, 5)),
        Part(base + "a.mp4", 1.0, byterange=ByteRange(20, 15)),
        Part(base + "b.mp4", 1.0, byterange=ByteRange(30, 0)),
        Part(base + "c.mp4", 0.5, gap=True),
    )


def test_a_delta_update_without_anything_before_it_is_good_for_its_tail() -> None:
    snapshot = load(version(23, 1, skip=5))
    assert "delta_update" in snapshot.repairs
    assert [segment.sequence for segment in snapshot.segments] == [20, 21, 22, 23]
    assert snapshot.media_sequence == 20
    assert [segment.uri.rpartition("/")[2] for segment in snapshot.segments] == ["20.m4s", "21.m4s", "22.m4s", "23.m4s"]


def test_a_delta_update_is_filled_up_from_what_was_there_before() -> None:
    before, whole = load(version(23, 0)), load(version(24, 2))
    filled = load(version(24, 2, skip=4), before)
    assert [replace(one, program_date_time=None, parts=()) for one in filled.segments] == [
        replace(one, program_date_time=None, parts=()) for one in whole.segments
    ]
    assert (filled.media_sequence, filled.discontinuity_sequence) == (whole.media_sequence, whole.discontinuity_sequence)


def test_a_delta_update_far_from_what_was_there_before_keeps_what_was_in_force() -> None:
    found = load(version(29, 0, skip=7), load(version(15, 0)))  # 16 to 27 were never seen
    assert [segment.sequence for segment in found.segments] == [28, 29]
    assert all(segment.init and segment.init.uri.endswith("init.mp4") for segment in found.segments)
    assert [key.iv for segment in found.segments for key in segment.keys] == [f"0x{28:032x}", f"0x{29:032x}"]


@pytest.mark.parametrize("count", ["x", "-1", "1" * 30, ""])
def test_a_skip_that_is_no_number_skips_nothing(count: str) -> None:
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:7\n#EXT-X-SKIP:SKIPPED-SEGMENTS={count}\n#EXTINF:4,\n7.ts\n"
    snapshot = parsed(text)
    assert [segment.sequence for segment in snapshot.segments] == [7]
    assert "skip_bad" in snapshot.repairs
