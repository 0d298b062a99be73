"""What a command's function says of itself: its options as they were declared, and the help page made of them."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from dct.cli.declare import Declared
from dct.cli.pages import page

KINDS = {int: "<int>", float: "<float>", str: "<text>", Path: "<path>"}

HELP = ("-h, --help", "Show this message and exit.")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a command.

    Attributes:
        name: in the function.
        kind: its type.
        declared: what was said of it.
        default: its default; `inspect.Parameter.empty` where it has none.
    """

    name: str
    kind: Any
    declared: Declared
    default: Any

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def names(self) -> tuple[str, ...]:
        """Its names on the command line."""
        return self.declared.names or (f"--{self.name.replace('_', '-')}",)


def parameters(function: Callable[..., Any]) -> Iterator[Parameter]:
    """The parameters of a command, in order."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, declared = get_args(hints[name])
        yield Parameter(name, kind, declared, parameter.default)


def command_page(path: str, function: Callable[..., Any]) -> str:
    """The help page of a command.

    Args:
        path: what the user types, such as "dct fit".
        function: the command; its docstring says what it does.
    """
    arguments: list[tuple[str, str]] = []
    options: list[tuple[str, str]] = []
    for p in parameters(function):
        row = (_named(p), p.declared.help + _extras(p))
        (arguments if p.declared.argument else options).append(row)
    usage = " ".join([path, "[OPTIONS]", *(row[0] for row in arguments)])
    panels = [("Arguments", arguments), ("Options", [*options, HELP])]
    return page(usage, inspect.getdoc(function) or "", panels)


def _named(p: Parameter) -> str:
    """Names and the kind of value: "-n, --name <text>"."""
    if p.declared.argument:
        return f"[{p.name.upper()}]"
    names = ", ".join(sorted(p.names, key=lambda name: name.startswith("--")))
    kind = next(t for t in (get_args(p.kind) or (p.kind,)) if t is not type(None))
    several = get_args(p.kind) and get_args(kind)
    if kind is bool:
        return names
    return f"{names} {KINDS[get_args(kind)[0]]}..." if several else f"{names} {KINDS[kind]}"


def _extras(p: Parameter) -> str:
    """What stands in brackets behind an option: its default and its range."""
    plain = "" if p.required or p.default is None or p.default is False else str(p.default)
    said = p.declared.default or plain
    extras = [f"default: {said}" if said else "", getattr(p.declared.check, "brief", ""), "required" * p.required]
    told = "; ".join(filter(None, extras))
    return f"  [{told}]" if told else ""
