"""How the rows of V are pushed apart before each iteration, so that no two factors learn the same thing."""

import torch
from jaxtyping import Float
from torch import Tensor

from dct.errors import UsageError
from dct.perturbation import Perturbation

Matrix = Float[Tensor, "m d"]

ETA = 0.25
"""Length of `soft`'s push, where nothing else is asked."""


def orthogonalized(V: Matrix, how: str = "qr", space: Perturbation | None = None, eta: float = ETA) -> Matrix:
    """Pushes the rows of V apart.

    Args:
        V: unit rows, shape (m, d).
        how: `qr`: `gram_schmidt`, for m <= d; `soft`: `repelled`, for any m; `none`: V itself.
        space, eta: of `repelled`.

    Raises:
        UsageError: another word.
    """
    if how == "qr":
        return gram_schmidt(V)
    if how == "soft":
        return repelled(V, space, eta=eta)
    if how == "none":
        return V
    raise UsageError(f"unknown `orthogonalize` {how!r}: choose qr, soft, none", argument="orthogonalize")


def gram_schmidt(V: Matrix) -> Matrix:
    """Gram-Schmidt in row order, by a QR decomposition: V' = Q T, and the rows of Q' are the result, shape (m, d).

    Each row keeps its sense, <q_l, v_l> > 0: an exponential factor and its negative are different factors. It is the
    step "V <- QR(V)" of the post's iterations (A. Mack and A. Turner, "Deep causal transcoding", 2024), after V. Sharan
    and G. Valiant, "Orthogonalized ALS" (2017).
    """
    # V' = Q T, T upper triangular: the first l columns of Q span the first l rows of V.
    Q, T = torch.linalg.qr(V.T)
    # LAPACK leaves the signs of T's diagonal open; q_l <- sign(T_ll) q_l.
    return (Q * torch.where(T.diagonal() < 0, -1.0, 1.0)).T


def repelled(
    V: Matrix, space: Perturbation | None = None, *, eta: float = ETA, tau: float = 0.05, times: int = 3
) -> Matrix:
    """Soft orthogonalisation: `times` steps in which every row moves away from those that are nearest to it,

        V <- unit rows of (V - eta A V)      A = softmax over k != l of <v_l, v_k> / tau, row by row,

    for more factors than dimensions too. V has unit rows, shape (m, d). Ours; the post has QR alone.

    Args:
        space: what the rows are, vectors unless told otherwise: of others it says the cosines, the way that leads
            towards the others in place of A V, and what unit rows are.
    """
    space = space or Perturbation(V.shape[1])
    for _ in range(times):
        # A_lk = exp(<v_l, v_k> / tau) / sum over j != l of exp(<v_l, v_j> / tau), A_ll = 0
        affinity = space.cosines(V, V) / tau
        affinity.fill_diagonal_(-torch.inf)
        V = space.unit(V - eta * space.apart(V, torch.softmax(affinity, dim=1)), V) if len(V) > 1 else V
    return V
