"""How an option is declared: once, as a field of a dataclass of settings.

The Python default, the flag with its help, the variable `DCT_*`, the key in a TOML file and what a run folder records
are all read off the same field. Knows no option and no command line: `dct.settings` holds the options, `dct.cli` turns
them into flags.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dct.errors import UsageError

MANY = 1_000_000
"""Prompts, factors, tokens, rows: nothing of any kind is meant to be more than a million."""

SEEDS = 2**32 - 1
"""The greatest seed that every generator in use takes."""

FLOAT32 = 3.4e38
"""The greatest number of that type."""

LARGE, SMALL = 1e9, 1e-9
"""Scales and ratios beyond which float32 arithmetic is about nothing but rounding."""

KEY = "setting"
"""Of a field's metadata."""

REQUIRED: Any = object()
"""Instead of the default of an option that has none."""

S = TypeVar("S", bound="Settings")

Check = Callable[[str, Any], None]
"""Called with an argument's name and its value; raises `UsageError` for one that it may not have."""


@dataclass(frozen=True)
class Declared:
    """What is said of an option beside its name, type and default.

    Attributes:
        help: what it does, in one sentence.
        key: its name outside Python where that is another one (`lambda` is a word of Python's).
        also: a further name.
        short: one letter.
        shown: its default in words, where that is decided later.
        check: refuses values that it may not have.
        parse: text as a command line, a variable or a file has it -> the value.
        first: it is among the few that people set first.
        file: a value -> the TOML file that it names, whose options hold where no other is given.
    """

    help: str
    key: str | None = None
    also: str | None = None
    short: str | None = None
    shown: str | None = None
    check: Check | None = None
    parse: Callable[[str], Any] | None = None
    first: bool = False
    file: Callable[[str], Path] | None = None


def setting(default: Any, help: str, **told: Any) -> Any:  # noqa: A002 (what help pages call it)
    """A field of a dataclass of settings; `told` as in `Declared`."""
    declared = Declared(help, **told)
    if default is REQUIRED:
        return field(metadata={KEY: declared})
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata={KEY: declared})
    return field(default=default, metadata={KEY: declared})


def several(of: type["Settings"], name: str, parse: Callable[[str], tuple[Any, ...]], **more: Any) -> Any:
    """A field of several values, of which an option of another group takes one: what is said of it is said there.

    Args:
        parse: text -> the values.
        more: of `Declared`, where it is to be another.
    """
    one = next(field for field in fields(of) if field.name == name)
    default = None if one.default is None else (one.default,)
    return field(default=default, metadata={KEY: replace(told(one), parse=parse, **more)})


def told(one: Field) -> Declared:
    """What was said of a field."""
    declared: Declared = one.metadata[KEY]
    return declared


def key(one: Field) -> str:
    """A field's name outside Python."""
    return told(one).key or one.name


@dataclass(repr=False, eq=False)
class Settings:
    """A group of options that belong together.

    Attributes:
        table: the group's name in a TOML file and in a run's record.
        title: of its panel on a help page.
        own: it belongs to one command, so that its variables carry the table's name.
        command: what the variables of a group's further fields carry, where only those belong to a command: `out` of
            one is not that of another.

    Raises:
        UsageError: a value that an option may not have, when it is set.
    """

    table: ClassVar[str]
    title: ClassVar[str]
    own: ClassVar[bool] = False
    command: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = checked(one, getattr(self, one.name))
            setattr(self, one.name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def changed(self: S, **values: Any) -> S:
        """A copy with other values; None leaves a value as it is.

        Raises:
            UsageError: a name that no option of this group has.
        """
        known = {one.name for one in fields(self)}
        for name in values:
            if name not in known:
                raise UsageError(f"unknown argument {name!r}: choose {', '.join(sorted(known))}", argument=name)
        return replace(self, **{name: value for name, value in values.items() if value is not None})

    def record(self) -> dict[str, Any]:
        """Key -> value of all that was decided, ready for JSON and TOML: what was left open is left out."""
        values = {key(one): getattr(self, one.name) for one in fields(self)}
        return {name: _plain(value) for name, value in values.items() if value is not None}

    @classmethod
    def recorded(cls: type[S], record: Mapping[str, Any]) -> S:
        """The settings that a record holds.

        Raises:
            UsageError: a key that no option has, or a value that it may not have.
        """
        names = {key(one): one.name for one in fields(cls)}
        for name in record:
            if name not in names:
                raise UsageError(f"unknown key {name!r} in [{cls.table}]: choose {', '.join(names)}", argument=name)
        return cls(**{names[name]: value for name, value in record.items()})

    @classmethod
    def picked(cls: type[S], values: Mapping[str, Any]) -> S:
        """The settings among other values, by their keys; None counts as left out.

        Raises:
            UsageError: a value that an option may not have.
        """
        found = {one.name: values.get(key(one)) for one in fields(cls)}
        return cls(**{name: value for name, value in found.items() if value is not None})

    @classmethod
    def variable(cls, one: Field) -> str:
        """The environment variable that sets an option: DCT_DTYPE, or DCT_RANK_SCALE where the group is a command's."""
        home = next(kind for kind in cls.__mro__ if one.name in inspect.get_annotations(kind))
        command = home.__dict__.get("command") or (cls.table if cls.own else "")
        return "_".join(filter(None, ["DCT", command, key(one)])).upper()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return value if isinstance(value, int | float | str | bool) else str(value)


def checked(one: Field, value: Any) -> Any:
    """A value of an option, parsed where it is text.

    Raises:
        UsageError: the option may not have it.
    """
    declared = told(one)
    if value is None:
        return None
    if declared.parse is not None and isinstance(value, str | list):
        try:
            value = declared.parse(value if isinstance(value, str) else ",".join(map(str, value)))
        except ValueError as error:
            raise UsageError(f"`{key(one)}` {error}", argument=one.name) from None
    if declared.check is not None:
        declared.check(key(one), value)
    return value


# --- checks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """A check of numbers, alone or in a list.

    Attributes:
        least, most: both included.
        zero: zero is allowed beside the range.
        positive: the lower end is there because of rounding: what matters is that the number is positive.
    """

    least: float
    most: float
    zero: bool = False
    positive: bool = False

    def __call__(self, name: str, value: Any) -> None:
        for number in value if isinstance(value, list | tuple) else [value]:
            if not self._holds(number):
                raise UsageError(f"`{name}` must be {self.told}: got {number}", argument=name)

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


def counted(least: int = 1, most: int = MANY) -> Range:
    """Of things that are counted."""
    return Range(least, most)


def above_zero(most: float = LARGE) -> Range:
    """Of positive numbers."""
    return Range(SMALL, most, positive=True)


@dataclass(frozen=True)
class Choice:
    """A check of names.

    Attributes:
        names: those to choose from, or a function that finds them.
        shown: those that a help page shows where `names` is a function that takes time.
    """

    names: Sequence[str] | Callable[[], Sequence[str]]
    shown: Sequence[str] = ()

    def __call__(self, name: str, value: Any) -> None:
        for one in value if isinstance(value, tuple) else [value]:
            if one not in self.listed and one not in self.every:  # finding all of them takes time
                raise UsageError(f"unknown `{name}` {one!r}: choose {', '.join(self.every)}", argument=name)

    @property
    def every(self) -> Sequence[str]:
        """All there is to choose from."""
        return self.names() if callable(self.names) else self.names

    @property
    def listed(self) -> Sequence[str]:
        """What a help page lists."""
        return self.shown if callable(self.names) else self.names


def choice(*names: str) -> Choice:
    """One of several names."""
    return Choice(names)
