"""The board of what is to run is what would be read from all hashes at once, whatever changed in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.board import Board
from hlsrelay.errors import ConfigError
from hlsrelay.fields import Registered, stream_of
from hlsrelay.ladder import weight_of
from hlsrelay.model import Desired, Stream

IDS = ("a", "b", "c")
SESSIONS = ("", "one", "two")
HASHES = st.builds(
    lambda **fields: {"source": "https://example.com/live.m3u8", **{name: value for name, value in fields.items() if value}},
    desired=st.sampled_from(("run", "stop", "perhaps")),
    session=st.sampled_from(SESSIONS),
    wanted=st.sampled_from(SESSIONS),
    ladder=st.sampled_from(("", "480p", "720p,480p,audio")),
)
CHANGES = st.lists(st.tuples(st.sampled_from(IDS), st.none() | HASHES), max_size=12)


def understood(registered: Registered) -> Stream:
    return stream_of(registered.id, registered.fields)


@given(CHANGES)
def test_it_is_as_if_all_were_read_at_once(changes: list[tuple[str, dict[str, str] | None]]) -> None:
    board, now = Board(understood), dict[str, Registered]()
    for stream_id, fields in changes:
        now.pop(stream_id, None)
        if fields is not None:
            now[stream_id] = Registered(stream_id, fields)
        board.take(stream_id, now.get(stream_id))
    to_run, wrong = {}, set()
    for one in now.values():
        try:
            stream = understood(one)
        except ConfigError:
            wrong.add(one.id)
        else:
            if stream.desired is Desired.RUN:
                to_run[one.id] = one
    assert set(board.rows) == set(now)
    assert board.wrong == wrong
    assert board.total == sum(weight_of(understood(one).ladder) for one in to_run.values())
    for session in SESSIONS:
        has = {one.id for one in to_run.values() if one.fields.get("session", "") == session}
        assert {row.registered.id for row in board.of(session)} == has
        if session:
            asks = {one.id for one in to_run.values() if one.fields.get("wanted", "") == session}
            assert {row.registered.id for row in board.wanted_by(session)} == asks
    free = {one.id for one in to_run.values() if one.fields.get("session", "") != "one"}
    assert {row.registered.id for row in board.free({"one"})} == free


def test_who_had_a_stream_last_is_remembered_when_nobody_has_it() -> None:
    board = Board(understood)
    fields = {"source": "https://example.com/live.m3u8"}
    for session in ("one", "two", ""):
        board.take("a", Registered("a", {**fields, "session": session}))
    assert (board.rows["a"].session, board.rows["a"].last) == ("", "two")
    board.take("a", None)
    board.take("a", Registered("a", fields))
    assert board.rows["a"].last == ""
