"""Where vectors start: the directions that a few random outputs depend on, and random ones."""

import torch
from jaxtyping import Float
from torch import Tensor

from dct.calibration import random_directions
from dct.job import Job, State


def projected_directions(job: Job) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """Right singular vectors and singular values of W J, W: `d_proj` random unit output directions, (d_proj, d_out).

    The post's cheap start: what J makes of a few random outputs shows the input directions that matter.

    Returns:
        k = min(d_proj, d) rows of width d, and as many values.
    """
    d = job.d
    job.begin("projected Jacobian")
    W = random_directions(job.settings.d_proj, d.dim_out, job.seed).to(d.device, d.dtype)
    # rows of W J are J' w_i; W J = (left) diag(S) Vh. An exponential factor and its negative differ, and cuSOLVER's
    # choice of sense moves with rounding: in passes of another size 9 of 32 directions came out reversed. LAPACK's
    # stays.
    _, S, Vh = torch.linalg.svd(d.vjp(W).cpu(), full_matrices=False)
    return Vh.to(W.device), S.to(W.device)


def start(job: Job) -> State:
    """Before the first iteration: right singular vectors of W J (`start="projected"`), then random unit vectors.

    Their outputs are not known yet; the first iteration finds them as it goes.
    """
    d = job.d
    V = job.space.random(job.m, job.seed + 1).to(d.device, d.dtype)
    if job.settings.start == "projected":
        known = projected_directions(job)[0][: job.m]
        V[: len(known)] = known
    return State(V, V.new_zeros(0, d.dim_out))
