"""An experiment of the benchmark as a table and sentences."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dct.cli.terminal import Terminal, escape, titled

if TYPE_CHECKING:
    from dct.bench.runner import Outcome
    from dct.bench.subject import Subject
    from dct.bench.tables import Report


def show(terminal: Terminal, report: "Report") -> None:
    """An experiment's table and what it says."""
    from rich.table import Table

    if report.rows:
        table = titled(f"({report.experiment}) {report.title}")
        first = report.rows[0]
        for name in report.shown:
            table.add_column(
                name,
                justify="left" if isinstance(first.get(name), str) else "right",
                overflow="fold",
                no_wrap=name in ("method", "direction", "map"),
            )
        for row, following in zip(report.rows, [*report.rows[1:], None], strict=True):
            table.add_row(
                *(escape(report.text(row, name)) for name in report.shown),
                end_section=following is not None and len(report.rows) > 12 and _group(row) != _group(following),
            )
        terminal.show(table)
    else:
        terminal.show(f"[bold]({report.experiment}) {report.title}[/bold]")
    said = Table.grid(padding=(0, 1))
    for text in report.sentences:
        said.add_row("[cyan]•[/cyan]", escape(text))
    for text in report.notes:
        said.add_row("", f"[dim]{escape(text)}[/dim]")
    terminal.show(said)
    terminal.show("")


def _group(row: dict[str, Any]) -> list[Any]:
    """What rows that belong together have in common."""
    return [row.get(name) for name in ("method", "operation", "side", "map", "true")]


def conclude(
    terminal: Terminal,
    subject: "Subject",
    folder: Path,
    outcome: "Outcome",
    finished: int,
    seconds: float,
    figures: list[Path] | None,
) -> None:
    """The last lines: how many measurements in what time, and where tables and figures lie."""
    from dct.bench import report as written

    measured = sum(len(results) for results in outcome.results.values())
    took = f"{clock(seconds)}; {finished} measured now, {measured - finished} were on record"
    drawn = "none" if figures is None else f"{sum(p.suffix == '.png' for p in figures)}, as SVG and PNG"
    terminal.summary(
        f"{measured} measurements of {subject.lm.name}, layers {subject.source} → {subject.target}",
        [
            ("took", f"{took} ({clock(outcome.seconds)} in all)"),
            ("tables", f"[bold]{escape(str(folder / written.MARKDOWN))}[/bold], CSV and JSON beside it"),
            ("figures", drawn),
        ],
    )


def clock(seconds: float) -> str:
    """A time in the unit that people would say it in."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
