"""Fuzzing of what reads strangers' playlists: `python -m tests.fuzz [--seconds 600] [--seed N]`.

Playlists are made by a grammar or by mutating seeds (tests/seeds/, the corpus where it is there, and what reached new code in this run);
each goes through the parser, several in a row through numbering, window and printer too. An input fails where anything but a declared
error comes out, where a law of numbering or of our playlists breaks, or where it takes longer than its size allows. Failures are kept
in tests/seeds/ and replayed by a unit test for ever. A seed is a history: playlists with a line `%%% <seconds>` before each but the first.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import hlsrelay.hls
from hlsrelay.errors import ConfigError, PlaylistError
from hlsrelay.hls.advance import advance
from hlsrelay.hls.parse import LONGEST_TARGET_DURATION_S, parse
from hlsrelay.hls.render import media_playlist, multivariant_playlist
from hlsrelay.hls.tracks import chosen, media_playlist_alone
from hlsrelay.hls.variables import variables_of
from hlsrelay.hls.window import Progress, slide
from hlsrelay.model import SOURCE, Entry, MediaFile, Position, Presentation, Snapshot, Stream
from tests.playlists import URL, at
from tests.strangers import History, blown, generated, mutated

SEEDS = Path(__file__).parent / "seeds"
CORPUS = Path(__file__).parents[2] / "shared" / "corpus"
CODE = str(Path(hlsrelay.hls.__file__).parent)
SLOW_S = 0.05
SLOW_BYTES = 100 << 10
SLOW_LINE_S = 150e-6
"""Small lines are dear: each is a segment or a tag with all that belongs to it."""
LARGEST_BYTES = 1 << 20
MOST_SEEDS_SAVED = 40
FOREIGN = "foreign"
"""What a seed is called that holds words of the corpus: to be written anew before it is committed."""
NO_REPAIRS = {"dateranges_too_many", "program_date_time_bad"}
"""Of our own playlists: times counted back from the earliest that is believed are earlier."""
_SEPARATOR = re.compile(rb"\n%%% (\d{1,6})\n")
_BANNED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class Broken(AssertionError):
    """A law that does not hold."""


def law(holds: bool, text: str) -> None:
    """Raise Broken unless it holds."""
    if not holds:
        raise Broken(text)


def read(text: bytes) -> History:
    """Return the history that a seed holds."""
    first, *rest = _SEPARATOR.split(text)
    return [(0, first), *((int(rest[at]), rest[at + 1]) for at in range(0, len(rest), 2))]


def written(history: History) -> bytes:
    """Return a history as a seed."""
    return history[0][1] + b"".join(b"\n%%%%%% %d\n%s" % (seconds, body) for seconds, body in history[1:])


# What is run ---------------------------------------------------------------------------------------------------------------------------


@dataclass
class Relay:
    """A relay without network, media and clock: a snapshot goes in, our playlist comes out."""

    stream: Stream = field(default_factory=lambda: Stream("fuzz", URL, window_s=30.0))
    now_s: float = 0.0
    position: Position | None = None
    progress: Progress | None = None
    numbered: dict[tuple[int, int, str, object], int] = field(default_factory=dict)
    last_number: int | None = None
    heads: tuple[int, int] = (-1, -1)

    def load(self, snapshot: Snapshot) -> None:
        """Take *snapshot*; raises Broken."""
        step = advance(self.position, snapshot, self.stream, at(self.now_s))
        self.position = step.position
        for one in step.fresh:
            law(self.last_number is None or one.number == self.last_number + 1, f"number {one.number} after {self.last_number}")
            law(one.duration_s > 0, "a duration that is none")
            self.last_number = one.number
            files = {} if one.segment.gap or not one.segment.uri else {SOURCE: MediaFile(f"{one.number}.ts", 1000)}
            entry = Entry(
                one.number,
                one.duration_s,
                one.discontinuity,
                one.program_date_time,
                files,
                title=one.segment.title,
                tags=one.segment.tags,
                keys=one.segment.keys,
            )
            self.progress = self.progress or Progress(
                one.position, one.target_duration_s, discontinuity_sequence=one.discontinuity_sequence
            )
            self.progress = slide(self.progress, entry, one.position, self.stream.window_s, at(self.now_s))
        if step.fresh and self.progress is not None:
            self._shown(self.progress)

    def _shown(self, progress: Progress) -> None:
        text = media_playlist(progress, SOURCE)
        law(not _BANNED.search(text), "a control character in our playlist")
        ours = parse(text.encode(), "file:///source/index.m3u8") if len(text) < LARGEST_BYTES else None
        if isinstance(ours, Snapshot):
            doubted = {"target_duration_bad"} if progress.target_duration_s > LONGEST_TARGET_DURATION_S else set()
            law(not set(ours.repairs) - NO_REPAIRS - doubted, f"our playlist needs repairs: {ours.repairs}")
            numbers = [segment.sequence for segment in ours.segments]
            law(numbers == [entry.number for entry in progress.entries], "our playlist lists other numbers than it should")
            law(len(numbers) >= 6 or numbers[0] == progress.entries[0].number, "our playlist is too short")
            heads = (ours.media_sequence, ours.discontinuity_sequence)
            law(heads[0] >= self.heads[0] and heads[1] >= self.heads[1], f"our sequences fell: {heads} after {self.heads}")
            self.heads = heads
        law(not isinstance(ours, Presentation), "our media playlist is a multivariant one")


def parsed(body: bytes, variables: dict[str, str] | None = None) -> Snapshot | Presentation | None:
    """Parse; None where it is refused as it should be. Raises Broken."""
    try:
        found = parse(body, URL, variables)
    except PlaylistError as error:
        law(len(str(error)) < 600, "an error of many words")
        return None
    if isinstance(found, Presentation):
        law(0 < len(found.tracks) <= 100, "no tracks or too many")
        for track in found.tracks:
            law(bool(re.fullmatch(r"[A-Za-z0-9-]{1,60}", track.name)), f"a track is called {track.name!r}")
        law(len({track.name for track in found.tracks}) == len(found.tracks), "two tracks of one name")
        for wish in ("all", "best", "<=480p"):
            try:
                chosen(found, wish)
            except ConfigError:
                continue
        law(not _BANNED.search(multivariant_playlist(found, {})), "a control character in our multivariant playlist")
        variables_of(body, URL)
        return found
    numbers = [segment.sequence for segment in found.segments]
    law(numbers == list(range(numbers[0], numbers[0] + len(numbers))), "numbers that don't follow one another")
    law(all(0 < segment.duration_s <= 3600 for segment in found.segments), "a duration out of bounds")
    law(found.target_duration_s >= max(int(segment.duration_s + 0.5) for segment in found.segments), "a target duration that is too small")
    law(all(":" in segment.uri for segment in found.segments if not segment.gap), "a relative URI")
    return found


def play(history: History) -> None:
    """Run a history through everything. Raises whatever is wrong with us."""
    relay = Relay()
    for seconds, body in history:
        relay.now_s += seconds
        found = parsed(body[: LARGEST_BYTES + 1], {"imported": "value"})
        if isinstance(found, Snapshot):
            relay.load(found)
    if relay.progress is not None:
        multivariant_playlist(media_playlist_alone(URL), {SOURCE: relay.progress})


def seconds_of(work: Callable[[], object]) -> float:
    """Return the processor time that *work* takes."""
    began_s = time.process_time()
    work()
    return time.process_time() - began_s


def allowed_s(history: History) -> float:
    """Return how long a history may take: in proportion to its size and its lines."""
    lines = sum(body.count(b"\n") for _, body in history)
    return SLOW_S * max(1.0, sum(len(body) for _, body in history) / SLOW_BYTES) + SLOW_LINE_S * lines


def slowness(history: History) -> float:
    """Return by how much a history is slower than it may be, parser alone; the best of three, since the machine has other work."""
    spent_s = min(seconds_of(lambda: [parsed(body) for _, body in history]) for _ in range(3))
    return spent_s / allowed_s(history)


# The run -------------------------------------------------------------------------------------------------------------------------------


class Coverage:
    """Which lines of hlsrelay.hls were reached one after the other: what reaches a new pair is worth keeping."""

    def __init__(self) -> None:
        self.pairs: set[tuple[str, int, int]] = set()

    def of(self, work: Callable[[], object]) -> int:
        """Run *work*; returns how many pairs of lines nobody reached before."""
        before = len(self.pairs)
        sys.settrace(self._call)
        try:
            work()
        finally:
            sys.settrace(None)
        return len(self.pairs) - before

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(CODE):
            return None
        last = 0

        def line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            self.pairs.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line


@dataclass
class Run:
    """One run of the fuzzer, and what it found."""

    rng: random.Random
    seeds: list[History]
    foreign: list[History] = field(default_factory=list)
    """Seeds that others wrote, and what came of them."""
    coverage: Coverage = field(default_factory=Coverage)
    executions: int = 0
    playlists: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    kept: int = 0
    slowest: float = 0.0
    saving: bool = True

    def one(self) -> None:
        """Make one input and run it."""
        pool = self.foreign if self.foreign and self.rng.random() < 0.4 else self.seeds
        history = self._made(pool)
        self.executions += 1
        self.playlists += len(history)
        size = sum(len(body) for _, body in history)
        began_s = time.process_time()
        try:
            if size < 6000 and self.rng.random() < 0.1:
                if self.coverage.of(lambda: play(history)):
                    pool.append(history)
                    if pool is self.seeds:
                        self._keep(history)
                return
            play(history)
        except Exception as error:
            self._failed(history, error, pool is self.seeds)
            return
        spent_s = time.process_time() - began_s
        if spent_s > allowed_s(history) and (slow := slowness(history)) > 1.0:
            self.slowest = max(self.slowest, slow)
            text = f"{size >> 10} KiB take {slow:.1f} times what they may, begin {history[0][1][:60]!r}"
            self._note(f"slow {text[-50:]}", text, history, save=size < 70_000, ours=pool is self.seeds)

    def _made(self, pool: list[History]) -> History:
        rng = self.rng
        history = generated(rng) if rng.random() < 0.25 and pool is self.seeds else list(rng.choice(pool))
        if rng.random() < 0.8:
            index = rng.randrange(len(history))
            other = rng.choice(rng.choice(pool))[1]
            history[index] = (history[index][0], mutated(rng, history[index][1], other))
        if rng.random() < 0.003:
            return [(0, blown(rng, history[0][1]))]
        return history[-12:]

    def _keep(self, history: History) -> None:
        """Save an input that reaches new code: small ones, and not too many."""
        text = written(history)
        if (
            self.saving and len(text) <= 1500 and self.kept < MOST_SEEDS_SAVED and self.executions > 2000
        ):  # by then what is easily reached is reached
            self.kept += 1
            (SEEDS / f"reach-{hashlib.sha256(text).hexdigest()[:10]}.m3u8").write_bytes(text)

    def _failed(self, history: History, error: Exception, ours: bool) -> None:
        frames = [error.__traceback__]
        while frames[-1] is not None and frames[-1].tb_next is not None:
            frames.append(frames[-1].tb_next)
        last = frames[-1]
        where = f"{Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}" if last else "?"
        kind = f"{type(error).__name__} {where} {re.sub('[0-9]+', 'N', str(error))[:40]}"
        if kind not in self.failures:
            self._note(kind, f"{type(error).__name__} at {where}: {str(error)[:120]}", smaller(history, error), save=True, ours=ours)

    def _note(self, kind: str, text: str, history: History, *, save: bool, ours: bool) -> None:
        if kind in self.failures:
            return
        seed = written(history)
        path = SEEDS / f"{'fail' if ours else FOREIGN}-{hashlib.sha256(seed).hexdigest()[:10]}.m3u8"
        if save and self.saving and len(self.failures) < MOST_SEEDS_SAVED:
            path.write_bytes(seed)
        self.failures[kind] = f"{text} [{path.name if save else 'too large to keep'}]"
        print("FAILURE", self.failures[kind], flush=True)


def smaller(history: History, error: Exception) -> History:
    """Return a smaller history that fails in the same way: without whole playlists, then without lines."""
    deadline_s = time.process_time() + 10.0

    def fails(candidate: History) -> bool:
        try:
            play(candidate)
        except Exception as other:
            return type(other) is type(error) and re.sub("[0-9]+", "N", str(other)) == re.sub("[0-9]+", "N", str(error))
        return False

    def tried(history: History) -> Iterator[History]:
        for index in range(len(history)) if len(history) > 1 else ():
            yield history[:index] + history[index + 1 :]
        for index, (seconds, body) in enumerate(history):
            lines = body.split(b"\n")
            for length in (len(lines) // 2, len(lines) // 4, 4, 1):
                for start in range(0, len(lines), max(1, length)):
                    if 0 < length < len(lines):
                        less = b"\n".join(lines[:start] + lines[start + length :])
                        yield [*history[:index], (seconds, less), *history[index + 1 :]]

    found = True
    while found:
        found = False
        for candidate in tried(history):
            if time.process_time() > deadline_s:
                return history
            if fails(candidate):
                history, found = candidate, True
                break
    return history


def seeds() -> list[Path]:
    """Return the files of the seeds."""
    return sorted(SEEDS.glob("*.m3u8"))


def main() -> int:
    """Fuzz, and say what was found; exit code 1 if anything."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=600.0)
    arguments.add_argument("--seed", type=int, default=None)
    wanted = arguments.parse_args()
    seed = wanted.seed if wanted.seed is not None else random.SystemRandom().randrange(10**6)
    SEEDS.mkdir(exist_ok=True)
    corpus = [path.read_bytes() for path in sorted(CORPUS.rglob("*.m3u8"))] if CORPUS.is_dir() else []
    rng = random.Random(seed)
    begun = [read(path.read_bytes()) for path in seeds()]
    run = Run(rng, begun + [generated(rng) for _ in range(50)], [[(0, body)] for body in corpus if len(body) < 3_000])
    for history in [*run.seeds, *run.foreign]:
        try:
            run.coverage.of(lambda one=history: play(one))  # type: ignore[misc]
        except Exception as error:
            run._failed(history, error, history in run.seeds)
    known = len(run.coverage.pairs)
    print(f"seed {seed}: {len(run.seeds) + len(run.foreign)} seeds reach {known} pairs of lines", flush=True)
    until_s = time.monotonic() + wanted.seconds
    told_s = time.monotonic()
    while time.monotonic() < until_s:
        run.one()
        if time.monotonic() - told_s > 60:
            told_s = time.monotonic()
            gc.collect()
            print(f"{run.executions} executions, {len(run.coverage.pairs)} pairs, {len(run.failures)} failures", flush=True)
    pairs = len(run.coverage.pairs)
    print(f"{run.executions} executions, {run.playlists} playlists, {pairs} pairs of lines ({pairs - known} new), {run.kept} seeds kept")
    print("\n".join(run.failures.values()) or "nothing found")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
