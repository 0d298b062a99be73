"""What comes of the experiment of `selection`: vectors in order, and the chosen one of each arm."""

from dataclasses import dataclass

from dct.damage import Damage
from dct.halving import Mark
from dct.pool import Pool
from dct.scoring import Effect
from dct.wordpair import Words


@dataclass(frozen=True)
class Selected:
    """A steering vector of the factors, as the experiment leaves it.

    Attributes:
        vector: its name, as in a ranking.
        alpha: the factor's strength.
        scale: the norm at which it did best, of those at which it was tried.
        effect: by likelihood, at that scale, on the prompts of the screen.
        validation: successes on the validation prompts that it was heard on; None where it was not.
        test: on the test prompts; of the chosen one alone.
    """

    vector: str
    alpha: float
    scale: float
    effect: Effect
    validation: Mark | None = None
    test: Mark | None = None


@dataclass(frozen=True)
class Champion:
    """The one of an arm that was chosen on validation prompts.

    Attributes:
        arm: found, random, supervised or noise.
        vector: what it is called.
        layer, scale: where it is added, and its norm.
        validation, test: successes.
        interval: of the share of test prompts (Wilson, 95%).
        chance: p of McNemar's exact test that the found one does as well on the same test prompts; None for itself.
        damage: what it does on harmless prompts.
    """

    arm: str
    vector: str
    layer: int
    scale: float
    validation: Mark
    test: Mark
    interval: tuple[float, float]
    chance: float | None
    damage: Damage | None


@dataclass(frozen=True)
class Selection:
    """What came of the experiment.

    Attributes:
        vectors: all of them: those that competed, then those that were heard, by successes; then the others by score.
        arms: the chosen one of each; the found one first.
        unsteered: successes of the model left alone on the test prompts.
        alone: its score on the prompts of the screen.
        random: as many random vectors, by score and damage.
        pool: which prompts.
        words: what the screen compared.
        scale, scales: R, and the multiples of it that were tried.
        tries: of each arm.
        harmless: prompts on which damage was measured.
        max_new_tokens: length of replies.
        judge, wanted: who judged, and the label that was a success.
    """

    vectors: list[Selected]
    arms: list[Champion]
    unsteered: Mark
    alone: Effect
    random: list[Effect]
    pool: Pool
    words: Words
    scale: float
    scales: tuple[float, ...]
    tries: int
    harmless: int
    max_new_tokens: int
    judge: str
    wanted: str

    @property
    def random_best(self) -> Effect:
        """The random vector with the highest score."""
        return max(self.random, key=lambda effect: effect.score)

    @property
    def found(self) -> Champion:
        """The chosen one of the vectors that were found."""
        return self.arms[0]
