"""Who competes in the experiment: the vectors that were found, and the baselines, each with the same number of tries.

An arm's entrants are directions, each at every length, the shorter push first: of one direction it does less damage.
Those stand first that a ranking by likelihood puts first: that is how ties are settled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.candidates import Aim, candidates
from dct.factors import Factors
from dct.perturbation import recorded
from dct.replies import Push
from dct.scoring import Effect, Scorer

FOUND, RANDOM, SUPERVISED, NOISE = ARMS = ("found", "random", "supervised", "noise")

SCREENED = 4
"""Prompts on which every vector is scored by likelihood, and as many harmless ones on which its damage is measured."""

HEARD = 128
"""Vectors of an arm, at most, that are heard before it is decided which of them compete: those that the screen puts
first."""

BROKEN = 1.0
"""Nats of damage above which a vector comes behind all others in the screen: any text becomes likelier than a refusal
once the model talks nonsense."""


@dataclass(frozen=True)
class Screen:
    """Every vector and as many random ones, scored by likelihood at one length.

    Attributes:
        names, directions, alpha: the factors' vectors.
        effects: of each.
        null: random unit vectors.
        null_effects: of each.
    """

    names: list[str]
    directions: Float[Tensor, "vectors width"]
    alpha: list[float]
    effects: list[Effect]
    null: Float[Tensor, "vectors width"]
    null_effects: list[Effect]

    @property
    def order(self) -> list[int]:
        """The factors' vectors, highest score first, those that break the model last."""
        return _highest(self.effects)

    def entrants(self, arm: str, aim: Aim, scales: Sequence[float]) -> list[list[Push]]:
        """The found or the random vectors, a better one before another, each at every scale."""
        effects, directions, names = self.effects, self.directions, self.names
        if arm == RANDOM:
            effects, directions, names = self.null_effects, self.null, [f"random {k}" for k in range(len(self.null))]
        return [
            [Push(aim.layer, c * aim.scale * directions[k], names[k], c * aim.scale) for c in sorted(scales)]
            for k in _highest(effects)[:HEARD]
        ]


def _highest(effects: Sequence[Effect]) -> list[int]:
    return sorted(range(len(effects)), key=lambda k: ((effects[k].kl or 0.0) > BROKEN, -effects[k].score))


def screen(
    factors: Factors, scorer: Scorer, scale: float, seed: int, on_rows: Callable[[int], None] | None = None
) -> Screen:
    """Scores all vectors of the factors, and as many random ones drawn from seed + 2, `scale` long."""
    names, directions = candidates(factors)
    null = recorded(factors.info, directions.shape[1]).random(len(directions), seed + 2)
    effects = scorer.effects(scale * torch.cat([directions, null]), on_rows)
    alpha = factors.alpha.repeat(len(directions) // len(factors)).tolist()
    return Screen(names, directions, alpha, effects[: len(names)], null, effects[len(names) :])


def noise(width: int, positions: int, aim: Aim, scales: Sequence[float], count: int, seed: int) -> list[list[Push]]:
    """Gaussian noise as long as the vectors, drawn anew for every position: so many draws, each at every scale.

    What is added at a position depends on the seed and on the position alone, not on the batch that a text is in.
    """
    entrants = []
    for k in range(count):
        generator = torch.Generator().manual_seed(seed + 3 + k)
        drawn = [torch.randn(width, generator=generator) for _ in range(positions)]  # one after the other: a longer
        table = normalize(torch.stack(drawn), dim=1)  # table begins like a shorter one
        entrants.append([Push(aim.layer, c * aim.scale * table, f"noise {k}", c * aim.scale) for c in sorted(scales)])
    return entrants
