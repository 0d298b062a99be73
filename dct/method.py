"""What a method of learning factors says of itself and does, and how methods are found by name.

A method that comes with the package is a file in `dct/fits`. One of another package is an entry point of the group
`dct.methods`; docs/add-a-method.md writes one. Listing names imports no method, and no torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dct.registry import Registry, UnusableError, own_options

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from jaxtyping import Float
    from torch import Tensor

    from dct.job import Job, Learned
    from dct.settings import FitSettings

REGISTRY = Registry("method", "dct.methods", "fits")


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
        rank_one: what it learns of a model are rank-1 changes of a band of blocks (`dct.perturbation`).
        objective: what the first number of its objective is, in words.
        kernel: which kappa the strengths solve K alpha = b with (`dct.fits.shared.strengths`); None where they are
            something else.
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
    rank_one: ClassVar[bool] = False
    objective: ClassVar[str] = "causal importance"
    kernel: ClassVar[str | None] = None

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

    def caused(self, job: "Job", V: "Float[Tensor, 'rows d']") -> "Float[Tensor, 'rows d_out']":
        """What each unit vector causes: u_l is its direction, in either sense where vectors have none, and
        b_l = <u_l, caused_l>. R_S(v_l), unless a method says otherwise."""
        return job.response(V)

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
        return own_options(self.name, self.options, settings.method_options or {})


def sizes(settings: "FitSettings") -> tuple[int, int]:
    """Factors and iterations of decided settings."""
    if settings.factors is None or settings.iterations is None:
        raise ValueError("factors and iterations are not decided yet: see `dct.fitting.decided`")
    return settings.factors, settings.iterations


# --- the registry -----------------------------------------------------------------------------------------------------


def built_in() -> tuple[str, ...]:
    """The methods that come with the package, by their files."""
    return REGISTRY.built_in()


def names() -> tuple[str, ...]:
    """All methods: those of the package, then those of other packages.

    Raises:
        DctError: the entry points of the installed packages cannot be read.
    """
    return REGISTRY.names()


def method(name: str) -> Method:
    """A method by its name.

    Raises:
        UsageError: there is none.
        DctError: two packages have one of that name, or it cannot be used.
    """
    return REGISTRY.found(name, _made)


def signed(name: str | None) -> bool:
    """Whether factors that do not say so themselves, as those of old files, have a sign: by the method's name."""
    if name is None or name not in built_in():
        return True
    offer = REGISTRY.offer(name)
    return _made(offer, offer.load()).signed


def _made(offer: "EntryPoint", kind: Any) -> Method:
    """The method that an entry point names.

    Raises:
        UnusableError: it is no method of that name.
    """
    found = kind() if isinstance(kind, type) else kind
    if not isinstance(found, Method):
        raise UnusableError(f"{offer.value} is no dct.method.Method")
    if getattr(found, "name", None) != offer.name:
        raise UnusableError(f"{offer.value} calls itself {getattr(found, 'name', None)!r}")
    from dct.settings import FitSettings

    taken = sorted({one.name for one in fields(FitSettings)} & set(found.options))
    if taken:
        raise UnusableError(f"every fit has an option {taken[0]!r}, so it cannot have one of its own")
    return found
