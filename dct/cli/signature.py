"""What a command's function says of itself: its options as they were declared, and the help page made of them.

A parameter of a command is a positional argument, or a group of settings whose fields are its options.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from dct.cli.pages import page
from dct.declaration import Choice, Declared, Settings, told

KINDS = {int: "<int>", float: "<float>", str: "<text>", Path: "<path>"}

HELP = ("-h, --help", "Show this message and exit.")

FIRST = "Set these first"
"""Title of the panel of the few options that people set first."""

EPILOG = (
    "Each option can be set by a variable too, such as {variable}, or in a TOML file that --config names; the command "
    "line comes first, then variables, then the file."
)


def argument(help: str) -> Any:  # noqa: A002 (what help pages call it)
    """A positional argument, which may be left out."""
    return Declared(help)


@dataclass(frozen=True)
class Parameter:
    """An option, or a positional argument, of a command.

    Attributes:
        name: in Python.
        kind: its type, as the command line reads it.
        declared: what was said of it.
        default: its default; `inspect.Parameter.empty` where it has none.
        group: the settings that it belongs to; None for a positional argument.
        field: there.
    """

    name: str
    kind: Any
    declared: Declared
    default: Any
    group: type[Settings] | None = None
    field: Field | None = None

    @property
    def positional(self) -> bool:
        """It has no flag."""
        return self.group is None

    @property
    def required(self) -> bool:
        """It cannot be left out."""
        return self.default is inspect.Parameter.empty

    @property
    def key(self) -> str:
        """Its name in a TOML file."""
        return self.declared.key or self.name

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        assert self.group is not None
        assert self.field is not None
        return self.group.variable(self.field)

    @property
    def flags(self) -> tuple[str, ...]:
        """Its names on the command line."""
        flag = flag_of(self.key)
        if _is_switch(self.kind) and (self.default is True or self.default is None):
            flag = f"{flag}/--no-{flag[2:]}"
        more = [f"--{self.declared.also}"] if self.declared.also else []
        return (flag, *more, *([f"-{self.declared.short}"] if self.declared.short else []))


def flag_of(name: str) -> str:
    """A key as a flag."""
    return f"--{name.replace('_', '-')}"


def _is_switch(kind: Any) -> bool:
    return kind is bool or bool in get_args(kind)


def groups(function: Callable[..., Any]) -> dict[str, type[Settings]]:
    """The groups of settings that a command takes, by the names of its parameters."""
    hints = get_type_hints(function, include_extras=True)
    found = {name: hints[name] for name in inspect.signature(function).parameters}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Settings)}


def parameters(function: Callable[..., Any]) -> Iterator[Parameter]:
    """The options and arguments of a command, in order."""
    hints = get_type_hints(function, include_extras=True)
    taken = groups(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in taken:
            yield from _options(taken[name])
        else:
            kind, declared = get_args(hints[name])
            yield Parameter(name, kind, declared, parameter.default)


def _options(group: type[Settings]) -> Iterator[Parameter]:
    hints = get_type_hints(group)
    for one in sorted(fields(group), key=lambda one: not told(one).first):
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        kind, declared = hints[one.name], told(one)
        if declared.parse is not None:  # the command line has text, whatever becomes of it
            kind, default = str | None, _as_text(default)
        if get_origin(kind) is list:
            kind, default = kind | None, None
        default = inspect.Parameter.empty if default is MISSING else default
        yield Parameter(one.name, kind, declared, default, group, one)


def _as_text(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    return ",".join(one if isinstance(one, str) else f"{one:g}" for one in value)


def command_page(path: str, function: Callable[..., Any], commands: Sequence[tuple[str, str]] = ()) -> str:
    """The help page of a command.

    Args:
        path: what the user types, such as "dct fit".
        function: the command; its docstring says what it does.
        commands: its own commands, each with a line about it.
    """
    every = list(parameters(function))
    arguments = [
        (p.name.upper() if p.required else f"[{p.name.upper()}]", p.declared.help) for p in every if p.positional
    ]
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": arguments, FIRST: []}
    for p in every:
        if p.group is not None:
            title = FIRST if p.declared.first else p.group.title
            panels.setdefault(title, []).append((_named(p), described(p)))
    panels.setdefault("Output", []).append(HELP)
    panels["Commands"] = list(commands)
    usage = " ".join([path, "[OPTIONS]", *(names for names, _ in arguments), *(["[COMMAND]"] if commands else [])])
    example = next((p.variable for p in every if p.group is not None and p.declared.first), "DCT_QUIET")
    return page(usage, inspect.getdoc(function) or "", list(panels.items()), EPILOG.format(variable=example))


def own_commands(module: Any) -> list[tuple[str, str]]:
    """The commands of a command's own, with the first sentence of each: what its module names in `COMMANDS`."""
    told = {name: inspect.getdoc(function) or "" for name, function in getattr(module, "COMMANDS", {}).items() if name}
    return [(name, text.split("\n\n")[0].replace("\n", " ")) for name, text in told.items()]


def _named(p: Parameter) -> str:
    """Names and the kind of value: "-n, --name <text>"."""
    names = ", ".join(sorted(p.flags, key=lambda name: name.startswith("--")))
    if _is_switch(p.kind):
        return names
    if isinstance(p.declared.check, Choice):
        return f"{names} <choice>"
    kind = next(t for t in (get_args(p.kind) or (p.kind,)) if t is not type(None))
    several = get_origin(kind) is list
    return f"{names} {KINDS[get_args(kind)[0]]}..." if several else f"{names} {KINDS[kind]}"


def described(p: Parameter) -> str:
    """What an option does, with what there is to choose from, its default and its range behind it in brackets."""
    return p.declared.help + _extras(p)


def _extras(p: Parameter) -> str:
    """What stands in brackets behind an option: what there is to choose from, its default and its range."""
    check = p.declared.check
    plain = "" if p.required or p.default is None or p.default is False else str(p.default)
    said = p.declared.shown or plain
    among = " | ".join(check.listed) if isinstance(check, Choice) else ""
    extras = [among, f"default: {said}" if said else "", getattr(check, "brief", ""), "required" * p.required]
    shown = "; ".join(filter(None, extras))
    return f"  [{shown}]" if shown else ""
