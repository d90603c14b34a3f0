"""A ladder of an fMP4 source in virtual time: init sections come, go and come back, and no player meets a list of what is not there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from hlsrelay import model
from hlsrelay.desk import Desk
from hlsrelay.encoder import Encoded
from hlsrelay.hls.window import Progress, known_paths
from hlsrelay.ladder import parse_ladder
from hlsrelay.ledger import LocalLedger
from hlsrelay.media.probe import probe
from hlsrelay.model import KeyPolicy
from hlsrelay.recipe import EncodeJob
from hlsrelay.relay import entered
from tests.integration.relaying import Watching, relayed, scenario
from tests.integration.test_keys import SECRET, announcing, encrypted_with
from tests.origin import Origin
from tests.unit.test_fragment import SECOND, edits, fragment, init, movie, visual

INIT = init()
ONE, OTHER = init(visual(1, timescale=SECOND)), init(visual(1, timescale=SECOND), visual(2))


def content(path: str) -> bytes:
    number = int(path.rpartition("-")[2].removesuffix(".ts"))
    return fragment(number * 4 * SECOND, [3000, 9000, 0, 0])


class Made:
    """An encoder whose output has the init section that *head* gives for a number; before each job it looks at what is listed."""

    def __init__(self, watch: Watching, head: Callable[[int], bytes]) -> None:
        self._watch, self._head = watch, head
        self.jobs: list[tuple[bytes, bytes]] = []

    async def encode(self, job: EncodeJob) -> Encoded:
        look(self._watch)
        assert job.init is not None
        self.jobs.append((job.init.read_bytes(), job.source.read_bytes()))
        whole = self._head(job.number) + job.source.read_bytes() + b"\0\0\0\x0cmfraxxxx"
        for output in job.outputs.values():
            output.write_bytes(whole)
        return Encoded({name: probe(whole) for name in job.outputs}, {})

    def shed(self) -> bool:
        return False


def look(watch: Watching) -> list[str]:
    """Return the rung's init sections in the order listed; all that is listed must be there."""
    text = (watch.storage.read("small/index.m3u8") or b"").decode()
    inits = re.findall(r'#EXT-X-MAP:URI="([^"]+)"', text)
    for name in [*inits, *re.findall(r"(?m)^[^#].*$", text)]:
        assert watch.storage.read(f"small/{name}") is not None, f"{name} is listed and not there"
    return inits


def ladder_of_fmp4(watch: Watching, head: Callable[[int], bytes]) -> Made:
    made = Made(watch, head)
    watch.operator.stream = replace(watch.operator.stream, ladder=parse_ladder("small:64:60"))
    watch.encoder = made
    return made


def init_served(name: str) -> httpx.Response | None:
    return httpx.Response(200, content=INIT) if name == "i.mp4" else None


def test_a_rung_of_fmp4_lists_one_init_section_over_restarts_and_keeps_it(tmp_path: Path) -> None:
    async def play(watch: Watching) -> None:
        made = ladder_of_fmp4(watch, lambda _: ONE)
        for until_s in (60, 130, 200):
            await relayed(watch, until_s)
            assert len(look(watch)) == 1
        assert {head for head, _ in made.jobs} == {INIT}
        [name] = set(look(watch))
        assert re.fullmatch(r"init-[0-9a-f]{16}\.mp4", name)
        assert watch.storage.read(f"small/{name}") == ONE
        progress = LocalLedger(watch.storage).resume()
        assert progress is not None
        assert f"small/{name}" in known_paths(progress)  # else a sweep takes it
        number = progress.entries[-1].number
        assert watch.storage.read(f"small/{number}.m4s") == made.jobs[-1][1]
        assert "RESOLUTION=160x90" in (watch.storage.read("index.m3u8") or b"").decode()

    assert scenario(tmp_path, play, announcing(lambda _: ['#EXT-X-MAP:URI="i.mp4"'], init_served, Origin(content=content))).gaps() == []


def test_a_rung_of_fmp4_shows_its_media_when_the_source_s_edit_lists_say(tmp_path: Path) -> None:
    edited = movie(48_000, visual(1, edts=edits((3200, -1), (0, 1024))))
    response = httpx.Response(200, content=edited)

    async def play(watch: Watching) -> None:
        ladder_of_fmp4(watch, lambda _: movie(1000, visual(1)))
        await relayed(watch, 60)
        [name] = set(look(watch))
        assert watch.storage.read(f"small/{name}") == edited

    served = announcing(lambda _: ['#EXT-X-MAP:URI="i.mp4"'], lambda name: response if name == "i.mp4" else None, Origin(content=content))
    assert scenario(tmp_path, play, served).gaps() == []


def test_an_init_section_that_comes_back_is_there_and_one_that_is_listed_no_more_is_not(
    tmp_path: Path,
) -> None:
    async def play(watch: Watching) -> None:
        ladder_of_fmp4(watch, lambda number: OTHER if 120 <= number < 160 else ONE)
        await relayed(watch, 60)
        [one] = look(watch)
        await relayed(watch, 218)
        [other] = look(watch)
        assert one != other
        assert watch.storage.read(f"small/{one}") is None
        await relayed(watch, 400)
        assert look(watch) == [one]
        assert watch.storage.read(f"small/{other}") is None

    scenario(tmp_path, play, announcing(lambda _: ['#EXT-X-MAP:URI="i.mp4"'], init_served, Origin(content=content)))


def test_an_init_section_that_is_swept_before_its_segment_is_listed_is_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(watch: Watching) -> None:
        ladder_of_fmp4(watch, lambda _: ONE)

        def swept_first(progress: Progress | None, made: model.Made, desk: Desk) -> Progress:
            watch.storage.remove(made.inits)
            return entered(progress, made, desk)

        monkeypatch.setattr("hlsrelay.relay.entered", swept_first)
        await relayed(watch, 60)
        assert len(look(watch)) == 1

    scenario(tmp_path, play, announcing(lambda _: ['#EXT-X-MAP:URI="i.mp4"'], init_served, Origin(content=content)))


def test_encrypted_fmp4_is_decrypted_for_the_encoder_with_its_init_section(tmp_path: Path) -> None:
    def encrypted(path: str) -> bytes:
        return encrypted_with(SECRET, int(path.rpartition("-")[2].removesuffix(".ts")), content(path))

    def served(name: str) -> httpx.Response | None:
        match name:
            case "k":
                return httpx.Response(200, content=SECRET)
            case "i.mp4":
                return httpx.Response(200, content=encrypted_with(SECRET, 9, INIT))
        return None

    def lines(number: int) -> list[str]:
        return ['#EXT-X-KEY:METHOD=AES-128,URI="k",IV=0x9', '#EXT-X-MAP:URI="i.mp4"', f'#EXT-X-KEY:METHOD=AES-128,URI="k",IV={number:#x}']

    async def play(watch: Watching) -> None:
        made = ladder_of_fmp4(watch, lambda _: ONE)
        assert watch.operator.stream.keys is KeyPolicy.PROXY
        await relayed(watch, 60)
        assert len(look(watch)) == 1
        assert {head for head, _ in made.jobs} == {INIT}
        assert all(probe(body, INIT).video is not None for _, body in made.jobs)
        assert "#EXT-X-KEY" not in (watch.storage.read("small/index.m3u8") or b"").decode()

    assert scenario(tmp_path, play, announcing(lines, served, Origin(content=encrypted))).gaps() == []


def test_offsets_below_zero_are_mended_for_the_encoder_and_players_get_the_source_as_it_is(
    tmp_path: Path,
) -> None:
    def below(path: str) -> bytes:
        return fragment(int(path.rpartition("-")[2].removesuffix(".ts")) * 4 * SECOND, [0, 6000, -3000, -3000])

    async def play(watch: Watching) -> None:
        made = ladder_of_fmp4(watch, lambda _: ONE)
        await relayed(watch, 60)
        sources = {probe(body, INIT) for body in watch.origin.sent.values()}
        assert {probe(body, INIT) for _, body in made.jobs} <= sources
        assert not {body for _, body in made.jobs} & set(watch.origin.sent.values())
        assert watch.relayed_exactly()

    scenario(tmp_path, play, announcing(lambda _: ['#EXT-X-MAP:URI="i.mp4"'], init_served, Origin(content=below)))
