"""Where baselines are added that are vectors, differences of means and noise: beside vectors, beside rank-1 changes."""

from collections.abc import Mapping, Sequence
from typing import Any

from dct.calibration import default_calibration
from dct.candidates import Aim
from dct.model import LanguageModel
from dct.perturbation import RankOne
from dct.slice import Slice

READ = 8
"""Prompts that the scale is calibrated on, at most."""


def beside(lm: LanguageModel, aim: Aim, info: Mapping[str, Any], prompts: Sequence[str]) -> Aim:
    """Where and how far vectors are added for comparison: as the factors' own, where those are vectors.

    Beside rank-1 changes, whose R is no length in the stream: to what enters their band, at the scale that a fit of
    vectors between there and their target has by default.

    Args:
        info: of the factors.
        prompts: what is run for the scale, the first `READ`.
    """
    if not isinstance(aim.layer, RankOne):
        return aim
    slice_ = Slice(lm, list(prompts[:READ]), aim.layer.first, int(info["target"]), system=aim.system)
    return Aim(aim.layer.first, default_calibration(slice_, slice_.dim).scale, aim.system)
