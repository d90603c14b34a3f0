"""What a source is, as `hlsrelay probe` found it; which ladder suits it; and both in words. Pure.

What is declared stands beside what was measured: packagers' playlists are written by hand more often than one would think.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from itertools import pairwise
from urllib.parse import urlsplit

from hlsrelay.ladder import BUILT_IN, format_ladder
from hlsrelay.media.info import PTS_MODULUS, Container
from hlsrelay.model import Kind, Rung

TICKS = 90_000
DETAIL = 1.5
"""How the bitrate for one quality goes with the height: a picture of half the lines needs rather more than a quarter."""
AS_BUILT_IN = 0.9
"""From so much of a built-in rung's bitrate on the built-in one is proposed: it has a name."""
LEAST_KBPS = 150
SOUND_KBPS = 128
SAME_HEIGHT = 0.1
"""Two heights that differ by less are one quality."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One segment, fetched: how long by EXTINF, how large, what in it; *key_frames_s* are where decoding can begin, from its beginning.

    *measured_s* and *fps* are None where the media don't tell, *begins_with_key* where there is no picture. *fault*: why nothing is known.
    """

    extinf_s: float
    size_bytes: int = 0
    container: Container = Container.UNKNOWN
    codecs: tuple[str, ...] = ()
    width: int = 0
    height: int = 0
    fps: float | None = None
    measured_s: float | None = None
    begins_with_key: bool | None = None
    key_frames_s: tuple[float, ...] = ()
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """One media playlist of the source: what its multivariant playlist declares, what it says itself, what its newest segments are.

    *encryption* names METHOD and KEYFORMAT, empty in the clear. *fault*: why the playlist could not be had.
    """

    name: str
    kind: Kind
    declared: Mapping[str, str]
    target_duration_s: int = 0
    extinf_s: tuple[float, ...] = ()
    encryption: str = ""
    dated: bool = False
    low_latency: bool = False
    ended: bool = False
    discontinuities: int = 0
    gaps: int = 0
    repairs: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    fault: str = ""

    @property
    def known(self) -> tuple[Sample, ...]:
        """The samples that could be read."""
        return tuple(one for one in self.samples if not one.fault)

    @property
    def average_kbps(self) -> int:
        """Measured over all samples."""
        length_s = sum(one.extinf_s for one in self.known)
        return round(sum(one.size_bytes for one in self.known) * 8 / length_s / 1000) if length_s else 0

    @property
    def peak_kbps(self) -> int:
        """Measured, of the sample of the highest bitrate."""
        return round(max((one.size_bytes * 8 / one.extinf_s / 1000 for one in self.known if one.extinf_s), default=0))

    @property
    def height(self) -> int:
        """Lines, as measured, else as declared; 0: no picture."""
        declared = self.declared.get("RESOLUTION", "").rpartition("x")[2]
        return max((one.height for one in self.known), default=0) or (int(declared) if declared.isdecimal() else 0)

    @property
    def gop_s(self) -> tuple[float, ...]:
        """The distances between key frames, over the bounds of segments that follow each other."""
        at_s, keys = 0.0, list[float]()
        for one in self.known:
            keys += [at_s + key_s for key_s in one.key_frames_s]
            at_s += one.measured_s or one.extinf_s
        return tuple(round(later - earlier, 3) for earlier, later in pairwise(keys))


@dataclass(frozen=True, slots=True)
class Found:
    """What a judge found, how often: an error (a rule is broken) or a warning."""

    severity: str
    rule: str
    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class Portrait:
    """A source: its playlists, what the judge found while it was watched, and the ladder that suits it."""

    url: str
    multivariant: bool
    tracks: tuple[Facts, ...]
    found: tuple[Found, ...] = ()
    watched_s: float = 0.0
    needs: tuple[str, ...] = ()
    """Fields of a stream beside its source that it was reached with."""

    @property
    def main(self) -> Facts:
        """The best variant: what a ladder is made of."""
        return self.tracks[0]

    @property
    def variants(self) -> tuple[Facts, ...]:
        """All of them, the best first."""
        return tuple(one for one in self.tracks if one.kind is Kind.VARIANT)

    @property
    def refusal(self) -> str:
        """Why no ladder can be made of it, or none is needed; empty where one is proposed."""
        main = self.main
        if main.fault or not main.known:
            return f"nothing of its best variant could be read: {main.fault or next((one.fault for one in main.samples), 'no segment')}"
        container = main.known[-1].container
        if main.encryption and main.encryption != "AES-128":
            return f"it is encrypted with {main.encryption}, which only players may open: pass it through"
        if not any(one.height for one in main.known):
            return "it has no picture: pass it through, or take the rung audio"
        if container not in (Container.TS, Container.FMP4):
            return f"a ladder is made of MPEG-TS and fMP4, and this is {container}: pass it through"
        if not self.ladder:
            return "it is small already, or brings its own lower qualities: pass it through"
        return ""

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """The rungs below its best variant that it does not bring itself."""
        main = self.main
        sound = SOUND_KBPS if any(len(one.codecs) > 1 for one in main.known) else 0
        return proposed(main.height, max(0, main.average_kbps - sound), [one.height for one in self.variants])


def proposed(height: int, kbps: int, offered: Sequence[int] = ()) -> tuple[Rung, ...]:
    """Return the built-in rungs below *height* lines that *offered* has none like, at no more than the quality of a source of *kbps*."""
    rungs = []
    for rung in BUILT_IN.values():
        if rung.height is None or rung.height >= height * (1 - SAME_HEIGHT):
            continue
        if any(abs(one - rung.height) <= SAME_HEIGHT * rung.height for one in offered):
            continue
        worth = kbps * (rung.height / height) ** DETAIL
        if worth >= AS_BUILT_IN * rung.video_kbps:
            rungs.append(rung)
        elif worth >= LEAST_KBPS:
            rungs.append(Rung(rung.name, rung.height, round(worth / 50) * 50))
    return tuple(rungs)


def command(portrait: Portrait) -> str:
    """Return the command that registers the source, ready to be pasted into a shell."""
    words = ["hlsrelay", "add", stream_id_for(portrait.url), portrait.url]
    return shlex.join(words + ([] if portrait.refusal else ["--ladder", format_ladder(portrait.ladder)]))


def stream_id_for(url: str) -> str:
    """Return an id that tells a person which source it is: the last folder of its path that has a name, else its host."""
    parts = urlsplit(url)
    folders = [word for word in parts.path.split("/")[:-1] if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{1,30}", word)]
    telling = [word for word in folders if word.lower() not in ("live", "hls", "out", "stream", "streams", "playlist")]
    host = re.sub(r"[^A-Za-z0-9-]", "-", parts.hostname or "").strip("-")[:32]
    return (telling or folders or [host or "news"])[-1]


def length_s(pts: Sequence[int]) -> float:
    """Return how long the pictures shown at *pts*, in order, last together, the last one as long as the others."""
    span = (pts[-1] - pts[0]) % PTS_MODULUS if len(pts) > 1 else 0
    return (span + span / (len(pts) - 1)) / TICKS if span else 0.0


def as_words(portrait: Portrait) -> Iterator[str]:
    """Give the portrait line by line."""
    yield f"{'kind':13} {'multivariant playlist' if portrait.multivariant else 'media playlist'}"
    for one in portrait.tracks:
        yield ""
        yield f"{one.name} ({one.kind})"
        if one.declared:
            yield _line("declared", ", ".join(f"{name} {value}" for name, value in one.declared.items()))
        if one.fault:
            yield _line("fault", one.fault)
            continue
        yield from _of_playlist(one)
        yield from _of_media(one)
    if portrait.watched_s:
        yield ""
        yield f"{'watched':13} {portrait.watched_s:.0f} s: {'' if portrait.found else 'no rule broken'}".rstrip(": ")
        for finding in portrait.found:
            yield _line(finding.severity, f"{finding.rule} {finding.count} x  {finding.kind}")
    yield ""
    ladder = ", ".join(f"{rung.name} at {rung.video_kbps} kbit/s" for rung in portrait.ladder)
    yield f"{'ladder':13} {'none: ' + portrait.refusal if portrait.refusal else ladder}"
    yield command(portrait)
    if portrait.needs:
        yield f"# and then: hlsrelay set {stream_id_for(portrait.url)} {' '.join(f'{name}=…' for name in portrait.needs)}"
    if _is_private(urlsplit(portrait.url).hostname or ""):
        yield "# its address is not public: the relay reads it only where HLSRELAY_ALLOW_NETWORKS names its network"


def _is_private(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        return host == "localhost"


def _of_playlist(one: Facts) -> Iterator[str]:
    real = _span([sample.measured_s for sample in one.known if sample.measured_s])
    said = f"target duration {one.target_duration_s} s, EXTINF {_span(one.extinf_s)}"
    yield _line("segments", said + (f", measured {real}" if real else ""))
    marks = {"PROGRAM-DATE-TIME": one.dated, "low-latency parts": one.low_latency, "ENDLIST": one.ended}
    counts = {"DISCONTINUITY": one.discontinuities, "GAP": one.gaps}
    tags = [name for name, there in marks.items() if there] + [f"{count} {name}" for name, count in counts.items() if count]
    yield _line("playlist", f"{len(one.extinf_s)} segments, {sum(one.extinf_s):.0f} s" + "".join(f", {tag}" for tag in tags))
    yield _line("encryption", one.encryption or "none")
    if one.repairs:
        yield _line("repaired", ", ".join(one.repairs))


def _of_media(one: Facts) -> Iterator[str]:
    faults = [sample.fault for sample in one.samples if sample.fault]
    for fault in dict.fromkeys(faults):
        yield _line("fault", fault)
    if not one.known:
        return
    last = one.known[-1]
    size = f", {last.width}x{last.height}" if last.height else ""
    rate = f" at {last.fps:.4g} fps" if last.fps else ""
    codecs = ", ".join(last.codecs) or "codecs not told"
    yield _line("media", f"{last.container}: {codecs}{size}{rate}, {one.average_kbps} kbit/s (peak {one.peak_kbps})")
    begins = [sample.begins_with_key for sample in one.known if sample.begins_with_key is not None]
    if begins:
        gop = f"every {_span(one.gop_s)}" if one.gop_s else "one seen"
        yield _line("key frames", f"{gop}; {sum(begins)} of {len(begins)} segments begin with one")


def _line(name: str, text: str) -> str:
    return f"  {name:11} {text}"


def _span(values: Sequence[float]) -> str:
    low, high = min(values, default=0.0), max(values, default=0.0)
    if not values:
        return ""
    return f"{low:.4g} s" if high - low < 0.001 else f"{low:.4g} to {high:.4g} s"


def as_data(portrait: Portrait) -> dict[str, object]:
    """Return the portrait as JSON has it; units are in the names."""
    return {
        "url": portrait.url,
        "kind": "multivariant" if portrait.multivariant else "media",
        "tracks": [_data(one) for one in portrait.tracks],
        "watched_s": round(portrait.watched_s, 1),
        "findings": [asdict(one) for one in portrait.found],
        "ladder": "" if portrait.refusal else format_ladder(portrait.ladder),
        "no_ladder_because": portrait.refusal,
        "command": command(portrait),
    }


def _data(one: Facts) -> dict[str, object]:
    last = one.known[-1] if one.known else Sample(0.0)
    return {
        "name": one.name,
        "kind": one.kind.value,
        "declared": dict(one.declared),
        "fault": one.fault,
        "target_duration_s": one.target_duration_s,
        "extinf_s": list(one.extinf_s),
        "measured_s": [sample.measured_s for sample in one.known],
        "encryption": one.encryption,
        "program_date_time": one.dated,
        "low_latency": one.low_latency,
        "ended": one.ended,
        "discontinuities": one.discontinuities,
        "gaps": one.gaps,
        "repairs": list(one.repairs),
        "container": last.container.value,
        "codecs": list(last.codecs),
        "width": last.width,
        "height": last.height,
        "fps": round(last.fps, 3) if last.fps else None,
        "average_kbps": one.average_kbps,
        "peak_kbps": one.peak_kbps,
        "gop_s": list(one.gop_s),
        "segments_begin_with_key_frame": [sample.begins_with_key for sample in one.known],
        "segment_faults": [sample.fault for sample in one.samples if sample.fault],
    }
