"""The plots of this program, each made of plain numbers: the same on a run's page, in files and beside a command."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dct.plots.charts import Axis, Plot, curve
from dct.publicname import public

Named = tuple[str, Plot]
"""A plot under its title."""

ARMS = {"found": "found", "random": "best random", "supervised": "difference of means", "noise": "noise"}
"""Who competes, in words."""


def calibration(points: Sequence[tuple[float, float]], scale: float, wanted: float | None) -> Named | None:
    """Non-linearity ratio by scale, with R and lambda marked; None where there are too few points."""
    if len(points) < 2:
        return None
    says = "non-linearity ratio by scale; the upright line marks R" + (
        "" if wanted is None else ", the level one lambda"
    )
    x = Axis.over([p[0] for p in points], "scale", log=True)
    y = Axis.over([*(p[1] for p in points), *([] if wanted is None else [wanted])], "ratio", zero=True)
    plot = curve(points, x, y, says, (scale, f"R = {scale:.3g}"))
    if wanted is not None:
        plot.level(wanted, f"lambda = {wanted:g}")
    return "Where is R?", plot


def iterations(objective: Sequence[Sequence[float]]) -> list[Named]:
    """What grows, and how far V still moves, by iteration; nothing where there are fewer than two."""
    sides = ((0, "Has it converged?", "causal importance"), (2, "Did V come to rest?", "change of V"))
    made = []
    for column, title, label in sides:
        points = [(float(k), row[column]) for k, row in enumerate(objective, start=1)]
        if len(points) > 1:
            y = Axis.over([p[1] for p in points], label, zero=True)
            x = Axis("iteration", 1.0, float(len(points)))
            made.append((title, curve(points, x, y, f"{label} by iteration", None)))
    return made


def arms(ranking: Mapping[str, Any]) -> Named | None:
    """Shares of successes on the test with their intervals, and the damage of each; None where nothing was tested."""
    rows = arm_rows(ranking)
    if not rows:
        return None
    says = "successes on unseen prompts with 95% intervals, and damage (KL, nats)"
    plot = Plot(Axis("successes", -0.02, 1.02, share=True), Axis("", 0.0, 1.0, bare=True), says)
    plot.spans(rows)
    return "Is it better than chance?", plot


def arm_rows(ranking: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """Each arm in words, its share of successes and the ends of its interval; the unsteered model last."""
    if not ranking.get("arms"):
        return []
    alone = ranking["unsteered"]
    share = alone["right"] / alone["asked"]
    said = f"unsteered: {alone['right']} of {alone['asked']}"
    return [*(_arm(one) for one in ranking["arms"]), (said, share, share, share)]


def _arm(arm: Mapping[str, Any]) -> tuple[str, float, float, float]:
    right, asked = arm["test"]["right"], arm["test"]["asked"]
    low, high = arm["interval"]
    kl = (arm.get("damage") or {}).get("kl")
    who = (
        f"vector {arm['vector']}" if arm["arm"] == "found" else f"{ARMS.get(arm['arm'], arm['arm'])} ({arm['vector']})"
    )
    damage = "" if kl is None else f", damage {kl:.3f}"
    return f"{who}: {right} of {asked}{damage}", right / asked, low, high


def scores(ranking: Mapping[str, Any]) -> Named | None:
    """Damage against score of all vectors of a screening, the best random one's score marked."""
    effects = [(str(one["vector"]), one.get("effect") or {}) for one in ranking.get("vectors", [])]
    known = [
        (name, e["kl"], e["score"]) for name, e in effects if e.get("kl") is not None and e.get("score") is not None
    ]
    known = [(name, max(kl, 1e-4), score) for name, kl, score in known if math.isfinite(kl)]
    best = (ranking.get("random_best") or {}).get("score")
    if len(known) < 2 or best is None:
        return None
    x = Axis.over([kl for _, kl, _ in known], "damage (KL, nats)", log=True)
    plot = Plot(x, Axis.over([*(s for _, _, s in known), best], "score"), "score against damage of every vector")
    plot.dots([(kl, score) for _, kl, score in known], "vector", [f"{name}: score {s:.2f}" for name, _, s in known])
    plot.level(best, "the best random vector")
    return "How far above chance?", plot


def resemblances(found: Mapping[str, Any], best: str) -> list[Named]:
    """|cosine| with what enters each layer: of one vector, of the middle and the upper end of all, and of chance."""
    made = []
    sides = (
        ("difference", "Which layers' difference of means?", "harmless minus harmful"),
        ("stream", "Which layers' streams?", "the mean stream"),
    )
    for key, title, what in sides:
        cosines, layers = found.get(key), found["layers"]
        if not cosines or len(layers) < 2:
            continue
        columns = [sorted(abs(row[k]) for row in cosines.values()) for k in range(len(layers))]
        upper = [column[min(len(column) - 1, int(0.95 * len(column)))] for column in columns]
        mine = [abs(c) for c in cosines[best]] if best in cosines else []
        chance = found[f"chance_{key}"]
        says = (
            f"|cosine| of the vectors with {what} that enters each layer. Line with dots: vector {best}; thin: 95% of "
            "all vectors lie below; dashed: 95% of random ones do"
        )
        y = Axis.over([*upper, *mine, *chance], "|cosine|", zero=True)
        plot = Plot(Axis("layer", float(layers[0]), float(layers[-1])), y, says)
        plot.line(list(zip(layers, upper, strict=True)), "thin")
        plot.line(list(zip(layers, chance, strict=True)), "random")
        if mine:
            plot.line(list(zip(layers, mine, strict=True)))
            plot.dots(list(zip(layers, mine, strict=True)))
        made.append((title, plot))
    return made


ROOM = 2.0
"""How far beyond its last point the axis of a plot goes that has words there, as a factor."""


def recovery(rows: Sequence[Mapping[str, Any]]) -> list[Named]:
    """Share of planted factors that are recovered, by their number as a multiple of the width: a plot for each map and
    width, in it a line for each number of learned factors for a true one."""
    found: dict[tuple[str, int], dict[float, list[tuple[float, float]]]] = {}
    for row in rows:
        lines = found.setdefault((row["map"], row["width"]), {})
        lines.setdefault(row["of true"], []).append((row["of width"], row["> 0.9"]))
    made = []
    for (kind, width), lines in found.items():
        places = [at for points in lines.values() for at, _ in points]
        x = Axis("true factors / width", min(places) / 1.15, max(places) * ROOM, log=True)
        says = "share of true factors with a cosine above 0.9 to a learned one; the level is 90%"
        plot = Plot(x, Axis("recovered", 0.0, 1.05, share=True), says)
        plot.level(0.9, "")
        above = -1.0
        for learned, points in sorted(lines.items(), key=lambda item: item[1][-1][1]):
            plot.line(points)
            told = [f"{learned:g} learned for a true one, {at:g} times the width: {share:.0%}" for at, share in points]
            plot.dots(points, "", told)
            above = max(points[-1][1], above + 0.085)  # words keep apart
            plot.beside(points[-1][0], above, f"{learned:g} learned")
        made.append((f"{kind}, width {width}", plot))
    return made


def spectrum(content: Mapping[str, Any]) -> Named | None:
    """Signed eigenvalues of an output's interactions, with the edge of a random matrix of the same norm; of terms, how
    much each leaves out. None where there are fewer than two."""
    if content.get("terms"):
        left = [(float(k), one["left"]) for k, one in enumerate(content["terms"], start=1)]
        if len(left) < 2:
            return None
        x, y = Axis("terms", 1.0, float(len(left))), Axis("left out", 0.0, 1.0, share=True)
        return "How many terms?", curve(left, x, y, "relative error of the reconstruction by number of terms", None)
    values = sorted(content.get("values") or [], reverse=True)
    if len(values) < 2:
        return None
    edge, other = content["chance"]["edge"], sorted(content["random_output"]["values"], reverse=True)
    rank, chance = content["rank"] or f"more than {len(values)}", content["chance"]["rank"]
    says = (
        f"{rank} eigenvectors tell it to {content['correlation']:g}, of a random matrix {chance}; signed eigenvalues; "
        "dashed, those of a random output; level, the largest of a random matrix of the same norm"
    )
    y = Axis.over([*values, *other, edge, -edge], "eigenvalue")
    plot = Plot(Axis("eigenvector, by eigenvalue", 1.0, float(len(values))), y, says)
    plot.line([(float(k), v) for k, v in enumerate(other, start=1)], "random")
    plot.dots([(float(k), v) for k, v in enumerate(values, start=1)])
    plot.level(edge, "random matrix")
    plot.level(-edge, "")
    return f"What acts together on {content['output']}?", plot


# --- a grid of fits ---------------------------------------------------------------------------------------------------

GRID = ("source", "target", "method", "lambda", "scale", "n", "seed", "model")
"""By which fits of a sweep may differ: what a reader asks first comes first."""

FEW = 8
"""Values of an axis that stand side by side, each under its name; more are placed by their size."""


def grid(rows: Sequence[Mapping[str, Any]]) -> list[Named]:
    """What fits elicit, along each axis of a sweep on which they differ, beside random vectors; and against damage.

    Args:
        rows: of `dct.sweep.facts`.
    """
    found = [(row, *told) for row in rows if (told := _elicited(row)) is not None]
    made = []
    for axis in GRID:
        values = sorted({row[axis] for row, *_ in found if row[axis] is not None})
        if len(values) > 1:
            made.append((f"Which {axis}?", _along(axis, values, [one for one in found if one[0][axis] is not None])))
    hurt = [(damage, share, row) for row, share, _, damage in found if damage is not None]
    if len(hurt) > 1:
        judged = found[0][0]["by"] == "judged"
        x = Axis.over([max(damage, 1e-4) for damage, *_ in hurt], "damage (KL, nats)", log=True)
        plot = Plot(x, _height([share for _, share, _ in hurt], judged), "what each fit elicits, by its damage")
        plot.dots([(max(damage, 1e-4), share) for damage, share, _ in hurt], "", [_called(row) for *_, row in hurt])
        made.append(("At what cost?", plot))
    return made


def _elicited(row: Mapping[str, Any]) -> tuple[float, float | None, float | None] | None:
    """What the chosen vector of a fit does, what the best random one does, and the damage; None where there is none."""
    if row.get("by") == "judged":
        arms = row["arms"]
        shares = [
            arms[a]["test"]["right"] / arms[a]["test"]["asked"] if a in arms else None for a in ("found", "random")
        ]
        return shares[0] or 0.0, shares[1], (arms["found"]["damage"] or {}).get("kl")
    return (row["gain"], row["random_gain"], row["kl"]) if row.get("gain") is not None else None


def _height(values: Sequence[float], judged: bool) -> Axis:
    return Axis("successes", -0.04, 1.04, share=True) if judged else Axis.over([0.0, *values], "score gained")


def _along(axis: str, values: list[Any], found: Sequence[tuple[Any, ...]]) -> Plot:
    """Each fit over its place on an axis, a line through their means, a dashed one through those of random vectors."""
    numbers = len(values) > FEW and all(isinstance(value, int | float) for value in values)
    places = [float(value) if numbers else float(k) for k, value in enumerate(values)]
    at = dict(zip(values, places, strict=True))
    names = [public(value) if isinstance(value, str) else f"{value:g}" for value in values]
    low, high = places[0], places[-1]
    x = Axis(axis, low - 0.04 * (high - low), high + 0.04 * (high - low)) if numbers else Axis.of(names, axis)
    judged = found[0][0]["by"] == "judged"
    lines = [
        [
            (at[v], sum(some) / len(some))
            for v in values
            if (some := [o[k] for o in found if o[0][axis] == v and o[k] is not None])
        ]
        for k in (1, 2)
    ]
    y = _height([value for line in lines for _, value in line] + [one[1] for one in found], judged)
    plot = Plot(x, y, f"what fits elicit by {axis}: dots; their mean: line; the best random vectors: dashed")
    plot.line(lines[0])
    plot.line(lines[1], "random")
    plot.dots([(at[one[0][axis]], one[1]) for one in found], "", [_called(one[0]) for one in found])
    return plot


def _called(row: Mapping[str, Any]) -> str:
    share, random, damage = _elicited(row) or (0.0, None, None)
    where = f"{row['method']} {row['source']} to {row['target']}, seed {row['seed']}, {row['n']} prompts"
    return f"{where}: {share:.3g}, random {'–' if random is None else f'{random:.3g}'}" + (
        "" if damage is None else f", KL {damage:.3f}"
    )
