"""The stage that looks into a segment: what the multivariant playlist says of it, whether its time goes on, and the ladder's rungs."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zlib import crc32

from hlsrelay.desk import Desk
from hlsrelay.downloading import Clip
from hlsrelay.encoder import Encoded
from hlsrelay.errors import EncodeError
from hlsrelay.joints import Done
from hlsrelay.ladder import fitting
from hlsrelay.media.decrypt import can_decrypt, decrypted
from hlsrelay.media.edits import with_edits
from hlsrelay.media.ends import Ends
from hlsrelay.media.fragment import parted, without_negative_offsets
from hlsrelay.media.grid import first_sample
from hlsrelay.media.probe import PTS_MODULUS, AudioInfo, Container, MediaError, MediaInfo, VideoInfo, probe
from hlsrelay.model import (
    SOURCE,
    Entry,
    Made,
    MediaFile,
    Numbered,
    Rung,
    Traits,
)
from hlsrelay.recipe import EncodeJob, container_of
from hlsrelay.scheduling import AT_ONCE
from hlsrelay.values import replace

LARGEST_TIME_STAMP_STEP_S = 1.0
"""A larger step between two segments is no encoder's rounding: the time stamps begin anew."""
LOWEST_FRAME_RATE = 10.0
"""With fewer pictures a second, those that head and tail show may be too far from the first and the last."""
READ_THROUGH_EVERY = 32
"""One segment in so many is read through where head and tail would do: what changes in between is seen then, such as sound that went."""
KEPT_PLAIN = 32
"""Segments kept for the encoder: more than can be under way, and those before each."""
MOST_BEFORE = 12
"""Segments before one, back to where decoding can begin: a GOP that is longer is not made rungs of."""


_NOTHING: Mapping[str, Any] = MappingProxyType({})
_NO_FILE = Path()
_NOTHING_ENCODED = Encoded(_NOTHING, _NOTHING)
_Rungs = tuple[Mapping[str, MediaFile], Encoded, Mapping[str, bytes]]


class Transcoding:
    """Makes the ladder's rungs of a clip, and reads from the media what the multivariant playlist says: at once where it makes none."""

    def __init__(self, desk: Desk) -> None:
        self._tools = desk.tools
        self._name = desk.track.name
        self._alone = desk.alone
        self._turn = crc32(f"{desk.stream.id}/{self._name}".encode())  # streams that count alike are not all read through at once
        self._traits = Traits()
        self._before: list[tuple[int, Path, bool]] = []
        """Number and file of the last segments, and whether decoding can begin in them; the last one in which it can comes first."""
        self._shape: VideoInfo | None = None
        self._ended_90k: tuple[int, int] | None = None
        self._fitting: tuple[Rung, ...] = ()
        self._plain: deque[Path] = deque()
        self._init: tuple[bytes, Path] | None = None
        self._beginning = AT_ONCE if desk.progress is None or desk.progress.position.withdrawn else 0
        self._sound: tuple[AudioInfo, int] | None = None
        for left in self._tools.storage.temp("").glob(f"plain@{self._name}@*"):  # by the pipeline before, which is closed
            left.unlink(missing_ok=True)

    def __call__(self, item: Clip) -> Awaitable[Made]:
        made, segment = item.numbered, item.numbered.segment
        entry = Entry(
            number=made.number,
            duration_s=made.duration_s,
            discontinuity=made.discontinuity,
            program_date_time=made.program_date_time,
            files={},
            title=segment.title,
            tags=segment.tags,
            keys=item.keys,
        )
        if item.file is None:
            return Done(Made(entry, made, lost=item.lost))
        wanted = made.stream.ladder if self._name == SOURCE else ()
        source, info, times = _NO_FILE, None, None
        through = bool(wanted) or made.discontinuity or self._traits.codecs is None or (made.number + self._turn) % READ_THROUGH_EVERY == 0
        if self._alone and not through:
            times = self._glimpsed(item)
            through = times is None and self._traits.width is not None  # sound alone has no times that are looked at
        if through and (self._alone or wanted or made.discontinuity or self._traits.codecs is None):
            source, info = self._probed(item, keeps=bool(wanted))
            times = _times(info)
        broken = self._alone and not made.discontinuity and self._jumps(made.number, times)
        repairs = item.repairs
        if broken:
            made, entry = replace(made, discontinuity=True), replace(entry, discontinuity=True)
            repairs = (*repairs, "time_stamps_jumped")
        files = {self._name: replace(item.file, traits=self._traits)}
        done = partial(_made, entry, made, files, item.file.size_bytes, repairs)
        if wanted and info and info.container in (Container.TS, Container.FMP4):
            rungs = self._fitting = fitting(wanted, info.video.height if info.video else None)
            # Calls come in the segments' order, and nothing above waits: what was noted last is the segment before.
            before = self._to_decode_before(made, source, info.video)
            sample = self._first_sample(info.audio, anew=made.discontinuity)
            if before is not None:
                return _laddered(done, rungs, partial(self._rungs, made, rungs, source, before, info, item.init, sample))
            return Done(done(rungs, Encoded({}, {rung.name: "it begins within a GOP whose beginning is not to be had" for rung in rungs})))
        if wanted and info is None and self._fitting:  # one segment that can't be read: a GAP in each rung, the ladder stays
            return Done(done(self._fitting, Encoded({}, {rung.name: "the segment can't be read" for rung in self._fitting})))
        if wanted:
            why = "a ladder is made of MPEG-TS and fMP4 only, in the clear or with AES-128 and keys=proxy"
            return Done(done((), Encoded({}, {"ladder": why})))
        return Done(done())

    def _jumps(self, number: int, times: tuple[int, int] | None) -> bool:
        """Return whether the media's time does not go on from the segment before: a break that the source did not tell (A10).

        *times*: when its pictures begin and end. Segments are noted in their order, because nothing above waits. Called for every segment.
        """
        before, self._ended_90k = self._ended_90k, None
        if times is None:
            return False
        self._ended_90k = (number, times[1])
        if before is None or before[0] != number - 1:
            return False
        jump = (times[0] - before[1] + PTS_MODULUS // 2) % PTS_MODULUS - PTS_MODULUS // 2
        return abs(jump) > LARGEST_TIME_STAMP_STEP_S * 90_000

    def _glimpsed(self, clip: Clip) -> tuple[int, int] | None:
        """Return when the pictures of a clip begin and end, by its head and tail; None where it has to be read through to know.

        That is also where it is not what was before it: what the multivariant playlist says is then read anew.
        """
        traits, file = self._traits, clip.file
        if clip.keys or file is None or (traits.frame_rate or 0.0) < LOWEST_FRAME_RATE:
            return None
        found = clip.glimpse
        if found is None:
            try:
                with (self._tools.storage.folder / self._name / file.uri).open("rb", buffering=0) as source:
                    found = Ends(lambda at, length: os.pread(source.fileno(), length, at), file.size_bytes, clip.init).glimpse()
            except OSError:
                return None
        known = (traits.codecs or "").split(",")
        if found is None or any(one not in known for one in found.codecs):
            return None
        if found.size and found.size != (traits.width, traits.height):
            return None
        frame_90k = round(90_000 / (traits.frame_rate or LOWEST_FRAME_RATE))
        return found.first_pts_90k, (found.last_pts_90k + frame_90k) % PTS_MODULUS

    def _to_decode_before(self, made: Numbered, source: Path, video: VideoInfo | None) -> tuple[Path, ...] | None:
        """Return the segments before one, from the last on in which decoding can begin; None where it can nowhere, not in itself either.

        Called for every segment, in their order.
        """
        if not self._before or self._before[-1][0] != made.number - 1 or made.discontinuity:
            self._before = []
        before, enters = self._before, video is None or video.random_access
        self._before = [*([] if enters else before), (made.number, source, enters)][-MOST_BEFORE:]
        return tuple(path for _, path, _ in before) if enters or any(one for _, _, one in before) else None

    def _first_sample(self, audio: AudioInfo | None, *, anew: bool) -> int:
        """Return which sample the segment's sound begins with; *anew*: its time stamps begin anew. Called for every segment."""
        if audio is None:
            return 0
        sample = first_sample(audio, None if anew else self._sound)
        self._sound = (audio, sample)
        return sample

    def _probed(self, clip: Clip, *, keeps: bool) -> tuple[Path, MediaInfo | None]:
        """Return what the clip is and where it lies: where the encoder *keeps* to it and players have it otherwise, in a copy."""
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
            info = self._shaped(probe(data, clip.init))
            if info.container is Container.FMP4 and info.video is None and info.audio is None:
                return path, None  # an init section that nobody here can read
            for_encoder = without_negative_offsets(data) if keeps and info.container is Container.FMP4 else data
            if keeps and (clip.keys or for_encoder is not data):
                path = self._kept(for_encoder, f"{clip.numbered.number}")
        except (MediaError, OSError):
            return path, None
        if info.container in (Container.TS, Container.UNKNOWN) and info.video is None and info.audio is None:
            return path, None  # noise, or tables without media: what the source is hasn't changed by that
        self._traits = _traits(info)
        return path, info

    def _shaped(self, info: MediaInfo) -> MediaInfo:
        """Return *info* with the shape of the pictures before it, where it is cut so that no sequence header is in it."""
        video, shape = info.video, self._shape
        if video is None:
            return info
        if video.height:
            self._shape = video
        elif shape is not None:
            known = {name: getattr(shape, name) for name in ("codecs", "width", "height", "sar", "interlaced")}
            return replace(info, video=replace(video, **known))
        return info

    def _kept(self, plain: bytes, name: str) -> Path:
        """Write a file in the clear to where the encoder finds it, and forget the oldest."""
        path = self._tools.storage.temp(f"plain@{self._name}@{name}")
        self._plain.append(path)
        path.write_bytes(plain)
        if len(self._plain) > KEPT_PLAIN:
            self._tools.storage.discard(self._plain.popleft())
        return path

    def _init_kept(self, init: bytes, number: int) -> Path:
        """Have an init section in the clear where the encoder finds it: as long as it is the newest, and for a while after."""
        if self._init is None or self._init[0] != init:
            if self._init is not None:
                self._plain.append(self._init[1])
            path = self._tools.storage.temp(f"plain@{self._name}@init-{number}")
            path.write_bytes(init)
            self._init = init, path
        return self._init[1]

    async def _rungs(
        self,
        made: Numbered,
        rungs: tuple[Rung, ...],
        source: Path,
        before: tuple[Path, ...],
        info: MediaInfo,
        init: bytes | None,
        sample: int,
    ) -> _Rungs:
        """Return the rungs' files, published names and all, what came of the others (a GAP each, when the job is due at the latest), and
        the init sections of those that have one.
        """
        files: dict[str, MediaFile] = {}
        inits: dict[str, bytes] = {}
        if not rungs:
            return files, Encoded({}, {}), inits
        storage = self._tools.storage
        begins, self._beginning = self._beginning > 0, max(0, self._beginning - 1)
        temps = {rung.name: storage.temp(f"{rung.name}-{made.number}.{_suffix(rung, info)}") for rung in rungs}
        try:
            job = EncodeJob(
                stream_id=made.stream.id,
                number=made.number,
                source=source,
                previous=before[-1] if before else None,
                earlier=before[:-1],
                info=info,
                duration_s=made.duration_s,
                outputs=temps,
                rungs=rungs,
                init=self._init_kept(init or b"", made.number) if info.container is Container.FMP4 else None,
                target_duration_s=made.target_duration_s,
                begins=begins,
                first_sample=sample,
            )
            with storage.reading(source, *before, job.init):
                encoded = await self._tools.encoder.encode(job)
            for rung in rungs:
                if (output := encoded.outputs.get(rung.name)) is not None:
                    name, init_uri = storage.named(str(made.number), _suffix(rung, info)), None
                    if container_of(rung, info.container) is Container.FMP4:
                        head, media = parted(temps[rung.name].read_bytes())
                        head = with_edits(head, init or b"", info) if job.init else head
                        temps[rung.name].write_bytes(media)
                        # By its content: jobs that end out of order, and a successor, name it alike without a word between them.
                        init_uri = f"init-{hashlib.sha256(head).hexdigest()[:16]}.mp4"
                        storage.keep({f"{rung.name}/{init_uri}": head})
                        inits[f"{rung.name}/{init_uri}"] = head
                    size = temps[rung.name].stat().st_size
                    storage.commit(temps[rung.name], f"{rung.name}/{name}")
                    files[rung.name] = MediaFile(name, size, init_uri=init_uri, traits=_traits(output))
            return files, encoded, inits
        except (EncodeError, MediaError) as error:
            reason = str(error)
        except OSError as error:
            reason = f"can't be stored: {error.strerror}"
        return files, Encoded({}, {rung.name: reason for rung in rungs if rung.name not in files}), inits


async def _laddered(done: Callable[..., Made], rungs: tuple[Rung, ...], make: Callable[[], Awaitable[_Rungs]]) -> Made:
    ready, encoded, inits = await make()
    return done(rungs, encoded, ready, inits)


def _made(
    entry: Entry,
    made: Numbered,
    files: Mapping[str, MediaFile],
    received_bytes: int,
    repairs: tuple[str, ...],
    rungs: tuple[Rung, ...] = (),
    encoded: Encoded = _NOTHING_ENCODED,
    ready: Mapping[str, MediaFile] = _NOTHING,
    inits: Mapping[str, bytes] = _NOTHING,
) -> Made:
    return Made(
        replace(entry, files={**files, **ready}, rungs=tuple(rung.name for rung in rungs)),
        made,
        failed=encoded.failed,
        dropped=encoded.dropped,
        ladder_paused=encoded.paused,
        inits=inits,
        received_bytes=received_bytes,
        repairs=repairs,
    )


def _times(info: MediaInfo | None) -> tuple[int, int] | None:
    """Return when the pictures of a segment begin and end; None where there are none."""
    if info is None or info.video is None or not info.video.pts:
        return None
    first_90k, last_90k = info.video.first_pts_90k, info.video.last_pts_90k
    frame_90k = (last_90k - first_90k) % PTS_MODULUS // max(1, info.video.frame_count - 1)
    return first_90k, (last_90k + frame_90k) % PTS_MODULUS


def _suffix(rung: Rung, source: MediaInfo) -> str:
    return "m4s" if container_of(rung, source.container) is Container.FMP4 else "ts"


def _traits(info: MediaInfo) -> Traits:
    codecs = ",".join(track.codecs for track in (info.video, info.audio) if track and track.codecs)
    if info.video is None:
        return Traits(codecs or None)
    return Traits(codecs or None, info.video.width or None, info.video.height or None, info.video.frame_rate)
