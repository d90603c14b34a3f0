"""Whole presentations of ffmpeg's own, relayed by real processes: every byte, every key, every rendition, judged and played through."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import m3u8
import pytest

from hlsrelay.web.app import HLS_JS, PAGE_DIR
from tests.acceptance.live_source import nginx
from tests.acceptance.media_checks import sha256, tracks
from tests.acceptance.relay_process import RedisServer, RelayProcess, redis_server, relaying, running
from tests.acceptance.whole_source import ENTRANCE, WholeSource, whole_source
from tests.needs import needs
from tests.waiting import until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.xdist_group("realtime"),
    needs("ffmpeg", "ffprobe", "nginx", "redis-server", "redis-cli", "openssl"),
]

WINDOW_S = "8"
"""Short, so that much slides out while the tests run."""
SLID_SEGMENTS = 4
JUDGED_SEGMENTS = int(WINDOW_S) + 3
"""Of a second each: the judge has asked again for one that left then, just before it may go (A7)."""

FIELDS: dict[str, dict[str, str]] = {
    "cmaf": {},
    "subtitles": {},
    "packed": {},
    "bytes-ts": {},
    "bytes-fmp4": {},
    "secret": {"ladder": "small:120:200,audio"},
    "secret-origin": {"keys": "origin"},
}
"""What the operator writes of each stream, beside its source."""

RENDITIONS = {
    "cmaf": {"source": "cmaf/180p/index.m3u8", "v108p-202k": "cmaf/108p/index.m3u8", "audio-en": "cmaf/en/index.m3u8"},
    "subtitles": {"source": "subtitles/main/index.m3u8", "subtitles-en": "subtitles/main/index_vtt.m3u8"},
    "packed": {"source": "packed/picture/index.m3u8", "audio-en": "packed/sound/index.m3u8"},
    "bytes-ts": {"source": "bytes-ts/index.m3u8"},
    "bytes-fmp4": {"source": "bytes-fmp4/index.m3u8"},
    "secret": {"source": "secret/index.m3u8"},
    "secret-origin": {"source": "secret/index.m3u8"},
}
"""What is passed through, and which playlist of the source it is."""

SUFFIXES = {"cmaf": {".m4s"}, "subtitles": {".ts", ".vtt"}, "packed": {".ts", ".aac"}, "bytes-fmp4": {".m4s"}}

REPEATED_MAP = r"\[mov.* Found duplicated MOOV Atom\. Skipped it"  # ffmpeg 5 reads the MAP again after each reload, and wonders
NO_SUBTITLES = r"\[hls @ .*\] Can't support the subtitle\(uri: .*\)"  # ffmpeg's own HLS subtitles are too much for it
GAPS = (
    r"\[(http|hls) @ \w+\] (HTTP error 404 Not Found|Failed to open segment \d+ of playlist \d+|keepalive request failed.*"
    r"|Could not find codec parameters for stream \d+ .*)|Consider increasing the value for the 'analyzeduration' .*"
)
"""This ffmpeg knows no EXT-X-GAP, and a busy machine may leave some in a ladder of segments of one second, its first ones too."""
PACKED_HERE = ("packed", "audio-en")
"""Made by a thread of the tests' own: where that is late on a busy machine, the source stalls, and what comes too late is a GAP."""
PLAYERS_OWN_WORDS = {"secret": GAPS, "packed": GAPS, "cmaf": REPEATED_MAP, "bytes-fmp4": REPEATED_MAP, "subtitles": NO_SUBTITLES}
ADVICE_NOT_FOLLOWED = {"secret-origin": "A-timing |A21 .*STREAM-INF without"}  # what a relay without the key can not know


@dataclass(frozen=True)
class Relayed:
    """All presentations, live, each relayed by a process of its own and watched by a player."""

    source: WholeSource
    redis: RedisServer
    relays: dict[str, RelayProcess]
    firsts: dict[str, int]
    players: dict[str, subprocess.Popen[bytes]]
    folder: Path

    def slid(self, name: str, segments: int = SLID_SEGMENTS) -> bool:
        """Return whether a stream's window begins so many segments behind where it did."""
        numbers = self.relays[name].numbers()
        return bool(numbers) and numbers[0] >= self.firsts[name] + segments

    def words_of_player(self, name: str) -> str:
        """Return what the player of *name* has said."""
        return (self.folder / f"player-{name}").read_text()


def playing(playlist: str) -> list[str]:
    """Return the ffmpeg that plays *playlist*, every rendition of it, to the end."""
    options = ["-hide_banner", "-nostdin", "-nostats", "-v", "warning", "-http_persistent", "0"]
    return ["ffmpeg", *options, "-i", playlist, "-map", "0:v", "-map", "0:a", "-f", "null", "-"]


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relayed]:
    folder = tmp_path_factory.mktemp("whole")
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        url = stack.enter_context(nginx(folder / "origin", folder / "nginx"))
        source = stack.enter_context(whole_source(folder / "origin"))
        for name, fields in FIELDS.items():
            entrance = ENTRANCE[name.removesuffix("-origin")]
            redis.hset(f"hlsrelay:stream:{name}", source=f"{url}/{entrance}", desired="run", window=WINDOW_S, **fields)
        with ThreadPoolExecutor(len(FIELDS)) as pool:  # they take a second each to start
            start = {name: partial(stack.enter_context, relaying(folder / "data" / name, redis, stream=name)) for name in FIELDS}
            relays = dict(zip(FIELDS, pool.map(lambda begin: begin(), start.values()), strict=True))
        players, firsts = {}, {}
        for name, relay in relays.items():
            until(lambda relay=relay: relay.get("index.m3u8").status_code == 200)  # type: ignore[misc]
            firsts[name] = relay.numbers()[0]
            words = folder / f"player-{name}"
            players[name] = stack.enter_context(running(playing(relay.playlist), words))
        yield Relayed(source, redis, relays, firsts, players, folder)


@dataclass(frozen=True)
class Listed:
    """What a rendition lists, and the digest of each segment as a player gets it; None of a GAP."""

    media: m3u8.M3U8
    digests: list[str | None]


def listed(relay: RelayProcess, rendition: str) -> Listed:
    media = relay.media(rendition)
    assert media is not None
    urls = [None if one.gap_tag else f"{rendition}/{one.uri}" for one in media.segments]
    return Listed(media, [sha256(relay.get(url).raise_for_status().content) if url else None for url in urls])


def is_consecutive_part(part: list[str | None], whole: list[str]) -> bool:
    def fits(at: int) -> bool:
        return all(one in (None, other) for one, other in zip(part, whole[at:], strict=False))

    return any(part) and any(fits(at) for at in range(len(whole) - len(part) + 1))


# hls.js ----------------------------------------------------------------------------------------------------------------------------------


hls_js = pytest.mark.skipif(not (PAGE_DIR / HLS_JS / "dist").exists(), reason="hls.js isn't installed: make install")
TEXT_TRACK = "document.getElementById('video').textTracks[0]"


@hls_js
@needs("chromium")
def test_hls_js_plays_whole_presentations_and_shows_their_subtitles_without_a_fatal_error(relayed: Relayed) -> None:
    browser = pytest.importorskip("tests.acceptance.browser", reason="the playwright package isn't installed")
    with browser.chromium() as chromium:
        for name in ("cmaf", "subtitles"):
            watching = browser.Viewer(chromium.new_page())
            watching.open(relayed.relays[name].url, name)
            watching.played(1)
            if name == "subtitles":
                watching.until(f"{TEXT_TRACK}?.kind === 'subtitles' && {TEXT_TRACK}.language === 'en'")
                watching.page.evaluate(f"() => {{ {TEXT_TRACK}.mode = 'showing'; }}")
                watching.until(f"(window.firstCue = {TEXT_TRACK}.activeCues?.[0]?.text)")  # at once: cues come and go
                first = watching.page.evaluate("window.firstCue")
                assert re.fullmatch(r"second \d+", first)
                watching.until(f"({TEXT_TRACK}.activeCues?.[0]?.text ?? '{first}') !== '{first}'")
            watching.played(3)
            report = watching.report()
            assert report.player.startswith("hls.js")
            assert report.fatal == ()
            assert report.height in (180, 108)
            assert report.decoded_frames > 50
            watching.page.close()


# Byte for byte ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIELDS)
def test_every_segment_of_every_rendition_is_the_sources_byte_for_byte(name: str, relayed: Relayed) -> None:
    relay = relayed.relays[name]
    until(lambda: relayed.slid(name))
    for rendition, playlist in RENDITIONS[name].items():
        ours = listed(relay, rendition)
        assert len(ours.digests) >= 6
        # The newest may not have been seen yet by whoever remembers what the source listed.
        until(lambda: is_consecutive_part(ours.digests, relayed.source.digests(playlist)), within_s=5.0)  # noqa: B023
        assert None not in ours.digests or (name, rendition) == PACKED_HERE
        assert "#EXT-X-DISCONTINUITY\n" not in relay.get(f"{rendition}/index.m3u8").text
        assert {Path(one.uri).suffix for one in ours.media.segments} <= SUFFIXES.get(name, {".ts"})


@pytest.mark.parametrize("name", ["cmaf", "bytes-fmp4"])
def test_every_rendition_keeps_its_own_init_section_byte_for_byte(name: str, relayed: Relayed) -> None:
    relay = relayed.relays[name]
    for rendition, playlist in RENDITIONS[name].items():
        (section,) = listed(relay, rendition).media.segment_map
        assert section.byterange is None
        assert relay.get(f"{rendition}/{section.uri}").raise_for_status().content == relayed.source.init(playlist)


@pytest.mark.parametrize("name", ["cmaf", "subtitles", "packed"])
def test_the_multivariant_playlist_presents_what_the_source_presents(name: str, relayed: Relayed) -> None:
    relay = relayed.relays[name]
    theirs = m3u8.load(str(relayed.source.folder / ENTRANCE[name]))
    ours = m3u8.loads(relay.get("index.m3u8").text)
    told = [
        [(one.type, one.group_id, one.name, one.language, one.default) for one in playlist.media if one.uri] for playlist in (ours, theirs)
    ]
    assert told[0] == told[1]
    assert [one.stream_info.resolution for one in ours.playlists] == [one.stream_info.resolution for one in theirs.playlists]
    assert {one.uri.partition("/")[0] for one in (*ours.playlists, *ours.media)} == set(RENDITIONS[name])


@pytest.mark.parametrize("name", ["cmaf", "subtitles", "packed"])
def test_a_moment_has_one_date_in_every_rendition(name: str, relayed: Relayed) -> None:
    relay = relayed.relays[name]
    dates = {}
    for rendition in RENDITIONS[name]:
        media = relay.media(rendition)
        assert media is not None
        dates[rendition] = {media.media_sequence + index: one.current_program_date_time for index, one in enumerate(media.segments)}
    for rendition, told in dates.items():  # the source's segments of one number are of one moment, and ours have its numbers
        for number in told.keys() & dates["source"].keys():
            assert abs((told[number] - dates["source"][number]).total_seconds()) < 0.1, (rendition, number)


# Keys ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["secret", "secret-origin"])
def test_players_get_every_key_of_a_rotation_from_whom_the_operator_says(name: str, relayed: Relayed) -> None:
    relay = relayed.relays[name]
    media = listed(relay, "source").media
    given = [(one.key.absolute_uri, relay.client.get(one.key.absolute_uri).raise_for_status().content) for one in media.segments]
    assert all(uri.startswith(relay.url) == (name == "secret") for uri, _ in given)
    assert len({body for _, body in given}) >= 2
    assert len(clear(given[0][1], media.segments[0].key.iv, relay.get(f"source/{media.segments[0].uri}").content)) % 188 == 0


def clear(key: bytes, iv: str, body: bytes) -> bytes:
    """Return *body* decrypted by openssl, which complains where the key is another's."""
    words = ["enc", "-d", "-aes-128-cbc", "-K", key.hex(), "-iv", iv.removeprefix("0x")]
    return subprocess.run(["openssl", *words], input=body, capture_output=True, check=True, timeout=30).stdout


def test_an_encrypted_source_has_a_ladder_in_the_clear_with_the_sound_of_the_source(relayed: Relayed, tmp_path: Path) -> None:
    relay = relayed.relays["secret"]
    until(lambda: len(relay.numbers("small")) >= 6)
    media = relay.media()
    assert media is not None
    whole = re.findall(r"(?<!GAP\n)#EXTINF:[^\n]*\n(\d+)\.ts", relay.get("small/index.m3u8").text)
    number = int(whole[-1])  # a busy machine may not have made others in time
    entry = media.segments[number - media.media_sequence]
    key = relay.client.get(entry.key.absolute_uri).content
    (tmp_path / "source.ts").write_bytes(clear(key, entry.key.iv, relay.get(f"source/{entry.uri}").content))
    sound = tracks(tmp_path / "source.ts")["audio"].digests
    for rung in ("small", "audio"):
        until(lambda rung=rung: number in relay.numbers(rung))  # type: ignore[misc]
        text = relay.get(f"{rung}/index.m3u8").text
        assert "#EXT-X-KEY" not in text
        (tmp_path / f"{rung}.ts").write_bytes(relay.get(f"{rung}/{number}.ts").raise_for_status().content)
        made = tracks(tmp_path / f"{rung}.ts")
        assert made["audio"].digests == sound
        assert ("video" in made) == (rung == "small")


# The end: these tests come last -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(relayed: Relayed) -> Relayed:
    """The same once the operator has stopped all streams, and everybody has gone home."""
    for name in relayed.relays:
        until(lambda name=name: relayed.slid(name, JUDGED_SEGMENTS))  # type: ignore[misc]
    for name in relayed.relays:
        relayed.redis.hset(f"hlsrelay:stream:{name}", desired="stop")
    return relayed


@pytest.mark.parametrize("name", FIELDS)
def test_ffmpeg_plays_it_live_to_its_end_without_a_word_of_warning(name: str, ended: Relayed) -> None:
    assert ended.relays[name].process.wait(20) == 0
    assert ended.players[name].wait(20) == 0
    lines = [line.strip() for line in ended.words_of_player(name).splitlines()]
    lines = [line for line in lines if line and not re.fullmatch(r"Last message repeated \d+ times", line)]
    assert [line for line in lines if not re.fullmatch(PLAYERS_OWN_WORDS.get(name, ""), line)] == []


@pytest.mark.parametrize("name", FIELDS)
def test_the_judge_has_nothing_against_it(name: str, ended: Relayed) -> None:
    judging = ended.relays[name].judging
    assert judging is not None
    verdict = judging.end()
    assert verdict.of("error") == []
    allowed = ADVICE_NOT_FOLLOWED.get(name, "A-timing ")  # these machines are noisy
    assert [warning for warning in verdict.of("warning") if not re.match(allowed, warning)] == []
    assert verdict.removed >= 1
    assert verdict.segments >= 6 * len(RENDITIONS[name])
