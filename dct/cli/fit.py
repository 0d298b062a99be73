"""`dct fit`: calibrate, fit and save."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from dct.cli.fitjob import FitJob
from dct.cli.interrupted import Interrupted
from dct.cli.pictures import check_plot, save_plot
from dct.cli.terminal import Terminal, command
from dct.errors import DctError
from dct.recipe import Recipe
from dct.settings import (
    FitOutputSettings,
    FitPromptSettings,
    FitSettings,
    FitSliceSettings,
    ModelSettings,
    WorkSettings,
)

if TYPE_CHECKING:
    from dct.factors import Factors
    from dct.model import LanguageModel
    from dct.runs import Run


@command
def fit(
    model: ModelSettings,
    slice_: FitSliceSettings,
    prompts: FitPromptSettings,
    options: FitSettings,
    work: WorkSettings,
    output: FitOutputSettings,
) -> None:
    """Fit a deep causal transcoder: find steering vectors V and what they cause, U.

    Loads the model, calibrates the scale R, fits, and saves a run folder that `dct rank` goes on from.
    """
    terminal = Terminal(output.json, output.quiet)
    check_plot(output.plot)
    run, found, _ = run_fit(terminal, Recipe(model, slice_, prompts, options), output)
    from dct.plots import figures

    save_plot(terminal, output.plot, lambda: figures.iterations(found.objective.tolist()))
    terminal.result(
        {
            "run": str(run.folder),
            "factors": len(found),
            "scale": found.scale,
            "estimate": found.info["estimate"],
            "info": found.info,
        }
    )


def run_fit(
    terminal: Terminal, recipe: Recipe, output: FitOutputSettings, *, whole: bool = False
) -> tuple["Run", "Factors", "LanguageModel"]:
    """Calibrates, fits and saves; shows what was learned. Nobody else writes into its folder in the meantime.

    Args:
        recipe: what is fitted; that of an interrupted fit is read from its folder instead.
        output: the run folder; whether to go on with what is in it, or to overwrite it.
        whole: load the whole model, for what comes after the fit.

    Raises:
        DctError: another process writes there, or whatever else keeps it from fitting.
    """
    from dct.lock import held
    from dct.runs import STATE, claimed, find_run, new_run

    with ExitStack() as stack:
        interrupted = None
        if output.resume:
            run = find_run(output.out, STATE)
            Interrupted.read(run)  # a damaged state is said before the folder is asked for
            stack.enter_context(held(run.folder))
            interrupted = Interrupted.read(run)  # as it stands now that nobody writes it
            recipe = interrupted.recipe
        elif output.out is not None:
            run = stack.enter_context(claimed(output.out, ""))
            _refuse_overwriting(new_run(output.out, ""), output.force)

        def claim(name: str) -> "Run":
            unnamed = interrupted is None and output.out is None
            return stack.enter_context(claimed(None, name)) if unnamed else run

        return FitJob(terminal, recipe, interrupted).done(claim, whole)


def _refuse_overwriting(run: "Run", force: bool) -> None:
    if force:
        return
    if run.factors.exists():
        raise DctError(f"{run.folder} already holds factors: choose another `out`, or `force` to overwrite them")
    if run.state.exists():
        raise DctError(f"{run.folder} holds an interrupted fit: go on with `resume`, or `force` to start over")
