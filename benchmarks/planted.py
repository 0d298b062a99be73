"""Recovery of planted exponential networks: the tables of docs/experiments.md.

    python benchmarks/planted.py            # the post's synthetic test: width 4096, 32 true factors, 512 learned
    python benchmarks/planted.py --soft     # more factors than dimensions: width 256, 512 true, 1,024 learned

The network is f(x) = sum_l (exp <v_l, x> - 1) u_l with all rows uniform on the sphere. A true factor is recovered when
some learned input direction has a (signed) cosine above 0.99 with it.
"""

import time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize

import dct


def planted(width: int, factors: int, seed: int) -> tuple[object, torch.Tensor]:
    """A planted network and its input directions."""
    g = torch.Generator().manual_seed(seed)
    V = normalize(torch.randn(factors, width, generator=g), dim=1)
    U = normalize(torch.randn(factors, width, generator=g), dim=1)
    return lambda x: torch.expm1(x @ V.T) @ U, V


def main(
    soft: Annotated[bool, typer.Option("--soft", help="The over-complete case instead of the post's.")] = False,
    networks: Annotated[int, typer.Option(help="Planted networks to average over.")] = 3,
) -> None:
    """Print recovery by scale and iterations, the mean over several planted networks (least in brackets)."""
    console = Console()
    if soft:
        width, true, learned = 256, 512, 1024
        rows = [(how, R, 20) for how in ("soft", "none") for R in (6.0, 8.0, 10.0, 12.0)]
        start = "random"
    else:
        width, true, learned = 4096, 32, 512
        rows = [(how, R, n) for how in ("qr", "soft") for R in (2.0, 4.0, 6.0, 8.0, 10.0) for n in (10, 30)]
        start = "projected"
    table = Table(title=f"width {width}, {true} true factors, {learned} learned, {start} start, {networks} networks")
    for heading in ("orthogonalize", "scale", "iterations", "mean max cosine", "recovery > 0.99", "seconds"):
        table.add_column(heading, justify="right")
    for how, scale, iterations in rows:
        cosines, recovered = [], []
        began = time.perf_counter()
        for seed in range(networks):
            f, V = planted(width, true, seed)
            found = dct.fit(
                f, width, factors=learned, scale=scale, iterations=iterations, orthogonalize=how, start=start, seed=seed
            )
            best = (V @ found.V.T).max(dim=1).values
            cosines.append(float(best.mean()))
            recovered.append(float((best > 0.99).float().mean()))
        seconds = (time.perf_counter() - began) / networks
        mean = [f"{sum(x) / networks:.4f} ({min(x):.4f})" for x in (cosines, recovered)]
        table.add_row(how, f"{scale:g}", str(iterations), *mean, f"{seconds:.1f}")
        console.print(f"[dim]{how} {scale:g} {iterations}: {mean[1]}[/dim]")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
