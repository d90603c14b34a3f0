"""Files that say what is to be registered, and what has to change for that (hlsrelay.declared)."""

from __future__ import annotations

import re

import pytest

from hlsrelay.declared import Difference, declared, difference
from hlsrelay.errors import ConfigError
from hlsrelay.fields import Registered

SOURCE = "https://example.com/live.m3u8"


def test_fields_may_be_written_as_yaml_has_them() -> None:
    text = f"""
    streams:
      news:
        source: {SOURCE}
        ladder: [720p, 480p]
        backup: [https://one.example/a.m3u8, https://two.example/b.m3u8]
        headers: {{Referer: https://example.com/}}
        window: 90
        on_demand: yes
        desired: stop
      "24":
        source: "{SOURCE}"
        proxy:
    """
    assert declared(text) == {
        "news": {
            "source": SOURCE,
            "ladder": "720p,480p",
            "backup": "https://one.example/a.m3u8 https://two.example/b.m3u8",
            "headers": '{"Referer": "https://example.com/"}',
            "window": "90",
            "on_demand": "yes",
            "desired": "stop",
        },
        "24": {"source": SOURCE, "desired": "run"},
    }
    assert declared("streams:") == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("streams: {news: {source: [}", "no YAML: .*line 1"),
        ("", "one mapping `streams:`"),
        ("news: {}", "one mapping `streams:`"),
        ("streams: [news]", "one mapping `streams:`"),
        (f"streams: {{24: {{source: '{SOURCE}'}}}}", "'24' can't be a stream id: write it in quotes"),
        ("streams: {news: }", "stream 'news' has to be a mapping"),
        ("streams: {news: {}}", "stream 'news'.* no source"),
        (f"streams: {{news: {{source: '{SOURCE}', bitrate: 3}}}}", "stream 'news': 'bitrate' is no field: the fields are source"),
        (f"streams: {{news: {{source: '{SOURCE}', state: running}}}}", "stream 'news': 'state' is no field"),
        (f"streams: {{news: {{source: '{SOURCE}', window: wide}}}}", "stream 'news': window is 'wide': write seconds"),
        (f"streams: {{news: {{source: '{SOURCE}', window: [6]}}}}", "stream 'news': window can't be a list: seconds of media"),
        (f"streams: {{'no/id': {{source: '{SOURCE}'}}}}", "stream 'no/id'.*can't be a stream id"),
        (f"streams: {{news: {{source: '{SOURCE}'}}, news: {{source: '{SOURCE}'}}}}", "'news' stands twice in one mapping, line 1"),
        ("streams: !!python/object/apply:os.system ['true']", "no YAML"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as failed:
        declared(text)
    assert re.search(told, str(failed.value)), failed.value


def test_only_what_differs_changes_and_only_who_prunes_removes() -> None:
    wanted = declared(
        f"""
        streams:
          same: {{source: "{SOURCE}"}}
          other: {{source: "{SOURCE}", ladder: 480p}}
          new: {{source: "{SOURCE}"}}
        """
    )
    there = [
        Registered("same", {"source": SOURCE, "state": "running", "node": "a"}),
        Registered("other", {"source": SOURCE, "desired": "stop", "window": "60", "ladder": ""}),
        Registered("old", {"source": SOURCE}),
    ]
    changes = {"other": {"desired": ("stop", "run"), "ladder": (None, "480p"), "window": ("60", None)}}
    added = {"new": {"source": SOURCE, "desired": "run"}}
    assert difference(wanted, there, prune=False) == Difference(added, changes)
    assert difference(wanted, there, prune=True) == Difference(added, changes, ("old",))
    assert not difference({"same": wanted["same"]}, there, prune=False)
