"""The checker of what several nodes published: it catches each fault, and nothing where there is none."""

from __future__ import annotations

import pytest

from tests.published import Claimed, History, Law, Offered, Written, of

TD_S = 1.0


def wrote(at_s: float, writer: str, *contents: str, first: int = 0, cuts: int = 0, ended: bool = False) -> Written:
    """A playlist of *contents* ("" a GAP), numbered from *first* on."""
    return Written(at_s, "news", writer, tuple(enumerate(contents, first)), cuts, ended)


def seen(*writes: Written, claims: tuple[Claimed, ...] = (), offers: tuple[Offered, ...] = ()) -> History:
    return History(writes, claims, offers, TD_S)


def claimed(at_s: float, node: str) -> Claimed:
    return Claimed(at_s, "news", int(at_s * 1000), node)


HANDED_ON = (wrote(1, "a", "A", "B"), wrote(2, "a", "A", "B", "C"), wrote(3, "b", "B", "C", "D", first=1), wrote(4, "b", "D", "E", first=3))
"""Node *a* has it, and then *b*, in a folder of its own."""


def test_a_stream_that_changes_hands_breaks_no_law() -> None:
    offers = tuple(Offered(one, index) for index, one in enumerate("ZABCDEF"))
    history = seen(*HANDED_ON, claims=(claimed(0.5, "a"), claimed(2.5, "b")), offers=offers)
    assert history.findings() == []
    assert history.numbers() == 5
    assert history.longest_interval_s() == 1.0
    assert "5 segments in 4 playlists, 2 claims: 0 repeated, 0 missing, 0 late writes" in history.told()


def test_one_that_comes_back_with_a_claim_of_its_own_breaks_none() -> None:
    back = wrote(5, "a", "E", "F", first=4)
    assert seen(*HANDED_ON, back, claims=(claimed(0.5, "a"), claimed(2.5, "b"), claimed(4.5, "a"))).findings() == []


def test_what_is_written_a_tick_before_its_own_claim_is_not_late_and_anything_else_is() -> None:
    claims = (claimed(0.5, "a"), claimed(1.5, "b"))
    assert seen(wrote(1, "a", "A"), wrote(1.495, "b", "A", "B"), claims=claims).findings() == []
    for late in (wrote(1.48, "b", "A", "B"), wrote(1.505, "a", "A", "B")):
        assert [one.law for one in seen(wrote(1, "a", "A"), late, claims=claims).findings()] == [Law.LATE]


@pytest.mark.parametrize(
    ("law", "history"),
    [
        (Law.TWO_CONTENTS, seen(wrote(1, "a", "A", "B"), wrote(2, "a", "A", "X"))),
        (Law.TWO_CONTENTS, seen(wrote(1, "a", "A", ""), wrote(2, "a", "A", "B"))),
        (Law.REPEATED, seen(wrote(1, "a", "A", "B"), wrote(2, "b", "B", first=2))),
        (Law.MISSING, seen(wrote(1, "a", "A"), wrote(2, "a", "A", "C"), offers=(Offered("A", 0), Offered("B", 1), Offered("C", 2)))),
        (Law.MISSING, seen(wrote(1, "a", "A"), wrote(2, "b", "B", first=2))),
        (Law.LATE, seen(wrote(1, "a", "A"), wrote(2, "a", "A", "B"), claims=(claimed(0.5, "a"), claimed(1.5, "b")))),
        (Law.TWO_OWNERS, seen(wrote(1, "a", "A"), wrote(2, "b", "A", "B"), wrote(3, "a", "B", "C", first=1))),
        (Law.WENT_BACK, seen(wrote(1, "a", "A", "B"), wrote(2, "b", "A"))),
        (Law.LONG, seen(wrote(1, "a", "A"), wrote(3.1, "a", "A", "B"))),
        (Law.ENDED, seen(wrote(1, "a", "A", ended=True))),
        (Law.CUT, seen(wrote(1, "a", "A", "B", cuts=1))),
    ],
)
def test_each_fault_is_caught_and_called_by_its_name(law: Law, history: History) -> None:
    assert [one.law for one in history.findings()] == [law]
    assert of(history.findings(), law) == []


def test_an_epoch_that_redis_has_forgotten_counts_on() -> None:
    """Rolled back, it tells of an older owner for a while: the younger one's writes are not late, the older one's are."""
    claims = (claimed(0.5, "a"), claimed(1.5, "b"), Claimed(2.5, "news", 500, "a"))
    late = seen(wrote(1, "a", "A"), wrote(2, "b", "A", "B"), wrote(3, "b", "B", "C", first=1), claims=claims)
    assert late.findings() == []


def test_what_left_the_sources_list_while_nobody_wrote_is_not_missing() -> None:
    offers = (Offered("A", 0, 6), Offered("B", 1, 1.9), Offered("C", 2, 6))
    history = seen(wrote(1, "a", "A"), wrote(2, "b", "C", first=2), offers=offers)
    assert {one.law for one in history.findings()} == {Law.MISSING}, "a playlist was written while the source listed it"
    offers = (Offered("A", 0, 6), Offered("B", 1.1, 1.9), Offered("C", 2, 6))
    assert seen(wrote(1, "a", "A"), wrote(2, "b", "C", first=2), offers=offers).findings() == []


def test_what_the_source_listed_before_the_first_and_after_the_last_is_not_missing() -> None:
    offers = tuple(Offered(one, 0) for one in "XYABZ")
    assert seen(wrote(1, "a", "A", "B"), offers=offers).findings() == []
