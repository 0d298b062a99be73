"""Which behaviours some steering vectors bring out: vectors that make a model go on alike are of one kind.

Vectors are alike as far as the next tokens are that a model chooses among behind the same prompts. No completion is
read for that, and no label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dct.nexttoken import NextTokens

ALIKE = 0.2
"""Mean distance below which groups of vectors are of one kind."""

MEMORY = 2**30
"""Bytes of next-token distributions that are compared, at most."""


@dataclass(frozen=True)
class Kind:
    """Vectors that do the same.

    Attributes:
        members: their numbers, the most typical one first.
        unchanged: the model left alone is one of them: they do next to nothing.
    """

    members: tuple[int, ...]
    unchanged: bool = False


def groupable(prompts: int, vocabulary: int) -> int:
    """How many vectors are grouped at a time, at most: each takes prompts x vocabulary x 2 bytes."""
    return max(2, MEMORY // (2 * prompts * vocabulary))


def kinds(next_tokens: NextTokens, vectors: Float[Tensor, "vectors width"], cut: float = ALIKE) -> list[Kind]:
    """Vectors (as they stand: pass R v) grouped by what they do, the largest kind first.

    Average linkage (R. Sokal and C. Michener, 1958) of the squared Hellinger distance of next-token distributions, mean
    over prompts, cut at `cut`:

        d(a, b) = 1 - mean_p sum_v sqrt(a_p(v) b_p(v))
    """
    alone = torch.zeros(1, vectors.shape[1], device=vectors.device)
    d = distances(torch.cat(next_tokens.under(torch.cat([alone, vectors]), _roots)))
    found = []
    for group in grouped(d, cut):
        members = sorted((k for k in group if k > 0), key=lambda k: float(d[k, group].sum()))
        if members:
            found.append(Kind(tuple(k - 1 for k in members), 0 in group))
    return sorted(found, key=lambda kind: -len(kind.members))


def _roots(logs: Float[Tensor, "vectors prompts vocabulary"]) -> Float[Tensor, "vectors prompts vocabulary"]:
    return (logs / 2).exp().half().cpu()


def distances(roots: Float[Tensor, "n prompts vocabulary"]) -> Float[np.ndarray, "n n"]:
    """Squared Hellinger distances, mean over prompts, of the square roots of distributions."""
    alike = torch.zeros(len(roots), len(roots), dtype=torch.float64)
    for p in range(roots.shape[1]):
        root = torch.nn.functional.normalize(roots[:, p].float(), dim=1)  # half precision has moved them a little
        alike += (root @ root.T).double()
    d = (1 - alike / roots.shape[1]).clamp_min(0.0).numpy()
    d = (d + d.T) / 2
    np.fill_diagonal(d, 0.0)
    return d


def grouped(d: Float[np.ndarray, "n n"], cut: float = ALIKE) -> list[list[int]]:
    """Which numbers are nearer to each other than `cut`, by average linkage."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(d) < 2:
        return [[k] for k in range(len(d))]
    labels: Sequence[int] = fcluster(linkage(squareform(d, checks=False), "average"), cut, "distance").tolist()
    return [[k for k, label in enumerate(labels) if label == one] for one in dict.fromkeys(labels)]
