"""When the multivariant playlist is shown anew: at once where anything of it changed or is missing, whatever the last look brought."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hlsrelay.clock import Clock
from hlsrelay.desk import Tools
from hlsrelay.hls.parse import parse
from hlsrelay.hls.window import Progress
from hlsrelay.house import House
from hlsrelay.model import SOURCE, KeyPolicy, Kind, Presentation
from hlsrelay.storage import LocalStorage
from tests.integration.relaying import NoEncoder, Operator
from tests.playlists import URL, stream
from tests.unit.test_render import AUDIO, MASTER, VIDEO, of
from tests.unit.test_render import shown as listed

ENGLISH = "audio-en"
KEYED = MASTER.replace("#EXT-X-STREAM", '#EXT-X-SESSION-KEY:METHOD=AES-128,URI="https://keys.example/1"\n#EXT-X-STREAM')


class SetClock(Clock):
    """A clock that stands where the test sets it."""

    now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s


@dataclass
class Shown:
    """A house of two tracks, and how often its multivariant playlist was written."""

    house: House
    storage: LocalStorage
    operator: Operator
    clock: SetClock
    written: int = 0
    full: bool = False
    progress: dict[str, Progress] = field(default_factory=lambda: {SOURCE: _main(1), ENGLISH: _english()})

    def looked(self, name: str = SOURCE, error: str = "") -> str:
        """A look at a track that brought nothing new; returns why its progress is not to be seen."""
        return self.house.shown(name, self.progress[name], None, error)

    @property
    def text(self) -> str:
        return (self.storage.read("index.m3u8") or b"").decode()


def _main(size: int) -> Progress:
    one = of(VIDEO)
    return listed([replace(one, files={SOURCE: replace(one.files[SOURCE], size_bytes=1000 * size)})])


def _english() -> Progress:
    return listed([of(AUDIO, ENGLISH)], ENGLISH, Kind.AUDIO)


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    presentation = parse(KEYED.format("").encode(), URL)
    assert isinstance(presentation, Presentation)
    with LocalStorage(tmp_path, "news") as storage:
        operator, clock = Operator(stream()), SetClock()
        upstream: Any = None  # nothing is fetched
        house = House(Tools(upstream, storage, NoEncoder(), operator, clock))
        house.furnished(presentation, operator.stream)
        made = Shown(house, storage, operator, clock)
        publish = storage.publish

        def counted(playlist: str, text: str) -> None:
            if made.full:
                raise OSError(28, "No space left on device")
            made.written += playlist == "index.m3u8"
            publish(playlist, text)

        monkeypatch.setattr(storage, "publish", counted)
        yield made


@pytest.fixture
def whole(both: Shown) -> Shown:
    """The same, all of it shown."""
    assert both.looked(ENGLISH) == both.looked() == ""
    assert "BANDWIDTH=2200," in both.text
    return both


def test_looks_that_bring_nothing_write_nothing(whole: Shown) -> None:
    assert whole.looked() == whole.looked(ENGLISH) == whole.looked() == ""
    assert whole.written == 1


def test_nothing_is_shown_before_all_is_there(both: Shown) -> None:
    assert (both.looked(), both.text) == ("", "")


def test_what_could_not_be_written_is_written_after_a_look_that_brought_nothing(whole: Shown) -> None:
    whole.progress[SOURCE], whole.full = _main(2), True
    assert whole.looked() == whole.looked() == "can't publish: No space left on device"
    whole.full = False
    assert whole.looked() == ""
    assert "BANDWIDTH=4200," in whole.text


def test_a_track_that_could_not_be_shown_itself_is_shown_once_it_can_be(whole: Shown) -> None:
    whole.progress[SOURCE] = _main(2)
    assert whole.looked(error="can't publish: No space left on device") == "can't publish: No space left on device"
    assert "BANDWIDTH=2200," in whole.text
    assert whole.looked() == ""
    assert "BANDWIDTH=4200," in whole.text


def test_what_was_taken_back_is_shown_again(whole: Shown) -> None:
    del whole.storage.playlists["index.m3u8"]
    assert whole.looked() == ""
    assert whole.written == 2


def test_other_wishes_are_met_after_a_look_that_brought_nothing(whole: Shown) -> None:
    assert "https://keys.example" not in whole.text
    whole.operator.stream = replace(whole.operator.stream, keys=KeyPolicy.ORIGIN)
    assert whole.looked() == ""
    assert "https://keys.example" in whole.text


def test_a_track_that_was_held_back_is_listed_once_it_is_not(both: Shown) -> None:
    both.storage.held[ENGLISH] = 1
    both.looked(ENGLISH)
    both.looked()
    both.clock.now_s = 100.0
    assert both.looked() == ""
    assert "EXT-X-MEDIA" not in both.text
    del both.storage.held[ENGLISH]
    assert both.looked() == ""
    assert "EXT-X-MEDIA" in both.text
