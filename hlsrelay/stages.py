"""The stages between the source's playlist and ours, as generators that pull from one another.

    surveyed -> for each track: loaded -> numbered -> in_order(Downloading) -> in_order(Transcoding) -> published

Each stage takes one item at a time and gives one: a loss is a value (a Made without files), a Turn marks the end of a load and goes
through untouched. The look-ahead of `in_order` is what lets the loader go on while the encoder is busy, and what stops it in the end.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, TypeVar
from urllib.parse import urlsplit

from hlsrelay.clock import Clock, Nudges, Pacer
from hlsrelay.encoder import EncodeJob, Encoder
from hlsrelay.errors import ConfigError, EncodeError, SegmentLost, UpstreamError
from hlsrelay.failover import Standing, considered, hold_s, primary_seen, progressed, stall_s, wanted
from hlsrelay.hls.advance import advance
from hlsrelay.hls.parse import identity
from hlsrelay.hls.render import media_playlist
from hlsrelay.hls.window import Progress, expired
from hlsrelay.ladder import fitting
from hlsrelay.ledger import Ledger
from hlsrelay.media.decrypt import can_decrypt, decrypted
from hlsrelay.media.probe import PTS_MODULUS, Container, MediaError, MediaInfo, probe
from hlsrelay.model import (
    SOURCE,
    ByteRange,
    Desired,
    Entry,
    InitSection,
    Key,
    KeyPolicy,
    Made,
    MediaFile,
    Numbered,
    Presentation,
    Restart,
    Rung,
    Snapshot,
    Stream,
    Track,
    Traits,
    Turn,
)
from hlsrelay.storage import LocalStorage

DOWNLOADS_AHEAD = 3
"""Segments fetched at once: more would only share the same line."""
END_HOLD_TARGET_DURATIONS = 3
"""An encoder that restarts may write ENDLIST and go on: players wait this long before they give up, so ours is held back as long."""
LONGEST_ENCODE_TARGET_DURATIONS = 3
"""A ladder this late is given up for the segment: its rungs become a GAP, so that pass-through goes on."""

LARGEST_TIME_STAMP_STEP_S = 1.0
"""A larger step between two segments is no encoder's rounding: the time stamps begin anew."""
KEPT_PLAIN = 16
"""Decrypted segments kept for the encoder: more than can be under way, and the one before each."""

_SUFFIX = {
    Container.TS: "ts",
    Container.FMP4: "m4s",
    Container.AAC: "aac",
    Container.MP3: "mp3",
    Container.AC3: "ac3",
    Container.VTT: "vtt",
}
_SAFE_SUFFIXES = {"ts", "m4s", "mp4", "aac", "mp3", "ac3", "ec3", "vtt"}

A = TypeVar("A")
B = TypeVar("B")


class Source(Protocol):
    """What the stages need of the upstream."""

    async def survey(self, stream: Stream) -> Presentation:
        """Return what the source presents. Raises UpstreamError, ConfigError."""

    async def load(self, name: str) -> Snapshot:
        """Return the media playlist of a surveyed track. Raises UpstreamError."""

    async def fetch(self, uri: str, byterange: ByteRange | None, restart: Restart, deadline_s: float) -> int:
        """Fetch a segment whole. Raises SegmentLost."""


class Control(Protocol):
    """What the operator wants, as known now; never waits."""

    @property
    def stream(self) -> Stream:
        """The stream's fields, as last read."""


@dataclass
class Agreement:
    """What the tracks of one presentation decide together (RFC 8216 6.2.4): where they break off, and the target duration."""

    generation: int = 1
    target_duration_s: int = 0
    discontinuities: int | None = None
    """Where a track that comes later begins to count; None: as the source does."""


@dataclass(frozen=True)
class Tools:
    """What one stream's relay works with."""

    upstream: Source
    storage: LocalStorage
    encoder: Encoder
    control: Control
    clock: Clock
    nudges: Nudges = field(default_factory=Nudges)
    spare: Source | None = None
    """Looks at the primary while a backup is relayed; without it there is no way back."""


def surveyed_for(stream: Stream) -> tuple[object, ...]:
    """Return the wishes that a survey follows: where one changes, the source is surveyed again."""
    return stream.source, stream.variants, stream.headers, stream.proxy


class Choice:
    """Which source is relayed now (failover has the rules)."""

    def __init__(self, tools: Tools, last: str = "") -> None:
        self._tools = tools
        self._last = last
        self._standing: Standing | None = None
        self.target_duration_s = 0.0

    @property
    def standing(self) -> Standing:
        """The standing, for the operator's sources of now."""
        self._standing = wanted(self._standing, self._tools.control.stream, self._tools.clock.monotonic_s(), self._last)
        return self._standing

    @property
    def stream(self) -> Stream:
        """The operator's wishes, with the source that is to be relayed."""
        return replace(self._tools.control.stream, source=self.standing.current)

    def progressed(self) -> None:
        """The current source has brought something new."""
        self._take(progressed(self.standing, self._tools.clock.monotonic_s()))

    def considered(self) -> None:
        """Leave the current source if it has been silent for too long."""
        patience_s = stall_s(self._tools.control.stream, self.target_duration_s)
        self._take(considered(self.standing, patience_s, self._tools.clock.monotonic_s()))

    def primary_seen(self, newest: str | None) -> None:
        """Take a look at the primary into account."""
        stream = self._tools.control.stream
        patience_s, well_s = stall_s(stream, self.target_duration_s), hold_s(stream, self.target_duration_s)
        self._take(primary_seen(self.standing, newest, patience_s, well_s, self._tools.clock.monotonic_s()))

    def _take(self, standing: Standing) -> None:
        moved = self._standing is not None and standing.current != self._standing.current
        self._standing = standing
        if moved:
            self._last = standing.current
            self._tools.nudges.nudge()


@dataclass(frozen=True)
class Desk:
    """What the pipeline of one track works with."""

    tools: Tools
    track: Track
    stream: Stream
    """The wishes that the source was surveyed for."""
    ledger: Ledger
    pacer: Pacer
    agreement: Agreement
    choice: Choice
    alone: bool = True
    """Whether it is the presentation's only track: then a break found in the media needs nobody's agreement."""
    progress: Progress | None = None
    """Where the track was left."""

    @property
    def followed(self) -> bool:
        """Whether the operator still wants what was surveyed, and wants it to run."""
        now = self.choice.stream
        return now.desired is Desired.RUN and surveyed_for(now) == surveyed_for(self.stream)


@dataclass(frozen=True, slots=True)
class Load:
    """One turn's look at the source: a snapshot, or why there is none."""

    stream: Stream
    snapshot: Snapshot | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Clip:
    """A segment on disk, byte for byte, published name and all; *lost* says why there is none."""

    numbered: Numbered
    file: MediaFile | None = None
    init: bytes | None = None
    keys: tuple[Key, ...] = ()
    secrets: tuple[bytes, ...] = ()
    lost: str = ""


async def loaded(desk: Desk) -> AsyncGenerator[Load, None]:
    """Yield the track's playlist each time it is due, until the operator wants the stream stopped or another source."""
    async for _ in desk.pacer:
        if not desk.followed:
            return
        stream = desk.choice.stream
        try:
            snapshot = await desk.tools.upstream.load(desk.track.name)
        except UpstreamError as error:
            desk.pacer.failed()
            yield Load(stream, error=str(error))
        else:
            yield Load(stream, snapshot)


async def watched_primary(choice: Choice, tools: Tools) -> AsyncGenerator[None, None]:
    """Look at the primary now and then while a backup is relayed. Yields nothing: what it sees goes into *choice*."""
    if tools.spare is None or choice.standing.index == 0:
        return
    pacer = Pacer(tools.clock, tools.nudges)
    relayed = choice.stream
    async for _ in pacer:
        stream = tools.control.stream
        if stream.desired is Desired.STOP or choice.stream.source != relayed.source or choice.standing.index == 0:
            return
        try:
            await tools.spare.survey(stream)
            newest = (await tools.spare.load(SOURCE)).segments[-1]
        except (UpstreamError, ConfigError):
            choice.primary_seen(None)
        else:
            choice.primary_seen(f"{newest.sequence} {identity(newest)}")
    yield


async def numbered(loads: AsyncIterator[Load], desk: Desk) -> AsyncGenerator[Numbered | Turn, None]:
    """Yield each new segment under its number, then the Turn of its load."""
    position = desk.progress.position if desk.progress else None
    first_number = None if desk.progress else desk.ledger.first_free_number()
    clock, agreement = desk.tools.clock, desk.agreement
    ended_s: float | None = None
    async for load in loads:
        if (snapshot := load.snapshot) is None:
            yield Turn(load.stream, error=load.error)
            continue
        step = advance(position, snapshot, load.stream, clock.utc_now(), first_number=first_number, generation=agreement.generation)
        position = step.position
        agreement.generation = max(agreement.generation, position.generation)
        desk.pacer.loaded(changed=bool(step.fresh), target_duration_s=snapshot.target_duration_s, newest_s=snapshot.segments[-1].duration_s)
        for one in step.fresh:
            yield one
        now_s = clock.monotonic_s()
        ended_s = None if not snapshot.ended or step.fresh else now_s if ended_s is None else ended_s
        ended = ended_s is not None and now_s - ended_s >= END_HOLD_TARGET_DURATIONS * snapshot.target_duration_s
        yield Turn(load.stream, repairs=(*snapshot.repairs, *step.repairs), ended=ended)


async def in_order(items: AsyncGenerator[A, None], work: Callable[[A], Awaitable[B]], ahead: int) -> AsyncGenerator[B, None]:
    """Yield `await work(item)` for each item, in the items' order, with at most *ahead* under way before the one awaited.

    Closing it cancels what is under way and closes *items*; an exception of either comes out here, in its turn.
    """
    queue: asyncio.Queue[asyncio.Future[B] | None] = asyncio.Queue(ahead)
    under_way: set[asyncio.Future[B]] = set()

    async def feed() -> None:
        try:
            async for item in items:
                task = asyncio.ensure_future(work(item))
                under_way.add(task)
                await queue.put(task)
        except Exception as error:  # it comes out of the generator, in its turn
            failed: asyncio.Future[B] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            under_way.add(failed)
            await queue.put(failed)
        else:
            await queue.put(None)

    feeder = asyncio.create_task(feed())
    try:
        while (task := await queue.get()) is not None:
            result = await task
            under_way.discard(task)
            yield result
    finally:
        feeder.cancel()
        for one in under_way:
            one.cancel()
        await asyncio.gather(feeder, *under_way, return_exceptions=True)
        await items.aclose()


class Downloading:
    """Fetches segments (and their init sections, once each) to where they will be served from."""

    def __init__(self, desk: Desk) -> None:
        self._tools = desk.tools
        self._name = desk.track.name
        self._beside = _Beside(desk)

    async def __call__(self, item: Numbered | Turn) -> Clip | Turn:
        if isinstance(item, Turn):
            return item
        segment = item.segment
        if segment.gap:
            return Clip(item, lost="a gap of the source")
        deadline_s = max(2.0 * item.target_duration_s, 6.0)
        try:
            init = await self._beside.init(segment.init, item.number, deadline_s) if segment.init else None
            keys = [
                await self._beside.key(key, item, f"key-{item.number}-{index}.key", deadline_s) for index, key in enumerate(segment.keys)
            ]
            temp = self._tools.storage.temp(f"{self._name}-{item.number}")
            with _Growing(self._tools.storage, temp) as file:
                size = await self._tools.upstream.fetch(segment.uri, segment.byterange, file.restart, deadline_s)
            suffix = _suffix(file.head, segment.uri, encrypted=bool(segment.keys))
            self._tools.storage.commit(temp, f"{self._name}/{item.number}.{suffix}")
        except SegmentLost as error:
            return Clip(item, lost=str(error))
        except OSError as error:
            return Clip(item, lost=f"can't be stored: {error.strerror}")
        key_uris = tuple(extra.uri for _, extra in keys if extra)
        secrets = tuple(extra.body for _, extra in keys if extra)
        published = MediaFile(f"{item.number}.{suffix}", size, init.uri if init else None, key_uris)
        return Clip(item, published, init.body if init else None, tuple(key for key, _ in keys), secrets)


@dataclass(frozen=True, slots=True)
class _Extra:
    """A small file that segments need: an init section or a key; *uri* is its name in the track's folder."""

    uri: str
    body: bytes


class _Beside:
    """Fetches what segments need beside themselves, once each, and publishes it in the track's folder."""

    MOST = 16

    def __init__(self, desk: Desk) -> None:
        self._tools = desk.tools
        self._name = desk.track.name
        self._had: OrderedDict[InitSection, asyncio.Task[_Extra]] = OrderedDict()

    async def init(self, section: InitSection, number: int, deadline_s: float) -> _Extra:
        """Return an init section. Raises SegmentLost."""
        return await self._once(section, f"init-{number}.mp4", deadline_s)

    async def key(self, key: Key, item: Numbered, name: str, deadline_s: float) -> tuple[Key, _Extra | None]:
        """Return *key* as players of ours get it, and its file where we serve it. Raises SegmentLost.

        Only identity keys have a format that is known to us; keys of DRM systems are theirs to hand out.
        """
        if key.keyformat != "identity" or not key.uri or not key.uri.startswith(("http:", "https:")):
            return key, None
        if item.stream.keys is KeyPolicy.ORIGIN:
            return key, None
        extra = await self._once(InitSection(key.uri), name, deadline_s)
        return replace(key, uri=extra.uri), extra

    async def _once(self, section: InitSection, name: str, deadline_s: float) -> _Extra:
        task = self._had.get(section)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._had[section] = asyncio.ensure_future(self._fetched(section, name, deadline_s))
            while len(self._had) > self.MOST:
                self._had.popitem(last=False)
        return await asyncio.shield(task)

    async def _fetched(self, section: InitSection, name: str, deadline_s: float) -> _Extra:
        body = bytearray()

        def restart() -> Callable[[bytes], object]:
            body.clear()
            return body.extend

        await self._tools.upstream.fetch(section.uri, section.byterange, restart, deadline_s)
        self._tools.storage.write(f"{self._name}/{name}", bytes(body))
        return _Extra(name, bytes(body))


class _Growing:
    """A file that an attempt at a download fills, from its beginning each time; its first bytes are kept to tell what it is."""

    HEAD = 64 << 10

    def __init__(self, storage: LocalStorage, path: Path) -> None:
        self._file: BinaryIO = storage.open_temp(path)
        self.head = b""

    def __enter__(self) -> _Growing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def restart(self) -> Callable[[bytes], object]:
        self._file.seek(0)
        self._file.truncate()
        self.head = b""
        return self._write

    def _write(self, chunk: bytes) -> None:
        if len(self.head) < self.HEAD:
            self.head += chunk[: self.HEAD - len(self.head)]
        self._file.write(chunk)


def _suffix(head: bytes, uri: str, *, encrypted: bool) -> str:
    """Return the published name's suffix: by content, else what the source calls it if players know that. Raises SegmentLost."""
    try:
        container = probe(head).container
    except MediaError:
        container = Container.UNKNOWN
    if container is Container.UNKNOWN and not encrypted and head.lstrip()[:1] in (b"<", b"{", b"#"):
        raise SegmentLost(f"a text page, not media: it begins {head.lstrip()[:24]!r}")
    theirs = PurePosixPath(urlsplit(uri).path).suffix.lower().removeprefix(".")
    return _SUFFIX.get(container) or (theirs if theirs in _SAFE_SUFFIXES else "ts")


class Transcoding:
    """Makes the ladder's rungs of a clip, and reads from the media what the multivariant playlist says."""

    def __init__(self, desk: Desk) -> None:
        self._tools = desk.tools
        self._name = desk.track.name
        self._alone = desk.alone
        self._traits = Traits()
        self._previous: tuple[int, Path] | None = None
        self._ended_90k: tuple[int, int] | None = None

    async def __call__(self, item: Clip | Turn) -> Made | Turn:
        if isinstance(item, Turn):
            return item
        made, segment = item.numbered, item.numbered.segment
        entry = Entry(
            number=made.number,
            duration_s=segment.duration_s,
            discontinuity=made.discontinuity,
            program_date_time=made.program_date_time,
            files={},
            title=segment.title,
            tags=segment.tags,
            keys=item.keys,
        )
        if item.file is None:
            return Made(entry, made, lost=item.lost)
        wanted = made.stream.ladder if self._name == SOURCE else ()
        source, info = Path(), None
        if wanted or self._alone or made.discontinuity or self._traits.codecs is None:
            source, info = self._probed(item)
        broken = self._alone and not made.discontinuity and self._jumps(made.number, info)
        repairs: tuple[str, ...] = ()
        if broken:
            made, entry, repairs = replace(made, discontinuity=True), replace(entry, discontinuity=True), ("time_stamps_jumped",)
        files = {self._name: replace(item.file, traits=self._traits)}
        rungs: tuple[Rung, ...] = ()
        failed: Mapping[str, str] = {}
        if wanted and info and info.container is Container.TS:
            rungs = fitting(wanted, info.video.height if info.video else None)
            # Calls begin in the segments' order, and nothing above waits: what was noted last is the segment before.
            number, before = self._previous or (-1, None)
            previous = before if number == made.number - 1 and not made.discontinuity else None
            self._previous = (made.number, source)
            encoded, failed = await self._rungs(made, rungs, source, previous, info)
            files |= encoded
        elif wanted:
            failed = {"ladder": "a ladder is made of MPEG-TS only, in the clear or with AES-128 and keys=proxy"}
        entry = replace(entry, files=files, rungs=tuple(rung.name for rung in rungs))
        return Made(entry, made, failed=failed, received_bytes=item.file.size_bytes, repairs=repairs)

    def _jumps(self, number: int, info: MediaInfo | None) -> bool:
        """Return whether the media's time does not go on from the segment before: a break that the source did not tell (A10).

        Segments are noted in their order, because nothing above waits. Called for every segment.
        """
        before, self._ended_90k = self._ended_90k, None
        if info is None or info.video is None or not info.video.pts:
            return False
        span = (info.video.last_pts_90k - info.video.first_pts_90k) % PTS_MODULUS
        frame = span // max(1, info.video.frame_count - 1)
        self._ended_90k = (number, (info.video.last_pts_90k + frame) % PTS_MODULUS)
        if before is None or before[0] != number - 1:
            return False
        jump = (info.video.first_pts_90k - before[1] + PTS_MODULUS // 2) % PTS_MODULUS - PTS_MODULUS // 2
        return abs(jump) > LARGEST_TIME_STAMP_STEP_S * 90_000

    def _probed(self, clip: Clip) -> tuple[Path, MediaInfo | None]:
        """Return what the clip is and where it lies in the clear: AES-128 is decrypted into a file of its own, for the encoder."""
        storage = self._tools.storage
        assert clip.file is not None
        name = f"{self._name}/{clip.file.uri}"
        path = storage.folder / name
        try:
            data = storage.read(name) or b""
            if clip.keys:
                if not can_decrypt(clip.keys) or not clip.secrets:
                    return path, None
                data = decrypted(data, clip.keys[0], clip.secrets[0])
                path = storage.temp(f"plain-{clip.numbered.number}")
                path.write_bytes(data)
                storage.temp(f"plain-{clip.numbered.number - KEPT_PLAIN}").unlink(missing_ok=True)
            info = probe(data, clip.init)
        except (MediaError, OSError):
            return path, None
        self._traits = _traits(info)
        return path, info

    async def _rungs(
        self, made: Numbered, rungs: tuple[Rung, ...], source: Path, previous: Path | None, info: MediaInfo
    ) -> tuple[Mapping[str, MediaFile], Mapping[str, str]]:
        """Return the rungs' files, published names and all, and why the others failed."""
        if not rungs:
            return {}, {}
        storage = self._tools.storage
        temps = {rung.name: storage.temp(f"{rung.name}-{made.number}.ts") for rung in rungs}
        job = EncodeJob(
            stream_id=made.stream.id,
            number=made.number,
            source=source,
            previous=previous,
            info=info,
            duration_s=made.segment.duration_s,
            outputs=temps,
            rungs=rungs,
        )
        give_up_s = max(LONGEST_ENCODE_TARGET_DURATIONS * made.target_duration_s, 10.0)
        files = {}
        try:
            async with asyncio.timeout(give_up_s):
                encoded = await self._tools.encoder.encode(job)
            for rung in rungs:
                if (output := encoded.outputs.get(rung.name)) is not None:
                    name = f"{made.number}.ts"
                    size = temps[rung.name].stat().st_size
                    storage.commit(temps[rung.name], f"{rung.name}/{name}")
                    files[rung.name] = MediaFile(name, size, traits=_traits(output))
            return files, encoded.failed
        except TimeoutError:
            reason = f"no room or no end within {give_up_s:.0f} s"
        except EncodeError as error:
            reason = str(error)
        except OSError as error:
            reason = f"can't be stored: {error.strerror}"
        return files, {rung.name: reason for rung in rungs if rung.name not in files}


def _traits(info: MediaInfo) -> Traits:
    codecs = ",".join(track.codecs for track in (info.video, info.audio) if track and track.codecs)
    if info.video is None:
        return Traits(codecs or None)
    return Traits(codecs or None, info.video.width or None, info.video.height or None, info.video.frame_rate)


def publish(progress: Progress, ledger: Ledger, tools: Tools) -> Progress:
    """Record, then show, then sweep. Returns the progress without what was swept. Raises OSError where the disk says no."""
    ledger.record(progress)
    for rendition in progress.renditions:
        tools.storage.publish(f"{rendition.name}/index.m3u8", media_playlist(progress, rendition.name))
    return swept(progress, tools)


def swept(progress: Progress, tools: Tools) -> Progress:
    """Remove the files that nobody may ask for any more (hls-rules A7)."""
    progress, gone = expired(progress, tools.clock.utc_now())
    tools.storage.remove(gone)
    return progress


async def merged(sources: list[AsyncGenerator[A, None]]) -> AsyncGenerator[A, None]:
    """Yield what *sources* yield, as it comes, until all are done; closing it closes them. An exception of one comes out here."""
    queue: asyncio.Queue[tuple[A] | Exception | None] = asyncio.Queue(1)

    async def feed(source: AsyncGenerator[A, None]) -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    await queue.put((item,))
        except Exception as error:  # it comes out of the generator
            await queue.put(error)
        else:
            await queue.put(None)

    feeders = [asyncio.create_task(feed(source)) for source in sources]
    running = len(feeders)
    try:
        while running:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                running -= 1
            else:
                yield found[0]
    finally:
        for feeder in feeders:
            feeder.cancel()
        await asyncio.gather(*feeders, return_exceptions=True)
