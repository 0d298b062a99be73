"""Writes docs/commands.md, the reference of every command, from the declarations that make `--help`.

usage: python docs/commands.py          write the page
       python docs/commands.py --check  exit with 1 where the page is not what would be written
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from dct.cli.commands import COMMANDS
from dct.cli.signature import Parameter, described, parameters

PAGE = Path(__file__).parent / "commands.md"

HEAD = """# Commands

Every option has four faces, all made from one declaration (`dct/settings.py`): a flag, an environment variable, a key
in a TOML file and a default in Python. The command line comes first, then the variable, then the file.

```sh
dct fit --factors 64                     # a flag
DCT_FACTORS=64 dct fit                   # a variable
dct fit --config mine.toml               # a file with the lines:  [fit]  factors = 64
dct fit --config runs/demo/config.toml   # every finished run keeps its own: this repeats it, bit for bit
```

A file may serve several commands: each reads the tables that it knows. A key that no command has is refused.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, function in commands():
        parts += [f"## dct {name}\n", inspect.getdoc(function) or "", ""]
        every = list(parameters(function))
        parts += [f"Argument `{p.name.upper()}`: {p.declared.help}\n" for p in every if p.positional]
        tables: dict[str, list[Parameter]] = {}
        for p in every:
            if p.group is not None:
                tables.setdefault(p.group.table, []).append(p)
        for table, options in tables.items():
            parts += [f"### [{table}] of dct {name}\n", "| flag | key | variable | what it does |", "|---|---|---|---|"]
            parts += [row(p) for p in options]
            parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every command by what the user types."""
    for name in COMMANDS:
        module = import_module(f"dct.cli.{name}")
        for sub, function in getattr(module, "COMMANDS", {"": getattr(module, name, None)}).items():
            yield f"{name} {sub}".strip(), function


def row(p: Parameter) -> str:
    """A line of a table."""
    flags = ", ".join(f"`{flag}`" for flag in sorted(p.flags, key=lambda flag: flag.startswith("--")))
    cells = (flags, f"`{p.key}`", f"`{p.variable}`", described(p).replace("  [", " ["))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    text = page()
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/commands.md is not what the commands say: run `python docs/commands.py`")
    else:
        PAGE.write_text(text, encoding="utf-8")
