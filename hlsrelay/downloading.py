"""The stage that fetches: segments, and what they need beside themselves, byte for byte to where they are served from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from hlsrelay.beside import KEY_BYTES, Beside, Need, in_the_clear
from hlsrelay.clock import Clock
from hlsrelay.desk import Desk
from hlsrelay.errors import SegmentLost
from hlsrelay.growing import Growing
from hlsrelay.hls.numbering import REMEMBERED
from hlsrelay.media.ends import Ends, Glimpse
from hlsrelay.media.probe import Container, MediaError, recognised
from hlsrelay.media.whole import cut_off
from hlsrelay.model import (
    Key,
    MediaFile,
    Numbered,
    Slice,
)

_SUFFIX = {
    Container.TS: "ts",
    Container.FMP4: "m4s",
    Container.AAC: "aac",
    Container.MP3: "mp3",
    Container.AC3: "ac3",
    Container.VTT: "vtt",
}
REFETCHED = "segment_refetched"
_SAFE_SUFFIXES = {"ts", "m4s", "mp4", "aac", "mp3", "ac3", "ec3", "vtt"}


@dataclass(frozen=True, slots=True)
class Clip:
    """A segment on disk, byte for byte, published name and all; *lost* says why there is none, *repairs* what it took to have it.

    *init* is the init section in the clear, None where nobody here can read it; *glimpse* what was seen of it on the way.
    """

    numbered: Numbered
    file: MediaFile | None = None
    init: bytes | None = None
    keys: tuple[Key, ...] = ()
    secrets: tuple[bytes, ...] = ()
    lost: str = ""
    repairs: tuple[str, ...] = ()
    glimpse: Glimpse | None = None


class Downloading:
    """Fetches segments (and their init sections, once each) to where they will be served from.

    A segment, with all that it needs, has DEADLINE_TARGET_DURATIONS once it has its turn (turns): what is finished behind it waits for
    that long, and players hold no more than three.
    """

    DEADLINE_TARGET_DURATIONS = 1.5
    SHORTEST_DEADLINE_S = 2.25
    PATIENCE_TARGET_DURATIONS = 1.0
    """So long a segment waits for its turn before that, where the process has all hands full."""

    def __init__(self, desk: Desk) -> None:
        self._tools = desk.tools
        self._name = desk.track.name
        self._alone = desk.alone
        self._beside = Beside(desk)
        self._digests = desk.digests
        self._lengths = _Lengths(desk.tools.clock)
        self._since = 0
        self._begun = 0
        self._had = False
        """Whether any was had, so that players may be there."""

    @classmethod
    def deadline_s(cls, target_duration_s: float) -> float:
        """Return how long a segment may take."""
        return max(cls.DEADLINE_TARGET_DURATIONS * target_duration_s, cls.SHORTEST_DEADLINE_S)

    async def __call__(self, item: Numbered) -> Clip:
        if item.discontinuity:  # calls begin in the items' order
            self._since = item.number
        segment = item.segment
        if segment.gap:
            return Clip(item, lost="a gap of the source")
        if item.slice and not item.slice.path:
            return Clip(item, lost="too long, and it could not be had to be cut")
        self._begun += 1
        try:
            await self._tools.turns.begin(0 if self._had else self._begun, self.PATIENCE_TARGET_DURATIONS * item.target_duration_s)
            try:
                clip = await self._fetched(item)
            finally:
                self._tools.turns.end()
        finally:
            self._begun -= 1
        self._had = self._had or not clip.lost
        return clip

    async def _fetched(self, item: Numbered) -> Clip:
        segment = item.segment
        until_s = self._tools.clock.monotonic_s() + self.deadline_s(item.target_duration_s)
        need = Need(item, self._since, until_s)
        try:
            keys = await self._beside.keys(segment.keys, need, "key")
            init_keys = await self._beside.keys(segment.init.keys, need, "initkey") if segment.init else ()
            init = await self._beside.init(segment.init, need) if segment.init else None
            plain_init = in_the_clear(init, init_keys) if init else None
            with Growing(self._tools.storage, f"{self._name}-{item.number}") as file:
                if item.slice:
                    size = self._sliced(item.slice, file, last=not item.more)
                else:
                    size = await self._whole(item, file, plain_init, until_s)
                    self._digests[item.number] = file.digest.text
                    self._digests.pop(item.number - REMEMBERED, None)
                suffix = _suffix(file.head, segment.uri)
                name = self._tools.storage.named(str(item.number), suffix)
                file.commit(f"{self._name}/{name}")
        except SegmentLost as error:
            return Clip(item, lost=str(error))
        except OSError as error:
            return Clip(item, lost=f"can't be stored: {error.strerror}")
        published = MediaFile(
            name,
            size,
            init_uri=init.uri if init else None,
            key_uris=tuple(dict.fromkeys(one.file.uri for one in (*keys, *init_keys) if one.file)),
            init_keys=tuple(one.key for one in init_keys) if init else None,
        )
        self._beside.listed(item.number, published)
        secrets = tuple(one.file.body for one in keys if one.file)
        repairs = (REFETCHED,) if file.attempts > 1 else ()
        return Clip(item, published, plain_init, tuple(one.key for one in keys), secrets, repairs=repairs, glimpse=file.glimpse)

    async def _whole(self, item: Numbered, file: Growing, init: bytes | None, until_s: float) -> int:
        """Fetch a segment and return its length in bytes. Raises SegmentLost.

        What comes is looked at: servers give what an encoder still writes, or their error pages, as if nothing were wrong.
        """
        segment, fetch = item.segment, self._tools.upstream.fetch
        expected_s = 0.0 if item.i_frames_only or segment.byterange else segment.duration_s
        meter = self._lengths.meter(expected_s)

        def missing() -> str:
            if not segment.keys and (page := text_page(file.head)):
                return page
            if segment.byterange:
                return ""  # as long as the playlist says, to the byte
            encrypted = any(key.method in KEY_BYTES for key in segment.keys)
            if cut := cut_off(file.read, file.size, encrypted=encrypted):
                return cut
            if encrypted or not expected_s:
                return ""
            ends = Ends(file.read, file.size, init)
            if short := meter(ends.lasts_s(), file.digest.text):
                file.set_aside()
            looked_at = self._alone and not item.stream.ladder and not segment.keys  # else nobody asks, or reads it through
            file.glimpse = ends.glimpse() if looked_at and not short else None
            return short

        try:
            return await fetch(segment.uri, segment.byterange, file.restart, until_s - self._tools.clock.monotonic_s(), whole=missing)
        except SegmentLost:
            if not file.take_back():
                raise
            return file.size  # shorter than EXTINF says, and better than nothing

    def _sliced(self, piece: Slice, file: Growing, *, last: bool) -> int:
        """Write a slice of a segment that was fetched to be cut; returns its length in bytes."""
        path = self._tools.storage.temp(piece.path)
        with path.open("rb") as whole:
            whole.seek(piece.start)
            file.restart()(piece.head + whole.read(piece.end - piece.start))
        if last:
            path.unlink()
        return len(piece.head) + piece.end - piece.start


class _Lengths:
    """Holds media against EXTINF: a segment may be listed while it is still written, and served as far as it is, packet by packet.

    What does not grow any more is all that there is, and the source says what is not so: where that is usual, nobody waits for it.
    """

    LEAST_SHARE, LESS_SURE_SHARE, LESS_SURE_S = 0.5, 0.75, 1.0
    """Short is less than the first part of EXTINF, or less than the second where so much is missing: some sources round EXTINF up."""
    GROWN_SHARE = 0.9
    """Short is less than this of what was short before."""
    STILL_S = 1.5
    USUAL = 3

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wrong = 0

    def meter(self, expected_s: float) -> Callable[[float | None, str], str]:
        """Return what, told the length and the digest of what an attempt at one segment brought, says what is missing."""
        seen: dict[str, float] = {}

        def missing(found_s: float | None, digest: str) -> str:
            if found_s is None:
                return ""
            missing_s = expected_s - found_s
            least = self.LESS_SURE_SHARE if missing_s > self.LESS_SURE_S else self.LEAST_SHARE
            if found_s >= (self.GROWN_SHARE if seen else least) * expected_s:
                self._wrong = 0
                return ""
            now_s = self._clock.monotonic_s()
            if now_s - seen.setdefault(digest, now_s) >= self.STILL_S:
                self._wrong += 1
                return ""
            return "" if self._wrong >= self.USUAL else f"{found_s:.1f} s of media, where EXTINF says {expected_s:.1f}"

        return missing


def _container(head: bytes) -> Container:
    try:
        return recognised(head)
    except MediaError:
        return Container.UNKNOWN


def text_page(head: bytes) -> str:
    """Return what shows that this is no media; empty where it may be."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] not in (b"<", b"{", b"#") or _container(head) is not Container.UNKNOWN:
        return ""
    return f"a text page, not media: it begins {text[:24]!r}"


def _suffix(head: bytes, uri: str) -> str:
    """Return the published name's suffix: by content, else what the source calls it if players know that."""
    if known := _SUFFIX.get(_container(head)):
        return known
    theirs = PurePosixPath(urlsplit(uri).path).suffix.lower().removeprefix(".")
    return theirs if theirs in _SAFE_SUFFIXES else "ts"
