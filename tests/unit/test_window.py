"""The window: what leaves it when, discontinuity accounting, bitrates, and renditions that come and go."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from datetime import timedelta
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.hls.advance import advance
from hlsrelay.hls.parse import parse
from hlsrelay.hls.render import decimal, media_playlist, multivariant_playlist
from hlsrelay.hls.tracks import media_playlist_alone
from hlsrelay.hls.window import Progress, expired, known_paths, slide, taken_up
from hlsrelay.model import SOURCE, Entry, Key, MediaFile, Presentation, Snapshot, Traits
from tests.playlists import URL, at, live, stream

POSITION = advance(None, live(0).snapshot(), stream(), at(0)).position
TRAITS = Traits("avc1.64001f,mp4a.40.2", 1280, 720, 30.0)


def entry(number: int, *rungs: str, duration_s: float = 4.0, discontinuity: bool = False, size: int = 1000) -> Entry:
    files = {SOURCE: MediaFile(f"{number}.ts", size, traits=TRAITS)}
    files |= {rung: MediaFile(f"{number}.ts", size // 2, traits=Traits("avc1.64001e", 640, 360, 30.0)) for rung in rungs}
    return Entry(number, duration_s, discontinuity, at(number * 4), files, rungs)


def grown(entries: list[Entry], window_s: float = 24.0, progress: Progress | None = None) -> Progress:
    progress = progress or Progress(POSITION, 4)
    for one in entries:
        position = replace(POSITION, last_number=one.number)
        progress = slide(progress, one, position, window_s, at(one.number * 4))
    return progress


def shown(progress: Progress) -> str:
    return multivariant_playlist(media_playlist_alone(URL), {SOURCE: progress})


def relisted(progress: Progress, name: str = SOURCE) -> Snapshot:
    found = parse(media_playlist(progress, name).encode(), URL)
    assert isinstance(found, Snapshot)
    return found


def test_the_window_lists_what_was_asked_for_and_at_least_six() -> None:
    assert [one.number for one in grown([entry(n) for n in range(20)], 40.0).entries] == list(range(10, 20))
    assert len(grown([entry(n, duration_s=10.0) for n in range(20)], 6.0).entries) == 6


@pytest.mark.parametrize("off_s", [-3600, 0, 3600])
def test_what_a_process_recorded_whose_clock_was_off_stays_as_long_as_it_had_to_and_nothing_came_later_than_now(off_s: int) -> None:
    progress = grown([entry(n) for n in range(7)])
    progress = replace(progress, position=replace(progress.position, advanced_at=at(6 * 4)))
    now = at(6 * 4 + 2) - timedelta(seconds=off_s)
    taken = taken_up(progress, now)
    assert [one.until - now for one in taken.retired] == [timedelta(seconds=4 + 28)]
    assert taken.position.advanced_at == min(at(6 * 4), now)
    assert taken.entries == progress.entries


def test_the_media_sequence_rises_by_one_per_segment_that_leaves() -> None:
    progress = grown([entry(n) for n in range(7)])
    assert "#EXT-X-MEDIA-SEQUENCE:1\n" in media_playlist(progress, SOURCE)


def test_the_discontinuity_sequence_rises_when_the_tag_leaves_and_not_before() -> None:
    entries = [entry(n, discontinuity=n == 2) for n in range(20)]
    sequences = [grown(entries[: count + 1]).discontinuity_sequence for count in range(20)]
    firsts = [grown(entries[: count + 1]).entries[0].number for count in range(20)]
    assert [sequence for sequence, first in zip(sequences, firsts, strict=True) if first <= 2] == [0] * firsts.index(3)
    assert sequences[firsts.index(3) :] == [1] * (20 - firsts.index(3))


def test_a_file_stays_its_own_and_the_longest_playlists_duration_after_it_leaves() -> None:
    progress = grown([entry(n) for n in range(7)])
    (retired,) = progress.retired
    assert retired.paths == ("source/0.ts",)
    assert retired.until == at(6 * 4) + timedelta(seconds=4 + 28)
    kept, gone = expired(progress, retired.until - timedelta(seconds=1))
    assert gone == ()
    assert "source/0.ts" in known_paths(kept)
    kept, gone = expired(progress, retired.until)
    assert gone == ("source/0.ts",)
    assert "source/0.ts" not in known_paths(kept)


def test_an_init_section_outlives_the_segments_that_used_it_first() -> None:
    entries = [replace(entry(n), files={SOURCE: MediaFile(f"{n}.m4s", 10, "init-0.mp4")}) for n in range(8)]
    progress = grown(entries)
    assert all("source/init-0.mp4" not in one.paths for one in progress.retired)
    text = media_playlist(progress, SOURCE)
    assert text.count('#EXT-X-MAP:URI="init-0.mp4"') == 1
    assert text.index("#EXT-X-MAP") < text.index("2.m4s")
    assert "#EXT-X-VERSION:6" in text


def test_a_rendition_without_a_file_has_a_gap_and_never_a_missing_line() -> None:
    entries = [entry(n, "360p") for n in range(4)]
    entries[2] = replace(entries[2], files={SOURCE: entries[2].files[SOURCE]})
    progress = grown(entries)
    assert [segment.gap for segment in relisted(progress, "360p").segments] == [False, False, True, False]
    assert [segment.gap for segment in relisted(progress).segments] == [False] * 4


def test_bandwidth_is_the_peak_over_runs_and_average_is_bits_over_time() -> None:
    progress = grown([entry(n, size=size) for n, size in enumerate([1000, 5000, 1000, 1000])])
    assert "BANDWIDTH=10000,AVERAGE-BANDWIDTH=4000," in shown(progress)
    assert 'CODECS="avc1.64001f,mp4a.40.2",RESOLUTION=1280x720,FRAME-RATE=30.000' in shown(progress)


def test_a_rung_that_leaves_is_played_on_by_the_nearest_that_stays_and_listed_no_more() -> None:
    progress = grown([*(entry(n, "480p", "360p") for n in range(3)), *(entry(n, "480p") for n in range(3, 6))])
    assert [line for line in media_playlist(progress, "360p").splitlines() if line.endswith(".ts")] == [
        "0.ts",
        "1.ts",
        "2.ts",
        "../480p/3.ts",
        "../480p/4.ts",
        "../480p/5.ts",
    ]
    assert [one.discontinuity for one in progress.entries] == [False] * 3 + [True, False, False]
    listed = parse(shown(progress).encode(), URL)
    assert isinstance(listed, Presentation)
    assert [track.uris[0].split("/")[-2] for track in listed.tracks] == ["source", "480p"]


def test_a_rung_that_comes_lists_the_nearest_for_the_time_before_it_and_says_so() -> None:
    progress = grown([*(entry(n) for n in range(3)), *(entry(n, "360p") for n in range(3, 6))])
    text = media_playlist(progress, "360p")
    assert text.count("../source/") == 3
    assert text.index("../source/2.ts") < text.index("#EXT-X-DISCONTINUITY\n") < text.index("\n3.ts")
    line = shown(progress).partition("360p/index.m3u8")[0].splitlines()[-1]
    assert 'CODECS="avc1.64001e,avc1.64001f,mp4a.40.2",RESOLUTION=1280x720' in line
    later = grown([entry(n, "360p") for n in range(6, 14)], progress=progress)
    line = shown(later).partition("360p/index.m3u8")[0].splitlines()[-1]
    assert 'CODECS="avc1.64001e",RESOLUTION=640x360' in line


def test_every_rendition_shares_numbers_and_discontinuities() -> None:
    progress = grown(
        [*(entry(n, "360p") for n in range(5)), *(entry(n) for n in range(5, 9)), *(entry(n, "360p", "480p") for n in range(9, 12))]
    )
    heads = [[line for line in media_playlist(progress, name).splitlines() if "SEQUENCE" in line] for name in (SOURCE, "360p", "480p")]
    cuts = [[segment.discontinuity for segment in relisted(progress, name).segments] for name in (SOURCE, "360p", "480p")]
    assert heads[0] == heads[1] == heads[2]
    assert cuts[0] == cuts[1] == cuts[2]


def test_a_daterange_stays_while_it_reaches_over_a_listed_segment() -> None:
    tag = f'#EXT-X-DATERANGE:ID="ad",START-DATE="{at(0).isoformat()}",DURATION=30'
    texts = [media_playlist(grown([replace(entry(0), tags=(tag,)), *(entry(n) for n in range(1, count))]), SOURCE) for count in (7, 12, 16)]
    assert [tag in text for text in texts] == [True, True, False]
    assert texts[0].index(tag) < texts[0].index("1.ts")


def test_keys_are_repeated_when_the_head_slides_past_them_and_only_on_pass_through() -> None:
    key = Key("AES-128", "https://o/k", "0x01", "identity", (("METHOD", "AES-128"), ("URI", '"k"'), ("IV", "0x01")))
    progress = grown([replace(entry(n, "360p"), keys=(key,)) for n in range(9)])
    assert media_playlist(progress, SOURCE).count('#EXT-X-KEY:METHOD=AES-128,URI="https://o/k",IV=0x01') == 1
    assert "#EXT-X-KEY" not in media_playlist(progress, "360p")


def test_tags_of_the_source_are_printed_before_their_segment() -> None:
    progress = grown([entry(0), replace(entry(1), tags=("#EXT-X-CUE-OUT:30",))])
    text = media_playlist(progress, SOURCE)
    assert text.index("0.ts") < text.index("#EXT-X-CUE-OUT:30") < text.index("1.ts")


def test_an_end_that_was_taken_back_is_a_discontinuity() -> None:
    ended = replace(grown([entry(n) for n in range(3)]), ended=True)
    assert media_playlist(ended, SOURCE).endswith("#EXT-X-ENDLIST\n")
    resumed = grown([entry(3)], progress=ended)
    assert resumed.entries[-1].discontinuity
    assert "ENDLIST" not in media_playlist(resumed, SOURCE)


def test_what_slides_costs_no_more_in_a_window_of_a_day() -> None:
    """Calls are counted, not seconds: a machine may be slow."""

    def calls(window_s: float) -> int:
        count = 0

        def called(_frame: FrameType, event: str, _arg: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        tagged = [replace(entry(n, "360p"), tags=(f"#EXT-X-CUE-OUT:{n}",)) for n in range(int(window_s / 4) + 4)]
        progress = grown(tagged[:-1], window_s)
        assert progress.entries[0].number > 0
        gc.disable()  # what it calls, of Hypothesis for one, would be counted too
        sys.setprofile(called)
        slide(progress, tagged[-1], POSITION, window_s, at(0))
        sys.setprofile(None)
        gc.enable()
        return count

    assert calls(8000.0) <= calls(400.0)


def test_what_the_window_counts_is_what_it_lists() -> None:
    """Over lengths that no binary fraction is, and from a record that has no count."""
    progress = Progress(POSITION, 4)
    for number in range(200):
        progress = slide(progress, entry(number, duration_s=(4.004, 3.3, 0.1)[number % 3]), POSITION, 40.0, at(0))
        if number == 100:
            progress = replace(progress, listed_us=None)
    listed_s = sum(one.duration_s for one in progress.entries)
    assert progress.listed_us == round(listed_s * 1_000_000)
    assert 40 <= listed_s < 40 + progress.entries[0].duration_s


def test_a_gap_of_a_rung_that_comes_with_one_is_listed_for_good() -> None:
    bare = [replace(entry(n), files={}) for n in range(2)]
    first = replace(entry(2, "360p"), files={SOURCE: MediaFile("2.m4s", 100)})
    texts = []
    progress = grown([*bare, first])
    for number in range(3, 7):
        texts.append([media_playlist(progress, name).partition("#EXTINF")[2].split("\n#")[0] for name in (SOURCE, "360p")])
        progress = grown([replace(entry(number, "360p"), files={SOURCE: MediaFile(f"{number}.mp4", 100)})], progress=progress)
    assert texts == [[":4.0,\n0.m4s", ":4.0,\n0.ts"]] * 4


@given(st.floats(0.001, 3600, allow_nan=False))
def test_decimals_never_use_an_exponent_and_keep_microseconds(value: float) -> None:
    text = decimal(value)
    assert "e" not in text
    assert abs(float(text) - value) <= 5e-7


_ENTRY = st.tuples(st.floats(0.5, 4.4), st.booleans(), st.booleans(), st.sampled_from([(), ("360p",), ("480p", "360p")]))


@given(st.lists(_ENTRY, min_size=1, max_size=60), st.floats(6, 60))
def test_only_allowed_edits_happen_between_any_two_publications(
    rows: list[tuple[float, bool, bool, tuple[str, ...]]], window_s: float
) -> None:
    """RFC 8216 6.2.1 and 6.2.2, for every rendition, read back from the text that players see."""
    progress = Progress(POSITION, 4)
    before: dict[str, list[tuple[int, str, bool]]] = {}
    sequence_before: dict[str, int] = {}
    for number, (duration_s, discontinuity, lost, rungs) in enumerate(rows):
        made = entry(number, *rungs, duration_s=duration_s, discontinuity=discontinuity)
        made = replace(made, files={}) if lost else made
        progress = slide(progress, made, replace(POSITION, last_number=number), window_s, at(number * 4))
        for rendition in progress.renditions:
            text = media_playlist(progress, rendition.name)
            snapshot = relisted(progress, rendition.name)
            here = [(one.sequence, one.uri, one.discontinuity) for one in snapshot.segments]
            sequence = int(text.partition("#EXT-X-DISCONTINUITY-SEQUENCE:")[2].partition("\n")[0])
            if rendition.name in before:
                stayed = [one for one in before[rendition.name] if one[0] >= here[0][0]]
                assert here[: len(stayed)] == stayed
                left = [one for one in before[rendition.name] if one[0] < here[0][0]]
                assert sequence == sequence_before[rendition.name] + sum(one[2] for one in left)
                assert not left or sum(one.duration_s for one in snapshot.segments) >= 12
            before[rendition.name], sequence_before[rendition.name] = here, sequence
