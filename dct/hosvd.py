"""The leading part of a map's second derivatives, no direction given: which outputs interact, and with which inputs.

    T2[i, j, k] ~ sum_r sigma_r U[r, i] Q_r[j, k]     U orthonormal, |Q_r|_F = 1, <Q_r, Q_s> = 0, Q_r = P' S_r P

the higher-order singular value decomposition of section 3.3 of M. Pearce, T. Dooms et al. (2024): T2 flattened to
(dim_out, dim * dim). Without the P it takes dim_out * dim products; here inputs are those of a subspace, the rows of P,
so that the cost does not depend on the width. Both sides' main axes are found from random products, T2 is never formed,
and what is left out is measured. Knows nothing of language models.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dct.derivatives import Derivatives
from dct.errors import DctError
from dct.spectra import CORRELATION, NOTHING, first_above

SKETCH = 128
"""Random products from which each side's main axes are taken, and as many that tell how much is left out."""

SPARE = 4
"""Output directions beyond those asked for that are carried along."""


@dataclass(frozen=True)
class Component:
    """One term of the decomposition.

    Attributes:
        sigma: its strength.
        u: unit output direction.
        values: eigenvalues of Q_r, signed, the largest first; their squares sum to 1.
        vectors: its unit eigenvectors, one a row.
    """

    sigma: float
    u: Float[Tensor, " dim_out"]
    values: Float[np.ndarray, " inputs"]
    vectors: Float[Tensor, "inputs dim"]

    def rank(self, correlation: float = CORRELATION) -> int | None:
        """How many eigenvectors give such a correlation with the whole of Q_r, over normal inputs."""
        return first_above(np.sqrt(np.cumsum(np.square(self.values))).tolist(), correlation)


@dataclass(frozen=True)
class Hosvd:
    """The leading terms, the strongest first.

    Attributes:
        components: the terms.
        total: |T2|_F, estimated where the subspaces are not everything.
        error: relative standard error of its square.
        products: second derivatives that were taken, of any sort.
    """

    components: list[Component]
    total: float
    error: float
    products: int

    @property
    def left(self) -> list[float]:
        """Relative error of the reconstruction from the first r terms, r from 1 on:

        |T2 - sum_{s<=r} sigma_s u_s Q_s| / |T2| = sqrt(1 - sum_{s<=r} sigma_s^2 / |T2|^2)
        """
        known = np.cumsum([one.sigma**2 for one in self.components])
        return np.sqrt(np.maximum(1 - known / self.total**2, 0.0)).tolist()


def usual_products(dim: int, dim_out: int, count: int, inputs: int, rounds: int) -> int:
    """Second derivatives that a decomposition takes."""
    return 3 * SKETCH + rounds * min(count + SPARE, dim_out) * min(inputs, dim)


def hosvd(d: Derivatives, count: int = 8, *, inputs: int = 32, rounds: int = 2, seed: int = 0) -> Hosvd:
    """The leading terms of T2.

    Args:
        d: the map's derivatives.
        count: terms.
        inputs: dimensions of the input subspace.
        rounds: times that the core is taken; each but the last gives a better input subspace (one step of higher-order
            orthogonal iteration).
        seed: of the random products.

    Raises:
        DctError: T2 is zero.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(dim: int) -> Tensor:
        """Normal vectors, the same on every device."""
        return torch.randn(SKETCH, dim, generator=generator).to(d.device, d.dtype)

    # T2(., a, b) and T2(g, a, .) of normal vectors have the Gram matrices of the two flattenings as covariances
    out = d.second(drawn(d.dim), drawn(d.dim)).double()
    _check_curved(d, out)
    back = d.second_transposed(drawn(d.dim_out), drawn(d.dim)).double()
    W, P = _axes(out, count + SPARE), _axes(back, inputs)
    products = 2 * SKETCH
    for step in range(rounds):
        rows = torch.stack([_rows(d, w, P) for w in W])  # T2(w, p, .)
        products += len(W) * len(P)
        if step + 1 < rounds and len(P) < d.dim:
            P = _axes(rows.flatten(0, 1), inputs)
        else:
            break
    core = rows @ P.T
    core = (core + core.transpose(1, 2)) / 2
    left, sigmas, _ = torch.linalg.svd(core.flatten(1), full_matrices=False)
    a, b = drawn(d.dim), drawn(d.dim)
    told = torch.einsum("ri,rjk,nj,nk->ni", W, core, a.double() @ P.T, b.double() @ P.T)
    outside = (d.second(a, b).double() - told).square().sum(1)
    total = float(core.square().sum() + outside.mean())
    turned = torch.einsum("rs,rjk->sjk", left, core)
    components = [
        _component(form, w, float(sigma), P)
        for form, w, sigma in zip(turned[:count], left.T @ W, sigmas, strict=False)
        if float(sigma) > NOTHING * float(sigmas[0])
    ]
    return Hosvd(components, total**0.5, float(outside.std() / SKETCH**0.5) / total, products + SKETCH)


def _rows(d: Derivatives, w: Float[Tensor, " dim_out"], P: Float[Tensor, "inputs dim"]) -> Float[Tensor, "inputs dim"]:
    """T2(w, p, .) of every p, in float64."""
    return d.second_transposed(w.to(d.dtype).expand(len(P), -1), P.to(d.dtype)).double()


def _axes(rows: Float[Tensor, "n dim"], count: int) -> Float[Tensor, "k dim"]:
    """The main axes of some rows, orthonormal; all there are where as many are wanted."""
    if count >= rows.shape[1]:
        return torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    return torch.linalg.svd(rows, full_matrices=False).Vh[:count]


def _component(form: Tensor, u: Tensor, sigma: float, P: Tensor) -> Component:
    values, vectors = np.linalg.eigh(form.cpu().numpy() / sigma)
    order = np.argsort(-np.abs(values), kind="stable")
    directions = torch.from_numpy(np.ascontiguousarray(vectors[:, order].T)) @ P.cpu()
    return Component(sigma, u.cpu(), values[order], directions)


def _check_curved(d: Derivatives, sketch: Tensor) -> None:
    """Refuses a map that is linear."""
    slope = d.jvp(torch.eye(1, d.dim, dtype=d.dtype, device=d.device)).norm()
    if float(sketch.abs().max()) <= NOTHING * max(float(slope), 1e-30):
        raise DctError("nothing interacts: the map is linear (its second derivatives are zero)")
