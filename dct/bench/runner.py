"""Runs what is not on record yet, one cell after the other."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from dct.bench import curves, edits, enumeration, locked, multiplicity, samples
from dct.bench.tables import Report
from dct.bench.workshop import Cell, Result, Workshop
from dct.errors import UsageError
from dct.estimate import Cost, cost


class Experiment(Protocol):
    """What the module of an experiment offers."""

    TITLE: str

    def plan(self, w: Workshop) -> list[Cell]:
        """What is to be measured, with what each part costs; nothing where the subject lacks what it takes."""
        ...

    def measure(self, w: Workshop, **settings: Any) -> dict[str, Any]:
        """The numbers of one cell, which is planned with these settings; JSON types only."""
        ...

    def report(self, w: Workshop, results: list[Result]) -> Report:
        """The table of all cells, with what it says in sentences."""
        ...


EXPERIMENTS: dict[str, Experiment] = {
    number: cast(Experiment, module)
    for number, module in (
        ("i", samples),
        ("ii", edits),
        ("iii", locked),
        ("iv", enumeration),
        ("v", multiplicity),
        ("vi", curves),
    )
}


def chosen(only: str | None) -> list[str]:
    """The experiments that `only` names ("i,iv"), in their order; all when it is left out.

    Raises:
        UsageError: an unknown one.
    """
    wanted = list(EXPERIMENTS) if only is None else [part.strip() for part in only.split(",")]
    unknown = [name for name in wanted if name not in EXPERIMENTS]
    if unknown or not wanted:
        raise UsageError(
            f"unknown experiment {unknown[0]!r} in `only`: choose from {', '.join(EXPERIMENTS)}", argument="only"
        )
    return [name for name in EXPERIMENTS if name in wanted]


@dataclass(frozen=True)
class Progress:
    """Where the benchmark stands.

    Attributes:
        cell: the one that is about to be measured, or has just been.
        number, of: which one, of how many.
        done, total: cost of the finished ones, and of all.
        seconds: that the cell took; None before it.
        left: seconds that the rest should take, by what the cells of this process took; None before any is known.
    """

    cell: Cell
    number: int
    of: int
    done: float
    total: float
    seconds: float | None
    left: float | None


@dataclass(frozen=True)
class Outcome:
    """What was measured.

    Attributes:
        reports: one for each experiment, in order.
        results: the cells behind them, by experiment.
        seconds: that all of them took, whenever they were measured.
    """

    reports: list[Report]
    results: dict[str, list[Result]]
    seconds: float


def run(
    w: Workshop,
    experiments: Sequence[str],
    tell: Callable[[Progress], None] = lambda _: None,
    on_cost: Callable[[Cost], None] = lambda _: None,
) -> Outcome:
    """Measures every cell that is not on record, and reports.

    Args:
        tell: told where the benchmark stands, before and after each cell.
        on_cost: told, before the first, what all of them are expected to take.
    """
    cells = [cell for name in experiments for cell in EXPERIMENTS[name].plan(w)]
    total = sum(cell.cost for cell in cells)
    results: dict[str, list[Result]] = {name: [] for name in experiments}
    # What is on record costs nothing: it is read first, so that the time left is that of the rest.
    found = [w.records.load(cell.experiment, w.key(cell)) for cell in cells]
    done = sum(cell.cost for cell, record in zip(cells, found, strict=True) if record is not None)
    unit, more = w.unit() if done < total else (0.0, 0)
    on_cost(cost(unit * (total - done), more, w.subject.lm.device, w.subject.lm.memory))
    spent = worked = 0.0
    for number, (cell, record) in enumerate(zip(cells, found, strict=True), start=1):
        if record is not None:
            results[cell.experiment].append(Result(cell.settings, record["result"], record["seconds"]))
            continue
        left = (total - done) * spent / worked if worked else None
        tell(Progress(cell, number, len(cells), done, total, None, left))
        began = time.monotonic()
        result = EXPERIMENTS[cell.experiment].measure(w, **cell.settings)
        seconds = time.monotonic() - began
        w.records.save(cell.experiment, w.key(cell), cell.settings, result, seconds)
        results[cell.experiment].append(Result(cell.settings, result, seconds))
        done, spent, worked = done + cell.cost, spent + seconds, worked + cell.cost
        tell(Progress(cell, number, len(cells), done, total, seconds, (total - done) * spent / worked))
    reports = [EXPERIMENTS[name].report(w, results[name]) for name in experiments]
    return Outcome(reports, results, sum(r.seconds for mine in results.values() for r in mine))
