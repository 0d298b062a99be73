"""A sweep as the terminal shows it: a line for each fit, a table of all, and what it comes to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dct.cli.terminal import Terminal, escape, human_seconds, titled

if TYPE_CHECKING:
    from rich.table import Table

    from dct.sweep.cell import Cell

SHOWN = 60
"""Rows of the table."""

ROOM = 130
"""Characters of a screen that has room for every column."""

Row = Mapping[str, Any]


def said(cell: "Cell", found: Row) -> str:
    """A fit that is finished, in one line."""
    from dct.sweep.words import counted, signed

    if found.get("by") == "judged":
        arms, alone = found["arms"], found["unsteered"]
        best, null = arms["found"], arms["random"]
        what = (
            f"{counted(best['test'])} by vector {best['vector']}, {counted(null['test'])} by the best random one, "
            f"{counted(alone)} unsteered"
        )
    elif found.get("by") == "score":
        what = f"score {signed(found['gain'])} by vector {found['vector']}, {signed(found['random_gain'])} by the best "
        what += "random one"
    else:
        what = f"{found['factors']} factors, R = {found['R']:.4g}"
    return f"{cell.name}: {what}; {human_seconds(found['seconds'])}"


def table(found: Sequence[Row], width: int) -> "Table":
    """A row for each fit, in the order of the grid, on a screen of so many characters."""
    from dct.sweep.words import BROAD, brackets, columns

    told = [column for column in columns(found) if width >= ROOM or column[0] not in BROAD]
    made = titled(brackets(found))
    for heading, _ in told:
        made.add_column(heading, justify="left" if heading in ("model", "method") else "right", no_wrap=True)
    for row in found[:SHOWN]:
        made.add_row(*(escape(text(row)) for _, text in told))
    if len(found) > SHOWN:
        made.add_row("…", f"({len(found) - SHOWN} more)", style="dim")
    return made


def conclude(terminal: Terminal, found: Sequence[Row], page: Path, took: str) -> None:
    """The last lines."""
    from dct.sweep.facts import best, best_scored
    from dct.sweep.words import meaning

    rows = [(name, escape(text)) for name, text in meaning(found)]
    rows.append(("saved", f"[bold]{escape(str(page))}[/bold]  (open it in a browser), figure and numbers beside it"))
    chosen, scored = best(found), best_scored(found)
    if chosen is not None:
        rows.append(("next", f"[bold cyan]dct steer {escape(chosen['folder'])} --rank 1[/bold cyan]"))
    elif scored is not None:
        rows.append(("next", f"[bold cyan]dct rank {escape(scored['folder'])}[/bold cyan]  has replies judged"))
    terminal.summary(f"{len(found)} {'fit' if len(found) == 1 else 'fits'}, {took}", rows)
