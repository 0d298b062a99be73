"""What a training changed: the difference of two models' slice maps, D(theta) = Delta_A(theta) - Delta_B(theta).

It has the interface of a `Slice`, so that calibration, every method and what is saved work with it unchanged. Knows
which models can be held against each other; knows nothing of what is fitted.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dct.calibration import random_directions
from dct.errors import DctError
from dct.model import LanguageModel
from dct.passes import held_rows
from dct.slice import Positions, Slice

PROBES = 4
"""Random vectors by which it is seen how far two models answer differently."""

ABOVE = 3.0
"""A difference of less than so many times what rounding alone makes of it may be nothing but rounding."""


class Difference:
    """D(theta) = Delta_A(theta) - Delta_B(theta): what adding theta at `source` does to A at `target` beyond what it
    does to B. Each model is read on its own unsteered stream, on the same tokens, with the same mean over them.

    The vectors are meant for A, whose streams say what they bear: a calibrated scale is no larger than A's own.

    Args:
        slice_: that of A.
        minus: that of B, of the same tokens, layers and positions (see `between`).

    Attributes:
        gap: how far random vectors as long as the stream part the models: median of |D(R w)| / |Delta_A(R w)|.
        rounding: what rounding alone makes of that, by calculation.
        apart: median over tokens of |h_A - h_B| / |h_A| with nothing added, entering the source and at the target.

    Raises:
        DctError: the models or the slices are not of one shape, or do the same.
    """

    def __init__(self, slice_: Slice, minus: Slice) -> None:
        self.slice, self.minus = slice_, minus
        comparable(slice_.lm, minus.lm, slice_.ids)
        own, other = ((s.ids, s.source, s.target, s.target_counts) for s in (slice_, minus))
        if own != other:
            raise DctError("a difference is of two slices of the same tokens and layers: use `Difference.between`")
        self.borne_by = slice_
        self.apart = [
            _apart(slice_.rows.entering(), minus.rows.entering()),
            _apart(slice_.unsteered, minus.unsteered),
        ]
        self.gap, self.rounding = self._gap()
        if self.gap == 0:
            raise DctError(
                f"{slice_.lm.name} minus {minus.lm.name} is zero: between layers {self.source} and {self.target} they "
                f"do the same{_same_weights(slice_.lm, minus.lm)}; name another `minus`, or other layers"
            )

    @classmethod
    def between(
        cls,
        lm: LanguageModel,
        minus: LanguageModel,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        source: int,
        target: int,
        positions: Positions | None = None,
        system: str | None = None,
    ) -> "Difference":
        """The difference of two models; prompts are put into A's chat template, and B reads the same tokens.

        Args:
            lm, minus: A and B.
            prompts, source, target, positions, system: as of a `Slice`.
        """
        comparable(lm, minus)
        own = Slice(lm, prompts, source, target, positions, system)
        comparable(lm, minus, own.ids)
        return cls(own, Slice(minus, own.ids, source, target, own.positions))

    def __call__(self, theta: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """D(theta).

        Raises:
            NonFiniteError: a block of either puts out NaN or infinity; the message names it.
        """
        return self.slice(theta) - self.minus(theta.to(self.minus.device)).to(self.device)

    # --- what it has in common with A's slice ---

    @property
    def lm(self) -> LanguageModel:
        """A, which the vectors are for."""
        return self.slice.lm

    @property
    def source(self) -> int:
        """Where vectors enter."""
        return self.slice.source

    @property
    def target(self) -> int:
        """Where effects are read."""
        return self.slice.target

    @property
    def positions(self) -> Positions:
        """As of a `Slice`."""
        return self.slice.positions

    @property
    def ids(self) -> list[list[int]]:
        """The prompts as tokens."""
        return self.slice.ids

    @property
    def dim(self) -> int:
        """Width d of the residual stream."""
        return self.slice.dim

    @property
    def device(self) -> torch.device:
        """Where vectors are expected and differences come out."""
        return self.slice.device

    @property
    def dtype(self) -> torch.dtype:
        """Of streams and differences."""
        return self.slice.dtype

    @property
    def resolution(self) -> float:
        """Relative rounding of the numbers that the blocks compute in."""
        return self.slice.resolution

    @property
    def residual_norm(self) -> float:
        """Median |hidden_states[source]| of A."""
        return self.slice.residual_norm

    @property
    def target_norm(self) -> float:
        """Median |hidden_states[target]| of A."""
        return self.slice.target_norm

    @property
    def tokens(self) -> int:
        """Tokens that one vector sends through A's slice; as many go through B's."""
        return self.slice.tokens

    @property
    def packed(self) -> bool:
        """Whether several prompts share a row of tokens."""
        return self.slice.packed

    @property
    def info(self) -> dict[str, Any]:
        """What factors must know to be used again; of B its name and weights."""
        minus = {"model": self.minus.lm.name, "fingerprint": self.minus.lm.fingerprint}
        measured = {"apart": self.apart, "gap": self.gap, "rounding": self.rounding}
        return {**self.slice.info, "minus": {**minus, **measured}}

    # --- how it is run ---

    def check(self) -> None:
        """Holds both gradients against finite differences."""
        self.slice.check()
        self.minus.check()

    def compile(self) -> None:
        """Compiles the blocks of both."""
        self.slice.compile()
        self.minus.compile()

    @property
    def lanes(self) -> int:
        """Parts of a pass that can run at the same time."""
        return min(self.slice.lanes, self.minus.lanes)

    @property
    def value_batch(self) -> int:
        """As of a `Slice`."""
        return min(self.slice.value_batch, self.minus.value_batch)

    @property
    def batch(self) -> int:
        """Vectors in one pass to start with: what the memory holds of both."""
        return max(1, min(self.value_batch, self._held))

    @property
    def batch_at_zero(self) -> int:
        """The same for derivatives at 0 that keep nothing for a way back."""
        return max(1, min(self.slice.batch_at_zero, self.minus.batch_at_zero, self._held))

    @property
    def _held(self) -> int:
        return held_rows(self.row_bytes, self.device, self.lm.memory)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes that one vector of a pass with a gradient needs, in both models."""
        return self.slice.row_bytes + self.minus.row_bytes

    @cached_property
    def attention_bytes(self) -> int:
        """Bytes of the attention weights of one vector in both."""
        return self.slice.attention_bytes + self.minus.attention_bytes

    @torch.no_grad()
    def _gap(self) -> tuple[float, float]:
        """How far random vectors part the models, and what rounding alone makes of it: two streams rounded at each of
        the tokens that are averaged, eps |h| sqrt(2 / tokens), as a share of the same response."""
        w = random_directions(PROBES, self.dim, seed=0).to(self.device, self.dtype)
        theta = max(self.residual_norm, 1e-3) * w
        own = self.slice(theta).norm(dim=1).clamp_min(1e-30)
        rounded = self.resolution * self.target_norm * (2 / sum(self.slice.target_counts)) ** 0.5
        return float((self(theta).norm(dim=1) / own).median()), rounded / float(own.median())

    @property
    def drowned(self) -> bool:
        """Whether rounding may be all there is to the difference."""
        return self.gap < ABOVE * self.rounding


def comparable(lm: LanguageModel, minus: LanguageModel, ids: Sequence[Sequence[int]] = ()) -> None:
    """Refuses two models that cannot be held against each other: streams must be as wide, layers be the same places,
    and tokens mean the same.

    Args:
        ids: tokens that both are to read.

    Raises:
        DctError: they differ in that.
    """
    for what, a, b in (("blocks", lm.depth, minus.depth), ("a width of", lm.width, minus.width)):
        if a != b:
            told = (f"{a} {what}", f"{b}") if what == "blocks" else (f"{what} {a}", f"{b}")
            raise DctError(
                f"{lm.name} has {told[0]} and {minus.name} {told[1]}: a difference is of two models of one shape, "
                "such as before and after a training; name another `minus`"
            )
    own, other = lm.tokenizer.get_vocab(), minus.tokenizer.get_vocab()
    back = {place: token for token, place in other.items()}
    token = next((token for token, place in own.items() if back.get(place, token) != token), None)
    if token is not None:
        raise DctError(
            f"token {own[token]} is {token!r} to {lm.name} and {back[own[token]]!r} to {minus.name}: a difference is "
            "of two models with the same tokens; name another `minus`"
        )
    unknown = next((k for row in ids for k in row if k >= minus.vocabulary), None)
    if unknown is not None:
        raise DctError(
            f"token {unknown} ({lm.decode([unknown])!r}) of the prompts is unknown to {minus.name}: give prompts "
            "without it, or name another `minus`"
        )


def _same_weights(lm: LanguageModel, minus: LanguageModel) -> str:
    return " (they have the same weights)" if lm.fingerprint and lm.fingerprint == minus.fingerprint else ""


def _apart(own: Tensor, other: Tensor) -> float:
    """Median over tokens of |h_A - h_B| / |h_A|."""
    own, other = own.float(), other.to(own.device).float()
    return float(((own - other).norm(dim=1) / own.norm(dim=1).clamp_min(1e-30)).median())
