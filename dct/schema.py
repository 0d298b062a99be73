"""What JSON content must look like, declared once: rules that say what is wrong in words. Knows no file of its own."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

SHOWN = 40
"""Characters of a wrong value that are shown."""


class Rule(Protocol):
    """What a value must be."""

    def wrong(self, value: Any, name: str) -> str | None:
        """What is wrong with the value called `name`, to be read behind "it has"; None where nothing is."""


@dataclass(frozen=True)
class Is(Rule):
    """A value that a test tells.

    Attributes:
        what: what it must be, to be read behind "that is".
        test: whether it is.
    """

    what: str
    test: Callable[[Any], bool]

    def wrong(self, value: Any, name: str) -> str | None:
        """Nothing where the test passes, else the value and what it should be."""
        return None if self.test(value) else f"no {name} that is {self.what} (it is {_shown(value)})"


@dataclass(frozen=True)
class OrNull(Rule):
    """A value that may be null."""

    rule: Rule

    def wrong(self, value: Any, name: str) -> str | None:
        """Nothing for null, else what the rule finds."""
        return None if value is None else self.rule.wrong(value, name)


@dataclass(frozen=True)
class Listing(Rule):
    """A list, every entry of which follows a rule."""

    each: Rule
    least: int = 0

    def wrong(self, value: Any, name: str) -> str | None:
        """What is wrong with the list, or with the first entry that breaks its rule."""
        if not isinstance(value, list) or len(value) < self.least:
            what = f"a list of {self.least} or more" if self.least else "a list"
            return f"no {name} that is {what} (it is {_shown(value)})"
        found = (self.each.wrong(entry, f"{name}[{number}]") for number, entry in enumerate(value))
        return next((text for text in found if text is not None), None)


@dataclass(frozen=True)
class Record(Rule):
    """An object: keys that must be there, and keys that may be. Other keys are nobody's business.

    Attributes:
        needed, optional: rules by key.
        prefix: put before the keys' names in messages.
    """

    needed: Mapping[str, Rule] = field(default_factory=dict)
    optional: Mapping[str, Rule] = field(default_factory=dict)

    def wrong(self, value: Any, name: str) -> str | None:
        """The first key that is missing, or the first value that breaks its rule."""
        if not isinstance(value, dict):
            return f"no {name} that is an object (it is {_shown(value)})"
        prefix = f"{name}." if name else ""
        missing = next((key for key in self.needed if key not in value), None)
        if missing is not None:
            return f"no {prefix}{missing}"
        rules = {**self.needed, **self.optional}
        found = (rules[key].wrong(value[key], f"{prefix}{key}") for key in rules if key in value)
        return next((text for text in found if text is not None), None)


def _shown(value: Any) -> str:
    if isinstance(value, int) and not -(10**SHOWN) < value < 10**SHOWN:
        return "a number too large to show"  # nor would Python turn the largest into text
    kind = {dict: "an object", list: f"a list of {len(value) if isinstance(value, list) else 0}", type(None): "null"}
    text = kind.get(type(value)) or repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Is:
    """A finite number from `low` (or `above` it) to `high`; truth values are none."""

    def test(value: Any) -> bool:
        """A finite number within the bounds."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        try:
            value = float(value)
        except OverflowError:
            return False
        return math.isfinite(value) and low <= value <= high and not (above and value == low)

    bounds = [f"{'above' if above else 'from'} {low:g}"] if low > -math.inf else []
    bounds += [f"to {high:g}"] if high < math.inf else []
    return Is(" ".join(["a number", *bounds]), test)


def whole(low: int = 0, high: int = 2**53) -> Is:
    """A whole number from `low` to `high`."""

    def test(value: Any) -> bool:
        """An integer within the bounds."""
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Is(f"a whole number from {low} to {high}", test)


def text(least: int = 0) -> Is:
    """Text of `least` characters that are not white space at the ends, without the character of code 0."""

    def test(value: Any) -> bool:
        """Text that is long enough."""
        return isinstance(value, str) and len(value.strip()) >= least and "\0" not in value

    return Is("text" if least else "text without a null character", test)


def matching(what: str, pattern: str) -> Is:
    """Text that a regular expression matches whole."""
    compiled = re.compile(pattern)
    return Is(what, lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None)


def one_of(*choices: str) -> Is:
    """One of some words."""
    return Is(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


flag = Is("true or false", lambda value: isinstance(value, bool))
"""A truth value."""

anything = Is("anything", lambda value: True)
