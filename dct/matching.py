"""Which rows of two sets of directions belong together, and how much of that chance would do. Knows no model."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dct.calibration import random_directions

DRAWS = 16
"""Sets of random directions that say what chance does."""

BEYOND = 0.95
"""Of matched random pairs, the share below a pair that is put down to more than chance."""


APART = 0x5EED0000
"""Added to seeds, so that random directions are not those from which a fit of the same seed began. Torch's generator on
the CPU reads the lower 32 bits of a seed: a larger offset would be none."""


def strangers(count: int, dim: int, seed: int) -> Float[Tensor, "count dim"]:
    """Random unit vectors with which no fit has anything to do."""
    return random_directions(count, dim, APART + seed)


@dataclass(frozen=True)
class Matched:
    """Rows of A and B in pairs, every row of the smaller set in one.

    Attributes:
        pairs: row of A, row of B, in the order of A.
        cosines: of each pair, with its sign.
        chance: mean |cos| where as many random directions stand for B.
        limit: |cos| below which 95% of those random pairs lie.
    """

    pairs: tuple[tuple[int, int], ...]
    cosines: tuple[float, ...]
    chance: float
    limit: float

    @property
    def mean(self) -> float:
        """Mean |cos| of the pairs."""
        return sum(map(abs, self.cosines)) / len(self.cosines)

    @property
    def beyond(self) -> int:
        """Pairs nearer to each other than 95% of random ones."""
        return sum(abs(cosine) > self.limit for cosine in self.cosines)


def matched(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], seed: int = 0) -> Matched:
    """Pairs the rows of two sets one to one, so that the sum of |cos| is the largest (H. Kuhn, 1955), and does the same
    with random directions for `b`.

    Args:
        a, b: unit rows; a zero row has cosine 0 with everything.
        seed: of the random directions.
    """
    rows, columns, cosines = assigned(a, b)
    drawn = [assigned(a, strangers(len(b), b.shape[1], seed + k))[2].abs() for k in range(DRAWS)]
    null = torch.cat(drawn)
    return Matched(
        tuple(zip(rows, columns, strict=True)),
        tuple(cosines.tolist()),
        float(null.mean()),
        float(null.quantile(BEYOND)),
    )


def assigned(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> tuple[list[int], list[int], Float[Tensor, " pairs"]]:
    """The rows of A and of B that belong together, and their cosines."""
    from scipy.optimize import linear_sum_assignment

    cosines = (a.double() @ b.double().T).clamp(-1, 1)
    rows, columns = linear_sum_assignment(cosines.abs().numpy(), maximize=True)
    return rows.tolist(), columns.tolist(), cosines[torch.as_tensor(rows), torch.as_tensor(columns)]


@dataclass(frozen=True)
class Overlap:
    """How much of the smaller of two subspaces lies in the other.

    Attributes:
        share: mean squared cosine of the principal angles, from 0 to 1.
        chance: its expectation where one of the two is random: the larger dimension by that of the space.
    """

    share: float
    chance: float


def overlap(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Overlap | None:
    """How far the rows of two sets span the same space; None where one set is zero.

    With orthonormal bases P and Q of k <= l dimensions the share is |P Q^T|_F^2 / k, and E = l / d.
    """
    p, q = _basis(a), _basis(b)
    if not len(p) or not len(q):
        return None
    share = float((p @ q.T).square().sum()) / min(len(p), len(q))
    return Overlap(min(share, 1.0), max(len(p), len(q)) / a.shape[1])


def _basis(rows: Float[Tensor, "n d"]) -> Float[Tensor, "k d"]:
    """An orthonormal basis of what rows span; what float32 cannot tell from nothing is nothing."""
    _, s, v = torch.linalg.svd(rows.double(), full_matrices=False)
    return v[s > max(rows.shape) * torch.finfo(torch.float32).eps * s.max()]
