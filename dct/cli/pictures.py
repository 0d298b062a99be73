"""The main figure of a command: small on the screen, and in a file where one is named."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dct.cli.terminal import Terminal

if TYPE_CHECKING:
    from dct.plots.figures import Named


def show_calibration(terminal: Terminal, curve: Sequence[tuple[float, float]], scale: float, wanted: float) -> None:
    """The curve of the non-linearity ratio, with R and lambda."""
    from dct.plots import figures, text

    if terminal.roomy and (named := figures.calibration(curve, scale, wanted)) is not None:
        terminal.plot(text.curve(curve, named[1].x, named[1].y, scale, wanted))


def show_fit(terminal: Terminal, objective: Sequence[Sequence[float]]) -> None:
    """What grows, by iteration."""
    from dct.plots import figures, text

    if terminal.roomy and (plots := figures.iterations(objective)):
        points = [(float(k), row[0]) for k, row in enumerate(objective, start=1)]
        terminal.plot(text.curve(points, plots[0][1].x, plots[0][1].y))


def show_ranking(terminal: Terminal, content: Mapping[str, Any]) -> None:
    """The arms with their intervals and their damage."""
    from dct.plots import figures, text

    if terminal.roomy and (rows := figures.arm_rows(content)):
        terminal.plot(text.spans(rows))


def check_plot(path: Path | None) -> None:
    """Refuses, before any work, a file that no plot can be drawn into.

    Raises:
        UsageError, DctError: as `dct.plots.files.check`.
    """
    if path is not None:
        from dct.plots.files import check

        check(path)


def save_plot(terminal: Terminal, path: Path | None, plots: "Callable[[], Sequence[Named | None]]") -> None:
    """Draws plots into the file, if one is named; says where, or that there is nothing to draw."""
    if path is None:
        return
    from dct.plots.files import write

    kept = [plot for plot in plots() if plot is not None]
    if kept:
        terminal.note(f"figure in {write(path, kept)}")
    else:
        terminal.warn(f"there is nothing to draw: {path} was not written")
