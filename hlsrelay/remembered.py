"""What was worked out of texts and addresses that come again and again.

It is emptied when streams have ended: the little that is remembered of them lies scattered among what they took, and would keep all of
that from being given back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")

_FORGET: list[Callable[[], None]] = []


def remembered(most: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Have a function remember its results, those of the last *most* arguments."""

    def of(function: Callable[..., T]) -> Callable[..., T]:
        kept = lru_cache(maxsize=most)(function)
        _FORGET.append(kept.cache_clear)
        return kept

    return of


def forget() -> None:
    """Remember nothing any more."""
    for clear in _FORGET:
        clear()
