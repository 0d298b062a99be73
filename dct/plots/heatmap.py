"""A heat map of pairs of layers: as lines of text, one character to a cell, and as SVG. Knows no meaning of numbers."""

from collections.abc import Sequence
from html import escape

RAMP = " ▁▂▃▄▅▆▇█"

CELL, EDGE = 12, 44
"""Of the SVG: the side of a cell, and the room for words."""


def levels(grid: Sequence[Sequence[float]], top: float, steps: int) -> list[list[int]]:
    """Each value as a step from 1 to `steps`; `top` and beyond are the last."""
    return [[min(steps, 1 + int(steps * max(0.0, value) / top)) for value in row] for row in grid]


def lines(grid: Sequence[Sequence[float]], top: float, pair: tuple[int, int]) -> list[str]:
    """One line for each target, the last above, with a column for each source; the pair is marked behind its row and
    under its column."""
    depth = len(grid)
    wide = 2 if 2 * depth <= 64 else 1
    shown = []
    for target in range(depth, 0, -1):
        cells = "".join(RAMP[k] * wide for k in levels([grid[target - 1]], top, len(RAMP) - 1)[0])
        mark = f"  t = {target}" if target == pair[1] else ""
        shown.append(f"{target:4d} {cells}{mark}")
    return [*shown, "     " + " " * (wide * pair[0]) + "^" * wide + f" s = {pair[0]}"]


def svg(grid: Sequence[Sequence[float]], top: float, pair: tuple[int, int], title: str) -> str:
    """The same as a picture that stands alone; each cell says its number when it is pointed at."""
    depth = len(grid)
    width, height = max(EDGE + depth * CELL + 20, 420), EDGE + depth * CELL + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="10"><title>{escape(title)}</title><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{EDGE}" y="16" font-size="12">{escape(title)}</text>'
    ]
    for target, row in enumerate(grid, start=1):
        y = 24 + (depth - target) * CELL
        if target % 4 == 0 or target == depth:
            parts.append(f'<text x="{EDGE - 6}" y="{y + 10}" text-anchor="end">{target}</text>')
        for source, value in enumerate(row):
            x, shade = EDGE + source * CELL, min(1.0, max(0.0, value) / top)
            line = ' stroke="#c00" stroke-width="2"' if (source, target) == pair else ""
            parts.append(
                f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="#1f4e8c" '
                f'fill-opacity="{0.04 + 0.96 * shade:.3f}"{line}><title>{source} to {target}: {value:.3g}</title>'
                "</rect>"
            )
    floor = 24 + depth * CELL
    ticks = [f'<text x="{EDGE + s * CELL + 2}" y="{floor + 12}">{s}</text>' for s in range(0, depth, 4)]
    names = f'<text x="{EDGE}" y="{floor + 28}">source, across; target, up</text>'
    return "\n".join([*parts, *ticks, names, "</svg>"]) + "\n"
