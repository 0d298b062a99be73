"""The help page of a command, read off its function's signature.

Typer would build a validator for every option before it says a word, which takes longer than all the rest of `--help`.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from dct.cli.pages import page
from dct.cli.ranges import Range

KINDS = {int: "<int>", float: "<float>", str: "<text>", Path: "<path>"}

REQUIRED = inspect.Parameter.empty

HELP = ("-h, --help", "Show this message and exit.")


def command_page(path: str, function: Callable[..., Any]) -> str:
    """The help page of a command.

    Args:
        path: what the user types, such as "dct fit".
        function: the command; its docstring says what it does.
    """
    arguments, options = [], []
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = get_args(hints[name])[:2]
        row = (_named(name, kind, info), f"{info.help or ''}{_extras(info, parameter.default)}")
        (arguments if isinstance(info, ArgumentInfo) else options).append(row)
    usage = " ".join([path, "[OPTIONS]", *(row[0] for row in arguments)])
    panels = [("Arguments", arguments), ("Options", [*options, HELP])]
    return page(usage, inspect.getdoc(function) or "", panels)


def _named(name: str, kind: Any, info: "ArgumentInfo | OptionInfo") -> str:
    if isinstance(info, ArgumentInfo):
        return f"[{name.upper()}]"
    # In an annotation, what Typer calls the default is the first name.
    given = [n for n in (info.default, *(info.param_decls or ())) if isinstance(n, str)]
    names = sorted(given or [f"--{name.replace('_', '-')}"], key=lambda n: n.startswith("--"))
    types = [t for t in (get_args(kind) or (kind,)) if t is not type(None)]
    if types == [bool]:
        return ", ".join(names)
    several = bool(get_args(types[0])) or types[0] is list
    inner = get_args(types[0])[0] if several and get_args(types[0]) else types[0]
    return f"{', '.join(names)} {KINDS[inner]}{'...' if several else ''}"


def _extras(info: Any, default: Any) -> str:
    """What stands in brackets behind an option: its default and its range."""
    said = info.show_default if isinstance(info.show_default, str) else None
    if said is None and info.show_default and str(default) not in ("None", "False", "") and default is not REQUIRED:
        said = str(default)
    extras = [f"default: {said}"] if said else []
    if isinstance(info.callback, Range) and info.callback.brief:
        extras.append(info.callback.brief)
    if default is REQUIRED:
        extras.append("required")
    return f"  [{'; '.join(extras)}]" if extras else ""
