"""Texts that grow side by side, line by line into the scrollback: what has been printed is never moved again.

Below the lines that are settled, a terminal that can shows those that still grow.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from dct.cli.console import SafeConsole

BETWEEN = " │ "


class Columns:
    """Texts under their headings, in as many columns.

    Args:
        console: where they are drawn.
        headings: of the columns.
        styles: of the columns, as Rich names them.
        width: of a column, in cells; None does not break lines, for one column.
    """

    def __init__(
        self, console: "SafeConsole", headings: Sequence[str], styles: Sequence[str], width: int | None = None
    ) -> None:
        self.console, self.styles, self.width = console, styles, width
        self._printed = 0
        self._live: Any = None
        for row in zip_longest(*(self._wrapped(heading) for heading in headings), fillvalue=""):
            self._print(self._row(row, [f"bold {style}" for style in styles]))

    def __enter__(self) -> "Columns":
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            from rich.live import Live

            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start(refresh=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(), refresh=True)
            self._live.stop()

    def grow(self, texts: Sequence[str], done: Sequence[bool]) -> None:
        """Prints the lines that will stay as they are, of all columns, and shows the others as they are now."""
        columns = [self._wrapped(text) for text in texts]
        most = max(len(lines) for lines in columns)
        settled = min(most if whole else len(lines) - 1 for lines, whole in zip(columns, done, strict=True))
        rows = list(zip_longest(*columns, fillvalue=""))
        for row in rows[self._printed : settled]:
            self._print(self._row(row, self.styles))
        self._printed = max(self._printed, settled)
        if self._live is not None:
            from rich.text import Text

            room = max(1, self.console.height - 2)
            growing = [self._row(row, self.styles) for row in rows[self._printed :]][-room:]
            self._live.update(Text("\n").join(growing), refresh=True)

    def foot(self, notes: Sequence[str]) -> None:
        """A remark below each column, where there is one."""
        if any(notes):
            self._print(self._row(notes, ["dim italic"] * len(notes)))

    def _wrapped(self, text: str) -> list[str]:
        """A text in lines no wider than a column, fit for the terminal."""
        fitted = self.console.fit(text).expandtabs(4)
        if self.width is None:
            return fitted.split("\n")
        return [line for paragraph in fitted.split("\n") for line in broken(paragraph, self.width)]

    def _row(self, cells: Sequence[str], styles: Sequence[str]) -> "Text":
        from rich.cells import cell_len
        from rich.text import Text

        row = Text()
        for k, (cell, style) in enumerate(zip(cells, styles, strict=True)):
            row.append(self.console.fit(BETWEEN) if k else "", "dim")
            last = k == len(cells) - 1
            row.append(cell if last else cell + " " * ((self.width or 0) - cell_len(cell)), style)
        return row

    def _print(self, row: "Text") -> None:
        self.console.print(row, soft_wrap=True)


def broken(paragraph: str, width: int) -> list[str]:
    """Lines of so many cells at most, broken at spaces where there are any. No line but the last changes when the text
    goes on."""
    from rich.cells import cell_len, chop_cells

    lines, line = [], ""
    for k, word in enumerate(paragraph.split(" ")):
        longer = f"{line} {word}" if k else word
        if cell_len(longer) <= width:
            line = longer
            continue
        if line.strip():
            lines.append(line.rstrip())
            longer = word
        *whole, line = chop_cells(longer, width) or [""]
        lines += whole
    return [*lines, line]
