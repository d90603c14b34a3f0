"""What the playlists of one presentation owe each other, and what its STREAM-INF owe their media. RFC 8216 6.2.4, 4.3.4.2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hlsrelay.judge.evidence import SOUND_OFF_S, seconds
from hlsrelay.judge.findings import Complaint, error, warning
from hlsrelay.judge.listed import Attributes, Listed, Multivariant, Variant, unquoted
from hlsrelay.judge.tape import Known, Tape
from hlsrelay.media.info import MediaInfo, VideoInfo

PICTURE_OFF_S = 0.1
WINDOW_ROUNDING_S = 0.6
"""A target duration is rounded by half a second; EXTINFs by less."""
BANDWIDTH_ROUNDING = 1.001
_SOUNDS = ("mp4a", "ac-3", "ec-3")
_SAME_FAMILY = {"avc3": "avc1", "hev1": "hvc1", "dvhe": "dvh1"}


def stated(playlist: Multivariant) -> Iterator[Complaint]:
    """Judge what the STREAM-INFs say at all."""
    groups: set[str] = set()
    for variant in playlist.variants:
        if variant.inf is None:
            groups.add(variant.type)
            continue
        name = short(variant.uri)
        if "CODECS" not in variant.inf:  # of encrypted media nobody but their maker knows them: it becomes an error where we do
            yield warning("A21", "STREAM-INF without CODECS", name)
        if "AVERAGE-BANDWIDTH" not in variant.inf:
            yield warning("A21", "STREAM-INF without AVERAGE-BANDWIDTH", name)
        elif "BANDWIDTH" in variant.inf and int(variant.inf["AVERAGE-BANDWIDTH"]) > int(variant.inf["BANDWIDTH"]):
            yield error("A21", "AVERAGE-BANDWIDTH above BANDWIDTH", name)
    if not any(variant.inf is not None for variant in playlist.variants):
        yield error("A1", "a multivariant playlist without a variant")


def short(uri: str) -> str:
    """Return the end of a path, by which a person recognises it."""
    return "/".join(uri.partition("?")[0].split("/")[-2:])[-60:]


# STREAM-INF against the media ---------------------------------------------------------------------------------------------------------


def media_against(inf: Attributes, tape: Tape, loaded_s: float) -> Iterator[Complaint]:
    """Judge a variant's STREAM-INF, as loaded at *loaded_s*, by what was listed then for sure and is probed.

    CODECS names every format. RESOLUTION has room for one: where pictures of several sizes are listed, any of them, and it may be that
    of a segment which was listed when it was loaded but seen only afterwards.
    """
    known = [one for one in tape.known.values() if not one.listed.gap and (one.gone_after_s is None or one.gone_after_s >= loaded_s)]
    shown = [(one, one.info) for one in known if one.info is not None and _listed_at(one, loaded_s)]
    began_s = min((one.first_s for one in known), default=0.0)
    if not shown or any(one.size is None and one.first_s > began_s for one in known):
        return  # it may tell of what is being fetched; of the first window not all is
    for one, info in shown:
        yield from _formats(inf, one, info)
    named = unquoted(inf.get("CODECS", "")).lower().split(",")
    if "AUDIO" not in inf and any(name.strip().startswith(_SOUNDS) for name in named) and all(info.audio is None for _, info in shown):
        yield warning("A21", "CODECS names sound, and the media has none", f"CODECS says {','.join(named)}")
    pictures = [(one, one.info.video) for one in known if one.info is not None and one.info.video is not None]
    if not any(info.video for _, info in shown):
        return
    if "RESOLUTION" not in inf:
        yield warning("A21", "STREAM-INF without RESOLUTION, and there is video")
    elif all(_shape_differs(inf["RESOLUTION"], video) for _, video in pictures):
        one, video = pictures[-1]
        detail = f"segment {one.listed.sequence} is {video.width}x{video.height}, RESOLUTION says {inf['RESOLUTION']}"
        yield error("A21", "RESOLUTION is not that of the media", detail)
    if "FRAME-RATE" not in inf:
        yield warning("A21", "STREAM-INF without FRAME-RATE, and there is video")


def _listed_at(known: Known, loaded_s: float) -> bool:
    """Return whether a segment was listed at *loaded_s* for sure."""
    return known.first_s <= loaded_s and (known.gone_after_s is None or known.gone_after_s >= loaded_s)


def _formats(inf: Attributes, known: Known, info: MediaInfo) -> Iterator[Complaint]:
    here = f"segment {known.listed.sequence}"
    real = [track.codecs for track in (info.video, info.audio) if track and track.codecs]
    if "CODECS" in inf:
        yield from _codecs(unquoted(inf["CODECS"]), info, here)
    elif real and not known.listed.keys:
        yield error("A21", "no CODECS, though the media tell", f"{here} has {','.join(real)}")


def _shape_differs(resolution: str, video: VideoInfo) -> bool:
    square = video.sar is not None and video.sar[0] == video.sar[1]
    return bool(square and video.width and video.height) and resolution != f"{video.width}x{video.height}"


def _codecs(written: str, info: MediaInfo, here: str) -> Iterator[Complaint]:
    listed = [one.strip().lower() for one in written.split(",")]
    for track in (info.video, info.audio):
        if track is None or track.codecs is None:
            continue
        real = track.codecs.lower()
        families = [_family(one) for one in listed]
        if _family(real) not in families:
            yield error("A21", "CODECS does not name a codec of the media", f"{here} has {real}, CODECS says {written}")
        elif real not in listed and not any(_alike(one, real) for one in listed):
            yield warning("A21", "CODECS names another profile or level than the media's", f"{here} has {real}, CODECS says {written}")


def _family(codecs: str) -> str:
    family = codecs.partition(".")[0]
    return _SAME_FAMILY.get(family, family)


def _alike(one: str, other: str) -> bool:
    """Return whether two AVC strings name one profile and level: the constraint flags between are often written otherwise."""
    same = _family(one) == _family(other)
    if same and _family(one) == "avc1" and len(one) == len(other) == 11:
        return one[5:7] == other[5:7] and one[9:] == other[9:]
    return same and _family(one) == "hvc1"


def peak(tape: Tape, listed_s: float, *, ever: bool = False) -> tuple[float, int]:
    """Return the largest bitrate of any run of 0.5 to 1.5 target durations, and the number that it ends at.

    Of what was listed at *listed_s* for sure, or at any time until then where *ever*.
    """
    best, best_at = 0.0, 0
    target_s = tape.newest.target_duration_s if tape.newest else 0
    for last in sorted(tape.known):
        bits, length_s = 0, 0.0
        for sequence in range(last, last - 64, -1):
            known = tape.known.get(sequence)
            if known is None or known.size is None or known.first_s > listed_s or known.listed.gap:
                break
            if not ever and not _listed_at(known, listed_s):
                break
            length_s += known.listed.duration_s
            if length_s > 1.5 * target_s:
                break
            bits += 8 * known.size
            if length_s >= 0.5 * target_s and bits / length_s > best:
                best, best_at = bits / length_s, last
    return best, best_at


def bitrate(inf: Attributes, tape: Tape, loaded_s: float, sounds: Iterable[Tape] = ()) -> Iterator[Complaint]:
    """Judge a variant's BANDWIDTH, as loaded at *loaded_s*, by what was listed then: of its own, and of its audio group's *sounds*.

    Of a live presentation the sum over a playable combination is a SHOULD.
    """
    if "BANDWIDTH" not in inf:
        return
    most_bps = int(inf["BANDWIDTH"]) * BANDWIDTH_ROUNDING + 1
    peak_bps, at = peak(tape, loaded_s)
    sound_bps = max((peak(sound, loaded_s)[0] for sound in sounds if sound is not tape), default=0.0)
    if peak_bps > most_bps:
        detail = f"BANDWIDTH={inf['BANDWIDTH']}, segments up to {at} have {peak_bps:.0f} bit/s"
        yield error("A21", "BANDWIDTH below the measured peak", detail)
    elif peak_bps and peak_bps + sound_bps > most_bps:
        detail = f"BANDWIDTH={inf['BANDWIDTH']}, segments up to {at} have {peak_bps:.0f} bit/s, and the sound beside them {sound_bps:.0f}"
        yield warning("A21", "BANDWIDTH does not cover the sound of its audio group", detail)


# One playlist against another ---------------------------------------------------------------------------------------------------------


def agree(one: Tape, variant: Variant, other: Tape, other_variant: Variant) -> Iterator[Complaint]:
    """Judge *one*, just loaded, by *other*, which was loaded before: what *other* had then, *one* must have now."""
    mine, theirs = one.newest, other.newest
    if mine is None or theirs is None or not mine.segments or not theirs.segments:
        return
    who = short(other_variant.uri)
    subtitles = "SUBTITLES" in (variant.type, other_variant.type)
    targets = {mine.target_duration_s, theirs.target_duration_s} - {0}
    if len(targets) > 1 and not subtitles:
        yield error("A20", "target durations differ", f"{mine.target_duration_s} here, {theirs.target_duration_s} in {who}")
    dated, their_dated = _dated(mine.segments), _dated(theirs.segments)
    if dated != their_dated:
        yield error("A20", "PROGRAM-DATE-TIME in one playlist and not in another", f"{'here' if dated else 'not here'}, {who} differs")
    for segment in one.fresh:
        known = match(segment, one, other)
        if known is not None and known.listed.era != segment.era:
            detail = f"segment {segment.sequence}: {segment.era} here, {known.listed.era} in {who}"
            yield error("A20", "discontinuity sequence numbers of the same moment differ", detail)
    yield from _windows(one, other, who)


def _dated(segments: tuple[Listed, ...]) -> bool:
    return any(segment.when_s is not None for segment in segments)


def _times(segments: tuple[Listed, ...]) -> tuple[float, float] | None:
    """Return when the first begins and the last ends, None where a date is missing or they are not on one clock."""
    at = next((index for index, one in enumerate(segments) if one.when_s is not None), None)
    if at is None:
        return None
    begin_s = (segments[at].when_s or 0.0) - sum(one.duration_s for one in segments[:at])
    now_s = begin_s
    for one in segments:
        now_s = (one.when_s if one.when_s is not None else now_s) + one.duration_s
    return begin_s, now_s


def _windows(one: Tape, other: Tape, who: str) -> Iterator[Complaint]:
    mine, theirs = one.newest, other.newest
    assert mine is not None
    assert theirs is not None
    allowed_s = max(mine.target_duration_s, theirs.target_duration_s) + WINDOW_ROUNDING_S
    if _numbered_alike(one, other):
        behind_s = sum(segment.duration_s for segment in theirs.segments if segment.sequence > mine.last)
        ahead_s = sum(segment.duration_s for segment in mine.segments if segment.sequence < theirs.media_sequence)
    else:
        times, their_times = _times(mine.segments), _times(theirs.segments)
        if times is None or their_times is None:
            return
        behind_s, ahead_s = their_times[1] - times[1], their_times[0] - times[0]
    if behind_s > allowed_s:
        yield error("A20", "a playlist ends more than a target duration before another", f"{behind_s:.1f} s before {who}")
    if ahead_s > allowed_s:
        yield error("A20", "a playlist begins more than a target duration before another", f"{ahead_s:.1f} s before {who}")


def _numbered_alike(one: Tape, other: Tape) -> bool:
    """Return whether the same numbers mean the same moments: a server may, and mostly does, but need not."""
    mine, theirs = one.newest, other.newest
    if mine is None or theirs is None:
        return False
    listed = {segment.sequence: segment for segment in theirs.segments}
    shared = [(segment, listed[segment.sequence]) for segment in mine.segments if segment.sequence in listed]
    return len(shared) >= min(2, len(mine.segments), len(theirs.segments)) > 0 and all(_same_moment(*pair) for pair in shared)


def _same_moment(a: Listed, b: Listed) -> bool:
    if a.when_s is not None and b.when_s is not None:
        return abs(a.when_s - b.when_s) < min(a.duration_s, b.duration_s) / 2
    return abs(a.duration_s - b.duration_s) < 0.05


def match(segment: Listed, one: Tape, other: Tape) -> Known | None:
    """Return what *other* has of the same moment, by date where both have one, else by number where numbers mean the same."""
    known = other.known.get(segment.sequence)
    if known is not None and segment.when_s is not None and known.listed.when_s is not None and _same_moment(segment, known.listed):
        return known
    if segment.when_s is not None and other.newest is not None and _dated(other.newest.segments):
        return next(
            (
                other.known[theirs.sequence]
                for theirs in other.newest.segments
                if theirs.when_s is not None and _same_moment(segment, theirs)
            ),
            None,
        )
    return known if known is not None and _numbered_alike(one, other) else None


def in_step(known: Known, their: Known, who: str) -> Iterator[Complaint]:
    """Judge the time stamps of the same moment in two renditions: they go with the dates, or are equal where there are none."""
    a, b = known.info, their.info
    if a is None or b is None:
        return
    mine, theirs = _begins(a), _begins(b)
    if mine is None or theirs is None:
        return
    dated = known.listed.when_s is not None and their.listed.when_s is not None
    if not dated and (a.video is None) != (b.video is None):
        return  # where sound is cut beside pictures is free
    apart_s = (known.listed.when_s or 0.0) - (their.listed.when_s or 0.0) if dated else 0.0
    off_s = seconds(mine - theirs) - apart_s
    if abs(off_s) > (PICTURE_OFF_S if a.video and b.video else SOUND_OFF_S):
        detail = f"segment {known.listed.sequence} is {off_s:+.3f} s from that of {who}"
        yield error("A20", "time stamps of the same moment differ", detail)


def _begins(info: MediaInfo) -> int | None:
    if info.video:
        return info.video.first_pts_90k
    return info.audio.first_pts_90k if info.audio else None
