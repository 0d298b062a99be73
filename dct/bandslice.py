"""The slice map of rank-1 changes: what changing the attention outputs of a band of blocks does to the target stream.

It has the interface of a `Slice`, so that methods, rankings and what is saved work with it; what its rows are,
`perturbation` knows, and how a running model is changed, `projections`.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from dct.blocks import locate_non_finite, replay, run_block
from dct.errors import DctError
from dct.model import LanguageModel, check_layers
from dct.passes import kept_bytes
from dct.perturbation import RankOne, Site
from dct.projections import changed, rank_one
from dct.slice import Positions, Slice
from dct.verification import verify_gradient


class BandSlice(Slice):
    """Delta(theta) = mean over prompts of mean over target positions of
    hidden_states[target](theta) - hidden_states[target](0), with W_O^l + R b_l a_l' for W_O^l in every block of a band.

    A callable (batch, dim) -> (batch, width), differentiable in reverse mode; every row of the batch is a change of its
    own, theta = R phi as `RankOne` has it. At 0 there is no derivative: the map is as steep there as theta is long.

    Args:
        lm: the model.
        prompts: texts or lists of token ids, as of a `Slice`.
        band: first and last block, or the changes themselves.
        target: above the band.
        positions, system, pack, narrow: as of a `Slice`.

    Attributes:
        perturbation: what the rows are.
        usual_scale: R where nothing is said of it.

    Raises:
        UsageError, DctError: as a `Slice`; a block has no attention output projection that can be told.
    """

    usual_scale = 1.0

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        band: tuple[int, int] | RankOne,
        target: int,
        positions: Positions | None = None,
        system: str | None = None,
        pack: bool = True,
        narrow: bool = True,
    ) -> None:
        first, last = (band.first, band.blocks[-1]) if isinstance(band, RankOne) else band
        check_layers(first, last + 1, lm.depth)
        check_layers(last, target, lm.depth)
        self.perturbation = band if isinstance(band, RankOne) else rank_one(lm, first, last)
        super().__init__(lm, prompts, first, target, positions, system, pack, narrow)

    @property
    def dim(self) -> int:
        """Numbers in a row: an a and a b for every block."""
        return self.perturbation.dim

    @property
    def info(self) -> dict[str, object]:
        """As of a `Slice`, and what the rows are."""
        return {**super().info, **self.perturbation.config}

    def streams(self, theta: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch targets width"]:
        """hidden_states[target](theta) at every target token, prompt after prompt."""
        rows = self.rows
        if rows.alone and len(theta) > 1:
            return torch.cat([self.streams(row[None]) for row in theta])
        theta = theta.to(self.dtype)
        leaving = []
        with changed(self.lm, self.perturbation, theta):
            for row in rows.rows:
                entering = row.entering[None].expand(len(theta), -1, -1)
                with rows.attending(row):
                    stream = replay(self.lm, self.source, row.calls, entering, rows.run)
                leaving.append(stream[:, row.targets if row.leaving is None else row.leaving].to(self.dtype))
        return torch.cat(leaving, dim=1)

    def check(self) -> None:
        """Holds the gradient against finite differences, the first time that these blocks are differentiated."""
        size = float(self.unsteered.norm(dim=1).mean())
        theta = self.perturbation.random(1, seed=0)[0].to(self.device, self.dtype)
        verify_gradient(self.lm, self, self.source, self.target, theta, size, what=f"gradient, {self.perturbation}")

    def compile(self) -> None:
        """Compiled blocks cannot be changed row by row.

        Raises:
            DctError: always.
        """
        raise DctError('rank-1 changes reach into the blocks, which are not compiled for it: use `compile="off"`')

    @cached_property
    def row_bytes(self) -> int:
        """Bytes that one row of a pass with a gradient needs (see `kept_bytes`)."""
        parameters = {p.untyped_storage().data_ptr() for p in self.lm.layers[self.source : self.target].parameters()}
        return kept_bytes(self.streams, self.perturbation.random(1, seed=0).to(self.device, self.dtype), parameters)

    @torch.no_grad()
    def _blame(self, theta: Tensor) -> str | None:
        """Which block puts out NaN or infinity under these changes, as a message; None where every stream is finite."""
        theta = theta.detach().to(self.dtype)
        with changed(self.lm, self.perturbation, theta):
            for row in self.rows.rows:
                stream = row.entering[None].expand(len(theta), -1, -1)
                if not bool(torch.isfinite(replay(self.lm, self.source, row.calls, stream, run_block)).all()):
                    return locate_non_finite(self.lm, self.source, row.calls, stream)
        return None


def sliced(
    lm: LanguageModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    site: Site,
    target: int,
    positions: Positions | None = None,
    system: str | None = None,
) -> Slice:
    """The slice of a site: of a vector that is added at a layer, or of the changes of a band."""
    if isinstance(site, RankOne):
        return BandSlice(lm, prompts, site, target, positions, system)
    return Slice(lm, prompts, site, target, positions, system)
