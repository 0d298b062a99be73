"""How options and arguments are declared: names, help and what they may be.

Typer is told of them when a command line is read (see `app`). Importing it takes longer than the rest of a help page.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dct.cli.ranges import LARGE, MANY, SMALL, Choice, Range

Check = Callable[[Any], Any]


@dataclass(frozen=True)
class Declared:
    """An option, or an argument.

    Attributes:
        names: with their dashes; none, where the parameter's own name serves.
        help: what it does.
        default: how its default is described; left out, it is shown as it is.
        check: raises `UsageError` for values that it may not have.
    """

    names: tuple[str, ...]
    help: str
    default: str | None = None
    check: Check | None = None
    argument: bool = False


def argument(help: str) -> Any:  # noqa: A002 (what Typer calls it)
    """An argument that may be left out."""
    return Declared((), help, argument=True)


def option(*names: str, help: str, show_default: str | None = None, check: Check | None = None) -> Any:  # noqa: A002
    """An option; `show_default` describes a default that cannot be shown as it is."""
    return Declared(names, help, show_default, check)


def count(name: str, *more: str, least: int = 1, most: int = MANY, **told: Any) -> Any:
    """An option that counts things."""
    return option(name, *more, check=Range(name, least, most), **told)


def number(name: str, least: float, most: float, *, zero: bool = False, **told: Any) -> Any:
    """An option that is a finite number in a range; `zero` as in `Range`."""
    return option(name, check=Range(name, least, most, zero=zero), **told)


def positive(name: str, most: float = LARGE, **told: Any) -> Any:
    """An option that is a positive number."""
    return option(name, check=Range(name, SMALL, most, positive=True), **told)


def choice(name: str, *among: str, between: str = ", ", **told: Any) -> Any:
    """An option that is one of several names; `between` as in `Choice`."""
    return option(name, check=Choice(name, among, between), **told)


def text(*names: str, check: Callable[[str], Any], **told: Any) -> Any:
    """An option whose text must pass a check, which raises `UsageError`; the text itself is handed on."""
    return option(*names, check=Each(check), **told)


@dataclass(frozen=True)
class Each:
    """A check of text, alone or in a list; None, which is an option left out, passes."""

    check: Callable[[str], Any]

    def __call__(self, value: "str | Sequence[str] | None") -> Any:
        for one in [value] if isinstance(value, str) else value or []:
            self.check(one)
        return value
