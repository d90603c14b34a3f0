"""Looks at a source once, as a relay would: its playlists, the newest segments of each; and watches it for a while as `check` does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from hlsrelay import checking
from hlsrelay.clock import Clock
from hlsrelay.errors import UpstreamError
from hlsrelay.media.decrypt import can_decrypt, decrypted
from hlsrelay.media.fmp4 import fragments
from hlsrelay.media.h264 import Access
from hlsrelay.media.probe import PTS_MODULUS, Container, MediaError, MediaInfo, probe
from hlsrelay.media.ts import units
from hlsrelay.model import SOURCE, ByteRange, Kind, Segment, Snapshot, Stream, Track
from hlsrelay.places import ANYWHERE
from hlsrelay.portrait import TICKS, Facts, Found, Portrait, Sample, length_s
from hlsrelay.upstream import PLAYLIST_DEADLINE_S, SEGMENT_LIMIT_BYTES, TransportFactory, Upstream, http_transport
from hlsrelay.urls import redacted
from hlsrelay.values import replace

SAMPLES = 3
"""Segments of a playlist that are looked into, the newest ones, one after the other: two distances between their beginnings."""
MOST_TRACKS = 32
SEGMENT_DEADLINE_S = 30.0
LOOKED_AT = {Kind.VARIANT: SAMPLES, Kind.AUDIO: 1, Kind.VIDEO: 1}
"""Kinds of playlists whose segments are fetched, and how many."""

Say = Callable[[str], None]


async def probe_source(
    stream: Stream,
    watch_s: float,
    *,
    say: Say = lambda _: None,
    leaving: asyncio.Event | None = None,
    clock: Clock | None = None,
    transport: TransportFactory = http_transport,
) -> Portrait:
    """Return what *stream*'s source is, and what broke a rule in *watch_s* seconds, or until *leaving*; *say* hears what is being done.

    Its address was typed by the operator: a private one is as good as any. Raises UpstreamError where the source is none.
    """
    async with Upstream(ANYWHERE, transport=transport) as upstream:
        say("loading the playlist")
        presentation = await upstream.survey(stream)
        watching = None
        if watch_s:
            work = checking.check(stream.source, watch_s, leaving=leaving, clock=clock, transport=transport, media=False, stream=stream)
            watching = asyncio.create_task(work)
        report = checking.Report(stream.source)
        try:
            tracks = sorted(presentation.tracks, key=_importance)[:MOST_TRACKS]
            facts = []
            for index, track in enumerate(tracks):
                if index and leaving and leaving.is_set():
                    break
                say(f"playlist {index + 1} of {len(tracks)}: {track.name}")
                facts.append(await _facts(track, upstream, say))
            if all(one.fault for one in facts):
                raise UpstreamError(facts[0].fault)
            if watching:
                say(f"watching for {watch_s:.0f} s")
                with suppress(UpstreamError):  # it was there a moment ago: what it was like then is what we tell
                    report = await watching
        finally:
            if watching:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
    multivariant = any(track.attributes for track in presentation.tracks)
    needs = tuple(name for name in ("headers", "proxy") if getattr(stream, name))
    return Portrait(stream.source, multivariant, tuple(facts), _found(report), report.watched_s, needs)


def _found(report: checking.Report) -> tuple[Found, ...]:
    """Return what the judge found, errors first, each kind once."""
    counts: dict[tuple[str, str, str], int] = {}
    for finding in (*report.errors, *report.warnings):
        what = (finding.severity.value, finding.rule, finding.kind)
        counts[what] = counts.get(what, 0) + finding.count
    return tuple(Found(*what, count) for what, count in counts.items())


def _importance(track: Track) -> tuple[bool, bool, int]:
    """The best variant first, the others by their bitrates, then all that is no variant."""
    return track.name != SOURCE, track.kind is not Kind.VARIANT, -track.bandwidth_bps


async def _facts(track: Track, upstream: Upstream, say: Say) -> Facts:
    declared = {name: value.strip('"') for name, value in track.attributes}
    facts = Facts(track.name, track.kind, declared)
    try:
        snapshot = await upstream.load(track.name)
    except UpstreamError as error:
        return replace(facts, fault=str(error))
    segments = snapshot.segments
    newest = [one for one in segments if not one.gap][-LOOKED_AT.get(track.kind, 0) :] if track.kind in LOOKED_AT else []
    samples = []
    for index, segment in enumerate(newest):
        say(f"{track.name}: segment {index + 1} of {len(newest)}")
        samples.append(await _sample(segment, upstream))
    return replace(
        facts,
        target_duration_s=snapshot.target_duration_s,
        extinf_s=tuple(one.duration_s for one in segments),
        encryption=_encryption(snapshot),
        dated=any(one.program_date_time for one in segments),
        low_latency=any(one.parts for one in segments),
        ended=snapshot.ended,
        discontinuities=sum(one.discontinuity for one in segments),
        gaps=sum(one.gap for one in segments),
        repairs=snapshot.repairs,
        samples=tuple(samples),
    )


def _encryption(snapshot: Snapshot) -> str:
    keys = {key for segment in snapshot.segments for key in segment.keys if key.method != "NONE"}
    named = {key.method if key.keyformat == "identity" else f"{key.method} ({key.keyformat})" for key in keys}
    return ", ".join(sorted(named))


async def _sample(segment: Segment, upstream: Upstream) -> Sample:
    """Return what one segment is. A fault is a value: the others may be well."""
    sample = Sample(segment.duration_s)
    try:
        body = await _fetched(segment.uri, segment.byterange, upstream)
        init = await _fetched(segment.init.uri, segment.init.byterange, upstream) if segment.init else None
        sample = replace(sample, size_bytes=len(body))
        if keys := tuple(key for key in segment.keys if key.method != "NONE"):
            if not can_decrypt(keys) or not keys[0].uri:
                return sample
            key = keys[0] if keys[0].iv else replace(keys[0], iv=hex(segment.sequence))
            body = decrypted(body, key, await _fetched(keys[0].uri, None, upstream))
        info = probe(body, init)
        if info.container is Container.UNKNOWN:
            raise MediaError("no media that a relay knows")
        return _described(sample, body, init, info)
    except (UpstreamError, MediaError) as error:
        return replace(sample, fault=f"segment {segment.sequence}: {error}")


def _described(sample: Sample, body: bytes, init: bytes | None, info: MediaInfo) -> Sample:
    video = info.video
    codecs = tuple(track.codecs or "unknown" for track in (video, info.audio) if track)
    sample = replace(sample, container=info.container, codecs=codecs)
    if video is None:
        return sample
    keys_s = _key_frames_s(body, init, info)
    return replace(
        sample,
        width=video.width,
        height=video.height,
        fps=video.frame_rate,
        measured_s=round(length_s(video.pts), 3) or None,
        begins_with_key=video.starts_with_idr or keys_s[:1] == (0.0,),
        key_frames_s=keys_s,
    )


def _key_frames_s(body: bytes, init: bytes | None, info: MediaInfo) -> tuple[float, ...]:
    """Return where decoding can begin, in seconds from the segment's beginning. Of fMP4 only the beginnings of fragments are looked at."""
    try:
        if info.container is Container.FMP4:
            return tuple(round(one.after_s, 3) for one in fragments(body, init or b"") if one.idr)
        pictures = units(body, init)
    except MediaError:  # it can be described, and not be taken to pieces
        return ()
    keys = (one for one in pictures if one.access in (Access.IDR, Access.RANDOM))
    return tuple(round((one.dts - pictures[0].dts) % PTS_MODULUS / TICKS, 3) for one in keys)


async def _fetched(uri: str, byterange: ByteRange | None, upstream: Upstream) -> bytes:
    headers = {"Accept-Encoding": "identity"}
    if byterange:
        headers["Range"] = f"bytes={byterange.offset}-{byterange.offset + byterange.length - 1}"
    answer = await upstream.get(uri, headers, most_bytes=SEGMENT_LIMIT_BYTES, deadline_s=max(SEGMENT_DEADLINE_S, PLAYLIST_DEADLINE_S))
    if answer.status not in (200, 206):
        raise UpstreamError(f"{redacted(uri)}: HTTP {answer.status}")
    if not answer.body:
        raise UpstreamError(f"{redacted(uri)}: empty")
    return answer.body
