"""What a steering vector does to a model: how far it moves one text above another, and at what cost.

Scores are log-likelihood ratios of two continuations of each prompt, by the full model; the cost is how far next tokens
of harmless prompts move. Knows nothing of factors, nor which vectors are worth a score.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.bandslice import sliced
from dct.batching import in_batches
from dct.errors import DctError, NonFiniteError
from dct.estimate import Cost, cost, rows_seconds
from dct.logits import next_logs, own_difference
from dct.model import LanguageModel
from dct.nexttoken import NextTokens, logits_of
from dct.perturbation import RankOne, Site, at, layer_of
from dct.slice import Slice
from dct.wordpair import Words


@dataclass(frozen=True)
class Effect:
    """What a steering vector does.

    Attributes:
        score: mean over prompts of log p(positive) - log p(negative), each read behind the prompt token by token; the
            difference of two logits where one token each decides.
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
    last, mean = (towards.last_entering(), away.last_entering()), (towards.mean_entering(), away.mean_entering())
    return direction_between(last, mean, away.residual_norm)


def direction_between(
    last: tuple[Float[Tensor, "towards width"], Float[Tensor, "away width"]],
    mean: tuple[Float[Tensor, "towards width"], Float[Tensor, "away width"]],
    norm: float,
) -> Float[Tensor, " width"]:
    """The same, of streams at the last token of each prompt and, where those are alike, of means over all tokens.

    Args:
        norm: how long the streams are: what is a millionth of it is rounding.
    """
    difference = last[0].mean(0) - last[1].mean(0)
    if float(difference.norm()) > 1e-6 * norm:
        return normalize(difference, dim=0)
    return normalize(mean[0].mean(0) - mean[1].mean(0), dim=0)


def divergence(
    before: Float[Tensor, "*alike prompts vocabulary"], after: Float[Tensor, "*batch prompts vocabulary"]
) -> Float[Tensor, "*batch"]:
    """KL(before || after) in nats from log-probabilities, mean over prompts: sum_v p_v (log p_v - log q_v).

    Args:
        before, after: log p and log q over the vocabulary, for each prompt; one `before` for all, or one for each.

    A token that `before` rules out (log-probability -inf) adds nothing, whatever `after` makes of it; one that only
    `after` rules out makes the divergence infinite.
    """
    terms = before.exp() * (before - after)  # p_v (log p_v - log q_v)
    terms = terms.masked_fill(after.isneginf(), math.inf).masked_fill(before.isneginf(), 0.0)
    return terms.sum(-1).mean(-1).clamp_min(0.0)


class Contrast:
    """log p(positive) - log p(negative) behind each of some rows of tokens, under steering vectors.

    log p(text) = sum_k log p(token k | prompt, tokens before it): the text is put behind the prompt, all but its last
    token, and its tokens are read one after the other, so that the logits of one place alone are in memory. Where one
    token each decides, log p(a) - log p(b) = logit(a) - logit(b), in one pass for both.

    Args:
        lm: the model.
        words: the texts.
        source: the steered layer, or the changes of a band.
        rows: token ids of each prompt.

    Attributes:
        slices: what is run: one for each text, or one for both.
        vocabulary: how many logits a token has.
        base: the difference behind each prompt, unsteered.

    Raises:
        DctError: a prompt and its text do not fit into the model's context.
    """

    def __init__(self, lm: LanguageModel, words: Words, source: Site, rows: Sequence[Sequence[int]]) -> None:
        self.lm, self.words, self.vocabulary = lm, words, lm.vocabulary
        read = [words.positive[:1]] if words.single else [words.positive, words.negative]
        self.slices: list[Slice] = []
        for ids in read:
            begun = [[*row, *words.after, *ids[:-1]] for row in rows]
            _check_lengths(lm, begun)
            self.slices.append(sliced(lm, begun, source, lm.depth, positions=len(ids)))
        self.base: Float[Tensor, " prompts"] = self.difference(torch.zeros(1, self.slices[0].dim, device=lm.device))[0]

    @torch.no_grad()
    def difference(self, theta: Float[Tensor, "batch width"]) -> Float[Tensor, "batch prompts"]:
        """log p(positive) - log p(negative) behind each prompt, under each vector."""
        positive, negative = self.words.positive, self.words.negative
        if self.words.single:
            logits = logits_of(self.lm, self.slices[0].streams(theta), [*positive, *negative])
            self.vocabulary = logits.shape[-1]
            return logits[..., positive[0]] - logits[..., negative[0]]
        return self._likelihood(self.slices[0], positive, theta) - self._likelihood(self.slices[1], negative, theta)

    def _likelihood(self, slice_: Slice, ids: Sequence[int], theta: Tensor) -> Float[Tensor, "batch prompts"]:
        """log p of a text behind each prompt."""
        streams = slice_.streams(theta).unflatten(1, (-1, len(ids)))
        total = streams.new_zeros(streams.shape[:2])
        for k, token in enumerate(ids):
            logits = logits_of(self.lm, streams[:, :, k], [token])
            self.vocabulary = logits.shape[-1]
            total = total + logits[..., token] - logits.logsumexp(-1)
        return total


def _check_lengths(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> None:
    limit, longest = lm.context, max(map(len, rows))
    if limit and longest > limit:
        raise DctError(
            f"a prompt and the text that is scored behind it have {longest} tokens and {lm.name} reads {limit}: "
            "shorten either"
        )


class Scorer:
    """Effects of steering vectors added at `source` on two sets of prompts; run on the whole rest of the model.

    Args:
        lm: the model.
        words: the texts to compare.
        source: the steered layer, or the changes of a band.
        prompts: scored.
        harmless: damage is measured on them; empty for none.
        system: system message of both sets.
    """

    def __init__(
        self,
        lm: LanguageModel,
        words: Words,
        source: Site,
        prompts: Sequence[str],
        harmless: Sequence[str] = (),
        system: str | None = None,
    ) -> None:
        self.lm, self.words, self.source = lm, words, source
        self._told = prompts, harmless, system
        self.rows = lm.encode(prompts, system)
        self.contrast = Contrast(lm, words, source, self.rows)
        self.base = self.contrast.base
        self.harmless = NextTokens(lm, source, lm.encode(harmless, system)) if harmless else None

    @property
    def unsteered(self) -> Effect:
        """The model left alone."""
        return Effect(float(self.base.mean()), 0.0, 0.0 if self.harmless is not None else None)

    def difference_of_means(self) -> Float[Tensor, " width"] | None:
        """Unit difference of means, harmless minus scored prompts, at the source layer (see the function)."""
        if self.harmless is None:
            return None
        away = self.contrast.slices[0]
        if not self.words.single:  # its prompts are followed by a text
            layer = layer_of(self.source)
            away = Slice(self.lm, self.rows, layer, layer + 1, positions=1)
        return difference_of_means(self.harmless.slice, away)

    def at(self, source: Site) -> "Scorer":
        """The same for what acts elsewhere."""
        return Scorer(self.lm, self.words, source, *self._told)

    @property
    def batch(self) -> int:
        """Vectors in one pass to start with."""
        return max(1, min(s.value_batch for s in self._slices))

    @property
    def _slices(self) -> list[Slice]:
        return [*self.contrast.slices, *([] if self.harmless is None else [self.harmless.slice])]

    @property
    def row_bytes(self) -> int:
        """Bytes that a vector of a pass needs, at most: its streams, and logits with what the damage makes of them."""
        logits = max(len(s.ids) for s in self._slices) * self.contrast.vocabulary
        streams = max(s.tokens for s in self._slices) * self.lm.width
        return 4 * (6 * logits + 16 * streams)

    def expected(self, rows: int, seed: int = 0) -> Cost:
        """What the effects of so many vectors will take, by timing those of a few random ones."""
        size = 1.0 if isinstance(self.source, RankOne) else self.contrast.slices[0].residual_norm
        some = size * at(self.source, self.lm.width).random(self.batch, seed)
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
        moved = self.contrast.difference(theta)
        flipped = (moved.sign() != self.base.sign()).float().mean(1)
        damage: list[float | None] = [None] * len(theta)
        if self.harmless is not None:
            damage = divergence(self.harmless.base, self.harmless.logs(theta)).tolist()
        return [Effect(s, f, k) for s, f, k in zip(moved.mean(1).tolist(), flipped.tolist(), damage, strict=True)]


@dataclass(frozen=True)
class Reading:
    """What a model says at once: of few vectors, or before and after an edit, where a slice costs more than it saves.

    Attributes:
        differences: log p(positive) - log p(negative) behind each scored prompt.
        following: log p of the next token behind each harmless prompt; None where there are none.
    """

    differences: Float[Tensor, " prompts"]
    following: Float[Tensor, "harmless vocabulary"] | None

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        words: Words,
        prompts: Sequence[str],
        harmless: Sequence[str] = (),
        system: str | None = None,
        added: Float[Tensor, " width"] | None = None,
        layer: Site = 0,
    ) -> "Reading":
        """By the model's own run.

        Args:
            added, layer: the steering vector, R v, and where it acts; None leaves the model alone.

        Raises:
            DctError: a prompt and its text do not fit into the model's context.
            NonFiniteError: a difference is NaN or infinite.
        """
        rows = lm.encode(prompts, system)
        longest = max(words.positive, words.negative, key=len)
        _check_lengths(lm, [[*row, *words.after, *longest[:-1]] for row in rows])
        differences = torch.tensor(own_difference(lm, words, rows, added, layer))
        if not bool(torch.isfinite(differences).all()):
            cure = "" if added is None else " or a lower `scale`"
            raise NonFiniteError(f'{lm.name} puts out NaN or infinity: try `dtype="float32"`{cure}')
        following = next_logs(lm, lm.encode(harmless, system), added, layer) if harmless else None
        return cls(differences, following)

    def against(self, before: "Reading") -> Effect:
        """What is otherwise than it was before."""
        kl = None
        if self.following is not None and before.following is not None:
            kl = float(divergence(before.following, self.following))
        flipped = (self.differences.sign() != before.differences.sign()).float().mean()
        return Effect(float(self.differences.mean()), float(flipped), kl)
