"""The standard streams of the process: what is written to them when they are closed, full or no longer read."""

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn, TextIO

from dct.cli.characters import encodable, one_line
from dct.errors import DctError

NOWHERE = "stdout is closed, so that --json has nowhere to write to: redirect it to a file"


def write_json(content: Any, indent: int | None = None) -> None:
    """Writes a document to stdout.

    Raises:
        BrokenPipeError: whatever read it has gone.
        DctError: stdout is full or closed.
    """
    from dct.plainjson import dumps

    if sys.stdout is None:
        raise DctError(NOWHERE)
    try:
        sys.stdout.write(dumps(content, indent, strict=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: closed by this program itself
        discard(sys.stdout)
        reason = getattr(error, "strerror", None) or error
        raise DctError(f"the result cannot be written to stdout: {reason}") from error


def fail(message: str, code: int, as_json: bool = False) -> NoReturn:
    """Says what went wrong in one line on stderr, under --json also on stdout, and ends the program."""
    if as_json:
        with suppress(DctError, BrokenPipeError):
            write_json({"error": one_line(message), "exit_code": code})
    say(one_line(message), "error:")
    sys.exit(code)


def say(text: str, label: str = "") -> None:
    """Writes a line to stderr, its label in red on a terminal; closed or full, there is nobody to tell."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        if label:
            bare = not stream.isatty() or os.environ.get("NO_COLOR")
            text = f"{label} {text}" if bare else f"\x1b[31m{label}\x1b[0m {text}"
        stream.write(encodable(text, stream.encoding) + "\n")
        stream.flush()
    except (OSError, ValueError):
        discard(stream)


def discard(stream: TextIO | None) -> None:
    """Lets what is left in a stream that takes no more go nowhere, so that Python does not fail on it at exit."""
    if stream is not None:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def settle() -> None:
    """Empties the standard streams before the program ends, whatever has become of them."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            discard(stream)


def hold_streams() -> None:
    """Opens on nothing what was closed of descriptors 0 to 2: the next files opened would be taken for them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
