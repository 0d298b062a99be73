"""What a model is called under vectors: `model@17:1.5+rank1`, read as what is added to the stream.

Knows factors and their ranking; knows no model and no protocol.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dct.candidates import chosen
from dct.errors import DctError
from dct.factors import Factors
from dct.perturbation import recorded

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


@dataclass(frozen=True)
class Term:
    """A vector of a mixture.

    Attributes:
        vector: its name.
        scale: the multiple c of R at which it is added; None for the one that the ranking found best, or 1.
    """

    vector: str
    scale: float | None = None


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
        """What is added to the stream for a model of this name; None for the model alone.

        Raises:
            UnknownModelError: there is no such model.
        """
        if model in (self.name, MODEL):
            return None
        base, at, mixture = model.rpartition("@")
        if not at or base not in (self.name, MODEL):
            raise UnknownModelError(f"no model {model[:200]!r} here: this is {self.name}, or {self.name}@ and {HOW}")
        return self.mix([self._term(term) for term in mixture.split("+")[: TERMS + 1]])

    def mix(self, terms: Sequence[Term]) -> Float[Tensor, " width"]:
        """What some vectors add to the stream together, sum_i c_i R v_i.

        Raises:
            UnknownModelError: no such vector, too many, or one of them too long.
        """
        if len(terms) > TERMS:
            raise UnknownModelError(f"more than {TERMS} vectors at once: {TERMS} at most")
        kind = recorded(self.factors.info, self.factors.V.shape[1])
        if len(terms) > 1 and not kind.adds:
            raise UnknownModelError("several rank-1 changes are none of rank 1: one at a time")
        directions = torch.stack([self._direction(term.vector) for term in terms])
        return kind.scaled(directions, torch.tensor([self.norm(term) for term in terms])).sum(0)

    def norm(self, term: Term) -> float:
        """How far a vector is added, c R: where it says no c, as far as the ranking found best, or else R.

        Raises:
            UnknownModelError: too far.
        """
        if term.scale is None:
            return self._norms.get(term.vector) or self.factors.scale
        if abs(term.scale) > MOST:
            raise UnknownModelError(f"{term.scale:g} R is beyond all use: a vector is added at {MOST:g} R at most")
        return term.scale * self.factors.scale

    def at(self, place: int) -> str:
        """The vector at a place of the ranking, the best one at 1.

        Raises:
            UnknownModelError: there is none.
        """
        if not self.ranked:
            raise UnknownModelError("the run has not been ranked: run `dct rank` first, or name a vector by its number")
        if not 1 <= place <= len(self.ranked):
            raise UnknownModelError(f"rank {place} is out of range: the ranking holds 1 to {len(self.ranked)}")
        return self.ranked[place - 1]

    def _direction(self, vector: str) -> Float[Tensor, " width"]:
        try:
            return chosen(self.factors, vector)
        except DctError as error:
            raise UnknownModelError(str(error)) from error

    def _term(self, text: str) -> Term:
        """A vector at its scale, as a name has it."""
        found = TERM.fullmatch(text)
        if found is None:
            raise UnknownModelError(f"{text[:200]!r} names no vector: write {HOW}")
        vector = found["vector"] if found["rank"] is None else self.at(int(found["rank"]))
        return Term(vector, None if found["scale"] is None else float(found["scale"]))
