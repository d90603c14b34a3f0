"""What is to run, how heavy it is and who has it, brought up to date stream by stream as they change. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from hlsrelay.errors import ConfigError
from hlsrelay.fields import RELAY_FIELDS, Registered
from hlsrelay.ladder import weight_of
from hlsrelay.model import Desired, Stream


@dataclass(frozen=True, slots=True)
class Row:
    """A registered stream. *weight*: how heavy it is to relay, 0 where it is not to run. *wrong*: why its fields make no sense.

    *last*: the session that had it last, or has it; empty where none is known that did.
    """

    registered: Registered
    weight: int
    wrong: str = ""
    last: str = ""

    @property
    def session(self) -> str:
        """The session that has it, by its hash."""
        return self.registered.fields.get("session", "")


class Board:
    """All registered streams; *understood* returns what a hash describes, or raises ConfigError."""

    def __init__(self, understood: Callable[[Registered], Stream]) -> None:
        self.rows: dict[str, Row] = {}
        self.wrong: set[str] = set()
        self.total = 0
        """What all that is to run weighs together."""
        self._understood = understood
        self._to_run: dict[str, dict[str, None]] = {}
        self._wanted: dict[str, dict[str, None]] = {}

    def take(self, stream_id: str, registered: Registered | None) -> None:
        """Take a stream's hash, None where it is gone. What *understood* raises but ConfigError comes out, and the stream is left out."""
        before = self.rows.pop(stream_id, None)
        if before is not None:
            self.total -= before.weight
            self.wrong.discard(stream_id)
            _without(self._to_run, before.session, stream_id)
            _without(self._wanted, before.registered.fields.get("wanted", ""), stream_id)
        if registered is None:
            return
        if before is not None and _wishes(before.registered) == _wishes(registered):  # as with nearly each change
            weight, wrong = before.weight, before.wrong
        else:
            weight, wrong = self._weighed(registered)
        if wrong:
            self.wrong.add(stream_id)
        row = Row(registered, weight, wrong, registered.fields.get("session") or (before.last if before else ""))
        self.rows[stream_id] = row
        self.total += weight
        if weight:
            self._to_run.setdefault(row.session, {})[stream_id] = None
            if wanted := registered.fields.get("wanted", ""):
                self._wanted.setdefault(wanted, {})[stream_id] = None

    def _weighed(self, registered: Registered) -> tuple[int, str]:
        try:
            stream = self._understood(registered)
            return weight_of(stream.ladder) if stream.desired is Desired.RUN else 0, ""
        except ConfigError as error:
            return 0, str(error)

    def of(self, session: str) -> list[Row]:
        """Return what is to run and *session* has."""
        return [self.rows[stream_id] for stream_id in self._to_run.get(session, ())]

    def wanted_by(self, session: str) -> list[Row]:
        """Return what is to run and *session* asks for."""
        return [self.rows[stream_id] for stream_id in self._wanted.get(session, ())]

    def free(self, living: Collection[str]) -> Iterator[Row]:
        """Yield what is to run and no *living* session has."""
        for session in [session for session in self._to_run if session not in living]:
            yield from self.of(session)


def _wishes(registered: Registered) -> dict[str, str]:
    """Return the operator's part of a hash, which alone says what is to be relayed."""
    return {name: value for name, value in registered.fields.items() if name not in RELAY_FIELDS}


def _without(index: dict[str, dict[str, None]], key: str, stream_id: str) -> None:
    """Take a stream out of an index, and its key where nothing is left there."""
    if (found := index.get(key)) is not None:
        found.pop(stream_id, None)
        if not found:
            del index[key]
