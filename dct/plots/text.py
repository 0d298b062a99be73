"""Plots as lines of text, for a terminal: characters of our own, so that any terminal and any encoding shows them.

Points are dots on a grid of one character each: a curve of ten points needs no more, and a library for it would bring
its own colours and its own idea of an encoding.
"""

from collections.abc import Sequence
from itertools import pairwise

from dct.plots.charts import Axis

WIDTH, HEIGHT = 56, 7
"""Characters of the inside of a plot."""

LEAST = (74, 24)
"""Columns and rows of a terminal that has room for a plot beside the rest."""

POINT, BETWEEN, RULE, LEVEL = "●", "·", "│", "╌"


def curve(
    points: Sequence[tuple[float, float]], x: Axis, y: Axis, upright: float | None = None, level: float | None = None
) -> list[str]:
    """Points and what lies between them, in nine lines: the highest one says what y is, the last one what x is."""
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]

    def cell(place: tuple[float, float]) -> tuple[int, int]:
        """Row and column of a place from 0 to 1 on both axes."""
        return round((1 - place[1]) * (HEIGHT - 1)), round(place[0] * (WIDTH - 1))

    if level is not None:
        grid[cell((0.0, y.at(level)))[0]] = [LEVEL] * WIDTH
    if upright is not None:
        for row in grid:
            row[cell((x.at(upright), 0.0))[1]] = RULE
    places = [(x.at(a), y.at(b)) for a, b in sorted(points)]
    for (a, b), (c, d) in pairwise(places):
        for step in range(WIDTH + 1):
            share = step / WIDTH
            down, across = cell((a + share * (c - a), b + share * (d - b)))
            grid[down][across] = BETWEEN
    for place in places:
        down, across = cell(place)
        grid[down][across] = POINT
    names = [y.text(y.high), *[""] * (HEIGHT - 2), y.text(y.low)]
    wide = max(map(len, names))
    lines = [f"{name:>{wide}} {'┤' if name else '│'}{''.join(row)}" for name, row in zip(names, grid, strict=True)]
    low, high = x.text(x.low), x.text(x.high)
    middle = x.label.center(WIDTH - len(low) - len(high))
    return [f"{'':>{wide}}  {y.label}", *(line.rstrip() for line in lines), f"{'':>{wide}}  {low}{middle}{high}"]


def spans(rows: Sequence[tuple[str, float, float, float]]) -> list[str]:
    """Shares with their intervals (name, value, low, high), a line each, on an axis from 0 to 100%."""
    wide, room = max(len(name) for name, *_ in rows), 32
    lines = []
    for name, value, low, high in rows:
        line = [" "] * (room + 1)
        for k in range(round(low * room), round(high * room) + 1):
            line[k] = "─"
        line[round(value * room)] = POINT
        lines.append(f"{name:<{wide}} │{''.join(line)}│ {value:.0%}")
    return lines


def bars(values: Sequence[float]) -> list[str]:
    """Signed values, a line each, on both sides of zero."""
    most, room = max(map(abs, values), default=0.0) or 1.0, WIDTH // 2
    wide = len(str(len(values) - 1))
    lines = []
    for k, value in enumerate(values):
        bar = "█" * max(1, round(abs(value) / most * room))
        left, right = (bar, "") if value < 0 else ("", bar)
        lines.append(f"{k:>{wide}} {left:>{room}}{RULE}{right}".rstrip())
    return lines
