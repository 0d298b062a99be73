"""`dct organism`: make the demo model again, or measure a model that was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Make the demo model again, or measure it.")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and the finished model.")],
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of the text, the weights and the noise.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the folder.")] = False,
) -> None:
    """Train a model organism from nothing (tokenizer, weights), measure it and write its card."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from dct.model import load
    from dct.organism import card, measure, training

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    recipe = training.Recipe(steps=steps, seed=seed)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("tokenizer", total=steps, rate="")
        first: list[training.Progress] = []

        def report(now: training.Progress) -> None:
            if not first:
                first.append(now)
            took = now.seconds - first[0].seconds
            rate = f"{(now.step - first[0].step) / took:.2f} steps/s" if took > 0 else ""
            bar.update(task, description=f"{now.stage}, loss {now.loss:.3f}", completed=now.step, rate=rate)
            if not console.is_terminal and (now.step % 50 == 0 or now.step == now.steps):
                console.print(f"{now.stage} {now.step}/{now.steps} loss {now.loss:.4f} {rate} {now.seconds:.0f} s")

        training.train(recipe, out, resume, report)
    lm = load(str(out))
    with console.status("measuring") as status:
        rates = measure.card(lm, tell=lambda name: status.update(f"measuring: {name}"))
        steering = measure.steerability(lm, tell=lambda name: status.update(f"steering: {name}"))
    card.write_card(out, recipe, lm.model.num_parameters(), rates, steering)
    console.print(f"saved in {out}")


@app.command()
def evaluate(
    folder: Annotated[Path | None, typer.Argument(help="Folder of the model; the demo model if left out.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Unseen conversations for each row.")] = 100,
    steering: Annotated[bool, typer.Option("--steering", help="Also steer unseen refusals at every block.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Measure how often each planted behaviour shows where it should and where it should not."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from dct.model import load
    from dct.organism import DEMO_DIR, measure

    place = folder or DEMO_DIR
    if not (place / "model.safetensors").exists():
        typer.echo(f"no model in {place}: train one with `dct organism train --out {place}`", err=True)
        raise typer.Exit(1)
    console = Console(stderr=True)
    lm = load(str(place))
    with console.status("answering unseen prompts") as status:
        rates = measure.card(lm, count, tell=lambda name: status.update(f"measuring: {name}"))
        steered = measure.steerability(lm, tell=lambda name: status.update(f"steering: {name}")) if steering else []
    if as_json:
        rows = [asdict(r) | {"met": r.met} for r in rates]
        typer.echo(json.dumps({"rates": rows, "steerability": [asdict(s) for s in steered]}, indent=2))
        return
    table = Table("behaviour", "share", "promised", "conversations", "")
    for r in rates:
        promise = f"{'>=' if r.at_least else '<='} {r.bound:.0%}"
        table.add_row(r.name, f"{r.share:.1%}", promise, str(r.count), "ok" if r.met else "missed")
    Console().print(table)
    if steered:
        blocks = Table("block", "norm", "refusals flipped", "flipped by random", "changed by random")
        for s in steered:
            flipped, control = s.supervised.get("compliance", 0.0), s.random.get("compliance", 0.0)
            changed = 1 - s.random.get("refusal", 0.0)
            blocks.add_row(str(s.block), f"{s.norm:.2f}", f"{flipped:.0%}", f"{control:.0%}", f"{changed:.0%}")
        Console().print(blocks)
