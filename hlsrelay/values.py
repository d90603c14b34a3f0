"""`dataclasses.replace` for values that are replaced with every segment: the same, at a fraction of what that costs.

Relaying a segment replaces some 36 records, and going round their fields was one in eight of the calls that it made. Where an instance
keeps its fields in a dict (no `slots`), a copy of that dict is the new instance; where it has slots, these are copied one by one; what
computes something when it is made is made anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["replace"]

if TYPE_CHECKING:
    from dataclasses import replace  # whose names and types mypy checks
else:
    import dataclasses
    from operator import attrgetter

    _WAYS = {}
    """By class: what makes a changed copy of an instance."""

    def replace(one, /, **changes):
        """Return a copy of a dataclass's instance with *changes*. Raises TypeError for what is no field of it."""
        kind = one.__class__
        way = _WAYS.get(kind)
        if way is None:
            way = _WAYS[kind] = _way(kind)
        return way(one, changes)

    def _way(kind):
        fields = dataclasses.fields(kind)
        names = [one.name for one in fields]
        if hasattr(kind, "__post_init__") or not all(one.init for one in fields):
            return lambda one, changes: dataclasses.replace(one, **changes)
        if "__slots__" in kind.__dict__:
            return _of_slots(kind, names)
        return _of_dict(kind, frozenset(names))

    def _of_dict(kind, names):
        make, put = object.__new__, object.__setattr__

        def way(one, changes):
            if not changes.keys() <= names:
                raise _unknown(kind, changes.keys() - names)
            new = make(kind)
            put(new, "__dict__", {**one.__dict__, **changes})
            return new

        return way

    def _of_slots(kind, names):
        make, places = object.__new__, {name: index for index, name in enumerate(names)}
        put = [getattr(kind, name).__set__ for name in names]  # past what makes it frozen
        got = attrgetter(*names) if len(names) > 1 else lambda one, name=names[0]: (getattr(one, name),)

        def way(one, changes):
            new, values = make(kind), list(got(one))
            for name, value in changes.items():
                if name not in places:
                    raise _unknown(kind, {name})
                values[places[name]] = value
            for into, value in zip(put, values, strict=True):
                into(new, value)
            return new

        return way

    def _unknown(kind, names):
        return TypeError(f"{kind.__name__} has no field {', '.join(sorted(names))}")
