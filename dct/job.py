"""A fit in progress: what a method is given, where it stands, and what it gives back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from dct.derivatives import Derivatives
from dct.method import sizes
from dct.perturbation import Perturbation
from dct.settings import FitSettings

Progress = Callable[[str, int, int], None]
"""Called with the stage, the rows that have gone through the map so far, and all the rows that the fit will take."""


@dataclass
class State:
    """Where an iterative fit stands: enough to go on from, whatever happened to the process."""

    V: Float[Tensor, "m d"]
    U: Float[Tensor, "known d_out"]
    """One for each row of V; none before the first iteration, which finds them as it goes."""
    objective: list[list[float]] = field(default_factory=list)
    unprotected: bool = False
    """It was read from a file of format version 1, whose numbers nothing vouches for."""

    @property
    def iteration(self) -> int:
        """Steps done: iterations, or vectors where they are found one after another."""
        return len(self.objective)


class Learned(NamedTuple):
    """What a method gives back.

    Attributes:
        V: unit input directions, one a row, shape (m, d).
        U: unit output directions, one a row, shape (m, d_out); zero where a vector causes nothing.
        alpha: strengths, shape (m,), none of them negative.
        objective: three numbers for every step, shape (steps, 3): what the method maximises (`Method.objective` says
            what that is), another number of its choice, and how far the step went.
    """

    V: Float[Tensor, "m d"]
    U: Float[Tensor, "m d_out"]
    alpha: Float[Tensor, " m"]
    objective: Float[Tensor, "steps 3"]


@dataclass
class Job:
    """What a method is given.

    Attributes:
        d: values and derivatives of the map. Vectors, values and derivatives are on `d.device`, in `d.dtype`.
        scale: R.
        settings: of the fit; nothing that a method has a default for is left open.
        own: the method's own options, by name.
        info: how the factors are found, JSON types only; a method adds what it has to say.
        resume: the state of an interrupted fit to go on from.
        total: rows that the whole fit is expected to send through the map.
        done: rows that have gone through it.
    """

    d: Derivatives
    scale: float
    settings: FitSettings
    own: Mapping[str, Any]
    info: dict[str, Any]
    resume: State | None = None
    checkpoint: Callable[[State], None] | None = None
    progress: Progress | None = None
    total: int = 0
    done: int = 0
    stage: str = ""

    def __post_init__(self) -> None:
        self.d.on_rows = self.advance

    @property
    def m(self) -> int:
        """Factors to learn."""
        return sizes(self.settings)[0]

    @property
    def iterations(self) -> int:
        """Iterations, or steps of each vector."""
        return sizes(self.settings)[1]

    @property
    def seed(self) -> int:
        """Of every random choice; a second choice takes `seed + 1`, and so on."""
        return self.settings.seed

    @property
    def space(self) -> Perturbation:
        """What rows of V are: how they are drawn, normalised and compared. Vectors, unless the map says otherwise."""
        return getattr(self.d.f, "perturbation", None) or Perturbation(self.d.dim)

    def response(self, V: Float[Tensor, "m d"]) -> Float[Tensor, "m d_out"]:
        """R_S(v_l) = f(R v_l), for every row of V."""
        return self.d.value(self.scale * V)

    def keep(self, V: Tensor, U: Tensor, objective: Sequence[Sequence[float]]) -> None:
        """Called after every step: from here on an interrupted fit goes on from where it stands now."""
        if self.checkpoint is not None:
            self.checkpoint(State(V.cpu(), U.cpu(), [list(row) for row in objective]))

    def begin(self, stage: str, rows: int | None = None) -> None:
        """Says what is done next, and how many rows are left if that was not known before."""
        self.stage = stage
        if rows is not None:
            self.total = self.done + rows
        self.advance(0)

    def behind(self, rows: int) -> None:
        """Counts rows that an interrupted fit had already sent through the map."""
        self.done, self.total = self.done + rows, self.total + rows

    def advance(self, rows: int) -> None:
        """Counts rows that have gone through the map; `d` tells of its own."""
        self.done += rows
        if self.progress is not None:
            self.progress(self.stage, self.done, self.total)
