"""What an option may be, declared where it is declared: refused in one line before anything is imported or loaded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from dct.errors import UsageError

MANY = 1_000_000
"""Prompts, factors, tokens, rows: nothing of any kind is meant to be more than a million."""

SEEDS = 2**32 - 1
"""The greatest seed that every generator in use takes."""

LARGE, SMALL = 1e9, 1e-9
"""Scales and ratios beyond which float32 arithmetic is about nothing but rounding."""

Check = Callable[[Any], Any]


@dataclass(frozen=True)
class Range:
    """A check of numbers, alone or in a list; None, which is an option left out, passes.

    Attributes:
        name: the option.
        least, most: both included.
        zero: zero is allowed beside the range.
        positive: the lower end is there because of rounding: what matters is that the number is positive.
    """

    name: str
    least: float
    most: float
    zero: bool = False
    positive: bool = False

    def __call__(self, value: Any) -> Any:
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is not None and not self._holds(number):
                raise UsageError(f"{self.name} must be {self.told}: got {number}")
        return value

    def _holds(self, number: float) -> bool:
        if isinstance(number, float) and not math.isfinite(number):
            return False
        if self.zero and number == 0:
            return True
        return self.least <= number <= self.most

    @property
    def told(self) -> str:
        """The range in words."""
        told = f"from {_said(self.least)} to {_said(self.most)}"
        return f"{'positive, ' if self.positive else ''}{'0 or ' if self.zero else ''}{told}"

    @property
    def brief(self) -> str:
        """What a help page says of it: nothing of ends that are there to catch slips of the keyboard."""
        if self.positive:
            return "positive"
        return "" if isinstance(self.least, int) or self.most >= LARGE else self.told


def _said(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


@dataclass(frozen=True)
class Choice:
    """A check of names."""

    name: str
    names: Sequence[str]

    def __call__(self, value: Any) -> Any:
        if value is not None and value not in self.names:
            raise UsageError(f"unknown {self.name} {value!r}: choose {', '.join(self.names)}")
        return value


def count(name: str, *more: str, most: int = MANY, least: int = 1, **options: Any) -> Any:
    """An option that counts things."""
    return typer.Option(name, *more, callback=Range(name, least=least, most=most), **options)


def number(name: str, *more: str, **options: Any) -> Any:
    """An option that measures something; `least`, `most`, `zero` and `positive` as in `Range`."""
    limits = {key: options.pop(key) for key in ("least", "most", "zero", "positive") if key in options}
    return typer.Option(name, *more, callback=Range(name, **limits), **options)


def positive(name: str, most: float = LARGE, **options: Any) -> Any:
    """An option that is a positive number."""
    return number(name, least=SMALL, most=most, positive=True, **options)


def choice(name: str, *names: str, **options: Any) -> Any:
    """An option that is one of several names."""
    return typer.Option(name, callback=Choice(name, names), **options)


def text(name: str, *more: str, check: Callable[[str], Any], **options: Any) -> Any:
    """An option whose text must pass a check, which raises `UsageError`; the text itself is handed on."""

    def checked(value: Any) -> Any:
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None:
                check(one)
        return value

    return typer.Option(name, *more, callback=checked, **options)
