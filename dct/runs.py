"""Run folders: what a fit leaves behind, under `runs/` unless told otherwise, and how the newest is found."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dct import plainjson
from dct.contents import RANKING
from dct.contents import STATE as STATE_CONTENT
from dct.errors import DctError
from dct.factors import Factors, bent_row, content_faults
from dct.job import State
from dct.lock import TakenError, held
from dct.method import method
from dct.recipe import CONFIG, Recipe
from dct.team import current, leads
from dct.tensorfile import as_stored, read_tensors, write_tensors
from dct.writing import write_whole

RUNS = Path("runs")
FACTORS = "factors.safetensors"
STATE = "state.safetensors"
RANK = "rank.json"
COMPLETIONS = "completions.jsonl"
STATE_FORMAT = "dct-state"

COPY = "copy the run to another folder"


class UnfinishedError(DctError):
    """A run's fit was interrupted, and can go on.

    Attributes:
        unfinished: the run's folder, for whoever tells how.
    """

    def __init__(self, folder: Path, message: str) -> None:
        super().__init__(message)
        self.unfinished = folder


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
        """Where the ranking of these factors is, once they have been ranked."""
        return self.folder / RANK

    @property
    def completions(self) -> Path:
        """What the model said under these factors' vectors, kept while they are ranked."""
        return self.folder / COMPLETIONS

    @property
    def recipe(self) -> Path:
        """The TOML file from which the fit can be repeated."""
        return self.folder / CONFIG

    @property
    def superseded(self) -> bool:
        """Whether the state is that of the very fit whose factors are there: whoever wrote them was stopped before it
        could drop it. A state says which factors were there when its fit began; those of now are others.
        """
        if not (self.state.exists() and self.factors.exists()):
            return False
        try:
            config = read_tensors(self.state, STATE_FORMAT, ()).config
            return "beside" in config and config["beside"] != Factors.load(self.factors).digest
        except DctError:  # whoever opens them says what is wrong
            return False

    def beside(self) -> str | None:
        """The digest of the factors that are there now; None if there are none that can be read."""
        try:
            return Factors.load(self.factors).digest if self.factors.exists() else None
        except DctError:
            return None

    def save_state(self, state: State, config: dict[str, Any]) -> None:
        """Writes where a fit stands, whole or not at all.

        Raises:
            DctError: what is to be saved could not be resumed from, or cannot be written.
        """
        # Objective values go through JSON, where float64 survives exactly; V and U are float32 already.
        config = {**config, "objective": [list(row) for row in state.objective]}
        tensors = as_stored({"V": state.V, "U": state.U})
        wrong = state_faults(tensors, config)
        if wrong is not None:
            raise DctError(f"cannot save the state of this fit: {wrong}")
        write_tensors(self.state, STATE_FORMAT, tensors, config)

    def load_state(self) -> tuple[State, dict[str, Any]]:
        """Reads where a fit stood.

        Raises:
            DctError: there is no such file, or it is damaged, changed or inconsistent in itself.
        """
        tensors, config, protected = read_tensors(self.state, STATE_FORMAT, ("V", "U"))
        wrong = state_faults(tensors, config)
        if wrong is not None:
            raise DctError(f"{self.state} is damaged: {wrong}; start over with `force`")
        objective = [[float(x) for x in row] for row in config.pop("objective")]
        return State(tensors["V"], tensors["U"], objective, unprotected=not protected), config

    def drop_state(self) -> None:
        """Forgets an interrupted fit."""
        if leads():
            self.state.unlink(missing_ok=True)

    def save_factors(self, factors: Factors, recipe: Recipe | None = None) -> None:
        """Writes the factors, with the recipe that repeats them if there is one, and drops the state and the ranking
        that they replace. Wherever that is cut short, what is left behind is known for what it is: the state by
        `superseded`, the ranking by the digest in it; and no recipe lies beside factors of another one.
        """
        if not leads():
            return
        first = not self.factors.exists()
        if recipe is None or not first:
            self.recipe.unlink(missing_ok=True)
        else:
            recipe.save(self.folder)
        factors.save(self.factors)
        self.drop_state()
        self.ranking.unlink(missing_ok=True)
        self.completions.unlink(missing_ok=True)
        if recipe is not None and not first:
            recipe.save(self.folder)

    def save_ranking(self, content: dict[str, Any], factors: Factors) -> dict[str, Any]:
        """Writes `rank.json`, tied to the factors that were ranked, with null for NaN and infinity.

        Returns:
            What was written.

        Raises:
            DctError: the folder holds other factors by now, the content could not be read again, or the file cannot be
                written.
        """
        content = plainjson.finite({**content, "factors": factors.digest})
        wrong = ranking_faults(content, factors)
        if wrong is not None:
            raise DctError(f"cannot save the ranking: {wrong}")
        if not leads():
            return content
        if self.beside() != content["factors"]:
            raise DctError(f"{self.factors} has changed while it was ranked: run `dct rank` again")
        write_whole(self.ranking, (plainjson.dumps(content, indent=1) + "\n").encode(), COPY)
        if self.superseded:
            self.drop_state()
        return content

    def load_ranking(self) -> dict[str, Any]:
        """Reads `rank.json`.

        Raises:
            DctError: not ranked yet; the file is damaged, or ranks other factors than those that are there.
        """
        if not self.ranking.is_file():
            raise DctError(f"{self.folder} has not been ranked: run `dct rank {self.folder}` first")
        try:
            content = plainjson.loads(self.ranking.read_bytes())
        except (ValueError, OSError) as error:
            raise self._damaged(str(error)) from error
        wrong = RANKING.wrong(content, "")
        if wrong is not None:
            raise self._damaged(f"it has {wrong}")
        factors = Factors.load(self.factors)
        # Beside factors that nothing protects a ranking of the same age is not tied to them either.
        if content.get("factors") != factors.digest and not (factors.unprotected and "factors" not in content):
            raise DctError(f"{self.ranking} ranks other factors than {self.factors}: run `dct rank` again")
        wrong = ranking_faults(content, factors)
        if wrong is not None:
            raise self._damaged(wrong)
        return dict(content)

    def _damaged(self, why: str) -> DctError:
        return DctError(f"{self.ranking} is damaged: run `dct rank` again ({why})")


def state_faults(tensors: Mapping[str, Tensor], config: dict[str, Any]) -> str | None:
    """What keeps float32 tensors and a config from being the state of a fit; None where nothing does."""
    wrong = state_content_faults(config)
    if wrong is not None:
        return wrong
    if "objective" not in config:
        return "it has no objective"
    V, U, options, done = tensors["V"], tensors["U"], config["options"], len(config["objective"])
    if V.ndim != 2 or U.ndim != 2 or not V.numel() or len(U) not in ((0, len(V)) if not done else (len(V),)):
        return "its V and U do not belong together"
    if not _reached(options, len(V), done):
        return (
            f"it holds {len(V)} vectors after {done} steps of a fit of {options['factors']} in {options['iterations']}"
        )
    if not bool(torch.isfinite(V).all() and torch.isfinite(U).all()):
        return "its V or U holds NaN or infinity"
    return bent_row("V", V) or bent_row("U", U, or_zero=True)


def _reached(options: dict[str, Any], vectors: int, done: int) -> bool:
    """Whether a fit has so many vectors after so many steps; one of a method that is not installed may have any."""
    try:
        how = method(options["method"])
    except DctError:  # whoever goes on with the fit says so
        return True
    factors, iterations = options["factors"], options["iterations"]
    return vectors == how.known(factors, done) and done <= how.steps(factors, iterations)


def state_content_faults(config: dict[str, Any]) -> str | None:
    """What keeps a config, with an objective or before the first iteration without, from being that of a state."""
    return content_faults(STATE_CONTENT, {"objective": [], **config})


def ranking_faults(content: dict[str, Any], factors: Factors) -> str | None:
    """What keeps a ranking from being one of these factors; None where nothing does."""
    wrong = RANKING.wrong(content, "")
    if wrong is not None:
        return f"it has {wrong}"
    names = [vector["vector"] for vector in content["vectors"]]
    if len(set(names)) < len(names):
        return "it names a vector twice"
    beyond = next((name for name in names if int(name.removeprefix("-")) >= len(factors)), None)
    if beyond is not None:
        return f"it names vector {beyond} of {len(factors)}"
    if "scale" in content and "scales" in content:
        tried = [content["scale"] * c for c in content["scales"]]
        for vector in content["vectors"]:
            norm = vector.get("scale")
            if norm is not None and not any(math.isclose(norm, one, rel_tol=1e-6) for one in tried):
                return f"vector {vector['vector']} has the scale {norm:.4g}, which was not tried"
    return None


def new_run(out: Path | None, name: str) -> Run:
    """The folder `out`, or a fresh one under `runs/` called `name` (numbered when it exists).

    Raises:
        DctError: `out` is a file.
    """
    if out is not None:
        if out.exists() and not out.is_dir():
            raise DctError(f"`out` {out} is a file: name a folder")
        return Run(out, out / FACTORS)
    folder, number = RUNS / name, 1
    while folder.exists():
        number += 1
        folder = RUNS / f"{name}-{number}"
    return Run(folder, folder / FACTORS)


@contextmanager
def claimed(out: Path | None, name: str) -> Iterator[Run]:
    """A run as of `new_run`, its folder made and kept for this process; an empty one goes again at the end.

    Raises:
        DctError: `out` is a file, cannot be written, or another process writes into it.
    """
    with ExitStack() as stack:
        while True:
            run = current().agreed(lambda: new_run(out, name))
            try:
                stack.enter_context(held(run.folder, new=out is None))
                break
            except TakenError:  # a name that another process took in the same moment
                if out is not None:
                    raise
        yield run


def find_run(where: Path | None, wanted: str = FACTORS) -> Run:
    """A run by its folder or factors file; left out, the newest one under `runs/` that holds `wanted`.

    Raises:
        DctError: there is none.
    """
    if where is None:
        found = sorted(RUNS.glob(f"*/{wanted}"), key=lambda p: p.stat().st_mtime_ns)
        runs = [Run(path.parent, path.parent / FACTORS) for path in reversed(found)]
        run = next((run for run in runs if wanted != STATE or not run.superseded), None)
        if run is None:
            what = "no run" if wanted == FACTORS else "no interrupted run"
            raise DctError(f"{what} under {RUNS}/: make one with `dct fit`, or name a run folder or factors file")
        return run
    if where.is_dir():
        run = Run(where, where / FACTORS)
        if wanted == STATE and run.factors.exists() and (not run.state.exists() or run.superseded):
            raise DctError(f"{where} is finished: there is nothing to resume; `dct rank {where}` goes on from it")
        if not (where / wanted).exists():
            if wanted == FACTORS and (where / STATE).exists():
                raise UnfinishedError(where, f"{where} holds no {wanted}: finish it with `resume`")
            raise DctError(f"{where} holds no {wanted}: make one with `dct fit`")
        return run
    if not where.exists():
        raise DctError(f"no run folder or factors file {where}; `dct fit` makes one under {RUNS}/")
    return Run(where.parent, where)
