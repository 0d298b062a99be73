"""Which factors do something: every steering vector scored and put in order, beside its baselines.

Every number has its baseline beside it: the unsteered model, as many random unit vectors, and the supervised difference
of means. What a score is, `scoring` knows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from dct.baselines import beside
from dct.candidates import Aim, candidates, tries
from dct.errors import UsageError
from dct.estimate import Cost
from dct.factors import Factors
from dct.model import LanguageModel
from dct.openings import chosen_words
from dct.perturbation import at
from dct.scoring import Effect, Scorer
from dct.settings import RankSettings
from dct.wordpair import Words


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
        random_best, random_mean: over as many random vectors (or changes) of the same kind, each at the best of the
            same scales.
        supervised: the difference of means, harmless minus harmful, at the source layer (see `beside`), at its best
            scale.
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


ORDERS: dict[str, Callable[[Ranked], float]] = {
    "score": lambda r: -r.effect.score,
    "alpha": lambda r: -r.alpha,
    "kl": lambda r: r.effect.kl or 0.0,
}
"""What vectors can be ordered by: the smallest of these numbers comes first."""


@dataclass(frozen=True)
class Watch:
    """Who is told how a ranking goes.

    Attributes:
        on_rows: how many vectors have just been scored, random ones included; of a task, how many completions have
            been judged and how many will be in all.
        on_cost: what all of it is expected to take, before the first is scored; of an experiment in two parts, before
            each.
        on_stage: what an experiment is about to do.
        on_note: what it finds on the way.
    """

    on_rows: Callable[..., None] | None = None
    on_cost: Callable[[Cost], None] | None = None
    on_stage: Callable[[str], None] | None = None
    on_note: Callable[[str], None] | None = None

    def cost(self, expected: Callable[[], Cost]) -> None:
        """Tells what is expected, which is worked out only if somebody wants to know."""
        if self.on_cost is not None:
            self.on_cost(expected())

    def stage(self, text: str) -> None:
        """Tells what is about to be done."""
        if self.on_stage is not None:
            self.on_stage(text)

    def note(self, text: str) -> None:
        """Tells what was found."""
        if self.on_note is not None:
            self.on_note(text)


UNWATCHED = Watch()


def multiples(settings: RankSettings, otherwise: tuple[float, ...] = (1.0,)) -> tuple[float, ...]:
    """The multiples of R at which every vector is tried; `otherwise` where nothing is said of them."""
    return otherwise if settings.scales is None else tuple(cast(Sequence[float], settings.scales))


def rank(
    lm: LanguageModel,
    factors: Factors,
    prompts: Sequence[str],
    harmless: Sequence[str] = (),
    settings: RankSettings | None = None,
    *,
    source: int | None = None,
    scale: float | None = None,
    system: str | None = None,
    watch: Watch = UNWATCHED,
    **changes: Any,
) -> Ranking:
    """Scores every steering vector R v of the factors and orders them.

    Args:
        prompts: where two texts are compared; best taken from outside the prompts of the fit.
        harmless: where damage is measured; without them there is no `kl` and no supervised baseline, and the texts are
            "Sure" and "Sorry" unless others are given (see `openings.chosen_words`).
        settings: how; its `scales` are multiples of R at which every vector is tried. It is ranked by the one under
            which it scores highest, and so are the baselines, so that they have as many tries.
        source: the steered layer; left out, the one that the factors were fitted at.
        scale: R itself; left out, the factors' own times `settings.scale`.
        system: system message; left out, the one of the fit.
        watch: who is told how it goes.
        changes: fields of `RankSettings` by name: positive, negative, by, scales, max_damage, seed.

    Raises:
        UsageError, DctError: an unknown order, texts that cannot be told apart, unusable prompts.
    """
    settings = (settings or RankSettings()).changed(**changes)
    if (settings.by == "kl" or settings.max_damage is not None) and not harmless:
        wants = '`by="kl"`' if settings.by == "kl" else "`max_damage`"
        raise UsageError(f"{wants} needs harmless prompts", argument="harmless")
    aim = Aim.of(factors, source, factors.scale * settings.scale if scale is None else scale, system)
    compared = chosen_words(lm, settings.positive, settings.negative, prompts, harmless, system=aim.system)
    scorer = Scorer(lm, compared, aim.layer, prompts, harmless, aim.system)
    trials = _Trials(scorer, aim.scale, multiples(settings), settings.max_damage, watch.on_rows)
    names, directions = candidates(factors)
    watch.cost(lambda: scorer.expected((2 * len(directions) + bool(harmless)) * len(trials.scales)))
    effects = trials.best(directions)
    random = at(aim.layer, lm.width).random(len(directions), settings.seed + 2)
    null = [effect for effect, _ in trials.best(random)]
    alpha = factors.alpha.repeat(len(directions) // len(factors)).tolist()
    ranked = [Ranked(n, e, a, norm) for n, (e, norm), a in zip(names, effects, alpha, strict=True)]
    return Ranking(
        vectors=sorted(ranked, key=lambda r: (not trials.sound(r.effect), ORDERS[settings.by](r))),
        unsteered=scorer.unsteered,
        random_best=max(null, key=trials.merit),
        random_mean=_mean(null),
        supervised=_supervised(trials, aim, beside(lm, aim, factors.info, prompts) if harmless else aim),
        words=compared,
        scale=aim.scale,
        prompts=len(prompts),
        harmless=len(harmless),
        scales=trials.scales,
    )


@dataclass(frozen=True)
class _Trials:
    """Directions tried at several scales, of which each keeps its best.

    Attributes:
        scorer: says what a vector does.
        scale: R.
        scales: multiples of it.
        max_damage: `kl` above which a try counts as broken; None for no limit.
        on_rows: told how many have just been scored.
    """

    scorer: Scorer
    scale: float
    scales: tuple[float, ...]
    max_damage: float | None
    on_rows: Callable[[int], None] | None

    def sound(self, effect: Effect) -> bool:
        """Whether the damage stays within its limit."""
        return self.max_damage is None or effect.kl is None or effect.kl <= self.max_damage

    def merit(self, effect: Effect) -> tuple[bool, float]:
        """What the best of several is chosen by: soundness first, then the score."""
        return self.sound(effect), effect.score

    def best(self, directions: Float[Tensor, "n width"]) -> list[tuple[Effect, float]]:
        """Of each direction its best effect over the scales, and the norm that it was had at."""
        steered, norms = tries(directions, self.scale, self.scales)
        tried = list(zip(self.scorer.effects(steered, self.on_rows), norms, strict=True))
        n = len(directions)
        return [max(tried[k::n], key=lambda t: self.merit(t[0])) for k in range(n)]


def _supervised(trials: _Trials, aim: Aim, beside: Aim) -> Effect | None:
    """The difference of means at its best scale; None without harmless prompts.

    Args:
        beside: where it is added, which is where the factors' own vectors are, or in place of rank-1 changes.
    """
    scorer = trials.scorer
    means = scorer.difference_of_means()
    if means is None:
        return None
    if beside is not aim:
        trials = replace(trials, scorer=scorer.at(beside.layer), scale=beside.scale)
    return trials.best(means[None].cpu())[0][0]


def _mean(effects: list[Effect]) -> Effect:
    n = len(effects)
    kl = [e.kl for e in effects if e.kl is not None]
    return Effect(sum(e.score for e in effects) / n, sum(e.flipped for e in effects) / n, sum(kl) / n if kl else None)
