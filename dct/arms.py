"""Who competes in the experiment: the vectors that were found, and the baselines, each with the same number of tries.

An arm is a list of pushes, those first that a ranking by likelihood puts first: that is how ties are settled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.calibration import random_directions
from dct.candidates import Aim, candidates
from dct.factors import Factors
from dct.replies import Push
from dct.scoring import Effect, Scorer

FOUND, RANDOM, SUPERVISED, NOISE = ARMS = ("found", "random", "supervised", "noise")

SCREENED = 8
"""Prompts on which every vector is scored by likelihood, and as many harmless ones on which its damage is measured."""

BROKEN = 1.0
"""Nats of damage above which a vector comes behind all others in the screen: any text becomes likelier than a refusal
once the model talks nonsense."""


@dataclass(frozen=True)
class Screen:
    """Every vector and as many random ones, scored by likelihood at R.

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

    def pushes(self, arm: str, keep: int, aim: Aim, scales: Sequence[float]) -> list[Push]:
        """The best of the found or of the random vectors at every scale: a better vector before another, and of one
        vector the shorter push before the longer, which does more damage."""
        effects, directions, names = self.effects, self.directions, self.names
        if arm == RANDOM:
            effects, directions, names = self.null_effects, self.null, [f"random {k}" for k in range(len(self.null))]
        return [
            Push(aim.layer, c * aim.scale * directions[k], names[k], c * aim.scale)
            for k in _highest(effects)[:keep]
            for c in sorted(scales)
        ]


def _highest(effects: Sequence[Effect]) -> list[int]:
    return sorted(range(len(effects)), key=lambda k: ((effects[k].kl or 0.0) > BROKEN, -effects[k].score))


def screen(
    factors: Factors, scorer: Scorer, scale: float, seed: int, on_rows: Callable[[int], None] | None = None
) -> Screen:
    """Scores all vectors of the factors, and as many random ones drawn from seed + 2, at R = `scale`."""
    names, directions = candidates(factors)
    null = random_directions(len(directions), directions.shape[1], seed + 2)
    effects = scorer.effects(scale * torch.cat([directions, null]), on_rows)
    alpha = factors.alpha.repeat(len(directions) // len(factors)).tolist()
    return Screen(names, directions, alpha, effects[: len(names)], null, effects[len(names) :])


def noise(width: int, positions: int, aim: Aim, scales: Sequence[float], count: int, seed: int) -> list[Push]:
    """Gaussian noise as long as the vectors, drawn anew for every position: so many pushes.

    What is added at a position depends on the seed and on the position alone, not on the batch that a text is in.
    """
    pushes = []
    for k in range(-(-count // len(scales))):
        generator = torch.Generator().manual_seed(seed + 3 + k)
        drawn = [torch.randn(width, generator=generator) for _ in range(positions)]  # one after the other: a longer
        table = normalize(torch.stack(drawn), dim=1)  # table begins like a shorter one
        pushes += [Push(aim.layer, c * aim.scale * table, f"noise {k}", c * aim.scale) for c in sorted(scales)]
    return pushes[:count]
