"""A cell of a sweep, from its recipe to its record: the fit goes on where it stood, and so does the ranking."""

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dct.cli.asked import fit_prompts
from dct.cli.fitjob import FitJob
from dct.cli.interrupted import Interrupted
from dct.cli.rank import run_rank
from dct.cli.select import run_select
from dct.cli.terminal import Terminal, explained
from dct.cli.work import keep_prompts, load_model
from dct.errors import DctError

if TYPE_CHECKING:
    from dct.factors import Factors
    from dct.judging import Judge
    from dct.model import LanguageModel
    from dct.runs import Run
    from dct.sweep.cell import Cell


class Quiet(Terminal):
    """Shows nothing and keeps the warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Something that may make the result worthless."""
        self.warnings.append(text)


_here: dict[str, "LanguageModel"] = {}
"""The model that this process has in memory, by what it was loaded as: one at most."""


def done(cell: "Cell") -> dict[str, Any]:
    """Does a cell, unless it is done; returns what came of it.

    Raises:
        TakenError: another process has it.
        UnwritableError: the disk is full, or closed to us.
        DctError: whatever else keeps it from being done.
    """
    from dct.cli.quiet import hush_libraries
    from dct.lock import held

    hush_libraries()
    try:
        with held(cell.run.folder):
            return cell.found() or _made(cell)
    except (DctError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise DctError(explained(error)) from error


def _made(cell: "Cell") -> dict[str, Any]:
    terminal, began = Quiet(), time.monotonic()
    lm = _model(terminal, cell)
    factors = _known(cell) or _fitted(terminal, cell, lm)
    keep_prompts(lm, factors.info)
    ranking = None if cell.judging is None else _ranked(terminal, cell, factors, lm)
    from dct.sweep.facts import found_in

    told = {"seconds": round(time.monotonic() - began, 2), "warnings": terminal.warnings}
    found = found_in(cell, factors, ranking, told)
    cell.keep(found, factors.digest)
    return found


def _model(terminal: Terminal, cell: "Cell") -> "LanguageModel":
    """The cell's model, whole; the last one stays in memory until another is asked for.

    Raises:
        DctError: it is not the one that the sweep was planned with.
    """
    loading = cell.recipe.loading()
    key = repr((cell.fingerprint, cell.recipe.model.model, sorted(loading.items(), key=str)))
    if key not in _here:
        _here.clear()
        _here[key] = load_model(terminal, cell.recipe.model.model, **loading)
    lm = _here[key]
    if lm.fingerprint != cell.fingerprint:
        raise DctError(f"the weights of {cell.recipe.model.model} have changed since the sweep began: run it again")
    return lm


def _known(cell: "Cell") -> "Factors | None":
    """The factors that are there already; None where there are none that can be read."""
    from dct.factors import Factors

    with suppress(DctError):
        return Factors.load(cell.run.factors)
    return None


def _fitted(terminal: Terminal, cell: "Cell", lm: "LanguageModel") -> "Factors":
    """Fits, or goes on with a fit that was cut short."""
    if fit_prompts(cell.recipe.model.model, cell.recipe.prompts).texts != cell.texts:
        raise DctError(
            f"{cell.recipe.prompts.prompts or 'the prompt set'} has changed since the sweep began: run it again"
        )
    interrupted = None
    if cell.run.state.exists():
        with suppress(DctError):  # a state that cannot be read is one to begin again from
            interrupted = Interrupted.read(cell.run)
    recipe = cell.recipe if interrupted is None else interrupted.recipe

    def claim(name: str) -> "Run":
        return cell.run

    return FitJob(terminal, recipe, interrupted, lm).done(claim, whole=True)[1]


def _ranked(terminal: Terminal, cell: "Cell", factors: "Factors", lm: "LanguageModel") -> dict[str, Any]:
    """Ranks as `dct rank` does."""
    asked = cell.judging
    assert asked is not None
    system = cell.recipe.prompts.system
    if asked.experiment.screen_only:
        few, mild = asked.prompts.first(asked.n), asked.harmless
        return run_rank(terminal, cell.run, factors, lm, few, mild, asked.options, system)
    sets = asked.prompts, asked.harmless
    judge = _judge(cell, lm)
    return run_select(
        terminal, cell.run, factors, lm, sets, asked.options, asked.experiment, judge, n=asked.n, system=system
    )


def _judge(cell: "Cell", lm: "LanguageModel") -> "Judge":
    from dct.cli.judge import own_options
    from dct.judging import kind_of

    assert cell.judging is not None
    kind = kind_of(cell.judging.judge.judge)
    return kind(lm if kind.uses_model else None, **own_options(kind, cell.judging.judge.judge_option))
