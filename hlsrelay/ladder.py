"""The ladder as operators write it: `720p,480p`, `audio`, `audio:kbps`, or `name:height:kbps[:codec][:audio_kbps]`. Pure.

The built-in bitrates are those of the H.264 table in Apple's HLS Authoring Specification, rounded.
"""

from __future__ import annotations

import re

from hlsrelay.errors import ConfigError
from hlsrelay.model import SOURCE, Codec, Rung

BUILT_IN: dict[str, Rung] = {
    rung.name: rung
    for rung in (
        Rung("1080p", 1080, 5000),
        Rung("720p", 720, 2500),
        Rung("480p", 480, 1200),
        Rung("360p", 360, 700),
        Rung("audio", None, 0),
    )
}
MOST_RUNGS = 8
PASS_THROUGH_WEIGHT, RUNG_WEIGHT = 1, 10
_TRACK_NAME = re.compile(r"(audio|video|subtitles|iframes)-|v(\d+p)?-?\d*")
"""Names of a source's tracks begin so (hls.tracks); their folders and the rungs' stand side by side."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def parse_ladder(text: str) -> tuple[Rung, ...]:
    """Return the rungs that *text* names, highest first, audio last; an empty text is no ladder.

    Raises ConfigError, which says what to write instead.
    """
    rungs = [_rung(word.strip()) for word in text.split(",") if word.strip()]
    names = [rung.name for rung in rungs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"ladder names the rung '{name}' twice: name each rung once")
    if len(rungs) > MOST_RUNGS:
        raise ConfigError(f"ladder has {len(rungs)} rungs: {MOST_RUNGS} at most")
    return tuple(sorted(rungs, key=lambda rung: (-(rung.height or 0), -rung.video_kbps, -rung.audio_kbps)))


def format_ladder(rungs: tuple[Rung, ...]) -> str:
    """Return the text that parse_ladder reads back as *rungs*."""
    return ",".join(map(_word, rungs))


def _word(rung: Rung) -> str:
    if BUILT_IN.get(rung.name) == rung:
        return rung.name
    codec = "" if rung.codec is Codec.H264 else rung.codec
    parts = (rung.height, rung.video_kbps, codec, rung.audio_kbps) if rung.height is not None else (rung.audio_kbps,)
    return ":".join(str(part) for part in (rung.name, *parts) if part)  # no bitrate of its own: its audio is copied


def fitting(rungs: tuple[Rung, ...], source_height: int | None) -> tuple[Rung, ...]:
    """Return the rungs that are not above the source: never enlarged; without video only `audio` stays."""
    return tuple(rung for rung in rungs if rung.height is None or (source_height is not None and rung.height <= source_height))


def _rung(word: str) -> Rung:
    if word in BUILT_IN:
        return BUILT_IN[word]
    name, *parts = word.split(":")
    video, options = (parts[:2], parts[2:]) if len(parts) > 1 else ([], parts)
    codec = options.pop(0) if video and options and not options[0].isdigit() else Codec.H264
    if not parts or len(options) > 1:
        hint = "name:height:kbps such as hd:900:3000 or hd:900:2000:hevc, or audio:kbps such as audio:96"
        raise ConfigError(f"ladder has no rung '{word}': write one of {', '.join(BUILT_IN)}, {hint}")
    if not _NAME.fullmatch(name) or name == SOURCE or _TRACK_NAME.match(name):
        raise ConfigError(f"'{name}' can't name a rung: letters, digits, - and _, at most 32, not '{SOURCE}', 'v…' or 'audio-…'")
    if options and not _within(options[0], 16, 512):
        raise ConfigError(
            f"rung '{word}': the bitrate of its audio is a whole number of kbit/s from 16 to 512; leave it out to copy the source's"
        )
    audio_kbps = int(options[0]) if options else 0
    if not video:
        return Rung(name, None, 0, audio_kbps=audio_kbps)
    height, kbps = video
    if not _within(height, 64, 4320) or int(height) % 2:
        raise ConfigError(f"rung '{word}': the height is an even number of lines from 64 to 4320")
    if not _within(kbps, 50, 100_000):
        raise ConfigError(f"rung '{word}': the bitrate is a whole number of kbit/s from 50 to 100000")
    if codec not in list(Codec):
        raise ConfigError(f"rung '{word}': the codec is one of {', '.join(Codec)}")
    return Rung(name, int(height), int(kbps), Codec(codec), audio_kbps)


def _within(text: str, least: int, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most


def weight_of(rungs: tuple[Rung, ...]) -> int:
    """Return what a stream with this ladder takes of a node's capacity: a rung that is encoded costs far more than passing through."""
    return PASS_THROUGH_WEIGHT + RUNG_WEIGHT * sum(rung.height is not None for rung in rungs)
