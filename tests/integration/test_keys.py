"""Encrypted sources in virtual time: passed on byte for byte, keys from us or from the origin, decrypted for the ladder only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hlsrelay.hls.parse import parse
from hlsrelay.media.decrypt import decrypted
from hlsrelay.media.info import MediaError
from hlsrelay.model import Key, KeyPolicy, Snapshot
from tests.integration.test_relay import Watching, relayed, scenario
from tests.origin import Origin

SECRET = b"0123456789abcdef"


def encrypted(origin: Origin) -> Origin:
    """Make *origin* announce a key that changes every five segments."""

    def fault(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith(".m3u8"):
            lines: list[str] = []
            for line in origin.playlist().text().splitlines():
                if line.startswith("#EXTINF"):
                    number = int(origin.playlist().items[len([one for one in lines if one.startswith("#EXTINF")])].sequence)
                    lines.append(f'#EXT-X-KEY:METHOD=AES-128,URI="k{number // 5}?token=secret"')
                lines.append(line)
            return httpx.Response(200, text="\n".join(lines) + "\n")
        if request.url.path.rpartition("/")[2].startswith("k"):
            origin.requests.append(request.url.path)
            return httpx.Response(200, content=SECRET)
        return None

    origin.fault = fault
    return origin


def listed(watch: Watching) -> Snapshot:
    found = parse(watch.storage.read("source/index.m3u8") or b"", "file:///x/source/index.m3u8")
    assert isinstance(found, Snapshot)
    return found


def test_keys_are_fetched_once_and_served_by_us_with_the_iv_of_the_sources_number(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        await relayed(watch, 60)
        snapshot = listed(watch)
        for segment in snapshot.segments:
            (key,) = segment.keys
            assert key.iv == f"0x{segment.sequence:032x}"  # the first generation counts as the source does
            assert key.uri is not None
            assert watch.storage.read("source/" + key.uri.rpartition("/")[2]) == SECRET
        assert "secret" not in (watch.storage.read("source/index.m3u8") or b"").decode()
        asked = [path for path in watch.origin.requests if "/k" in path]
        assert len(asked) == len(set(asked))

    assert scenario(tmp_path, play, encrypted(Origin())).relayed_exactly()


def test_keys_stay_at_the_origin_where_the_operator_wants_that(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        watch.operator.stream = replace(watch.operator.stream, keys=KeyPolicy.ORIGIN)
        await relayed(watch, 40)
        assert all(key.uri and key.uri.startswith("https://origin.example/live/k") for one in listed(watch).segments for key in one.keys)
        assert not [path for path in watch.origin.requests if "/k" in path]

    scenario(tmp_path, play, encrypted(Origin()))


def test_keys_are_swept_with_the_segments_that_needed_them(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        await relayed(watch, 400)
        assert len(list((watch.storage.folder / "source").glob("*.key"))) <= 8

    scenario(tmp_path, play, encrypted(Origin()))


def test_a_segment_in_the_clear_is_what_was_encrypted() -> None:
    iv = (7).to_bytes(16)
    plain = b"G" * 188
    padded = plain + bytes([4]) * 4
    encryptor = Cipher(algorithms.AES(SECRET), modes.CBC(iv)).encryptor()
    body = encryptor.update(padded) + encryptor.finalize()
    key = Key("AES-128", "k", "0x" + iv.hex(), "identity", ())
    assert decrypted(body, key, SECRET) == plain


@pytest.mark.parametrize(
    ("body", "secret", "iv"), [(b"x" * 15, SECRET, "0x1"), (b"x" * 16, b"short", "0x1"), (b"x" * 16, SECRET, "nonsense")]
)
def test_what_cannot_be_decrypted_is_a_media_error(body: bytes, secret: bytes, iv: str) -> None:
    with pytest.raises(MediaError):
        decrypted(body, Key("AES-128", "k", iv, "identity", ()), secret)
