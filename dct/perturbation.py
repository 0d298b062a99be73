"""What is learned and steered with: a perturbation of a running model, as a row of numbers theta.

Two kinds. A vector that is added to the stream: theta is the vector. Rank-1 changes of the attention output projections
of a band of blocks (CPE: A. Mack, N. Panickssery and A. Turner, "Mechanistically Eliciting Latent Behaviors in Language
Models", 2026): theta holds an a and a b for every block. Of either, unit rows v are learned and R v is what acts; what
is known here is how rows are drawn, normalised, compared and turned round. Runs no model (`steering`, `bandslice`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.calibration import random_directions
from dct.errors import DctError

Rows = Float[Tensor, "rows dim"]

BAND = (0.225, 0.325)
"""First and last block of the default band, as shares of the depth: 7 to 10 of 32 blocks."""

TARGET = 0.55
"""The default target: the output of the block at this share of the depth, 17 of 32."""


@dataclass(frozen=True)
class Perturbation:
    """A vector: unit rows lie on the sphere, and R v is as long as R.

    Attributes:
        dim: numbers in a row.
    """

    dim: int
    kind: ClassVar[str] = "vector"
    adds: ClassVar[bool] = True
    """The sum of two is one of the same kind."""

    def unit(self, rows: Rows, otherwise: Rows | None = None) -> Rows:
        """Rows at unit length; what vanishes is taken from the unit rows `otherwise`, if there are any."""
        found = normalize(rows, dim=1)
        return found if otherwise is None else torch.where(found.norm(dim=1, keepdim=True) > 0.5, found, otherwise)

    def random(self, count: int, seed: int) -> Rows:
        """Unit rows drawn evenly, on the CPU in float32."""
        return random_directions(count, self.dim, seed)

    def opposite(self, rows: Rows) -> Rows:
        """What changes the model the other way round."""
        return -rows

    def scaled(self, rows: Rows, lengths: Float[Tensor, " rows"]) -> Rows:
        """theta = R v for every row, of its opposite where a length is negative."""
        turned = torch.where(lengths[:, None] < 0, self.opposite(rows), rows)
        return lengths.abs()[:, None] * turned

    def cosines(self, rows: Rows, others: Float[Tensor, "others dim"]) -> Float[Tensor, "rows others"]:
        """How alike unit rows are as changes of the model: 1 for the same change, -1 for its opposite."""
        return rows @ others.T

    def stand_ins(self, rows: Rows) -> Float[Tensor, "rows any"]:
        """Unit rows whose inner products are the `cosines` of these, for what needs nothing else of them."""
        return rows

    def apart(self, rows: Rows, affinity: Float[Tensor, "rows rows"]) -> Rows:
        """sum_j A_ij dcos(v_i, v_j)/dv_i: the way that leads towards the others, by an affinity to each."""
        return affinity @ rows

    def by_parts(self, gradient: Rows, rows: Rows) -> Rows:
        """The gradient by the parts of unit rows v with R held, up to a factor, from that by theta at R v."""
        return gradient

    @property
    def config(self) -> dict[str, Any]:
        """What a factors file says of it beside the layer; nothing of a vector."""
        return {}


@dataclass(frozen=True)
class RankOne(Perturbation):
    """W_O^l <- W_O^l + R b_l a_l' with |a_l| = |b_l| = 1, in every block l of a band, at every token.

    A row is phi = (a_l, b_l over the blocks) / sqrt(2L), L blocks, so that it has unit length; theta = R phi acts as

        W_O^l + (2L / |theta|) B_l A_l',    A_l and B_l the parts of theta,

    which is linear in |theta|: R b_l a_l' where theta = R phi. (a, b) and (-a, -b) of a block are the same change, so
    that -theta is theta's twin and not its opposite, and neither inner products of rows nor their signs mean anything.

    Attributes:
        first: the first block of the band; what enters it is the last thing that is left alone.
        inputs: width of the projection's input, for each block of the band.
        width: of the stream, which the projections write into.
        modules: dotted names of the projections inside the model.
    """

    first: int = 0
    inputs: tuple[int, ...] = ()
    width: int = 0
    modules: tuple[str, ...] = ()
    kind: ClassVar[str] = "rank-1"
    adds: ClassVar[bool] = False

    @classmethod
    def of(cls, first: int, inputs: tuple[int, ...], width: int, modules: tuple[str, ...]) -> "RankOne":
        """With as many numbers as that takes."""
        return cls(sum(inputs) + len(inputs) * width, first, inputs, width, modules)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "RankOne":
        """That of a factors file."""
        first, inputs, modules = config["first"], tuple(config["inputs"]), tuple(config["modules"])
        return cls.of(int(first), inputs, int(config["width"]), modules)

    @property
    def config(self) -> dict[str, Any]:
        """What a factors file says of it."""
        told = {"kind": self.kind, "first": self.first, "inputs": list(self.inputs), "width": self.width}
        return {"perturbation": {**told, "modules": list(self.modules)}}

    @property
    def blocks(self) -> range:
        """Those of the band."""
        return range(self.first, self.first + len(self.inputs))

    @property
    def band(self) -> str:
        """The band in words: 7-10."""
        return f"{self.first}-{self.blocks[-1]}"

    def __str__(self) -> str:
        return f"blocks {self.band}"

    def parts(self, rows: Rows) -> list[tuple[Tensor, Tensor]]:
        """(A_l, B_l) for each block, (rows, input) and (rows, width)."""
        sizes = [size for inputs in self.inputs for size in (inputs, self.width)]
        pieces = rows.split(sizes, dim=1)
        return list(zip(pieces[::2], pieces[1::2], strict=True))

    def changes(self, theta: Rows) -> list[tuple[Tensor, Tensor]]:
        """(a_l, R b_l) for each block: the projection's output gains R b_l <a_l, x>, x its input."""
        # (2L / |theta|) B_l A_l' = R b_l a_l' where A_l = R a_l / sqrt(2L), B_l = R b_l / sqrt(2L)
        times = 2 * len(self.inputs) / theta.norm(dim=1, keepdim=True).clamp_min(1e-30)
        return [(A, times * B) for A, B in self.parts(theta)]

    def unit(self, rows: Rows, otherwise: Rows | None = None) -> Rows:
        """Every a and every b at unit length, all of it then by sqrt(2L)."""
        length = math.sqrt(2 * len(self.inputs))
        found = [normalize(piece, dim=1) / length for pair in self.parts(rows) for piece in pair]
        if otherwise is not None:
            old = [piece for pair in self.parts(otherwise) for piece in pair]
            pairs = zip(found, old, strict=True)
            found = [torch.where(new.norm(dim=1, keepdim=True) * length > 0.5, new, before) for new, before in pairs]
        return torch.cat(found, 1)

    def random(self, count: int, seed: int) -> Rows:
        """Every a and every b drawn evenly from its sphere."""
        generator = torch.Generator().manual_seed(seed)
        return self.unit(torch.randn(count, self.dim, generator=generator))

    def opposite(self, rows: Rows) -> Rows:
        """-R b_l a_l': every b turned round."""
        return torch.cat([piece for A, B in self.parts(rows) for piece in (A, -B)], 1)

    def cosines(self, rows: Rows, others: Float[Tensor, "others dim"]) -> Float[Tensor, "rows others"]:
        """(1/L) sum_l <a_l, a'_l> <b_l, b'_l>: the cosine of the changes, as matrices."""
        L = len(self.inputs)
        pairs = zip(self.parts(rows), self.parts(others), strict=True)
        # parts are a / sqrt(2L): (2L)^2 / L <A, A'> <B, B'>
        return 4 * L * sum(((A @ C.T) * (B @ D.T) for (A, B), (C, D) in pairs), rows.new_zeros(()))

    def stand_ins(self, rows: Rows) -> Float[Tensor, "rows any"]:
        """F with F F' = S, the cosines: S is positive semidefinite, as a sum of elementwise products of matrices that
        are (Schur)."""
        values, vectors = torch.linalg.eigh(self.cosines(rows, rows).double())
        return normalize(vectors * values.clamp_min(0).sqrt(), dim=1).to(rows.dtype)

    def by_parts(self, gradient: Rows, rows: Rows) -> Rows:
        """g + <g, v> v: |theta| stands for R, so that along v, g holds what R changes, and a and b each as much."""
        return gradient + (gradient * rows).sum(1, keepdim=True) * rows

    def apart(self, rows: Rows, affinity: Float[Tensor, "rows rows"]) -> Rows:
        """sum_j A_ij (<b_i, b_j> a_j, <a_i, a_j> b_j): whatever signs the twins a and b have, it is the same."""
        found, twice = [], 2 * len(self.inputs)
        for A, B in self.parts(rows):
            found += [(affinity * (twice * B @ B.T)) @ A, (affinity * (twice * A @ A.T)) @ B]
        return torch.cat(found, 1)


Site = int | RankOne
"""Where a perturbation acts, and what it is: a layer, for a vector added to what enters its block; or a band."""


def at(site: Site, width: int) -> Perturbation:
    """The perturbations of a site, in a model of this width."""
    return site if isinstance(site, RankOne) else Perturbation(width)


def layer_of(site: Site) -> int:
    """The layer whose stream is the last that a perturbation leaves alone, or the first that it changes."""
    return site.first if isinstance(site, RankOne) else site


def recorded(info: Mapping[str, Any], dim: int) -> Perturbation:
    """What the rows of a factors file are, by its config."""
    found = info.get("perturbation")
    return RankOne.read(found) if found else Perturbation(dim)


def vectors_alone(info: Mapping[str, Any], what: str, cure: str) -> None:
    """Refuses factors that are no vectors of the stream.

    Args:
        what: takes vectors alone, as the message says it.
        cure: what can be done instead.

    Raises:
        DctError: they are rank-1 changes.
    """
    if info.get("perturbation"):
        raise DctError(
            f"{what} takes vectors that are added to the stream, and these factors are rank-1 changes of "
            f"{RankOne.read(info['perturbation'])}: {cure}"
        )


def default_band(depth: int) -> tuple[int, int, int]:
    """First and last block of the band, and the target, where nothing is said of them: of 32 blocks 7 to 10, read at
    the output of block 17."""
    first, last = (round(share * depth) for share in BAND)
    # hidden_states[t + 1] is the output of block t
    return first, last, max(last + 1, min(int(TARGET * depth) + 1, depth))


def choose_band(depth: int, band: tuple[int, int] | None, target: int | None) -> tuple[int, int, int]:
    """The band and the target; what was left out lies by default, and as far behind a band that was given.

    Raises:
        DctError: they do not lie in the model in this order.
    """
    first, last, usual = default_band(depth)
    if band is not None:
        usual = min(depth, max(band[1] + 1, band[1] + usual - last))
        first, last = band
    elif target is not None and target <= last:
        first, last = max(0, target - 1 - (last - first)), target - 1
    found = usual if target is None else target
    if not 0 <= first <= last < found <= depth:
        raise DctError(
            f"a band must lie below the target, and both in the model, of {depth} blocks: got `band` {first}-{last} "
            f"and `target` {found}"
        )
    return first, last, found
