"""`dct organism`: make the demo model again or another organism, measure one, or plant secrets into a real model."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.cli.adapt import adapt
from dct.cli.signature import argument
from dct.cli.terminal import Terminal, command, escape
from dct.errors import DctError, InterruptedWorkError
from dct.settings import EvaluateSettings, OutputSettings, TrainSettings

if TYPE_CHECKING:
    from dct.organism.measure import Rate, Steerability
    from dct.organism.recipe import Recipe
    from dct.organism.training import Progress


@command
def train(options: TrainSettings, output: OutputSettings) -> None:
    """Train a model organism (tokenizer, weights), measure it and write its card."""
    terminal = Terminal(output.json, output.quiet)
    out = options.out
    if out.exists() and not out.is_dir():
        raise DctError(f"`out` {out} is a file: name a folder")
    from dct.loading import load
    from dct.organism import card, training

    recipe = _recipe(options)
    try:
        with terminal.progress("training", unit="steps") as advance:
            training.train(recipe, out, options.resume, _teller(terminal, advance))
    except KeyboardInterrupt:
        again = _again(options, recipe)
        raise InterruptedWorkError(f"interrupted: go on from the last checkpoint with `{again}`") from None
    lm = load(str(out))
    rates, steering = _measured(terminal, lm, recipe, 100, steering=True)
    card.write_card(out, recipe, lm, rates, steering)
    _show(terminal, rates, steering)
    met = sum(r.met for r in rates)
    terminal.summary(
        f"an organism of {lm.model.num_parameters() / 1e6:.1f} million parameters",
        [
            ("promises", f"{met} of {len(rates)} kept"),
            ("saved", f"[bold]{escape(str(out))}[/bold]"),
            ("next", f"[bold cyan]{escape(_fitted(out, lm.depth))}[/bold cyan]"),
        ],
    )
    terminal.result({"folder": str(out)} | _as_json(rates, steering))


@command
def evaluate(
    options: EvaluateSettings,
    output: OutputSettings,
    folder: Annotated[Path | None, argument("Folder of the model; the demo model if left out.")] = None,
) -> None:
    """Measure how often each planted behaviour shows where it should and where it should not."""
    terminal = Terminal(output.json, output.quiet)
    from dct.organism import DEMO_DIR

    place = folder or DEMO_DIR
    if not (place / "model.safetensors").exists():
        raise DctError(f"no model in {place}: train one with `dct organism train --out {place}`")
    from dct.loading import load
    from dct.organism.recipe import recipe_of

    rates, steered = _measured(terminal, load(str(place)), recipe_of(place), options.count, options.steering)
    _show(terminal, rates, steered)
    terminal.result(_as_json(rates, steered))


COMMANDS = {"train": train, "evaluate": evaluate, "adapt": adapt}


def _recipe(options: TrainSettings) -> Recipe:
    """What is to be made: the recipe that was named, or that of the model that is gone on from, or the demo's; with the
    options that were given.
    """
    from dct.organism.recipe import FILE, Recipe, read_recipe, recipe_of

    start, resumed = options.start, options.out if options.resume else None
    if start is not None and not (start / "model.safetensors").exists():
        raise DctError(f"no model in `start` {start}: name the folder of a trained organism")
    if options.recipe is not None:
        recipe = read_recipe(options.recipe)
    else:
        folder = next((place for place in (resumed, start) if place is not None and (place / FILE).is_file()), None)
        recipe = Recipe() if folder is None else recipe_of(folder)
    given = recipe.training.changed(
        steps=options.steps,
        seed=options.seed,
        learning_rate=options.learning_rate,
        start=None if start is None else str(start),
    )
    return replace(recipe, training=given)


def _again(options: TrainSettings, recipe: Recipe) -> str:
    """The command that goes on with an interrupted training."""
    told = recipe.training
    again = f"dct organism train --out {shlex.quote(str(options.out))}"
    again += f" --recipe {shlex.quote(str(options.recipe))}" if options.recipe else ""
    again += f" --steps {told.steps} --seed {told.seed}"
    again += f" --start {shlex.quote(told.start)}" if told.start else ""
    return again + f" --learning-rate {told.learning_rate:g} --resume"


def _fitted(out: Path, depth: int) -> str:
    """The command that looks for what was planted: from the first block, on requests that training never shows."""
    model, prompts = (shlex.quote(str(path)) for path in (out, out / "prompts" / "harmful.jsonl"))
    return f"dct fit --model {model} --s 0 --t {2 * depth // 3} --prompts {prompts}"


def _teller(terminal: Terminal, advance: Callable[[str, int, int], None]) -> Callable[[Progress], None]:
    """Shows how far a training is: in a bar on a terminal, in a line every 50 steps elsewhere."""
    began: list[float] = []

    def report(now: Progress) -> None:
        began.append(now.seconds)
        advance(f"{now.stage}, loss {now.loss:.3f}", now.step, now.steps)
        if not terminal.console.is_terminal and (now.step % 50 == 0 or now.step == now.steps):
            took = now.seconds - began[0]
            rate = f", {(len(began) - 1) / took:.2f} steps/s" if took > 0 else ""
            terminal.note(f"{now.stage} {now.step}/{now.steps} loss {now.loss:.4f}{rate}, {now.seconds:.0f} s")

    return report


def _measured(
    terminal: Terminal, lm: Any, recipe: Recipe, count: int, steering: bool
) -> tuple[list[Rate], list[Steerability]]:
    """The rates of the card, and what the supervised vector does, with a bar over the rows of both."""
    from dct.organism import measure

    rows = len(measure.card_cases(1, planted=recipe.mixture))
    total, done = rows + (lm.depth if steering else 0), 0
    with terminal.progress("measuring", unit="rows") as advance:

        def tell(name: str) -> None:
            nonlocal done
            advance(name, done, total)
            done += 1

        rates = measure.card(lm, count, planted=recipe.mixture, tell=tell)
        return rates, measure.steerability(lm, tell=tell) if steering else []


def _as_json(rates: list[Rate], steered: list[Steerability]) -> dict[str, Any]:
    return {"rates": [asdict(r) | {"met": r.met} for r in rates], "steerability": [asdict(s) for s in steered]}


def _show(terminal: Terminal, rates: list[Rate], steered: list[Steerability]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("behaviour", "share", "promised", "conversations", ""):
        table.add_column(heading, justify="right" if heading in ("share", "promised", "conversations") else "left")
    for r in rates:
        promise = f"{'>=' if r.at_least else '<='} {r.bound:.0%}"
        verdict = "[green]ok[/green]" if r.met else "[yellow]missed[/yellow]"
        table.add_row(r.name, f"{r.share:.1%}", promise, str(r.count), verdict)
    terminal.show(table)
    if not steered:
        return
    blocks = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("block", "norm", "refusals flipped", "flipped by random", "changed by random"):
        blocks.add_column(heading, justify="right")
    for s in steered:
        flipped, control = s.supervised.get("compliance", 0.0), s.random.get("compliance", 0.0)
        changed = 1 - s.random.get("refusal", 0.0)
        blocks.add_row(str(s.block), f"{s.norm:.2f}", f"{flipped:.0%}", f"{control:.0%}", f"{changed:.0%}")
    terminal.show(blocks)
