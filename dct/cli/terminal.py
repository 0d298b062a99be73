"""What the user sees: notes, progress, tables, results, errors. The one place that prints."""

import functools
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

from dct.cli.characters import encodable, one_line, visible
from dct.cli.flags import flagged, spoken
from dct.cli.processes import LOST, watched, working
from dct.cli.streams import NOWHERE, discard, fail, say, write_json
from dct.errors import DctError
from dct.settings import OutputSettings, WorkSettings
from dct.team import LostError, follows, leads

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

P = ParamSpec("P")

BARS = "▁▂▃▄▅▆▇█"

FIRST_SAYS = 2.0
"""Seconds that another process than the first waits before it says what went wrong."""

TAG = re.compile(r"(\\*)(\[[a-z#/@][^[]*?])|(\\*)\[")
"""What Rich's markup takes for a tag, or else an opening bracket, with the backslashes in front of it."""


class Terminal:
    """Output of one command. Nothing acts on the terminal but Rich's own styles: see `console`. Of several processes
    the leader alone has one.

    Args:
        as_json: the result goes to stdout as JSON and everything else to stderr.
        quiet: nothing but the result of --json, and errors.

    Raises:
        DctError: the result is to go to stdout, which is closed.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        from dct.cli.console import SafeConsole

        if as_json and sys.stdout is None:  # better said before the work than after it
            raise DctError(NOWHERE)
        quiet = quiet or not leads()
        as_json = as_json and leads()
        self.as_json, self.quiet = as_json, quiet
        self.console = SafeConsole(stderr=as_json, quiet=quiet)

    @property
    def live(self) -> bool:
        """Whether there is a screen on which things can move."""
        return self.console.is_terminal and not self.quiet

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self._line("", text, "dim")

    def warn(self, text: str) -> None:
        """Something that may make the result worthless."""
        self._line("warning: ", text, "")

    def _line(self, label: str, text: str, style: str) -> None:
        from rich.text import Text

        line = Text.assemble((label, "yellow"), (self.console.fit(one_line(flagged(text))), style))
        self.console.print(line, soft_wrap=not self.console.is_terminal)

    def show(self, what: "RenderableType") -> None:
        """A table, or text with Rich markup."""
        self.console.print(what)

    @property
    def roomy(self) -> bool:
        """Whether there is a screen with room for a plot beside the rest."""
        from dct.plots.text import LEAST

        size = self.console.size
        return self.live and not self.as_json and size.width >= LEAST[0] and size.height >= LEAST[1]

    def plot(self, lines: Sequence[str]) -> None:
        """A plot in lines of text; shown on a screen alone, if it has room."""
        from rich.text import Text

        if self.roomy and lines:
            self.console.print()
            self.console.print(Text("\n".join(lines), style="cyan"), no_wrap=True)

    def summary(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """The last lines of a command: what was found, where it lies, what to do next (Rich markup in the rows)."""
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, value)
        self.console.print()
        self.console.print(f"[green]✓[/green] [bold]{escape(one_line(title))}[/bold]")
        self.console.print(table)

    def result(self, content: Any) -> None:
        """The machine-readable result; printed under --json only.

        Raises:
            DctError: stdout is full or closed.
        """
        if self.as_json:
            write_json(content, indent=1)

    @contextmanager
    def progress(self, what: str, unit: str = "vectors") -> Iterator[Callable[[str, int, int], None]]:
        """A bar with stage, rate and time left; yields a function of (stage, done, total)."""
        if not self.live:
            yield lambda stage, done, total: None
            return
        from dct.cli.progress import bar

        with bar(self.console, what, unit, self._spinner) as advance:
            yield advance

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """A spinner for work of unknown length."""
        if not self.live:
            yield
            return
        with self.console.status(escape(self.console.fit(one_line(what))), spinner=self._spinner):
            yield

    @property
    def _spinner(self) -> str:
        return "dots" if self.console.encoding.startswith("utf") else "line"


def escape(text: str) -> str:
    """Any text, ready to stand in Rich markup: shown as it is, with what would act on the terminal written out."""
    text = TAG.sub(_escaped, visible(text))
    bare = text.rstrip("\\")
    # A tag may follow, which backslashes before it would escape: they are doubled, before a tag of no effect.
    return text if bare == text else f"{text}{text[len(bare) :]}[none][/none]"


def _escaped(found: re.Match[str]) -> str:
    backslashes, tag, others = found.groups()
    return f"{others}\\[" if tag is None else f"{backslashes}{backslashes}\\{tag}"


def shown(text: str) -> "Text":
    """Any text as Rich shows it, without markup: a prompt, a completion."""
    from rich.text import Text

    return Text(encodable(visible(text), getattr(sys.stdout, "encoding", None)))


def titled(title: str) -> "Table":
    """An empty table under its title, as this program draws one of results."""
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


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

    The traceback is shown with --debug. Under --json the error is also printed on stdout as JSON. Other libraries are
    kept quiet from here on. A command that takes `WorkSettings` is done by all processes that there are, any other one
    by the first.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from dct.cli.quiet import hush_libraries

        output = next((value for value in kwargs.values() if isinstance(value, OutputSettings)), OutputSettings())
        as_json, debug = output.json, output.debug
        try:
            hush_libraries()
            asked = next((value for value in kwargs.values() if isinstance(value, WorkSettings)), None)
            with working(asked, as_json) as works:
                if works:
                    function(*args, **kwargs)
        except BrokenPipeError:
            discard(sys.stdout)
            if as_json:
                _fail("the result was not read: whatever read stdout has gone", 1, False, debug)
            sys.exit(1)  # `dct rank | head` is no mistake
        except KeyboardInterrupt:
            sys.exit(130) if follows() else _fail("interrupted", 130, as_json, debug)
        except LostError as error:
            sys.exit(LOST) if watched() else _fail(spoken(error), error.exit_code, as_json, debug)
        except DctError as error:
            _fail(spoken(error), error.exit_code, as_json, debug)
        except Exception as error:
            _fail(explained(error), 1, as_json, debug)

    return run


def explained(error: Exception) -> str:
    """What to say of an error that nobody foresaw: by its kind where that tells, and as such where it does not."""
    from dct.batching import out_of_memory

    first = next(iter(str(error).strip().splitlines()), "")
    if out_of_memory(error):
        return "out of memory: use a smaller model, --dtype bfloat16, fewer prompts (--n) or another --device"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the Python package {error.name} is missing: pip install {error.name.partition('.')[0]}"
    if isinstance(error, ImportError):
        return f"a Python package does not go with the others ({first}): install dct in an environment of its own"
    if isinstance(error, UnicodeError):
        return f"text that is not Unicode ({first}): save files as UTF-8, and set PYTHONUTF8=1 for what is typed"
    if isinstance(error, RecursionError):
        return "something is nested too deeply: look at the JSON files and the chat template that were given"
    if isinstance(error, OverflowError):
        return f"a number is too large ({first}): lower it"
    library = type(error).__module__.partition(".")[0]
    if library in ("huggingface_hub", "httpx", "requests", "safetensors", "tokenizers", "jinja2"):
        return f"{library} says: {first or type(error).__name__} (--debug shows where)"
    if isinstance(error, OSError):
        return f"{error.strerror or first}{f': {error.filename}' if error.filename else ''}"
    return f"unexpected {type(error).__name__}: {first} (--debug shows where; please report it)"


def _fail(message: str, code: int, as_json: bool, debug: bool) -> NoReturn:
    if follows():  # the first process may say the same, and ends this one
        time.sleep(FIRST_SAYS)
    if debug:
        import traceback

        say(visible(traceback.format_exc()).rstrip("\n"))
    fail(message, code, as_json)
