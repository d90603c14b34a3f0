"""What is this segment? Told by its bytes: names and Content-Types of live sources lie."""

from __future__ import annotations

from hlsrelay.media.adts import ac3_codecs, adts_codecs, adts_length, mpeg_audio, skip_id3
from hlsrelay.media.boxes import FIRST_BOXES
from hlsrelay.media.fmp4 import probe_fmp4
from hlsrelay.media.info import PTS_MODULUS, AudioInfo, Container, MediaError, MediaInfo, VideoInfo
from hlsrelay.media.packets import looks_like_ts
from hlsrelay.media.ts import probe_ts

__all__ = ["PTS_MODULUS", "AudioInfo", "Container", "MediaError", "MediaInfo", "VideoInfo", "probe", "recognised"]


def probe(data: bytes, init: bytes | None = None) -> MediaInfo:
    """Return what *data*, a whole segment, is; *init* holds the bytes of its EXT-X-MAP.

    What is not recognised, such as an encrypted segment, is Container.UNKNOWN; what is recognised and then makes no sense raises
    MediaError, and nothing else does. An fMP4 segment without *init* has neither video nor audio.
    """
    if not data:
        raise MediaError("a segment without a byte")
    if looks_like_ts(data):
        return probe_ts(data, init)
    if data[4:8] in FIRST_BOXES:
        return probe_fmp4(data, init)
    if data.removeprefix(b"\xef\xbb\xbf")[:6] == b"WEBVTT" and data.removeprefix(b"\xef\xbb\xbf")[6:7] in (b"", b" ", b"\t", b"\r", b"\n"):
        return MediaInfo(Container.VTT)
    return _packed_audio(data)


def recognised(head: bytes) -> Container:
    """Return what a segment that begins with *head* is packed as, whether it makes sense or not."""
    if looks_like_ts(head):
        return Container.TS
    return Container.FMP4 if head[4:8] in FIRST_BOXES else probe(head).container if head else Container.UNKNOWN


def _packed_audio(data: bytes) -> MediaInfo:
    begin, pts = skip_id3(data)
    frame = data[begin : begin + 16]
    if codecs := adts_codecs(frame):
        following = begin + adts_length(frame)
        if following >= len(data) or adts_codecs(data[following : following + 7]):
            return MediaInfo(Container.AAC, audio=AudioInfo(codecs, pts))
    if known := mpeg_audio(frame):
        following = begin + known[1]
        if following >= len(data) or mpeg_audio(data[following : following + 4]):
            return MediaInfo(Container.MP3, audio=AudioInfo(known[0], pts))
    if codecs := ac3_codecs(frame):
        return MediaInfo(Container.AC3, audio=AudioInfo(codecs, pts))
    return MediaInfo(Container.UNKNOWN)
