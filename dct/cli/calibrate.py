"""`dct calibrate`: the steering scale alone, with the curve that it was read from."""

import shlex
from typing import TYPE_CHECKING, Any

from dct.aliases import DEMO
from dct.cli.asked import fit_prompts, note_repeated
from dct.cli.pictures import check_plot, save_plot, show_calibration
from dct.cli.terminal import Terminal, command, escape
from dct.cli.work import between, load_model
from dct.plainjson import dumps
from dct.recipe import Recipe
from dct.settings import (
    CalibrationSettings,
    FileOutputSettings,
    FitPromptSettings,
    FitSliceSettings,
    ModelSettings,
    SliceSettings,
    WorkSettings,
)

if TYPE_CHECKING:
    from rich.table import Table

    from dct.calibration import Calibration
    from dct.difference import Difference
    from dct.slice import Slice


@command
def calibrate(
    model: ModelSettings,
    slice_: SliceSettings,
    prompts: FitPromptSettings,
    options: CalibrationSettings,
    work: WorkSettings,
    output: FileOutputSettings,
) -> None:
    """Find the scale R at which the response to a steering vector is nonlinear enough, and show the whole curve."""
    terminal = Terminal(output.json, output.quiet)
    check_plot(output.plot)
    chosen = fit_prompts(model.model, prompts)
    note_repeated(terminal, chosen)
    layers = between(model.model, slice_)
    loading = Recipe(model, FitSliceSettings(), prompts).loading()
    lm = load_model(terminal, model.model, between=layers, **loading)
    from dct.calibration import DEFAULT_LAMBDA, nonlinearity
    from dct.errors import CalibrationError
    from dct.factors import write_whole
    from dct.slice import Slice

    first, last = layers(lm.depth)
    with terminal.busy("running the prompts"):
        map_ = Slice(lm, chosen.texts, first, last, slice_.positions, prompts.system)
    try:
        found = calibrated(terminal, map_, options)
    except CalibrationError as error:
        terminal.show(_curve(error.curve, options.ratio or DEFAULT_LAMBDA, map_.residual_norm, None))
        raise
    with terminal.busy("measuring the curve"):
        grid = [found.scale * 2.0**k for k in range(-4, 4) if k]
        more = nonlinearity(map_, map_.dim, grid, seed=options.seed, batch=options.batch)
    curve = sorted({*found.curve, *more})
    content = {
        "scale": found.scale,
        "ratio": found.ratio,
        "lambda": found.target,
        "limited": found.limited,
        "residual_norm": map_.residual_norm,
        "source": first,
        "target": last,
        "curve": curve,
    }
    if output.out is not None:
        write_whole(output.out, (dumps(content, indent=1) + "\n").encode())
    _show(terminal, found, content, model.model)
    from dct.plots import figures

    save_plot(terminal, output.plot, lambda: [figures.calibration(curve, found.scale, found.target)])
    terminal.result(content)


def _show(terminal: Terminal, found: "Calibration", content: dict[str, Any], model: str) -> None:
    norm, first, last = content["residual_norm"], content["source"], content["target"]
    terminal.show(_curve(content["curve"], found.target, norm, found.scale, bars=not terminal.roomy))
    show_calibration(terminal, content["curve"], found.scale, found.target)
    which = "" if model == DEMO else f" --model {shlex.quote(model)}"
    terminal.summary(
        f"scale R = {found.scale:.4g} for layers {first} → {last}",
        [
            ("ratio", f"{found.ratio:.4g} (λ = {found.target:g})"),
            ("residual", f"R is {found.scale / norm:.2f} × the median norm {norm:.4g}"),
            ("next", f"[bold cyan]dct fit{escape(which)} --s {first} --t {last} --scale {found.scale:.4g}[/bold cyan]"),
        ],
    )


def calibrated(terminal: Terminal, slice_: "Slice | Difference", asked: CalibrationSettings) -> "Calibration":
    """The calibrated scale, with a progress bar.

    A lambda that was asked for is reached or refused; left out, it is 0.5 and R stays within what the streams bear.
    """
    from dct.calibration import default_calibration

    done = 0
    with terminal.progress("calibrating") as advance:

        def on_rows(rows: int) -> None:
            nonlocal done
            done += rows
            advance("", done, max(done, 300))  # about ten points of the curve

        found = default_calibration(
            slice_, slice_.dim, asked.ratio, seed=asked.seed, batch=asked.batch, on_rows=on_rows
        )
    times = found.scale / slice_.residual_norm
    where = f"the non-linearity ratio is {found.ratio:.2g} there, below lambda = {found.target:g}, but a larger vector"
    if not found.limited:
        terminal.note(
            f"scale R = {found.scale:.4g}, {times:.2f} times the median residual norm, where the non-linearity ratio "
            f"is lambda = {found.target:g} ({len(found.curve)} points)"
        )
    elif hasattr(slice_, "borne_by"):
        terminal.note(
            f"scale R = {found.scale:.4g}, {times:.2f} times the median residual norm: that of the model alone, where "
            f"the difference has a non-linearity ratio of {found.ratio:.2g}"
        )
    elif found.scale == slice_.residual_norm:
        terminal.note(
            f"scale R = {found.scale:.4g}, the median residual norm: {where} would drown the stream it is added to"
        )
    else:
        share = found.response / slice_.target_norm
        terminal.note(
            f"scale R = {found.scale:.4g}, {times:.2f} times the median residual norm, where a random vector changes "
            f"the target stream by {share:.0%} of its norm: {where} would drown that"
        )
    if times > 2:
        terminal.warn(
            f"R is {times:.1f} times the residual norm: vectors of that size drown what the model was thinking; "
            "leave `ratio` out, or give a `scale` near the residual norm"
        )
    return found


def _curve(
    curve: list[tuple[float, float]], ratio: float, norm: float, chosen: float | None, bars: bool = True
) -> "Table":
    """The curve in numbers, with bars where no plot stands beside them."""
    from rich.bar import Bar
    from rich.table import Table

    table = Table(title="non-linearity ratio by scale", title_justify="left", box=None, pad_edge=False, min_width=32)
    for heading in ("scale", "× residual", "ratio"):
        table.add_column(heading, justify="right")
    if bars:
        table.add_column("")
    top = max([value for _, value in curve], default=1.0)
    for scale, value in curve:
        here = scale == chosen
        bar = Bar(top, 0, value, width=40, color="green" if here else "cyan" if value <= ratio else "blue")
        drawn = [bar] if bars else []
        numbers = (f"{scale:.4g}", f"{scale / norm:.2f}", f"{value:.4f}")
        table.add_row(*numbers, *drawn, style="bold green" if here else None)
    return table
