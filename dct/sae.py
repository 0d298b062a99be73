"""How near directions are to the features of a sparse autoencoder in SAELens' layout, beside random directions.

A safetensors file holds `W_dec`, one feature a row; `cfg.json` beside it may say where in the model it belongs. The
file is read in pieces: it may be larger than memory.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dct import plainjson
from dct.errors import DctError

DECODER = "W_dec"
WEIGHTS = ("sae_weights.safetensors", "sae.safetensors", "model.safetensors")
CHUNK = 1 << 24
"""Numbers that are read at a time."""

NEAREST = 5
"""Features of each direction that are told."""

BINS = 20
"""Of a histogram from 0 to 1."""


@dataclass(frozen=True)
class Sae:
    """A file with a decoder.

    Attributes:
        path: of the weights.
        features, width: the decoder's shape.
        hook: the place in the model as its configuration has it; empty where it has none.
        layer: index of the hidden states of that place, as this package counts; None where that is not known.
    """

    path: Path
    features: int
    width: int
    hook: str
    layer: int | None

    @classmethod
    def open(cls, where: Path) -> "Sae":
        """Looks at a file, or at the one in a folder, without reading its numbers.

        Raises:
            DctError: there is none, or it is no SAE in this layout.
        """
        path = where
        if where.is_dir():
            path = next((where / name for name in WEIGHTS if (where / name).is_file()), where / WEIGHTS[0])
        if not path.is_file():
            raise DctError(f"no file {path}: `sae` is a safetensors file in SAELens' layout, or the folder it is in")
        try:
            with safe_open(path, framework="pt") as file:
                names = sorted(file.keys())
                shape = list(file.get_slice(DECODER).get_shape()) if DECODER in names else []
        except (SafetensorError, OSError) as error:
            raise DctError(
                f"{path} is no safetensors file ({error}): save the SAE with SAELens' `save_model`"
            ) from error
        if len(shape) != 2 or not all(shape):
            held = f"it holds {', '.join(names[:5])}" if DECODER not in names else f"its shape is {shape}"
            raise DctError(
                f"{path} is no SAE in SAELens' layout: it needs a matrix {DECODER} of [features, width], and {held}"
            )
        return cls(path, shape[0], shape[1], *_place(path.parent / "cfg.json"))

    def rows(self) -> Iterator[tuple[int, Float[Tensor, "some width"]]]:
        """Unit decoder rows, some at a time, each with the number of the first; zero rows stay zero."""
        step = max(1, CHUNK // self.width)
        with safe_open(self.path, framework="pt") as file:
            decoder = file.get_slice(DECODER)
            for start in range(0, self.features, step):
                yield start, torch.nn.functional.normalize(decoder[start : start + step].float(), dim=1)


@dataclass(frozen=True)
class Nearest:
    """The features that are nearest to each direction.

    Attributes:
        features: their numbers, nearest first.
        cosines: with their signs.
    """

    features: list[list[int]]
    cosines: list[list[float]]

    def part(self, start: int, stop: int) -> "Nearest":
        """Those of some directions."""
        return Nearest(self.features[start:stop], self.cosines[start:stop])

    @property
    def best(self) -> list[float]:
        """The largest |cos| of each direction."""
        return [abs(row[0]) for row in self.cosines]

    @property
    def histogram(self) -> list[int]:
        """How many of those lie in each twentieth from 0 to 1."""
        return torch.histc(torch.tensor(self.best), BINS, 0.0, 1.0).int().tolist()


def nearest(sae: Sae, directions: Float[Tensor, "n width"]) -> Nearest:
    """The features whose decoder rows have the largest |cos| with each unit direction, in one reading of the file.

    Raises:
        DctError: another width, or a decoder with NaN.
    """
    if directions.shape[1] != sae.width:
        raise DctError(
            f"{sae.path} has width {sae.width} and the vectors {directions.shape[1]}: take an SAE of the run's model"
        )
    n = len(directions)
    cosines, numbers = torch.zeros(n, 0), torch.zeros(n, 0, dtype=torch.long)
    for start, rows in sae.rows():
        if not bool(torch.isfinite(rows).all()):
            raise DctError(f"{sae.path} holds NaN or infinity: take another copy of it")
        found = (directions.float() @ rows.T).clamp(-1, 1)
        cosines = torch.cat([cosines, found], 1)
        numbers = torch.cat([numbers, torch.arange(start, start + len(rows)).expand(n, -1)], 1)
        keep = cosines.abs().topk(min(NEAREST, cosines.shape[1]), 1).indices
        cosines, numbers = cosines.gather(1, keep), numbers.gather(1, keep)
    return Nearest(numbers.tolist(), cosines.tolist())


def _place(path: Path) -> tuple[str, int | None]:
    """The hook that a configuration names, and its layer."""
    try:
        told: Any = plainjson.loads(path.read_bytes(), lenient=True)
    except (OSError, ValueError):
        return "", None
    if not isinstance(told, dict):
        return "", None
    more = told.get("metadata")
    hook = str(told.get("hook_name") or (more.get("hook_name") if isinstance(more, dict) else None) or "")
    found = re.fullmatch(r"blocks\.(\d{1,6})\.hook_resid_(pre|post)", hook)
    return hook, None if found is None else int(found[1]) + (found[2] == "post")
