"""Media that others made, through the whole relay in virtual time: what players fetch is what the source sent, to the byte."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
import respx

from hlsrelay.clock import Nudges
from hlsrelay.desk import Tools
from hlsrelay.relay import relay
from hlsrelay.storage import LocalStorage
from hlsrelay.upstream import Upstream
from tests.corpus import Block, body, corpus, files, name, plainly
from tests.integration.relaying import NoEncoder, Operator
from tests.origin import BASE, Streaming
from tests.playlists import URL, stream
from tests.virtual import VirtualClock, run_virtually

HEAD = "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:4\n"
KEY = '#EXT-X-KEY:METHOD=AES-128,URI="encryptionKey.key",IV=0x00000000000000000000000000000001\n'
ALL = ("mp4MuxedInit.mp4", "mp4Muxed.mp4", "mp4Captions.mp4", "mp4VideoInit.mp4", "mp4Video.mp4")
"""What the one resource `all.mp4` is made of, for byte ranges."""


def media(named: str) -> bytes:
    return body(f"vhs/segments/{named}")


def listed(*lines: str) -> str:
    """A playlist of files, with a tag before some."""
    return HEAD + "".join(f"{line}\n" if line.startswith("#") else f"#EXTINF:4,\n{line}\n" for line in lines)


def of(suffix: str) -> list[str]:
    return [path.name for path in files(suffix)]


def ranges() -> str:
    """Segments and init sections that are parts of one resource; some follow the one before without an offset."""
    at, where = 0, {}
    for one in ALL:
        where[one] = (len(media(one)), at)
        at += len(media(one))
    length, offset = where["mp4MuxedInit.mp4"]
    lines = [f'#EXT-X-MAP:URI="all.mp4",BYTERANGE="{length}@{offset}"']
    length, offset = where["mp4Muxed.mp4"]
    lines += [f"#EXT-X-BYTERANGE:{length}@{offset}", "all.mp4", f"#EXT-X-BYTERANGE:{where['mp4Captions.mp4'][0]}", "all.mp4"]
    length, offset = where["mp4VideoInit.mp4"]
    lines += ["#EXT-X-DISCONTINUITY", f'#EXT-X-MAP:URI="all.mp4",BYTERANGE="{length}@{offset}"']
    length, offset = where["mp4Video.mp4"]
    half = length // 2
    lines += [f"#EXT-X-BYTERANGE:{half}@{offset}", "all.mp4", f"#EXT-X-BYTERANGE:{length - half}@{offset + half}", "all.mp4"]
    return listed(*lines)


def sources() -> dict[str, str]:
    plain_ts = [one for one in of(".ts") if one != "encrypted.ts"]
    fmp4 = [
        line
        for one in ("mp4Video", "mp4Audio", "mp4Muxed", "mp4WebVtt")
        for line in ("#EXT-X-DISCONTINUITY", f'#EXT-X-MAP:URI="{one}Init.mp4"', f"{one}.mp4")
    ]
    return {
        "transport-streams": listed(*plain_ts),
        "packed-audio": listed(*of(".aac"), "#EXT-X-DISCONTINUITY", *of(".ac3")),
        "fragmented-mp4": listed(*fmp4, '#EXT-X-MAP:URI="mp4MuxedInit.mp4"', "mp4Captions.mp4", "sidx.mp4"),
        "webm": listed('#EXT-X-MAP:URI="webmVideoInit.webm"', "webmVideo.webm"),
        "byte-ranges": ranges(),
        "webvtt": listed("subtitles.vtt", "subtitles.vtt?2", KEY.strip(), "subtitlesEncrypted.vtt"),
        "encrypted": listed(KEY.strip(), "encrypted.ts", "#EXT-X-KEY:METHOD=NONE", "muxed.ts"),
    }


def sent(request: httpx.Request) -> bytes:
    named = request.url.path.rpartition("/")[2]
    return b"".join(map(media, ALL)) if named == "all.mp4" else media(named)


def served(text: str) -> respx.Router:
    """An origin of the corpus's media, and of a playlist that grows by one each four seconds and slides."""
    source = plainly(text)

    def playlist(_: httpx.Request) -> httpx.Response:
        end = min(len(source.blocks), 3 + int(asyncio.get_running_loop().time() / 4))
        return httpx.Response(200, text=source.cut(max(0, end - 6), end))

    def file(request: httpx.Request) -> httpx.Response:
        whole = sent(request)
        if "range" not in request.headers:
            return httpx.Response(200, content=whole)
        first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        return httpx.Response(206, content=whole[first : last + 1])

    router = respx.Router(assert_all_called=False)
    router.get(URL).mock(side_effect=playlist)
    router.route(url__startswith=BASE).mock(side_effect=file)
    return router


def relayed(folder: Path, text: str) -> None:
    """Relay a source until all of it is published."""

    async def run() -> None:
        with LocalStorage(folder, "news") as storage:
            transport = lambda *_: Streaming(httpx.MockTransport(served(text).async_handler))  # noqa: E731
            async with Upstream(transport=transport) as upstream:
                tools = Tools(upstream, storage, NoEncoder(), Operator(stream(window_s=3600.0)), VirtualClock(), Nudges())
                async with asyncio.timeout(8 * len(plainly(text).blocks) + 60), aclosing(relay(tools)) as ticks:
                    async for tick in ticks:
                        if tick.progress and len(tick.progress.entries) == len(plainly(text).blocks):
                            return

    run_virtually(run())


def digest(content: bytes) -> str:
    return f"{len(content)} bytes, {sha256(content).hexdigest()}"


def origins(block: Block, before: int) -> tuple[str, int]:
    """Return the digest of what a source's block stands for, and where its byte range ends; *before* is where the last one did."""
    whole = sent(httpx.Request("GET", f"{BASE}/{block.uri}"))
    length, _, offset = (block.value("#EXT-X-BYTERANGE") or "").partition("@")
    if not length:
        return digest(whole), 0
    begin = int(offset) if offset else before
    return digest(whole[begin : begin + int(length)]), begin + int(length)


def init_of(block: Block) -> str:
    named = {key: value.strip('"') for key, value in block.init}
    if not named:
        return ""
    length, _, offset = named.get("BYTERANGE", "").partition("@")
    whole = sent(httpx.Request("GET", f"{BASE}/{named['URI']}"))
    return digest(whole[int(offset) : int(offset) + int(length)] if length else whole)


@corpus
@pytest.mark.parametrize("kind", ["transport-streams", "packed-audio", "fragmented-mp4", "webm", "byte-ranges", "webvtt", "encrypted"])
def test_media_of_others_come_out_byte_for_byte(kind: str, tmp_path: Path) -> None:
    text = sources()[kind]
    relayed(tmp_path, text)
    home = tmp_path / "news" / "source"
    ours = plainly((home / "index.m3u8").read_text())
    theirs = plainly(text)
    assert list(ours.numbered()) == list(theirs.numbered())
    end = 0
    for mine, their in zip(ours.blocks, theirs.blocks, strict=True):
        expected, end = origins(their, end)
        assert mine.value("#EXT-X-GAP") is None, their.uri
        assert digest((home / mine.uri).read_bytes()) == expected, their.uri
        init = dict(mine.init).get("URI", "").strip('"')
        assert (digest((home / init).read_bytes()) if init else "") == init_of(their), their.uri
        keys = [dict(key)["URI"].strip('"') for key in mine.keys.values()]
        assert [(home / key).read_bytes() for key in keys] == [media("encryptionKey.key") for _ in their.keys]


@corpus
def test_every_media_file_of_the_corpus_is_relayed() -> None:
    texts = "".join(sources().values())
    whole = [name(path).rpartition("/")[2] for path in files(".ts", ".aac", ".ac3", ".mp4", ".vtt", ".webm", ".key")]
    assert [one for one in whole if one not in texts] == []
