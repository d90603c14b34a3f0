"""What a reload costs does not grow with what the source lists: counted in lines of Python, which no machine changes."""

from __future__ import annotations

from bench.reload_cost import LINES, counted, reloads


def test_a_reload_of_a_longer_playlist_runs_no_line_more() -> None:
    short, long = reloads(100, 1), reloads(300, 1)
    for part in LINES:
        assert 100 < long[part] == short[part]


def test_lines_are_counted_in_what_is_called_too() -> None:
    def twice(values: list[int]) -> list[int]:
        return [2 * value for value in values]

    def work() -> None:
        for count in (1, 2):
            twice([0] * count)

    assert counted(work) > counted(lambda: twice([0]))
