"""Something to encode: scenes that move, have detail down to the pixel, and are cut where no segment is; and 720p30 segments of it.

Made by ffmpeg alone, so that anybody gets the same. Each scene is hard in another way, and they differ in what they need: that is what a
rate control has to cope with. A test card would not do: it is so easy that any encoder is good at it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

FRAME_RATE = 30
SEGMENT_S = 6
WIDTH, HEIGHT = 1280, 720

_GRAIN = "noise=alls=4:allf=t"
"""What a camera adds; without it flat parts would cost nothing."""
_SIZE = f"{WIDTH}x{HEIGHT}"
# A picture with detail of every size, as in nature: 1/f noise, in colour. Perlin noise is dear, so one is drawn and then moved.
_LANDSCAPE = (
    "perlin=s=1920x1080:r=1:octaves=8:persistence=0.65:xscale=8:yscale=8:random_mode=seed:random_seed={seed},trim=end_frame=1,"
    "format=yuv420p,pseudocolor=preset={palette},eq=contrast=1.5,loop=-1:1,setpts=N/30/TB,fps=30"
)

SCENES: tuple[tuple[float, str], ...] = (
    (7.3, _LANDSCAPE.format(seed=3, palette="turbo") + f",crop={_SIZE.replace('x', ':')}:x='320+300*sin(t/3)':y='180+150*cos(t/2)'"),
    (5.1, f"mandelbrot=s={_SIZE}:r=30:start_scale=0.5:end_scale=0.003:end_pts=200:maxiter=500"),
    (8.7, f"gradients=s={_SIZE}:r=30:n=6:seed=7:speed=0.02,lenscorrection=k1=0.2"),
    (3.9, "life=s=320x180:r=30:mold=20:life_color=#C0F080:death_color=#402010:ratio=0.3:seed=5,scale=1280:720:flags=bicubic,gblur=1.2"),
    (9.2, _LANDSCAPE.format(seed=11, palette="magma") + f",scroll=h=0.002:v=0.0007,crop={_SIZE.replace('x', ':')}"),
    (4.4, f"testsrc2=s={_SIZE}:r=30,rotate=t/4:c=gray"),
    (10.6, _LANDSCAPE.format(seed=19, palette="viridis") + f",zoompan=z='1.2+0.3*sin(on/90)':x='iw/4':y='ih/4':d=1:s={_SIZE}:fps=30"),
    (6.3, "cellauto=s=320x180:r=30:rule=110:full=1:seed=3,scale=1280:720:flags=bicubic,gblur=2,colorchannelmixer=rb=0.4:gg=0.7"),
    (5.5, f"mandelbrot=s={_SIZE}:r=30:start_x=-0.7269:start_y=0.1889:start_scale=0.05:end_scale=0.0005:end_pts=200:maxiter=300"),
)
"""Seconds of each scene, and the filters that draw it; over and over again."""

Run = Callable[[Sequence[str]], Awaitable[object]]


async def make_source(run: Run, ffmpeg: Path, folder: Path, seconds: float, clip: Path | None = None) -> list[Path]:
    """Return 720p30 segments of *seconds* of the scenes, or of *clip*, of good quality, with AAC sound; made unless *folder* has them."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "whole").exists():
        await run(source_argv(ffmpeg, folder, seconds, clip))
        (folder / "whole").touch()
    return sorted(folder.glob("source-*.ts"))


def source_argv(ffmpeg: Path, folder: Path, seconds: float, clip: Path | None) -> list[str]:
    """Return the ffmpeg that makes the segments."""
    argv = [str(ffmpeg), "-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-y"]
    if clip is not None:
        argv += ["-i", str(clip)]
        graph = f"[0:v]scale={WIDTH}:{HEIGHT},setsar=1,fps={FRAME_RATE},format=yuv420p[v]"
    else:
        graph = scenes_graph(seconds)
    # fmt: off
    argv += [
        "-f", "lavfi", "-i", "anoisesrc=c=pink:r=48000:a=0.2:seed=1",
        "-filter_complex", graph, "-map", "[v]", "-map", f"{1 if clip else 0}:a", "-t", str(seconds),
        "-c:v", "libx264", "-preset", "veryfast", "-profile:v", "high", "-crf", "17", "-maxrate", "14M", "-bufsize", "14M",
        "-g", str(FRAME_RATE * SEGMENT_S), "-keyint_min", str(FRAME_RATE * SEGMENT_S), "-sc_threshold", "0",
        "-c:a", "aac", "-b:a", "128k", "-ac", "2",
        "-f", "hls", "-hls_time", str(SEGMENT_S), "-hls_list_size", "0", "-hls_segment_filename", str(folder / "source-%04d.ts"),
        str(folder / "source.m3u8"),
    ]
    # fmt: on
    return argv


def scenes_graph(seconds: float) -> str:
    """Return the filter graph that draws the scenes one after another, as many as *seconds* need."""
    chains: list[str] = []
    length = 0.0
    while length < seconds:
        scene_s, drawn = SCENES[len(chains) % len(SCENES)]
        chains.append(
            f"{drawn},{_GRAIN},trim=duration={scene_s},setpts=PTS-STARTPTS,scale={WIDTH}:{HEIGHT},setsar=1,format=yuv420p[c{len(chains)}]"
        )
        length += scene_s
    joined = "".join(f"[c{index}]" for index in range(len(chains)))
    return ";".join([*chains, f"{joined}concat=n={len(chains)},fps={FRAME_RATE}[v]"])
