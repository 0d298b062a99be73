"""Run folders: what a fit leaves behind, under `runs/` unless told otherwise, and how the newest is found."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dct.as_json import to_json
from dct.errors import DctError
from dct.factors import Factors, read_tensors, write_tensors, write_whole
from dct.fitting import State

RUNS = Path("runs")
FACTORS = "factors.safetensors"
STATE = "state.safetensors"
RANK = "rank.json"
STATE_FORMAT = "dct-state"


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: where it is.
        factors: its factors file (`factors.safetensors`, or the file that was named).
    """

    folder: Path
    factors: Path

    @property
    def state(self) -> Path:
        """The state of an unfinished iterative fit; gone once the factors are there."""
        return self.folder / STATE

    @property
    def ranking(self) -> Path:
        return self.folder / RANK

    def save_state(self, state: State, config: dict[str, Any]) -> None:
        """Writes where a fit stands, whole or not at all."""
        objective = torch.tensor(state.objective, dtype=torch.float64).reshape(-1, 3)
        # Objective values go through JSON, where float64 survives exactly; V and U are float32 already.
        write_tensors(
            self.state, STATE_FORMAT, {"V": state.V, "U": state.U}, {**config, "objective": objective.tolist()}
        )

    def load_state(self) -> tuple[State, dict[str, Any]]:
        """Reads where a fit stood.

        Raises:
            DctError: there is no such file, or it is damaged.
        """
        tensors, config = read_tensors(self.state, STATE_FORMAT, ("V", "U"))
        objective = config.pop("objective", [])
        return State(tensors["V"], tensors["U"], objective), config

    def save_factors(self, factors: Factors) -> None:
        """Writes the factors and drops the state that they replace."""
        factors.save(self.factors)
        self.state.unlink(missing_ok=True)
        self.ranking.unlink(missing_ok=True)  # it ranks the factors that were here before

    def save_ranking(self, content: dict[str, Any]) -> None:
        write_whole(self.ranking, (to_json(content, indent=1) + "\n").encode())

    def load_ranking(self) -> dict[str, Any]:
        """Reads `rank.json`.

        Raises:
            DctError: not ranked yet, or the file is damaged.
        """
        if not self.ranking.is_file():
            raise DctError(f"{self.folder} has not been ranked: run `dct rank {self.folder}` first")
        try:
            content = json.loads(self.ranking.read_text(encoding="utf-8"))
            [str(v["vector"]) for v in content["vectors"]]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DctError(f"{self.ranking} is damaged: run `dct rank` again") from error
        return content


def new_run(out: Path | None, name: str) -> Run:
    """The folder `out`, or a fresh one under `runs/` called `name` (numbered when it exists).

    Raises:
        DctError: `out` is a file.
    """
    if out is not None:
        if out.exists() and not out.is_dir():
            raise DctError(f"--out {out} is a file: name a folder")
        return Run(out, out / FACTORS)
    folder, number = RUNS / name, 1
    while folder.exists():
        number += 1
        folder = RUNS / f"{name}-{number}"
    return Run(folder, folder / FACTORS)


def find_run(where: Path | None, wanted: str = FACTORS) -> Run:
    """A run by its folder or factors file; left out, the newest one under `runs/` that holds `wanted`.

    Raises:
        DctError: there is none.
    """
    if where is None:
        found = sorted(RUNS.glob(f"*/{wanted}"), key=lambda p: p.stat().st_mtime_ns)
        if not found:
            what = "no run" if wanted == FACTORS else "no interrupted run"
            raise DctError(f"{what} under {RUNS}/: make one with `dct fit`, or name a run folder or factors file")
        return Run(found[-1].parent, found[-1].parent / FACTORS)
    if where.is_dir():
        if not (where / wanted).exists():
            unfinished = wanted == FACTORS and (where / STATE).exists()
            cure = f"finish it with `dct fit --resume --out {where}`" if unfinished else "make one with `dct fit`"
            if wanted == STATE and (where / FACTORS).exists():
                raise DctError(f"{where} is finished: there is nothing to resume; `dct rank {where}` goes on from it")
            raise DctError(f"{where} holds no {wanted}: {cure}")
        return Run(where, where / FACTORS)
    if not where.exists():
        raise DctError(f"no run folder or factors file {where}; `dct fit` makes one under {RUNS}/")
    return Run(where.parent, where)
