"""Whether what a run says holds when it is measured again: a sample of its numbers and of its replies, here and now.

Knows what a run folder holds and how each number in it was made; judges no reply.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dct.bandslice import sliced
from dct.calibration import nonlinearity
from dct.candidates import Aim, candidates
from dct.derivatives import Derivatives
from dct.difference import Difference
from dct.eigenrun import LIKE, METHOD
from dct.factors import Factors
from dct.fits.shared.strengths import gram
from dct.fitting import decided
from dct.generation import complete
from dct.job import Job
from dct.method import Method, method
from dct.model import LanguageModel
from dct.perturbation import layer_of, recorded
from dct.replies import UNSTEERED
from dct.settings import FitSettings
from dct.slice import Slice

ROUNDED = {torch.float32: 0.01, torch.float64: 0.01}
COARSE = 0.1
"""Relative difference that rounding may make, by the type of the weights: other machines add in another order. Of
shorter types than these, `COARSE`."""

ALIKE = 0.75
"""Share of replies that are to come out word for word: a single token that is nearly a tie may turn one of them."""


@dataclass(frozen=True)
class Check:
    """One kind of number, measured again.

    Attributes:
        name: what it is.
        of: how many were measured.
        difference: the largest relative difference; of replies the share that came out otherwise.
        allowed: how large it may be.
        worst: what differs most, in words; empty where nothing does.
    """

    name: str
    of: int
    difference: float
    allowed: float
    worst: str = ""

    @property
    def holds(self) -> bool:
        """Whether it came out again."""
        return self.difference <= self.allowed


@dataclass(frozen=True)
class Again:
    """A run, to be measured again.

    Args:
        lm: the run's model.
        factors: the run's.
        sample: vectors, and replies, that are measured.
        seed: of the sample.
        minus: the model whose response was subtracted, of a run of a difference.
    """

    lm: LanguageModel
    factors: Factors
    sample: int = 16
    seed: int = 0
    minus: LanguageModel | None = None

    @property
    def allowed(self) -> float:
        """Relative difference that rounding may make."""
        return ROUNDED.get(self.lm.dtype, COARSE)

    def fit(self) -> list[Check]:
        """What the vectors of a sample cause, how strongly, and the curve that R was read from."""
        info = self.factors.info
        ids = info.get("ids") or self.lm.encode(info["prompts"], info.get("system"))
        site, read = Aim.of(self.factors).layer, (info["target"], info.get("positions"))
        slice_: Slice | Difference
        if self.minus is None:
            slice_ = sliced(self.lm, ids, site, *read)
        else:
            slice_ = Difference.between(self.lm, self.minus, ids, layer_of(site), *read)
        checks = [_number("residual norm", slice_.residual_norm, info["residual_norm"], self.allowed)]
        calibrated = (info.get("calibration") or {}).get("ratio")
        if calibrated:
            [(_, ratio)] = nonlinearity(slice_, slice_.dim, [self.factors.scale], seed=info.get("seed", 0))
            checks.append(_number("non-linearity at R", ratio, calibrated, self.allowed))
        how = method(LIKE if info["method"] == METHOD else info["method"])
        chosen = sorted(random.Random(self.seed).sample(range(len(self.factors)), min(self.sample, len(self.factors))))
        caused = how.caused(_job(slice_, how, self.factors), self.factors.V[chosen].to(slice_.device)).cpu()
        return [*checks, self._directions(caused, chosen), *self._strengths(how, caused, chosen)]

    def _directions(self, caused: Float[Tensor, "n d_out"], chosen: Sequence[int]) -> Check:
        """The sine of the angle between u_l and what v_l causes. The sense is the strengths' business: where alpha_l
        would be negative, u_l is turned round."""
        caused = caused.double()
        U = torch.nn.functional.normalize(self.factors.U[chosen].double(), dim=1)
        cosines = (U * torch.nn.functional.normalize(caused, dim=1)).sum(1)
        sines = (1 - cosines.square()).clamp_min(0).sqrt()
        # Nothing is caused by a vector whose u is zero.
        sines = torch.where(U.norm(dim=1) > 0, sines, caused.norm(dim=1))
        worst = int(sines.argmax())
        return Check("directions U", len(chosen), float(sines[worst]), self.allowed, f"vector {chosen[worst]}")

    def _strengths(self, how: Method, caused: Float[Tensor, "n d_out"], chosen: Sequence[int]) -> Iterator[Check]:
        """alpha: K alpha = b, with b_l the inner product of u_l with what v_l causes (see `dct.fits.shared.strengths`).

        Of a method whose strengths are no solution of that, nothing is said.
        """
        kernel = getattr(how, "kernel", None)
        if kernel is None:
            return
        kind = recorded(self.factors.info, self.factors.V.shape[1])
        K = gram(kernel, kind.stand_ins(self.factors.V), self.factors.U)
        saved = (K @ self.factors.alpha.double())[chosen]
        here = (self.factors.U[chosen].double() * caused.double()).sum(1)
        if self.factors.signless:
            here = here.abs()
        off = (here - saved).abs() / saved.abs().clamp_min(1e-30)
        worst = int(off.argmax())
        yield Check("strengths alpha", len(chosen), float(off[worst]), self.allowed, f"vector {chosen[worst]}")

    def replies(self, rows: Sequence[dict[str, Any]], length: int) -> Check | None:
        """Replies of the journal, made again; None where it holds none of this run's vectors.

        Args:
            rows: of the journal, with `vector`, `scale`, `prompt` and `completion`.
            length: tokens that a reply was allowed.
        """
        names, directions = candidates(self.factors)
        places = {name: k for k, name in enumerate(names)}
        known = [row for row in rows if row["vector"] in places or row["vector"] == UNSTEERED]
        if not known:
            return None
        some = random.Random(self.seed).sample(known, min(self.sample, len(known)))
        added = torch.zeros(len(some), directions.shape[1])
        for k, row in enumerate(some):
            if row["vector"] != UNSTEERED:
                added[k] = float(row["scale"]) * directions[places[row["vector"]]]
        info = self.factors.info
        ids = self.lm.encode([row["prompt"] for row in some], info.get("system"))
        said = complete(self.lm, ids, added.to(self.lm.device), Aim.of(self.factors).layer, max_new_tokens=length)
        other = [k for k, (row, text) in enumerate(zip(some, said, strict=True)) if row["completion"] != text]
        worst = ""
        if other:
            row = some[other[0]]
            who = "unsteered" if row["vector"] == UNSTEERED else f"vector {row['vector']}"
            same = len(_common(row["completion"], said[other[0]]))
            worst = f"{who}, from character {same} on"
        return Check("replies", len(some), len(other) / len(some), 1 - ALIKE, worst)


def _number(name: str, here: float, saved: float, allowed: float) -> Check:
    """A single number."""
    return Check(name, 1, abs(here - saved) / max(abs(saved), 1e-30), allowed, f"{here:.4g}, was {saved:.4g}")


def _job(slice_: Slice | Difference, how: Method, factors: Factors) -> Job:
    """A fit in which nothing is left to be learned."""
    settings = decided(FitSettings(method=how.name, factors=len(factors), scale=factors.scale), slice_.dim)
    return Job(Derivatives(slice_, slice_.dim), factors.scale, settings, how.own(settings), {})


def _common(a: str, b: str) -> str:
    """What two texts begin with."""
    end = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:end]
