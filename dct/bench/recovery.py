"""How many planted factors a fit recovers: cells of kind, width, true and learned factors, each measured once."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dct.bench.planted import Blind, Planted, strongest
from dct.bench.records import Records, key_of
from dct.bench.tables import Report
from dct.calibration import random_directions
from dct.errors import CalibrationError
from dct.fitting import fit, found_scale
from dct.settings import FitSettings, PlantedSettings

CLOSE, CLOSER = 0.9, 0.99
"""Cosines above which a factor is recovered; the frontier goes by the first."""

ENOUGH = 0.9
"""Share of the true factors that is recovered up to the frontier."""

BLINDED = 0.9
"""Share of the output space that all rounds together look away from, at most."""


@dataclass(frozen=True)
class Cell:
    """One fit of one map.

    Attributes:
        kind, width, true: of the map, `true` a multiple of the width.
        learned: factors to learn, as a multiple of the true ones.
        seed: of the map and of the fit.
    """

    kind: str
    width: int
    true: float
    learned: float
    seed: int

    @property
    def planted(self) -> int:
        """Factors of the map."""
        return max(1, round(self.true * self.width))

    @property
    def wanted(self) -> int:
        """Factors of the fit."""
        return max(1, round(self.learned * self.planted))

    @property
    def cost(self) -> float:
        """Multiplications of an iteration, about: passes through the map, and the factors against each other."""
        m, n = self.wanted, self.planted
        return 6.0 * m * n * self.width + 8.0 * m * m * self.width + 10.0 * min(m, 1024) ** 3

    def __str__(self) -> str:
        return f"{self.kind}, width {self.width}, {self.planted} true, {self.wanted} learned"


def plan(asked: PlantedSettings) -> list[Cell]:
    """What there is to measure, the cheapest first; without what orthogonal factors and qr have no room for."""
    cells = [
        Cell(kind, width, true, learned, asked.seed + k)
        for width in asked.widths
        for kind in asked.maps
        for true in asked.true
        for learned in asked.learned
        for k in range(asked.networks)
    ]
    kept = (cell for cell in cells if cell.kind != "orthogonal" or cell.planted <= cell.width)
    return sorted(
        (cell for cell in kept if asked.orthogonalize != "qr" or cell.wanted <= cell.width), key=lambda c: c.cost
    )


def measure(cell: Cell, asked: PlantedSettings, device: torch.device) -> dict[str, Any]:
    """Makes the map, fits it, and counts what was found; JSON types.

    Raises:
        DctError: as in `fit`.
    """
    f = Planted(cell.kind, cell.width, cell.planted, cell.seed, device)
    settings = FitSettings(
        factors=cell.wanted,
        iterations=asked.iterations,
        scale=asked.scale or f.scale,
        start=asked.start,
        orthogonalize=asked.orthogonalize,
        seed=cell.seed,
    )
    scale = settings.scale
    if scale is None:
        try:
            scale = found_scale(f, cell.width, settings)
        except CalibrationError as error:
            raise CalibrationError(f"{cell}: {error}", error.curve) from None
    V, info = _learned(f, settings.changed(scale=scale), asked.rounds)
    targets = f.targets(scale)
    chance = random_directions(len(V), cell.width, cell.seed + 9).to(V.device)
    truth, truest = _closest(targets, V)
    return {
        "mean": float(truth.mean()),
        "close": float((truth > CLOSE).float().mean()),
        "closer": float((truth > CLOSER).float().mean()),
        "of learned": float((truest > CLOSE).float().mean()),
        "chance": float(_closest(targets, chance)[0].mean()),
        "scale": scale,
        "settled": info["settled"],
        "device": device.type,
    }


def _learned(f: Planted, settings: FitSettings, rounds: int) -> tuple[Tensor, dict[str, Any]]:
    """Learned directions, unit rows, of so many fits that share the factors between them.

    Each round after the first sees f without the outputs of the strongest factors of those before it.
    """
    every, seen = int(settings.factors or 1), f.U.new_zeros(0, f.width)
    found: list[Tensor] = []
    info: dict[str, Any] = {}
    for k in range(rounds):
        mine = every * (k + 1) // rounds - every * k // rounds
        if mine == 0:
            continue
        here = settings.changed(factors=mine, seed=settings.seed + 1000 * k)
        look = Blind(f, seen) if len(seen) else f
        factors = fit(look, f.width, here, device=f.device)
        V = factors.V.to(f.device)
        found.append(V)
        info = factors.info
        if k + 1 < rounds:
            with torch.no_grad():
                outputs = torch.cat([look(float(here.scale or 1) * part) for part in V.split(f.batch)])
            seen = strongest(outputs, seen, int(BLINDED * f.width / rounds))
    return torch.cat(found), info


def _closest(targets: Iterable[Tensor], V: Tensor) -> tuple[Tensor, Tensor]:
    """Of each true factor the greatest cosine with a learned one, and of each learned one with a true factor."""
    truth = truest = V.new_full((), -1.0)
    for T in targets:
        cosines = T @ V.T
        truth = torch.maximum(truth, cosines.max(dim=1).values)
        truest = torch.maximum(truest, cosines.max(dim=0).values)
    return truth, truest


Tell = Callable[[Cell, int, int, float | None], None]
"""Called before a cell, and behind it with the seconds that it took: the cell, its number, of how many."""


def run(
    asked: PlantedSettings, records: Records, device: torch.device, tell: Tell = lambda *_: None
) -> tuple[list[tuple[Cell, dict[str, Any]]], int, int]:
    """Measures every cell that is not on record, until the time is up.

    Returns:
        the cells with what was found, how many of them are new, and how many are left.
    """
    began, cells = time.monotonic(), plan(asked)
    results: list[tuple[Cell, dict[str, Any]]] = []
    fresh = left = 0
    how = {name: getattr(asked, name) for name in ("iterations", "scale", "start", "orthogonalize", "rounds")}
    for number, cell in enumerate(cells, start=1):
        settings = {**asdict(cell), **how}
        record = records.load("planted", key_of(settings))
        if record is None and asked.seconds is not None and time.monotonic() - began > asked.seconds:
            left += 1
            continue
        if record is None:
            tell(cell, number, len(cells), None)
            start = time.monotonic()
            result = measure(cell, asked, device)
            seconds = time.monotonic() - start
            records.save("planted", key_of(settings), settings, result, seconds)
            fresh += 1
            record = {"result": result, "seconds": round(seconds, 3)}
            tell(cell, number, len(cells), seconds)
        results.append((cell, record["result"] | {"seconds": record["seconds"]}))
    return results, fresh, left


def rows_of(results: list[tuple[Cell, dict[str, Any]]], asked: PlantedSettings) -> list[dict[str, Any]]:
    """Means over networks, one row for each kind, width, number of true and of learned factors, in that order."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell, result in results:
        place = (asked.maps.index(cell.kind), cell.width, cell.true, cell.learned)
        found.setdefault(place, []).append(result)
    rows = []
    for (kind, width, true, learned), some in sorted(found.items()):
        cell = Cell(asked.maps[kind], width, true, learned, 0)

        def mean(name: str, some: list[dict[str, Any]] = some) -> float:
            return statistics.fmean(float(one[name]) for one in some)

        rows.append(
            {
                "map": cell.kind,
                "width": width,
                "true": cell.planted,
                "of width": true,
                "learned": cell.wanted,
                "of true": learned,
                "cosine": mean("mean"),
                "random": mean("chance"),
                "> 0.9": mean("close"),
                "> 0.99": mean("closer"),
                "hits": mean("of learned"),
                "R": mean("scale"),
                "settled": mean("settled"),
                "seconds": mean("seconds"),
                "networks": len(some),
            }
        )
    return rows


def frontier(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each map, width and number of learned factors the greatest multiple of the width up to which enough factors
    are recovered, at every number that was measured below it too; 0 where the first is already too many.

    Fits of fewer factors than there are cannot recover them all, and have no frontier.
    """
    found: dict[tuple[str, int, float], list[dict[str, Any]]] = {}
    for row in rows:
        if row["of true"] >= ENOUGH:
            found.setdefault((row["map"], row["width"], row["of true"]), []).append(row)
    return [
        {
            "map": kind,
            "width": width,
            "learned each": learned,
            "at > 0.9": _last(some, "> 0.9"),
            "at > 0.99": _last(some, "> 0.99"),
            "measured to": max(row["of width"] for row in some),
        }
        for (kind, width, learned), some in found.items()
    ]


def _last(rows: list[dict[str, Any]], name: str) -> float:
    reached = 0.0
    for row in sorted(rows, key=lambda row: row["of width"]):
        if row[name] < ENOUGH:
            break
        reached = row["of width"]
    return reached


def reports(results: list[tuple[Cell, dict[str, Any]]], asked: PlantedSettings) -> list[Report]:
    """The table of all cells, and that of the frontiers."""
    rows = rows_of(results, asked)
    notes = [
        "cosine: of each true factor with the closest learned one, the mean, signs count; random: with as many random "
        "directions instead",
        "> 0.9, > 0.99: share of the true factors whose cosine is; hits: share of the learned ones with one > 0.9",
    ]
    lines: dict[tuple[int, float], list[str]] = {}
    for row in frontier(rows):
        reached = row["at > 0.9"]
        more = " or more" if reached == row["measured to"] else ""
        lines.setdefault((row["width"], row["learned each"]), []).append(f"{row['map']} {reached:g}{more}")
    sentences = [
        f"width {width}, {learned:g} learned for a true one; {ENOUGH:.0%} are recovered up to so many times the width: "
        + ", ".join(words)
        for (width, learned), words in lines.items()
    ]
    limit = (
        f"the greatest multiple of the width up to which {ENOUGH:.0%} of the true factors are recovered, at either "
        "cosine; 0: none that was measured; learned each: factors learned for each true one"
    )
    hidden = ["of width", "of true", "settled", "seconds", "networks", *(["width"] if len(asked.widths) == 1 else [])]
    return [
        Report("recovery", "Recovery", rows, [], notes, hidden),
        Report("frontier", "Frontier", frontier(rows), sentences, [limit]),
    ]
