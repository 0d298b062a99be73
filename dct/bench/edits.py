"""(ii) Addition against ablation: single vectors, their mean and their SVD aggregate, on the source and target side
(the post's tables 3 to 5).

The vectors are those of one exponential fit, ranked on the validation prompts. Added: R times the direction at the
source layer, or the direction of what it causes at the target layer, as long as what the vectors cause there. Ablated:
projected out of every matrix that writes into the residual stream. Beside them a random direction and the supervised
difference of means.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dct.ablation import ablate
from dct.bench.tables import Report, mean_and_error
from dct.bench.workshop import Cell, Result, Workshop
from dct.calibration import random_directions
from dct.candidates import aggregate
from dct.errors import DctError
from dct.scoring import Effect, difference_of_means

TITLE = "Addition against ablation"
SINGLES = 8
"""Vectors that are tried one by one, at most: every ablation runs the whole model anew."""

Trial = Callable[[Tensor, bool], dict[str, Any]]
"""Tries a direction, (1, d), on the test prompts; judges completions if asked to."""


def plan(w: Workshop) -> list[Cell]:
    """A cell for each operation, side and way to make one direction of many; the first bears the cost of the fit."""
    singles = min(SINGLES, max(w.sizes.top), w.sizes.factors)
    tops = sorted({min(top, w.sizes.factors) for top in w.sizes.top})
    read, said = w.read_cost(w.sizes.test + w.sizes.damage), w.said_cost(w.sizes.test)
    cells = []
    for operation in ("add", "ablate"):
        for side in ("source", "target"):
            if operation == "add" and side == "target" and w.subject.target == w.subject.lm.depth:
                continue  # no block is left to add anything to
            kinds = [("single", singles), *((how, top) for top in tops for how in ("mean", "svd")), ("random", 1)]
            kinds += [("supervised", 1)] if side == "source" else []
            for how, top in kinds:
                settings = {"operation": operation, "side": side, "how": how, "top": top}
                cells.append(Cell("ii", settings, read * top if how == "single" else read + said))
    m = w.sizes.factors
    first = w.fit_cost("exponential", w.sizes.fitted, m) + w.choice_cost(m)
    return [Cell("ii", cells[0].settings, cells[0].cost + first), *cells[1:]]


def measure(w: Workshop, operation: str, side: str, how: str, top: int) -> dict[str, Any]:
    """What a direction does to the test prompts when it is added or ablated (`operation`).

    Args:
        side: directions from V, at the source layer, or from U, at the target layer.
        how: `single` tries the best `top` vectors one by one; `mean` and `svd` make one of them; `random` and
            `supervised` are the baselines.
    """
    parts, (factors, ranked) = w.split(), w.reference
    order = ranked.order[:top]
    rows = (factors.V if side == "source" else factors.U)[order]
    layer, length = w.subject.source, w.scale
    if side == "target":
        layer = w.subject.target
        with torch.no_grad():
            caused = w.slice(parts.train[: w.sizes.fitted])(w.scale * factors.V[order].to(w.subject.lm.device))
        length = float(caused.norm(dim=1).mean())
    trial = _addition(w, layer, length) if operation == "add" else _ablation(w)
    if how == "single":
        return {"length": length, "tries": [trial(row[None], False) for row in rows]}
    if how == "random":
        direction = random_directions(1, w.d, w.subject.seed + 7)
    elif how == "supervised":
        direction = difference_of_means(w.slice(parts.mild_train), w.slice(parts.train))[None].cpu()
    else:
        try:
            direction = aggregate(rows, how)
        except DctError:  # the mean vanishes
            return {"length": length, "tries": []}
    if operation == "add" and len(direction) > 1:
        # Of the two senses of an SVD direction, the one that does better on the validation prompts.
        scores = [e.score for e in w.scorer(parts.validation, layer=layer).effects(length * direction)]
        direction = direction[[scores.index(max(scores))]]
    return {"length": length, "tries": [trial(direction[:1], True)]}


def _addition(w: Workshop, layer: int, length: float) -> Trial:
    parts = w.split()
    scorer = w.scorer(parts.test, parts.mild, layer)

    def trial(direction: Tensor, judged: bool) -> dict[str, Any]:
        """What adding so much of the direction does, beside the unsteered model."""
        found = _found(scorer.effects(length * direction)[0], scorer.unsteered)
        if judged and w.subject.judge is not None:
            found |= w.turned(parts.test, length * direction[0], layer)
        return found

    return trial


def _ablation(w: Workshop) -> Trial:
    parts, lm = w.split(), w.subject.lm
    before = w.reading(parts.test, parts.mild)
    alone = before.against(before)
    refused = w.refused(parts.test) if w.subject.judge is not None else []

    def trial(direction: Tensor, judged: bool) -> dict[str, Any]:
        """What the model without the direction does otherwise than the model with it."""
        with ablate(lm, direction):
            found = _found(w.reading(parts.test, parts.mild).against(before), alone)
            if judged and w.subject.judge is not None:
                classes = w.classes(refused, torch.zeros(1, w.d))[0] if refused else []
                found |= {"refusals": len(refused), "turned": classes.count(w.subject.judge.compliance)}
        return found

    return trial


def _found(effect: Effect, unsteered: Effect) -> dict[str, Any]:
    return {"gain": effect.score - unsteered.score, "flipped": effect.flipped, "damage": effect.kl}


def report(w: Workshop, results: list[Result]) -> Report:
    """A row for each edit; of the single vectors, their mean and their best."""
    rows = []
    for r in results:
        tries, s = r.result["tries"], r.settings
        if not tries:
            continue
        common = {"operation": s["operation"], "side": s["side"]}
        if s["how"] == "single":
            gain, error = mean_and_error([t["gain"] for t in tries])
            damage = mean_and_error([t["damage"] for t in tries])[0]
            flipped = mean_and_error([t["flipped"] for t in tries])[0]
            name = f"{len(tries)} singles, mean"
            rows.append(
                {**common, "direction": name, "gain": gain, "error": error, "flipped": flipped, "damage": damage}
            )
            best = max(tries, key=lambda t: t["gain"])
            rows.append({**common, "direction": f"{len(tries)} singles, best", **best, "error": None})
            continue
        name = f"{s['how']} of {s['top']}" if s["how"] in ("mean", "svd") else s["how"]
        row = {**common, "direction": name, **{k: tries[0][k] for k in ("gain", "flipped", "damage")}, "error": None}
        if tries[0].get("refusals"):
            row["complies"] = tries[0]["turned"] / tries[0]["refusals"]
        rows.append(row)
    order = ("operation", "side", "direction", "gain", "error", "flipped", "damage", "complies")
    rows = [{name: row.get(name) for name in order} for row in rows]
    if w.subject.judge is None:
        for row in rows:
            del row["complies"]
    return Report("ii", TITLE, rows, _sentences(rows), _notes(w))


def _notes(w: Workshop) -> list[str]:
    parts = w.split()
    return [
        f"vectors of one exponential fit of {w.sizes.factors} on {min(w.sizes.fitted, len(parts.train))} prompts, "
        f"ranked on {len(parts.validation)} prompts and tried on {len(parts.test)} others; the best single is the best "
        "on the test prompts, as in the post's tables, so it flatters",
    ]


def _sentences(rows: list[dict[str, Any]]) -> list[str]:
    """Whether aggregates surpass the best single vector: not when added, and when ablated, says the post."""
    sentences = []
    for operation, side, post in (("add", "source", False), ("ablate", "source", True), ("ablate", "target", True)):
        mine = [r for r in rows if r["operation"] == operation and r["side"] == side]
        singles = [r["gain"] for r in mine if r["direction"].endswith("singles, best")]
        pooled = [r["gain"] for r in mine if r["direction"].startswith(("mean of", "svd of"))]
        if not singles or not pooled:
            continue
        above = max(pooled) > singles[0]
        verb = {"add": "added", "ablate": "ablated"}[operation]
        sentences.append(
            f"{verb} at the {side} side, the best aggregate moves the score by {max(pooled):+.2f}, the best single "
            f"vector by {singles[0]:+.2f}: {'as' if above == post else 'not as'} in the post"
        )
    return sentences
