"""The factors of a deep causal transcoder and the file that holds them. Knows nothing of how they were found."""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dct.errors import DctError

FORMAT = "dct-factors"
FORMAT_VERSION = "1"

SIGNLESS = ("linear", "linear-projected", "linear-randomized", "quadratic")
"""Methods whose factors have no sign: v and -v explain the map equally well."""


@dataclass
class Factors:
    """m factors (v_l, u_l, alpha_l): the map is modelled as R_S(theta) = sum_l alpha_l sigma(<v_l, theta>) u_l.

    Attributes:
        V: unit input directions, one a row, shape (m, d): the steering vectors.
        U: unit output directions, one a row, shape (m, d_out): what they cause.
        alpha: strengths, shape (m,), not negative.
        objective: one row per iteration: causal importance, similarity penalty, relative change of V.
        scale: R, the norm of the vector that is added to the residual stream.
        info: how they were found: JSON types only. Becomes `config` in the file's header.
    """

    V: Float[Tensor, "m d"]
    U: Float[Tensor, "m d_out"]
    alpha: Float[Tensor, " m"]
    objective: Float[Tensor, "iterations 3"]
    scale: float
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.V)

    @property
    def signless(self) -> bool:
        """Whether v and -v are equally good, so that both are candidates for steering."""
        return self.info.get("method") in SIGNLESS

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the factors as safetensors: float32 `V`, `U`, `alpha`, `objective`, and the info in the header.

        Raises:
            DctError: the file cannot be written (no such folder, a full disk); nothing is left half-written.
        """
        tensors = {name: getattr(self, name) for name in ("V", "U", "alpha", "objective")}
        return write_tensors(path, FORMAT, tensors, {**self.info, "scale": self.scale})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Factors":
        """Reads a factors file, onto the CPU.

        Raises:
            DctError: no such file, or it is damaged, of another format or version, or inconsistent in itself.
        """
        tensors, config = read_tensors(path, FORMAT, ("V", "U", "alpha", "objective"))
        V, U, alpha = tensors["V"], tensors["U"], tensors["alpha"]
        consistent = V.ndim == U.ndim == 2 and alpha.ndim == 1 and len(V) == len(U) == len(alpha) > 0
        if not consistent or not all(bool(torch.isfinite(t).all()) for t in (V, U, alpha)):
            raise DctError(f"{path} is damaged: its V, U and alpha do not belong together; fit again")
        scale = config.get("scale")
        if not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise DctError(f"{path} is damaged: it has no scale; fit again")
        return cls(V, U, alpha, tensors["objective"], float(scale), config)


def write_tensors(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Path:
    """Writes float32 tensors and a JSON config as one safetensors file, whole or not at all."""
    metadata = {"format": kind, "format_version": FORMAT_VERSION, "config": json.dumps(config)}
    ready = {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in tensors.items()}
    return write_whole(path, save(ready, metadata))


def read_tensors(
    path: str | os.PathLike[str], kind: str, names: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Raises:
        DctError: no such file, or it is damaged or of another format or version.
    """
    path = Path(path)
    if not path.is_file():
        raise DctError(f"no file {path}: give a run folder or a factors file, or make one with `dct fit`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator of its own)
    except (SafetensorError, OSError, ValueError) as error:
        raise DctError(f"{path} is damaged or not a safetensors file ({error}); fit again") from error
    if metadata.get("format") != kind:
        raise DctError(f"{path} is not a {kind} file (its format is {metadata.get('format', 'not given')})")
    if metadata.get("format_version") != FORMAT_VERSION:
        version = metadata.get("format_version", "none")
        raise DctError(f"{path} has format version {version} and this dct reads {FORMAT_VERSION}: use a matching dct")
    try:
        config = json.loads(metadata["config"])
    except (KeyError, ValueError) as error:
        raise DctError(f"{path} is damaged: its config cannot be read; fit again") from error
    missing = [name for name in names if name not in tensors]
    if missing or not isinstance(config, dict):
        raise DctError(f"{path} is damaged: it lacks {', '.join(missing) or 'a config'}; fit again")
    return tensors, config


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes a file beside its place and renames it, so that it is there whole or not at all.

    Raises:
        DctError: it cannot be written; says why.
    """
    path = Path(path)
    beside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        beside = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(0o644)
        beside.replace(path)
    except BaseException as error:  # Ctrl+C too leaves nothing beside
        if beside is not None:
            beside.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        raise DctError(f"cannot write {path}: {reason}; free some space or choose another --out") from error
    return path
