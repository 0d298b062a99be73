"""What a method of learning factors says of itself and does, and how methods are found by name.

A method that comes with the package is a file in `dct/fits`. One of another package is an entry point of the group
`dct.methods`; docs/add-a-method.md writes one. Listing names imports no method, and no torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dct.errors import DctError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from dct.job import Job, Learned
    from dct.settings import FitSettings

GROUP = "dct.methods"
"""The group of entry points: name = "package.module:Class"."""

FILES = Path(__file__).parent / "fits"


class Method(ABC):
    """A way to learn factors (v_l, u_l, alpha_l) of a map.

    Attributes:
        name: what the user calls it.
        about: one line about it.
        signed: v and -v are different vectors. Where they are not, ranking and steering try both.
        needs_scale: R has to be known beforehand: left out, it is calibrated. Otherwise it is the map's own
            `residual_norm`, or 1.
        step: what it can be resumed after: an `iteration`, which improves all factors, or a `vector`, where they are
            found one after another. None where it cannot be.
        iterations: how many, or steps of each vector, unless told otherwise.
        orthogonalize: how vectors are pushed apart, unless told otherwise: `qr`, `soft` or `none`.
        options: options of its own, with their defaults: numbers, truth values or text.
        one_row: its passes have a single row, whatever the batch.
        objective: what the first number of its objective is, in words.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    signed: ClassVar[bool] = True
    needs_scale: ClassVar[bool] = True
    step: ClassVar[Literal["iteration", "vector"] | None] = None
    iterations: ClassVar[int] = 10
    orthogonalize: ClassVar[str] = "soft"
    options: ClassVar[Mapping[str, Any]] = {}
    one_row: ClassVar[bool] = False
    objective: ClassVar[str] = "causal importance"

    @abstractmethod
    def work(self, settings: "FitSettings", dim: int, dim_out: int, done: int | None = None) -> dict[str, int]:
        """Rows that the fit sends through the map, by the `Derivatives` method that they go through.

        Args:
            settings: decided ones.
            dim, dim_out: of the map.
            done: steps that an interrupted fit has behind it; None for one that begins.
        """

    @abstractmethod
    def fit(self, job: "Job") -> "Learned":
        """Learns the factors."""

    def check(self, settings: "FitSettings", dim: int) -> None:  # noqa: B027 (most have nothing to refuse)
        """Refuses settings that no map of this dimension can be fitted with.

        Raises:
            UsageError: there is one.
        """

    def steps(self, factors: int, iterations: int) -> int:
        """How many steps a fit has, each of which can be resumed after."""
        return factors if self.step == "vector" else iterations

    def known(self, factors: int, done: int) -> int:
        """How many vectors there are after so many steps of a fit of so many factors."""
        return done if self.step == "vector" else factors

    def gains(self, work: Mapping[str, int]) -> bool:
        """Whether compiled code takes its passes: values and gradients of several rows, no forward mode."""
        return "value_and_gradient" in work and not self.one_row

    def own(self, settings: "FitSettings") -> dict[str, Any]:
        """Its own options: those that are set, and its defaults.

        Raises:
            UsageError: an option that it does not have, or a value of another type than the default.
        """
        given = settings.method_options or {}
        for name in given:
            if name not in self.options:
                has = f"choose {', '.join(self.options)}" if self.options else "it has none"
                raise UsageError(f"{self.name} has no option `{name}` of its own: {has}", argument=name)
        return {name: _like(default, given.get(name, default), name) for name, default in self.options.items()}


def sizes(settings: "FitSettings") -> tuple[int, int]:
    """Factors and iterations of decided settings."""
    if settings.factors is None or settings.iterations is None:
        raise ValueError("factors and iterations are not decided yet: see `dct.fitting.decided`")
    return settings.factors, settings.iterations


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


# --- the registry -----------------------------------------------------------------------------------------------------


def built_in() -> tuple[str, ...]:
    """The methods that come with the package, by their files."""
    return tuple(sorted(path.stem.replace("_", "-") for path in FILES.glob("[!_]*.py")))


def names() -> tuple[str, ...]:
    """All methods: those of the package, then those of other packages.

    Raises:
        DctError: the entry points of the installed packages cannot be read.
    """
    own = built_in()
    return (*own, *sorted({one.name for one in _entry_points()} - set(own)))


def method(name: str) -> Method:
    """A method by its name.

    Raises:
        UsageError: there is none.
        DctError: two packages have one of that name, or it cannot be used.
    """
    offers = []
    if name in built_in():
        offers = [_built_in(name)]
        with suppress(DctError):  # which keeps nobody from what is here
            offers += [one for one in _entry_points() if one.name == name]
    else:
        offers = [one for one in _entry_points() if one.name == name]
    if not offers:
        raise UsageError(f"unknown `method` {name!r}: choose {', '.join(names())}", argument="method")
    if len(offers) > 1:
        raise DctError(f"several packages have a method {name!r}: {', '.join(map(_whose, offers))}; keep one of them")
    return _loaded(offers[0])


def signed(name: str | None) -> bool:
    """Whether factors that do not say so themselves, as those of old files, have a sign: by the method's name."""
    return name not in built_in() or _loaded(_built_in(str(name))).signed


def _built_in(name: str) -> "EntryPoint":
    from importlib.metadata import EntryPoint

    words = name.split("-")
    where = f"{__package__}.fits.{'_'.join(words)}:{''.join(word.capitalize() for word in words)}"
    return EntryPoint(name=name, value=where, group=GROUP)


def _entry_points() -> tuple["EntryPoint", ...]:
    """The methods of other packages."""
    from importlib.metadata import entry_points

    try:
        return tuple(entry_points(group=GROUP))
    except Exception as error:  # whatever a file that anyone may have written makes of a reader
        raise DctError(f"an installed package has entry points that cannot be read ({_first_line(error)})") from error


def _loaded(offer: "EntryPoint") -> Method:
    """The method that an entry point names.

    Raises:
        DctError: it cannot be imported, or is no method of that name.
    """
    try:
        kind = offer.load()
        found = kind() if isinstance(kind, type) else kind
    except Exception as error:  # it is somebody else's code
        raise _unusable(offer, _first_line(error)) from error
    if not isinstance(found, Method):
        raise _unusable(offer, f"{offer.value} is no dct.method.Method")
    if getattr(found, "name", None) != offer.name:
        raise _unusable(offer, f"{offer.value} calls itself {getattr(found, 'name', None)!r}")
    from dct.settings import FitSettings

    taken = sorted({one.name for one in fields(FitSettings)} & set(found.options))
    if taken:
        raise _unusable(offer, f"every fit has an option {taken[0]!r}, so it cannot have one of its own")
    return found


def _unusable(offer: "EntryPoint", why: str) -> DctError:
    return DctError(f"the method {offer.name!r} of {_whose(offer)} cannot be used: {why}")


def _whose(offer: "EntryPoint") -> str:
    """The package that a method is in."""
    dist = offer.dist
    return str(dist.name) if dist is not None else str(__package__)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
