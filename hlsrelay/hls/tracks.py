"""Which media playlists of a presentation are relayed, and under which names. Pure.

Names are ours, so that no URI of a source ever touches the disk's layout: `source` is the best variant, the others are called by
what they are (`v720p-2500k`, `audio-en`, `subtitles-de`, `iframes-720p`), with a number behind a name that would come twice.

Law: a track keeps its name, whatever BANDWIDTH its source measures by the time of the next survey: players hold on to the name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from hlsrelay.errors import ConfigError
from hlsrelay.model import SOURCE, Kind, Presentation, Track
from hlsrelay.values import replace

Found = tuple[Kind, str, tuple[tuple[str, str], ...]]
_NOT_IDENTITY = {"PATHWAY-ID", "STABLE-VARIANT-ID", "STABLE-RENDITION-ID", "PROGRAM-ID"}
_GROUPS = {"AUDIO": Kind.AUDIO, "VIDEO": Kind.VIDEO, "SUBTITLES": Kind.SUBTITLES}
_AT_MOST = re.compile(r"<=\s*(\d+)p")
_OF_A_VARIANT = re.compile(r"v(?:(\d{1,9})p)?-(\d{1,9})k(?:-\d+)?")
_STABLE = ("STABLE-VARIANT-ID", "STABLE-RENDITION-ID")
_TELLING = {
    "BANDWIDTH", "RESOLUTION", "CODECS", "FRAME-RATE", "VIDEO-RANGE", "AUDIO", "VIDEO", "SUBTITLES", "GROUP-ID", "NAME", "LANGUAGE",
    "CHANNELS", "CHARACTERISTICS", "FORCED", *_STABLE,
}  # fmt: skip
MOST_TELLING_CHARACTERS = 128
"""A longer value is not recorded: a record is written with each segment."""
SAME_BITRATE_FACTOR = 1.5
"""A measured BANDWIDTH stays within it; the variants of one height lie further apart, as a rule."""


def assembled(found: Iterable[Found], lines: tuple[str, ...]) -> Presentation:
    """Return the presentation of what a multivariant playlist lists: redundant copies of a track become its further URIs."""
    found = _on_one_pathway(list(found))
    copies: dict[tuple[Kind, tuple[tuple[str, str], ...]], list[str]] = {}
    spelt: dict[tuple[Kind, tuple[tuple[str, str], ...]], tuple[tuple[str, str], ...]] = {}
    for kind, uri, attributes in found:
        same = (kind, tuple(sorted(pair for pair in attributes if pair[0] not in _NOT_IDENTITY)))
        spelt.setdefault(same, tuple(pair for pair in attributes if pair[0] not in ("PATHWAY-ID", "PROGRAM-ID")))
        if uri not in copies.setdefault(same, []):
            copies[same].append(uri)
    tracks = [Track("", kind, tuple(uris), spelt[kind, key]) for (kind, key), uris in copies.items()]
    return Presentation(_named(tracks), lines)


def _on_one_pathway(found: list[Found]) -> list[Found]:
    """Return *found* with the groups of all pathways of content steering (rfc8216bis 7) under the names of the first.

    Each pathway has its own groups of the same renditions; with one name for both, copies are seen to be copies.
    """
    models: dict[tuple[object, ...], dict[str, str]] = {}
    renamed: dict[tuple[str, str], str] = {}
    met: Counter[tuple[object, ...]] = Counter()
    for kind, _, attributes in found:
        said = dict(attributes)
        if kind not in (Kind.VARIANT, Kind.I_FRAMES) or "PATHWAY-ID" not in said:
            continue
        like = (kind, frozenset(pair for pair in attributes if pair[0] not in _NOT_IDENTITY and pair[0] not in _GROUPS))
        pathway = (*like, said["PATHWAY-ID"])
        model = models.setdefault((*like, met[pathway]), said)
        met[pathway] += 1
        for name in _GROUPS.keys() & said.keys() & model.keys():
            renamed.setdefault((name, said[name]), model[name])
    if not any(before != after for (_, before), after in renamed.items()):
        return found
    names: dict[tuple[str, str, str], str] = {}
    spelt = []
    for kind, uri, attributes in found:
        said = {name: renamed.get((name, value), value) for name, value in attributes}
        if "GROUP-ID" in said:
            said["GROUP-ID"] = renamed.get((said.get("TYPE", ""), said["GROUP-ID"]), said["GROUP-ID"])
            name = said.get("NAME", "")
            said["NAME"] = names.setdefault((said.get("TYPE", ""), said["GROUP-ID"], name.casefold()), name)
        spelt.append((kind, uri, tuple(said.items())))
    return spelt


def media_playlist_alone(url: str) -> Presentation:
    """Return the presentation of a source that is a media playlist itself."""
    return Presentation((Track(SOURCE, Kind.VARIANT, (url,)),))


def chosen(presentation: Presentation, wish: str, known: Iterable[Track] = ()) -> Presentation:
    """Return the part of *presentation* that *wish* asks for: all, best, <=720p, or names of variants with commas between.

    Renditions and I-frame playlists go with the variants that stay. What is among the tracks *known* from before keeps its name.
    Raises ConfigError where nothing stays.
    """
    before = {track.name: track for track in known}
    variants = [track for track in presentation.tracks if track.kind is Kind.VARIANT]
    wish = wish.strip()
    if wish == "all":
        kept = variants
    elif wish == "best":
        kept = [best(variants)]
    elif at_most := _AT_MOST.fullmatch(wish):
        kept = [track for track in variants if (track.height or 0) <= int(at_most[1])]
    else:
        names = {word.strip() for word in wish.split(",")}
        left = [track for track in variants if track.name not in names]
        gone = sorted(names - {track.name for track in variants})  # the source measured another bitrate then
        found = _matched(left, [before.get(name) or Track(name, Kind.VARIANT, ()) for name in gone])
        kept = [track for track in variants if track.name in names or track in found]
    if not kept:
        raise ConfigError(
            f"variants is '{wish}', and the source has only {', '.join(track.name for track in variants)}: write all, best or one"
        )
    groups = {(kind, track.attribute(name)) for track in kept for name, kind in _GROUPS.items() if track.attribute(name)}
    tallest = max(track.height or 0 for track in kept)
    others = [
        track
        for track in presentation.tracks
        if (track.kind, track.attribute("GROUP-ID")) in groups
        or (track.kind is Kind.I_FRAMES and (track.height or 0) <= (tallest or 10**6))
    ]
    if all(track.name != SOURCE for track in kept):
        top = best(kept)
        kept = [Track(SOURCE, track.kind, track.uris, track.attributes) if track is top else track for track in kept]
    return Presentation(_recognised([*kept, *others], before), presentation.lines)


def telling(track: Track) -> tuple[tuple[str, str], ...]:
    """Return the attributes that *track* is recognised by in a later survey."""
    return tuple(pair for pair in track.attributes if pair[0] in _TELLING and len(pair[1]) <= MOST_TELLING_CHARACTERS)


def best(variants: Iterable[Track]) -> Track:
    """Return the variant of the most lines, then of the highest bitrate."""
    return max(variants, key=lambda track: (track.height or 0, track.bandwidth_bps))


def _named(tracks: list[Track]) -> tuple[Track, ...]:
    variants = [track for track in tracks if track.kind is Kind.VARIANT]
    top = best(variants) if variants else None
    taken: dict[str, int] = {}
    named = []
    for track in tracks:
        name = SOURCE if track is top else _name(track)
        taken[name] = taken.get(name, 0) + 1
        name = name if taken[name] == 1 else f"{name}-{taken[name]}"
        named.append(Track(name, track.kind, track.uris, track.attributes))
    return tuple(named)


def _recognised(tracks: list[Track], known: Mapping[str, Track]) -> tuple[Track, ...]:
    """Return *tracks*, those that are *known* under their names of before, the others under names that none of these has or had.

    The main variant stays what it is while no other has more lines or is much faster: players of it would be moved with the name.
    """
    if not known:
        return tuple(tracks)
    top = best(track for track in tracks if track.kind is Kind.VARIANT)
    main = next((track for track, name in _matched(tracks, known.values()).items() if name == SOURCE), top)
    if (main.height or 0) != (top.height or 0) or _bitrate_bps(top) > SAME_BITRATE_FACTOR * _bitrate_bps(main):
        main = top
    names = _matched([track for track in tracks if track is not main], [track for track in known.values() if track.name != SOURCE])
    names[main] = SOURCE
    taken = {SOURCE, *known}
    for track in tracks:
        if track not in names:
            plain = _name(track)
            names[track] = next(name for name in (plain, *(f"{plain}-{count}" for count in range(2, len(taken) + 3))) if name not in taken)
            taken.add(names[track])
    return tuple(replace(track, name=names[track]) for track in tracks)


def _matched(tracks: Iterable[Track], known: Iterable[Track]) -> dict[Track, str]:
    """Return the names of those *tracks* that are among the *known*, each name once: the pairs that differ least are taken first."""
    tracks, known = list(tracks), list(known)
    pairs = [
        (difference, one, other)
        for one, track in enumerate(tracks)
        for other, before in enumerate(known)
        if (difference := _difference(track, before)) is not None
    ]
    found: dict[Track, str] = {}
    had: set[int] = set()
    for _, one, other in sorted(pairs):
        if tracks[one] not in found and other not in had:
            found[tracks[one]] = known[other].name
            had.add(other)
    return found


def _difference(track: Track, before: Track) -> tuple[bool, int, float] | None:
    """Return how little *track* is like what was *before*; None where it can't be that one. Of some records there is but the name."""
    if not before.attributes:
        before = _of_its_name(before)
    if not before.attributes:
        return None
    renditions = track.kind not in (Kind.VARIANT, Kind.I_FRAMES)
    if track.kind is not before.kind or (renditions and _name(track) != _name(before)) or track.height != before.height:
        return None
    if _codecs(track) and _codecs(before) and _codecs(track) != _codecs(before):
        return None
    same_id = any(track.attribute(name) and track.attribute(name) == before.attribute(name) for name in _STABLE)
    slower_bps, faster_bps = sorted(map(_bitrate_bps, (track, before)))
    by_height = track.kind is Kind.I_FRAMES and track.height  # its name tells no bitrate
    if faster_bps > SAME_BITRATE_FACTOR * slower_bps and not same_id and not by_height:
        return None
    differing = {name for name, _ in set(telling(track)) ^ set(telling(before))} - {"BANDWIDTH", *_STABLE}
    return not same_id, len(differing), faster_bps / slower_bps


def _bitrate_bps(track: Track) -> int:
    return min(max(1, track.bandwidth_bps), 1 << 63)


def _codecs(track: Track) -> set[str]:
    """The codecs of a variant, without profiles and levels."""
    return {word.strip().partition(".")[0] for word in track.attribute("CODECS").split(",") if word.strip()}


def _of_its_name(track: Track) -> Track:
    """Return *track* with what its name tells of it."""
    if track.kind is Kind.VARIANT:
        told = _OF_A_VARIANT.fullmatch(track.name)
        if told is None:  # the main one may be anything
            return track
        said = {"RESOLUTION": f"x{told[1]}" if told[1] else "", "BANDWIDTH": f"{told[2]}000"}
    elif track.kind is Kind.I_FRAMES:
        lines, bitrate = (re.search(rf"-(\d+){unit}", track.name) for unit in "pk")
        said = {"RESOLUTION": f"x{lines[1]}" if lines else "", "BANDWIDTH": f"{bitrate[1]}000" if bitrate else ""}
    else:
        said = {"LANGUAGE": re.sub(r"-\d+$", "", track.name).partition("-")[2]}
    return replace(track, attributes=tuple(said.items()))


def _name(track: Track) -> str:
    lines = f"{track.height}p" if track.height else ""
    match track.kind:
        case Kind.VARIANT:
            words = ["v" + lines, f"{track.bandwidth_bps // 1000}k"]
        case Kind.I_FRAMES:
            words = ["iframes", lines or f"{track.bandwidth_bps // 1000}k"]
        case _:
            words = [track.kind.value, track.attribute("LANGUAGE") or "und"]
    plain = [re.sub(r"[^A-Za-z0-9]+", "", word)[:16] for word in words]
    return "-".join(word for word in plain if word)
