"""Sources that mean harm: each attack ends as a named error, the relay lives on, and nothing is written outside its folder."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest

from hlsrelay import addresses, operate
from hlsrelay.errors import AddressRefused, ConfigError, SegmentLost
from hlsrelay.model import SOURCE, KeyPolicy
from hlsrelay.upstream import TransportFactory, Upstream
from tests.integration.fetching import fetched, loaded, server
from tests.integration.relaying import Watching, relayed, scenario
from tests.origin import BASE, Origin, Streaming, ts_packets
from tests.playlists import URL, live, stream

BAD_FROM_S, BAD_UNTIL_S, END_S = 14.0, 34.0, 90.0


@dataclass
class Hostile(Origin):
    """A live source that between two moments answers as *evil* says; every other URL of the world holds media too, for whoever asks."""

    evil: Callable[[httpx.Request, str], httpx.Response | str | None] = lambda *_: None
    strayed: list[str] = field(default_factory=list)
    """URLs asked for outside of the source's own folder."""

    async def anything(self, request: httpx.Request) -> httpx.Response:
        if not str(request.url).startswith(self.base):
            self.strayed.append(str(request.url))
            return httpx.Response(200, content=ts_packets(str(request.url)))
        if BAD_FROM_S <= asyncio.get_running_loop().time() < BAD_UNTIL_S:
            found = self.evil(request, self.playlist().text())
            if found is not None:
                return httpx.Response(200, text=found) if isinstance(found, str) else found
        return await self.answer(request)

    def transport(self, *others: Origin) -> TransportFactory:
        return lambda *_: Streaming(httpx.MockTransport(self.anything))


def attacked(
    folder: Path, evil: Callable[[httpx.Request, str], httpx.Response | str | None], keys: KeyPolicy = KeyPolicy.PROXY
) -> Watching:
    """Relay a source that turns hostile and good again. Whatever it does, what follows here holds."""
    decoy = folder / "etc" / "passwd"
    decoy.parent.mkdir()
    decoy.write_text("root")
    home = folder / "data" / "live"

    async def play(watch: Watching) -> None:
        watch.operator.stream = replace(watch.operator.stream, keys=keys)
        await relayed(watch, END_S)

    watch = scenario(home, play, Hostile(evil=evil))
    assert watch.numbers() == list(range(103, 103 + len(watch.numbers())))
    assert len(watch.numbers()) >= 20, "the relay did not recover"
    assert set(watch.gaps()) <= set(watch.numbers()[:-8])
    assert decoy.read_text() == "root"
    ours = re.compile(r"index\.m3u8|\.lock|\.ledger(-[a-z0-9-]+)?\.json|[a-zA-Z0-9-]+/(index\.m3u8|\d+\.ts|init-\d+\.mp4|key-\d+-\d+\.key)")
    written = [path for path in folder.rglob("*") if not path.is_dir() and path != decoy]
    strange = [path for path in written if not ours.fullmatch(path.relative_to(home / "news").as_posix())]  # raises for one outside
    assert not strange
    return watch


def errors(watch: Watching) -> str:
    """Return all that the ticks say went wrong with the source."""
    turns = [tick.turn.error for tick in watch.ticks if tick.turn and tick.turn.error]
    return "\n".join(turns + [tick.made.lost for tick in watch.ticks if tick.made and tick.made.lost])


# playlists


def moved(to: str) -> httpx.Response:
    return httpx.Response(302, headers={"Location": to})


class Raw(httpx.Response):
    """An answer whose bytes are as they are on the wire."""

    def __init__(self, body: bytes, encoding: str = "gzip") -> None:
        super().__init__(200, headers={"Content-Encoding": encoding})
        self._content = body


LONG = live(*range(1000)).text()
PLAYLISTS: dict[str, tuple[httpx.Response | str, str]] = {
    "a login page": ("<html>login", "not an HLS playlist"),
    "too large": ("#EXTM3U\n" + "#" * (4 << 20), "larger than 4096 KiB"),
    "a bomb": (Raw(gzip.compress(b"#EXTM3U\n" + bytes(8 << 20))), "larger than 4096 KiB"),
    "gzip cut off": (Raw(gzip.compress(LONG.encode())[:-20]), "cut off"),
    "gzip without end": (Raw(gzip.compress(b"") * 200), "members"),
    "no gzip": (Raw(LONG.encode()), "not compressed as it says"),
    "another encoding": (Raw(LONG.encode(), "br"), "not asked for"),
    "many lines": ("#EXTM3U\n" + "#\n" * 200_000, "lines"),
    "a long line": ("#EXTM3U\n#" + "x" * 100_000 + "\n", "line of"),
    "a long URI": ("#EXTM3U\n#EXTINF:4,\n" + "x" * 10_000 + "\n", "URI of"),
    "many keys": ("#EXTM3U\n" + "".join(f'#EXT-X-KEY:METHOD=X,KEYFORMAT="{n}"\n' for n in range(99)) + "#EXTINF:4,\n1.ts\n", "keys"),
    "attributes without end": (
        "#EXTM3U\n#EXT-X-KEY:METHOD=X," + ",".join(f"A{n}=1" for n in range(5000)) + "\n#EXTINF:4,\n1.ts\n",
        "attributes",
    ),
    "a number of 5000 digits": (f"#EXTM3U\n#EXTINF:4,\n#EXT-X-BYTERANGE:{'9' * 5000}\n1.ts\n", "broken HLS playlist"),
    "a host that is none": ("#EXTM3U\n#EXTINF:4,\nhttp://[\n", "broken HLS playlist"),
    "variables that grow": ('#EXTM3U\n#EXT-X-DEFINE:NAME="a",VALUE="' + "x" * 30_000 + '"\n' + "{$a}{$a}{$a}\n" * 2000, "EXT-X-DEFINE"),
    "redirect to a file": (moved("file:///etc/passwd"), "something other than http or https"),
    "redirect to data": (moved("data:text/plain,%23EXTM3U"), "http"),
    "redirect to gopher": (moved("gopher://10.0.0.1:6379/_FLUSHALL"), "something other than http or https"),
    "redirect to ftp": (moved("ftp://10.0.0.1/x"), "something other than http or https"),
    "redirect to loopback": (moved("http://127.0.0.1:6379/"), "not a public address"),
    "redirect to 10.x": (moved("http://10.0.0.1/"), "not a public address"),
    "redirect to a decimal": (moved("http://2130706433/"), "not a public address"),
    "redirect to octal": (moved("http://0177.0.0.1/"), "Invalid IPv4"),
    "redirect to hexadecimal": (moved("http://0x7f000001/"), "not a public address"),
    "redirect to a short form": (moved("http://127.1/"), "not a public address"),
    "redirect to a mapped address": (moved("http://[::ffff:10.0.0.1]/"), "not a public address"),
    "redirect to NAT64": (moved("http://[64:ff9b::a00:1]/"), "not a public address"),
    "redirect to 6to4": (moved("http://[2002:a00:1::]/"), "not a public address"),
    "redirect to site-local": (moved("http://[fec0::1]/"), "not a public address"),
    "redirect to localhost": (moved("http://localhost./"), "not a public address"),
    "redirect to metadata": (moved("http://169.254.169.254/latest/meta-data/"), "metadata"),
    "redirect to mapped metadata": (moved("http://[::ffff:169.254.169.254]/"), "metadata"),
    "redirect to metadata by name": (moved("http://metadata.google.internal/"), "metadata"),
    "redirect for ever": (moved(URL), "redirects"),
    "redirect to nowhere": (moved("http://x:abc/"), "Invalid port"),
    "redirect with controls": (moved("http://x/\x00\x1b[2J"), "Invalid"),
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_hostile_playlist_is_a_failed_load_of_a_name_and_the_relay_recovers(tmp_path: Path, name: str) -> None:
    answer = PLAYLISTS[name][0]
    watch = attacked(tmp_path, lambda request, _: answer if request.url.path.endswith(".m3u8") else None)
    assert re.search(PLAYLISTS[name][1], errors(watch)), errors(watch)
    assert all(len(line) < 500 and line.isprintable() for line in errors(watch).splitlines())
    assert watch.cuts() == []
    assert isinstance(watch.origin, Hostile)
    assert watch.origin.strayed == []


# URIs

REFUSED = {
    "file:///etc/passwd": "only http and https",
    "data:video/mp2t;base64,R0dHRw==": "only http and https",
    "gopher://10.0.0.1:6379/_FLUSHALL": "only http and https",
    "ftp://10.0.0.1/x.ts": "only http and https",
    "javascript:alert(1)": "only http and https",
    "concat:/etc/passwd": "only http and https",
    "//10.0.0.1/x.ts": "not a public address",
    "http://2130706433/x.ts": "not a public address",
    "http://0xa9fea9fe/latest": "metadata",
    "http://[::ffff:7f00:1]/x.ts": "not a public address",
    "http://[64:ff9b::7f00:1]/x.ts": "not a public address",
}
CLIMBING = (
    "../../../../../../etc/passwd",
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "..\\..\\etc\\passwd",
    "/etc/passwd",
    "%2e%2e/%2e%2e/etc/passwd",
    "a\x00b/../../etc/passwd\x00.ts",
    "%00.ts",
    "..",
    ".",
    "x" * 5000 + ".ts",
    "CON.ts:stream",
    "https://other.example/../../etc/passwd.ts",
    "../../.ledger.json",
    "1.ts/../../../index.m3u8",
)


def with_uris(text: str, uri: str) -> str:
    return re.sub(r"(?m)^[^#\n]+$", lambda _: uri, text)


def with_tag(text: str, tag: str) -> str:
    return text.replace("#EXTINF", f"{tag}\n#EXTINF", 1)


@pytest.mark.parametrize("where", ["segment", "KEY", "MAP"])
@pytest.mark.parametrize("uri", REFUSED)
def test_a_uri_that_leads_where_it_must_not_is_a_gap_with_a_reason(tmp_path: Path, uri: str, where: str) -> None:
    def evil(request: httpx.Request, text: str) -> str | None:
        if not request.url.path.endswith(".m3u8"):
            return None
        if where == "segment":
            newest = text.rstrip("\n").rpartition("\n")
            return f"{newest[0]}\n{uri}\n"
        return with_tag(text, f'#EXT-X-{where}:METHOD=AES-128,URI="{uri}"')

    watch = attacked(tmp_path, evil)
    assert isinstance(watch.origin, Hostile)
    assert watch.origin.strayed == []
    if where == "KEY" and not uri.startswith(("http", "//")):
        assert "passwd" not in "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.key"))
        return  # keys of other schemes are for players that know them: passed on, never fetched
    assert REFUSED[uri] in errors(watch)
    assert watch.gaps()


@pytest.mark.parametrize("where", ["segment", "KEY", "MAP", "PART"])
@pytest.mark.parametrize("uri", CLIMBING, ids=lambda uri: repr(uri)[:20])
def test_no_uri_touches_the_layout_of_the_disk(tmp_path: Path, uri: str, where: str) -> None:
    def evil(request: httpx.Request, text: str) -> str | None:
        if not request.url.path.endswith(".m3u8"):
            return None
        if where == "segment":
            return with_uris(text, uri)
        extra = "DURATION=1," if where == "PART" else "METHOD=AES-128,"
        return with_tag(text, f'#EXT-X-{where}:{extra}URI="{uri}"')

    attacked(tmp_path, evil)


@pytest.mark.parametrize(
    "word", [*CLIMBING, *REFUSED, "source", "index.m3u8", ".tmp", ".lock", "\u202e", "ä/ö", "-", "."], ids=lambda w: repr(w)[:20]
)
def test_no_name_of_a_rendition_touches_the_layout_of_the_disk(tmp_path: Path, word: str) -> None:
    """Of all that a multivariant playlist calls things by: what becomes a folder of ours is made of letters and digits."""
    media = f'GROUP-ID="{word}",NAME="{word}",LANGUAGE="{word}",ASSOC-LANGUAGE="{word}",CHANNELS="{word}"'
    master = (
        f'#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,{media},URI="live.m3u8?a"\n#EXT-X-MEDIA:TYPE=AUDIO,{media},URI="{word}"\n'
        f'#EXT-X-STREAM-INF:BANDWIDTH=1,RESOLUTION=16x{word},AUDIO="{word}",NAME="{word}"\nlive.m3u8?b\n'
        f'#EXT-X-STREAM-INF:BANDWIDTH=2,RESOLUTION=16x99999999999999999999,VIDEO="{word}"\nlive.m3u8?c\n'
    )
    origin = Hostile()
    home = tmp_path / "data" / "live"

    async def answer(request: httpx.Request) -> httpx.Response:
        if str(request.url) == f"{BASE}/master.m3u8":
            return httpx.Response(200, text=master)
        if request.url.path.endswith("live.m3u8"):
            return httpx.Response(200, text=origin.playlist().text())
        return await origin.anything(request)

    async def play(watch: Watching) -> None:
        watch.operator.stream = replace(watch.operator.stream, source=f"{BASE}/master.m3u8")
        watch.origin.transport = lambda *_: lambda *_: Streaming(httpx.MockTransport(answer))  # type: ignore[method-assign]
        await relayed(watch, 60)

    watch = scenario(home, play, origin)
    assert watch.numbers()
    strange = [
        path for path in tmp_path.rglob("*") if not re.fullmatch(r"[A-Za-z0-9.-]{1,64}", path.name) or len(path.parts) > len(home.parts) + 3
    ]
    assert not strange
    assert {path.relative_to(tmp_path).parts[:3] for path in tmp_path.rglob("*") if path.is_file()} <= {("data", "live", "news")}


@pytest.mark.parametrize("uri", REFUSED)
def test_a_variant_that_leads_where_it_must_not_is_refused_by_name(uri: str) -> None:
    async def run() -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            assert str(request.url) == URL
            return httpx.Response(200, text=f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{uri}\n")

        async with Upstream(transport=lambda *_: Streaming(httpx.MockTransport(answer))) as source:
            await source.survey(stream())
            with pytest.raises(AddressRefused, match=re.escape(REFUSED[uri])):
                await source.load(SOURCE)

    asyncio.run(run())


# control characters

CONTROLS = "".join(map(chr, [*range(0x01, 0x0A), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x2028, 0x2029]))
BANNED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def test_control_characters_never_reach_our_playlists(tmp_path: Path) -> None:
    dirt = "".join(f"a{char}" for char in CONTROLS)
    tags = f'#EXT-X-DATERANGE:ID="{dirt}",START-DATE="2026-01-01T00:00:00Z",X-COM="{dirt}"\n#EXT-MINE:{dirt}\n#EXT-X-CUE-OUT:{dirt}'
    origin = Hostile()
    master = (
        f'#EXTM3U\n#EXT-X-DEFINE:NAME="v",VALUE="{dirt}"\n#EXT-X-SESSION-DATA:DATA-ID="{dirt}",VALUE="{dirt}"\n'
        f'#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID="c",NAME="{dirt}",INSTREAM-ID="CC1"\n'
        f'#EXT-X-STREAM-INF:BANDWIDTH=1,NAME="{dirt}",X-{dirt}=1\nlive.m3u8?q={dirt}\n'
    )

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("master.m3u8"):
            return httpx.Response(200, text=master)
        if request.url.path.endswith(".m3u8"):
            text = origin.playlist().text().replace("#EXTINF:4.000,", f"{tags}\n#EXTINF:4.000,{dirt}{{$v}}")
            return httpx.Response(200, text=text.replace("#EXTM3U\n", '#EXTM3U\n#EXT-X-DEFINE:IMPORT="v"\n'))
        return await origin.anything(request)

    async def play(watch: Watching) -> None:
        watch.operator.stream = replace(watch.operator.stream, source=f"{BASE}/master.m3u8")
        watch.origin.transport = lambda *_: lambda *_: Streaming(httpx.MockTransport(answer))  # type: ignore[method-assign]
        await relayed(watch, 60)
        texts = {path: body.decode() for path, body in watch.storage.playlists.items()}
        assert {"index.m3u8", "source/index.m3u8"} <= set(texts)
        assert "#EXT-MINE:aaa" in texts["source/index.m3u8"]
        for path, text in texts.items():
            assert not BANNED.search(text), f"{path}: {BANNED.search(text)}"
            assert all(line.startswith(("#EXT", "../")) or re.fullmatch(r"[a-z0-9./-]+", line) for line in text.splitlines()), path

    scenario(tmp_path, play, origin)


# addresses on the real transport: "public" is what the test says it is


@pytest.mark.parametrize(
    ("inside", "refusal"),
    [
        ("http://inside.example:{port}/x.m3u8", "may not lead there"),
        ("http://127.0.0.3:{port}/x.m3u8", "may not lead there"),
        ("http://2130706435:{port}/x.m3u8", "may not lead there"),
        ("http://rebound.example:{port}/x.m3u8", "may not lead there"),
        ("http://metadata.example:{port}/x.m3u8", "metadata"),
    ],
)
@pytest.mark.parametrize("how", ["redirect", "segment"])
def test_a_public_source_leads_into_no_private_network_however_it_is_resolved(
    monkeypatch: pytest.MonkeyPatch, inside: str, refusal: str, how: str
) -> None:
    names = {
        "public.example": ["127.0.0.2"],
        "inside.example": ["127.0.0.3"],
        "rebound.example": ["127.0.0.3"],
        "metadata.example": ["169.254.169.254"],
        "camera.example": ["127.0.0.3"],
    }
    really, is_public = socket.getaddrinfo, addresses.is_public

    def getaddrinfo(host: str, *args: object, **rest: object) -> object:
        return [found for name in names.get(host, [host]) for found in really(name, *args, **rest)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(addresses, "is_public", lambda ip: str(ip) == "127.0.0.2" or is_public(ip))
    playlist = live(1).text()

    async def run() -> None:
        def outside(path: str) -> bytes:
            target = inside.format(port=port_inside)
            if path == "/moved.m3u8":
                return f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
            body = playlist.encode()
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body

        hit: list[str] = []

        def secret(path: str) -> bytes:
            hit.append(path)
            return outside("")

        allowed = (ip_network("127.0.0.0/8"),)
        async with server(outside, "127.0.0.2") as port, server(secret, "127.0.0.3") as port_inside, Upstream(allowed) as upstream:
            if how == "redirect":
                with pytest.raises(AddressRefused, match=refusal):
                    await loaded(upstream, f"http://public.example:{port}/moved.m3u8")
            else:
                await loaded(upstream, f"http://public.example:{port}/live.m3u8")
                with pytest.raises(SegmentLost, match=refusal):
                    await fetched(upstream, inside.format(port=port_inside), deadline_s=2.0)
            assert not hit
            assert (await loaded(upstream, f"http://camera.example:{port_inside}/live.m3u8")).segments  # a private source may be read
            assert hit

    asyncio.run(run())


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:1/x", "http://2130706433/x", "http://[::1]/x", "http://localhost/x", "http://169.254.169.254/"]
)
def test_what_is_written_out_is_refused_through_a_proxy_too(uri: str) -> None:
    async def run() -> None:
        seen: list[str] = []

        def proxy(target: str) -> bytes:
            seen.append(target)
            body = live(1).text().encode()
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body

        async with server(proxy) as port, Upstream() as upstream:
            await upstream.survey(replace(stream("http://origin.example/live.m3u8"), proxy=f"http://127.0.0.1:{port}"))
            with pytest.raises(SegmentLost, match=r"not a public address|metadata"):
                await fetched(upstream, uri, deadline_s=2.0)
        assert seen == ["http://origin.example/live.m3u8"]

    asyncio.run(run())


def test_a_proxy_at_a_metadata_address_is_refused() -> None:
    async def run() -> None:
        async with Upstream() as upstream:
            with pytest.raises(AddressRefused, match="metadata"):
                await upstream.survey(replace(stream("http://origin.example/live.m3u8"), proxy="http://169.254.169.254:80"))

    asyncio.run(run())


def test_an_id_that_leads_out_of_the_live_folder_costs_no_files(tmp_path: Path) -> None:
    """Whoever writes to Redis may write any id, and an operator who then removes that stream means its files."""
    beside = tmp_path / "beside"
    (tmp_path / "live").mkdir()
    beside.mkdir()
    for stream_id in ("../beside", "x/../../beside", str(beside)):
        with pytest.raises(ConfigError, match="can't be a stream id"):
            asyncio.run(operate.remove(stream_id, True, tmp_path, False))
        assert beside.is_dir()
