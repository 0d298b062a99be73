"""`dct calibrate`: the steering scale alone, with the curve that it was read from."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dct.aliases import DEMO
from dct.cli import options as o
from dct.cli.declare import option
from dct.cli.fit import calibrated
from dct.cli.terminal import Terminal, command, escape
from dct.cli.work import fit_prompts, load_model, note_repeated
from dct.plainjson import dumps

if TYPE_CHECKING:
    from rich.table import Table


@command
def calibrate(
    model: o.Model = DEMO,
    adapter: o.Adapter = None,
    source: o.Source = None,
    target: o.Target = None,
    ratio: o.Ratio = None,
    prompts: o.Prompts = None,
    prompt: o.Prompt = None,
    n: o.Count = 8,
    column: o.Column = None,
    system: o.System = None,
    reply_prefix: o.ReplyPrefix = None,
    escape_control: o.EscapeControl = None,
    positions: o.Positions = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    memory: o.Memory = None,
    batch: o.Batch = None,
    seed: o.Seed = 0,
    layers: o.Layers = "",
    revision: o.Revision = None,
    trust_remote_code: o.Trust = False,
    out: Annotated[Path | None, option(help="Also write the result to this JSON file.")] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Find the scale R at which the response to a steering vector is nonlinear enough, and show the whole curve."""
    terminal = Terminal(as_json, quiet)
    chosen = fit_prompts(model, prompts, column, prompt, n)
    note_repeated(terminal, chosen)

    def between(depth: int) -> tuple[int, int]:
        from dct.model import choose_layers

        return choose_layers(depth, model, source, target)

    lm = load_model(
        terminal,
        model,
        between=between,
        adapter=adapter,
        dtype=dtype,
        device=device,
        memory=memory,
        layers=layers,
        revision=revision,
        trust_remote_code=trust_remote_code,
        reply_prefix=reply_prefix,
        escape_control=escape_control,
    )
    from dct.calibration import DEFAULT_LAMBDA, nonlinearity
    from dct.errors import CalibrationError
    from dct.factors import write_whole
    from dct.slice import Slice

    first, last = between(lm.depth)
    with terminal.busy("running the prompts"):
        slice_ = Slice(lm, chosen.texts, first, last, o.parse_positions(positions), system)
    try:
        found = calibrated(terminal, slice_, ratio, seed, batch)
    except CalibrationError as error:
        terminal.show(_curve(error.curve, ratio or DEFAULT_LAMBDA, slice_.residual_norm, None))
        raise
    with terminal.busy("measuring the curve"):
        grid = [found.scale * 2.0**k for k in range(-4, 4) if k]
        curve = sorted({*found.curve, *nonlinearity(slice_, slice_.dim, grid, seed=seed, batch=batch)})
    content = {
        "scale": found.scale,
        "ratio": found.ratio,
        "lambda": found.target,
        "limited": found.limited,
        "residual_norm": slice_.residual_norm,
        "source": first,
        "target": last,
        "curve": curve,
    }
    if out is not None:
        write_whole(out, (dumps(content, indent=1) + "\n").encode())
    terminal.show(_curve(curve, found.target, slice_.residual_norm, found.scale))
    which = "" if model == DEMO else f" --model {shlex.quote(model)}"
    terminal.summary(
        f"scale R = {found.scale:.4g} for layers {first} → {last}",
        [
            ("ratio", f"{found.ratio:.4g} (λ = {found.target:g})"),
            ("residual", f"R is {found.scale / slice_.residual_norm:.2f} × the median norm {slice_.residual_norm:.4g}"),
            ("next", f"[bold cyan]dct fit{escape(which)} --s {first} --t {last} --scale {found.scale:.4g}[/bold cyan]"),
        ],
    )
    terminal.result(content)


def _curve(curve: list[tuple[float, float]], ratio: float, norm: float, chosen: float | None) -> "Table":
    from rich.bar import Bar
    from rich.table import Table

    table = Table(title="non-linearity ratio by scale", title_justify="left", box=None, pad_edge=False)
    for heading in ("scale", "× residual", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("")
    top = max([value for _, value in curve], default=1.0)
    for scale, value in curve:
        here = scale == chosen
        bar = Bar(top, 0, value, width=40, color="green" if here else "cyan" if value <= ratio else "blue")
        table.add_row(f"{scale:.4g}", f"{scale / norm:.2f}", f"{value:.4f}", bar, style="bold green" if here else None)
    return table
