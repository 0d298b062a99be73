"""How far the vectors of a run are found again by fits that differ in the seed or the prompts alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dct.errors import DctError
from dct.factors import Factors
from dct.matching import matched
from dct.runs import FACTORS, Run

ALIKE = ("fingerprint", "source", "target", "method")
"""What siblings have in common, beside the width."""

DIFFERENT = ("seed", "prompts")

MOST = 8
"""Siblings that are read, the newest first."""


@dataclass(frozen=True)
class Stability:
    """How near the matched vectors of other fits are.

    Attributes:
        values: of each factor the mean |cos| with its match; 0 where a smaller fit has none for it.
        chance: the same of random directions.
        runs: other fits.
    """

    values: list[float]
    chance: float
    runs: int

    def of(self, vector: str) -> float:
        """That of a vector by its name."""
        return self.values[int(vector.removeprefix("-"))]


def are_siblings(one: Factors, other: Factors) -> bool:
    """Whether two fits are of the same thing, and not the same fit."""
    known = one.info.get("fingerprint") is not None
    same = all(one.info.get(key) == other.info.get(key) for key in ALIKE) and _minus(one) == _minus(other)
    return (
        known
        and same
        and one.V.shape[1] == other.V.shape[1]
        and any(one.info.get(key) != other.info.get(key) for key in DIFFERENT)
    )


def _minus(factors: Factors) -> str | None:
    """Weights of the model whose response was subtracted, if one was."""
    fingerprint: str | None = (factors.info.get("minus") or {}).get("fingerprint")
    return fingerprint


def stability(factors: Factors, others: Sequence[Factors], seed: int = 0) -> Stability | None:
    """How far the vectors of other fits match; None where there are none."""
    if not others:
        return None
    values, chance = torch.zeros(len(factors)), 0.0
    for other in others:
        found = matched(factors.V, other.V, seed)
        for (row, _), cosine in zip(found.pairs, found.cosines, strict=True):
            values[row] += abs(cosine)
        chance += found.chance * len(found.pairs) / len(factors)
    return Stability((values / len(others)).clamp_max(1.0).tolist(), chance / len(others), len(others))


def siblings(run: Run, factors: Factors) -> list[Factors]:
    """The fits in the folders beside a run that are its siblings; those that cannot be read are passed over."""
    folder = run.folder.resolve()
    files = [file for file in folder.parent.glob(f"*/{FACTORS}") if file.parent != folder]
    found: list[Factors] = []
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        try:
            other = Factors.load(file)
        except DctError:
            continue
        if are_siblings(factors, other):
            found.append(other)
        if len(found) == MOST:
            break
    return found
