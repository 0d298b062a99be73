"""(v) Feature multiplicity: how many vectors of one fit elicit the behaviour, and how far they are the same vector.

The vectors are those of the reference fit that move enough validation prompts (by the words' score, and by whole
completions where there is a judge). Vectors that were one vector and noise would have |cosines| near one and a large
condition number; the post finds 240 with mean |cosine| 0.36 (standard deviation 0.19) and condition number 38.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dct.bench.tables import Report
from dct.bench.workshop import Cell, Result, Workshop
from dct.calibration import random_directions

TITLE = "Feature multiplicity"
SHARES = (0.25, 0.5)
"""Shares of the prompts that a vector must move to count."""


def plan(w: Workshop) -> list[Cell]:
    """Two cells: the vectors of the reference fit, and as many random ones."""
    cost = w.score_cost(w.sizes.factors, 2 * w.sizes.validation)
    if w.subject.judge is not None:
        cost += w.said_cost(w.sizes.factors * w.sizes.probes * 2)
    cells = [Cell("v", {"method": method}, cost) for method in ("exponential", "random")]
    first = w.fit_cost("exponential", w.sizes.fitted, w.sizes.factors)
    return [Cell("v", cells[0].settings, cells[0].cost + first), cells[1]]


def measure(w: Workshop, method: str) -> dict[str, Any]:
    """The geometry of the vectors that move each share of the prompts, by score and by whole completions."""
    parts = w.split()
    if method == "random":
        directions = random_directions(w.sizes.factors, w.d, w.subject.seed + 5)
        effects = w.scorer(parts.validation).effects(w.scale * directions)
    else:
        factors, ranked = w.reference
        directions, effects = factors.V, ranked.effects
    before = w.scorer(parts.validation).unsteered.score
    moved = {"score": [e.flipped if e.score > before else 0.0 for e in effects]}
    judge = w.subject.judge
    if judge is not None:
        asked = w.refused(parts.validation)[: 2 * w.sizes.probes]
        classes = w.classes(asked, w.scale * directions) if asked else [[] for _ in directions]
        moved["completions"] = [row.count(judge.compliance) / max(1, len(row)) for row in classes]
    found = []
    for how, shares in moved.items():
        for least in SHARES:
            kept = [k for k, share in enumerate(shares) if share >= least]
            found.append({"moved": how, "least": least, **geometry(directions[kept])})
    return {"vectors": len(directions), "found": found}


def geometry(directions: Float[Tensor, "n d"]) -> dict[str, Any]:
    """How many there are, mean and standard deviation of their pairwise |cosine|, and the condition number of the
    stack: its largest singular value over its least.
    """
    n = len(directions)
    result: dict[str, Any] = {"count": n, "mean |cos|": None, "std |cos|": None, "condition": None}
    if n < 2:
        return result
    wide = directions.double()
    cosines = (wide @ wide.T).abs()[torch.triu_indices(n, n, 1).unbind()]
    S = torch.linalg.svdvals(wide)
    result["mean |cos|"] = float(cosines.mean())
    result["std |cos|"] = float(cosines.std()) if n > 2 else 0.0
    result["condition"] = float(S[0] / S[-1]) if n <= directions.shape[1] and float(S[-1]) > 1e-12 else None
    return result


def report(w: Workshop, results: list[Result]) -> Report:
    """A row for each share and each way to tell that a prompt moved, beside random vectors."""
    rows = []
    for r in results:
        for one in r.result["found"]:
            row = {"method": r.settings["method"], "by": one["moved"], "moved": f"≥ {one['least']:.0%}"}
            row |= {"vectors": r.result["vectors"]}
            rows.append(row | {k: one[k] for k in ("count", "mean |cos|", "std |cos|", "condition")})
    chance = math.sqrt(2 / (math.pi * w.d))
    sentences = []
    for row in rows:
        if row["method"] == "exponential" and row["moved"] == "≥ 50%":
            text = f"by {row['by']}, {row['count']} of {row['vectors']} vectors move at least half of the prompts"
            if row["mean |cos|"] is not None:
                text += f"; mean |cosine| {row['mean |cos|']:.2f}, where random directions have {chance:.2f}"
            sentences.append(text)
    notes = [
        "count: vectors that move such a share of the validation prompts; by score: prompts whose score changes its "
        "sign, under vectors that raise it; by completions: refusals turned into compliance"
    ]
    return Report("v", TITLE, rows, sentences, notes)
