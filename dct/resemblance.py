"""Which layers' residual streams steering vectors resemble: their cosines with what the model itself has there.

A vector added at one layer may look like what the model writes at another. Beside each cosine stands chance: as many
random directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.calibration import random_directions
from dct.model import LanguageModel
from dct.scoring import direction_between
from dct.supervised import MOST, entering, spread

CHANCE = 0.95
"""Share of random directions whose |cosine| is smaller than what is called chance."""


@dataclass(frozen=True)
class Resemblance:
    """Cosines by layer.

    Attributes:
        layers: that were looked at.
        stream: of each vector with the mean stream; a row for each vector.
        difference: with the difference of means, harmless minus asked prompts; None without harmless ones.
        chance_stream, chance_difference: |cosine| that `CHANCE` of the random directions stay below, by layer.
    """

    layers: list[int]
    stream: Float[Tensor, "vectors layers"]
    difference: Float[Tensor, "vectors layers"] | None
    chance_stream: Float[Tensor, " layers"]
    chance_difference: Float[Tensor, " layers"] | None


def resemblance(
    lm: LanguageModel,
    directions: Float[Tensor, "vectors width"],
    asked: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    source: int,
    seed: int = 0,
) -> Resemblance:
    """Cosines of directions with the streams that enter each block (`MOST` of them, the source among them), unsteered.

        stream:      m / |m|,  m = mean over prompts of hidden_states[l] at the last token of the prompt
        difference:  the supervised direction of layer l (`scoring.difference_of_means`)

    Args:
        asked, harmless: token ids of prompts; the mean stream is that of `asked`.
    """
    layers = spread(lm.depth, MOST, source)
    away = entering(lm, asked, layers)
    means = normalize(away.last.mean(1), dim=1)
    vectors = normalize(directions.float().cpu(), dim=1)
    random = random_directions(len(vectors), vectors.shape[1], seed + 4)
    apart = None
    if harmless:
        towards = entering(lm, harmless, layers)
        apart = torch.stack(
            [
                direction_between((towards.last[k], away.last[k]), (towards.mean[k], away.mean[k]), float(away.norm[k]))
                for k in range(len(layers))
            ]
        )
    return Resemblance(
        layers,
        vectors @ means.T,
        None if apart is None else vectors @ apart.T,
        _chance(random @ means.T),
        None if apart is None else _chance(random @ apart.T),
    )


def _chance(cosines: Float[Tensor, "random layers"]) -> Float[Tensor, " layers"]:
    return cosines.abs().quantile(CHANCE, dim=0)
