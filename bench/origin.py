"""The bench's live origin: media made once, playlists from `bench.publishing`, nginx in front, whose access log says who asked for what."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.schedule import stream_name
from hlsrelay.errors import HlsRelayError, MissingProgram
from hlsrelay.processes import Child, Children, Stdout

ROOT = Path(__file__).parents[1]
MEDIA_KBPS = 5000
PACED_BYTES_PER_S = 10_000_000 // 8
PACED_PIECE_BYTES = 16 << 10
"""nginx sends what a second has at once, and then waits, unless it is told to send less at a time: this is some ten packets, each 13 ms."""
READY_WITHIN_S = 20.0
MOST_FILES = 40
"""Segments made: for a run that lasts longer they begin again, behind a DISCONTINUITY."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A running origin: where players find it, and what it wrote down."""

    url: str
    publications: Path
    access: Path
    certificate: Path | None

    def playlist(self, stream: int) -> str:
        """Return the URL of a stream's media playlist."""
        return f"{self.url}/{stream_name(stream)}/index.m3u8"


async def media(cache: Path, segment_s: float, count: int, children: Children, kbps: int = MEDIA_KBPS) -> list[Path]:
    """Return *count* TS segments of *kbps*, key pictures at their beginnings only; made where *cache* does not have them."""
    folder = cache / f"media-{kbps}k-{segment_s:g}s-{count}"
    files = [folder / f"{index}.ts" for index in range(count)]
    if all(path.exists() for path in files):
        return files
    ffmpeg = program("ffmpeg")
    cache.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=cache, prefix="making-"))
    try:
        gop = round(25 * segment_s)
        video_kbps = kbps * 94 // 100 - 128  # the rest is what TS puts around it
        # fmt: off
        argv = [
            ffmpeg, "-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-y",
            "-f", "lavfi", "-i", "testsrc2=size=480x270:rate=25,noise=alls=12:allf=t",
            "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000",
            "-t", f"{segment_s * count:g}",
            "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-threads", "2",
            "-b:v", f"{video_kbps}k", "-minrate", f"{video_kbps}k", "-maxrate", f"{video_kbps}k", "-bufsize", f"{video_kbps}k",
            "-x264-params", "nal-hrd=cbr:force-cfr=1",  # fillers are in the elementary stream: who remuxes has to carry them too
            "-g", str(gop), "-keyint_min", str(gop), "-sc_threshold", "0",
            "-c:a", "aac", "-b:a", "128k",
            "-f", "hls", "-hls_time", f"{segment_s:g}", "-hls_list_size", "0", "-start_number", "0",
            "-hls_segment_filename", str(making / "%d.ts"), str(making / "index.m3u8"),
        ]
        # fmt: on
        done = await children.run(argv, purpose="bench media", deadline_s=300)
        if done.exit_code:
            raise HlsRelayError(f"ffmpeg can't make the bench's media: {done.stderr_tail.strip()[-300:]}")
        made = sorted(path.name for path in making.glob("*.ts"))
        if made != sorted(path.name for path in files):
            raise HlsRelayError(f"ffmpeg made {len(made)} segments of media where {count} were asked for")
        with suppress(OSError):  # another bench may have been as quick
            making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return files


@asynccontextmanager
async def serving(
    folder: Path,
    files: list[Path],
    children: Children,
    *,
    streams: int,
    segment_s: float,
    listed: int,
    jitter_s: float = 0.0,
    tls: bool = False,
    paced: bool = False,
    port: int = 0,
) -> AsyncGenerator[Origin, None]:
    """Serve and publish while the block runs, at *port* or a free one; its playlists are there when it begins.

    TERM cancels the task that serves, from then on: a worker of nginx's outlives whoever just dies.
    """
    nginx = program("nginx")
    if task := asyncio.current_task():
        with suppress(RuntimeError, ValueError, NotImplementedError):  # a loop that is not the main thread's
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    folder.mkdir(parents=True)
    playlists, publications, access = folder / "live", folder / "publications", folder / "access"
    playlists.mkdir()
    certificate = make_certificate(folder) if tls else None
    port = port or free_port()
    config = folder / "nginx.conf"
    config.write_text(origin_config(folder, port, playlists, files[0].parent, certificate, paced))
    argv = [sys.executable, "-m", "bench.publishing", str(playlists), str(publications)]
    argv += ["--streams", str(streams), "--segment-seconds", str(segment_s), "--listed", str(listed)]
    argv += ["--files", str(len(files)), "--jitter", str(jitter_s)]
    async with (
        children.spawn(argv, purpose="bench publisher", cwd=ROOT, stdout=Stdout.LINES) as publisher,
        children.spawn([nginx, "-c", str(config), "-p", str(folder), "-e", str(folder / "error")], purpose="bench origin") as server,
    ):
        async with asyncio.timeout(READY_WITHIN_S):
            async for line in publisher.lines():
                if line == "ready":
                    break
            else:
                raise HlsRelayError(f"the bench's publisher ended: {publisher.stderr_tail.strip()[-300:]}")
            await listening(port, server)
        yield Origin(f"{'https' if tls else 'http'}://127.0.0.1:{port}", publications, access, certificate)


def origin_config(folder: Path, port: int, playlists: Path, media_dir: Path, certificate: Path | None, paced: bool) -> str:
    """Return nginx's configuration. Segment 1012 is made of file 12: `/s000/1012-12.ts`."""
    secure = f"ssl_certificate {certificate}; ssl_certificate_key {certificate};" if certificate else ""
    return f"""
daemon off; pid {folder}/pid; worker_processes 1; {"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 8192; }}
worker_rlimit_nofile 16384;
http {{
    log_format bench '$msec $uri $status $body_bytes_sent';
    access_log {folder}/access bench buffer=32k flush=200ms;
    sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_timeout 75s; keepalive_requests 1000000;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    types {{ application/vnd.apple.mpegurl m3u8; video/mp2t ts; }}
    server {{
        listen 127.0.0.1:{port} {"ssl" if certificate else ""} backlog=4096; {secure}
        location ~ ^/s[0-9]+(/index)?\\.m3u8$ {{ root {playlists}; add_header Cache-Control no-cache; }}
        location ~ ^/s[0-9]+/[0-9]+-([0-9]+)\\.ts$ {{
            alias {media_dir}/$1.ts; add_header Cache-Control "max-age=60";
            {f"limit_rate {PACED_BYTES_PER_S}; sendfile_max_chunk {PACED_PIECE_BYTES};" if paced else ""}
        }}
    }}
}}
"""


def make_certificate(folder: Path) -> Path:
    """Write a certificate for 127.0.0.1 that signs itself, with its key, into one file, and return that."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hlsrelay bench")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.touch(mode=0o600)
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def publications(path: Path) -> dict[str, dict[int, float]]:
    """Return when each stream published which number, from the publisher's log."""
    found: dict[str, dict[int, float]] = {}
    for line in whole_lines(path):
        stream, number, when_s = line.split()
        found.setdefault(stream, {})[int(number)] = float(when_s)
    return found


def asked(lines: Iterable[str], from_s: float, to_s: float) -> tuple[int, int]:
    """Return how many requests an access log has between two moments, and how many of them were for playlists."""
    requests = playlists = 0
    for line in lines:
        when_s, uri, *_ = line.split()
        if from_s <= float(when_s) < to_s:
            requests += 1
            playlists += uri.endswith(".m3u8")
    return requests, playlists


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a log that somebody still writes; none where it isn't there yet."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()


def found(program: str) -> str | None:
    """Return where a program is, in the places for administrators' ones too."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def program(name: str) -> str:
    """Return where a program is. Raises MissingProgram."""
    where = found(name)
    if where is None:
        raise MissingProgram(f"{name} isn't on PATH: install it (Debian, Ubuntu: apt install {name})")
    return where


def free_port() -> int:
    """Return a port of the loopback address that nobody has just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


async def listening(port: int, server: Child) -> None:
    """Return once *server* takes connections at *port*. Raises HlsRelayError, with its last words, where it ended instead."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if server.finished is not None:
                raise HlsRelayError(f"{server.purpose} ended before it took connections: {server.stderr_tail.strip()[-300:]}") from None
            await asyncio.sleep(0.05)
        else:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            return
