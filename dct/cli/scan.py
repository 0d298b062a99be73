"""`dct scan`: what every source layer does to every target layer, and which two to fit between."""

import shlex
import time
from typing import Any

from dct.aliases import DEMO
from dct.cli.asked import fit_prompts, note_repeated
from dct.cli.terminal import Terminal, command, escape, human_seconds
from dct.cli.work import load_model
from dct.recipe import Recipe
from dct.settings import (
    CalibrationSettings,
    FitPromptSettings,
    FitSliceSettings,
    ModelSettings,
    ScanOutputSettings,
    ScanSettings,
    ScanSliceSettings,
    WorkSettings,
)


@command
def scan(
    model: ModelSettings,
    slice_: ScanSliceSettings,
    prompts: FitPromptSettings,
    options: ScanSettings,
    work: WorkSettings,
    output: ScanOutputSettings,
) -> None:
    """Measure what every source layer does to every target layer, and propose the two to fit between."""
    terminal = Terminal(output.json, output.quiet)
    chosen = fit_prompts(model.model, prompts)
    note_repeated(terminal, chosen)
    loading = Recipe(model, FitSliceSettings(), prompts).loading()
    lm = load_model(terminal, model.model, between=lambda depth: (0, depth), **loading)
    from dct.atlas import Ladder
    from dct.scanning import passes
    from dct.scanning import scan as scanned
    from dct.slice import Slice
    from dct.writing import write_whole

    began = time.monotonic()
    with terminal.busy("running the prompts"):
        ladder = Ladder(Slice(lm, chosen.texts, 0, lm.depth, slice_.positions, prompts.system, narrow=False))
        first = time.monotonic() - began
    count = passes(lm.depth, options, lm.width)
    tokens = ladder.slice.tokens
    terminal.note(f"{count} vectors of {tokens} tokens each through up to {lm.depth} blocks; prompts: {first:.2g} s")
    with terminal.progress("scanning layers", "layers") as advance:
        content = scanned(ladder, options, output.out, advance)
    pair = (content["proposal"]["source"], content["proposal"]["target"])
    if options.calibrate:
        content["calibration"] = _calibrated(terminal, Slice, (lm, chosen.texts, *pair), slice_, prompts, options)
        from dct.plainjson import dumps

        write_whole(output.out, (dumps(content, indent=1) + "\n").encode())
    if output.plot is not None:
        from dct.plots.heatmap import svg

        title = f"non-linearity ratio at {options.share:g} of the residual norm"
        write_whole(output.plot, svg(content["nonlinear"], 1.0, pair, title).encode())
    _show(terminal, content, pair, model.model, output, time.monotonic() - began)
    terminal.result(content)


def _calibrated(
    terminal: Terminal,
    make: Any,
    what: tuple[Any, ...],
    slice_: ScanSliceSettings,
    prompts: FitPromptSettings,
    options: ScanSettings,
) -> dict[str, float]:
    """The scale that a fit of the proposed pair would calibrate."""
    from dct.cli.calibrate import calibrated

    map_ = make(*what, slice_.positions, prompts.system)
    found = calibrated(terminal, map_, CalibrationSettings(seed=options.seed, batch=options.batch))
    norm = map_.residual_norm
    return {"scale": found.scale, "ratio": found.ratio, "residual_norm": norm, "of_residual": found.scale / norm}


def _show(
    terminal: Terminal,
    content: dict[str, Any],
    pair: tuple[int, int],
    model: str,
    output: ScanOutputSettings,
    seconds: float,
) -> None:
    from dct.plots.heatmap import lines

    for title, name, top in (
        ("written by the blocks, of what they carry on (full: 2 times)", "written", 2.0),
        (f"non-linearity ratio at {content['share']:g} of the residual norm (full: 1)", "nonlinear", 1.0),
    ):
        terminal.show(f"\n[bold]{title}[/bold]; target up, source across")
        for line in lines(content[name], top, pair):
            terminal.show(escape(line))
    which = "" if model == DEMO else f" --model {shlex.quote(model)}"
    found = content["proposal"]
    rows = [("because" if k == 0 else "", escape(reason)) for k, reason in enumerate(found["reasons"])]
    if "calibration" in content:
        scale = content["calibration"]
        rows.append(("scale", f"R = {scale['scale']:.4g}, {scale['of_residual']:.2f} × the residual norm"))
    rows.append(("kept", f"{escape(str(output.out))}, {human_seconds(seconds)}"))
    follow = f"dct fit{which} --layers-from {shlex.quote(str(output.out))}"
    rows.append(("next", f"[bold cyan]{escape(follow)}[/bold cyan]"))
    word = "proposed" if found["sure"] else "proposed, for want of a better pair"
    terminal.summary(f"{word}: --s {pair[0]} --t {pair[1]}", rows)
