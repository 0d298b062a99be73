"""The command line: a thin wrapper that turns options into calls of the core and results into text.

Nothing in here imports torch before a command has begun, so that `--help` answers at once.
"""

from dct.cli.app import main

__all__ = ["main"]
