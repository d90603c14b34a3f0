"""The built-in live channel: a real encoder, published as a live HLS source over HTTP, for whoever has none at hand.

The picture shows the time of day (UTC) in seven-segment digits, drawn from boxes because a bare machine has no fonts; things that move,
so that a stutter shows; a white band that flashes with a beep at each full second, so that lip sync can be seen and measured.
When the encoder dies it is started again and goes on behind a DISCONTINUITY, as real ones do.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hlsrelay import embedded
from hlsrelay.clock import Clock
from hlsrelay.errors import ChildError, ResourceBusy
from hlsrelay.processes import Child, Children
from hlsrelay.web.server import serve as serve_app

PLAYLIST = "live.m3u8"
SEGMENT_S = 2
LISTED_SEGMENTS = 8
FRAME_RATE = 25
WIDTH, HEIGHT = 1280, 720
FLASH_BAND_HEIGHT = 120
"""Lines at the top of the picture that are white while the beep lasts."""

STALL_S = 15.0
FUTILE_STARTS = 3
"""An encoder that ended this often without ever publishing anything will not do better."""

_LOCK = "lock"
_FOLDER = "hlsrelay-demo-"
_POLL_S = 0.05

log = structlog.get_logger(__name__)


async def serve_channel(
    http: str,
    on_ready: Callable[[str], None],
    *,
    children: Children | None = None,
    folder: Path | None = None,
    ffmpeg: Path | None = None,
    clock: Clock | None = None,
) -> None:
    """Publish the channel at *http* ('127.0.0.1:0': any port) until cancelled; tell *on_ready* its URL once the playlist is there.

    Without *folder* the files live in a temporary one that is removed at the end, or at the next start after a kill -9. In a *folder*
    they stay, and the next start goes on from them. Raises MissingProgram, ConfigError, ResourceBusy, and ChildError when ffmpeg
    can't make the channel at all.
    """
    ffmpeg = ffmpeg or embedded.ffmpeg_path()
    sweep()
    with _given(folder) if folder else _temporary() as files:
        async with serve_app(application(files), http) as url:
            before = _published_at(files)
            encoding = asyncio.create_task(_encode(children or Children(), ffmpeg, files, clock or Clock()), name="demo encoder")
            try:
                while _published_at(files) == before and not encoding.done():
                    await asyncio.wait({encoding}, timeout=_POLL_S)
                if not encoding.done():
                    on_ready(f"{url}/{PLAYLIST}")
                await encoding
            finally:
                encoding.cancel()
                await asyncio.wait({encoding})


def _published_at(folder: Path) -> int | None:
    """Return what differs whenever the playlist was written anew; None while there is none."""
    try:
        return (folder / PLAYLIST).stat().st_mtime_ns
    except FileNotFoundError:
        return None


async def _encode(children: Children, ffmpeg: Path, folder: Path, clock: Clock) -> None:
    """Keep an encoder running for ever. Raises ChildError if it never gets anything out."""
    short_lives = 0
    while True:
        argv = encoder_argv(ffmpeg, folder, clock.utc_now(), go_on=_published_at(folder) is not None)
        async with children.spawn(argv, purpose="demo encoder") as child:
            reason = await _end_of(child, folder)
            lived_s = clock.monotonic_s() - child.started_s
        short_lives = 0 if lived_s > STALL_S else short_lives + 1
        last_words = child.stderr_tail.strip().rpartition("\n")[2]
        if short_lives >= FUTILE_STARTS and _published_at(folder) is None:
            raise ChildError(
                f"ffmpeg can't make the demo channel: {last_words or reason}", argv=argv, exit_code=None, stderr_tail=child.stderr_tail
            )
        log.warning("demo.encoder_restarted", reason=reason, lived_s=round(lived_s, 1), last_words=last_words)
        await asyncio.sleep(min(10.0, 0.25 * 2**short_lives))


async def _end_of(child: Child, folder: Path) -> str:
    """Wait until the encoder ends or publishes nothing any more; return which."""
    before = _published_at(folder)
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(STALL_S):
                return f"exit code {(await child.wait()).exit_code}"
        now = _published_at(folder)
        if now == before:
            return f"nothing published for {STALL_S:g} s"
        before = now


def encoder_argv(ffmpeg: Path, folder: Path, now: datetime, *, go_on: bool) -> list[str]:
    """Return the ffmpeg that fills *folder* from *now* on. With *go_on* it adds to the playlist that is there."""
    frame = round((now - now.replace(hour=0, minute=0, second=0, microsecond=0)) / timedelta(seconds=1) * FRAME_RATE)
    time_of_day = f"(t+{frame / FRAME_RATE:.2f}+0.001)"  # 1 ms more, or 2.9999999 would show as 2
    new_second = f"lt(mod({time_of_day},1),0.1)"
    picture = [
        f"testsrc2=size={WIDTH}x{HEIGHT}:rate={FRAME_RATE}",
        *_clock_face(f"mod({time_of_day},86400)"),
        _box((0, 0, WIDTH, FLASH_BAND_HEIGHT), "white", when=new_second),
        "format=yuv420p",
    ]
    sound = f"aevalsrc=exprs='0.4*sin(2*PI*1000*t)*{new_second}':channel_layout=mono:sample_rate=48000"
    gop = FRAME_RATE * SEGMENT_S
    # fmt: off
    return [
        str(ffmpeg), "-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-y",
        "-re", "-f", "lavfi", "-i", ",".join(picture),
        "-re", "-f", "lavfi", "-i", sound,
        "-map", "0:v", "-map", "1:a",
        "-c:v", "libx264", "-preset", "superfast", "-profile:v", "high", "-threads", "2",
        "-b:v", "2500k", "-maxrate", "2500k", "-bufsize", "2500k",
        "-g", str(gop), "-keyint_min", str(gop), "-sc_threshold", "0",  # else the flash would put key frames between
        "-c:a", "aac", "-b:a", "128k", "-ac", "2",
        "-f", "hls", "-hls_time", str(SEGMENT_S), "-hls_list_size", str(LISTED_SEGMENTS),
        # RFC 8216 6.2.2: what left the playlist stays for its own duration and that of the playlist, which may be one longer for a moment
        "-hls_delete_threshold", str(LISTED_SEGMENTS + 2),
        "-hls_flags", "delete_segments+program_date_time+temp_file" + ("+append_list" if go_on else ""),
        # by the clock, so that the next run uses no number of this one again; one that goes on must not jump
        "-start_number", "0" if go_on else str(int(now.timestamp()) // SEGMENT_S),
        "-hls_segment_filename", str(folder / "%d.ts").replace("\\", "/"),
        str(folder / PLAYLIST),
    ]
    # fmt: on


Place = tuple[int, int, int, int]
"""x, y, width, height in pixels."""

_DIGITS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
"""Which segments each digit lights: a on top, then clockwise to f, g in the middle."""

_DIGIT_WIDTH, _DIGIT_HEIGHT, _STROKE = 90, 170, 20


def _clock_face(second_of_day: str) -> Iterator[str]:
    """Yield the filters that draw HH:MM:SS; *second_of_day* is an expression of ffmpeg's."""
    left, top = 250, 275
    yield _box((left - 40, top - 40, WIDTH - 2 * (left - 40), _DIGIT_HEIGHT + 80), "black")
    for index, (unit_s, base) in enumerate(((36000, 10), (3600, 10), (600, 6), (60, 10), (10, 6), (1, 10))):
        digit = f"mod(floor({second_of_day}/{unit_s}),{base})"
        for segment, place in _segments(left, top).items():
            lit_by = sum(1 << value for value, lit in enumerate(_DIGITS) if segment in lit)
            yield _box(place, "white", when=f"mod(floor({lit_by}/pow(2,{digit})),2)")
        left += _DIGIT_WIDTH + 30
        if index in (1, 3):
            for y in (top + 45, top + _DIGIT_HEIGHT - 65):
                yield _box((left, y, _STROKE, _STROKE), "white")
            left += 50


def _segments(left: int, top: int) -> dict[str, Place]:
    """Return where each segment of a digit is."""
    right, bottom = left + _DIGIT_WIDTH - _STROKE, top + _DIGIT_HEIGHT - _STROKE
    middle = (top + bottom) // 2
    across, down = _DIGIT_WIDTH - 2 * _STROKE, middle - top - _STROKE
    return {
        "a": (left + _STROKE, top, across, _STROKE),
        "b": (right, top + _STROKE, _STROKE, down),
        "c": (right, middle + _STROKE, _STROKE, down),
        "d": (left + _STROKE, bottom, across, _STROKE),
        "e": (left, middle + _STROKE, _STROKE, down),
        "f": (left, top + _STROKE, _STROKE, down),
        "g": (left + _STROKE, middle, across, _STROKE),
    }


def _box(place: Place, color: str, when: str = "1") -> str:
    x, y, width, height = place
    return f"drawbox=x={x}:y={y}:w={width}:h={height}:color={color}:t=fill:enable='{when}'"


_NAME = re.compile(r"\d+\.ts|live\.m3u8")


def application(folder: Path) -> Starlette:
    """Return the web server's side: the playlist and its segments, and nothing else of *folder*."""

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        try:
            if _NAME.fullmatch(name) is None:
                raise FileNotFoundError(name)
            body = (folder / name).read_bytes()  # written a moment ago: it comes from memory
        except FileNotFoundError:
            return Response("There is no such file here.\n", 404, {"Cache-Control": "no-store"}, "text/plain")
        is_playlist = name == PLAYLIST
        headers = {
            "Access-Control-Allow-Origin": "*",
            "Cache-Control": "no-cache" if is_playlist else f"public, max-age={SEGMENT_S * LISTED_SEGMENTS}",
        }
        return Response(body, 200, headers, "application/vnd.apple.mpegurl" if is_playlist else "video/mp2t")

    async def start(_: Request) -> Response:
        return Response(f"hlsrelay's demo channel: /{PLAYLIST}\n", media_type="text/plain")

    return Starlette(routes=[Route("/", start), Route("/{name}", file)])


@contextmanager
def _temporary() -> Iterator[Path]:
    """A folder that is removed at the end. It is under its own name only once it is locked: `sweep` never meets one that isn't."""
    unnamed = Path(tempfile.mkdtemp(prefix="hlsrelay-new-"))
    folder = unnamed.with_name(_FOLDER + unnamed.name.removeprefix("hlsrelay-new-"))
    try:
        with _locked(unnamed):
            unnamed.rename(folder)
            yield folder
    finally:
        shutil.rmtree(unnamed, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _given(folder: Path) -> Iterator[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            yield folder
    except BlockingIOError:  # nothing else in the block raises it
        raise ResourceBusy(f"{folder} is used by another demo channel: stop it, or choose another folder") from None
    except PermissionError as error:
        raise ResourceBusy(f"{folder} can't be used: {error.strerror}; choose another folder") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel lets go of it when we die. Raises BlockingIOError."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def sweep() -> int:
    """Remove the temporary folders of channels that were killed; return how many."""
    swept = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        with suppress(OSError):
            if folder.lstat().st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink():
                with _locked(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                swept += 1
    return swept
