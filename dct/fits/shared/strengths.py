"""The strengths alpha of factors whose directions are known: the least squares problem of the post, solved exactly.

A factor is alpha_l sigma(<v_l, theta>) u_l. Its derivatives at 0 of all orders are tensors u_l (x) v_l (x) ... (x) v_l;
K is the matrix of their inner products and b holds theirs with the derivatives of the map, so that

    K alpha = b

is the condition for the least sum over orders k of 1/k! |T_k - sum_l alpha_l u_l (x) v_l^(x k)|^2 (A. Mack and
A. Turner, "Deep causal transcoding", 2024).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dct.job import Learned

Matrix = Float[Tensor, "m d"]
Outputs = Float[Tensor, "m d_out"]
Vector = Float[Tensor, " m"]

DECOMPOSED = 1024
"""Factors up to which K is decomposed: beyond, that takes longer than everything else in an iteration."""

KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda s: s,
    "quadratic": torch.square,
    "exponential": torch.expm1,
}
"""kappa(s), s = <v_l, v_k>, by the activation sigma: s for sigma(x) = x, s^2 for x^2, exp(s) - 1 = sum over k >= 1 of
s^k / k! for exp(x) - 1."""


def gram(kernel: str, V: Matrix, U: Outputs) -> Float[Tensor, "m m"]:
    """K[l, k] = <u_l, u_k> kappa(<v_l, v_k>): the inner products of the factors as tensors, summed over all orders.

    Args:
        kernel: which kappa, a key of `KERNELS`.
        V, U: unit rows, shapes (m, d) and (m, d_out).

    Returns:
        K, shape (m, m), in float64; positive semidefinite, as an elementwise product of matrices that are (Schur).
    """
    V, U = V.double(), U.double()
    # K = (U U') * kappa(V V'), elementwise
    return (U @ U.T) * KERNELS[kernel](V @ V.T)


def strengths(kernel: str, V: Matrix, U: Outputs, b: Vector) -> Vector:
    """alpha of least loss, K alpha = b; of least norm where factors coincide.

    Args:
        kernel, V, U: as in `gram`.
        b: inner product of each factor with the map: <u_l, J v_l>, <u_l, T2(., v_l, v_l)> or <u_l, R_S(v_l)>; (m,).

    Returns:
        alpha, shape (m,), in float64; of more than `DECOMPOSED` factors by `ridge`.
    """
    return _least(gram(kernel, V, U), b.double())


def _least(K: Float[Tensor, "m m"], b: Vector) -> Vector:
    """K alpha = b, without what rounding leaves of factors that coincide."""
    rounding = len(K) * torch.finfo(torch.float32).eps
    if len(K) > DECOMPOSED:
        # The eigenvalues of K are no larger than its rows' sums of absolute values (Gershgorin).
        delta = float(K.abs().sum(1).max()) * rounding
        # Once more on what the ridge has left over: of an eigenvalue k of K, (delta / (k + delta))^2 is still missing.
        alpha = ridge(K, b, delta)
        return alpha + ridge(K, b - K @ alpha, delta)
    # K = W diag(values) W', so alpha = W diag(1 / values) W' b, over the values above rounding: the pseudoinverse.
    values, vectors = torch.linalg.eigh(K)
    kept = values > values[-1] * rounding
    inverse = torch.where(kept, 1 / values.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return vectors @ (inverse * (vectors.T @ b))


def ridge(K: Float[Tensor, "m m"], b: Vector, delta: float, *, tolerance: float = 1e-6, most: int = 1000) -> Vector:
    """(K + delta I) alpha = b by conjugate gradients (M. Hestenes and E. Stiefel, 1952), for many factors.

    K is positive semidefinite. The ridge does what cutting small eigenvalues off does: factors that coincide share
    their strength. `most` steps, or until the residual is `tolerance` of b.
    """
    alpha, rest = torch.zeros_like(b), b.clone()
    along, square = rest.clone(), rest @ rest
    enough = tolerance**2 * square
    for _ in range(most):
        if not bool(square > enough):
            break
        image = K @ along + delta * along
        step = square / (along @ image)
        alpha, rest = alpha + step * along, rest - step * image
        before, square = square, rest @ rest
        along = rest + square / before * along
    return alpha


def solved(kernel: str, V: Matrix, U: Outputs, b: Vector, objective: Tensor | None = None) -> Learned:
    """Factors with their strengths, the sign of a strength moved into u; arguments as in `strengths`."""
    alpha = strengths(kernel, V, U, b)
    # alpha_l u_l = |alpha_l| (sign(alpha_l) u_l)
    sign = torch.where(alpha < 0, -1.0, 1.0)
    objective = torch.zeros(0, 3) if objective is None else objective
    return Learned(V, U * sign[:, None].to(U.dtype), (alpha * sign).to(V.dtype), objective)


def importance(kernel: str, V: Matrix, U: Outputs, b: Vector) -> tuple[float, float]:
    """Causal importance sum_l alpha_l b_l, and similarity penalty 1/2 sum_{l != k} alpha_l alpha_k K[l, k].

    What the post's maximisation problem (10), and (8) for the quadratic fit, is made of, with the alpha of least loss.
    Arguments as in `strengths`.
    """
    K = gram(kernel, V, U)
    alpha = _least(K, b.double())
    own = (alpha.square() * K.diagonal()).sum()
    # alpha' b and (alpha' K alpha - sum_l alpha_l^2 K_ll) / 2
    return float(alpha @ b.double()), float((alpha @ K @ alpha - own) / 2)
