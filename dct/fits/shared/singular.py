"""Singular vectors of the Jacobian J of a map at 0, shape (d_out, d)."""

import torch
from jaxtyping import Float
from torch import Tensor

from dct.job import Job, Learned


def jacobian_svd(job: Job) -> Learned:
    """J = sum_l s_l u_l v_l' with s_1 >= s_2 >= ...: the SVD of the whole Jacobian, its first m triplets.

    Takes as many passes as the smaller side of J asks for: J' e_i for every output i, or J e_j for every input j.
    """
    d = job.d
    job.begin("Jacobian", rows=min(d.dim, d.dim_out))
    if d.dim_out <= d.dim:
        jacobian = d.vjp(torch.eye(d.dim_out, device=d.device, dtype=d.dtype))  # rows J' e_i
    else:
        jacobian = d.jvp(torch.eye(d.dim, device=d.device, dtype=d.dtype)).T  # columns J e_j
    # J = U diag(S) Vh; right singular vectors are the rows of Vh
    U, S, Vh = torch.linalg.svd(jacobian, full_matrices=False)
    return triplets(job, Vh, U.T, S)


def triplets(job: Job, V: Float[Tensor, "n d"], U: Float[Tensor, "n d_out"], S: Float[Tensor, " n"]) -> Learned:
    """The first m singular triplets, shapes (n, d), (n, d_out) and (n,); directions that J does not see are no factors.

    The rows of V and U are orthonormal, so K is the identity, b_l = <u_l, J v_l> = s_l, and alpha = S.
    """
    kept = informative(S, V.shape[1], job.m)
    job.info["informative"] = kept
    return Learned(V[:kept], U[:kept], S[:kept], torch.zeros(0, 3))


def informative(S: Float[Tensor, " n"], dim: int, m: int) -> int:
    """How many of the first m singular values stand above rounding, s_l > s_1 d eps; one at least."""
    return max(1, min(m, int((S[0] * dim * torch.finfo(S.dtype).eps < S).sum())))


def row_basis(rows: Float[Tensor, "n d"]) -> Float[Tensor, "k d"]:
    """An orthonormal basis of the row space, k = min(n, d) rows: Q' of rows' = Q T."""
    return torch.linalg.qr(rows.T).Q.T
