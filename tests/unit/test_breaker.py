"""A breaker opens after failures in a row, waits longer each time, lets one trial through, and closes when that goes well."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.breaker import FAILURES, JITTER, LONGEST_PAUSE_S, SHORTEST_PAUSE_S, Breaker


def opened(chance: float = 0.5) -> Breaker:
    breaker = Breaker()
    assert [breaker.failed(0.0, "no", chance) for _ in range(FAILURES)] == [*[False] * (FAILURES - 1), True]
    return breaker


def test_it_lets_all_through_until_enough_failed_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(0.0, "no", 0.5)
    assert breaker.admits(0.0)
    assert not opened().admits(SHORTEST_PAUSE_S - 0.1)


def test_after_the_pause_one_trial_is_let_through_and_no_second_beside_it() -> None:
    breaker = opened()
    assert breaker.admits(SHORTEST_PAUSE_S)
    assert not breaker.admits(SHORTEST_PAUSE_S)
    breaker.undecided()
    assert breaker.admits(SHORTEST_PAUSE_S)


def test_each_failed_trial_doubles_the_pause_up_to_the_longest() -> None:
    breaker, now_s, pauses = opened(), 0.0, []
    for _ in range(8):
        pauses.append(breaker.until_s - now_s)
        now_s = breaker.until_s
        assert breaker.admits(now_s)
        assert breaker.failed(now_s, "no", 0.5)
    assert pauses[:4] == [10, 20, 40, 80]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_what_began_before_it_opened_does_not_make_the_pause_longer() -> None:
    breaker = opened()
    until_s = breaker.until_s
    assert not breaker.failed(1.0, "no", 0.5)
    assert breaker.until_s == until_s


@given(chance=st.floats(0, 1))
def test_pauses_differ_by_chance_and_not_by_much(chance: float) -> None:
    assert abs(opened(chance).until_s - SHORTEST_PAUSE_S) <= JITTER * SHORTEST_PAUSE_S + 1e-9
