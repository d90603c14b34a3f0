"""`probe` on sources of every kind, in virtual time: third-party media, our own pictures, broken ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from hlsrelay.addresses import AddressPolicy
from hlsrelay.errors import UpstreamError
from hlsrelay.fields import stream_of
from hlsrelay.media.info import Container
from hlsrelay.model import Kind
from hlsrelay.portrait import Portrait, as_data, as_words
from hlsrelay.probing import probe_source
from hlsrelay.upstream import TransportFactory
from tests.corpus import body, corpus
from tests.origin import Streaming
from tests.unit.test_media_probe import picture, segment, sound
from tests.virtual import VirtualClock, run_virtually

BASE = "https://origin.example/news/"
KEY = bytes(range(16))


@dataclass
class Files:
    """A server that has these files; what is an int is a status."""

    files: Mapping[str, bytes | str | int]
    asked: list[httpx.Request] = field(default_factory=list)
    proxies: set[str] = field(default_factory=set)

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        found = self.files.get(request.url.path.rpartition("/")[2], 404)
        if isinstance(found, int):
            return httpx.Response(found)
        return httpx.Response(200, content=found.encode() if isinstance(found, str) else found)

    def transport(self) -> TransportFactory:
        def make(_: AddressPolicy, proxy: str) -> httpx.AsyncBaseTransport:
            self.proxies.add(proxy)
            return Streaming(httpx.MockTransport(self.answer))

        return make


def listing(*items: str, target: int = 4, head: str = "") -> str:
    return f"#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:{target}\n#EXT-X-MEDIA-SEQUENCE:7\n{head}" + "\n".join([*items, ""])


def probed(files: Mapping[str, bytes | str | int] | Files, watch_s: float = 0.0, **fields: str) -> Portrait:
    server = files if isinstance(files, Files) else Files(files)
    stream = stream_of("probe", {"source": BASE + "index.m3u8"} | fields)
    return run_virtually(probe_source(stream, watch_s, clock=VirtualClock(), transport=server.transport()))


def clip(number: int, idr: tuple[int, ...] = (0,)) -> bytes:
    """Four seconds of MPEG-TS: eight pictures, those of *idr* key frames, and sound."""
    start = number * 4 * 90_000
    pictures = [picture(start + index * 45_000, idr=index in idr) for index in range(8)]
    return segment(pictures[0], sound(start), *pictures[1:])


THREE = ("#EXTINF:4.0,", "7.ts", "#EXTINF:4.0,", "8.ts", "#EXTINF:4.0,", "9.ts")


def three(idr: tuple[int, ...] = (0,)) -> dict[str, bytes]:
    return {f"{number}.ts": clip(number, idr) for number in (7, 8, 9)}


def test_what_is_in_the_segments_is_told_beside_what_the_playlist_says() -> None:
    dated = "#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:00Z"
    one = probed({"index.m3u8": listing("#EXT-X-DISCONTINUITY", dated, *THREE), **three(idr=(0, 3))}).main
    assert one.fault == ""
    assert [sample.container for sample in one.known] == [Container.TS] * 3
    assert [sample.measured_s for sample in one.known] == [4.0] * 3
    assert one.gop_s == (1.5, 2.5, 1.5, 2.5, 1.5)
    assert all(sample.begins_with_key for sample in one.known)
    assert (one.dated, one.discontinuities, one.low_latency, one.encryption) == (True, 1, False, "")
    assert one.known[0].fps == pytest.approx(2.0)
    assert len(one.known[0].codecs) == 2


def test_segments_that_begin_off_the_key_frames_are_told() -> None:
    one = probed({"index.m3u8": listing(*THREE), **three(idr=(2,))}).main
    assert [sample.begins_with_key for sample in one.known] == [False] * 3
    assert one.gop_s == (4.0, 4.0)


MASTER = """#EXTM3U
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="English",LANGUAGE="en",URI="audio.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=900000,RESOLUTION=640x360,AUDIO="a"
low.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=2500000,RESOLUTION=1280x720,AUDIO="a"
high.m3u8
"""


def test_a_presentation_is_told_whole_and_a_playlist_that_is_away_is_a_fault_of_that_one_alone() -> None:
    found = probed({"index.m3u8": MASTER, "high.m3u8": listing(*THREE), "audio.m3u8": listing(*THREE), "low.m3u8": 403, **three()})
    assert found.multivariant
    assert [one.name for one in found.tracks] == ["source", "v360p-900k", "audio-en"]
    assert found.main.declared["BANDWIDTH"] == "2500000"
    assert found.tracks[1].fault.endswith("HTTP 403")
    assert found.tracks[2].kind is Kind.AUDIO
    assert any("HTTP 403" in line for line in as_words(found))


def test_a_segment_that_is_away_and_one_that_is_no_media_are_faults_beside_what_is_well() -> None:
    one = probed({"index.m3u8": listing(*THREE), **three(), "8.ts": 404, "9.ts": b"<html>Please log in</html>"}).main
    faults = ["", "segment 8: https://origin.example/news/8.ts: HTTP 404", "segment 9: no media that a relay knows"]
    assert [sample.fault for sample in one.samples] == faults
    assert one.average_kbps > 0


def encrypted(data: bytes, number: int) -> bytes:
    padder = PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(KEY), modes.CBC(number.to_bytes(16))).encryptor()
    return encryptor.update(padder.update(data) + padder.finalize()) + encryptor.finalize()


def test_aes_128_is_looked_into_with_its_key() -> None:
    files = {f"{number}.ts": encrypted(clip(number), number) for number in (7, 8, 9)}
    text = listing('#EXT-X-KEY:METHOD=AES-128,URI="k.key"', *THREE)
    one = probed({"index.m3u8": text, "k.key": KEY, **files}).main
    assert one.encryption == "AES-128"
    assert [sample.container for sample in one.samples] == [Container.TS] * 3
    assert [sample.fault for sample in one.samples] == [""] * 3


def test_drm_is_named_and_no_ladder_proposed() -> None:
    key = '#EXT-X-KEY:METHOD=SAMPLE-AES,URI="skd://k",KEYFORMAT="com.apple.streamingkeydelivery",KEYFORMATVERSIONS="1"'
    found = probed({"index.m3u8": listing(key, *THREE), **three()})
    assert found.main.encryption == "SAMPLE-AES (com.apple.streamingkeydelivery)"
    assert "which only players may open" in found.refusal


def test_repairs_of_the_playlist_are_named() -> None:
    found = probed({"index.m3u8": "\ufeff" + listing(*THREE).replace("#EXTINF:4.0,\n8", "#EXTINF:,\n8"), **three()})
    assert set(found.main.repairs) >= {"byte_order_mark", "extinf_bad"}
    assert any(line.startswith("  repaired") and "byte_order_mark" in line for line in as_words(found))


def test_what_breaks_a_rule_while_it_is_watched_is_told_and_a_watch_of_nothing_is_none() -> None:
    files: dict[str, bytes | str | int] = {"index.m3u8": listing(*THREE, target=2), **three()}
    found = probed(files, watch_s=12.0)
    assert found.watched_s == pytest.approx(12.0, abs=0.5)
    assert ("error", "A2") in {(one.severity, one.rule) for one in found.found}
    assert probed(files).found == ()


@pytest.mark.parametrize(
    ("page", "words"),
    [("<html>Please log in</html>", "not an HLS playlist"), (403, "HTTP 403"), (listing(), "no segment"), ("", "not an HLS playlist")],
)
def test_what_is_no_source_is_one_line(page: str | int, words: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        probed({"index.m3u8": page})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_headers_and_proxy_go_with_every_request_of_it_and_of_the_watch() -> None:
    server = Files({"index.m3u8": listing(*THREE), **three()})
    found = probed(server, watch_s=1.0, headers='{"Authorization": "Bearer hunter2"}', proxy="http://10.0.0.1:3128")
    assert {request.headers.get("authorization") for request in server.asked} == {"Bearer hunter2"}
    assert server.proxies == {"http://10.0.0.1:3128"}
    assert found.needs == ("headers", "proxy")
    assert "hunter2" not in "\n".join(as_words(found)) + str(as_data(found))


CORPUS = {
    "MPEG-TS": (["vhs/segments/videoOneSecond.ts", "vhs/segments/videoOneSecond1.ts"], "", Container.TS, True),
    "fMP4": (["vhs/segments/mp4Video.mp4"], "vhs/segments/mp4VideoInit.mp4", Container.FMP4, True),
    "packed AAC": (["vhs/segments/aacWithId3.aac"], "", Container.AAC, False),
    "packed AC-3": (["vhs/segments/ac3WithId3.ac3"], "", Container.AC3, False),
}


@corpus
@pytest.mark.parametrize("kind", CORPUS)
def test_media_that_others_made_are_known(kind: str) -> None:
    names, init, container, has_picture = CORPUS[kind]
    head = '#EXT-X-MAP:URI="init.mp4"\n' if init else ""
    items = [line for index in range(len(names)) for line in ("#EXTINF:1.0,", f"{index}.bin")]
    files: dict[str, bytes | str | int] = {f"{index}.bin": body(name) for index, name in enumerate(names)}
    files |= {"init.mp4": body(init)} if init else {}
    found = probed({"index.m3u8": listing(*items, head=head), **files})
    assert [one.container for one in found.main.samples] == [container] * len(names)
    assert [one.fault for one in found.main.samples] == [""] * len(names)
    assert bool(found.main.height) is has_picture
    assert found.refusal
