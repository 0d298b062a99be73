"""Which factors do something: how far each steering vector moves one word above another, and at what cost.

Scores are logit differences of the full model at the last prompt token. Every number has its baseline beside it:
the unsteered model, as many random unit vectors, and the supervised difference of means.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.batching import in_batches
from dct.blocks import readout
from dct.calibration import random_directions
from dct.errors import DctError, NonFiniteError, UsageError
from dct.estimate import Cost, cost, rows_seconds
from dct.factors import Factors
from dct.model import LanguageModel
from dct.slice import Slice

ORDERS = ("score", "alpha", "kl")


@dataclass(frozen=True)
class Words:
    """The two words whose logits are compared, as tokens.

    Attributes:
        positive, negative: token ids.
        shown_positive, shown_negative: the tokens as text.
        after: tokens that both words begin with; they are put behind each prompt, so that the next token decides.
    """

    positive: int
    negative: int
    shown_positive: str
    shown_negative: str
    after: tuple[int, ...]
    notes: tuple[str, ...]


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


@dataclass(frozen=True)
class Ranked:
    """A steering vector of the factors with its effect.

    Attributes:
        vector: its name: the factor's index, with a minus for the opposite direction ("17", "-17").
        alpha: the factor's strength.
        scale: the norm at which it was added: R times that of the scales tried under which it scored highest.
    """

    vector: str
    effect: Effect
    alpha: float
    scale: float


@dataclass(frozen=True)
class Ranking:
    """Steering vectors, best first, and their baselines.

    Attributes:
        vectors: in the order asked for.
        unsteered: the model left alone (its `flipped` and `kl` are zero).
        random_best, random_mean: over as many random unit vectors, each at the best of the same scales.
        supervised: the difference of means, harmless minus harmful, at the source layer, at its best scale.
        words: what was compared.
        scale: R.
        prompts, harmless: how many of each.
        scales: the multiples of R that were tried.
    """

    vectors: list[Ranked]
    unsteered: Effect
    random_best: Effect
    random_mean: Effect
    supervised: Effect | None
    words: Words
    scale: float
    prompts: int
    harmless: int
    scales: tuple[float, ...] = (1.0,)


def words(lm: LanguageModel, positive: str, negative: str, system: str | None = None) -> Words:
    """The tokens that tell two words apart.

    Of a word of several tokens the first counts; where both words begin alike, the first token that differs does,
    behind the tokens that they share. `notes` says so.

    Raises:
        DctError: a word has no tokens, or no token tells the words apart.
    """
    a, b = lm.continuation(positive, system), lm.continuation(negative, system)
    if not a or not b:
        raise DctError(f"{positive if not a else negative!r} has no tokens: choose another word to score")
    shared = 0
    while shared < min(len(a), len(b)) and a[shared] == b[shared]:
        shared += 1
    if shared == min(len(a), len(b)):
        raise DctError(
            f"no token tells {positive!r} from {negative!r} (one begins with the other): choose other words with "
            "`positive` and `negative`"
        )
    shown = [str(lm.tokenizer.convert_ids_to_tokens(ids[shared])) for ids in (a, b)]
    notes = []
    if shared:
        notes.append(
            f"{positive!r} and {negative!r} share their first {shared} token(s): "
            f"scored behind them, {shown[0]!r} against {shown[1]!r}"
        )
    else:
        for word, ids, token in zip((positive, negative), (a, b), shown, strict=True):
            if len(ids) > 1:
                notes.append(f"{word!r} is {len(ids)} tokens; its first, {token!r}, is scored")
    return Words(a[shared], b[shared], shown[0], shown[1], tuple(a[:shared]), tuple(notes))


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
    return -row if name.strip().startswith("-") else row


def tries(
    directions: Float[Tensor, "n d"], scale: float, multiples: Sequence[float]
) -> tuple[Float[Tensor, "tries d"], list[float]]:
    """Every direction at every multiple of the scale, one multiple after the other, and the norm of each try.

    Raises:
        UsageError: a multiple that is not positive, or none.
    """
    if not multiples or not all(0 < c < math.inf for c in multiples):
        raise UsageError(f"`scales` are positive multiples of R, got {list(multiples)}", argument="scales")
    norms = [c * scale for c in multiples for _ in range(len(directions))]
    return torch.cat([c * scale * directions for c in multiples]), norms


def aggregate(directions: Float[Tensor, "n d"], how: str) -> Float[Tensor, "k d"]:
    """One direction for many: `mean` (unit mean) or `svd` (first right singular vector of the stack, both senses).

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
        first = torch.linalg.svd(directions, full_matrices=False).Vh[:1]
        return torch.cat([first, -first])
    raise UsageError(f"unknown `aggregate` {how!r}: choose mean or svd", argument="aggregate")


def difference_of_means(towards: Slice, away: Slice) -> Float[Tensor, " width"]:
    """The supervised direction: unit difference of the mean streams that enter the source layer, `towards` - `away`.

    At the last prompt token, as in Arditi et al. 2024; where that token tells the two sets of prompts nothing apart
    (source 0, behind a chat template: all prompts end alike), the mean over all tokens of each prompt.
    """
    last = towards.last_entering().mean(0) - away.last_entering().mean(0)
    if float(last.norm()) > 1e-6 * away.residual_norm:
        return normalize(last, dim=0)
    return normalize(towards.mean_entering().mean(0) - away.mean_entering().mean(0), dim=0)


def divergence(
    before: Float[Tensor, "prompts vocabulary"], after: Float[Tensor, "*batch prompts vocabulary"]
) -> Float[Tensor, "*batch"]:
    """KL(before || after) in nats from log-probabilities, mean over prompts.

    A token that `before` rules out (log-probability -inf) adds nothing, whatever `after` makes of it; one that only
    `after` rules out makes the divergence infinite.
    """
    terms = before.exp() * (before - after)
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
        return logits[..., self.words.positive] - logits[..., self.words.negative]


def rank(
    lm: LanguageModel,
    factors: Factors,
    prompts: Sequence[str],
    harmless: Sequence[str] = (),
    *,
    positive: str = "Sure",
    negative: str = "Sorry",
    by: str = "score",
    source: int | None = None,
    scale: float | None = None,
    scales: Sequence[float] = (1.0,),
    max_damage: float | None = None,
    system: str | None = None,
    seed: int = 0,
    on_rows: Callable[[int], None] | None = None,
    on_cost: Callable[[Cost], None] | None = None,
) -> Ranking:
    """Scores every steering vector R v of the factors and orders them.

    Args:
        prompts: where the words are compared; best taken from outside the prompts of the fit.
        harmless: where damage is measured; without them there is no `kl` and no supervised baseline.
        by: `score` (highest first), `alpha` (strongest first) or `kl` (least damage first).
        source: the steered layer; left out, the one that the factors were fitted at.
        scale: R; left out, the factors' own.
        scales: multiples of R at which every vector is tried; it is ranked by the one under which it scores highest,
            and so are the baselines, so that they have as many tries.
        max_damage: nats of `kl` above which a try counts as broken: it comes behind every other.
        system: system message; left out, the one of the fit.
        seed: of the random baseline.
        on_rows: told how many vectors have just been scored, random ones included.
        on_cost: told, before the first is scored, what all of them are expected to take.

    Raises:
        UsageError, DctError: an unknown order, words that cannot be told apart, unusable prompts.
    """
    if by not in ORDERS:
        raise UsageError(f"unknown `by` {by!r}: choose {', '.join(ORDERS)}", argument="by")
    if (by == "kl" or max_damage is not None) and not harmless:
        wants = '`by="kl"`' if by == "kl" else "`max_damage`"
        raise UsageError(f"{wants} needs harmless prompts", argument="harmless")
    layer: Any = factors.info.get("source") if source is None else source
    if layer is None:
        raise UsageError("these factors do not say which layer they were fitted at: pass `source`", argument="source")
    system = factors.info.get("system") if system is None else system
    R = factors.scale if scale is None else scale
    compared = words(lm, positive, negative, system)
    scorer = Scorer(lm, compared, int(layer), prompts, harmless, system)
    names, directions = candidates(factors)

    def sound(effect: Effect) -> bool:
        return max_damage is None or effect.kl is None or effect.kl <= max_damage

    def best(directions: Tensor) -> list[tuple[Effect, float]]:
        steered, norms = tries(directions, R, scales)
        tried = list(zip(scorer.effects(steered, on_rows), norms, strict=True))
        return [
            max(tried[k :: len(directions)], key=lambda t: (sound(t[0]), t[0].score)) for k in range(len(directions))
        ]

    if on_cost is not None:
        on_cost(scorer.expected((2 * len(directions) + bool(harmless)) * len(scales)))
    effects = best(directions)
    null = [effect for effect, _ in best(random_directions(len(directions), lm.width, seed + 2))]
    means = scorer.difference_of_means()
    alpha = factors.alpha.repeat(len(directions) // len(factors)).tolist()
    ranked = [Ranked(n, e, a, norm) for n, (e, norm), a in zip(names, effects, alpha, strict=True)]
    order: dict[str, Callable[[Ranked], float]] = {
        "score": lambda r: -r.effect.score,
        "alpha": lambda r: -r.alpha,
        "kl": lambda r: r.effect.kl or 0.0,
    }
    return Ranking(
        vectors=sorted(ranked, key=lambda r: (not sound(r.effect), order[by](r))),
        unsteered=scorer.unsteered,
        random_best=max(null, key=lambda e: (sound(e), e.score)),
        random_mean=_mean(null),
        supervised=None if means is None else best(means[None].cpu())[0][0],
        words=compared,
        scale=R,
        prompts=len(prompts),
        harmless=len(harmless),
        scales=tuple(scales),
    )


def _mean(effects: list[Effect]) -> Effect:
    n = len(effects)
    kl = [e.kl for e in effects if e.kl is not None]
    return Effect(sum(e.score for e in effects) / n, sum(e.flipped for e in effects) / n, sum(kl) / n if kl else None)
