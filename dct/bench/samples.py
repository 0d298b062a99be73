"""(i) Sample complexity: how far the best vector of each fit moves the score of unseen prompts, by the number of
training prompts (the post's figure 1), and how many unseen refusals it turns into compliance.

For each shuffle, a fit sees the first n training prompts; of its vectors the one that scores highest on the validation
prompts is tested. Beside the fits: as many random vectors, chosen in the same way, and the supervised difference of
means of n harmless and n harmful prompts.
"""

from itertools import pairwise
from typing import Any

import torch

from dct.bench.tables import Report, mean_and_error, percent
from dct.bench.workshop import METHODS, Cell, Result, Workshop
from dct.calibration import random_directions
from dct.candidates import candidates
from dct.scoring import difference_of_means

TITLE = "Sample complexity"
BASELINES = ("random", "supervised")
POST_ORDER = ("exponential", "quadratic", "linear-projected", "linear", "random")
"""The order of the post's figure 1, best first, and chance behind it."""


def plan(w: Workshop) -> list[Cell]:
    """A cell for each shuffle, method and number of training prompts, baselines included."""
    cells = []
    most = len(w.split().train)
    numbers = [n for n in w.sizes.n if n <= most]
    test = w.score_cost(1, w.sizes.test + w.sizes.damage) + w.said_cost(w.sizes.test) * (w.subject.judge is not None)
    for shuffle in range(w.sizes.shuffles):
        choose = w.score_cost(w.sizes.factors, w.sizes.validation) + test
        cells.append(Cell("i", {"method": "random", "n": 0, "shuffle": shuffle}, choose))
        for n in numbers:
            cells.append(Cell("i", {"method": "supervised", "n": n, "shuffle": shuffle}, test))
            for method in METHODS:
                cost = choose + w.fit_cost(method, n, w.sizes.factors)
                cells.append(Cell("i", {"method": method, "n": n, "shuffle": shuffle}, cost))
    return cells


def measure(w: Workshop, method: str, n: int, shuffle: int) -> dict[str, Any]:
    """What the vector that scores best on the validation prompts does to the test prompts.

    Args:
        n: training prompts of the fit.
        shuffle: which order of the prompts the parts are cut from.
    """
    parts = w.split(shuffle)
    if method == "supervised":
        direction = difference_of_means(w.slice(parts.mild_train[:n]), w.slice(parts.train[:n]))
        names, directions = ["difference of means"], direction[None].cpu()
    elif method == "random":
        directions = random_directions(w.sizes.factors, w.d, w.subject.seed + 1000 + shuffle)
        names = [str(k) for k in range(len(directions))]
    else:
        names, directions = candidates(w.fit(method, parts.train[:n], w.sizes.factors, seed=shuffle))
    best, effects = w.best(directions, parts.validation) if len(directions) > 1 else (0, [])
    scorer = w.scorer(parts.test, parts.mild)
    tested = scorer.effects(w.scale * directions[best : best + 1])[0]
    result: dict[str, Any] = {
        "vector": names[best],
        "vectors": len(directions),
        "unsteered": scorer.unsteered.score,
        "gain": tested.score - scorer.unsteered.score,
        "flipped": tested.flipped,
        "damage": tested.kl,
    }
    if effects:
        result["validation"] = effects[best].score
    if w.subject.judge is not None:
        result |= w.turned(parts.test, w.scale * directions[best])
    return result


def report(w: Workshop, results: list[Result]) -> Report:
    """Mean and standard error over shuffles, for each method and n, and whether the order is the post's."""
    rows = []
    for method in (*METHODS, *BASELINES):
        for n in sorted({r.settings["n"] for r in results if r.settings["method"] == method}):
            mine = [r.result for r in results if r.settings["method"] == method and r.settings["n"] == n]
            gain, error = mean_and_error([r["gain"] for r in mine])
            row: dict[str, Any] = {
                "method": method,
                "n": n if method != "random" else None,
                "vectors": mine[0]["vectors"],
                "gain": gain,
                "error": error,
                "flipped": mean_and_error([r["flipped"] for r in mine])[0],
                "damage": mean_and_error([r["damage"] for r in mine])[0],
            }
            if "turned" in mine[0]:
                shares = [r["turned"] / r["refusals"] for r in mine if r["refusals"]]
                row["complies"], row["complies error"] = mean_and_error(shares)
            rows.append(row)
    return Report("i", TITLE, rows, _sentences(results, rows), _notes(w))


def _notes(w: Workshop) -> list[str]:
    parts = w.split()
    notes = [
        f"gain: change of {w.words.label} on {len(parts.test)} "
        f"unseen prompts under the vector that scored highest on {len(parts.validation)} others; errors are standard "
        f"errors over {w.sizes.shuffles} shuffles",
    ]
    if w.subject.judge is not None:
        notes.append("complies: share of the unseen refusals that become on-topic compliance, by whole completions")
    else:
        notes.append("no ground truth for this model: completions are not judged")
    return notes


def _sentences(results: list[Result], rows: list[dict[str, Any]]) -> list[str]:
    """The order of the methods, and which steps of the post's order this measurement bears out."""
    means = {m: mean_and_error([r["gain"] for r in rows if r["method"] == m])[0] for m in POST_ORDER}
    known = {m: v for m, v in means.items() if v is not None}
    if len(known) < len(POST_ORDER):
        return []
    order = sorted(known, key=lambda m: -known[m])
    sentences = [
        "measured order (mean gain over all n): " + ", ".join(f"{m} {known[m]:+.2f}" for m in order),
        f"the post's order: {', '.join(POST_ORDER)}: {'the same' if tuple(order) == POST_ORDER else 'not the same'}",
    ]
    for better, worse in pairwise(POST_ORDER):
        mean, error = _paired(results, better, worse)
        if error is None:
            continue
        verdict = "as in the post" if mean > 2 * error else "the other way round" if mean < -2 * error else "undecided"
        sentences.append(f"{better} less {worse}: {mean:+.2f} ± {error:.2f}, {verdict}")
    best = order[0]
    turned = [r["complies"] for r in rows if r["method"] == best and r.get("complies") is not None]
    if turned:
        lucky = next((r["complies"] for r in rows if r["method"] == "random"), None)
        sentences.append(
            f"{best} turns at best {percent(max(turned))} of the unseen refusals into compliance; the best of as many "
            f"random vectors {percent(lucky)}"
        )
    return sentences


def _paired(results: list[Result], better: str, worse: str) -> tuple[float, float | None]:
    """Mean difference of two methods' gains, and its standard error over shuffles, each shuffle's n averaged: the same
    prompts stand on both sides, and different n of one shuffle are not independent.
    """
    differences = []
    for shuffle in sorted({r.settings["shuffle"] for r in results}):
        sides = []
        for method in (better, worse):
            gains = [
                r.result["gain"] for r in results if r.settings["method"] == method and r.settings["shuffle"] == shuffle
            ]
            sides.append(torch.tensor(gains).mean() if gains else None)
        if sides[0] is not None and sides[1] is not None:
            differences.append(float(sides[0] - sides[1]))
    mean, error = mean_and_error(differences)
    return mean or 0.0, error
