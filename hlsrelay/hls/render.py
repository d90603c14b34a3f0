"""Print our playlists. Pure; the only place that writes HLS syntax (m3u8's dumps() loses tags, keys and precision)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from hlsrelay.hls.renditions import as_listed
from hlsrelay.hls.variables import attributes
from hlsrelay.hls.window import Progress
from hlsrelay.model import Entry, Key, KeyPolicy, Kind, MediaFile, Presentation, Rendition, Track
from hlsrelay.remembered import remembered
from hlsrelay.values import replace

_MUST_EXIST = ("AUDIO", "VIDEO", "SUBTITLES")
_OF_THE_BYTES = ("#EXT-X-BITRATE",)
"""Tags that are true of the source's own files only."""
_RENDITION_GROUPS = (*_MUST_EXIST, "CLOSED-CAPTIONS")
Groups = set[tuple[str, str]]
"""TYPE and GROUP-ID: a group of audio and one of subtitles may have one name (RFC 8216 4.3.4.1.1)."""


def media_playlist(progress: Progress, name: str) -> str:
    """Return the media playlist of the rendition *name*: every entry of the window, a GAP where it has no file."""
    head = [
        f"#EXT-X-TARGETDURATION:{progress.target_duration_s}",
        f"#EXT-X-MEDIA-SEQUENCE:{progress.entries[0].number if progress.entries else 0}",
        f"#EXT-X-DISCONTINUITY-SEQUENCE:{progress.discontinuity_sequence}",
    ]
    if progress.i_frames_only:
        head.append("#EXT-X-I-FRAMES-ONLY")
    head += progress.dateranges
    tail = ["#EXT-X-ENDLIST"] if progress.ended else []
    lines = [*head, *_body(progress, name), *tail]
    return "\n".join(["#EXTM3U", f"#EXT-X-VERSION:{_version(lines)}", *lines, ""])


def multivariant_playlist(presentation: Presentation, published: Mapping[str, Progress], keys: KeyPolicy = KeyPolicy.PROXY) -> str:
    """Return the playlist of all that is published: the source's tracks under their own attributes, URIs ours, and the ladder's rungs.

    What the source says of a variant stays as it says it; what it does not say is read from the media, and bitrates are measured
    [A 9.1, 9.2, 9.14, 9.15]. Rungs play with the renditions of the variant that they are made from. An EXT-X-SESSION-KEY, which is but
    a hint to load early, is left out where players have the key from us.
    """
    tracks = [track for track in presentation.tracks if track.name in published]
    lines = [line for line in presentation.lines if not line.startswith("#EXT-X-MEDIA:") and not _is_proxied(line, keys)]
    media = [line for line in presentation.lines if line.startswith("#EXT-X-MEDIA:")]
    for track in tracks:
        if track.kind not in (Kind.VARIANT, Kind.I_FRAMES):
            media.append("#EXT-X-MEDIA:" + _attributes({**dict(track.attributes), "URI": f'"{track.name}/index.m3u8"'}))
    groups = {(said.get("TYPE", ""), said.get("GROUP-ID", "").strip('"')) for said in map(attributes, media)}
    variants = []
    for track in tracks:
        if track.kind is Kind.VARIANT:
            company = _company(track, tracks, published)
            progress = published[track.name]
            for rendition in progress.renditions:
                if rendition.listed and rendition.total_s:  # what has no media yet has no bitrate to tell
                    listed = as_listed(rendition, progress.entries, progress.target_duration_s)
                    said = _stream_inf(track, listed, company, groups)
                    variants += [f"#EXT-X-STREAM-INF:{said}", f"{rendition.name}/index.m3u8"]
        elif track.kind is Kind.I_FRAMES:
            variants.append("#EXT-X-I-FRAME-STREAM-INF:" + _i_frame_stream_inf(track, published[track.name], groups))
    lines += [*media, *variants]
    return "\n".join(["#EXTM3U", f"#EXT-X-VERSION:{_version(lines)}", *lines, ""])


def told_apart(progress: Progress) -> tuple[object, ...]:
    """Return what of *progress* the multivariant playlist is printed from: equal as long as it would read the same.

    But for AVERAGE-BANDWIDTH: it moves with each segment, and is told anew where it is another by a hundredth.
    """
    told: list[object] = [progress.track, progress.kind, progress.attributes, progress.target_duration_s]
    for one in progress.renditions:
        files = (entry.files.get(one.name) for entry in progress.entries)
        mixed = any(
            file and ((file.traits is not one.traits and file.traits != one.traits) or file.uri.startswith("../")) for file in files
        )
        about = math.floor(100 * math.log(_average_bps(one))) if one.total_bits else 0
        told.append((one.name, one.traits, one.listed, one.peak_bps, about, progress.entries if mixed else ()))
    return tuple(told)


def _is_proxied(line: str, keys: KeyPolicy) -> bool:
    """Whether *line* would point players past us, to a key of the source's that our media playlists give them a copy of."""
    if not line.startswith("#EXT-X-SESSION-KEY:") or keys is KeyPolicy.ORIGIN:
        return False
    named = {name: value.strip('"') for name, value in attributes(line).items()}
    return named.get("KEYFORMAT", "identity") == "identity" and named.get("URI", "").lower().startswith(("http:", "https:"))


@dataclass(frozen=True, slots=True)
class _Company:
    """The renditions that play with a variant: the bitrates of the costliest, and all codecs; None where one's are not known."""

    peak_bps: int = 0
    average_bps: int = 0
    codecs: tuple[str, ...] | None = ()


def _company(variant: Track, tracks: list[Track], published: Mapping[str, Progress]) -> _Company:
    """BANDWIDTH counts the costliest of each group, CODECS names all of them (RFC 8216 4.3.4.2)."""
    peak_bps = average_bps = 0
    codecs: list[str | None] = []
    for name, kind in (("AUDIO", Kind.AUDIO), ("VIDEO", Kind.VIDEO)):
        group = variant.attribute(name)
        of_group = (published[track.name] for track in tracks if group and track.kind is kind and track.attribute("GROUP-ID") == group)
        found = [as_listed(one.renditions[0], one.entries, one.target_duration_s) for one in of_group if one.renditions]
        peak_bps += max(map(_peak_bps, found), default=0)
        average_bps += max((_average_bps(one) for one in found), default=0)
        codecs += [one.traits.codecs for one in found]
    known = tuple(codec for each in codecs if each for codec in each.split(","))
    return _Company(peak_bps, average_bps, known if all(codecs) else None)


def _average_bps(rendition: Rendition) -> int:
    return math.ceil(rendition.total_bits / rendition.total_s) if rendition.total_s else 0


def _peak_bps(rendition: Rendition) -> int:
    """BANDWIDTH, which is never below AVERAGE-BANDWIDTH: segments too short to be half a target duration have no peak yet."""
    return max(rendition.peak_bps, _average_bps(rendition))


def _attributes(attributes: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in attributes.items())


def _stream_inf(track: Track, rendition: Rendition, company: _Company, groups: Groups) -> str:
    traits = rendition.traits
    said = {name: value for name, value in track.attributes if name not in ("BANDWIDTH", "AVERAGE-BANDWIDTH")}
    beside = company.codecs
    if rendition.name != track.name:  # a rung: a picture of its own, the variant's renditions
        said = {name: value for name, value in said.items() if name in _RENDITION_GROUPS}
        beside = (_audio_codecs(track) if company.peak_bps else ()) or beside
    # All of them or none: players take what CODECS does not name for what is not there.
    codecs = ",".join(dict.fromkeys((*traits.codecs.split(","), *beside))) if traits.codecs and beside is not None else ""
    attributes = {
        "BANDWIDTH": str(_peak_bps(rendition) + company.peak_bps),
        "AVERAGE-BANDWIDTH": str(_average_bps(rendition) + company.average_bps),
        "CODECS": f'"{codecs}"' if codecs else "",
        "RESOLUTION": f"{traits.width}x{traits.height}" if traits.width and traits.height else "",
        "FRAME-RATE": f"{traits.frame_rate:.3f}" if traits.frame_rate else "",
    }
    return _attributes({**{name: value for name, value in attributes.items() if value}, **_in_groups(said, groups)})


def _i_frame_stream_inf(track: Track, progress: Progress, groups: Groups) -> str:
    measured_bps = max(map(_peak_bps, progress.renditions), default=0)
    said = _in_groups(dict(track.attributes), groups)
    return _attributes({"BANDWIDTH": str(measured_bps), **said, "URI": f'"{track.name}/index.m3u8"'})


def _in_groups(said: Mapping[str, str], groups: Groups) -> dict[str, str]:
    """Return *said* without the groups that nothing is published of."""
    return {name: value for name, value in said.items() if name not in _MUST_EXIST or (name, value.strip('"')) in groups}


def _audio_codecs(track: Track) -> tuple[str, ...]:
    """The codecs of a variant that are no video: those of its audio renditions."""
    video = ("avc", "hvc", "hev", "dvh", "av01", "vp0", "mp4v")
    return tuple(word.strip() for word in track.attribute("CODECS").split(",") if word and not word.strip().startswith(video))


def _body(progress: Progress, name: str) -> Iterator[str]:
    keys: tuple[Key, ...] = ()
    init: tuple[str, tuple[Key, ...]] | None = None
    for entry in progress.entries:
        file = entry.files.get(name)
        if entry.discontinuity:
            yield "#EXT-X-DISCONTINUITY"
        yield from (tag for tag in entry.tags if name == progress.track or not tag.startswith(_OF_THE_BYTES))
        if file:
            own, of_init = _keys_of(entry, file) if _is_pass_through(progress.track, name, file) else ((), ())
            if file.init_uri and (file.init_uri, of_init) != init:  # a KEY covers the MAPs after it too [RFC 8216 4.3.2.4]
                yield from _keys(of_init, keys)
                yield f'#EXT-X-MAP:URI="{file.init_uri}"'
                keys, init = of_init, (file.init_uri, of_init)
            yield from _keys(own, keys)
            keys = own
        yield f"#EXT-X-PROGRAM-DATE-TIME:{_date_time(entry.program_date_time)}"
        if file is None:
            yield "#EXT-X-GAP"
        yield f"#EXTINF:{decimal(entry.duration_s)},{entry.title}"
        yield file.uri if file else entry.gaps.get(name, f"{entry.number}.ts")


def _keys_of(entry: Entry, file: MediaFile) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
    """The keys of the segment and of its init section; one that lies in the track's folder is named from where the segment is listed."""
    home = file.uri.rpartition("/")[0]
    both = (entry.keys, entry.keys if file.init_keys is None else file.init_keys)
    own, of_init = (
        tuple(replace(key, uri=f"{home}/{key.uri}") if home and key.uri and ":" not in key.uri else key for key in keys) for keys in both
    )
    return own, of_init


def _is_pass_through(track: str, name: str, file: MediaFile) -> bool:
    return name == track or file.uri.startswith(f"../{track}/")


def _keys(wanted: tuple[Key, ...], before: tuple[Key, ...]) -> Iterator[str]:
    if wanted == before:
        return
    if {key.keyformat for key in before} - {key.keyformat for key in wanted}:
        yield "#EXT-X-KEY:METHOD=NONE"  # else the format that went would go on [RFC 8216 6.2.3]
    for key in wanted:
        yield "#EXT-X-KEY:" + _attributes({**dict(key.attributes), **({"URI": f'"{key.uri}"'} if key.uri else {})})


def _version(lines: Iterable[str]) -> int:
    """The lowest version that the tags need (RFC 8216 7, rfc8216bis 8)."""
    needed, init = 1, 6
    for line in lines:
        tag, _, value = line.partition(":")
        match tag:
            case "#EXTINF" if "." in value.partition(",")[0]:
                needed = max(needed, 3)
            case "#EXT-X-I-FRAMES-ONLY":
                needed, init = max(needed, 4), 5
            case "#EXT-X-KEY" | "#EXT-X-SESSION-KEY":
                named = attributes(line)
                needed = max(needed, 2) if "IV" in named else needed
                if {"KEYFORMAT", "KEYFORMATVERSIONS"} & named.keys() or named.get("METHOD", "").startswith("SAMPLE-AES"):
                    needed = max(needed, 5)
            case "#EXT-X-MAP":
                needed = max(needed, init)
            case "#EXT-X-MEDIA" if 'INSTREAM-ID="SERVICE' in line:
                needed = max(needed, 7)
        if "REQ-" in value and any(name.startswith("REQ-") for name in attributes(line)):
            needed = max(needed, 12)
    return needed


def decimal(value: float) -> str:
    """Return a decimal-floating-point (RFC 8216 4.2) without an exponent, to the microsecond."""
    return f"{value:.6f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.1f}"


@remembered(4096)
def _date_time(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
