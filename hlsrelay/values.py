"""`dataclasses.replace` for values that are replaced with every segment: the same, at a fraction of what that costs.

Relaying a segment replaces some 36 records, and going round their fields was one in eight of the calls that it made. Where an instance
keeps its fields in a dict (no `slots`), a copy of that dict is the new instance; other classes go the usual way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["replace"]

if TYPE_CHECKING:
    from dataclasses import replace  # whose names and types mypy checks
else:
    import dataclasses

    _NAMES = {}
    """By class: the names that may be replaced; none where the dict can't just be copied."""

    def replace(one, /, **changes):
        """Return a copy of a dataclass's instance with *changes*. Raises TypeError for what is no field of it."""
        kind = one.__class__
        names = _NAMES.get(kind)
        if names is None:
            names = _NAMES[kind] = _names(kind)
        if not names:
            return dataclasses.replace(one, **changes)
        if not changes.keys() <= names:
            raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(changes.keys() - names))}")
        new = object.__new__(kind)
        object.__setattr__(new, "__dict__", {**one.__dict__, **changes})
        return new

    def _names(kind):
        plain = "__slots__" not in kind.__dict__ and not hasattr(kind, "__post_init__")
        fields = dataclasses.fields(kind)
        return frozenset(one.name for one in fields) if plain and all(one.init for one in fields) else frozenset()
