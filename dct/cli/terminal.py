"""What the user sees: notes, progress, tables, results, errors. The one place that prints."""

import functools
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, ParamSpec

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dct.errors import DctError, UsageError

P = ParamSpec("P")

BARS = "▁▂▃▄▅▆▇█"


class Terminal:
    """Output of one command.

    Args:
        as_json: the result goes to stdout as JSON and everything else to stderr.
        quiet: nothing but the result of --json, and errors.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.console = Console(stderr=as_json, quiet=quiet, highlight=False, emoji=False)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self.console.print(f"[dim]{escape(text)}[/dim]", soft_wrap=not self.console.is_terminal)

    def warn(self, text: str) -> None:
        """Something that may make the result worthless."""
        self.console.print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=not self.console.is_terminal)

    def show(self, what: RenderableType) -> None:
        self.console.print(what)

    def summary(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """The last lines of a command: what was found, where it lies, what to do next (Rich markup allowed)."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, value)
        self.console.print()
        self.console.print(f"[green]✓[/green] [bold]{title}[/bold]")
        self.console.print(table)

    def result(self, content: Any) -> None:
        """The machine-readable result; printed under --json only."""
        if self.as_json:
            sys.stdout.write(json.dumps(content, indent=1) + "\n")
            sys.stdout.flush()

    @contextmanager
    def progress(self, what: str, unit: str = "vectors") -> Iterator[Callable[[str, int, int], None]]:
        """A bar with stage, rate and time left; yields a function of (stage, done, total)."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            _Rate(unit),
            TimeElapsedColumn(),
            TextColumn("[dim]left[/dim]"),
            TimeRemainingColumn(compact=True),
        )
        off = self.quiet or not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=off) as bar:
            task = bar.add_task(what, total=1)

            def advance(stage: str, done: int, total: int) -> None:
                bar.update(task, description=f"{what}: {stage}" if stage else what, completed=done, total=max(total, 1))

            yield advance

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """A spinner for work of unknown length."""
        if self.quiet or not self.console.is_terminal:
            yield
            return
        with self.console.status(escape(what)):
            yield


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g} {self.unit}/s" if speed else "", style="dim")


def sparkline(values: Sequence[float]) -> str:
    """A curve in one line of text."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[min(7, int(8 * (v - low) / span))] for v in values)


def human_seconds(seconds: float) -> str:
    """A duration as people say it: "0.4 s", "41 s", "7 min", "2.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.2g} h"


def plain(value: float) -> str:
    """Three significant digits, without an exponent where that reads well."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Turns errors into one line on stderr and an exit code: 1, 2 for wrong usage, 130 when interrupted.

    The traceback is shown with --debug. Under --json the error is also printed on stdout as JSON.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            # The reader has gone (`dct rank | head`); stdout must not be flushed into it again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            _fail("interrupted", 130, kwargs)
        except DctError as error:
            _fail(str(error), error.exit_code, kwargs)
        except Exception as error:
            _fail(_explain(error), 1, kwargs)

    return run


def _explain(error: Exception) -> str:
    from dct.batching import out_of_memory

    if out_of_memory(error):
        return "out of memory: use a smaller model, --dtype bfloat16, fewer prompts (--n) or another --device"
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    first = str(error).strip().splitlines()
    return f"unexpected {type(error).__name__}: {first[0] if first else ''} (--debug shows where; please report it)"


def _fail(message: str, code: int, options: Any) -> None:
    if options.get("debug"):
        traceback.print_exc()
    if options.get("as_json"):
        sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")
        sys.stdout.flush()
    try:
        fail(message, code)
    except SystemExit as end:
        raise typer.Exit(code) from end


def fail(message: str, code: int) -> NoReturn:
    """Says what went wrong in one line on stderr and ends the program."""
    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    console.print(f"[red]error:[/red] {escape(' '.join(message.split()))}")
    sys.exit(code)


def parse_positions(text: str | None) -> Any:
    """`--positions`: a number or `all`; nothing, where it was left out."""
    if text is None or text == "all":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--positions must be a number or `all`, from 1 on: got {text!r}")
    return int(text)


def parse_scales(text: str) -> tuple[float, ...]:
    """`--scales`: multiples of R, with commas between."""
    try:
        scales = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        scales = ()
    if not scales or not all(0 < s < math.inf for s in scales):
        raise UsageError(f"--scales are positive multiples of R with commas between, such as 0.5,1,2,4: got {text!r}")
    return scales
