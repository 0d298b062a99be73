"""What a model is called under vectors: `model@17:1.5+rank1`, read as what is added to the stream.

Knows factors and their ranking; knows no model and no protocol.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dct.candidates import chosen
from dct.errors import DctError
from dct.factors import Factors

MODEL = "model"
"""The model by a name that always holds, whatever it is called."""

TERMS = 16
"""Vectors that one name may add up."""

MOST = 1000.0
"""Multiples of R, in either sense, that a vector may be added at."""

TERM = re.compile(
    r"(?:rank(?P<rank>[0-9]{1,9})|(?P<vector>-?[0-9]{1,9}))(?::(?P<scale>-?[0-9]{1,9}(?:\.[0-9]{0,9})?))?"
)

HOW = "17, 17:1.5 (at 1.5 R), -17, rank1, or several with + between"


class UnknownModelError(DctError):
    """A name that is no model, or none of its vectors."""


class Mixtures:
    """The models that a run's vectors make of one.

    Args:
        name: what the model is called.
        factors: whose vectors they are.
        ranked: `vectors` of the ranking, the best one first; none where there is no ranking.
    """

    def __init__(self, name: str, factors: Factors, ranked: Sequence[dict[str, Any]] = ()) -> None:
        self.name, self.factors = name, factors
        self.ranked = [str(one["vector"]) for one in ranked]
        self._norms = {str(one["vector"]): one.get("scale") for one in ranked}

    def names(self, most: int) -> list[str]:
        """The model alone, and under the first so many vectors of the ranking, each at the scale found for it."""
        return [self.name, *(f"{self.name}@{vector}" for vector in self.ranked[:most])]

    def vector(self, model: str) -> Float[Tensor, " width"] | None:
        """What is added to the stream for a model of this name, sum_i c_i R v_i; None for the model alone.

        Raises:
            UnknownModelError: there is no such model.
        """
        if model in (self.name, MODEL):
            return None
        base, at, mixture = model.rpartition("@")
        if not at or base not in (self.name, MODEL):
            raise UnknownModelError(f"no model {model[:200]!r} here: this is {self.name}, or {self.name}@ and {HOW}")
        terms = mixture.split("+")
        if len(terms) > TERMS:
            raise UnknownModelError(f"{len(terms)} vectors in one name: {TERMS} at most")
        return torch.stack([self._term(term) for term in terms]).sum(0)

    def _term(self, term: str) -> Float[Tensor, " width"]:
        """One vector at its scale."""
        found = TERM.fullmatch(term)
        if found is None:
            raise UnknownModelError(f"{term[:200]!r} names no vector: write {HOW}")
        name = found["vector"] if found["rank"] is None else self._at(int(found["rank"]))
        try:
            direction = chosen(self.factors, name)
        except DctError as error:
            raise UnknownModelError(str(error)) from error
        if found["scale"] is None:
            return (self._norms.get(name) or self.factors.scale) * direction
        if abs(float(found["scale"])) > MOST:
            raise UnknownModelError(f"{found['scale']} R is beyond all use: a vector is added at {MOST:g} R at most")
        return float(found["scale"]) * self.factors.scale * direction

    def _at(self, place: int) -> str:
        """The vector at a place of the ranking."""
        if not self.ranked:
            raise UnknownModelError("the run has not been ranked: run `dct rank` first, or name a vector by its number")
        if not 1 <= place <= len(self.ranked):
            raise UnknownModelError(f"rank {place} is out of range: the ranking holds 1 to {len(self.ranked)}")
        return self.ranked[place - 1]
