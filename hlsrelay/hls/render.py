"""Print our playlists. Pure; the only place that writes HLS syntax (m3u8's dumps() loses tags, keys and precision)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime

from hlsrelay.hls.window import Progress
from hlsrelay.model import Entry, Key, MediaFile, Rendition


def media_playlist(progress: Progress, name: str) -> str:
    """Return the media playlist of the rendition *name*: every entry of the window, a GAP where it has no file."""
    head = [
        "#EXTM3U",
        f"#EXT-X-VERSION:{_version(progress, name)}",
        f"#EXT-X-TARGETDURATION:{progress.target_duration_s}",
        f"#EXT-X-MEDIA-SEQUENCE:{progress.entries[0].number if progress.entries else 0}",
        f"#EXT-X-DISCONTINUITY-SEQUENCE:{progress.discontinuity_sequence}",
    ]
    tail = ["#EXT-X-ENDLIST"] if progress.ended else []
    return "\n".join([*head, *_body(progress, name), *tail, ""])


def multivariant_playlist(progress: Progress) -> str:
    """Return the playlist of the listed renditions, bitrates as measured [A 9.1, 9.2, 9.14, 9.15]."""
    lines = ["#EXTM3U", "#EXT-X-VERSION:3"]
    for rendition in progress.renditions:
        if rendition.listed and rendition.total_s:  # what has no media yet has no bitrate to tell
            lines += [f"#EXT-X-STREAM-INF:{_stream_inf(rendition)}", f"{rendition.name}/index.m3u8"]
    return "\n".join([*lines, ""])


def _stream_inf(rendition: Rendition) -> str:
    traits = rendition.traits
    average_bps = math.ceil(rendition.total_bits / rendition.total_s)
    peak_bps = max(rendition.peak_bps, average_bps)
    attributes = [f"BANDWIDTH={peak_bps}", f"AVERAGE-BANDWIDTH={average_bps}"]
    if traits.codecs:
        attributes.append(f'CODECS="{traits.codecs}"')
    if traits.width and traits.height:
        attributes.append(f"RESOLUTION={traits.width}x{traits.height}")
    if traits.frame_rate:
        attributes.append(f"FRAME-RATE={traits.frame_rate:.3f}")
    return ",".join(attributes)


def _body(progress: Progress, name: str) -> Iterator[str]:
    keys: tuple[Key, ...] = ()
    init_uri: str | None = None
    for index, entry in enumerate(progress.entries):
        file = entry.files.get(name)
        if entry.discontinuity:
            yield "#EXT-X-DISCONTINUITY"
        yield from entry.tags
        wanted = entry.keys if file and _is_pass_through(name, file) else ()
        if file and wanted != keys:
            yield from _keys(wanted, keys)
            keys = wanted
        if file and file.init_uri != init_uri and file.init_uri:
            yield f'#EXT-X-MAP:URI="{file.init_uri}"'
            init_uri = file.init_uri
        yield f"#EXT-X-PROGRAM-DATE-TIME:{_date_time(entry.program_date_time)}"
        if file is None:
            yield "#EXT-X-GAP"
        yield f"#EXTINF:{decimal(entry.duration_s)},{entry.title}"
        yield file.uri if file else _gap_uri(progress.entries, index, name)


def _is_pass_through(name: str, file: MediaFile) -> bool:
    return name == "source" or file.uri.startswith("../source/")


def _gap_uri(entries: tuple[Entry, ...], index: int, name: str) -> str:
    """A GAP's URI is never fetched; it keeps the suffix of its neighbours because ffmpeg refuses odd ones."""
    files = (entry.files.get(name) for entry in entries)
    suffix = next((file.uri.rpartition(".")[2] for file in files if file), "ts")
    return f"{entries[index].number}.{suffix}"


def _keys(wanted: tuple[Key, ...], before: tuple[Key, ...]) -> Iterator[str]:
    if {key.keyformat for key in before} - {key.keyformat for key in wanted}:
        yield "#EXT-X-KEY:METHOD=NONE"  # else the format that went would go on [RFC 8216 6.2.3]
    for key in wanted:
        pairs = [(name, f'"{key.uri}"' if name == "URI" else value) for name, value in key.attributes]
        yield "#EXT-X-KEY:" + ",".join(f"{name}={value}" for name, value in pairs)


def _version(progress: Progress, name: str) -> int:
    """The lowest version that the tags need (RFC 8216 7)."""
    files = [file for entry in progress.entries if (file := entry.files.get(name))]
    if any(file.init_uri for file in files):
        return 6
    keys = [key for entry in progress.entries for key in entry.keys]
    if any(key.keyformat != "identity" or key.method.startswith("SAMPLE-AES") for key in keys):
        return 5
    return 3


def decimal(value: float) -> str:
    """Return a decimal-floating-point (RFC 8216 4.2) without an exponent, to the microsecond."""
    return f"{value:.6f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.1f}"


def _date_time(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
