"""Print our playlists. Pure; the only place that writes HLS syntax (m3u8's dumps() loses tags, keys and precision)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from hlsrelay.hls.window import Progress, as_listed
from hlsrelay.model import Entry, Key, Kind, MediaFile, Presentation, Rendition, Track

_GROUP_ID = re.compile(r'GROUP-ID="([^"]*)"')
_MUST_EXIST = ("AUDIO", "VIDEO", "SUBTITLES")
_RENDITION_GROUPS = (*_MUST_EXIST, "CLOSED-CAPTIONS")


def media_playlist(progress: Progress, name: str) -> str:
    """Return the media playlist of the rendition *name*: every entry of the window, a GAP where it has no file."""
    head = [
        "#EXTM3U",
        f"#EXT-X-VERSION:{_version(progress, name)}",
        f"#EXT-X-TARGETDURATION:{progress.target_duration_s}",
        f"#EXT-X-MEDIA-SEQUENCE:{progress.entries[0].number if progress.entries else 0}",
        f"#EXT-X-DISCONTINUITY-SEQUENCE:{progress.discontinuity_sequence}",
    ]
    if progress.i_frames_only:
        head.append("#EXT-X-I-FRAMES-ONLY")
    head += progress.dateranges
    tail = ["#EXT-X-ENDLIST"] if progress.ended else []
    return "\n".join([*head, *_body(progress, name), *tail, ""])


def multivariant_playlist(presentation: Presentation, published: Mapping[str, Progress]) -> str:
    """Return the playlist of all that is published: the source's tracks under their own attributes, URIs ours, and the ladder's rungs.

    What the source says of a variant stays as it says it; what it does not say is read from the media, and bitrates are measured
    [A 9.1, 9.2, 9.14, 9.15]. Rungs play with the renditions of the variant that they are made from.
    """
    tracks = [track for track in presentation.tracks if track.name in published]
    lines = [line for line in presentation.lines if not line.startswith("#EXT-X-MEDIA:")]
    media = [line for line in presentation.lines if line.startswith("#EXT-X-MEDIA:")]
    for track in tracks:
        if track.kind not in (Kind.VARIANT, Kind.I_FRAMES):
            media.append("#EXT-X-MEDIA:" + _attributes({**dict(track.attributes), "URI": f'"{track.name}/index.m3u8"'}))
    groups = {found[1] for line in media if (found := _GROUP_ID.search(line))}
    variants = []
    for track in tracks:
        if track.kind is Kind.VARIANT:
            beside = _loudest(track, tracks, published)
            for rendition in published[track.name].renditions:
                if rendition.listed and rendition.total_s:  # what has no media yet has no bitrate to tell
                    said = _stream_inf(track, as_listed(published[track.name], rendition), beside, groups)
                    variants += [f"#EXT-X-STREAM-INF:{said}", f"{rendition.name}/index.m3u8"]
        elif track.kind is Kind.I_FRAMES:
            attributes = {**dict(track.attributes), "URI": f'"{track.name}/index.m3u8"'}
            variants.append("#EXT-X-I-FRAME-STREAM-INF:" + _attributes(attributes))
    version = 4 if media or any(track.kind is Kind.I_FRAMES for track in tracks) else 3
    return "\n".join(["#EXTM3U", f"#EXT-X-VERSION:{version}", *lines, *media, *variants, ""])


def _loudest(variant: Track, tracks: list[Track], published: Mapping[str, Progress]) -> tuple[int, int]:
    """Peak and average of the costliest renditions that play with *variant*: its BANDWIDTH counts them (RFC 8216 4.3.4.2)."""
    peak_bps = average_bps = 0
    for name, kind in (("AUDIO", Kind.AUDIO), ("VIDEO", Kind.VIDEO)):
        group = variant.attribute(name)
        found = [
            published[track.name].renditions[0]
            for track in tracks
            if group and track.kind is kind and track.attribute("GROUP-ID") == group and published[track.name].renditions
        ]
        peak_bps += max((one.peak_bps for one in found), default=0)
        average_bps += max((_average_bps(one) for one in found), default=0)
    return peak_bps, average_bps


def _average_bps(rendition: Rendition) -> int:
    return math.ceil(rendition.total_bits / rendition.total_s) if rendition.total_s else 0


def _attributes(attributes: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in attributes.items())


def _stream_inf(track: Track, rendition: Rendition, beside: tuple[int, int], groups: set[str]) -> str:
    traits = rendition.traits
    average_bps = _average_bps(rendition)
    attributes = {
        "BANDWIDTH": str(max(rendition.peak_bps, average_bps) + beside[0]),
        "AVERAGE-BANDWIDTH": str(average_bps + beside[1]),
        "CODECS": f'"{traits.codecs}"' if traits.codecs else "",
        "RESOLUTION": f"{traits.width}x{traits.height}" if traits.width and traits.height else "",
        "FRAME-RATE": f"{traits.frame_rate:.3f}" if traits.frame_rate else "",
    }
    said = {name: value for name, value in track.attributes if name not in ("BANDWIDTH", "AVERAGE-BANDWIDTH")}
    if rendition.name != track.name:  # a rung: a picture of its own, the variant's renditions
        said = {name: value for name, value in said.items() if name in _RENDITION_GROUPS}
        if traits.codecs and (audio := _audio_codecs(track)) and beside[0]:
            attributes["CODECS"] = f'"{traits.codecs},{audio}"'
    said = {name: value for name, value in said.items() if name not in _MUST_EXIST or value.strip('"') in groups}
    return _attributes({**{name: value for name, value in attributes.items() if value}, **said})


def _audio_codecs(track: Track) -> str:
    """The codecs of a variant that are no video: those of its audio renditions."""
    video = ("avc", "hvc", "hev", "dvh", "av01", "vp0", "mp4v")
    return ",".join(word.strip() for word in track.attribute("CODECS").split(",") if word and not word.strip().startswith(video))


def _body(progress: Progress, name: str) -> Iterator[str]:
    keys: tuple[Key, ...] = ()
    init_uri: str | None = None
    for index, entry in enumerate(progress.entries):
        file = entry.files.get(name)
        if entry.discontinuity:
            yield "#EXT-X-DISCONTINUITY"
        yield from entry.tags
        wanted = _keys_of(entry, file) if file and _is_pass_through(progress.track, name, file) else ()
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


def _keys_of(entry: Entry, file: MediaFile) -> tuple[Key, ...]:
    """The entry's keys; one that lies in the track's folder is named from where the segment is listed."""
    home = file.uri.rpartition("/")[0]
    return tuple(replace(key, uri=f"{home}/{key.uri}") if home and key.uri and ":" not in key.uri else key for key in entry.keys)


def _is_pass_through(track: str, name: str, file: MediaFile) -> bool:
    return name == track or file.uri.startswith(f"../{track}/")


def _gap_uri(entries: tuple[Entry, ...], index: int, name: str) -> str:
    """A GAP's URI is never fetched; it keeps the suffix of its neighbours because ffmpeg refuses odd ones."""
    files = (entry.files.get(name) for entry in entries)
    suffix = next((file.uri.rpartition(".")[2] for file in files if file), "ts")
    return f"{entries[index].number}.{suffix}"


def _keys(wanted: tuple[Key, ...], before: tuple[Key, ...]) -> Iterator[str]:
    if {key.keyformat for key in before} - {key.keyformat for key in wanted}:
        yield "#EXT-X-KEY:METHOD=NONE"  # else the format that went would go on [RFC 8216 6.2.3]
    for key in wanted:
        yield "#EXT-X-KEY:" + _attributes({**dict(key.attributes), **({"URI": f'"{key.uri}"'} if key.uri else {})})


def _version(progress: Progress, name: str) -> int:
    """The lowest version that the tags need (RFC 8216 7)."""
    files = [file for entry in progress.entries if (file := entry.files.get(name))]
    if any(file.init_uri for file in files):
        return 5 if progress.i_frames_only else 6
    keys = [key for entry in progress.entries for key in entry.keys]
    if any(key.keyformat != "identity" or key.method.startswith("SAMPLE-AES") for key in keys):
        return 5
    return 4 if progress.i_frames_only else 3


def decimal(value: float) -> str:
    """Return a decimal-floating-point (RFC 8216 4.2) without an exponent, to the microsecond."""
    return f"{value:.6f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.1f}"


def _date_time(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
