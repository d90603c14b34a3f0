"""The bench's arithmetic, its source's schedule, and how it recognises segments: what its figures rest on."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from bench import probe
from bench.__main__ import chosen_peers, counts, too_much
from bench.figures import Arrival, Row, Sample, cpu_ratio, lines_of, lost, percentile, row_of, rows_as_json, sequence_kept
from bench.identity import PACKET, key_picture, number_of
from bench.origin import asked, publications
from bench.player import Player
from bench.schedule import OLDEST_NUMBER, Grid, file_of
from bench.table import drawing, markdown_table, shown_count, text_table
from bench.watching import Folders, arrivals_of, listed, played
from hlsrelay.errors import ConfigError
from hlsrelay.hls.parse import parse
from hlsrelay.model import Snapshot

PEERS = ["ffmpeg", "hlsrelay", "other"]


def arrival(
    number: int, latency_s: float = 1.0, relay_number: int | None = None, *, stream: str = "s000", identical: bool = True
) -> Arrival:
    return Arrival(stream, number, 100.0, 100.0 + latency_s, number if relay_number is None else relay_number, identical)


def sample(peer: str, cpu_s: float = 6.0, turn: int = 1, *arrivals: Arrival, streams: int = 2) -> Sample:
    return Sample(peer, streams, turn, 60.0, 4.0, cpu_s, streams * 3 * 2**20, arrivals, 60, 30)


# --- arithmetic


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([3.0], 95, 3.0), ([1.0, 2.0, 3.0], 50, 2.0), (range(1, 101), 95, 95), (range(1, 101), 50, 50), ([1.0, 9.0], 95, 9.0)],
)
def test_a_percentile_is_a_value_that_was_measured(values: list[float], percent: float, expected: float | None) -> None:
    assert percentile(values, percent) == expected


def test_costs_are_for_one_stream() -> None:
    row = row_of([sample("hlsrelay", 6.0, 1, arrival(1, 0.25), arrival(2, 0.75))])
    assert (row.cpu_s_per_stream_minute, row.pss_mib_per_stream) == (3.0, 3.0)
    assert (row.latency_p50_s, row.latency_p95_s) == (0.25, 0.75)
    assert row.requests_per_segment == 2.0  # 60 requests; 2 streams of 15 segments


def test_a_promise_is_as_good_as_the_worst_round() -> None:
    good, bad = arrival(1), arrival(2, relay_number=7, identical=False)
    row = row_of([sample("hlsrelay", 1.0, 1, good), sample("hlsrelay", 1.0, 2, good, bad), sample("hlsrelay", 1.0, 3, good)])
    assert (row.identical, row.sequence_kept) == (0.5, False)


def test_what_was_not_seen_is_none_and_not_a_promise_kept() -> None:
    row = row_of([sample("hlsrelay")])
    assert (row.latency_p50_s, row.identical, row.sequence_kept) == (None, None, None)


def test_a_ratio_is_taken_within_a_round() -> None:
    ffmpeg = [sample("ffmpeg", 10.0, 1), sample("ffmpeg", 40.0, 2), sample("ffmpeg", 10.0, 3)]
    ours = [sample("hlsrelay", 5.0, 1), sample("hlsrelay", 20.0, 2), sample("hlsrelay", 20.0, 3)]
    assert cpu_ratio(ours, ffmpeg) == 0.5  # of 0.5, 0.5 and 2: the machine was busy in round 2
    assert cpu_ratio(ours[:1], []) is None


def test_a_segment_between_two_that_never_came_is_lost() -> None:
    assert lost([arrival(1), arrival(4), arrival(3), arrival(9, stream="s001")]) == 1
    assert sequence_kept([]) is None


def test_the_json_has_a_row_for_each_peer_and_count_measured_or_not() -> None:
    lines = lines_of([sample("hlsrelay"), sample("ffmpeg"), sample("hlsrelay", streams=1)], {("other", 2): "not here"}, PEERS)
    rows = json.loads(json.dumps(rows_as_json(lines)))
    assert [(row["streams"], row["peer"]) for row in rows] == [(1, "hlsrelay"), (2, "ffmpeg"), (2, "hlsrelay"), (2, "other")]
    assert list(rows[0]) == [field.name for field in fields(Row)]
    assert rows[3]["cpu_s_per_stream_minute"] is None


def test_a_peer_that_can_t_be_had_is_in_the_table_with_the_reason() -> None:
    lines = lines_of([sample("ffmpeg", 6.0, 1, arrival(1))], {("other", 2): "it is not in its package"}, PEERS)
    assert "other, 2: it is not in its package" in text_table(lines)
    assert "| 2 | other | - |" in markdown_table(lines)


def test_the_drawing_is_svg_with_a_bar_for_each_measured_peer() -> None:
    lines = lines_of([sample("hlsrelay", 6.0, 1, arrival(1)), sample("ffmpeg"), sample("hlsrelay", streams=9)], {("other", 2): "x"}, PEERS)
    assert shown_count([line.row for line in lines]) == 2
    root = ET.fromstring(drawing(lines))
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("hlsrelay") == words.count("ffmpeg") == 3
    assert "other" not in words


def test_a_peer_that_would_need_more_than_the_machine_is_not_run() -> None:
    some, one = sample("hlsrelay", 60.0, streams=20), sample("hlsrelay", 60.0, streams=1)
    assert too_much(None, 200) == too_much(some, 18 * (os.cpu_count() or 1)) == ""  # 3 s per stream-minute: a twentieth of a core
    assert "cores" in too_much(some, 20 * (os.cpu_count() or 1))
    assert not too_much(one, 1000)  # most of that is there once


def test_what_was_written_wrong_is_said() -> None:
    assert counts("50, 1,50") == [1, 50]
    for text in ("", "0", "many", "1,-3"):
        with pytest.raises(ConfigError, match="--streams"):
            counts(text)
    assert [peer.name for peer in chosen_peers("hls,ff", tls=True)] == ["ffmpeg", "hlsrelay"]
    with pytest.raises(ConfigError, match="the peers are"):
        chosen_peers("vlc", tls=False)


# --- the source


def test_each_stream_publishes_every_segment_duration_at_a_phase_of_its_own() -> None:
    grid = Grid(1000.0, 4, 4.0, 6, 40)
    assert [grid.due_s(stream, grid.first) for stream in range(4)] == [1000.0, 1001.0, 1002.0, 1003.0]
    assert grid.due_s(1, grid.first + 10) == 1041.0


def test_jitter_stays_in_its_bounds_and_does_not_add_up() -> None:
    grid, steady = Grid(0.0, 1, 4.0, 6, 40, jitter_s=0.2), Grid(0.0, 1, 4.0, 6, 40)
    off_s = [grid.due_s(0, number) - steady.due_s(0, number) for number in range(grid.first, grid.first + 500)]
    assert -0.2 <= min(off_s) < -0.1
    assert 0.1 < max(off_s) <= 0.2


def test_the_sources_playlists_are_legal_where_its_files_begin_again() -> None:
    grid = Grid(0.0, 1, 4.0, 3, 5)
    discontinuities: dict[int, int] = {}
    for newest in range(grid.first - 1, grid.first + 20):
        found = parse(grid.playlist(newest).encode(), "http://origin.example/s000/index.m3u8")
        assert isinstance(found, Snapshot)
        assert not found.repairs
        assert [one.sequence for one in found.segments] == [newest - 2, newest - 1, newest]
        count = int(grid.playlist(newest).partition("DISCONTINUITY-SEQUENCE:")[2].split()[0])
        for line in grid.playlist(newest).splitlines():
            count += line == "#EXT-X-DISCONTINUITY"
            if line.endswith(".ts"):
                number = int(line.partition("-")[0])
                assert discontinuities.setdefault(number, count) == count  # RFC 8216 6.2.2: a segment's never changes
                assert line == f"{number}-{file_of(number, 5)}.ts"
    assert discontinuities[OLDEST_NUMBER + 5] == discontinuities[OLDEST_NUMBER + 4] + 1


# --- what is seen


def ts_packet(pid: int, payload: bytes, *, begins: bool = False) -> bytes:
    stuffing = PACKET - 4 - len(payload)
    adaptation = b"" if not stuffing else bytes([stuffing - 1]) + (b"\0" + b"\xff" * (stuffing - 2) if stuffing > 1 else b"")
    flags = 0x30 if stuffing else 0x10
    return bytes([0x47, (0x40 if begins else 0) | pid >> 8, pid & 0xFF, flags]) + adaptation + payload


def segment(picture: bytes, *, pid: int = 256, tables: bytes = b"", split: int = 50) -> bytes:
    """A TS segment of one key picture, over several packets; *tables* and *pid* are what remuxing changes."""
    stream = b"\0\0\x01\xe0\0\0\x80\x80\x05\x21\0\x01\0\x01" + b"\0\0\0\x01\x67\x64\0\x1f" + b"\0\0\x01\x65" + picture
    packets = [ts_packet(pid, stream[:split], begins=True)]
    packets += [ts_packet(pid, stream[at : at + 150]) for at in range(split, len(stream), 150)]
    return tables + ts_packet(17, b"\0" * 100) + b"".join(packets)


def test_a_segment_is_recognised_after_remuxing() -> None:
    pictures = [bytes([value]) * 300 for value in (1, 2)]
    prints = [key_picture(segment(picture)) for picture in pictures]
    assert None not in prints
    assert prints[0] != prints[1]
    assert key_picture(segment(pictures[0], pid=300, tables=ts_packet(0, b"\0" * 20), split=24)) == prints[0]
    assert key_picture(b"<html>" * 100) is None
    assert key_picture(ts_packet(256, b"\0" * 184) * 3) is None


def test_a_file_used_again_is_the_newest_segment_that_was_out() -> None:
    published = {1001: 10.0, 1006: 30.0, 1011: 50.0}
    assert number_of(1, published, 40.0, 5) == 1006
    assert number_of(1, published, 9.0, 5) is None
    assert number_of(2, published, 99.0, 5) is None


def test_arrivals_are_told_from_what_a_relay_writes(tmp_path: Path) -> None:
    bodies = [segment(bytes([value]) * 300) for value in (1, 2, 3)]
    files = [tmp_path / f"{index}.ts" for index in range(3)]
    for path, body in zip(files, bodies, strict=True):
        path.write_bytes(body)
    relay = tmp_path / "relay"
    relay.mkdir()
    (relay / "a.ts").write_bytes(bodies[1])
    (relay / "b.ts").write_bytes(bodies[2] + b"\0")
    playlist = relay / "index.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:7\n#EXTINF:4,\na.ts\n#EXTINF:4,\nb.ts\n")
    os.utime(playlist, (50.5, 50.5))
    prints = {found: index for index, body in enumerate(bodies) if (found := key_picture(body))}
    watched = Folders({"s000": playlist, "s001": tmp_path / "not" / "yet.m3u8"}, prints)
    watched.look()
    watched.look()
    published = {"s000": {1001: 50.0, 1002: 50.25}}
    arrived = arrivals_of(watched.seen, published, files, 50.0, 60.0)
    assert arrived == [Arrival("s000", 1001, 50.0, 50.5, 7, True), Arrival("s000", 1002, 50.25, 50.5, 8, False)]
    assert arrivals_of(watched.seen, published, files, 51.0, 60.0) == []


def test_a_players_words_are_read_as_far_as_they_are_whole(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("s001 7 2 50.5 1\ns001 8 -1 51.5 0\ns001 9 ")
    assert played(tmp_path / "out") == [("s001", 7, 2, 50.5, True, None), ("s001", 8, -1, 51.5, False, None)]
    (tmp_path / "log").write_text("s000 1006 3.5\ns000 1007 7.5\ns0")
    assert publications(tmp_path / "log") == {"s000": {1006: 3.5, 1007: 7.5}}
    assert played(tmp_path / "none") == []


class Session:
    """Answers as an HTTP client's session would, from *bodies* by path."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.asked: list[str] = []

    @asynccontextmanager
    async def get(self, url: str) -> AsyncGenerator[Session, None]:
        self.url = url
        self.asked.append(url.rpartition("/")[2])
        yield self

    def raise_for_status(self) -> None:
        pass

    async def read(self) -> bytes:
        return self.bodies[self.asked[-1]]

    async def text(self) -> str:
        return (await self.read()).decode()


def test_the_player_begins_three_from_the_end_and_takes_each_segment_once() -> None:
    grid, session, had = Grid(0.0, 1, 4.0, 6, 40), Session(), list[tuple[int, bytes]]()
    session.bodies = {f"{number}-{number - OLDEST_NUMBER}.ts": str(number).encode() for number in range(OLDEST_NUMBER, OLDEST_NUMBER + 9)}
    player = Player("s0", "http://x/s0/index.m3u8", cast(aiohttp.ClientSession, session), lambda _, n, body, __: had.append((n, body)))
    waits_s = []
    for newest in (1005, 1005, 1006, 1008):
        session.bodies["index.m3u8"] = grid.playlist(newest).encode()
        waits_s.append(asyncio.run(player.turn()))
    assert had == [(number, str(number).encode()) for number in range(1003, 1009)]
    assert waits_s == [4.0, 2.0, 4.0, 4.0]  # RFC 8216 6.3.4


def test_requests_are_counted_in_the_window_only() -> None:
    log = ["9.9 /s000/index.m3u8 200 1", "10.0 /s000/index.m3u8 200 1", "10.5 /s000/1006-6.ts 200 9", "20.0 /s000/index.m3u8 304 0"]
    assert asked(log, 10.0, 20.0) == (2, 1)


def test_a_playlist_is_read_as_players_number_it() -> None:
    assert listed("#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:3\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\na.ts\n#EXTINF:4,\nb.ts\n") == (
        [(3, "a.ts"), (4, "b.ts")],
        4.0,
    )


# --- the kernel's figures


def test_the_cpu_of_children_counts_alive_and_reaped() -> None:
    burn = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"
    child = f"{burn}\nimport sys\nprint(flush=True)\nsys.stdin.read()"
    parent = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\n"
        f"alive = subprocess.Popen([sys.executable, '-c', {child!r}])\nalive.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        tree = probe.tree([process.pid])
        used_s, pss_bytes = probe.cpu_s(tree), probe.pss_bytes(tree)
        process.stdin.close()
    assert len(tree) == 2
    assert used_s >= 0.38  # both children burnt 0.2 s, one of them is no more
    assert 1 << 20 < pss_bytes < 1 << 30


def test_time_spent_waiting_is_no_cpu() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        before_s = probe.cpu_s([process.pid])
        waited_until = time.process_time() + 0.1
        while time.process_time() < waited_until:
            pass
        assert probe.cpu_s([process.pid]) - before_s < 0.05
        assert process.stdin is not None
        process.stdin.close()
