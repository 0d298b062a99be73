"""The band of blocks that a fit of rank-1 changes is about: which one was asked for, and what does not go with one."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dct.errors import UsageError
from dct.settings import FitSettings, FitSliceSettings, LayerSettings
from dct.settings.model import band_of

if TYPE_CHECKING:
    from dct.method import Method


def check_band(how: "Method", asked: FitSliceSettings, options: FitSettings) -> None:
    """Refuses what does not go together, before anything is loaded.

    Raises:
        UsageError: a band for a method that learns vectors, or what is of vectors for one that learns rank-1 changes.
    """
    from dct.method import built_in, method

    if not how.rank_one:
        if asked.band is not None:
            names = ", ".join(name for name in built_in() if method(name).rank_one)
            raise UsageError(
                f"`band` is of rank-1 changes, and {how.name} learns vectors: choose {names} as `method`, or "
                "give a `source`",
                argument="band",
            )
        return
    of_vectors = {
        "source": (asked.source, f"{how.name} changes a band of blocks: give `band`, such as 7-10, in its place"),
        "layers_from": (asked.layers_from, "a scan is of vectors: give `band` and `target` in its place"),
        "minus": (asked.minus, f"{how.name} knows one model: fit the difference by another `method`"),
        "ratio": (
            options.ratio,
            "`lambda` compares with the derivative at 0, and rank-1 changes have none there: give a `scale` (it is 1)",
        ),
    }
    for name, (value, why) in of_vectors.items():
        if value is not None:
            raise UsageError(why, argument=name)


def chosen_band(depth: int, asked: LayerSettings) -> tuple[int, int]:
    """First and last block."""
    return _chosen(depth, asked)[:2]


def band_between(asked: LayerSettings) -> Callable[[int], tuple[int, int]]:
    """The first block of the band and the target, as a function of the model's depth."""

    def chosen(depth: int) -> tuple[int, int]:
        first, _, target = _chosen(depth, asked)
        return first, target

    return chosen


def _chosen(depth: int, asked: LayerSettings) -> tuple[int, int, int]:
    from dct.perturbation import choose_band

    band = getattr(asked, "band", None)
    return choose_band(depth, None if band is None else band_of(band), asked.target)
