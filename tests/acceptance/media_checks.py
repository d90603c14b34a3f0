"""What ffmpeg and ffprobe say about published media. Nothing here asks the project's own parsers."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRAP = 1 << 33
IDR = 5


def sha256(body: bytes) -> str:
    """Return the digest."""
    return hashlib.sha256(body).hexdigest()


def ran(*argv: str, timeout_s: float = 90) -> subprocess.CompletedProcess[bytes]:
    """Run *argv*, which must end with 0."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr.decode(errors='replace')}"
    return done


def ffprobe(what: str | Path, *words: str) -> dict[str, Any]:
    """Return what ffprobe says; it must not complain."""
    done = ran("ffprobe", "-v", "error", "-of", "json", *words, str(what))
    assert done.stderr == b"", done.stderr.decode(errors="replace")
    return dict(json.loads(done.stdout))


@dataclass(frozen=True)
class Track:
    """A segment's packets of one kind: their PTS on the 90 kHz clock, mod 2^33, in file order, and the digests of their bytes."""

    pts: tuple[int, ...]
    digests: tuple[str, ...]

    @property
    def starts(self) -> int:
        """When the first of them is due; no segment of the tests lasts for half a wrap."""
        low = min(self.pts)
        return low if max(self.pts) - low < WRAP // 2 else min(pts for pts in self.pts if pts > WRAP // 2)


def tracks(segment: Path) -> dict[str, Track]:
    """Return the tracks of a TS segment: 'video', 'audio'."""
    words = ["-f", "mpegts", "-show_data_hash", "md5", "-show_packets", "-show_entries", "packet=codec_type,pts,data_hash"]
    found: dict[str, list[tuple[int, str]]] = {}
    for packet in ffprobe(segment, *words)["packets"]:
        found.setdefault(packet["codec_type"], []).append((int(packet["pts"]) % WRAP, packet["data_hash"]))
    return {kind: Track(tuple(pts for pts, _ in packets), tuple(digest for _, digest in packets)) for kind, packets in found.items()}


def ticks_apart(one: int, other: int) -> int:
    """Return how far apart two PTS are, the short way round."""
    return min((one - other) % WRAP, (other - one) % WRAP)


def first_slice_type(segment: Path) -> int:
    """Return the NAL unit type of the first slice of a segment's video, as ffmpeg cuts it out."""
    words = ["-f", "mpegts", "-i", str(segment), "-map", "0:v:0", "-c", "copy", "-bsf:v", "filter_units=pass_types=1-5", "-frames:v", "1"]
    stream = ran("ffmpeg", "-v", "error", "-nostdin", *words, "-f", "h264", "-").stdout
    return stream[stream.index(b"\0\0\1") + 3] & 0x1F


def written(playlist: Path, segments: list[tuple[Path, float]]) -> Path:
    """Write a playlist of files, for ffmpeg to play."""
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:10"]
    for path, duration_s in segments:
        lines += [f"#EXTINF:{duration_s},", str(path)]
    playlist.write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
    return playlist


def words_of_a_player(playlist: Path, *, video: bool, level: str = "warning") -> str:
    """Return what ffmpeg says while it decodes *playlist* from end to end; nothing is best."""
    argv = ["ffmpeg", "-hide_banner", "-nostdin", "-nostats", "-v", level, "-copyts", "-allowed_extensions", "ALL", "-i", str(playlist)]
    argv += ["-map", "0:v:0", "-fps_mode", "passthrough", "-enc_time_base:v", "1:90000"] if video else []
    return ran(*argv, "-map", "0:a:0", "-f", "null", "-").stderr.decode(errors="replace")


def sound_digest(playlist: Path) -> str:
    """Return one digest over all audio of *playlist*, as packed."""
    words = ["-allowed_extensions", "ALL", "-i", str(playlist), "-map", "0:a:0", "-c", "copy", "-f", "md5", "-"]
    return ran("ffmpeg", "-v", "error", "-nostdin", *words).stdout.decode().strip()


def picture_digests(segment: Path) -> list[str]:
    """Return the digest of every video packet of a TS segment, in order."""
    words = ["-f", "mpegts", "-i", str(segment), "-map", "0:v:0", "-c", "copy", "-f", "framemd5", "-"]
    return frame_digests(ran("ffmpeg", "-v", "error", "-nostdin", "-copyts", *words).stdout.decode())


def frame_digests(report: str) -> list[str]:
    """Return the digests that ffmpeg's framemd5 format has on its whole lines; side data may follow them there."""
    lines = report.rpartition("\n")[0].splitlines()
    return [line.split(",")[5].strip() for line in lines if not line.startswith("#")]


def digests(folder: Path, names: list[str]) -> list[str]:
    """Return the digest of each file."""
    return [sha256((folder / name).read_bytes()) for name in names]


def is_consecutive_part(part: list[str], whole: list[str]) -> bool:
    """Return whether *part* is in *whole* as it is: nothing left out, nothing twice."""
    return bool(part) and any(whole[at : at + len(part)] == part for at in range(len(whole)))


def gaps(text: str) -> list[int]:
    """Return the numbers that a media playlist lists as GAPs."""
    return [int(name) for name in re.findall(r"#EXT-X-GAP\n#EXTINF:[^\n]*\n(\d+)\.", text)]
