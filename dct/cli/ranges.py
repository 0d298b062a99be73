"""What an option may be, declared where it is declared: refused in one line before anything is imported or loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dct.errors import UsageError

MANY = 1_000_000
"""Prompts, factors, tokens, rows: nothing of any kind is meant to be more than a million."""

SEEDS = 2**32 - 1
"""The greatest seed that every generator in use takes."""

FLOAT32 = 3.4e38
"""The greatest number of that type."""

LARGE, SMALL = 1e9, 1e-9
"""Scales and ratios beyond which float32 arithmetic is about nothing but rounding."""


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
    """A check of names; `between` stands between them where they are listed."""

    name: str
    names: Sequence[str]
    between: str = ", "

    def __call__(self, value: Any) -> Any:
        if value is not None and value not in self.names:
            raise UsageError(f"unknown {self.name} {value!r}: choose {self.between.join(self.names)}")
        return value
