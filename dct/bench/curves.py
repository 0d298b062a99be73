"""(vi) Training curves: the objective of the exponential fit by iteration, for several widths m, on a single prompt
(the post's figure 2, where 512 factors settle in ten iterations)."""

from typing import Any

from dct.bench.tables import Report
from dct.bench.workshop import Cell, Result, Workshop

TITLE = "Training curves"


def plan(w: Workshop) -> list[Cell]:
    """One cell for each width m."""
    return [Cell("vi", {"m": m}, w.fit_cost("exponential", 1, m)) for m in w.sizes.widths]


def measure(w: Workshop, m: int) -> dict[str, Any]:
    """Of each iteration of a fit of m factors: causal importance, penalty and change of V."""
    factors = w.fit("exponential", w.split().train[:1], m)
    return {"objective": factors.objective.tolist()}


def report(w: Workshop, results: list[Result]) -> Report:
    """A row for each width: its objective first and last, and the iteration from which on it was within 1% of that."""
    rows = []
    for r in results:
        objective = r.result["objective"]
        last = objective[-1][0]
        rows.append(
            {
                "m": r.settings["m"],
                "iterations": len(objective),
                "first": objective[0][0],
                "last": last,
                "penalty": objective[-1][1],
                "change of V": objective[-1][2],
                "settled": next((k for k, row in enumerate(objective, start=1) if row[0] >= 0.99 * last), None),
            }
        )
    slow = [row for row in rows if row["settled"] == row["iterations"] > 1]
    sentences = [
        f"m = {row['m']}: within 1% of its last causal importance after {row['settled']} of {row['iterations']} "
        "iterations"
        for row in rows
    ]
    if slow:
        sentences.append("still rising at the last iteration: m = " + ", ".join(str(row["m"]) for row in slow))
    notes = ["first, last: causal importance, the sum of alpha_l b_l, after the first and the last iteration"]
    return Report("vi", TITLE, rows, sentences, notes)
