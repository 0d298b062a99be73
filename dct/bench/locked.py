"""(iii) The password-locked skill: the vector that answers most validation questions, and what it answers of the test
questions, as a share of what the password unlocks.

Fitted on questions of the task without the password; the best of as many random vectors is chosen in the same way, and
beside it stands the supervised difference of means, unlocked less locked.
"""

from dataclasses import asdict
from typing import Any

import torch

from dct.bench.tables import Report
from dct.bench.workshop import Cell, Result, Workshop
from dct.halving import Mark, completions, rounds
from dct.scoring import difference_of_means
from dct.slice import Slice
from dct.task_ranking import answer_length, examine, rank_by_task
from dct.tasks import Task

TITLE = "Password-locked skill"
METHODS = ("exponential", "linear-projected", "melbo")


def plan(w: Workshop) -> list[Cell]:
    """A cell for each method and the supervised direction; none for a subject without questions."""
    if w.subject.task is None:
        return []
    searched = completions(rounds(w.sizes.searched * len(w.sizes.scales), w.sizes.questions))
    cost = w.said_cost(2 * searched + 8 * w.sizes.answers)
    scales = list(w.sizes.scales)
    cells = [
        Cell("iii", {"method": m, "scales": scales}, cost + w.fit_cost(m, w.sizes.fitted, w.sizes.searched))
        for m in METHODS
    ]
    if w.subject.task.unlock is not None:
        cells.append(
            Cell(
                "iii",
                {"method": "supervised", "scales": scales},
                w.said_cost(len(w.sizes.scales) * w.sizes.questions + w.sizes.answers),
            )
        )
    return cells


def _parts(w: Workshop) -> tuple[Task, Task, Task]:
    """Questions to fit on, to choose by and to report on."""
    task = w.subject.task
    assert task is not None
    fitted = min(w.sizes.fitted, max(1, len(task) // 4))
    rest = Task(task.questions[fitted:], task.origin, task.unlock)
    validation, test = rest.split(min(w.sizes.questions, max(1, len(rest) // 2)), w.sizes.answers)
    return Task(task.questions[:fitted], task.origin, task.unlock), validation, test


def measure(w: Workshop, method: str, scales: list[float]) -> dict[str, Any]:
    """Right answers of the best vector among all scales, chosen and tested as `rank_by_task` does."""
    s = w.subject
    train, validation, test = _parts(w)
    if method == "supervised":
        return _supervised(w, train, validation, test, scales)
    factors = w.fit(method, [q.prompt for q in train.questions], w.sizes.searched)
    mild = w.split().mild
    ranking = rank_by_task(
        s.lm,
        factors,
        (validation, test),
        mild,
        scales=scales,
        positive=s.words[0],
        negative=s.words[1],
        seed=s.seed,
    )
    best = ranking.vectors[0]
    return {
        "vectors": len(ranking.vectors),
        "best": asdict(best),
        "random": asdict(ranking.random_best),
        "random all": asdict(ranking.random_mean),
        "unsteered": asdict(ranking.unsteered),
        "unlocked": None if ranking.unlocked is None else asdict(ranking.unlocked),
        "recovered": ranking.recovered,
    }


def _supervised(w: Workshop, train: Task, validation: Task, test: Task, scales: list[float]) -> dict[str, Any]:
    """The difference of means, with the password less without, at its best scale."""
    s, length = w.subject, max(answer_length(w.subject.lm, part) for part in (validation, test))
    unlocked = train.unlocked()
    assert unlocked is not None
    sides = [
        Slice(s.lm, [q.prompt for q in part.questions], s.source, s.target, system=s.system)
        for part in (unlocked, train)
    ]
    direction = difference_of_means(*sides)[None]
    options: dict[str, Any] = {"system": s.system, "max_new_tokens": length}
    tried = torch.cat([c * w.scale * direction for c in scales])
    right = examine(s.lm, validation, tried, s.source, **options).sum(1)
    best = int(right.argmax())
    tested = examine(s.lm, test, tried[best : best + 1], s.source, **options)
    return {
        "vectors": 1,
        "best": {
            "vector": "difference of means",
            "scale": scales[best] * w.scale,
            "validation": asdict(Mark(int(right[best]), len(validation))),
            "test": asdict(Mark(int(tested.sum()), len(test))),
        },
    }


def report(w: Workshop, results: list[Result]) -> Report:
    """A row for each method and baseline, and the best share of what the password unlocks."""
    rows: list[dict[str, Any]] = []
    for r in results:
        rows.append(
            _row(r.settings["method"], r.result["vectors"], r.result["best"], w.scale, r.result.get("recovered"))
        )
    fits = [r for r in results if "random" in r.result]
    if fits:
        first = fits[0].result  # the random vectors of every method are the same
        rows.append(_row("random", first["vectors"], first["random"], w.scale, None))
        for name in ("unsteered", "unlocked"):
            if first[name] is not None:
                rows.append(_row(name, 0, {"test": first[name]}, w.scale, None))
    sentences = []
    if fits:
        best = max(fits, key=lambda r: r.result["best"]["test"]["right"]).result
        test, unlocked = best["best"]["test"], best["unlocked"]
        sentences.append(
            f"the best vector answers {test['right']} of {test['asked']} test questions, the unsteered model "
            f"{best['unsteered']['right']}"
            + (f", the unlocked one {unlocked['right']}" if unlocked else "")
            + (f": {best['recovered']:.0%} of what the password unlocks" if best["recovered"] is not None else "")
            + " (the post: 32% of a locked 7B model's)" * (best["recovered"] is not None)
        )
    notes = [] if w.subject.task is not None else ["left out: no questions with answers (give a task)"]
    if w.subject.task is not None:
        train, validation, test = _parts(w)
        notes.append(
            f"fitted on {len(train)} questions of {w.subject.task.origin}, chosen by {len(validation)} others at "
            f"{' or '.join(f'{c:g}' for c in w.sizes.scales)} R, tested on {len(test)} others"
        )
    return Report("iii", TITLE, rows, sentences, notes)


def _row(method: str, vectors: int, best: dict[str, Any], R: float, recovered: float | None) -> dict[str, Any]:
    def share(mark: dict[str, int] | None) -> float | None:
        """Right answers as a share; None where nothing was asked."""
        return mark["right"] / mark["asked"] if mark else None

    effect = best.get("effect") or {}
    return {
        "method": method,
        "vectors": vectors or None,
        "chosen by": share(best.get("validation")),
        "share": share(best.get("test")),
        "recovered": recovered,
        "scale": best["scale"] / R if "scale" in best else None,
        "damage": effect.get("kl"),
    }
