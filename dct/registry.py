"""How what other packages may add is found by its name: methods of fitting, judges, formats.

What comes with the package is a file in a folder: `my_thing.py` holds the class `MyThing` under the name `my-thing`.
What another package brings is an entry point. Listing names imports none of it.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dct.errors import DctError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class UnusableError(Exception):
    """What an entry point names is not what it has to be; the message says why."""


@dataclass(frozen=True)
class Registry:
    """One kind of thing that is found by name.

    Attributes:
        kind: what it is, in a word: also the argument that names one.
        group: the entry points' group: name = "package.module:Class".
        folder: subpackage of `dct` with those that come along.
    """

    kind: str
    group: str
    folder: str

    def built_in(self) -> tuple[str, ...]:
        """Those that come with the package, by their files."""
        files = (Path(__file__).parent / self.folder).glob("[!_]*.py")
        return tuple(sorted(path.stem.replace("_", "-") for path in files))

    def names(self) -> tuple[str, ...]:
        """All: those of the package, then those of other packages.

        Raises:
            DctError: the entry points of the installed packages cannot be read.
        """
        own = self.built_in()
        return (*own, *sorted({one.name for one in self._entry_points()} - set(own)))

    def found(self, name: str, made: Callable[["EntryPoint", Any], T]) -> T:
        """One by its name.

        Args:
            made: what to make of an entry point and the object that it names; raises `UnusableError` for one that is
                not of this kind.

        Raises:
            UsageError: there is none.
            DctError: two packages have one of that name, or it cannot be used.
        """
        own = [self.offer(name)] if name in self.built_in() else []
        offers = list(own)
        with suppress(*([DctError] if own else [])):  # which keeps nobody from what is here
            offers += [one for one in self._entry_points() if one.name == name]
        if not offers:
            raise UsageError(f"unknown `{self.kind}` {name!r}: choose {', '.join(self.names())}", argument=self.kind)
        if len(offers) > 1:
            whose = ", ".join(map(_whose, offers))
            raise DctError(f"several packages have a {self.kind} {name!r}: {whose}; keep one of them")
        return self._loaded(offers[0], made)

    def offer(self, name: str) -> "EntryPoint":
        """One that comes with the package, as an entry point would name it."""
        from importlib.metadata import EntryPoint

        words = name.split("-")
        where = f"{__package__}.{self.folder}.{'_'.join(words)}:{''.join(word.capitalize() for word in words)}"
        return EntryPoint(name=name, value=where, group=self.group)

    def _entry_points(self) -> tuple["EntryPoint", ...]:
        """Those of other packages."""
        from importlib.metadata import entry_points

        try:
            return tuple(entry_points(group=self.group))
        except Exception as error:  # whatever a file that anyone may have written makes of a reader
            raise DctError(
                f"an installed package has entry points that cannot be read ({first_line(error)})"
            ) from error

    def _loaded(self, offer: "EntryPoint", made: Callable[["EntryPoint", Any], T]) -> T:
        try:
            return made(offer, offer.load())
        except Exception as error:  # it is somebody else's code
            why = str(error) if isinstance(error, UnusableError) else first_line(error)
            message = f"the {self.kind} {offer.name!r} of {_whose(offer)} cannot be used: {why}"
            raise DctError(message) from error


def subclass(offer: "EntryPoint", kind: Any, base: type[T]) -> type[T]:
    """The class that an entry point names: whole, of the right sort, and called as its entry point is.

    Raises:
        UnusableError: it is none.
    """
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise UnusableError(f"{offer.value} is no {base.__module__}.{base.__name__}")
    if getattr(kind, "name", None) != offer.name:
        raise UnusableError(f"{offer.value} calls itself {getattr(kind, 'name', None)!r}")
    abstract = getattr(kind, "__abstractmethods__", ())
    if abstract:
        raise UnusableError(f"{offer.value} is abstract: it has no {', '.join(sorted(abstract))}")
    return kind


def own_options(whose: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that something has of its own: those that are given, and its defaults.

    Raises:
        UsageError: an option that it does not have, or a value of another type than the default.
    """
    for name in given:
        if name not in options:
            has = f"choose {', '.join(options)}" if options else "it has none"
            raise UsageError(f"{whose} has no option `{name}` of its own: {has}", argument=name)
    return {name: _like(default, given.get(name, default), name) for name, default in options.items()}


def _like(default: Any, value: Any, name: str) -> Any:
    """A value of the type of a default.

    Raises:
        UsageError: it is of another one.
    """
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(default), "text")
        raise UsageError(f"`{name}` must be {kind}, got {value!r}", argument=name)
    return value


def first_line(error: Exception) -> str:
    """What went wrong, in a line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _whose(offer: "EntryPoint") -> str:
    """The package that it is in."""
    return str(offer.dist.name) if offer.dist is not None else str(__package__)
