"""values.replace does what dataclasses.replace does, for all kinds of records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest

from hlsrelay.values import replace


@dataclass(frozen=True)
class Plain:
    first: int
    second: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Slotted:
    first: int
    second: tuple[int, ...] = ()


@dataclass
class Computed:
    first: int
    doubled: int = field(init=False)

    def __post_init__(self) -> None:
        self.doubled = 2 * self.first


@pytest.mark.parametrize("kind", [Plain, Slotted])
def test_a_copy_has_the_changes_and_the_rest_and_the_first_one_stays(kind: Any) -> None:
    one = kind(1, (2, 3))
    other = replace(one, first=4)
    assert (other, one) == (kind(4, (2, 3)), kind(1, (2, 3)))
    assert type(other) is kind
    assert hash(other) == hash(kind(4, (2, 3)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        other.first = 5


@pytest.mark.parametrize("kind", [Plain, Slotted, Computed])
def test_what_is_no_field_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError):
        replace(kind(1), third=3)


def test_what_is_computed_from_the_fields_is_computed_again() -> None:
    assert replace(Computed(1), first=4).doubled == 8
