"""The cells of a sweep: what is asked for, once the models are known."""

from dataclasses import dataclass, replace
from pathlib import Path

from dct.cli.asked import HARMLESS, fit_prompts, note_repeated
from dct.cli.judge import own_options
from dct.cli.rank import CHOSEN_BY, SCORED_ON
from dct.cli.terminal import Terminal
from dct.cli.work import portable
from dct.errors import DctError, UsageError
from dct.judging import kind_of
from dct.loading import Identity, identify
from dct.prompts import default_origin, read
from dct.publicname import public
from dct.recipe import Recipe
from dct.settings import (
    JudgeSettings,
    RankSettings,
    ScoreSettings,
    SweepExperimentSettings,
    SweepFitSettings,
    SweepModelSettings,
    SweepPromptSettings,
    SweepSettings,
    SweepSliceSettings,
)
from dct.sweep.cell import Cell, Judging
from dct.sweep.grid import Grid


@dataclass(frozen=True)
class Asked:
    """What a sweep is asked for: a grid of fits, and how each is ranked."""

    grid: Grid
    score: ScoreSettings
    experiment: SweepExperimentSettings
    judge: JudgeSettings
    options: SweepSettings


def grid_of(
    model: SweepModelSettings, slice_: SweepSliceSettings, prompts: SweepPromptSettings, fit: SweepFitSettings
) -> Grid:
    """A grid whose names of files mean the same in other folders, and to other processes."""

    def known(name: str | None) -> str | None:
        """A name that was given."""
        return portable(name) if name else None

    return Grid(
        model.changed(model=[portable(name) for name in model.model], adapter=known(model.adapter)),
        slice_,
        prompts.changed(prompts=known(prompts.prompts), harmless=known(prompts.harmless)),
        fit,
    )


def planned(terminal: Terminal, asked: Asked, root: Path) -> list[Cell]:
    """The cells of a sweep, each once, those of a model behind each other; what no fit can be is refused.

    Raises:
        UsageError, DctError: a setting that a method does not have, layers outside the model, no prompts to rank by.
    """
    _check(asked)
    cells: dict[str, Cell] = {}
    for model in asked.grid.models:
        weights = asked.grid.model
        with terminal.busy(f"looking at {model}"):
            known = identify(
                model,
                adapter=weights.adapter,
                layers=weights.layers,
                revision=weights.revision,
                trust_remote_code=weights.trust_remote_code,
            )
        _, out = asked.grid.pairs(model, known.depth)
        if out:
            terminal.note(
                f"{public(model)}: {out} pairs of layers are left out, in no order or outside its {known.depth} blocks"
            )
        judging = None if asked.options.fit_only else _judging(terminal, asked, model)
        for recipe in asked.grid.recipes(model, known.depth):
            cell = _cell(recipe, known, judging, root)
            cells.setdefault(cell.key, cell)
    return list(cells.values())


def _check(asked: Asked) -> None:
    asked.grid.check()
    kind = kind_of(asked.judge.judge)
    given = own_options(kind, asked.judge.judge_option)
    if asked.options.fit_only or asked.experiment.screen_only:
        if asked.judge != JudgeSettings():
            raise UsageError("`judge` reads completions: leave `fit_only` and `screen_only` out", argument="judge")
    elif not kind.uses_model:
        kind(None, **given)  # says what is wrong with its options


def _judging(terminal: Terminal, asked: Asked, model: str) -> Judging:
    """How the fits of a model are ranked: on prompts that none of them uses."""
    grid = asked.grid
    origin = grid.prompts.prompts or default_origin(model, "harmful")
    every = read(origin, grid.prompts.column)
    literal = grid.prompts.prompt
    used = literal if literal and grid.prompts.prompts is None else [*literal, *every.first(grid.most).texts]
    left = every.without(used)
    note_repeated(terminal, left)
    if not len(left):
        raise DctError(
            f"{origin} has no prompts beyond the {grid.most} of the fits: lower `n`, give other `prompts`, or add "
            "`fit_only`"
        )
    few = asked.experiment.screen_only
    mild = read(grid.prompts.harmless or default_origin(model, "harmless")).first(SCORED_ON if few else HARMLESS)
    n = asked.options.choose_by or (SCORED_ON if few else CHOSEN_BY)
    options = RankSettings(**vars(asked.score))
    return Judging(left.first(n) if few else left, mild, options, asked.experiment, asked.judge, n)


def _cell(recipe: Recipe, known: Identity, judging: Judging | None, root: Path) -> Cell:
    """A cell in which nothing is left open."""
    from dct.fitting import check_scale, decided
    from dct.method import method

    settings = decided(recipe.fit, known.width)
    method(settings.method).check(settings, known.width)
    if settings.scale is not None:
        check_scale(settings.scale)
    texts = fit_prompts(recipe.model.model, recipe.prompts).texts
    return Cell(root, replace(recipe, fit=settings), known.fingerprint, texts, judging)
