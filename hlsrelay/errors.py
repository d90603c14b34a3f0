"""Errors, sorted by whose fault it is and what happens next. Foreign exceptions are translated where their library is imported."""

from __future__ import annotations

from collections.abc import Sequence


class HlsRelayError(Exception):
    """Anything hlsrelay says on purpose: one line, in the operator's words, never a traceback."""

    exit_code = 1


class ConfigError(HlsRelayError):
    """The operator wrote something that can't work. The text says what to change. Exit code 2."""

    exit_code = 2


class UnknownStream(HlsRelayError):
    """No stream of that id is registered. Exit code 3."""

    exit_code = 3


class RegistryUnavailable(HlsRelayError):
    """Redis did not answer when it was needed (start-up or a command). A running relay never raises this. Exit code 4."""

    exit_code = 4


class ResourceBusy(HlsRelayError):
    """A port, a data directory or a stream is in somebody else's hands, or may not be written. Exit code 5."""

    exit_code = 5


class Superseded(HlsRelayError):
    """A stream that we relayed is another node's now: nothing more may be written of it. Exit code 5."""

    exit_code = 5


class MissingProgram(HlsRelayError):
    """A program that is needed (ffmpeg, redis-server) is neither on PATH nor embedded. Exit code 6."""

    exit_code = 6


class UpstreamError(HlsRelayError):
    """The source did not give a usable playlist this time: the last good one stays and the next tick tries again."""


class TrackGone(UpstreamError):
    """The source has no longer a track that it had: it is to be surveyed again."""


class PlaylistError(UpstreamError):
    """The source answered, but what it sent is no HLS playlist that can be relayed."""


class AddressRefused(UpstreamError):
    """The source, or a redirect or URI of it, leads to an address that this installation does not allow."""


class SegmentLost(HlsRelayError):
    """A segment could not be had whole within its deadline. It becomes a GAP, never a 404."""


class ChildError(HlsRelayError):
    """A child process failed, hung or hit a limit; what it was, how it ended and its last words.

    *ended* is why it was stopped (`processes`): deadline, hung, memory, ...; empty where it never ran.
    """

    def __init__(self, reason: str, *, argv: Sequence[str], exit_code: int | None, stderr_tail: str, ended: str = "") -> None:
        super().__init__(reason)
        self.ended = ended
        self.argv = tuple(argv)
        self.child_exit_code = exit_code
        self.stderr_tail = stderr_tail


class StorageAway(HlsRelayError):
    """Storage that nodes share does not do now what it is asked for: what is published waits, and is tried again."""


class EncodeError(HlsRelayError):
    """One segment could not be encoded to one or more rungs: those become a GAP, pass-through goes on."""

    def __init__(self, reason: str, *, argv: Sequence[str] = (), exit_code: int | None = None, stderr_tail: str = "") -> None:
        super().__init__(reason)
        self.argv = tuple(argv)
        self.child_exit_code = exit_code
        self.stderr_tail = stderr_tail


class PoolLost(HlsRelayError):
    """A pool of workers does not do a job, for a reason that says nothing of the job: it is done here, as far as there is time."""
