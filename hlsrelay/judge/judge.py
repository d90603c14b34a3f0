"""The fold: observations in, findings out.

The caller says when each request *began* (`at_s`, any clock that does not step back), one after the other for the playlists of a
presentation: what one answer said was true before the next request began. All that needs a moment in time leans to the server's favour.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from hlsrelay.judge import evidence, variants
from hlsrelay.judge.findings import Complaint, Docket, Finding, error, warning
from hlsrelay.judge.listed import Listed, MediaPlaylist, Multivariant, Resource, Span, Variant, unquoted
from hlsrelay.judge.reading import read
from hlsrelay.judge.tape import Known, Tape
from hlsrelay.media.info import MediaInfo

RIGHT_TYPES = ("application/vnd.apple.mpegurl", "audio/mpegurl")
NEAR_TYPES = ("application/x-mpegurl", "audio/x-mpegurl")
GONE = (401, 403, 404, 410)
REMEMBERED = 4096
VIEWERS_BELIEVE = 1.25
"""A live variant may overshoot the BANDWIDTH that a viewer was told when he came by a quarter [A 9.x]: he is not told again."""


@dataclass(frozen=True, slots=True)
class Retiring:
    """A resource that no playlist lists any more and that must still be fetchable until *due_s* (A7)."""

    resource: Resource
    due_s: float


@dataclass
class _Presentation:
    """A multivariant playlist: its variants as first and as last loaded."""

    where: str
    first: dict[str, Variant] = field(default_factory=dict)
    last: dict[str, Variant] = field(default_factory=dict)
    variables: tuple[tuple[str, str], ...] = ()
    loaded_s: float = 0.0
    body: bytes = b""
    said: set[tuple[str, Complaint]] = field(default_factory=set)

    def anew(self, uri: str, complaints: Iterable[Complaint]) -> list[Complaint]:
        """Return those of *complaints* about *uri* that were not made before: the same media are looked at again and again."""
        if len(self.said) > REMEMBERED:
            self.said.clear()
        fresh = [one for one in complaints if (uri, one) not in self.said]
        self.said.update((uri, one) for one in fresh)
        return fresh


class Judge:
    """Watches any number of playlists. Nothing is fetched here; `findings` is what was found so far."""

    def __init__(self) -> None:
        self._docket = Docket()
        self._tapes: dict[str, Tape] = {}
        self._presentations: dict[str, _Presentation] = {}
        self._retiring: dict[Resource, tuple[float, str]] = {}
        self._seen: set[str] = set()
        self._whole: set[str] = set()
        self._never_had: set[Resource] = set()
        self._had: OrderedDict[Resource, tuple[int | None, MediaInfo | None]] = OrderedDict()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every finding, in the order of first appearance; one that repeats has a count."""
        return self._docket.findings

    def news(self) -> tuple[Finding, ...]:
        """Return the findings that are new since this was called last."""
        return self._docket.news()

    def latest(self, where: str) -> MediaPlaylist | Multivariant | None:
        """Return what *where* said last; None where it never was a playlist."""
        if where in self._presentations:
            return Multivariant(tuple(self._presentations[where].last.values()))
        return self._tapes[where].newest if where in self._tapes else None

    def fresh(self, where: str) -> tuple[Listed, ...]:
        """Return the segments that the last load of *where* brought."""
        return self._tapes[where].fresh if where in self._tapes else ()

    def retiring(self, at_s: float) -> tuple[Retiring, ...]:
        """Return what must still be fetchable though no playlist lists it, and forget what need not be any more."""
        self._retiring = {one: (due_s, where) for one, (due_s, where) in self._retiring.items() if due_s > at_s}
        return tuple(Retiring(one, due_s) for one, (due_s, _) in self._retiring.items())

    # Playlists ------------------------------------------------------------------------------------------------------------------------

    def playlist(self, where: str, body: bytes, headers: Mapping[str, str] | None, at_s: float, *, base: str = "") -> None:
        """Fold one answer for the playlist *where*; *base* is its URL after redirects. *headers*, in lower case, are None for a file."""
        if headers is not None:
            self._say(where, _delivery(where, headers), at_s)
        tape, presentation = self._tapes.get(where), self._presentations.get(where)
        if tape is not None and not tape.is_news(body):
            self._say(where, tape.unchanged(at_s), at_s)
            self._compare(where, at_s)
            return
        if presentation is not None and presentation.body == body:
            presentation.loaded_s = at_s
            self._against_media(presentation, at_s)
            return
        imported = {name: value for one in self._presentations.values() if where in one.last for name, value in one.variables}
        reading = read(body, base or where, imported)
        if not reading.whole and where in self._whole:
            self._say(where, [error("A3", "cut off: the last line has no end", repr(body[-40:].decode(errors="replace")))], at_s)
            return
        self._say(where, reading.complaints, at_s)
        if reading.playlist is None:
            return
        if reading.whole:
            self._whole.add(where)
        else:  # many servers never write the last line's end: of those a cut shows by what it does to the segments
            self._say(where, [warning("A1", "the last line has no end")], at_s)
        self._seen.add(where)
        if isinstance(reading.playlist, Multivariant):
            if tape is not None:
                self._say(where, [error("A3", "a media playlist turns into a multivariant one")], at_s)
                return
            self._multivariant(presentation or _Presentation(where), reading.playlist, body, at_s)
        elif presentation is not None:
            self._say(where, [error("A3", "a multivariant playlist turns into a media playlist")], at_s)
        else:
            self._media_playlist(where, reading.playlist, body, at_s)

    def unavailable(self, where: str, status: int, reason: str, at_s: float) -> None:
        """Fold a load of the playlist *where* that gave none; *status* is 0 where there was no answer."""
        if self._is_over(where):  # who has ended may go [RFC 8216 6.2.2]
            return
        if where in self._seen and status in GONE:
            said = error("A3", "the playlist is gone", reason)
        elif status in GONE:
            said = error("A8", "a listed playlist can't be fetched", reason)
        else:
            said = warning("A8", "a playlist can't be loaded", reason)
        self._say(where, [said], at_s)

    def _is_over(self, where: str) -> bool:
        """Return whether *where*, or all that it names, has ended."""
        presentation = self._presentations.get(where)
        tapes = [self._tapes.get(name) for name in (presentation.last if presentation else [where])]
        return bool(tapes) and all(tape is not None and tape.newest is not None and tape.newest.ended for tape in tapes)

    def _media_playlist(self, where: str, playlist: MediaPlaylist, body: bytes, at_s: float) -> None:
        tape = self._tapes.setdefault(where, Tape())
        self._say(where, tape.load(playlist, body, at_s), at_s)
        for known in tape.left:
            due_s = max(known.due_s or 0.0, self._retiring.get(known.listed.resource, (0.0, ""))[0])
            if not known.listed.gap and known.listed.resource not in self._never_had:
                self._retiring[known.listed.resource] = (due_s, where)
        for segment in playlist.segments if tape.fresh else ():
            self._retiring.pop(segment.resource, None)
        self._compare(where, at_s)
        for segment in tape.fresh:  # what another playlist lists too was fetched for that one, maybe
            if segment.resource in self._had:
                size, info = self._had[segment.resource]
                self._had_whole(where, tape, tape.known[segment.sequence], size, info, at_s)

    def _multivariant(self, presentation: _Presentation, playlist: Multivariant, body: bytes, at_s: float) -> None:
        self._presentations[presentation.where] = presentation
        self._say(presentation.where, variants.stated(playlist), at_s)
        presentation.last = {variant.uri: variant for variant in playlist.variants}
        presentation.first = presentation.last | presentation.first
        presentation.loaded_s, presentation.body, presentation.variables = at_s, body, playlist.variables
        self._against_media(presentation, at_s)

    def _compare(self, where: str, at_s: float) -> None:
        for presentation in self._presentations.values():
            variant = presentation.last.get(where)
            tape = self._tapes.get(where)
            if variant is None or tape is None:
                continue
            for other in presentation.last.values():
                theirs = self._tapes.get(other.uri)
                if theirs is not None and other.uri != where:
                    self._say(where, variants.agree(tape, variant, theirs, other), at_s)

    def _against_media(self, presentation: _Presentation, at_s: float, only: str = "") -> None:
        """Hold what the STREAM-INFs say against what is known of the media of all, or *only* one."""
        for uri, variant in presentation.last.items():
            tape = self._tapes.get(uri)
            if tape is None or variant.inf is None or only not in ("", uri):
                continue
            if tape.loaded_s >= presentation.loaded_s:  # else it may list more than is known
                self._say(uri, presentation.anew(uri, variants.media_against(variant.inf, tape, presentation.loaded_s)), at_s)
            group = unquoted(variant.inf.get("AUDIO", ""))
            beside = [one.uri for one in presentation.last.values() if one.inf is None and (one.type, one.group) == ("AUDIO", group)]
            sounds = [self._tapes[one] for one in beside if one in self._tapes]
            self._say(uri, presentation.anew(uri, variants.bitrate(variant.inf, tape, presentation.loaded_s, sounds)), at_s)
            told = (presentation.first[uri].inf or {}).get("BANDWIDTH")
            peak_bps, number = variants.peak(tape, at_s, ever=True)
            if told and peak_bps > VIEWERS_BELIEVE * int(told) and told != variant.inf.get("BANDWIDTH"):
                detail = f"BANDWIDTH={told}, segments up to {number} have {peak_bps:.0f} bit/s"
                self._say(uri, [warning("A21", "far above the BANDWIDTH that early viewers were told", detail)], at_s)

    # Media ----------------------------------------------------------------------------------------------------------------------------

    def media(
        self,
        uri: str,
        status: int,
        size: int | None,
        info: MediaInfo | None,
        at_s: float,
        *,
        span: Span | None = None,
        broken: str = "",
        redirected: bool = False,
    ) -> None:
        """Fold one fetch of a segment, begun at *at_s*. *info* is None where it was not probed, *size* where it is not known.

        *status* is 0 where no whole answer came; *broken* then says why, or why the bytes are no media.
        """
        resource = Resource(uri, span)
        places = [(where, tape, known) for where, tape in self._tapes.items() for known in _listing(tape, resource)]
        if status not in (200, 206) or broken:
            self._not_had(resource, places, status, broken, at_s)
            return
        self._had[resource] = (size, info)
        while len(self._had) > REMEMBERED:
            self._had.popitem(last=False)
        for where, tape, known in places:
            if redirected:
                self._say(where, [warning("A22", "media are redirected", f"segment {known.listed.sequence}")], at_s)
            if span is not None and size is not None and size != span.length:
                detail = f"segment {known.listed.sequence}: {size} bytes for a range of {span.length}"
                self._say(where, [error("A8", "a listed segment is not complete", detail)], at_s)
                continue
            self._had_whole(where, tape, known, size, info, at_s)

    def _had_whole(self, where: str, tape: Tape, known: Known, size: int | None, info: MediaInfo | None, at_s: float) -> None:
        known.size = size if size is not None else known.size
        if info is not None:
            known.info = info
            self._probed(where, tape, known, at_s)
        for presentation in self._presentations.values():
            if where in presentation.last:  # sound counts in every variant that it plays with
                self._against_media(presentation, at_s, only=where if presentation.last[where].inf is not None else "")

    def _not_had(self, resource: Resource, places: list[tuple[str, Tape, Known]], status: int, broken: str, at_s: float) -> None:
        why = broken or f"HTTP {status}"
        listed = [(where, known) for where, _, known in places if known.gone_after_s is None and not known.listed.gap]
        for where, known in listed:
            self._never_had.add(resource)
            here = f"segment {known.listed.sequence}: {why}"
            if status in GONE:
                self._say(where, [error("A11", "a listed segment is missing, and no GAP", here)], at_s)
            else:
                self._say(
                    where, [error("A8", "a listed segment is not complete" if status else "a listed segment can't be fetched", here)], at_s
                )
        due_s, where = self._retiring.get(resource, (0.0, ""))
        if not listed and at_s < due_s and (status in GONE or broken):
            detail = f"{variants.short(resource.uri)}: {why}, and it must stay for {due_s - at_s:.1f} s more"
            self._say(where, [error("A7", "a removed segment is gone too early", detail)], at_s)

    def _probed(self, where: str, tape: Tape, known: Known, at_s: float) -> None:
        if known.info is None:
            return
        self._say(where, evidence.alone(known.listed, known.size, known.info), at_s)
        number = known.listed.sequence
        for before, after in ((tape.known.get(number - 1), known), (known, tape.known.get(number + 1))):
            if before and after and not after.listed.discontinuity and not before.listed.gap and not after.listed.gap:
                self._say(where, evidence.between(before, after), at_s)
        for presentation in self._presentations.values():
            variant = presentation.last.get(where)
            if variant is None:
                continue
            for other in presentation.last.values():
                theirs = self._tapes.get(other.uri)
                if theirs is not None and other.uri != where and (their := variants.match(known.listed, tape, theirs)):
                    self._say(where, variants.in_step(known, their, variants.short(other.uri)), at_s)

    def _say(self, where: str, complaints: Iterable[Complaint], at_s: float) -> None:
        for complaint in complaints:
            self._docket.add(where, complaint, at_s)


def _listing(tape: Tape, resource: Resource) -> list[Known]:
    return [known for known in tape.known.values() if known.listed.resource == resource]


def _delivery(where: str, headers: Mapping[str, str]) -> Iterable[Complaint]:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in NEAR_TYPES:
        yield warning("A1", "a Content-Type that is not registered", kind)
    elif kind not in RIGHT_TYPES:
        yield error("A1", "the wrong Content-Type for a playlist", kind or "none")
    if not urlsplit(where).path.endswith((".m3u8", ".m3u")):
        yield warning("A1", "the playlist's path does not end in .m3u8")
    if headers.get("content-encoding", "").strip().lower() not in ("gzip", "x-gzip", "deflate", "br", "zstd"):
        yield warning("A22", "the playlist is not compressed for those who ask for it")
