"""Which media playlists of a presentation are relayed, and under which names. Pure.

Names are ours, so that no URI of a source ever touches the disk's layout: `source` is the best variant, the others are called by
what they are (`v720p-2500k`, `audio-en`, `subtitles-de`, `iframes-720p`), with a number behind a name that would come twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from hlsrelay.errors import ConfigError
from hlsrelay.model import SOURCE, Kind, Presentation, Track

Found = tuple[Kind, str, tuple[tuple[str, str], ...]]
_NOT_IDENTITY = {"PATHWAY-ID", "STABLE-VARIANT-ID", "STABLE-RENDITION-ID", "PROGRAM-ID"}
_GROUPS = {"AUDIO": Kind.AUDIO, "VIDEO": Kind.VIDEO, "SUBTITLES": Kind.SUBTITLES}
_AT_MOST = re.compile(r"<=\s*(\d+)p")


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


def chosen(presentation: Presentation, wish: str) -> Presentation:
    """Return the part of *presentation* that *wish* asks for: all, best, <=720p, or names of variants with commas between.

    Renditions and I-frame playlists go with the variants that stay. Raises ConfigError where nothing stays.
    """
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
        kept = [track for track in variants if track.name in names]
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
    return Presentation((*kept, *others), presentation.lines)


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
