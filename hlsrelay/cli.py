"""The command line: verbs, options, help. commands and operate do it, imported when a verb runs: --help answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from hlsrelay import __version__
from hlsrelay.errors import HlsRelayError, MissingProgram

LONGEST_HELP = 400
EXIT_CODES = """Exit codes: 0 done; 1 failed; 2 something you wrote can't work; 3 no such stream; 4 Redis does not answer;
5 port, folder or stream in other hands or not writable; 6 a program is missing."""


class _Verbs(typer.core.TyperGroup):
    """Tells all that there is to say of each verb: by itself it would end where the line does."""

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        verbs = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.get_short_help_str(LONGEST_HELP)) for name, verb in verbs if verb and not verb.hidden])


app = typer.Typer(
    name="hlsrelay",
    cls=_Verbs,
    help="A live HLS relay: reads a live source, keeps every byte, makes a ladder of bitrates, serves it to any player.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # to lay help out would take longer than all else that is done for it
    context_settings={"help_option_names": ["-h", "--help"]},
)

StreamId = Annotated[str, typer.Argument(metavar="STREAM-ID", help="Letters, digits, '_', '-', '.', at most 64.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Data = Annotated[Path | None, typer.Option(help="Where segments and playlists are kept [HLSRELAY_DATA].", show_default=False)]
Http = Annotated[
    str | None,
    typer.Option(help="Address to serve on; port 0 takes a free one; none serves nothing [HLSRELAY_HTTP].", show_default=False),
]
PidFile = Annotated[
    Path | None, typer.Option(help="Hold this file, with the pid in it, while it runs: a second one is refused.", show_default=False)
]
Ladder = Annotated[str, typer.Option(help="Rungs to make: 1080p, 720p, 480p, 360p, audio, audio:kbps, or name:height:kbps; comma between.")]
Window = Annotated[str, typer.Option(help="Seconds of media that the playlists list.")]


def main() -> None:
    """Entry point of the `hlsrelay` program: errors of ours are one line and an exit code, never a traceback."""
    try:
        app()
    except HlsRelayError as error:
        sys.stderr.write(f"hlsrelay: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(_: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


@app.command()
def run(
    stream_id: StreamId,
    take_over: Annotated[bool, typer.Option("--take-over", help="Have it handed over by the node that relays it.")] = False,
    http: Http = None,
    data: Data = None,
    pid_file: PidFile = None,
) -> None:
    """Relay one registered stream until its `desired` becomes `stop`, and serve it."""
    from hlsrelay import commands, operate
    from hlsrelay.pidfile import held
    from hlsrelay.settings import load_settings

    with held(pid_file):
        operate.run_until_done(commands.run(stream_id, load_settings(http=http, data=data), take_over=take_over))


@app.command()
def worker(http: Http = None, data: Data = None, pid_file: PidFile = None) -> None:
    """Relay and serve what is registered and no other node relays, as far as there is room; until Ctrl-C."""
    from hlsrelay import commands, operate
    from hlsrelay.pidfile import held
    from hlsrelay.settings import load_settings

    with held(pid_file):
        operate.run_until_done(commands.worker(load_settings(http=http, data=data)))


@app.command(name="quit")
def quit_(
    pid_file: Annotated[Path, typer.Option(help="What it was started with.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most; without it for as long as it takes.", min=0.0)] = float("inf"),
) -> None:
    """End the hlsrelay that holds a pid file, in order, and wait until it is gone. Exits with 0 too where none runs."""
    from hlsrelay.pidfile import quit_daemon

    pid = quit_daemon(pid_file, timeout, lambda text: typer.echo(text, err=True))
    typer.echo(f"nothing runs that holds {pid_file}" if pid is None else f"process {pid} is gone")


@app.command()
def add(
    stream_id: StreamId,
    source: Annotated[str, typer.Argument(help="URL of the live HLS playlist.")],
    ladder: Ladder = "",
    window: Window = "",
    stopped: Annotated[bool, typer.Option("--stopped", help="Register it with desired=stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Register a stream (the same as HSET hlsrelay:stream:<id> source … desired run)."""
    from hlsrelay import operate

    fields = {"source": source, "desired": "stop" if stopped else "run", "ladder": ladder, "window": window}
    operate.run_until_done(operate.register(stream_id, fields, as_json))


@app.command(name="set")
def set_(
    stream_id: StreamId,
    changes: Annotated[list[str], typer.Argument(metavar="FIELD=VALUE...", help="Fields to set; FIELD= unsets one.")],
    as_json: AsJson = False,
) -> None:
    """Change a stream's fields; one that runs follows at its next tick, and no viewer is cut."""
    from hlsrelay import operate

    operate.run_until_done(operate.change(stream_id, changes, as_json))


APPLY_WORDS = """The file maps `streams:` to ids, and each id to the fields of that stream: what an unset field is, it is unset there too.
Everything is checked before anything is changed. The difference comes first: + registers, ~ changes, - removes a stream."""


@app.command(epilog=APPLY_WORDS)
def apply(
    file: Annotated[str, typer.Option("--file", "-f", help="YAML, such as `streams: {news: {source: https://…}}`; - is standard input.")],
    prune: Annotated[bool, typer.Option("--prune", help="Remove streams that the file does not name.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask; nobody is asked where standard input is no terminal.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make what is registered what a file says; for those whose streams are kept in a repository or come from a database."""
    from hlsrelay import operate

    operate.run_until_done(operate.apply(file, prune=prune, yes=yes, dry_run=dry_run, as_json=as_json))


@app.command()
def start(stream_id: StreamId, as_json: AsJson = False) -> None:
    """Set a stream's `desired` to run."""
    from hlsrelay import operate

    operate.run_until_done(operate.desire(stream_id, "run", as_json))


@app.command()
def stop(stream_id: StreamId, as_json: AsJson = False) -> None:
    """Set a stream's `desired` to stop: its relay writes ENDLIST and ends."""
    from hlsrelay import operate

    operate.run_until_done(operate.desire(stream_id, "stop", as_json))


@app.command()
def rm(
    stream_id: StreamId,
    files: Annotated[bool, typer.Option("--files", help="Remove its segments and playlists on this machine too.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Forget a stream; one that runs ends as if stopped. Its files stay unless --files."""
    from hlsrelay import operate

    operate.run_until_done(operate.remove(stream_id, files, data, as_json))


@app.command()
def ls(as_json: AsJson = False) -> None:
    """List all streams: who relays what, since when, how far behind, what went wrong last."""
    from hlsrelay import operate

    operate.run_until_done(operate.list_all(as_json))


@app.command()
def nodes(as_json: AsJson = False) -> None:
    """List the hlsrelay processes that relay: their names, how much they have taken on, and of how much."""
    from hlsrelay import operate

    operate.run_until_done(operate.list_nodes(as_json))


Node = Annotated[str, typer.Argument(metavar="NODE", help="Its name, as `hlsrelay nodes` lists it.")]


@app.command()
def drain(
    node: Node, undo: Annotated[bool, typer.Option("--undo", help="Have it take on streams again.")] = False, as_json: AsJson = False
) -> None:
    """Have a node hand on its streams to others, without a break for viewers, and take on none; it goes on serving."""
    from hlsrelay import operate

    operate.run_until_done(operate.drain(node, undo, as_json))


@app.command()
def move(stream_id: StreamId, node: Node, as_json: AsJson = False) -> None:
    """Have a node take a stream over from the one that relays it, and wait until it has."""
    from hlsrelay import operate

    operate.run_until_done(operate.move(stream_id, node, as_json))


@app.command()
def ps(as_json: AsJson = False) -> None:
    """List every child process of every hlsrelay process: what for, for how long, what it uses, how far it is; orphans too."""
    from hlsrelay import operate

    operate.run_until_done(operate.list_processes(as_json))


@app.command()
def show(stream_id: StreamId, as_json: AsJson = False) -> None:
    """Show one stream's fields, the operator's and the relay's."""
    from hlsrelay import operate

    operate.run_until_done(operate.show(stream_id, as_json))


CHECK_WORDS = """Each finding is one line: error (a rule is broken) or warning (advice not followed, or a doubt), the number of its rule,
where, and what. At the end: how often each rule was met, what it says and where that stands, and a verdict.

Exit codes: 0 no rule broken, warnings or not; 1 a rule is broken, or the playlist can't be loaded; 2 this is no playlist or folder."""


@app.command(epilog=CHECK_WORDS)
def check(
    target: Annotated[
        str, typer.Argument(metavar="URL|FOLDER", help="A live playlist, multivariant or media, or a folder that holds one.")
    ],
    seconds: Annotated[
        float, typer.Option(help="How long to watch; it ends sooner once all playlists have ended. Ctrl-C: the verdict now.", min=0.0)
    ] = 30.0,
    no_media: Annotated[bool, typer.Option("--no-media", help="Ask for the first bytes of each segment only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: a line for each finding, notes too, and one for the verdict.")
    ] = False,
) -> None:
    """Watch a live playlist, ours or anyone's, as a player does, and say which rules of live HLS it breaks."""
    from hlsrelay import commands, operate

    operate.run_until_done(commands.check(target, seconds, not no_media, as_json))


PROBE_WORDS = """The last line is the command that registers the source with the ladder that suits it. What is measured is measured on the
newest segments; a rule that was broken while it was watched is told as `hlsrelay check` tells it.

Exit codes: 0 the source could be read, whatever it is like; 1 it could not; 2 something you wrote can't work."""


@app.command(epilog=PROBE_WORDS)
def probe(
    source: Annotated[str, typer.Argument(metavar="URL", help="A live HLS playlist, multivariant or media.")],
    seconds: Annotated[
        float, typer.Option(help="How long to watch it as `hlsrelay check` does; 0: not at all. Ctrl-C: what there is now.", min=0.0)
    ] = 10.0,
    headers: Annotated[str, typer.Option(help="HTTP headers, as the field `headers` has them: a JSON object.")] = "",
    proxy: Annotated[str, typer.Option(help="HTTP proxy to reach it through.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say what a source is: variants, tracks, codecs, bitrates, key frames, faults; and propose a ladder."""
    from hlsrelay import commands, operate

    operate.run_until_done(commands.probe(source, headers, proxy, seconds, as_json))


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def bench(arguments: typer.Context) -> None:
    """Measure hlsrelay side by side with ffmpeg, streamlink and others (only in a copy of the source tree; --help says more)."""
    import runpy

    root = Path(__file__).parents[1]
    if not (root / "bench" / "__main__.py").is_file():
        raise MissingProgram("the bench is part of the source tree, not of the package: get that, and run make bench in it")
    sys.path.insert(0, str(root))
    sys.argv = ["hlsrelay bench", *arguments.args]
    runpy.run_module("bench", run_name="__main__")


@app.command()
def demo(
    source: Annotated[str, typer.Option(help="Live HLS playlist to relay; without it a built-in live channel.")] = "",
    ladder: Annotated[str, typer.Option(help="Rungs to make; the built-in channel's are 480p,360p.", show_default=False)] = "",
    http: Http = None,
    data: Data = None,
) -> None:
    """Relay one source as stream `demo`, until Ctrl-C: the quickest way to see it work. Loopback sources are allowed."""
    from hlsrelay import commands, operate
    from hlsrelay.settings import load_settings

    operate.run_until_done(commands.demo(source, ladder, load_settings(http=http, data=data)))


@app.command(name="demo-origin")
def demo_origin(
    http: Annotated[str, typer.Option(help="Address to serve on; port 0 takes a free one.")] = "127.0.0.1:0",
) -> None:
    """Publish a built-in live channel, with a clock and a beep each second, as a live HLS source. Prints its URL."""
    from hlsrelay import commands, operate
    from hlsrelay.settings import load_settings

    operate.run_until_done(commands.channel(http, load_settings()))
