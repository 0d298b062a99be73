"""The `dct` application: its commands, and what becomes of an error."""

import signal
import sys

import typer

from dct.cli.ablate import ablate
from dct.cli.bench import bench
from dct.cli.calibrate import calibrate
from dct.cli.demo import demo
from dct.cli.fit import fit
from dct.cli.models import models
from dct.cli.organism import app as organism
from dct.cli.rank import rank
from dct.cli.steer import steer
from dct.cli.terminal import fail
from dct.memory import one_heap
from dct.version import __version__

app = typer.Typer(
    name="dct",
    help="Find, rank, steer and ablate the hidden behaviours of a language model, without labels.",
    epilog="Begin with `dct demo`, or with `dct fit --model qwen --s 10 --t 20`.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (fit, calibrate, rank, steer, ablate, bench, demo, models):
    app.command()(command)
app.add_typer(organism, name="organism")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"dct {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Find, rank, steer and ablate the hidden behaviours of a language model, without labels."""


def main() -> None:
    """Entry point of the `dct` command: a wrong command line is one line, like every other error."""
    one_heap()
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's end is the user's Ctrl+C
    try:
        sys.exit(app(standalone_mode=False))
    except typer.Abort:
        fail("interrupted", 130)
    except Exception as error:
        # Typer brings its own copy of click or uses the installed one: its usage errors are known by what they can do.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        parameter = getattr(error, "param", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.exit(2)
        what = f"{'/'.join(parameter.opts)}: " if parameter is not None else ""
        cure = f" (see `{context.command_path} --help`)" if context is not None else ""
        fail(f"{what}{error.format_message()}{cure}", 2)
