"""Orthogonalised iteration: the loop of the post's exponential and quadratic fits, with checkpoints.

    V <- orthogonalised V;  (V, U) <- unit rows of an update;  again

A method says what the update is; here are the start, the loop, damping, stopping early, resuming, outputs, strengths.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.errors import UsageError
from dct.fits.shared.orthogonalisation import ETA, orthogonalized
from dct.fits.shared.responses import measured, random_responses
from dct.fits.shared.starts import start
from dct.fits.shared.strengths import importance
from dct.job import Job, Learned, State
from dct.method import Method, sizes
from dct.settings import FitSettings

SLOWER, NOTHING, ASCENT = 0.9, 0.01, 1.02
"""An iteration gets nowhere if it moves V more than so many times as far as the one before, more than next to nothing,
and the causal importance is less than so many times what it was."""

SETTLED = 0.1
"""A fit whose last iteration changed V by no more than this has come to rest."""


class OrthogonalisedIteration(Method):
    """A method that improves all factors in every iteration. What is here besides `update` is right for one whose
    update takes a value and a gradient of R_S in one pass; a method of another kind overrides it.
    """

    step: ClassVar[Literal["iteration"]] = "iteration"
    kernel: ClassVar[str] = "exponential"
    options: ClassVar[Mapping[str, Any]] = {"eta": ETA}

    @abstractmethod
    def update(
        self, job: Job, V: Float[Tensor, "m d"], U: Float[Tensor, "m d_out"] | None
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d_out"]]:
        """One iteration, from orthogonalised V.

        Args:
            V: unit rows, shape (m, d).
            U: the outputs so far, unit rows, shape (m, d_out); None in the first iteration.

        Returns:
            Where each row of V is pulled, shape (m, d), and what each row of V causes, shape (m, d_out), both of any
            length: their unit rows are the new V and U.
        """

    def pushed(self, job: Job, V: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """V with its rows pushed apart, from which an iteration goes on."""
        return orthogonalized(V, str(job.settings.orthogonalize), job.space, job.own.get("eta", ETA))

    def next(
        self, job: Job, V: Float[Tensor, "m d"], pulled: Float[Tensor, "m d"], beta: float
    ) -> Float[Tensor, "m d"]:
        """V after an iteration that pulled its rows, of which this is the share of the new."""
        return mixed(V, pulled, beta)

    def passes(self, updates: int, ends: int) -> dict[str, int]:
        """Rows by the `Derivatives` method that they go through, of so many updated and finished vectors."""
        return {"value": ends, "value_and_gradient": updates}

    def check(self, settings: FitSettings, dim: int) -> None:
        """No more than d vectors are orthogonal, and only `soft` has a push of some length."""
        m = sizes(settings)[0]
        usual = self.options.get("eta")
        eta = self.own(settings).get("eta")
        if eta is not None and eta < 0:
            raise UsageError(f"`eta` is the length of a push, 0 or more: got {eta:g}", argument="eta")
        if eta != usual and settings.orthogonalize != "soft":
            raise UsageError(
                f"`eta` is the length of soft's push, and {settings.orthogonalize} has none: pass `orthogonalize` soft",
                argument="eta",
            )
        if m > dim and settings.orthogonalize == "qr":
            raise UsageError(
                f'qr orthogonalises at most {dim} factors, asked for {m}: pass `orthogonalize="soft"`',
                argument="orthogonalize",
            )

    def work(self, settings: FitSettings, dim: int, dim_out: int, done: int | None = None) -> dict[str, int]:
        """The projected start, m rows an iteration that is left, and the final responses."""
        m, iterations = sizes(settings)
        begins = done is None and settings.start == "projected"
        rows = {"vjp": settings.d_proj if begins else 0}
        return rows | self.passes(m * (iterations - (done or 0)), m + random_responses(m))

    def fit(self, job: Job) -> Learned:
        """Start, iterations, then what the finished vectors cause and how strongly."""
        s = job.settings
        if job.resume is not None:
            check_state(job, job.resume)
        state = job.resume or start(job)
        known = min(job.m, s.d_proj, job.d.dim) if s.start == "projected" else 0
        job.info |= {"iterations": job.iterations, "orthogonalize": s.orthogonalize, "beta": s.beta, "start": s.start}
        job.info |= {"d_proj": s.d_proj, "random_start": job.m - known}
        job.info |= {"eta": job.own.get("eta", ETA)} if s.orthogonalize == "soft" else {}
        V, objective = self._iterated(job, state)
        job.info["settled"] = not objective or objective[-1][2] <= SETTLED
        return measured(job, self.kernel, lambda V: self.caused(job, V), V, objective)

    def _iterated(self, job: Job, state: State) -> tuple[Tensor, list[list[float]]]:
        """V after all iterations, or after the one that changed it by less than `tolerance`."""
        d, s = job.d, job.settings
        V, U = state.V.to(d.device, d.dtype), state.U.to(d.device, d.dtype)
        objective = [list(row) for row in state.objective]
        damping = s.beta is None and s.orthogonalize != "qr"
        while len(objective) < job.iterations:
            job.begin(f"iteration {len(objective) + 1}/{job.iterations}")
            Q = self.pushed(job, V)
            pulled, caused = self.update(job, Q, U if len(U) else None)
            outputs = normalize(caused, dim=1)
            # b_l = <u_l, caused_l>
            causal, penalty = importance(self.kernel, job.space.stand_ins(Q), outputs, (outputs * caused).sum(1))
            new_V = self.next(job, V, pulled, damped(objective) if damping else s.beta or 1.0)
            U = mixed(U, outputs, s.beta) if s.beta and len(U) else outputs
            # 1 - mean over l of |<v_new, v_old>|
            change = max(0.0, 1 - float((new_V * V).sum(1).abs().mean()))
            V = new_V
            objective.append([causal, penalty, change])
            job.keep(V, U, objective)
            if change < s.tolerance:
                break
        return V, objective


def damped(objective: Sequence[Sequence[float]]) -> float:
    """The share beta of the new factor in the next update, where it is left to the fit: 1, halved after every iteration
    that moved without getting anywhere,

        c_k > 0.9 c_(k-1),  c_k > 0.01  and  A_k < 1.02 A_(k-1),

    c the change of V and A the causal importance.

    V <- unit rows of (beta G + (1 - beta) V), G the unit gradients at orthogonalised V, comes to rest where the
    undamped iteration would (W. Mann, "Mean value methods in iteration", 1953). For a single factor it is the shifted
    power method (T. Kolda and J. Mayo, 2011), which ascends once the shift (1 - beta) / beta is large enough. Without
    one, gradients at R v that are nearly orthogonal to v, as where norms bound what the length of a vector does, throw
    v about for ever. Under `qr` the share stays 1, as in the post: there the rows behind the first ones have to wander,
    and damped ones recover fewer planted factors (docs/experiments.md).

    Args:
        objective: (A_k, penalty, c_k) of the iterations so far; a resumed fit finds the same share in them.
    """
    stalls = sum(
        moved > max(SLOWER * before[2], NOTHING) and gained < ASCENT * before[0]
        for before, (gained, _, moved) in pairwise(objective)
    )
    return 0.5**stalls


def check_state(job: Job, state: State) -> None:
    """Refuses a state of another fit.

    Raises:
        UsageError: its factors have other shapes.
    """
    m, d, d_out = job.m, job.d.dim, job.d.dim_out
    if tuple(state.V.shape) != (m, d):
        raise UsageError(
            f"the state to resume from holds {tuple(state.V.shape)} factors, not {(m, d)}", argument="resume"
        )
    if tuple(state.U.shape) not in ((0, d_out), (m, d_out)):
        raise UsageError(
            f"the state to resume from holds {tuple(state.U.shape)} outputs, not {(m, d_out)}", argument="resume"
        )


def mixed(old: Float[Tensor, "m d"], new: Float[Tensor, "m d"], beta: float) -> Float[Tensor, "m d"]:
    """unit rows of (beta unit(new) + (1 - beta) old); a row whose update vanishes keeps its old direction."""
    update = normalize(new, dim=1)
    update = torch.where(update.norm(dim=1, keepdim=True) > 0.5, update, old)
    return update if beta == 1 else normalize(beta * update + (1 - beta) * old, dim=1)
