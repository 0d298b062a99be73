"""Directions of runs beside the features of an SAE, as `dct compare --sae` shows them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dct.cli.terminal import Terminal, escape, titled

if TYPE_CHECKING:
    from dct.comparing import Opened
    from dct.sae import Nearest, Sae

SHOWN = 10
"""Vectors whose nearest features are shown."""


def run_sae(terminal: Terminal, opened: Sequence["Opened"], where: Path, seed: int) -> dict[str, Any]:
    """Finds the features that are nearest to V and U of every run, and to as many random directions."""
    import torch

    from dct.matching import strangers
    from dct.sae import Sae, nearest

    sae = Sae.open(where)
    _warn(terminal, opened, sae)
    sides = [
        (one.name, side, rows)
        for one in opened
        for side, rows in (("V", one.factors.V), ("U", one.factors.U))
        if rows.shape[1] == sae.width or side == "V"
    ]
    most = max(len(rows) for _, _, rows in sides)
    sides.append(("random", "", strangers(most, sides[0][2].shape[1], seed)))
    with terminal.busy("reading the SAE"):
        all_found = nearest(sae, torch.cat([rows for _, _, rows in sides]))
    found, start = [], 0
    for name, side, rows in sides:
        found.append((name, side, all_found.part(start, start + len(rows))))
        start += len(rows)
    limit = max(found[-1][2].best)
    _show(terminal, sae, found, limit)
    return {
        "file": str(sae.path),
        "features": sae.features,
        "hook": sae.hook or None,
        "layer": sae.layer,
        "limit": limit,
        "sides": [
            {
                "run": name if side else None,
                "side": side or "random",
                "histogram": near.histogram,
                "features": near.features,
                "cosines": near.cosines,
            }
            for name, side, near in found
        ],
        "meaning": _meaning(found, limit),
    }


def _warn(terminal: Terminal, opened: Sequence["Opened"], sae: "Sae") -> None:
    """Says where the SAE is of another place than the vectors."""
    if sae.layer is None:
        terminal.warn(
            f"nothing says at which residual stream this SAE was trained ({sae.hook or 'no hook in cfg.json'}): "
            "cosines mean something only at its own"
        )
        return
    for one in opened:
        source, target = one.factors.info.get("source"), one.factors.info.get("target")
        if sae.layer not in (source, target):
            terminal.warn(
                f"the SAE is of layer {sae.layer} ({sae.hook}), {one.name} of {source} (V) and {target} (U): take the "
                "SAE of one of these layers"
            )


def _meaning(found: list[tuple[str, str, "Nearest"]], limit: float) -> str:
    """What it comes to, in words."""
    parts = []
    for side in ("V", "U"):
        best = [cosine for _, kind, near in found if kind == side for cosine in near.best]
        if best:
            above = sum(cosine > limit for cosine in best)
            parts.append(f"{above} of {len(best)} rows of {side}")
    return f"{' and '.join(parts)} are nearer to a feature than any of the random directions (|cos| {limit:.2f})"


def _show(terminal: Terminal, sae: "Sae", found: list[tuple[str, str, "Nearest"]], limit: float) -> None:
    from dct.cli.terminal import sparkline

    table = titled(escape(f"largest |cos| with {sae.features} features of {sae.path.name}"))
    for heading in ("directions", "median", "largest", "above random", "from 0 to 1"):
        table.add_column(heading, justify="left" if heading in ("directions", "from 0 to 1") else "right")
    for name, side, near in found:
        best = sorted(near.best)
        above = f"{sum(cosine > limit for cosine in best)}/{len(best)}" if side else ""
        cells = (f"{best[len(best) // 2]:.2f}", f"{best[-1]:.2f}", above, sparkline(near.histogram))
        table.add_row(escape(f"{side} of {name}" if side else name), *cells, style="" if side else "dim")
    terminal.show(table)
    rows = sorted(
        ((near.best[k], f"{side} {k} of {name}", near.features[k][0], near.cosines[k][0])
         for name, side, near in found[:-1] for k in range(len(near.best))),
        reverse=True,
    )  # fmt: skip
    nearest = titled("nearest features")
    for heading in ("direction", "feature", "cos"):
        nearest.add_column(heading, justify="left" if heading == "direction" else "right")
    for cosine, what, feature, signed in rows[:SHOWN]:
        nearest.add_row(escape(what), str(feature), f"{signed:+.2f}", style="" if cosine > limit else "dim")
    terminal.show(nearest)
