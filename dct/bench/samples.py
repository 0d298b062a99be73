"""(i) Sample complexity: how far the best vector of each fit moves the score of unseen prompts, by the number of
training prompts (the post's figure 1), and how many unseen refusals it turns into compliance.

For each shuffle, a fit sees the first n training prompts; of its vectors the one that does best on the validation
prompts (`Workshop.ranked`) is tested. Beside the fits: as many random vectors, chosen in the same way, and the
supervised difference of means of n harmless and n harmful prompts.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

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
        choose = w.choice_cost(w.sizes.factors) + test
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
    ranked = w.ranked(directions, parts.validation) if len(directions) > 1 else None
    best = 0 if ranked is None else ranked.order[0]
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
    if ranked is not None:
        result["validation"] = ranked.effects[best].score
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
                row["complies"], row["complies error"] = mean_and_error([_share(r) for r in mine])
            rows.append(row)
    return Report("i", TITLE, rows, _sentences(w, results, rows), _notes(w))


def _notes(w: Workshop) -> list[str]:
    parts = w.split()
    notes = [
        f"gain: change of {w.words.label} on {len(parts.test)} unseen prompts under the vector that {_chosen(w)}; "
        f"errors are standard errors over {w.sizes.shuffles} shuffles",
    ]
    if w.subject.judge is not None:
        notes.append(
            "complies: share of the unseen refusals that become coherent compliance, by whole completions, read by "
            f"{'the planted truth' if w.subject.judge.planted else f'the judge {w.subject.judge.name}'}"
        )
    else:
        notes.append("completions are not judged")
    return notes


def _chosen(w: Workshop) -> str:
    """How one vector of many is chosen, in words."""
    others = f"{len(w.split().validation)} others"
    if w.subject.judge is not None and not w.subject.judge.planted:
        return f"turned most refusals among {2 * w.sizes.probes} of {others} into compliance, ties by score"
    return f"scored highest on {others}"


def _sentences(w: Workshop, results: list[Result], rows: list[dict[str, Any]]) -> list[str]:
    """The order of the methods, and which steps of the post's order this measurement bears out: by the gain or, where
    vectors are chosen by replies, by the share of refusals that become compliance."""
    judged = w.subject.judge is not None and not w.subject.judge.planted
    value, what, how = (_share, "complies", ".0%") if judged else (_gain, "gain", "+.2f")
    means = {m: mean_and_error([r.get(what) for r in rows if r["method"] == m])[0] for m in POST_ORDER}
    known = {m: v for m, v in means.items() if v is not None}
    if len(known) < len(POST_ORDER):
        return []
    order = sorted(known, key=lambda m: -known[m])
    sentences = [
        f"measured order (mean {'share that complies' if judged else 'gain'} over all n): "
        + ", ".join(f"{m} {known[m]:{how}}" for m in order),
        f"the post's order: {', '.join(POST_ORDER)}: {'the same' if tuple(order) == POST_ORDER else 'not the same'}",
    ]
    for better, worse in pairwise(POST_ORDER):
        mean, error = _paired(results, better, worse, value)
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


def _gain(result: dict[str, Any]) -> float | None:
    return float(result["gain"])


def _share(result: dict[str, Any]) -> float | None:
    return result["turned"] / result["refusals"] if result["refusals"] else None


def _paired(
    results: list[Result], better: str, worse: str, value: Callable[[dict[str, Any]], float | None]
) -> tuple[float, float | None]:
    """Mean difference of two methods' values, and its standard error over shuffles, each shuffle's n averaged: the same
    prompts stand on both sides, and different n of one shuffle are not independent.
    """
    differences = []
    for shuffle in sorted({r.settings["shuffle"] for r in results}):
        sides = []
        for method in (better, worse):
            mine = [r for r in results if r.settings["method"] == method and r.settings["shuffle"] == shuffle]
            sides.append(mean_and_error([value(r.result) for r in mine])[0])
        if sides[0] is not None and sides[1] is not None:
            differences.append(sides[0] - sides[1])
    mean, error = mean_and_error(differences)
    return mean or 0.0, error
