"""Whole live presentations of every packing, made at once by one ffmpeg: fMP4, byte ranges, packed audio, subtitles, AES-128.

    with whole_source(folder) as source: ...    # folder/cmaf/index.m3u8, folder/subtitles/index.m3u8, ...

All are its HLS muxer's own, but for the packed audio: that muxer knows none, so its audio segments are packed here as ADTS with the ID3
time stamp of RFC 8216 3.4. Every segment ever made stays: the test's copies.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import m3u8

from tests.acceptance.media_checks import sha256
from tests.acceptance.relay_process import running
from tests.waiting import until

FIRST = 5
LISTED = 8
KEY_LASTS_SEGMENTS = 3
LOOKED_EVERY_S = 0.1
CUES_S = 600
_OWNER = b"com.apple.streaming.transportStreamTimestamp\0"
_VIDEO = "-c:v libx264 -preset ultrafast -g 25 -keyint_min 25 -sc_threshold 0 -pix_fmt yuv420p -b:v 300k"
_AUDIO = "-c:a aac -b:a 64k"
_HLS = f"-f hls -hls_time 1 -hls_list_size {LISTED}"

BYTE_RANGES = {"bytes-ts": "index.m3u8", "bytes-fmp4": "index.m3u8"}
ENTRANCE = {
    "cmaf": "cmaf/index.m3u8",
    "subtitles": "subtitles/index.m3u8",
    "packed": "packed/index.m3u8",
    "bytes-ts": "bytes-ts/index.m3u8",
    "bytes-fmp4": "bytes-fmp4/index.m3u8",
    "secret": "secret/index.m3u8",
}
"""The playlist to relay, of each presentation."""


class WholeSource:
    """What is being made in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ranges: dict[str, list[tuple[int, int]]] = {name: [] for name in BYTE_RANGES}

    def digests(self, playlist: str) -> list[str]:
        """Return the digest of each segment that the media playlist *playlist* ever listed, oldest first."""
        name = playlist.partition("/")[0]
        if name in self._ranges:
            (body,) = (path.read_bytes() for path in (self.folder / name).glob("all.*"))
            return [sha256(body[offset : offset + length]) for length, offset in self._ranges[name]]
        text = (self.folder / playlist).read_text()
        newest = next(line for line in reversed(text.splitlines()) if line and not line.startswith("#"))
        prefix, number, suffix = re.fullmatch(r"(\D*)(\d+)(\.\w+)", newest).groups()  # type: ignore[union-attr]
        folder = (self.folder / playlist).parent
        return [sha256((folder / f"{prefix}{one}{suffix}").read_bytes()) for one in range(FIRST, int(number) + 1)]

    def init(self, playlist: str) -> bytes:
        """Return the init section that *playlist* names."""
        section = m3u8.load(str(self.folder / playlist)).segment_map[0]
        body = (self.folder / playlist).parent.joinpath(section.uri).read_bytes()
        length, _, offset = (section.byterange or f"{len(body)}@0").partition("@")
        return body[int(offset) : int(offset) + int(length)]

    def look(self) -> None:
        """Do what ffmpeg does not: turn the key, pack the sound, remember byte ranges."""
        for name, playlist in BYTE_RANGES.items():
            known = self._ranges[name]
            known += [span for span in _spans(self.folder / name / playlist) if span not in known]
        turned = len(_listed(self.folder / "secret" / "index.m3u8")) // KEY_LASTS_SEGMENTS
        self.turn_key(turned)
        self._pack()

    def turn_key(self, number: int) -> None:
        """Let ffmpeg encrypt with another key from its next segment on."""
        folder = self.folder / "secret"
        if not (folder / f"key-{number}").exists():
            (folder / f"key-{number}").write_bytes(bytes([number] * 16))
            _replace(folder / "info", f"key-{number}\n{folder}/key-{number}\n")

    def _pack(self) -> None:
        plain = self.folder / "packed" / "plain"
        text = (plain / "index.m3u8").read_text() if (plain / "index.m3u8").exists() else ""
        for name in re.findall(r"^(\d+)\.ts$", text, re.MULTILINE):
            packed = plain.parent / "sound" / f"{name}.aac"
            if not packed.exists():
                packed.parent.mkdir(exist_ok=True)
                packed.write_bytes(_packed((plain / f"{name}.ts").read_bytes()))
        if text:
            _replace(plain.parent / "sound" / "index.m3u8", text.replace(".ts\n", ".aac\n"))


def _spans(playlist: Path) -> list[tuple[int, int]]:
    text = playlist.read_text() if playlist.exists() else ""
    return [(int(length), int(offset)) for length, offset in re.findall(r"^#EXT-X-BYTERANGE:(\d+)@(\d+)$", text, re.MULTILINE)]


def _listed(playlist: Path) -> list[Path]:
    return list(playlist.parent.glob("*.ts"))


def _packed(segment: bytes) -> bytes:
    """Return the sound of a TS segment that holds nothing else, as packed audio: its ADTS frames behind their time."""
    frames, pts_90k = b"", -1
    for at in range(0, len(segment), 188):
        packet = segment[at : at + 188]
        payload = packet[5 + packet[4] :] if packet[3] & 0x20 else packet[4:]
        if packet[1] & 0x40 and payload[:4] == b"\0\0\1\xc0":
            if pts_90k < 0:
                high, middle, low = payload[9], int.from_bytes(payload[10:12]), int.from_bytes(payload[12:14])
                pts_90k = (high >> 1 & 7) << 30 | middle >> 1 << 15 | low >> 1
            payload = payload[9 + payload[8] :]
        elif pts_90k < 0 or int.from_bytes(packet[1:3]) & 0x1FFF < 0x100 or packet[1] & 0x40:
            continue  # tables
        frames += payload
    return _id3(pts_90k) + frames


def _id3(pts_90k: int) -> bytes:
    """Return the tag that says when packed audio begins."""
    stamp = b"PRIV" + (len(_OWNER) + 8).to_bytes(4) + b"\0\0" + _OWNER + pts_90k.to_bytes(8)
    return b"ID3\x04\0\0" + bytes([0, 0, len(stamp) >> 7, len(stamp) & 0x7F]) + stamp


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def _argv(folder: Path) -> list[str]:
    pictures = "testsrc2=size=320x180:rate=25"
    argv = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-re", "-f", "lavfi", "-i", pictures]
    argv += ["-re", "-f", "lavfi", "-i", "sine=440:sample_rate=48000", "-i", "cues.vtt"]
    argv += ["-filter_complex", "[0:v]split=2[large][c];[c]scale=192:108[small]"]
    outputs = [
        f"-map [large] -map [small] -map 1:a {_VIDEO} -b:v:1 120k {_AUDIO} {_HLS} -start_number {FIRST} -hls_segment_type fmp4"
        " -hls_flags temp_file+program_date_time+independent_segments -master_pl_name index.m3u8 -hls_fmp4_init_filename init.mp4"
        " -var_stream_map v:0,agroup:sound,name:180p|v:1,agroup:sound,name:108p|a:0,agroup:sound,default:yes,language:en,name:en"
        " -hls_segment_filename cmaf/%v/%d.m4s cmaf/%v/index.m3u8",
        f"-map 0:v -map 1:a -map 2:s {_VIDEO} {_AUDIO} -c:s webvtt {_HLS} -start_number {FIRST} -hls_flags temp_file+program_date_time"
        " -master_pl_name index.m3u8 -var_stream_map v:0,a:0,s:0,sgroup:text,language:en,name:main"
        " -hls_segment_filename subtitles/%v/%d.ts subtitles/%v/index.m3u8",
        f"-map 0:v {_VIDEO} {_HLS} -start_number {FIRST} -hls_flags temp_file -hls_segment_filename packed/picture/%d.ts"
        " packed/picture/index.m3u8",
        f"-map 1:a {_AUDIO} {_HLS} -start_number {FIRST} -hls_flags temp_file -hls_segment_filename packed/plain/%d.ts"
        " packed/plain/index.m3u8",
        f"-map 0:v -map 1:a {_VIDEO} {_AUDIO} {_HLS} -hls_flags single_file -hls_segment_filename bytes-ts/all.ts bytes-ts/index.m3u8",
        f"-map 0:v -map 1:a {_VIDEO} {_AUDIO} {_HLS} -hls_segment_type fmp4 -hls_flags single_file"
        " -hls_segment_filename bytes-fmp4/all.mp4 bytes-fmp4/index.m3u8",
        f"-map 0:v -map 1:a {_VIDEO} {_AUDIO} {_HLS} -start_number {FIRST} -hls_flags temp_file+periodic_rekey"
        f" -hls_key_info_file {folder}/secret/info -hls_segment_filename secret/%d.ts secret/index.m3u8",
    ]
    for output in outputs:
        argv += [word.replace("|", " ") for word in output.split()]
    return argv


def _cue(second: int) -> str:
    at = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
    return f"{at}.000 --> {at}.900\nsecond {second}\n"


@contextmanager
def whole_source(folder: Path) -> Iterator[WholeSource]:
    """Make all presentations in real time while the block runs; they are there, with three segments each, when it begins."""
    for name in ("cmaf", "subtitles", "packed/picture", "packed/plain", "packed/sound", "bytes-ts", "bytes-fmp4", "secret"):
        (folder / name).mkdir(parents=True)
    (folder / "cues.vtt").write_text("\n".join(["WEBVTT\n", *map(_cue, range(CUES_S))]))
    _replace(
        folder / "packed" / "index.m3u8",
        '#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="sound",NAME="English",LANGUAGE="en",DEFAULT=YES,URI="sound/index.m3u8"\n'
        '#EXT-X-STREAM-INF:BANDWIDTH=600000,CODECS="avc1.42c00d,mp4a.40.2",RESOLUTION=320x180,AUDIO="sound"\npicture/index.m3u8\n',
    )
    source, over, failures = WholeSource(folder), threading.Event(), list[BaseException]()
    source.turn_key(0)

    def work() -> None:
        try:
            while not over.wait(LOOKED_EVERY_S):
                source.look()
        except BaseException as failure:
            failures.append(failure)

    helper = threading.Thread(target=work, name="packager")
    with running(_argv(folder), folder / "ffmpeg.log", cwd=folder):
        helper.start()
        try:
            until(lambda: failures or len(list((folder / "packed" / "sound").glob("*.aac"))) >= 3)
            yield source
        finally:
            over.set()
            helper.join()
    assert not failures, failures
    assert (folder / "ffmpeg.log").read_text() == ""
