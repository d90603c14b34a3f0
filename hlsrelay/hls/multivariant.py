"""Read a source's multivariant playlist. Pure: lines in, tracks out."""

from __future__ import annotations

from urllib.parse import urljoin

from hlsrelay.errors import PlaylistError
from hlsrelay.hls.tracks import assembled
from hlsrelay.hls.variables import attributes
from hlsrelay.model import Kind, Presentation

MOST_TRACKS = 100

# Tags of the playlist's head, and low-latency tags: ours differ, so the source's are not carried through.
NOT_CARRIED = {
    "EXTM3U", "EXT-X-VERSION", "EXT-X-TARGETDURATION", "EXT-X-MEDIA-SEQUENCE", "EXT-X-DISCONTINUITY-SEQUENCE", "EXT-X-ENDLIST",
    "EXT-X-PLAYLIST-TYPE", "EXT-X-I-FRAMES-ONLY", "EXT-X-INDEPENDENT-SEGMENTS", "EXT-X-START", "EXT-X-DEFINE", "EXT-X-ALLOW-CACHE",
    "EXT-X-SERVER-CONTROL", "EXT-X-PART-INF", "EXT-X-PART", "EXT-X-SKIP", "EXT-X-PRELOAD-HINT", "EXT-X-RENDITION-REPORT",
    "EXT-X-CONTENT-STEERING", "EXT-X-I-FRAME-STREAM-INF", "EXT-X-MEDIA", "EXT-X-SESSION-DATA", "EXT-X-SESSION-KEY",
    "EXTINF", "EXT-X-BYTERANGE", "EXT-X-DISCONTINUITY", "EXT-X-KEY", "EXT-X-MAP", "EXT-X-PROGRAM-DATE-TIME", "EXT-X-GAP",
}  # fmt: skip
_KINDS = {"AUDIO": Kind.AUDIO, "VIDEO": Kind.VIDEO, "SUBTITLES": Kind.SUBTITLES}
_GOES_THROUGH = ("#EXT-X-SESSION-DATA:", "#EXT-X-SESSION-KEY:", "#EXT-X-INDEPENDENT-SEGMENTS", "#EXT-X-START:")
"""EXT-X-CONTENT-STEERING is not among them: it would point players past us."""


def presentation(lines: list[str], url: str) -> Presentation:
    """Return what the playlist at *url* presents. Raises PlaylistError.

    m3u8 keeps neither the order nor the spelling of attributes, and both go through.
    """
    found: list[tuple[Kind, str, tuple[tuple[str, str], ...]]] = []
    through: list[str] = []
    waiting: tuple[tuple[str, str], ...] | None = None
    for line in lines:
        named = attributes(line)
        got = tuple(named.items())
        uri = named.get("URI", "").strip('"')
        rest = tuple(pair for pair in got if pair[0] != "URI")
        if line.startswith("#EXT-X-STREAM-INF"):
            waiting = got
        elif line and not line.startswith("#"):
            if waiting is not None:
                found.append((Kind.VARIANT, urljoin(url, line), waiting))
            waiting = None
        elif line.startswith("#EXT-X-I-FRAME-STREAM-INF:") and uri:
            found.append((Kind.I_FRAMES, urljoin(url, uri), rest))
        elif line.startswith("#EXT-X-MEDIA:"):
            kind = _KINDS.get(named.get("TYPE", ""))
            if uri and kind:
                found.append((kind, urljoin(url, uri), rest))
            else:  # closed captions, or media that is inside the variants
                through.append(line)
        elif line.startswith(_GOES_THROUGH) or _is_unknown(line):
            through.append(_with_absolute_uri(line, url) if uri else line)
    whole = assembled(found, tuple(through))
    if not any(track.kind is Kind.VARIANT for track in whole.tracks):
        raise PlaylistError("the multivariant playlist names no variant")
    if len(whole.tracks) > MOST_TRACKS:
        raise PlaylistError(f"the multivariant playlist names {len(whole.tracks)} media playlists: {MOST_TRACKS} at most")
    return whole


def _is_unknown(line: str) -> bool:
    """Return whether a tag is one that a relay knows nothing of: it goes through (RFC 8216 6.3.1)."""
    name = line[1:].partition(":")[0]
    return line.startswith("#EXT") and name not in NOT_CARRIED | {"EXT-X-STREAM-INF", "EXT-X-DATERANGE", "EXT-X-BITRATE"}


def _with_absolute_uri(line: str, url: str) -> str:
    named = attributes(line)
    absolute = urljoin(url, named["URI"].strip('"'))
    return line.partition(":")[0] + ":" + ",".join(f"{name}={value}" for name, value in {**named, "URI": f'"{absolute}"'}.items())
