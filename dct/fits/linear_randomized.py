"""`linear-randomized`: a randomized SVD of the Jacobian J at 0, from products with J and J' alone.

N. Halko, P.-G. Martinsson and J. Tropp, "Finding structure with randomness" (2011): an orthonormal basis Q of the range
of J' from random directions, power iterations Q <- basis of J' J Q, and the SVD of the small matrix J Q'.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dct.calibration import random_directions
from dct.fits.shared.singular import jacobian_svd, row_basis, triplets
from dct.job import Job, Learned
from dct.method import Method, sizes
from dct.settings import FitSettings

POWER_ITERATIONS = 8
"""Power iterations at most."""

SETTLED = 2e-3
"""Relative growth of the captured share of |J|^2 below which the power iterations end."""


class LinearRandomized(Method):
    """The power iterations end when the share of |J|^2 that the leading m directions hold has settled, however slowly
    the spectrum falls. Where that takes as many passes as the whole Jacobian, the whole Jacobian it is.
    """

    name = "linear-randomized"
    about = "the leading singular vectors of the Jacobian at 0, at a share of its cost"
    signed = False
    kernel = "linear"

    def work(self, settings: FitSettings, dim: int, dim_out: int, done: int | None = None) -> dict[str, int]:
        """Three power iterations are assumed: how many there are the map decides."""
        width = _width(sizes(settings)[0], dim, dim_out)
        least = min(dim, dim_out)
        return {"vjp": least} if 4 * width >= least else {"vjp": 4 * width, "jvp": 4 * width}

    def caused(self, job: Job, V: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d_out"]:
        """J v_l."""
        return job.d.jvp(V)

    def fit(self, job: Job) -> Learned:
        """Q spans the leading rows of J; J Q' = U diag(s) W' is small; v_l = rows of W' Q (Halko et al. 2011, 4.5)."""
        d, width = job.d, _width(job.m, job.d.dim, job.d.dim_out)
        least = min(d.dim, d.dim_out)
        if 4 * width >= least:
            return _whole(job)
        job.begin("range of the Jacobian", rows=4 * width)
        # Q: an orthonormal basis of the rows J' w_k, w_k random; rows of `pushed` are J q_k, so J ~ pushed' Q.
        Q = row_basis(d.vjp(random_directions(width, d.dim_out, job.seed).to(d.device, d.dtype)))
        pushed = d.jvp(Q)
        held = _held(pushed, job.m)
        for iteration in range(1, POWER_ITERATIONS + 1):
            if job.done + 2 * width > least:
                return _whole(job)
            job.begin(f"power iteration {iteration}", rows=2 * width)
            # Q <- basis of J' (basis of J Q'): each brings the leading directions closer by the square of s_k / s_l.
            Q = row_basis(d.vjp(row_basis(pushed)))
            pushed = d.jvp(Q)
            before, held = held, _held(pushed, job.m)
            job.info["power_iterations"] = iteration
            if held - before <= SETTLED * held:
                break
        # J Q' = pushed' = U diag(S) Wh, so J ~ U diag(S) (Wh Q)
        U, S, Wh = torch.linalg.svd(pushed.T, full_matrices=False)
        return triplets(job, Wh @ Q, U.T, S)


def _width(m: int, dim: int, dim_out: int) -> int:
    """Directions of the range finder: some more than are asked for."""
    return min(m + max(10, m // 4), dim, dim_out)


def _held(pushed: Float[Tensor, "k d_out"], m: int) -> float:
    """|J|^2 in the leading m directions of the span of Q: the sum of s_l^2 over l <= m, s of J Q'."""
    return float(torch.linalg.svdvals(pushed)[:m].square().sum())


def _whole(job: Job) -> Learned:
    job.info["exact"] = True
    return jacobian_svd(job)
