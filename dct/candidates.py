"""Which steering vectors factors offer: their names, their directions, and how far each is added.

Knows factors and no model: nothing is run here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.errors import DctError, UsageError
from dct.factors import Factors
from dct.perturbation import RankOne, Site, recorded


@dataclass(frozen=True)
class Aim:
    """Where vectors are added, how far, and under which system message.

    Attributes:
        layer: theta is added to hidden_states[layer]; or the changes of a band that theta is one of.
        scale: R, the norm of theta.
        system: system message; None for none.
    """

    layer: Site
    scale: float
    system: str | None

    @classmethod
    def of(
        cls, factors: Factors, source: int | None = None, scale: float | None = None, system: str | None = None
    ) -> "Aim":
        """What is given, and for the rest what the fit had.

        Raises:
            UsageError: neither says which layer.
        """
        kind = recorded(factors.info, factors.V.shape[1])
        layer: Any = factors.info.get("source") if source is None else source
        if source is None and isinstance(kind, RankOne):
            layer = kind
        if layer is None:
            raise UsageError(
                "these factors do not say which layer they were fitted at: pass `source`", argument="source"
            )
        return cls(
            layer if isinstance(layer, RankOne) else int(layer),
            factors.scale if scale is None else scale,
            factors.info.get("system") if system is None else system,
        )


def candidates(factors: Factors) -> tuple[list[str], Float[Tensor, "vectors d"]]:
    """Names and unit directions of all steering vectors: both senses where a factor has no sign."""
    names = [str(k) for k in range(len(factors))]
    if not factors.signless:
        return names, factors.V
    return names + [f"-{name}" for name in names], torch.cat([factors.V, -factors.V])


def chosen(factors: Factors, name: str, side: str = "source") -> Float[Tensor, " d"]:
    """The unit direction called `name` ("17", or "-17" for its opposite), on the source or target side.

    Raises:
        UsageError: not a number.
        DctError: out of range.
    """
    digits = name.strip().removeprefix("-")
    if not digits.isdecimal():
        raise UsageError(f"a vector is a number such as 17, or -17 for its opposite; got {name!r}", argument="vector")
    if int(digits) >= len(factors):
        raise DctError(f"vector {name} is out of range: this file holds vectors 0 to {len(factors) - 1}")
    row = (factors.V if side == "source" else factors.U)[int(digits)]
    if not name.strip().startswith("-"):
        return row
    kind = recorded(factors.info, len(row))
    return kind.opposite(row[None])[0] if side == "source" else -row


def tries(
    directions: Float[Tensor, "n d"], scale: float, multiples: Sequence[float]
) -> tuple[Float[Tensor, "tries d"], list[float]]:
    """Every direction at every multiple of the scale, theta = c R v, one multiple c after the other; and each c R.

    Raises:
        UsageError: a multiple that is not positive, or none.
    """
    if not multiples or not all(0 < c < math.inf for c in multiples):
        raise UsageError(f"`scales` are positive multiples of R, got {list(multiples)}", argument="scales")
    norms = [c * scale for c in multiples for _ in range(len(directions))]
    return torch.cat([c * scale * directions for c in multiples]), norms


def aggregate(directions: Float[Tensor, "n d"], how: str) -> Float[Tensor, "k d"]:
    """One direction for many.

    Args:
        how: `mean`: sum_i v_i / |sum_i v_i|, k = 1. `svd`: the first right singular vector of the stack of rows, and
            its opposite, since it has no sign: k = 2.

    Raises:
        UsageError: unknown way.
        DctError: the mean vanishes.
    """
    if how == "mean":
        mean = directions.mean(0, keepdim=True)
        if float(mean.norm()) < 1e-6:
            raise DctError('the mean of the chosen vectors vanishes: use `aggregate="svd"`')
        return normalize(mean, dim=1)
    if how == "svd":
        first = torch.linalg.svd(directions, full_matrices=False).Vh[:1]  # D = sum_i s_i u_i w_i^T; w_1
        return torch.cat([first, -first])
    raise UsageError(f"unknown `aggregate` {how!r}: choose mean or svd", argument="aggregate")
