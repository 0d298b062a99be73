"""What a steering vector does to a model: how far it moves one word above another, and at what cost.

Scores are logit differences of the full model at the last prompt token; the cost is how far next tokens of harmless
prompts move. Knows nothing of factors, nor which vectors are worth a score.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.batching import in_batches
from dct.blocks import readout
from dct.calibration import random_directions
from dct.errors import NonFiniteError
from dct.estimate import Cost, cost, rows_seconds
from dct.model import LanguageModel
from dct.slice import Slice
from dct.wordpair import Words


@dataclass(frozen=True)
class Effect:
    """What a steering vector does.

    Attributes:
        score: mean over prompts of logit(positive) - logit(negative).
        flipped: share of prompts on which the sign of that difference is not the unsteered one.
        kl: KL(unsteered || steered) of next-token distributions, in nats, mean over harmless prompts: the damage.
            Infinite where steering rules out a token that was possible before (JSON has null for it); None where there
            are no harmless prompts.
    """

    score: float
    flipped: float
    kl: float | None


def difference_of_means(towards: Slice, away: Slice) -> Float[Tensor, " width"]:
    """The supervised direction: v = m / |m|, m = mean_p h_p(towards) - mean_p h_p(away), of the streams h_p that enter
    the source layer at the last prompt token (Arditi et al. 2024).

    Where that token tells the two sets of prompts nothing apart (source 0, behind a chat template: all prompts end
    alike), h_p is the mean over all tokens of the prompt.
    """
    last = towards.last_entering().mean(0) - away.last_entering().mean(0)
    if float(last.norm()) > 1e-6 * away.residual_norm:
        return normalize(last, dim=0)
    return normalize(towards.mean_entering().mean(0) - away.mean_entering().mean(0), dim=0)


def divergence(
    before: Float[Tensor, "prompts vocabulary"], after: Float[Tensor, "*batch prompts vocabulary"]
) -> Float[Tensor, "*batch"]:
    """KL(before || after) in nats from log-probabilities, mean over prompts: sum_v p_v (log p_v - log q_v).

    Args:
        before, after: log p and log q over the vocabulary, for each prompt.

    A token that `before` rules out (log-probability -inf) adds nothing, whatever `after` makes of it; one that only
    `after` rules out makes the divergence infinite.
    """
    terms = before.exp() * (before - after)  # p_v (log p_v - log q_v)
    terms = terms.masked_fill(after.isneginf(), math.inf).masked_fill(before.isneginf(), 0.0)
    return terms.sum(-1).mean(-1).clamp_min(0.0)


class Scorer:
    """Effects of steering vectors added at `source` on two sets of prompts; run on the whole rest of the model.

    Args:
        lm: the model.
        words: the words to compare.
        source: the steered layer.
        prompts: scored.
        harmless: damage is measured on them; empty for none.
        system: system message of both sets.
    """

    def __init__(
        self,
        lm: LanguageModel,
        words: Words,
        source: int,
        prompts: Sequence[str],
        harmless: Sequence[str] = (),
        system: str | None = None,
    ) -> None:
        self.lm, self.words = lm, words
        scored = [[*row, *words.after] for row in lm.encode(prompts, system)]
        self.slice = Slice(lm, scored, source, lm.depth, positions=1)
        self.harmless = Slice(lm, lm.encode(harmless, system), source, lm.depth, positions=1) if harmless else None
        first = self._logits(self.slice, self._zero)
        self.vocabulary = first.shape[-1]
        self.base = self._difference(first)[0]
        self.base_log = None
        if self.harmless is not None:
            self.base_log = torch.log_softmax(self._logits(self.harmless, self._zero)[0], dim=-1)

    @property
    def _zero(self) -> Tensor:
        return torch.zeros(1, self.lm.width, device=self.lm.device)

    @property
    def unsteered(self) -> Effect:
        """The model left alone."""
        return Effect(float(self.base.mean()), 0.0, 0.0 if self.harmless is not None else None)

    def difference_of_means(self) -> Float[Tensor, " width"] | None:
        """Unit difference of means, harmless minus scored prompts, at the source layer (see the function)."""
        return None if self.harmless is None else difference_of_means(self.harmless, self.slice)

    def against(self, before: "Scorer") -> Effect:
        """What the model as this scorer found it does differently from the model as `before` found it."""
        kl = None
        if self.base_log is not None and before.base_log is not None:
            kl = float(divergence(before.base_log, self.base_log))
        flipped = (self.base.sign() != before.base.sign()).float().mean()
        return Effect(float(self.base.mean()), float(flipped), kl)

    @property
    def batch(self) -> int:
        """Vectors in one pass to start with."""
        return max(1, min(s.value_batch for s in (self.slice, self.harmless) if s is not None))

    @property
    def row_bytes(self) -> int:
        """Bytes that a vector of a pass needs, at most: its streams, and logits with what the damage makes of them."""
        slices = [s for s in (self.slice, self.harmless) if s is not None]
        logits = max(len(s.ids) for s in slices) * self.vocabulary
        streams = max(s.tokens for s in slices) * self.lm.width
        return 4 * (6 * logits + 16 * streams)

    def expected(self, rows: int, seed: int = 0) -> Cost:
        """What the effects of so many vectors will take, by timing those of a few random ones."""
        some = self.slice.residual_norm * random_directions(self.batch, self.lm.width, seed)
        seconds = rows_seconds(lambda size: self.effects(some[:size]), rows, self.batch, self.lm.device)
        return cost(seconds, min(rows, self.batch) * self.row_bytes, self.lm.device, self.lm.memory)

    @torch.no_grad()
    def effects(
        self, vectors: Float[Tensor, "vectors width"], on_rows: Callable[[int], None] | None = None
    ) -> list[Effect]:
        """The effect of each vector, as it stands (pass R v)."""
        vectors = vectors.to(self.lm.device, torch.float32)
        parts, _ = in_batches(
            lambda start, stop: self._effects(vectors[start:stop]),
            len(vectors),
            self.batch,
            self.lm.device,
            "rank on fewer prompts (`n`)",
            on_rows,
        )
        return [effect for part in parts for effect in part]

    def _effects(self, theta: Tensor) -> list[Effect]:
        moved = self._difference(self._logits(self.slice, theta))
        flipped = (moved.sign() != self.base.sign()).float().mean(1)
        damage: list[float | None] = [None] * len(theta)
        if self.harmless is not None and self.base_log is not None:
            steered = torch.log_softmax(self._logits(self.harmless, theta), dim=-1)
            damage = divergence(self.base_log, steered).tolist()
        return [Effect(s, f, k) for s, f, k in zip(moved.mean(1).tolist(), flipped.tolist(), damage, strict=True)]

    def _logits(self, slice_: Slice, theta: Tensor) -> Float[Tensor, "batch prompts vocabulary"]:
        with torch.no_grad():
            streams = slice_.streams(theta)
        logits = readout(self.lm, streams.flatten(0, 1)).unflatten(0, streams.shape[:2])
        # A head may rule tokens out (-inf), though not those that are compared. The largest logit of a row tells of
        # NaN, of +inf, and of a row in which nothing is possible.
        compared = logits[..., [self.words.positive, self.words.negative]]
        if not bool(torch.isfinite(torch.cat([compared, logits.amax(-1, keepdim=True)], -1)).all()):
            raise NonFiniteError(
                f'the final norm or head of {self.lm.name} puts out NaN or infinity: try `dtype="float32"` or a lower '
                "`scale`"
            )
        return logits

    def _difference(self, logits: Tensor) -> Float[Tensor, "batch prompts"]:
        """logit(positive) - logit(negative) at the last token of each prompt."""
        return logits[..., self.words.positive] - logits[..., self.words.negative]
