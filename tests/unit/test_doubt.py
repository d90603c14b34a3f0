"""Playlists that do not fit: stale edges, other origins, encoders that began anew, and when one of them is believed (hls.doubt)."""

from __future__ import annotations

import re

import pytest

from hlsrelay.hls.likeness import ALIKE
from hlsrelay.hls.numbering import Step
from tests.playlists import Listed, at, live
from tests.unit.advancing import History


def test_a_stale_playlist_changes_nothing() -> None:
    history = History()
    history.load(live(1, 2, 3, 4, 5), 0)
    history.load(live(1, 2, 3), 4)
    history.load(live(4, 5, 6), 8)
    assert history.numbers() == [3, 4, 5, 6]
    assert history.cuts() == []


def test_a_reset_is_believed_once_it_moves_on_and_numbers_go_on_after_a_discontinuity() -> None:
    history = History()
    history.load(live(500, 501, 502), 0)
    for seconds, last in ((4, 1), (8, 2), (12, 3)):
        history.load(live(*(Listed(n, f"new{n}.ts") for n in range(last))), seconds)
    assert history.numbers() == [500, 501, 502, 503, 504, 505]
    assert history.names()[3:] == ["new0.ts", "new1.ts", "new2.ts"]
    assert history.cuts() == [503]
    history.load(live(*(Listed(n, f"new{n}.ts") for n in range(5))), 16)
    assert history.names()[3:] == [f"new{n}.ts" for n in range(5)]
    assert history.cuts() == [503]


def restarts_with_others(history: History, unlike: str) -> list[int]:
    """Relay a source, then what begins anew under other names and is no edge; return how much each load brings."""
    history.holds = lambda name: "" if re.fullmatch(unlike, name) else name
    history.load(live(500, 501, 502), 0)
    return [len(history.load(live(*(Listed(n, f"new{n}.ts") for n in range(4 + turn))), 4 * turn).fresh) for turn in range(1, 5)]


def test_a_reset_is_believed_though_some_of_it_cannot_be_fetched_but_not_if_nothing_can() -> None:
    assert restarts_with_others(History(), "nothing") == [0, 2, 1, 1]
    assert restarts_with_others(History(), "new4.ts") == [0, 2, 1, 1]
    assert restarts_with_others(History(), "new[4-7].ts") == [0, 0, 0, 0]


def test_where_nothing_that_was_relayed_is_known_by_its_digest_none_is_asked_for() -> None:
    history = History()
    assert restarts_with_others(history, ".*") == [0, 2, 1, 1]
    assert history.asked == 0


@pytest.mark.parametrize("digest", [f"{ALIKE}empty", "a cue that goes on"])
@pytest.mark.parametrize("alike", [r".*", r"501.ts|502.ts|new[4-7].ts", r"50..ts|new5.ts"])
def test_content_that_many_segments_have_is_no_sign_that_a_segment_is_listed_again(digest: str, alike: str) -> None:
    history = History(holds=lambda name: digest if re.fullmatch(alike, name) else name)
    history.load(live(500, 501, 502), 0)
    fresh = [len(history.load(live(*(Listed(n, f"new{n}.ts") for n in range(4 + turn))), 4 * turn).fresh) for turn in range(1, 5)]
    assert fresh == [0, 2, 1, 1]
    assert history.cuts() == [503]


def test_names_that_are_used_in_rounds_are_no_sign_that_content_is_listed_again_which_many_segments_have() -> None:
    history = History(holds=lambda _: f"{ALIKE}empty")
    history.load(live(*(Listed(n, f"x{n % 8}.ts") for n in range(100, 106))), 0)
    for last in range(3):
        history.load(live(*(Listed(n, f"x{n + 1}.ts") for n in range(last + 1))), 4 + 4 * last)
    assert history.cuts() == [106]
    assert "renumbered" not in history.repairs


@pytest.mark.parametrize("shift", [0, 101])
def test_content_that_many_segments_have_is_listed_again_where_names_tell_it_too(shift: int) -> None:
    history = History(holds=lambda _: f"{ALIKE}empty")
    history.load(live(*(Listed(n, f"x{n}.ts") for n in range(100, 106))), 0)
    for seconds, first in ((8, 101), (12, 103)):
        listed = live(*(Listed(n - shift, f"x{n}.ts") for n in range(first, first + 6)))
        history.load(listed.snapshot(f"https://origin.example/token{first}/index.m3u8"), seconds)
    assert history.names() == [f"x{n}.ts" for n in range(103, 109)]
    assert history.cuts() == []


def test_a_restart_that_happens_to_count_on_is_noticed_by_the_window_it_threw_away() -> None:
    history = History()
    history.load(live(1, 2, 3, 4, 5, 6), 0)
    history.load(live(Listed(7, "new7.ts")), 4)
    history.load(live(Listed(7, "new7.ts"), Listed(8, "new8.ts")), 8)
    assert history.names()[-2:] == ["new7.ts", "new8.ts"]
    assert history.cuts() == [7]


@pytest.mark.parametrize("outage_s", [1, 4, 30])
@pytest.mark.parametrize(("window", "begins"), [(2, 0), (2, -1), (3, 1), (3, 0), (3, -1), (6, 0)])
def test_a_restart_at_about_our_newest_number_is_noticed_by_the_window_that_was_short(window: int, begins: int, outage_s: int) -> None:
    history, encoder = History(), 0
    history.holds = lambda name: f"{encoder} {name}"
    for last in range(100, 105):
        history.load(live(*range(last + 1 - window, last + 1)), 4 * (last - 100))
    for seconds in range(17, 20 + outage_s):
        history.load(live(*range(105 - window, 105)), seconds)
    encoder = 1
    first = 104 + begins
    for last in range(first, first + 8):
        for poll in range(4):
            history.load(live(*range(max(first, last + 1 - window), last + 1)), 16 + outage_s + 4 * (last + 1 - first) + poll)
    assert len(history.cuts()) == 1
    assert history.held[history.cuts()[0]].startswith("1 ")
    assert not any(history.held[number].startswith("1 ") for number in history.numbers() if number < history.cuts()[0])


def test_one_segment_alone_after_a_silence_under_the_next_number_is_in_doubt() -> None:
    history = History()
    history.load(live(100, 101), 0)
    history.load(live(101, 102), 4)
    assert history.load(live(Listed(103, "new103.ts")), 12).fresh == ()
    history.load(live(Listed(103, "new103.ts"), Listed(104, "new104.ts")), 16)
    assert history.cuts() == [103]
    assert history.names()[-2:] == ["new103.ts", "new104.ts"]


def test_a_window_that_grows_or_shrinks_costs_a_digest_after_a_silence_and_no_discontinuity() -> None:
    history = History()
    history.load(live(1, 2, 3, 4, 5, 6), 0)
    history.load(live(2, 3, 4, 5, 6, 7), 4)
    assert history.asked == 0
    for seconds in (12, 14, 16):
        history.load(live(3, 4, 5, 6, 7), seconds)
    history.load(live(3, 4, 5, 6, 7, 8), 18)
    for last in range(9, 14):
        history.load(live(*range(3, last + 1)), 18 + 4 * (last - 8))
    assert history.asked <= 2
    assert history.cuts() == []
    assert history.numbers()[-1] == 13


def test_what_goes_on_from_a_playlist_in_doubt_is_in_doubt_too() -> None:
    history = History()
    history.load(live(Listed(0, "a0.ts")), 0)
    history.load(live(Listed(0, "b0.ts")), 4)
    history.load(live(Listed(1, "b1.ts"), Listed(2, "b2.ts")), 8)
    assert history.cuts() == [1]
    assert history.names() == ["a0.ts", "b1.ts", "b2.ts"]


def test_an_edge_that_alternates_with_a_foreign_numbering_is_never_believed() -> None:
    history = History()
    history.load(live(1, 2, 3), 0)
    for tick in range(1, 12):
        history.load(live(1 + tick, 2 + tick, 3 + tick), tick * 4)
        history.load(live(*(Listed(900 + tick + n, f"other{n}.ts") for n in range(3))), tick * 4 + 2)
    assert history.cuts() == []
    assert history.numbers() == list(range(1, 15))


def test_names_that_a_restarted_encoder_uses_again_are_no_stale_playlist() -> None:
    history = History()
    history.load(live(*(Listed(n, f"x{n}.ts") for n in range(100, 106))), 0)
    for turn in range(1, 120):
        history.load(live(*(Listed(n, f"x{n}.ts") for n in range(max(0, turn - 5), turn + 1))), turn * 4)
    assert history.names()[-1] == "x119.ts"
    assert history.repairs.count("stale_playlist") <= 6


@pytest.mark.parametrize(
    ("window", "ran", "after"),
    [
        (6, 15, 3),  # its window grows from nothing, where ours slid: once players have nothing left
        (6, 8, 3),
        (3, 40, 4),  # no edge is 40 segments behind
        (1, 40, 4),
        (3, 12, 12),  # it may well be an edge that is 12 segments behind, and comes to where we are
    ],
)
def test_an_encoder_that_plays_the_same_file_again_is_relayed_again(window: int, ran: int, after: int) -> None:
    history = History()

    def plays(last: int, seconds: int) -> Step:
        return history.load(live(*range(max(0, last + 1 - window), last + 1)), seconds)

    for last in range(ran):
        plays(last, 4 * last)
    brought = [len(plays(last, 4 * (ran + last)).fresh) for last in range(20)]
    assert brought.index(max(brought)) == after
    assert brought[after + 1 :] == [1] * (19 - after)  # and it goes on
    assert len(history.cuts()) == (after != ran)


@pytest.mark.parametrize("played", [1, 6, 20, 60])
@pytest.mark.parametrize(("window", "behind"), [(1, 4), (3, 12), (6, 8), (6, 16), (40, 20), (40, 30), (60, 50)])
def test_an_edge_may_be_behind_by_as_much_as_it_lists_or_from_before_we_relayed_and_repeats_nothing(
    window: int, behind: int, played: int
) -> None:
    history = History()
    for turn in range(played):
        history.load(live(*range(200 + turn, 200 + turn + window)), 4 * turn)
    for turn in range(played, played + behind + 8):
        history.load(live(*range(200 + turn - behind, 200 + turn - behind + window)), 4 * turn)
    names = [name for name in history.names() if name]
    assert len(set(names)) == len(names)
    assert names[-1] == f"{200 + played + 7 + window - 1}.ts", "and it comes to where we are"
    assert history.cuts() == []


@pytest.mark.parametrize(("name", "window", "after"), [("other", 1, 4), ("other", 6, 3), ("", 6, 3), ("", 1, 4), ("", 3, 4)])
def test_an_encoder_that_restarts_at_a_number_just_below_ours_is_no_edge_if_its_names_or_its_window_tell(
    name: str, window: int, after: int
) -> None:
    history = History()
    for last in range(100, 108):
        history.load(live(*range(max(100, last + 1 - window), last + 1)), 4 * last)
    history.holds = lambda name: f"new {name}"
    brought = []
    for last in range(90, 110):
        listed = (Listed(n, f"{name}{n}.ts") for n in range(max(90, last + 1 - window), last + 1))
        brought.append(len(history.load(live(*listed), 4 * (108 + last - 90)).fresh))
    assert brought.index(max(brought)) == after
    assert len(history.cuts()) == 1


@pytest.mark.parametrize("window", [1, 3, 6])
def test_a_loop_that_restarts_under_its_names_in_other_places_is_relayed_again(window: int) -> None:
    """No digest and no name ever tells anything new; but it moves on, and players have had nothing for long."""
    history = History()

    def plays(last: int, first: int, seconds: int, shift: int) -> int:
        history.holds = lambda name: f"content {(int(name[1:-3]) * 3 + shift) % 10}"
        window_of = range(max(first, last + 1 - window), last + 1)
        return len(history.load(live(*(Listed(n, f"x{n % 10}.ts") for n in window_of)), seconds).fresh)

    for turn in range(30):
        plays(100 + turn, 100, 4 * turn, 0)
    brought = [plays(turn, 0, 120 + 4 * turn, 4) for turn in range(30)]
    assert sum(brought[:17]) == 0 or window == 1
    assert sum(brought) >= 10


def test_one_wrong_number_is_not_waited_out_until_the_source_counts_past_it() -> None:
    history = History()
    for seconds, item in ((0, Listed(0)), (4, Listed(1)), (8, Listed(8, "2.ts")), (10, Listed(2)), (12, Listed(3)), (16, Listed(4))):
        history.load(live(item), seconds)
    assert [name for name in history.names() if name] == ["0.ts", "1.ts", "2.ts", "3.ts", "4.ts"]


def test_what_was_listed_before_the_live_edge_is_not_relayed_later_from_an_origin_that_is_behind() -> None:
    history = History()
    history.load(live(*range(60)), 0)
    for newest in range(54, 63):
        history.load(live(*(Listed(1000 + n, f"{n}.ts") for n in range(newest - 54, newest + 1))), 2 + (newest - 54) * 4)
    assert history.names() == [f"{n}.ts" for n in range(57, 63)]
    assert history.cuts() == []


def test_two_playlists_that_have_nothing_to_do_with_one_another_are_no_candidate_that_moves_on() -> None:
    history = History()
    history.load(live(Listed(0, "a0.ts"), Listed(1, "a1.ts")), 0)
    history.load(live(Listed(500, "b500.ts")), 4)
    history.load(live(Listed(20, "c20.ts")), 8)
    history.load(live(Listed(501, "b501.ts")), 12)
    assert history.names() == ["a0.ts", "a1.ts"]


def test_content_of_an_earlier_generation_is_not_relayed_again_under_numbers_that_would_go_on() -> None:
    history = History()
    history.load(live(Listed(10, "x10.ts")), 0)
    for seconds, number in ((4, 9), (8, 10), (12, 11)):
        history.load(live(Listed(number, f"new{number}.ts")), seconds)
    history.load(live(Listed(13, "x10.ts")), 14)
    history.load(live(Listed(12, "new12.ts")), 16)
    assert history.names()[0] == "x10.ts"
    assert history.names()[-2:] == ["new11.ts", "new12.ts"]
    assert history.names().count("x10.ts") == 1


def test_an_edge_that_stands_beside_a_hole_is_told_by_the_segment_that_both_list() -> None:
    history = History()
    history.load(live(0, 1), 0)
    history.load(live(6, 7), 18)
    history.load(live(7, 8), 21)
    for seconds, newest in ((26, 0), (28, 1), (30, 2)):
        history.load(live(*range(max(0, newest - 1), newest + 1)), seconds)
    assert [name for name in history.names() if name] == ["0.ts", "1.ts", "6.ts", "7.ts", "8.ts"]


def test_an_origin_whose_times_are_behind_is_stale_whatever_its_numbers() -> None:
    history = History()
    history.load(live(Listed(4, pdt=at(104))), 0)
    history.load(live(Listed(5, pdt=at(108))), 4)
    history.load(live(Listed(7, "4x.ts", pdt=at(104))), 6)
    history.load(live(Listed(6, pdt=at(112))), 8)
    assert history.names() == ["4.ts", "5.ts", "6.ts"]
    assert history.cuts() == []
