"""What nodes tell of their children, written down and read back."""

from __future__ import annotations

import json

import pytest

from hlsrelay.statuses import ChildStatus, NodeStatus, read, shown, written

CHILD = ChildStatus("a:1", 17, "4026531836.1.99", "encode news 812", ("ffmpeg", "-i", "file:Ünsinn"), 1.5, 0.4, 2**20, 50, 1.88, 12.3)
NODE = NodeStatus("a:1", "4026531836.1.99", 93.5, True, (CHILD,))


def test_what_is_written_is_read_back() -> None:
    assert read(written(NODE)) == NODE


def test_what_a_later_version_adds_is_left_out() -> None:
    later = json.loads(written(NODE))
    later["colour"] = later["children"][0]["taste"] = 1
    assert read(json.dumps(later)) == NODE


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"children":[1]}', '{"children":[{"argv":["x"]}]}', '{"node":"a","children":null}']
)
def test_what_no_node_wrote_is_none(text: str) -> None:
    assert read(text) is None


def test_all_children_are_shown_in_one_list_and_nodes_with_their_memory() -> None:
    found = shown([NODE, NodeStatus("a:0", "x")])
    assert found["nodes"] == [
        {"node": "a:0", "memory_percent": None, "pressed": False},
        {"node": "a:1", "memory_percent": 93.5, "pressed": True},
    ]
    processes = json.loads(json.dumps(found["processes"]))
    assert [(one["pid"], one["purpose"], one["frame"], one["orphan"]) for one in processes] == [(17, "encode news 812", 50, False)]
