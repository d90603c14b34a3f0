"""Encrypted sources in virtual time: passed on byte for byte, keys from us or from the origin, decrypted for the ladder only."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hlsrelay.hls.parse import parse
from hlsrelay.hls.render import multivariant_playlist
from hlsrelay.hls.window import Progress, known_paths
from hlsrelay.ladder import parse_ladder
from hlsrelay.ledger import LocalLedger
from hlsrelay.media.decrypt import decrypted
from hlsrelay.media.info import MediaError
from hlsrelay.model import SOURCE, Key, KeyPolicy, Position, Presentation, Snapshot
from hlsrelay.transcoding import KEPT_PLAIN
from tests.integration.relaying import Watching, later, relayed, scenario
from tests.origin import Origin
from tests.playlists import T0
from tests.unit.test_media_probe import PAT, PMT, packet, picture
from tests.unit.test_media_probe import segment as muxed

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


def announcing(lines: Callable[[int], list[str]], served: Callable[[str], httpx.Response | None], origin: Origin | None = None) -> Origin:
    """An origin that writes *lines* before each segment, and answers with what is *served* under a URL's last part, query and all."""
    origin = origin or Origin()

    def fault(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.endswith(".m3u8"):
            return served(str(request.url).rpartition("/")[2])
        items = origin.playlist().items
        head = ["#EXTM3U", "#EXT-X-TARGETDURATION:4", f"#EXT-X-MEDIA-SEQUENCE:{items[0].sequence}"]
        return httpx.Response(200, text="\n".join([*head, *(line for one in items for line in (*lines(one.sequence), *one.lines())), ""]))

    origin.fault = fault
    return origin


def now_s() -> float:
    return asyncio.get_running_loop().time()


def encrypted_with(secret: bytes, iv: int, plain: bytes) -> bytes:
    filler = 16 - len(plain) % 16
    encryptor = Cipher(algorithms.AES(secret), modes.CBC(iv.to_bytes(16))).encryptor()
    return encryptor.update(plain + bytes([filler]) * filler) + encryptor.finalize()


def text_of(watch: Watching) -> str:
    return (watch.storage.read("source/index.m3u8") or b"").decode()


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


def test_a_key_whose_token_rotates_is_one_key(tmp_path: Path) -> None:
    """Tokens rotate with every load; two keys share a path and differ in a query that is no token."""
    keys = {b"one": b"1" * 16, b"two": b"2" * 16}

    def lines(number: int) -> list[str]:
        name = "one" if number // 10 % 2 else "two"
        return [f'#EXT-X-KEY:METHOD=AES-128,URI="k?id={name}&token={now_s()}",IV=0x0a']

    def served(name: str) -> httpx.Response | None:
        return httpx.Response(200, content=keys[b"one" if "id=one" in name else b"two"]) if name.startswith("k?") else None

    async def play(watch: Watching) -> None:
        for until_s in (60, 120):  # the second is a new process
            await relayed(watch, until_s)
            uris = [key.uri or "" for segment in listed(watch).segments for key in segment.keys]
            names = {uri.rpartition("/")[2] for uri in uris}
            assert len(uris) == len(listed(watch).segments)
            assert text_of(watch).count("#EXT-X-KEY") == len(names) <= 2
            for segment in listed(watch).segments:
                (key,) = segment.keys
                wanted = keys[b"one" if segment.sequence // 10 % 2 else b"two"]
                assert watch.storage.read("source/" + (key.uri or "").rpartition("/")[2]) == wanted
        assert len(list((watch.storage.folder / "source").glob("*.key"))) <= 4

    assert scenario(tmp_path, play, announcing(lines, served)).gaps() == []


def test_a_key_that_fails_for_a_moment_costs_nothing(tmp_path: Path) -> None:
    failures = [httpx.Response(503), httpx.Response(200, text="<p>please try again</p>"), httpx.Response(200, text="no")]

    def served(name: str) -> httpx.Response | None:
        if not name.startswith("k"):
            return None
        return failures.pop() if failures else httpx.Response(200, content=SECRET)

    async def play(watch: Watching) -> None:
        await relayed(watch, 60)
        assert not failures
        assert watch.storage.read("source/" + str(listed(watch).segments[0].keys[0].uri).rpartition("/")[2]) == SECRET

    assert scenario(tmp_path, play, announcing(lambda _: ['#EXT-X-KEY:METHOD=AES-128,URI="k"'], served)).gaps() == []


@pytest.mark.parametrize(("method", "length", "good"), [("AES-128", 15, False), ("AES-128", 2000, False), ("AES-256", 16, False),
                                                        ("AES-256", 32, True), ("SAMPLE-AES", 24, True)])  # fmt: skip
def test_a_key_of_the_wrong_length_is_a_gap_with_a_reason_and_is_never_published(
    tmp_path: Path, method: str, length: int, good: bool
) -> None:
    def served(name: str) -> httpx.Response | None:
        if not name.startswith("k"):
            return None
        return httpx.Response(200, content=b"x" * (length if name == "k21" else 32 if method == "AES-256" else 16))

    async def play(watch: Watching) -> None:
        await relayed(watch, 100)
        assert {len(path.read_bytes()) for path in (watch.storage.folder / "source").glob("*.key")} <= {16, 24, 32}

    watch = scenario(tmp_path, play, announcing(lambda number: [f'#EXT-X-KEY:METHOD={method},URI="k{number // 5}"'], served))
    assert watch.gaps() == ([] if good else [105, 106, 107, 108, 109])
    lost = {tick.made.lost for tick in watch.ticks if tick.made and tick.made.lost}
    assert lost == (set() if good else {f"the key has {length} bytes, not {32 if method == 'AES-256' else 16}"})


def test_an_init_section_in_the_clear_before_a_key_stays_in_the_clear(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        await relayed(watch, 90)
        for segment in listed(watch).segments:
            assert segment.init is not None
            assert segment.init.keys == ()
            assert [key.method for key in segment.keys] == ["AES-128"]

    def lines(number: int) -> list[str]:
        return ["#EXT-X-KEY:METHOD=NONE", '#EXT-X-MAP:URI="i.mp4"', f'#EXT-X-KEY:METHOD=AES-128,URI="k{number // 5}"']

    def served(name: str) -> httpx.Response | None:
        return httpx.Response(200, content=SECRET) if name.startswith("k") else None

    scenario(tmp_path, play, announcing(lines, served))


def test_an_encrypted_init_section_is_decrypted_for_a_look_and_for_nobody_else(tmp_path: Path) -> None:
    """MPEG-TS keeps its tables in the init section here: without them the media can't be read."""
    tables = encrypted_with(SECRET[::-1], 9, packet(PAT) + packet(PMT))

    def content(path: str) -> bytes:
        number = int(path.rpartition("-")[2].removesuffix(".ts"))
        frames = b"".join(picture(number * 360_000 + index * 90_000, idr=index == 0) for index in range(4))
        return encrypted_with(SECRET, number, frames)

    def served(name: str) -> httpx.Response | None:
        bodies = {"k": SECRET, "ki": SECRET[::-1], "i.ts": tables}
        return httpx.Response(200, content=bodies[name.partition("?")[0]]) if name.partition("?")[0] in bodies else None

    def lines(number: int) -> list[str]:
        return [
            '#EXT-X-KEY:METHOD=AES-128,URI="ki",IV=0x9',
            f'#EXT-X-MAP:URI="i.ts?token={now_s()}"',
            f'#EXT-X-KEY:METHOD=AES-128,URI="k",IV={number:#x}',
        ]

    async def play(watch: Watching) -> None:
        for until_s in (50, 90):  # the second is a new process
            await relayed(watch, until_s)
            (init,) = {segment.init for segment in listed(watch).segments}
            assert init is not None
            assert [int(key.iv or "", 16) for key in init.keys] == [9]
            assert watch.storage.read("source/" + init.uri.rpartition("/")[2]) == tables
            (uri,) = {key.uri for key in init.keys}
            assert watch.storage.read("source/" + (uri or "").rpartition("/")[2]) == SECRET[::-1]
            assert text_of(watch).count("#EXT-X-MAP") == 1
            progress = LocalLedger(watch.storage).resume()
            assert progress is not None
            beside = {f"source/{name}" for name in re.findall(r'(?:KEY|MAP):.*URI="([^"]+)"', text_of(watch))}
            assert len(beside) == 3
            assert beside <= known_paths(progress)  # else a sweep takes them
            assert "RESOLUTION=1280x720" in (watch.storage.read("index.m3u8") or b"").decode()
        assert len(list((watch.storage.folder / "source").glob("init-*"))) == 1

    assert scenario(tmp_path, play, announcing(lines, served, Origin(content=content))).gaps() == []


@pytest.mark.parametrize("ladder", ["", "360p"])
def test_what_was_decrypted_for_the_encoder_does_not_pile_up(ladder: str, tmp_path: Path) -> None:
    """Segments that are lost make none forget the older ones, nor does a survey."""

    def content(path: str) -> bytes:
        number = int(path.rpartition("-")[2].removesuffix(".ts"))
        frames = [picture(number * 360_000 + index * 90_000, idr=index == 0) for index in range(4)]
        return encrypted_with(SECRET, number, muxed(*frames))

    def served(name: str) -> httpx.Response | None:
        if name == "k":
            return httpx.Response(200, content=SECRET)
        return httpx.Response(404) if name.endswith(".ts") and 180 < now_s() < 260 else None

    async def play(watch: Watching) -> None:
        watch.operator.stream = replace(watch.operator.stream, ladder=parse_ladder(ladder))
        for until_s in (140, 360):
            await relayed(watch, until_s)
            kept = list(watch.storage.temp("").glob("plain*"))
            assert len(kept) == (KEPT_PLAIN if ladder else 0)

    origin = announcing(lambda number: [f'#EXT-X-KEY:METHOD=AES-128,URI="k",IV={number:#x}'], served, Origin(content=content))
    assert len(scenario(tmp_path, play, origin).gaps()) > 15


def test_an_init_section_is_there_again_after_segments_were_lost_for_long(tmp_path: Path) -> None:
    """What only lost segments asked for is listed nowhere: it may be swept meanwhile."""

    def served(name: str) -> httpx.Response | None:
        return httpx.Response(404) if name.endswith(".ts") and 40 < now_s() < 200 else None

    async def play(watch: Watching) -> None:
        await relayed(watch, 300)
        inits = {segment.init.uri.rpartition("/")[2] for segment in listed(watch).segments if segment.init}
        assert inits
        assert all(watch.storage.read(f"source/{name}") is not None for name in inits)

    watch = scenario(tmp_path, play, announcing(lambda _: ['#EXT-X-MAP:URI="i.mp4"'], served))
    assert len(watch.gaps()) > 30


@pytest.mark.parametrize("what", ["init", "key"])
@pytest.mark.parametrize("how", ["reset", "DISCONTINUITY"])
def test_an_encoder_that_restarts_has_another_init_section_and_key_at_the_same_uri(what: str, how: str, tmp_path: Path) -> None:
    origin, cut = Origin(), [10**6]
    tag = '#EXT-X-MAP:URI="i.mp4"' if what == "init" else '#EXT-X-KEY:METHOD=AES-128,URI="k",IV=0x9'

    def body(restarted: bool) -> bytes:
        return (b"after" if restarted else b"before").ljust(16, b".")

    def served(name: str) -> httpx.Response | None:
        return httpx.Response(200, content=body(now_s() >= 40)) if name in ("i.mp4", "k") else None

    def restart() -> None:
        if how == "reset":
            origin.restart("b")
        else:
            cut[0] = origin.newest() + 1

    async def play(watch: Watching) -> None:
        watch.operator.stream = replace(watch.operator.stream, window_s=60.0)
        later(40, restart)
        await relayed(watch, 85)
        (number,) = watch.cuts()
        for segment in listed(watch).segments:
            uri = segment.init.uri if segment.init else str(segment.keys[0].uri)
            assert watch.storage.read("source/" + uri.rpartition("/")[2]) == body(segment.sequence >= number)
        assert {one.sequence >= number for one in listed(watch).segments} == {False, True}

    def lines(number: int) -> list[str]:
        return ["#EXT-X-DISCONTINUITY", tag] if number == cut[0] else [tag]

    assert scenario(tmp_path, play, announcing(lines, served, origin)).gaps() == []


def test_an_init_section_that_is_the_same_after_a_discontinuity_keeps_its_file(tmp_path: Path) -> None:
    """The playlist counts no discontinuities that slid out, and of some loads it brings both sides of one."""

    async def play(watch: Watching) -> None:
        watch.operator.stream = replace(watch.operator.stream, window_s=60.0)
        await relayed(watch, 120)
        assert len({segment.init for segment in listed(watch).segments}) == 1
        assert text_of(watch).count("#EXT-X-MAP") == 1
        assert len(list((watch.storage.folder / "source").glob("init-*"))) == 1
        assert watch.origin.requests.count("i.mp4") == len(watch.cuts()) + 1

    def lines(number: int) -> list[str]:
        return ['#EXT-X-MAP:URI="i.mp4"', *(["#EXT-X-DISCONTINUITY"] if number % 4 == 1 else [])]

    watch = scenario(tmp_path, play, announcing(lines, lambda name: None))
    assert watch.gaps() == []
    assert len(watch.cuts()) > 5


def test_a_session_key_never_leads_players_past_us() -> None:
    master = (
        '#EXTM3U\n#EXT-X-SESSION-KEY:METHOD=AES-128,URI="k"\n'
        '#EXT-X-SESSION-KEY:METHOD=SAMPLE-AES,URI="skd://key",KEYFORMAT="com.apple.streamingkeydelivery"\n'
        '#EXT-X-SESSION-DATA:DATA-ID="data.json",URI="data.json"\n#EXT-X-STREAM-INF:BANDWIDTH=1\nlive/index.m3u8\n'
    )
    found = parse(master.encode(), "https://origin.example/main.m3u8")
    assert isinstance(found, Presentation)
    progress = Progress(Position("", 1, 0, 0, (), T0, T0), 4)
    proxied = multivariant_playlist(found, {SOURCE: progress}, KeyPolicy.PROXY).splitlines()
    original = multivariant_playlist(found, {SOURCE: progress}, KeyPolicy.ORIGIN).splitlines()
    data = '#EXT-X-SESSION-DATA:DATA-ID="data.json",URI="https://origin.example/data.json"'
    drm = '#EXT-X-SESSION-KEY:METHOD=SAMPLE-AES,URI="skd://key",KEYFORMAT="com.apple.streamingkeydelivery"'
    assert proxied == ["#EXTM3U", "#EXT-X-VERSION:5", drm, data]
    assert original == ["#EXTM3U", "#EXT-X-VERSION:5", '#EXT-X-SESSION-KEY:METHOD=AES-128,URI="https://origin.example/k"', drm, data]


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
