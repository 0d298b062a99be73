"""The first MELBO post's search: one vector after another that changes the target layer as much as it can.

    maximise over |v| = 1, v orthogonal to the vectors before:   h(R v)
    h(theta) = sum over prompts (sum over target tokens |Delta_t(theta)|^p)^(1/q)

by AMSGrad on the sphere (A. Mack and A. Turner, "Mechanistically eliciting latent behaviors in language models", 2024),
p = q = 2 unless told otherwise. It is the baseline that a deep causal transcoder generalises: no output directions, no
strengths, nothing learned together. Knows nothing of transformers: a map that can tell the responses of single tokens
apart says so (`responses` and `prompt_of_target`, as a slice does); of any other, h is |f(theta)|^(p/q).
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

STEPS = 60
"""Gradient steps of each vector. The post takes 300 at a constant rate; with a rate that falls to nothing, the vectors
of the demo model have settled by then (docs/experiments.md)."""

RATE = 0.5
"""Length of the first step on the unit sphere; it falls along a half cosine to nothing."""


def pooled(f: Map, p: float = 2.0, q: float = 2.0) -> Map:
    """h as a map (batch, dim) -> (batch, 1)."""
    responses: Callable[[Tensor], Tensor] | None = getattr(f, "responses", None)
    group: Any = getattr(f, "prompt_of_target", None)

    def h(theta: Tensor) -> Tensor:
        if responses is None or group is None:
            return f(theta).norm(dim=1, keepdim=True).pow(p / q)
        sizes = responses(theta).norm(dim=2).pow(p)  # batch, targets
        sums = sizes.new_zeros(len(sizes), int(group.max()) + 1).index_add(1, group.to(sizes.device), sizes)
        return sums.pow(1 / q).sum(1, keepdim=True)

    return h


def norm_maximising(
    d: Derivatives, scale: float, before: Float[Tensor, "k d"], steps: int, seed: int
) -> tuple[Float[Tensor, " d"], float, float]:
    """The next vector.

    Args:
        d: derivatives of `pooled(f)`.
        scale: R.
        before: the vectors found so far, orthonormal, fewer than d.
        steps: of AMSGrad.
        seed: of the random start.

    Returns:
        The unit vector, h where it was last measured, and how far the last step went (1 - |cosine|).
    """
    v = _tangent(random_directions(1, d.dim, seed).to(d.device, d.dtype), before)
    v = normalize(v, dim=1)
    one = torch.ones(1, 1, device=d.device, dtype=d.dtype)
    optimiser = torch.optim.Adam([v], lr=RATE / math.sqrt(d.dim), amsgrad=True, maximize=True)
    height, change = 0.0, 1.0
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE / math.sqrt(d.dim) * 0.5 * (1 + math.cos(math.pi * step / steps))
        value, gradient = d.value_and_gradient(scale * v, one)
        # On the sphere only what is tangent moves a vector; what is not would fill the optimiser's moments.
        v.grad = _tangent(gradient, torch.cat([before, v]))
        old = v.clone()
        optimiser.step()
        v.copy_(normalize(_tangent(v, before), dim=1))
        height, change = float(value), 1 - float((old * v).sum().abs())
    return v[0].detach(), height, change


def _tangent(x: Tensor, V: Tensor) -> Tensor:
    """x without its component in the span of the orthonormal rows of V; twice, since once leaves rounding behind."""
    for _ in range(2):
        x = x - x @ V.T @ V
    return x
