"""What a fit's time is made of: that it grows linearly, and what each derivative costs against its operation count.

    python benchmarks/costs.py            # the `cpu` workload of speed.py
    python benchmarks/costs.py --demo     # the demo model, layers 4 to 8

Counts are in forward passes of one vector through the slice: a value is 1, a value and gradient 2 (the weights get
none). At 0 the rows of a batch share the value, so J v in forward mode is 1, J' u 1, T2(., v, v) 3 (two first
derivatives, one second), T2(u, v, .) 3 (J v, and the way back through value and derivative), each beside one pass for
the batch. So an exponential iteration is 2 a factor, a quadratic one 6, a calibration 30 for J and 30 a point of the
curve. Seconds are CPU seconds of this process, the least of several rounds that take turns: other work on the machine
disturbs them least.
"""

import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from speed import POSITIONS, WORKLOADS, NoTokenizer, random_model

import dct
from dct.calibration import calibrate, random_directions
from dct.derivatives import Derivatives


def least(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of each task, the least over rounds in which all take turns; one round before them is not counted."""
    best = dict.fromkeys(tasks, float("inf"))
    for k in range(rounds + 1):
        for name, task in tasks.items():
            began = time.process_time()
            task()
            if k:
                best[name] = min(best[name], time.process_time() - began)
    return best


def main(
    demo: Annotated[bool, typer.Option("--demo", help="The demo model instead of the `cpu` workload.")] = False,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Print the tables of docs/performance.md."""
    console = Console()
    if demo:
        from dct.cli.asked import fit_prompts
        from dct.settings import FitPromptSettings

        lm, source, target = dct.load("demo"), 4, 8
        prompts: list = lm.encode(fit_prompts("demo", FitPromptSettings()).texts)
    else:
        w = WORKLOADS["cpu"]
        lm, source, target = dct.LanguageModel(random_model(w, "cpu", torch.float32), NoTokenizer(), "random"), 2, 8
        prompts = w.ids
    slice_ = dct.Slice(lm, prompts, source, target, POSITIONS)
    full = dct.Slice(lm, prompts, source, target, POSITIONS, narrow=False)
    R = slice_.residual_norm

    def gradient(f: dct.Slice, rows: int) -> Callable[[], object]:
        d = Derivatives(f, f.dim)
        v = random_directions(rows, f.dim, 0)
        return lambda: d.value_and_gradient(R * v, v)

    table = Table(title="value and gradient: cost by vectors, prompts and tokens")
    for heading in ("vectors", "prompts", "tokens in the slice", "CPU seconds", "per vector and token"):
        table.add_column(heading, justify="right")
    some = {n: dct.Slice(lm, prompts[:n], source, target, POSITIONS) for n in (1, 2, 4)} | {8: slice_}
    long = dct.Slice(lm, [p + p[1:] for p in prompts], source, target, POSITIONS)
    cases = [(8, slice_), (16, slice_), (32, slice_), (16, some[1]), (16, some[2]), (16, some[4]), (16, long)]
    took = least({str(k): gradient(f, rows) for k, (rows, f) in enumerate(cases)}, rounds)
    for k, (rows, f) in enumerate(cases):
        seconds = took[str(k)]
        table.add_row(
            str(rows), str(len(f.ids)), str(f.tokens), f"{seconds:.2f}", f"{seconds / rows / f.tokens * 1e6:.0f} µs"
        )
    console.print(table)

    d = Derivatives(slice_, slice_.dim)
    v, u = (random_directions(24, slice_.dim, seed) for seed in (1, 2))
    everything = Derivatives(full, full.dim)
    tasks = {
        "value": (1, lambda: d.value(R * v)),
        "value and gradient": (2, lambda: d.value_and_gradient(R * v, u)),
        "the same, last block at every token": (2, lambda: everything.value_and_gradient(R * v, u)),
        "J v": (1, lambda: d.jvp(v)),
        "J' u": (1, lambda: d.vjp(u)),
        "T2(., v, v)": (3, lambda: d.second(v)),
        "T2(u, v, .)": (3, lambda: d.second_transposed(u, v)),
    }
    took = least({name: task for name, (_, task) in tasks.items()}, rounds)
    table = Table(title="24 vectors by every kind of pass")
    for heading in ("pass", "count", "CPU seconds", "of a value and gradient", "by count"):
        table.add_column(heading, justify="right")
    unit = took["value and gradient"]
    for name, (count, _) in tasks.items():
        table.add_row(name, str(count), f"{took[name]:.2f}", f"{took[name] / unit:.2f}", f"{count / 2:.2f}")
    console.print(table)

    rows = 0

    def calibrated(limit: float | None) -> Callable[[], object]:
        def run() -> None:
            nonlocal rows
            rows = 0

            def count(n: int) -> None:
                nonlocal rows
                rows += n

            # A ratio that is within reach of a model of any kind, so that the search is seen to end.
            calibrate(slice_, slice_.dim, 0.1, limit=limit, on_rows=count)

        return run

    iteration = gradient(slice_, 64)
    took = least({"search": calibrated(None), "iteration": iteration}, 1)
    console.print(
        f"calibrate to a ratio of 0.1: {rows} rows, {took['search']:.2f} CPU s; an iteration of 64 factors "
        f"{took['iteration']:.2f} s: {took['search'] / took['iteration']:.1f} iterations of 64, "
        f"{took['search'] / took['iteration'] / 8:.2f} of 512"
    )


if __name__ == "__main__":
    typer.run(main)
