"""The command line: a thin wrapper that turns options into calls of the core and results into text.

Nothing in here imports torch before a command has begun, nor any command's module before that command is asked for, so
that `--help` answers at once.
"""

import os
import sys
from importlib import import_module


def main() -> None:
    """Entry point of the `dct` command."""
    from dct.cli.streams import discard, hold_streams, settle

    hold_streams()
    try:
        if "_DCT_COMPLETE" not in os.environ and _helped(sys.argv[1:]):
            return
        import signal

        from dct.cli.app import app
        from dct.memory import one_heap

        one_heap()
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's end is the user's Ctrl+C
        app()
    except BrokenPipeError:  # whatever read this has gone
        discard(sys.stdout)
        sys.exit(1)
    finally:
        settle()


def _helped(words: list[str]) -> bool:
    """Answers what is plainly a call for help, of which nothing but the page is made; anything else is Typer's."""
    from dct.cli.commands import COMMANDS, overview

    if not words:
        from dct.cli.streams import say

        say(overview().rstrip("\n"))
        sys.exit(2)
    if words[-1] not in ("-h", "--help") or len(words) > 2:
        return False
    page = overview()
    if len(words) == 2:
        module = import_module(f"dct.cli.{words[0]}") if words[0] in COMMANDS else None
        function = getattr(module, words[0], None)
        if function is None:  # no command, or a group of them
            return False
        from dct.cli.signature import command_page, own_commands

        page = command_page(f"dct {words[0]}", function, own_commands(module))
    if sys.stdout is not None:
        sys.stdout.write(page)
    return True
