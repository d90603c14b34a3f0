"""Runs one row of the fault table through the real relay, judges every published state, and says what did not come out as it must.

watch = Watch(fault, source, folder); await watch.relay(upstream, clock, seconds); watch.complaints() == []
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import respx
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from hlsrelay.addresses import AddressPolicy
from hlsrelay.clock import Clock
from hlsrelay.desk import Tools
from hlsrelay.judge import Judge, MediaPlaylist, Severity
from hlsrelay.judge.listed import Listed
from hlsrelay.link import Link
from hlsrelay.media.probe import MediaError, probe
from hlsrelay.memory_registry import MemoryRegistry
from hlsrelay.model import Stream
from hlsrelay.node import Node
from hlsrelay.processes import Children
from hlsrelay.relay import relay
from hlsrelay.reporter import Reporter
from hlsrelay.settings import load_settings
from hlsrelay.storage import LocalStorage
from hlsrelay.upstream import TransportFactory, Upstream
from tests.faulty_source import Reply, Source
from tests.integration.relaying import NoEncoder, Operator
from tests.virtual import elapse

RECOVERS_TD = 2.5
BEHIND_AT_THE_END = 2
"""Pieces that may be under way when a run ends."""
ID = "news"
WHERE = "/live/"
MAIN = f"{WHERE}source/index.m3u8"


@dataclass(frozen=True)
class Shown:
    """What stood under one number when it was published, and when that was."""

    number: int
    body: bytes | None
    cut: bool
    duration_s: float
    at_s: float
    init: bytes | None


class _Storage(LocalStorage):
    """Shows each published state to the watch."""

    watch: Watch

    def publish(self, playlist: str, text: str) -> None:
        super().publish(playlist, text)
        self.watch.published(playlist, text)


class Watch:
    """One relay of a faulty source, and the player beside it that sees every state of its playlists."""

    def __init__(self, source: Source, live: Path) -> None:
        self.source, self.fault = source, source.fault
        self.judge = Judge()
        self.shown: dict[int, Shown] = {}
        self.registry = MemoryRegistry()
        self.registry.streams[ID] = {}
        self.ended = False
        self.errors: list[str] = []
        self.recovered_td: float | None = None
        self.longest_pause_td = 0.0
        self._storage = _Storage(live, ID)
        self._storage.watch = self
        self._files = self._storage.folder
        self._node = Node(load_settings(), live, self.registry, Children(), NoEncoder())

    async def relay(self, upstream: Upstream, clock: Clock, until_td: float) -> None:
        """Relay the source until so many target durations have gone by since it began."""
        target_s = self.source.target_s
        stream = Stream(ID, f"{self.source.base}/index.m3u8", window_s=6 * target_s)
        link = Link(self.registry, ID)
        self._node.clock = clock
        reporter = Reporter(link, ID, self._node)

        async def run(tools: Tools) -> None:
            async with aclosing(relay(tools)) as ticks:
                async for tick in ticks:
                    reporter.tick(tick)
                    if tick.turn and tick.turn.error:
                        self.errors.append(tick.turn.error)

        with self._storage as storage:
            running = asyncio.ensure_future(run(Tools(upstream, storage, NoEncoder(), Operator(stream), clock)))
            try:
                await asyncio.wait((running,), timeout=(until_td - self.source.td()) * target_s)
                if running.done():
                    running.result()
            finally:
                self.source.end()
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            await link.flush()

    # What a player sees ---------------------------------------------------------------------------------------------------------------

    def published(self, playlist: str, text: str) -> None:
        """Look at one state of a playlist, and at each file that is new in it or that must still be there."""
        where, now_s = WHERE + playlist, asyncio.get_running_loop().time()
        self.judge.playlist(where, text.encode(), None, now_s)
        found = self.judge.latest(where)
        if not isinstance(found, MediaPlaylist):
            return
        self.ended = self.ended or found.ended
        for segment in self.judge.fresh(where):
            body = self._fetched(segment, now_s)
            if where == MAIN:
                init = self._read(segment.init.uri) if segment.init else None
                at_s = now_s - self.source.began_s
                clear = body if body is None or not segment.keys else self._clear(segment, body)
                self.shown[segment.sequence] = Shown(segment.sequence, clear, segment.discontinuity, segment.duration_s, at_s, init)
        for gone in self.judge.retiring(now_s):
            if self._read(gone.resource.uri) is None:
                self.judge.media(gone.resource.uri, 404, None, None, now_s)

    def _fetched(self, segment: Listed, now_s: float) -> bytes | None:
        if segment.gap:
            return None
        uri = segment.resource.uri
        if (body := self._read(uri)) is None:
            self.judge.media(uri, 404, None, None, now_s)
            return b""
        info, broken = None, ""
        if not segment.keys:
            try:
                info = probe(body)
            except MediaError as error:
                broken = str(error)
        self.judge.media(uri, 200, len(body), info, now_s, broken=broken)
        return body

    def _read(self, uri: str) -> bytes | None:
        path = self._files / uri.removeprefix(WHERE)
        return path.read_bytes() if path.is_file() else None

    def _clear(self, segment: Listed, body: bytes) -> bytes:
        """Decrypt as a player does: with the key and the IV that the playlist names."""
        (pairs,) = segment.keys
        got = {name: value.strip('"') for name, value in pairs}
        secret = self._read(f"{WHERE}source/{got['URI']}") or self._read(got["URI"]) or b""
        iv = int(got["IV"], 16) if "IV" in got else segment.sequence
        try:
            cipher = Cipher(algorithms.AES(secret), modes.CBC(iv.to_bytes(16))).decryptor()
            unpadder = PKCS7(128).unpadder()
            return unpadder.update(cipher.update(body) + cipher.finalize()) + unpadder.finalize()
        except ValueError:
            return b""

    # What must come out ---------------------------------------------------------------------------------------------------------------

    def complaints(self, *, noise_td: float = 0.0) -> list[str]:
        """Return what did not come out as the row says; moments may be *noise_td* late, on a machine that has other things to do."""
        said = self.broken_rules() + self._pieces()[1]
        gaps = [one.number for one in self.shown.values() if one.body is None]
        cuts = [one.number for one in self.shown.values() if one.cut]
        if len(gaps) > self.fault.most_gaps:
            said.append(f"GAPs at {gaps}, {self.fault.most_gaps} may be")
        if len(cuts) != self.fault.cuts:
            said.append(f"DISCONTINUITYs at {cuts}, {self.fault.cuts} should be")
        return said + self.moments(noise_td) + self._counts()

    def broken_rules(self) -> list[str]:
        """Return what no machine may do, however busy it is."""
        said = [f"rule {one.rule} of {one.where}: {one.text}" for one in self.judge.findings if one.severity is Severity.ERROR]
        return [*said, *(["ENDLIST was written"] if self.ended else []), *self._pieces()[0]]

    def _pieces(self) -> tuple[list[str], list[str]]:
        """Hold what was shown against the source's programme: every piece once, in order, whole, or a GAP that had to be.

        Returns what is wrong, and what is missing.
        """
        source, fault, wrong, said = self.source, self.fault, list[str](), list[str]()
        known: dict[bytes, list[int]] = {}
        for each in range(source.newest() + 1):
            known.setdefault(source.plain(each), []).append(each)
        last, gaps, cut, parts_s = -1, 0, False, 0.0
        for one in (self.shown[number] for number in sorted(self.shown)):
            cut = cut or one.cut
            if one.body is None:
                gaps += 1
                continue
            pieces = known.get(one.body, [])  # more than one where the source plays a file again
            piece = next((each for each in pieces if each > last), pieces[-1] if pieces else None)
            if piece is None:
                if not fault.splits:
                    wrong.append(f"number {one.number} is no whole segment of the source's")
                parts_s += one.duration_s
                continue
            if one.init is not None and one.init != fault.extras.get(fault.init(piece)):
                wrong.append(f"number {one.number} has another init section than its own")
            if last >= 0 and piece <= last:
                wrong.append(f"piece {piece} comes again, or late, at number {one.number}")
                continue
            missing = {between for between in range(last + 1, piece) if last >= 0}
            if fault.splits:
                missing -= {between for between in missing if fault.length_td(between) > 1}
            if not missing <= fault.lost:
                said.append(f"pieces {sorted(missing - fault.lost)} were to be had, and are missing before number {one.number}")
            elif gaps != len(missing) and not cut and last >= 0:
                said.append(f"{gaps} GAPs for {len(missing)} missing pieces before number {one.number}")
            last, gaps, cut = piece, 0, False
        return wrong, said + self._end(last, parts_s)

    def _end(self, last: int, parts_s: float) -> list[str]:
        """The programme goes on to its end: nothing is left behind for good."""
        source, fault = self.source, self.fault
        behind = source.newest() - last
        if fault.splits:
            longer = [piece for piece in range(last + 1, source.newest() + 1) if fault.length_td(piece) > 1]
            wanted_s = sum(fault.length_td(piece) for piece in longer[:-BEHIND_AT_THE_END]) * source.target_s
            return [] if parts_s >= wanted_s - 0.1 else [f"{parts_s:.1f} s of segments that were too long came out, of {wanted_s:.1f} s"]
        return [f"{behind} pieces behind at the end"] if behind > BEHIND_AT_THE_END else []

    def moments(self, noise_td: float = 0.0) -> list[str]:
        """Return who waited too long for something new; takes down how long players waited."""
        fault, target_s = self.fault, self.source.target_s
        came = sorted({one.at_s / target_s for one in self.shown.values() if one.body is not None})
        said = []
        if fault.returns_td is not None:
            later = [td for td in came if td >= fault.returns_td]
            self.recovered_td = later[0] - fault.returns_td if later else None
            if self.recovered_td is None or self.recovered_td > RECOVERS_TD + noise_td:
                said.append(f"the first new segment after the source's return at {fault.returns_td} is late: {self.recovered_td} TD")
            came = later
        pauses = [after - before for before, after in pairwise(came)]
        self.longest_pause_td = max(pauses, default=0.0)
        if self.longest_pause_td > fault.pause_td + noise_td:
            said.append(f"{self.longest_pause_td:.2f} TD without anything new, {fault.pause_td} may be")
        return said

    def counts(self) -> dict[str, int]:
        """Return the repairs that `show` lists, with their counts."""
        listed = self.registry.streams[ID].get("repairs", "").split()
        return {name: int(count) for name, _, count in (pair.partition("=") for pair in listed)}

    def _counts(self) -> list[str]:
        """What is repaired is counted: in the stream's fields and in the metrics, alike."""
        figure, said = self._node.metrics.registry.get_sample_value, []
        listed = self.counts()
        for name in sorted({*self.fault.repairs, *listed}):
            count = figure("hlsrelay_repairs_total", {"stream": ID, "repair": name}) or 0
            if listed.get(name, 0) != count or not count:
                said.append(f"repair {name}: {listed.get(name, 0)} in the stream's fields, {count:g} in the metrics (all: {listed})")
        for metric, outcome in self.fault.counted:
            if not figure(metric, {"stream": ID, "outcome": outcome}):
                said.append(f"{metric} counts nothing {outcome}")
        return said


# The source behind respx ----------------------------------------------------------------------------------------------------------------


def in_virtual_time(source: Source) -> TransportFactory:
    """Return what an Upstream makes its transport with: *source* behind respx."""

    async def answer(request: httpx.Request) -> httpx.Response:
        path = str(request.url.copy_with(query=None)).removeprefix(source.base + "/")
        reply = source.answer(path, request.url.query.decode(), {name.lower(): value for name, value in request.headers.items()})
        if reply.status == 0:
            return httpx.Response(200, extensions={"hangs_up": True})
        length = reply.length()
        declared = [("Content-Length", str(length))] if length is not None else []
        return httpx.Response(reply.status, headers=[*reply.headers, *declared], stream=_Line(reply))

    def make(_: AddressPolicy, __: str) -> httpx.AsyncBaseTransport:
        router = respx.Router(assert_all_called=False)
        router.route(url__startswith=source.base).mock(side_effect=answer)
        return _Wire(router.async_handler)

    return make


class _Wire(httpx.MockTransport):
    """Fails where the connection is closed in place of an answer."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        if "hangs_up" in answer.extensions:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        return answer


class _Line(httpx.AsyncByteStream):
    """Gives a body as a network and the client's HTTP layer do: in chunks, no more than was declared, and an error where it breaks off."""

    CHUNK_BYTES = 700

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reply, length = self._reply, self._reply.length()
        comes = reply.body if reply.sent is None else reply.body[: reply.sent]
        readable = comes if length is None else comes[:length]
        size = 1 if reply.byte_takes_s else self.CHUNK_BYTES
        for begin in range(0, len(readable), size):
            if reply.byte_takes_s:
                await elapse(reply.byte_takes_s)
            yield readable[begin : begin + size]
        if reply.sent is not None and not reply.without_length and (length is None or len(readable) < length):
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")


def reported(watch: Watch) -> str:
    """Return a row's figures as one line."""
    recovered = "" if watch.recovered_td is None else f"back after {watch.recovered_td:.2f} TD, "
    return f"{watch.fault.name}: {recovered}longest pause {watch.longest_pause_td:.2f} TD, {watch.counts() or 'no repair'}"
