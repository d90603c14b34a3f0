"""A file that a job still reads is never removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hlsrelay.storage import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[LocalStorage]:
    with LocalStorage(tmp_path, "news") as storage:
        for name in ("source/1.ts", "source/2.ts"):
            storage.write(name, b"media")
        yield storage


def there(storage: LocalStorage) -> list[str]:
    return sorted(path.name for path in storage.folder.glob("source/*.ts"))


def test_what_is_read_is_removed_only_when_the_last_reader_is_done(storage: LocalStorage) -> None:
    one = storage.folder / "source/1.ts"
    with storage.reading(one, None):
        with storage.reading(one):
            storage.remove(["source/1.ts", "source/2.ts"])
            assert there(storage) == ["1.ts"]
        assert there(storage) == ["1.ts"]
    assert there(storage) == []


def test_what_nobody_wanted_removed_stays(storage: LocalStorage) -> None:
    with storage.reading(storage.folder / "source/1.ts", storage.folder / "source/2.ts"):
        storage.remove(["source/2.ts"])
    assert there(storage) == ["1.ts"]


def test_the_sweep_spares_what_is_read_and_comes_back_for_it(storage: LocalStorage) -> None:
    with storage.reading(storage.folder / "source/1.ts"):
        storage.sweep(known=set())
        assert there(storage) == ["1.ts"]
    assert there(storage) == []


def test_a_reader_that_fails_lets_go_too(storage: LocalStorage) -> None:
    def fail() -> None:
        with storage.reading(storage.folder / "source/1.ts"):
            storage.remove(["source/1.ts"])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert there(storage) == ["2.ts"]
    storage.remove(["source/2.ts"])
    assert there(storage) == []


def test_an_abandoned_plain_copy_goes_the_same_way(storage: LocalStorage) -> None:
    plain = storage.temp("plain@source@7")
    plain.write_bytes(b"in the clear")
    with storage.reading(plain):
        storage.discard(plain)
        assert plain.exists()
    assert not plain.exists()
