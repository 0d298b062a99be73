"""`melbo`: one vector after another that changes the target layer as much as it can, the first MELBO post's search.

    maximise over |v| = 1, v orthogonal to the vectors before:   h(R v)
    h(theta) = sum over prompts (sum over target tokens |Delta_t(theta)|^p)^(1/q)

by AMSGrad on the sphere (A. Mack and A. Turner, "Mechanistically eliciting latent behaviors in language models", 2024),
p = q = 2 unless told otherwise. It is the baseline that a deep causal transcoder generalises: no output directions, no
strengths, nothing learned together; both are measured at the end. Knows nothing of transformers: a map that can tell
the responses of single tokens apart says so (`responses` and `prompt_of_target`, as a slice does); of any other, h is
|f(theta)|^(p/q).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.calibration import random_directions
from dct.derivatives import Derivatives, Map
from dct.errors import UsageError
from dct.fits.shared.responses import measured, random_responses
from dct.job import Job, Learned
from dct.method import Method, sizes
from dct.settings import FitSettings

STEPS = 60
"""Gradient steps of each vector. The post takes 300 at a constant rate; with a rate that falls to nothing, the vectors
of the demo model have settled by then (docs/experiments.md)."""

RATE = 0.5
"""Length of the first step on the unit sphere; it falls along a half cosine to nothing."""


class Melbo(Method):
    """Its objective has a row for each vector: h at its end, how many vectors were found before, and the relative
    change of the last gradient step. Outputs and strengths are measured as of an exponential fit.
    """

    name = "melbo"
    about = "one vector after another that maximises the norm of the response"
    step = "vector"
    iterations = STEPS
    options = {"p": 2.0, "q": 2.0}  # noqa: RUF012 (declared as a ClassVar by Method)
    one_row = True
    objective = "norm of the response"
    kernel = "exponential"

    def check(self, settings: FitSettings, dim: int) -> None:
        """At most d vectors are orthogonal; p and q are positive."""
        m, own = sizes(settings)[0], self.own(settings)
        if m > dim:
            raise UsageError(
                f"melbo's vectors are orthogonal, so at most {dim} of them: asked for {m}", argument="factors"
            )
        if not (own["p"] > 0 and own["q"] > 0):
            raise UsageError(
                f"the exponents `p` and `q` must be positive, got {own['p']} and {own['q']}",
                argument="q" if own["p"] > 0 else "p",
            )

    def work(self, settings: FitSettings, dim: int, dim_out: int, done: int | None = None) -> dict[str, int]:
        """One row for each gradient step of each vector that is left, and the final responses."""
        m, steps = sizes(settings)
        return {"value_and_gradient": (m - (done or 0)) * steps, "value": m + random_responses(m)}

    def fit(self, job: Job) -> Learned:
        """v_k maximises h(R v) over unit v orthogonal to v_1 ... v_(k-1); u_k = unit R_S(v_k)."""
        d, m, steps, p, q = job.d, job.m, job.iterations, job.own["p"], job.own["q"]
        job.info |= {"iterations": steps, "p": p, "q": q}
        heights = Derivatives(
            pooled(d.f, p, q), d.dim, batch=1, dtype=d.dtype, device=d.map_device, on_rows=job.advance
        )
        V = torch.zeros(0, d.dim) if job.resume is None else job.resume.V
        if V.shape[1] != d.dim or len(V) > m:
            raise UsageError(
                f"the state to resume from holds {tuple(V.shape)} vectors, not {(m, d.dim)}", argument="resume"
            )
        V = V.to(d.device, d.dtype)
        objective = [list(row) for row in job.resume.objective] if job.resume else []
        job.behind(len(V) * steps)
        while len(V) < m:
            job.begin(f"vector {len(V) + 1}/{m}")
            v, height, change = norm_maximising(heights, job.scale, V, steps, job.seed + 1 + len(V))
            objective.append([height, float(len(V)), change])
            V = torch.cat([V, v[None]])
            job.keep(V, torch.zeros(len(V), d.dim_out), objective)
        return measured(job, "exponential", job.response, V, objective)


def pooled(f: Map, p: float = 2.0, q: float = 2.0) -> Map:
    """h(theta) = sum over prompts (sum over target tokens |Delta_t(theta)|^p)^(1/q), as a map (batch, d) -> (batch, 1).

    Of a map without `responses` (batch, targets, d_out) and `prompt_of_target` (targets,): |f(theta)|^(p/q).
    """
    responses: Callable[[Tensor], Tensor] | None = getattr(f, "responses", None)
    group: Any = getattr(f, "prompt_of_target", None)

    def h(theta: Tensor) -> Tensor:
        if responses is None or group is None:
            return f(theta).norm(dim=1, keepdim=True).pow(p / q)
        sizes = responses(theta).norm(dim=2).pow(p)  # |Delta_t|^p: batch, targets
        sums = sizes.new_zeros(len(sizes), int(group.max()) + 1).index_add(1, group.to(sizes.device), sizes)
        return sums.pow(1 / q).sum(1, keepdim=True)

    return h


def norm_maximising(
    d: Derivatives, scale: float, before: Float[Tensor, "k d"], steps: int, seed: int
) -> tuple[Float[Tensor, " d"], float, float]:
    """The next vector: v <- unit of (v + AMSGrad step along the tangent part of the gradient of h(R v)), `steps` times.

    Args:
        d: derivatives of `pooled(f)`.
        scale: R.
        before: the vectors found so far, orthonormal, fewer than d.
        steps: of AMSGrad (S. Reddi, S. Kale and S. Kumar, "On the convergence of Adam and beyond", 2018).
        seed: of the random start.

    Returns:
        The unit vector, h where it was last measured, and how far the last step went (1 - |cosine|).
    """
    v = tangent(random_directions(1, d.dim, seed).to(d.device, d.dtype), before)
    v = normalize(v, dim=1)
    one = torch.ones(1, 1, device=d.device, dtype=d.dtype)
    optimiser = torch.optim.Adam([v], lr=RATE / math.sqrt(d.dim), amsgrad=True, maximize=True)
    height, change = 0.0, 1.0
    for step in range(steps):
        # rate_k = (RATE / sqrt(d)) (1 + cos(pi k / steps)) / 2
        optimiser.param_groups[0]["lr"] = RATE / math.sqrt(d.dim) * 0.5 * (1 + math.cos(math.pi * step / steps))
        value, gradient = d.value_and_gradient(scale * v, one)
        # On the sphere only what is tangent moves a vector; what is not would fill the optimiser's moments.
        v.grad = tangent(gradient, torch.cat([before, v]))
        old = v.clone()
        optimiser.step()
        v.copy_(normalize(tangent(v, before), dim=1))
        height, change = float(value), 1 - float((old * v).sum().abs())
    return v[0].detach(), height, change


def tangent(x: Float[Tensor, "1 d"], V: Float[Tensor, "k d"]) -> Float[Tensor, "1 d"]:
    """x - V' V x: x without its component in the span of the orthonormal rows of V.

    Twice, since once leaves rounding behind.
    """
    for _ in range(2):
        x = x - x @ V.T @ V
    return x
