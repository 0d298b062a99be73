"""Which fits a grid makes of a model: every combination of the values of its axes. Loads nothing, and reads no file."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any, TypeVar

from dct.declaration import Settings
from dct.errors import UsageError
from dct.method import method
from dct.model import check_layers, choose_layers
from dct.recipe import Recipe
from dct.settings import (
    FitPromptSettings,
    FitSettings,
    FitSliceSettings,
    ModelSettings,
    SweepFitSettings,
    SweepModelSettings,
    SweepPromptSettings,
    SweepSliceSettings,
)

AXES = ("model", "source", "target", "method", "lambda", "scale", "n", "seed")
"""By which fits of a grid may differ, in the order in which they are shown."""

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Grid:
    """Several values where a fit takes one, and all else that its fits have in common."""

    model: SweepModelSettings = field(default_factory=SweepModelSettings)
    slice: SweepSliceSettings = field(default_factory=SweepSliceSettings)
    prompts: SweepPromptSettings = field(default_factory=SweepPromptSettings)
    fit: SweepFitSettings = field(default_factory=SweepFitSettings)

    def check(self) -> None:
        """Refuses what is no grid.

        Raises:
            UsageError: two ways of saying how long vectors are; a method that learns no vectors.
        """
        for name in self.fit.method:
            if method(name).rank_one:
                raise UsageError(
                    f"{name} changes a band of blocks, which a sweep does not go over: fit it by `dct fit`, or choose "
                    "other methods",
                    argument="method",
                )
        if self.fit.ratio is not None and self.fit.scale is not None:
            raise UsageError("`scale` says what `lambda` would find: leave one or the other out", argument="scale")

    @property
    def models(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(self.model.model))

    @property
    def most(self) -> int:
        """Prompts of a set that any of its fits may use."""
        return max(self.prompts.n)

    def groups(self) -> tuple[Settings, ...]:
        """In the order in which they are written down."""
        return self.model, self.slice, self.prompts, self.fit

    def pairs(self, model: str, depth: int) -> tuple[list[tuple[int, int]], int]:
        """Source and target layers of the fits, and how many pairs are out of order or outside the model.

        Raises:
            UsageError, DctError: all of them are; as the first of them says.
        """
        found: list[tuple[int, int]] = []
        out: list[tuple[int, int]] = []
        for pair in self._products(model, depth):
            (found if 0 <= pair[0] < pair[1] <= depth else out).append(pair)
        if not found:
            first, last = out[0]
            check_layers(first, last, depth)
        return list(dict.fromkeys(found)), len(out)

    def _products(self, model: str, depth: int) -> Iterator[tuple[int, int]]:
        asked = self.slice.source or (None,)
        sources = [s for one in asked for s in (range(depth) if isinstance(one, str) else [one])]
        for source, target in product(sources, self.slice.target or (None,)):
            if isinstance(target, str):  # so far above the source
                start, _ = choose_layers(depth, model, source)
                yield start, start + int(target)
            else:
                yield choose_layers(depth, model, source, target)

    def recipes(self, model: str, depth: int) -> list[Recipe]:
        """The fits of a model, those that differ in the last axis alone beside each other."""
        fit, pairs = self.fit, self.pairs(model, depth)[0]
        values = product(pairs, fit.method, fit.ratio or (None,), fit.scale or (None,), self.prompts.n, fit.seed)
        return [
            Recipe(
                single(ModelSettings, self.model, model=model),
                single(
                    FitSliceSettings,
                    self.slice,
                    source=source,
                    target=target,
                    compile="auto",
                    minus=None,
                    band=None,
                    layers_from=None,
                ),
                single(FitPromptSettings, self.prompts, n=n),
                single(FitSettings, fit, method=how, ratio=ratio, scale=scale, seed=seed),
            )
            for (source, target), how, ratio, scale, n, seed in values
        ]


def single(kind: type[S], group: Settings, **values: Any) -> S:
    """The group of a fit that a grid's group stands for, with one value for each of its axes."""
    return kind(
        **{one.name: values[one.name] if one.name in values else getattr(group, one.name) for one in fields(kind)}
    )


def axes_of(recipe: Recipe) -> dict[str, Any]:
    """Where a fit stands on each axis."""
    return {
        "model": recipe.model.model,
        "source": recipe.slice.source,
        "target": recipe.slice.target,
        "method": recipe.fit.method,
        "lambda": recipe.fit.ratio,
        "scale": recipe.fit.scale,
        "n": recipe.prompts.n,
        "seed": recipe.fit.seed,
    }
