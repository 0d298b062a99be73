"""What came of the fits of a sweep, as plain data: a row for each, what differs between seeds, and the best."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from dct.errors import DctError
from dct.factors import Factors
from dct.matching import matched
from dct.sweep.cell import Cell
from dct.sweep.grid import AXES, axes_of

MOST_SEEDS = 8
"""Of a fit, that are compared with each other."""

Row = Mapping[str, Any]


# --- one fit ----------------------------------------------------------------------------------------------------------


def found_in(
    cell: Cell, factors: Factors, ranking: Mapping[str, Any] | None, told: Mapping[str, Any]
) -> dict[str, Any]:
    """What is kept of a cell that is done.

    Args:
        ranking: what `rank.json` holds; None where it was not ranked.
        told: seconds and warnings.
    """
    info = factors.info
    found: dict[str, Any] = {
        "factors": len(factors),
        "R": factors.scale,
        "of_residual": factors.scale / info["residual_norm"] if info.get("residual_norm") else None,
        "prompts": len(cell.texts),
        "settled": info.get("settled"),
        "exploded": info.get("exploded"),
        **told,
    }
    if ranking is None:
        return found
    return found | (_judged(ranking) if ranking.get("by") == "judged" else _scored(ranking)) | _kinds(ranking)


def _judged(ranking: Mapping[str, Any]) -> dict[str, Any]:
    """Of an experiment with replies."""
    arms = {
        arm["arm"]: {key: arm[key] for key in ("vector", "validation", "test", "interval", "chance", "damage")}
        | {"multiple": arm["scale"] / ranking["scale"]}
        for arm in ranking["arms"]
    }
    return {"by": "judged", "arms": arms, "unsteered": ranking["unsteered"], "wanted": ranking["wanted"]}


def _scored(ranking: Mapping[str, Any]) -> dict[str, Any]:
    """Of a screening: how far the best vector moves the score, and the best of as many random ones."""
    alone, best, null = ranking["unsteered"], ranking["vectors"][0], ranking["random_best"]
    return {
        "by": "score",
        "vector": best["vector"],
        "gain": _less(best["effect"]["score"], alone["score"]),
        "random_gain": _less(null["score"], alone["score"]),
        "kl": best["effect"]["kl"],
        "random_kl": null["kl"],
    }


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _kinds(ranking: Mapping[str, Any]) -> dict[str, Any]:
    kinds = ranking.get("kinds")
    if not kinds:
        return {}
    changing = sum(not kind["unchanged"] for kind in kinds["kinds"])
    return {"kinds": changing, "random_kinds": kinds["random_kinds"]}


# --- all of them ------------------------------------------------------------------------------------------------------


def rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row for each cell that is done: where it stands on each axis, what came of it, and how stable it is."""
    made = []
    for cell in cells:
        found = cell.found()
        if found is not None:
            made.append((cell, axes_of(cell.recipe) | {"folder": str(cell.run.folder)} | found))
    steady = stability([cell for cell, _ in made])
    return [row | {"stability": steady.get(cell.key)} for cell, row in made]


def stability(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """How near the matched vectors of fits are that differ in the seed alone, beside chance; by a fit's key.

    A file that cannot be read is left out: its cell is done again when the sweep is.
    """
    alike: dict[Any, list[Cell]] = defaultdict(list)
    for cell in cells:
        alike[str({**cell.decides, "fit": {**cell.decides["fit"], "seed": None}})].append(cell)
    found: dict[str, dict[str, float]] = {}
    for group in alike.values():
        fits = [factors for cell in group[:MOST_SEEDS] if (factors := _readable(cell)) is not None]
        pairs = [matched(a.V, b.V) for a, b in combinations(fits, 2)]
        if pairs:
            mean, chance = (sum(getattr(one, what) for one in pairs) / len(pairs) for what in ("mean", "chance"))
            found |= {cell.key: {"mean": mean, "chance": chance, "fits": len(fits)} for cell in group}
    return found


def _readable(cell: Cell) -> Factors | None:
    try:
        return Factors.load(cell.run.factors)
    except DctError:
        return None


def varying(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The axes on which rows differ."""
    return [axis for axis in AXES if len({str(row[axis]) for row in found}) > 1]


def share(mark: Mapping[str, Any] | None) -> float | None:
    """Successes of those that were asked; None where none were."""
    return mark["right"] / mark["asked"] if mark and mark["asked"] else None


def best(found: Sequence[Row], arm: str = "found") -> Row | None:
    """The fit whose chosen vector did best on the prompts that vectors are chosen by, so that its test is still one.

    Args:
        arm: a baseline is chosen over the grid in the same way.
    """
    judged = [row for row in found if arm in (row.get("arms") or {})]
    return max(judged, key=lambda row: share(row["arms"][arm]["validation"]) or 0.0, default=None)


def best_scored(found: Sequence[Row]) -> Row | None:
    """The fit whose best vector moves the score furthest, of those that were screened alone."""
    scored = [row for row in found if row.get("gain") is not None]
    return max(scored, key=lambda row: float(row["gain"]), default=None)
