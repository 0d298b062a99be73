"""How far the factors of the demo depend on the type that the blocks compute in, and on what else they depend.

    python benchmarks/precision.py                            # layers 0 to 8, the tokens that open the reply
    python benchmarks/precision.py --s 4 --positions 3        # where three tokens are read

One float32 fit is compared with others of the same scale and start: packed and one by one (rounding alone), in
bfloat16, after one more iteration, and from another seed. Per fit: the mean squared canonical correlation of the
32 strongest factors of both, and of all; the median |cosine| of the factors that began alike; the share of the float32
factors that have one within 0.9 among the others.
"""

from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

import dct
from dct.calibration import calibrate
from dct.cli.asked import fit_prompts
from dct.settings import FitPromptSettings

FACTORS, STRONGEST, ITERATIONS = 64, 32, 10


def shared(a: Tensor, b: Tensor) -> float:
    """Mean squared canonical correlation of the spans of two sets of rows."""
    bases = [torch.linalg.qr(x.double().T).Q for x in (a, b)]
    return float(torch.linalg.svdvals(bases[0].T @ bases[1]).square().mean())


def strongest(found: dct.Factors) -> Tensor:
    return found.V[found.alpha.argsort(descending=True)[:STRONGEST]]


def main(
    s: Annotated[int, typer.Option("--s")] = 0,
    t: Annotated[int, typer.Option("--t")] = 8,
    positions: Annotated[int | None, typer.Option(help="Left out, what a fit reads.")] = None,
) -> None:
    """Print the tables of docs/performance.md."""
    texts = fit_prompts("demo", FitPromptSettings()).texts
    full, half = dct.load("demo", dtype="float32"), dct.load("demo", dtype="bfloat16")
    packed = dct.Slice(full, texts, s, t, positions)
    apart = dct.Slice(full, texts, s, t, positions, pack=False)
    rounded = dct.Slice(half, texts, s, t, positions)
    scale = calibrate(packed, packed.dim, limit=packed.residual_norm).scale

    def fit(f: dct.Slice, how: str, seed: int = 0, iterations: int = ITERATIONS) -> dct.Factors:
        options = {"factors": FACTORS, "scale": scale, "iterations": iterations, "orthogonalize": how, "seed": seed}
        return dct.fit(f, f.dim, **options)

    table = Table(title=f"beside a float32 fit of {FACTORS} factors, layers {s} to {t}", box=SIMPLE_HEAD)
    for heading in ("orthogonalize", "fit", f"{STRONGEST} strongest", "all", "nearest", "found"):
        table.add_column(heading, justify="right")
    for how in ("soft", "qr"):
        wanted = fit(packed, how)
        others = {
            "prompts one by one": fit(apart, how),
            "bfloat16": fit(rounded, how),
            f"{ITERATIONS + 1} iterations": fit(packed, how, iterations=ITERATIONS + 1),
            "another seed": fit(packed, how, seed=1),
        }
        for name, other in others.items():
            cosines = (wanted.V @ other.V.T).abs()
            table.add_row(
                how,
                name,
                f"{shared(strongest(wanted), strongest(other)):.4f}",
                f"{shared(wanted.V, other.V):.4f}",
                f"{float(cosines.amax(1).median()):.4f}",
                f"{float((cosines.amax(1) > 0.9).float().mean()):.0%}",
            )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
