"""Which source is relayed: the laws of failover, over random histories."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.failover import considered, primary_seen, progressed, wanted
from tests.playlists import stream

STREAM = replace(stream("https://a/x"), backups=("https://b/x", "https://c/x"))


def test_a_silent_source_is_left_for_the_next_and_round_again() -> None:
    standing = wanted(None, STREAM, 0.0)
    seen = [standing.current]
    for now_s in range(1, 40):
        standing = considered(standing, 10.0, float(now_s))
        if standing.current != seen[-1]:
            seen.append(standing.current)
    assert seen == ["https://a/x", "https://b/x", "https://c/x", "https://a/x"]


def test_a_source_that_brings_something_stays() -> None:
    standing = wanted(None, STREAM, 0.0)
    for now_s in range(0, 400, 5):
        standing = considered(progressed(standing, float(now_s)), 10.0, now_s + 4.0)
    assert standing.index == 0


def test_an_only_source_is_never_left() -> None:
    assert considered(wanted(None, stream(), 0.0), 10.0, 1e6).index == 0


def test_what_was_relayed_before_a_restart_is_gone_on_with() -> None:
    assert wanted(None, STREAM, 0.0, last="https://b/x").current == "https://b/x"
    assert wanted(None, STREAM, 0.0, last="https://gone/x").current == "https://a/x"


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=200))
def test_the_primary_is_taken_back_only_after_it_moved_on_unbroken_for_the_hold_time(looks: list[tuple[bool, bool]]) -> None:
    standing = replace(wanted(None, STREAM, 0.0), index=1)
    newest, well_since_s, now_s = 0, None, 0.0
    for answers, moves in looks:
        now_s += 4.0
        newest += moves
        standing = primary_seen(standing, str(newest) if answers else None, 12.0, 40.0, now_s)
        if not answers:
            well_since_s = None
        elif well_since_s is None:
            well_since_s = now_s
        if standing.index == 0:
            assert well_since_s is not None
            assert now_s - well_since_s >= 40.0
            return


def test_a_primary_that_is_well_is_taken_back() -> None:
    standing = replace(wanted(None, STREAM, 0.0), index=1)
    for turn in range(12):
        standing = primary_seen(standing, str(turn), 12.0, 40.0, turn * 4.0)
    assert standing.index == 0
