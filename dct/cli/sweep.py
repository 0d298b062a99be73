"""`dct sweep`: a grid of fits, each ranked, with one table and one page of all."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dct.cli.flags import spoken
from dct.cli.pictures import check_plot, save_plot
from dct.cli.streams import fail
from dct.cli.sweeptable import conclude, said, table
from dct.cli.terminal import Terminal, command, human_seconds
from dct.errors import DctError, InterruptedWorkError
from dct.settings import (
    JudgeSettings,
    ScoreSettings,
    SweepExperimentSettings,
    SweepFitSettings,
    SweepModelSettings,
    SweepOutputSettings,
    SweepPromptSettings,
    SweepSettings,
    SweepSliceSettings,
)

if TYPE_CHECKING:
    from dct.cli.sweepplan import Asked
    from dct.sweep.cell import Cell
    from dct.sweep.engines import Outcome

CONFIG, PAGE, RESULTS, FIGURE = "sweep.toml", "sweep.html", "sweep.json", "sweep.svg"


@command
def sweep(
    model: SweepModelSettings,
    slice_: SweepSliceSettings,
    prompts: SweepPromptSettings,
    fit: SweepFitSettings,
    score: ScoreSettings,
    experiment: SweepExperimentSettings,
    judge: JudgeSettings,
    options: SweepSettings,
    output: SweepOutputSettings,
) -> None:
    """Fit and rank a grid of layers, methods, scales, seeds, numbers of prompts and models, with one page of all.

    Each fit is a run folder in the sweep's. What is finished is never done again: the same command goes on where it was
    interrupted, and a larger grid adds what is missing. With --engine ray, fits are made side by side on a Ray cluster.
    """
    terminal = Terminal(output.json, output.quiet)
    check_plot(output.plot)
    from dct.cli.sweepplan import Asked, grid_of, planned
    from dct.sweep.facts import rows

    asked = Asked(grid_of(model, slice_, prompts, fit), score, experiment, judge, options)
    cells = planned(terminal, asked, output.out)
    began = time.monotonic()
    failed = _work(terminal, cells, asked, output)
    with terminal.busy("putting all together"):
        found = rows(cells)
    content = _content(found, cells, failed)
    _write(output, asked, content)
    if found:
        terminal.show(table(found, terminal.console.width))
        conclude(terminal, found, output.out / PAGE, human_seconds(time.monotonic() - began))
    from dct.plots import figures

    save_plot(terminal, output.plot, lambda: figures.grid(found))
    terminal.result(content)
    wrong = _wrong(cells, found, failed, output)
    if wrong is not None:
        fail(spoken(DctError(wrong)), 1, False)


def _wrong(
    cells: Sequence["Cell"],
    found: Sequence[dict[str, Any]],
    failed: Sequence[dict[str, Any]],
    output: SweepOutputSettings,
) -> str | None:
    """Why some fits are not there; None where all are."""
    if failed:
        why = f"{len(failed)} of {len(cells)} fits failed ({failed[0]['cell']}: {failed[0]['why']})"
        return f"{why}; what is finished is kept, and the same command tries those again"
    if len(found) < len(cells):
        lost = f"{len(cells) - len(found)} of {len(cells)} fits are done and not in {output.out}"
        return f"{lost}: all workers must write into one folder"
    return None


def _work(
    terminal: Terminal, cells: Sequence["Cell"], asked: "Asked", output: SweepOutputSettings
) -> list[dict[str, Any]]:
    """Does what is missing, saying a line for each; returns what failed, and why."""
    missing = [cell for cell in cells if cell.found() is None]
    there = len(cells) - len(missing)
    fits = "1 fit" if len(cells) == 1 else f"{len(cells)} fits"
    terminal.note(f"{fits} in {output.out}, {there} of them finished" if there else fits)
    if not missing:
        return []
    failed: list[dict[str, Any]] = []
    finished, began = 0, time.monotonic()

    def left() -> str:
        """How long the others will take, if they are like those that were done now."""
        remain = len(missing) - finished - len(failed)
        each = (time.monotonic() - began) / (finished + len(failed))
        return f"; about {human_seconds(remain * each)} left" if remain else ""

    try:
        with terminal.progress("sweeping", unit="fits") as advance:
            advance(missing[0].name, there, len(cells))
            for cell, outcome in _outcomes(missing, asked, output):
                if outcome.state == "done":
                    finished += 1
                    terminal.note(f"[{there + finished}/{len(cells)}] {said(cell, outcome.what)}{left()}")
                else:
                    failed.append({"cell": cell.name, "why": outcome.what})
                    terminal.warn(f"{cell.name}: {outcome.what}")
                advance(cell.name, there + finished, len(cells))
    except (KeyboardInterrupt, InterruptedWorkError):
        raise InterruptedWorkError(
            f"interrupted; {there + finished} of {len(cells)} fits are finished, and every iteration of the one at "
            "hand is kept: the same command goes on"
        ) from None
    return failed


def _outcomes(cells: list["Cell"], asked: "Asked", output: SweepOutputSettings) -> Iterator[tuple["Cell", "Outcome"]]:
    """Each cell as it ends, by whoever does it."""
    from dct.cli.sweepcell import done
    from dct.sweep.engines import Cluster, on_ray, serial

    options = asked.options
    if options.engine == "serial":
        yield from serial(cells, done)
        return
    cluster = Cluster(options.address, options.cpus, options.gpus, options.retries)
    root = output.out.resolve()
    for cell, outcome in on_ray([cell.under(root) for cell in cells], done, cluster):
        yield cell.under(output.out), outcome


def _content(found: list[dict[str, Any]], cells: Sequence["Cell"], failed: list[dict[str, Any]]) -> dict[str, Any]:
    """What --json says, and the sweep's file."""
    from dct.sweep.facts import best, best_scored, varying

    chosen = {arm: best(found, arm) for arm in ("found", "random")}
    scored = best_scored(found)
    return {
        "fits": len(cells),
        "finished": len(found),
        "axes": varying(found),
        "best": chosen["found"]["folder"] if chosen["found"] else scored["folder"] if scored else None,
        "best_random": chosen["random"]["folder"] if chosen["random"] else None,
        "rows": found,
        "failed": failed,
    }


def _write(output: SweepOutputSettings, asked: "Asked", content: dict[str, Any]) -> None:
    """The grid as a file that repeats it, what came of it, the figure and the page."""
    import tomli_w

    from dct.plainjson import dumps
    from dct.plots import figures
    from dct.plots.files import picture
    from dct.sweep.page import rendered
    from dct.version import __version__
    from dct.writing import write_whole

    head = f"# A sweep of dct {__version__}: `dct sweep` repeats it with this file as its config.\n\n"
    tables: dict[str, dict[str, Any]] = {}
    for group in (*asked.grid.groups(), asked.score, asked.experiment, asked.judge, asked.options):
        tables.setdefault(group.table, {}).update(group.record())
    tables["sweep"].pop("recipe", None)
    write_whole(output.out / CONFIG, (head + tomli_w.dumps(tables)).encode())
    write_whole(output.out / RESULTS, (dumps(content, indent=1) + "\n").encode())
    plots = figures.grid(content["rows"])
    if plots:
        write_whole(output.out / FIGURE, picture(plots).encode())
    write_whole(output.out / PAGE, rendered(content).encode())
