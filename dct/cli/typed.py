"""What a person types, line by line: with completion and a status line where prompt_toolkit and a terminal are there,
plainly elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from dct.cli.characters import encodable, one_line

if TYPE_CHECKING:
    from dct.talkcommands import Commands

MARK = "> "
"""Stands before what is typed."""

CURE = "pip install 'deep-causal-transcoders[chat]'"


class Lines(Protocol):
    """Where lines come from."""

    def read(self) -> str:
        """The next line.

        Raises:
            EOFError: there is none.
            KeyboardInterrupt: it was given up.
        """


def lines(commands: "Commands", status: Callable[[], str], plain: bool) -> tuple[Lines, str | None]:
    """How lines are read here, and what is to be said of that.

    Args:
        status: what is shown below the line that is typed.
        plain: read without a prompt.
    """
    if sys.stdin is None:
        raise EOFError
    if plain or not sys.stdin.isatty():
        return Piped(), None
    if not sys.stdout.isatty():
        return Asked(), None
    try:
        return Session(commands, status), None
    except ImportError:
        return Asked(), f"{CURE} brings completion with Tab and a line that tells what acts"


class Piped:
    """Lines of a file or a pipe."""

    def read(self) -> str:
        """The next line."""
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


class Asked:
    """Lines that Python itself asks for: on stdout alone, so that it can be a file."""

    def __init__(self) -> None:
        with suppress(ImportError):
            import readline  # noqa: F401 (the line can be edited, and earlier ones come back)

    def read(self) -> str:
        """The next line."""
        return input(MARK)


class Session:
    """Lines of prompt_toolkit: Tab completes, the arrows bring earlier lines, a status line says what acts.

    Raises:
        ImportError: it is not installed.
    """

    def __init__(self, commands: "Commands", status: Callable[[], str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import Completer, Completion
        from prompt_toolkit.styles import Style

        class Words(Completer):
            """Completes commands and their arguments."""

            def get_completions(self, document: Any, complete_event: Any) -> Iterator[Completion]:
                """What the word before the cursor may become."""
                line = document.text_before_cursor
                word = line.rpartition(" ")[2]
                for value, about in commands.completions(line):
                    yield Completion(value, -len(word), display_meta=_fit(about))

        self._session: Any = PromptSession(
            completer=Words(),
            complete_while_typing=False,
            bottom_toolbar=lambda: _fit(status()),
            style=Style.from_dict({"bottom-toolbar": "noreverse ansibrightblack"}),
        )

    def read(self) -> str:
        """The next line."""
        return str(self._session.prompt(MARK))


def _fit(text: str) -> str:
    return encodable(one_line(text), getattr(sys.stdout, "encoding", None))
