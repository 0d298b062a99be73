"""The factors of a deep causal transcoder and what their file must hold. Knows nothing of how they were found."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dct import plainjson
from dct.contents import FACTORS
from dct.errors import DctError
from dct.method import signed
from dct.perturbation import RankOne, recorded
from dct.schema import Record
from dct.tensorfile import as_stored, digest, read_tensors, write_tensors
from dct.writing import write_whole as write_whole  # where other modules look for it

FORMAT = "dct-factors"

TENSORS = ("V", "U", "alpha", "objective")

UNIT = 0.01
"""How far from 1 the norm of a unit row may be: the rows of a fit in bfloat16 are 0.004 off at most."""


@dataclass
class Factors:
    """m factors (v_l, u_l, alpha_l): the map is modelled as R_S(theta) = sum_l alpha_l sigma(<v_l, theta>) u_l.

    Attributes:
        V: unit input directions, one a row, shape (m, d): the steering vectors.
        U: unit output directions, one a row, shape (m, d_out): what they cause; zero where that is nothing.
        alpha: strengths, shape (m,), not negative.
        objective: one row per iteration: causal importance, similarity penalty, relative change of V.
        scale: R, the norm of the vector that is added to the residual stream.
        info: how they were found: JSON types only. Becomes `config` in the file's header.
        unprotected: they were read from a file of format version 1, whose numbers nothing vouches for.
    """

    V: Float[Tensor, "m d"]
    U: Float[Tensor, "m d_out"]
    alpha: Float[Tensor, " m"]
    objective: Float[Tensor, "iterations 3"]
    scale: float
    info: dict[str, Any] = field(default_factory=dict)
    unprotected: bool = field(default=False, compare=False)

    def __len__(self) -> int:
        return len(self.V)

    @property
    def signless(self) -> bool:
        """Whether v and -v are equally good, so that both are candidates for steering.

        `info` says so; where it does not, as in files of earlier versions, the method that it names does.
        """
        said = self.info.get("signed")
        return not (signed(self.info.get("method")) if said is None else said)

    @property
    def digest(self) -> str:
        """What tells these factors from any others: the digest that their file has (format version 2)."""
        return digest(FORMAT, self._tensors, self._config)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in TENSORS}

    @property
    def _config(self) -> dict[str, Any]:
        scale: Any = self.scale
        with suppress(TypeError, ValueError, OverflowError):  # what is no number is told of by the schema
            scale = float(scale)
        return {**self.info, "scale": scale}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the factors as safetensors: float32 `V`, `U`, `alpha`, `objective`, the info and a digest.

        Raises:
            DctError: they are not what could be loaded again (rows that are not unit, a negative strength, info that
                is no JSON), or the file cannot be written (no such folder, a full disk); nothing is left half-written.
        """
        stored = as_stored(self._tensors)
        wrong = faults(stored, self._config)
        if wrong is not None:
            raise DctError(f"cannot save {path}: {wrong}")
        return write_tensors(path, FORMAT, stored, self._config)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Factors":
        """Reads a factors file, onto the CPU.

        Raises:
            DctError: no such file, or it is damaged, changed, of another format or version, or inconsistent in itself.
        """
        tensors, config, protected = read_tensors(path, FORMAT, TENSORS)
        wrong = faults(tensors, config)
        if wrong is not None:
            raise DctError(f"{path} is damaged: {wrong}; fit again")
        V, U, alpha, objective = (tensors[name] for name in TENSORS)
        return cls(V, U, alpha, objective, float(config["scale"]), config, unprotected=not protected)


def faults(tensors: dict[str, Tensor], config: dict[str, Any]) -> str | None:
    """What keeps float32 tensors and a config from being factors; None where nothing does."""
    V, U, alpha, objective = (tensors[name] for name in TENSORS)
    consistent = V.ndim == U.ndim == 2 and alpha.ndim == 1 and len(V) == len(U) == len(alpha)
    if not consistent or not all(t.numel() for t in (V, U, alpha)):
        return "its V, U and alpha do not belong together"
    for name, t in (("V", V), ("U", U), ("alpha", alpha)):
        if not bool(torch.isfinite(t).all()):
            return f"its {name} holds NaN or infinity"
    if objective.ndim != 2 or objective.shape[1] != 3 or not bool(torch.isfinite(objective).all()):
        return f"its objective is not three finite numbers an iteration (shape {tuple(objective.shape)})"
    if bool((alpha < 0).any()):
        return "its alpha holds negative strengths: their sign belongs into U"
    bent = bent_row("V", V) or bent_row("U", U, or_zero=True)
    if bent is not None:
        return bent
    wrong = content_faults(FACTORS, config)
    return wrong or perturbation_faults(V, config)


def content_faults(declared: Record, config: dict[str, Any]) -> str | None:
    """What is wrong with a config by its declaration, as it will be read from a file; None where nothing is."""
    try:
        config = plainjson.finite(config)
    except ValueError as error:
        return f"its config is no JSON ({error})"
    wrong = declared.wrong(config, "")
    return layer_faults(config) if wrong is None else f"it has {wrong}"


def perturbation_faults(V: Tensor, config: dict[str, Any]) -> str | None:
    """What keeps the rows of V from being the changes that a config says they are; None where they are, or vectors."""
    kind = recorded(config, V.shape[1])
    if not isinstance(kind, RankOne):
        return None
    if V.shape[1] != kind.dim or len(kind.modules) != len(kind.inputs):
        return f"its rows are not {kind.dim} numbers long, as changes of {kind} are"
    parts = [piece for pair in kind.parts(V) for piece in pair]
    lengths = torch.stack([piece.double().norm(dim=1) for piece in parts]) * len(parts) ** 0.5
    bent = ((lengths - 1).abs() > UNIT).any(0)
    return f"row {int(bent.nonzero()[0])} of its V has parts that are not of unit length" if bool(bent.any()) else None


def layer_faults(config: dict[str, Any]) -> str | None:
    """What is wrong with the layers that a config names, as far as it names them."""
    source, target, blocks = (config.get(name) for name in ("source", "target", "blocks"))
    if source is not None and target is not None and source >= target:
        return f"its source layer {source} does not lie below its target layer {target}"
    if target is not None and blocks is not None and target > blocks:
        return f"its target layer {target} lies outside a model of {blocks} blocks"
    return None


def bent_row(name: str, rows: Tensor, *, or_zero: bool = False) -> str | None:
    """Says which row is no unit vector (nor zero, where that is allowed); None where all are."""
    norms = rows.double().norm(dim=1)
    bad = (norms - 1).abs() > UNIT
    if or_zero:
        bad &= norms > 0
    if not bool(bad.any()):
        return None
    row = int(bad.nonzero()[0])
    return f"row {row} of its {name} is no unit vector (its norm is {float(norms[row]):.3g})"
